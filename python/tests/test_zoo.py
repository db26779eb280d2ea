"""Every model of the zoo is exported, proven and trained as PyTorch would, record by record.

Per-sample losses and gradients are compared in f64 with PyTorch's autograd on batches of one, clipped sums with Opacus'
hooks, and what happens to one record must not touch another. ``docs/coverage.md`` is written from these cases by
``make coverage``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from zoo import all_cases, coverage, harness, hooks
from zoo.case import Case, Model

from bastionai import ModelRefused

SLOW = pytest.mark.skipif(os.environ.get("BASTIONAI_SLOW") != "1", reason="slow: BASTIONAI_SLOW=1")
CASES = [pytest.param(case, id=case.name, marks=[SLOW] if case.slow else []) for case in all_cases()]


@dataclass
class Examined:
    """A case's model, and what PyTorch and the engine make of it."""

    case: Case
    model: Model
    pytorch: harness.Gradients
    oracle: harness.Neighbours
    engine: dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def examined(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Examined:
    if case.refused:
        pytest.skip("refused, as it should be")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = harness.exact(case.made())
        oracle = harness.neighbours(model)
        results = harness.engine(model, oracle.batches, tmp_path_factory.mktemp("zoo"))
        return Examined(case, model, harness.one_by_one(model), oracle, results)
    finally:
        torch.set_num_threads(threads)


def shows(test: Callable[..., None]) -> Callable[..., None]:
    """Remembers which cases passed, for the page."""

    @functools.wraps(test)
    def noting(**given: object) -> None:
        shown = coverage.shown((given.get("case") or given["examined"].case).name)
        test(**given)
        shown.tests.add(test.__name__)

    noting.shows_a_case = True
    return noting


@shows
def test_the_model_is_accepted_as_a_user_has_it_or_refused_with_its_line(case):
    model = case.made()
    if not case.refused:
        _, graph = harness.exported(model)
        assert "[B" in graph
        return
    with pytest.raises(ModelRefused, match=case.refused) as caught:
        harness.exported(model)
    assert all(".py:" in refusal.source for refusal in caught.value.refusals)


@shows
def test_losses_equal_pytorchs(examined):
    losses = examined.engine["all/losses"]
    for expected in (examined.pytorch.losses, harness.batch_losses(examined.model)):
        torch.testing.assert_close(losses, expected.double(), rtol=examined.case.tolerance, atol=1e-12)
    assert examined.engine["all/counted"].all()


@shows
def test_losses_equal_the_librarys_own_of_each_record_alone(examined):
    # Hugging Face's language models and token classifiers compute their losses in float32.
    expected = harness.library_losses(examined.model)
    torch.testing.assert_close(examined.engine["all/losses"], expected, rtol=1e-6, atol=1e-6)


@shows
def test_per_sample_gradients_equal_autograds_on_batches_of_one(examined):
    ours, theirs = harness.of(examined.engine, "all", "gradients"), examined.pytorch.gradients
    assert theirs.keys() <= ours.keys()
    shown = coverage.shown(examined.case.name)
    for row in range(len(examined.pytorch.losses)):
        whole = harness.length(theirs[name][row] for name in theirs)
        assert whole > 0.0
        for name in theirs:
            apart = harness.length([ours[name][row] - theirs[name][row].double()])
            assert apart <= examined.case.tolerance * whole, f"{name}, record {row}: {apart / whole:.1e}"
            shown.apart = max(shown.apart, apart / whole)


@shows
def test_norm_bounds_are_bounds_and_tight(examined):
    bounds = examined.engine["all/norm_bounds"]
    for row, bound in enumerate(bounds.tolist()):
        norm = harness.length(each[row] for each in examined.pytorch.gradients.values())
        slack = max(examined.case.tolerance, 1e-6)
        assert norm * (1.0 - examined.case.tolerance) <= bound <= norm * (1.0 + slack) + 1e-9


@shows
def test_clipped_sums_equal_pytorchs(examined):
    _same_sums(examined, harness.clipped_sum(examined.pytorch.gradients))


@shows
def test_clipped_sums_equal_opacus_where_it_supports_the_model(examined):
    reached = examined.pytorch.gradients
    if examined.case.opacus:
        with pytest.raises((hooks.OpacusDiffers, AssertionError)):
            _same_sums(examined, hooks.opacus_sum(examined.model, reached))
    else:
        _same_sums(examined, hooks.opacus_sum(examined.model, reached))


def _same_sums(examined: Examined, expected: dict[str, torch.Tensor]) -> None:
    ours = harness.of(examined.engine, "all", "sums")
    apart = harness.length(ours[name] - expected[name].double() for name in expected)
    # Sums are on a grid, and the engine clips by an upper bound of the norm.
    assert apart <= max(examined.case.tolerance, 1e-6) * harness.length(expected.values())


@shows
def test_what_happens_to_one_record_leaves_the_others_bit_for_bit(examined):
    results, changed = examined.engine, examined.oracle.changed
    others = torch.arange(len(results["all/losses"])) != changed
    for batch, rows in (("replaced", others), ("hostile", others), ("removed", others), ("alone", ~others)):
        for key in _per_record(results, "all"):
            before, after = results[f"all/{key}"][rows], results[f"{batch}/{key}"][rows]
            assert torch.equal(before, after), f"{key}, {batch}"


@shows
def test_permuting_the_batch_permutes_the_results(examined):
    results, order = examined.engine, examined.oracle.order
    for key in _per_record(results, "all"):
        before, after = results[f"all/{key}"].double()[order], results[f"permuted/{key}"].double()
        torch.testing.assert_close(after, before, rtol=examined.case.tolerance, atol=1e-9)


@shows
def test_a_removed_record_adds_nothing_to_the_sum(examined):
    sums = {batch: harness.of(examined.engine, batch, "sums") for batch in ("all", "removed", "alone")}
    names = list(examined.pytorch.gradients)
    apart = harness.length(sums["all"][name] - sums["removed"][name] - sums["alone"][name] for name in names)
    assert apart <= 1e-6
    assert harness.length(sums["alone"][name] for name in names) <= harness.MAX_GRAD_NORM * (1 + 1e-6)


def _per_record(results: dict[str, torch.Tensor], batch: str) -> list[str]:
    keys = [key.removeprefix(f"{batch}/") for key in results if key.startswith(f"{batch}/")]
    return [key for key in keys if not key.startswith("sums/")]


def test_names_are_unique():
    names = [case.name for case in all_cases()]
    assert len(set(names)) == len(names)
