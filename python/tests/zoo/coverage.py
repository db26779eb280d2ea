"""``docs/coverage.md``: what the zoo's cases say, and what a whole run of their tests measured."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from zoo import families, vision
from zoo.case import Case

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs/coverage.md"
NEVER = "not yet"
_LIBRARIES = ("torch", "torchvision", "transformers", "peft", "opacus")
_HEAD = """# Coverage

Models of the libraries' own classes that are exported, proven, trained and compared. Written by `make coverage`
(`python/tests/test_zoo.py` and `test_zoo_whole.py`): a row is renewed when all tests of its case passed, and says on
which commit. Ordinary runs of the tests fail when the page says anything else than the cases. Each is a small
configuration with random weights unless it says otherwise: operators and layers are those of the large one.

For each: exported as a user has it and accepted by the checker; per-sample losses equal to eager PyTorch's and to the
library's own for that record alone; per-sample gradients equal to autograd's on batches of one, in f64 (*within*: the
greatest distance allowed, of the record's whole gradient; *found*: the greatest that the run met); clipped sums equal
to those of Opacus' hooks (1e-6), or why these have none; a record that is replaced, poisoned, removed or left alone
changes nothing of the others, bit for bit, and permuting the batch permutes the results. Opacus is given recurrent
layers of its own, positions for every record, contiguous images, nothing in place: the same numbers in forms it knows.
"""
_WHOLE = """## Whole architectures

As torchvision configures them, random weights, BatchNorm replaced by GroupNorm or frozen: accepted, losses, per-sample
gradients and clipped sums compared with autograd's, in f64. What happens to one record with the others is shown above.

| case | images | parameters | within | found | of commit | rows |
| --- | --- | --- | --- | --- | --- | --- |"""


@dataclass
class Shown:
    """What tests found of a case.

    Attributes:
        tests: Names of those that passed.
        apart: Greatest relative distance of a per-sample gradient from autograd's.
        parameters: How many are trained.
    """

    tests: set[str] = field(default_factory=set)
    apart: float = 0.0
    parameters: int = 0


#: Of the run that goes on, by the case's name.
_shown: dict[str, Shown] = {}


def shown(name: str) -> Shown:
    """What was found of this case so far."""
    return _shown.setdefault(name, Shown())


def was_met(name: str) -> bool:
    """Whether the run that goes on had this case."""
    return name in _shown


@dataclass(frozen=True)
class Row:
    """What the page says of a case that the case alone does not: as written, ``NEVER`` before its first run."""

    found: str = NEVER
    parameters: str = NEVER
    commit: str = NEVER


def rows_of(text: str) -> dict[str, Row]:
    """The rows of this page, by the case's name."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    rows = {row[0].removesuffix(" (slow)"): Row(found=row[3], commit=row[4]) for row in cells if len(row) == 6}
    return rows | {row[0]: Row(found=row[4], parameters=row[2], commit=row[5]) for row in cells if len(row) == 7}


def renewed(rows: dict[str, Row], names: list[str]) -> dict[str, Row]:
    """With what the run that goes on has shown of these cases."""
    commit = _commit()
    new = {name: Row(f"{shown(name).apart:.0e}", f"{shown(name).parameters:,}", commit) for name in names}
    return rows | new


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs")
    return git("rev-parse", "--short=9", "HEAD") + (" and changes" if changed else "")


def versions() -> str:
    """Of the libraries whose classes and numbers these are."""
    pinned = re.findall(r"^([a-z]+)==([\w.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    return ", ".join(f"{name} {version}" for name, version in pinned if name in _LIBRARIES)


def page(rows: dict[str, Row]) -> str:
    """The whole page."""
    sections = [_section(family, cases, rows) for family, cases in sorted(families().items()) if cases]
    return "\n".join([_HEAD, f"Compared with {versions()}.", "", *sections, _whole(rows)])


def _section(family: str, cases: list[Case], rows: dict[str, Row]) -> str:
    accepted = [case for case in cases if not case.refused]
    refused = [case for case in cases if case.refused]
    lines = [f"## {family.capitalize()}", ""]
    if accepted:
        lines += ["| case | model | within | found | of commit | Opacus' clipped sum |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
        for case in accepted:
            row = rows.get(case.name, Row())
            lines.append(
                f"| {_name(case)} | {case.shows} | {case.tolerance:.0e} | {row.found} | {row.commit} "
                f"| {case.opacus or 'equal'} |"
            )
        lines.append("")
    if refused:
        lines += ["| refused | model | what the checker says, with the line |", "| --- | --- | --- |"]
        lines += [f"| {_name(case)} | {case.shows} | {case.refused} |" for case in refused]
        lines.append("")
    return "\n".join(lines)


def _whole(rows: dict[str, Row]) -> str:
    lines = []
    for case in vision.WHOLE:
        row, side = rows.get(case.name, Row()), vision.SIDE
        lines.append(
            f"| {case.name} | {side} × {side} pixels | {row.parameters} | {case.tolerance:.0e} | {row.found} "
            f"| {row.commit} | {case.rows} |"
        )
    return "\n".join([_WHOLE, *lines, ""])


def _name(case: Case) -> str:
    return f"{case.name} (slow)" if case.slow else case.name
