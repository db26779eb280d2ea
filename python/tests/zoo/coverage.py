"""``docs/coverage.md``: what the zoo's cases say, which its tests show to be so."""

from __future__ import annotations

from zoo import families
from zoo.case import Case

_HEAD = """# Coverage

Models of the libraries' own classes that are exported, proven, trained and compared. Written by the test run
(`python/tests/test_zoo.py`), which fails when this page is stale. Each is a small configuration with random weights
unless it says otherwise: operators and layers are those of the large one.

For each: exported as a user has it and accepted by the checker; per-sample losses equal to eager PyTorch's, and
per-sample gradients to autograd's on batches of one, in f64, within the relative distance in the table; clipped sums
equal to Opacus' hooks' (1e-6), or why those have none; a record that is replaced, poisoned, removed or left alone
changes nothing of the others, bit for bit, and permuting the batch permutes the results.
"""


def page() -> str:
    """The whole page."""
    sections = [_section(family, cases) for family, cases in sorted(families().items()) if cases]
    return "\n".join([_HEAD, *sections])


def _section(family: str, cases: list[Case]) -> str:
    accepted = [case for case in cases if not case.refused]
    refused = [case for case in cases if case.refused]
    lines = [f"## {family.capitalize()}", ""]
    if accepted:
        lines += ["| case | model | within | Opacus' clipped sum |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {_name(case)} | {case.shows} | {case.tolerance:.0e} | {case.opacus or 'equal'} |" for case in accepted
        ]
        lines.append("")
    if refused:
        lines += ["| refused | model | what the checker says, with the line |", "| --- | --- | --- |"]
        lines += [f"| {_name(case)} | {case.shows} | {case.refused} |" for case in refused]
        lines.append("")
    return "\n".join(lines)


def _name(case: Case) -> str:
    return f"{case.name} (slow)" if case.slow else case.name
