"""Whole architectures of torchvision at their own size: accepted as a user has them, gradients equal PyTorch's.

They have millions of parameters: only with ``BASTIONAI_SLOW=1``. What happens to one record with the others is shown
on narrow configurations of the same classes, in ``test_zoo.py``. Last of all, the page that says what was shown.
"""

from __future__ import annotations

import os

import pytest
import test_zoo
import torch
from zoo import all_cases, coverage, harness, vision

SLOW = pytest.mark.skipif(os.environ.get("BASTIONAI_SLOW") != "1", reason="slow: BASTIONAI_SLOW=1")


@SLOW
@pytest.mark.parametrize("case", vision.WHOLE, ids=lambda case: case.name)
def test_a_whole_architecture_is_accepted_and_its_gradients_equal_autograds(case, tmp_path):
    _, graph = harness.exported(case.made())
    assert "[B" in graph
    shown = coverage.shown(case.name)
    model = harness.exact(case.made())
    records = dict(model.records)
    present = torch.ones(case.rows, dtype=torch.bool)
    results = harness.engine(model, {"all": (records, present)}, tmp_path)
    ours = harness.of(results, "all", "gradients")
    clipped: dict[str, torch.Tensor] = {}
    # Record by record: gradients of all of them at once would fill gigabytes.
    for row in range(case.rows):
        expected = harness.one_by_one(harness.of_rows(model, slice(row, row + 1)))
        torch.testing.assert_close(results["all/losses"][row], expected.losses[0], rtol=case.tolerance, atol=1e-12)
        whole = harness.length(expected.gradients.values())
        assert expected.gradients.keys() == ours.keys()
        for name, each in expected.gradients.items():
            apart = harness.length([ours[name][row] - each[0]])
            assert apart <= case.tolerance * whole, f"{name}, record {row}: {apart / whole:.1e}"
            shown.apart = max(shown.apart, apart / whole)
        for name, each in harness.clipped_sum(expected.gradients).items():
            clipped[name] = clipped[name] + each if name in clipped else each
    shown.parameters = sum(each.numel() for each in harness.trained(model.module).values())
    sums = harness.of(results, "all", "sums")
    apart = harness.length(sums[name] - each for name, each in clipped.items())
    # Of what was summed, not of the sum: clipped gradients of opposite records cancel, the grid's rounding does not.
    assert apart <= 1e-6 * case.rows * harness.MAX_GRAD_NORM
    shown.tests.add("whole")


def test_the_coverage_page_is_what_the_cases_say():
    rows = coverage.rows_of(coverage.PAGE.read_text())
    if os.environ.get("BASTIONAI_WRITE_COVERAGE") == "1":
        each_of = [name for name, test in vars(test_zoo).items() if hasattr(test, "shows_a_case")]
        needed = {case.name: 1 if case.refused else len(each_of) for case in all_cases()}
        needed |= {case.name: 1 for case in vision.WHOLE}
        ran = [name for name in needed if coverage.was_met(name)]
        failed = [name for name in ran if len(coverage.shown(name).tests) < needed[name]]
        assert not failed, f"the page says what has been shown; not shown for {failed}"
        coverage.PAGE.write_text(coverage.page(coverage.renewed(rows, ran)))
    page = coverage.PAGE.read_text()
    assert coverage.page(coverage.rows_of(page)) == page, "docs/coverage.md is stale: make coverage"
