"""Whole architectures of torchvision, on small images: accepted as a user has them, gradients equal PyTorch's.

They have millions of parameters: only with ``BASTIONAI_SLOW=1``. What happens to one record with the others is shown
on narrow configurations of the same classes, in ``test_zoo.py``.
"""

from __future__ import annotations

import os

import pytest
import torch
from zoo import harness, vision

SLOW = pytest.mark.skipif(os.environ.get("BASTIONAI_SLOW") != "1", reason="slow: BASTIONAI_SLOW=1")


@SLOW
@pytest.mark.parametrize("case", vision.WHOLE, ids=lambda case: case.name)
def test_a_whole_architecture_is_accepted_and_its_gradients_equal_autograds(case, tmp_path):
    _, graph = harness.exported(case.made())
    assert "[B" in graph
    model = harness.exact(case.made())
    records = dict(model.records)
    present = torch.ones(case.rows, dtype=torch.bool)
    results = harness.engine(model, {"all": (records, present)}, tmp_path)
    expected = harness.one_by_one(model)
    torch.testing.assert_close(results["all/losses"], expected.losses, rtol=case.tolerance, atol=1e-12)
    ours = harness.of(results, "all", "gradients")
    for row in range(case.rows):
        whole = harness.length(each[row] for each in expected.gradients.values())
        for name, each in expected.gradients.items():
            apart = harness.length([ours[name][row] - each[row]])
            assert apart <= case.tolerance * whole, f"{name}, record {row}: {apart / whole:.1e}"
    sums, clipped = harness.of(results, "all", "sums"), harness.clipped_sum(expected.gradients)
    apart = harness.length(sums[name] - each for name, each in clipped.items())
    # Of what was summed, not of the sum: clipped gradients of opposite records cancel, the grid's rounding does not.
    assert apart <= 1e-6 * case.rows * harness.MAX_GRAD_NORM
