"""Clipping and noise mode: the engine's sums are those of Opacus, of the paper's formula and of Python's integers."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from zoo import all_cases, harness
from zoo.case import Case, Model

CASES = [case for case in all_cases() if case.name in ("lora-bert", "bitfit-bert", "frozen-resnet18-head")]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def model(request: pytest.FixtureRequest) -> Model:
    case: Case = request.param
    return harness.exact(case.made())


def engine_sums(model: Model, folder: Path, clipping: str) -> dict[str, torch.Tensor]:
    batches = {name: batch for name, batch in harness.neighbours(model).batches.items() if name == "all"}
    return harness.of(harness.engine(model, batches, folder, clipping), "all", "sums")


def same(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    apart = harness.length(ours[name] - expected[name].double() for name in expected)
    assert apart <= 1e-5 * harness.length(expected.values())


def opacus_per_layer(model: Model) -> dict[str, torch.Tensor]:
    """Sums by Opacus' hooks and its optimizer, with C/√K for each of K tensors."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPPerLayerOptimizer

    module = copy.deepcopy(harness.joined(model))
    assert model.records is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hooked = GradSampleModule(module, loss_reduction="sum", strict=True)
        hooked(*(model.records[name] for name in module.columns)).sum().backward()
    trained = harness.trained(hooked._module)
    share = harness.MAX_GRAD_NORM / math.sqrt(len(trained))
    optimizer = DPPerLayerOptimizer(
        torch.optim.SGD(trained.values(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=[share] * len(trained),
        expected_batch_size=1,
        loss_reduction="sum",
    )
    optimizer.clip_and_accumulate()
    return {name: parameter.summed_grad for name, parameter in trained.items()}


def test_per_layer_sums_are_opacus(model, tmp_path):
    expected = opacus_per_layer(model)
    assert len(expected) > 1
    same(engine_sums(model, tmp_path, "per_layer"), expected)


def test_automatic_sums_are_those_of_auto_s(model, tmp_path):
    gradients = harness.one_by_one(model).gradients
    squared = sum(each.flatten(1).square().sum(1) for each in gradients.values())
    factors = harness.MAX_GRAD_NORM / (squared.sqrt() + 0.01)
    expected = {name: torch.einsum("b,b...->...", factors, each) for name, each in gradients.items()}
    same(engine_sums(model, tmp_path, "automatic"), expected)
    flat = harness.clipped_sum(gradients)
    assert harness.length(flat[name] - expected[name] for name in flat) > 1e-3, (
        "nothing that flat clipping would not do"
    )


def test_hardened_sums_are_the_integers_that_python_makes_of_each_records_gradient(model, tmp_path):
    """Record by record and without tolerance: truncated to the grid, and no longer than C."""
    batches = harness.neighbours(model).batches
    batches = {name: batches[name] for name in ("all", "removed", "alone")}
    results = harness.engine(model, batches, tmp_path, "flat", "hardened")
    unit = harness.MAX_GRAD_NORM / 2**30

    def integers(batch: str) -> np.ndarray:
        joined = torch.cat([each.flatten() for each in harness.of(results, batch, "sums").values()]).numpy()
        assert (joined == np.rint(joined / unit) * unit).all(), "all are on the grid"
        return np.rint(joined / unit).astype(np.int64)

    alone, removed, everybody = integers("alone"), integers("removed"), integers("all")
    changed = harness.neighbours(model).changed
    assert (everybody - removed == alone).all()
    assert sum(int(units) ** 2 for units in alone) <= 2**60
    # The engine's factor is C/norm rounded down to float32, the norm being an upper bound: it is one of the next below.
    gradients = harness.of(results, "all", "gradients").values()
    values = np.concatenate([each[changed].flatten().double().numpy() for each in gradients])
    exact = harness.MAX_GRAD_NORM / math.sqrt(math.fsum(value * value for value in values))
    factor = np.float32(min(1.0, exact))
    candidates = []
    for _ in range(4):
        if float(factor) <= exact:
            candidates.append(np.trunc(values * (float(factor) * (1.0 / unit))).astype(np.int64))
        factor = np.nextafter(factor, np.float32(0.0))
    assert any((alone == candidate).all() for candidate in candidates)
