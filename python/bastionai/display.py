"""Small tables for notebooks. Every value is escaped: names come from other people."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence


def text_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An aligned table for terminals. Control characters are dropped: names come from other people.

    Args:
        header: Column titles; empty for a table of key and value.
        rows: The cells.
    """
    cells = [[_printable(str(cell)) for cell in row] for row in ([header] if header else [])]
    cells += [[_printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def _printable(text: str) -> str:
    return "".join(character for character in text if character.isprintable())


def html_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table.

    Args:
        title: Caption; empty for none.
        header: Column titles; empty for a table of key and value.
        rows: The cells.
    """
    head = "".join(f"<th style='text-align:left'>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    caption = f"<caption style='text-align:left'><b>{html.escape(title)}</b></caption>" if title else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def svg_curve(title: str, points: Sequence[tuple[float, float]]) -> str:
    """A curve as inline SVG: x as it is, y on a logarithmic scale.

    Args:
        title: Caption.
        points: (x, y), x ≥ 0 and y > 0.
    """
    width, height, left, bottom, top = 480, 300, 60, 40, 28
    if not points:
        return f"<b>{html.escape(title)}</b>: no finite point"
    widest = max(x for x, _ in points) or 1.0
    decades = [math.log10(y) for _, y in points]
    lowest, highest = math.floor(min(decades)), math.ceil(max(decades))

    def place(x: float, decade: float) -> tuple[float, float]:
        across = left + (width - left - 12) * x / widest
        return across, top + (height - top - bottom) * (highest - decade) / max(highest - lowest, 1)

    line = " ".join("{:.1f},{:.1f}".format(*place(x, d)) for (x, _), d in zip(points, decades, strict=True))
    marks = []
    for decade in range(lowest, highest + 1, max(1, (highest - lowest) // 6)):
        _, y = place(0.0, decade)
        marks.append(f"<line x1='{left}' x2='{width - 12}' y1='{y:.1f}' y2='{y:.1f}' stroke='#ddd'/>")
        marks.append(f"<text x='{left - 6}' y='{y + 4:.1f}' text-anchor='end'>1e{decade}</text>")
    for part in range(5):
        x, _ = place(widest * part / 4, lowest)
        marks.append(
            f"<text x='{x:.1f}' y='{height - bottom + 18}' text-anchor='middle'>{widest * part / 4:.3g}</text>"
        )
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' "
        "font-family='sans-serif' font-size='11'>"
        f"<text x='{left}' y='16' font-weight='bold'>{html.escape(title)}</text>{''.join(marks)}"
        f"<polyline points='{line}' fill='none' stroke='#0b62a4' stroke-width='2'/></svg>"
    )
