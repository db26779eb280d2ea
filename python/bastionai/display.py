"""Small tables for notebooks. Every value is escaped: names come from other people."""

from __future__ import annotations

import html
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
