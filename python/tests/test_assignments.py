"""Tensors that a module fills or assigns to in place keep their meaning in the exported graph, and are accepted."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from bastionai import Column, DataContract, ModelRefused, _internal
from bastionai.exporting import prepare

CONTRACT = DataContract(
    [Column("x", "float32", (4, 3), range=(-1, 1)), Column("y", "float32", (4, 3), range=(-1, 1))], declared_size=16
)


class Assigns(nn.Module):
    """One loss per sample of what ``change`` makes of a layer's output."""

    def __init__(self, change) -> None:
        super().__init__()
        self.linear, self.change = nn.Linear(3, 3), change

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.change(self.linear(x)) - y).square().mean((1, 2))


#: PyTorch records lines of ``forward`` only.
LINE = f"{__file__}:{Assigns.forward.__code__.co_firstlineno + 1}"


def _slices(x: Tensor) -> Tensor:
    x = x * 1.0
    x[:, 1:3] = 2.0
    x[:, :, -1:] = x[:, :, :1] * 3
    return x


def _rows(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0] = 0
    x[:, -1, 1] = x[:, 1, 0]
    return x


def _filled_memory(x: Tensor) -> Tensor:
    out = torch.empty(x.shape[0], 4, 3)
    out[:, :2] = x[:, 2:]
    out[:, 2:] = x[:, :2].flip(2)
    return out


def _masked(x: Tensor) -> Tensor:
    x = x + 0.0
    x[x > 0.1] = 0.5
    x[(x < -0.2).all(2)] = torch.tensor([1.0, 2.0, 3.0])
    return x


def _windows(x: Tensor) -> Tensor:
    """As shifted windows build their mask."""
    mask = x.new_zeros((4, 3))
    count = 0
    for rows in ((0, -2), (-2, None)):
        for columns in ((0, -1), (-1, None)):
            mask[rows[0] : rows[1], columns[0] : columns[1]] = count
            count += 1
    return x + mask.masked_fill(mask != 0, -100.0)


def _zeroed(x: Tensor) -> Tensor:
    x = x * 1.0
    x[:, 1:2].zero_()
    x[:, :, 0].fill_(3.0)
    x[:, 2].copy_(x[:, 3])
    return x


def _integers(x: Tensor) -> Tensor:
    places = torch.zeros(4, dtype=torch.int64)
    places[1:] = 1
    places[3] = 2
    return x + places.unsqueeze(1)


CHANGES = [_slices, _rows, _filled_memory, _masked, _windows, _zeroed, _integers]


def exported(change) -> tuple[nn.Module, torch.export.ExportedProgram]:
    torch.manual_seed(0)
    module = Assigns(change)
    prepared = prepare(module, None, CONTRACT)
    assert "[B" in _internal.check_archive(prepared.archive, CONTRACT.to_json(), prepared.input_columns)
    return module, torch.export.load(io.BytesIO(prepared.archive))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_assignments_keep_their_meaning_and_gradients(change):
    module, program = exported(change)
    x, y = torch.rand(5, 4, 3) - 0.5, torch.rand(5, 4, 3)
    again = program.module()
    torch.testing.assert_close(again(x, y), module(x, y))
    expected = torch.autograd.grad(module(x, y).sum(), list(module.parameters()))
    found = torch.autograd.grad(again(x, y).sum(), list(again.parameters()))
    torch.testing.assert_close(found, expected)


def _depth(x: Tensor) -> Tensor:
    return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(0.75).div_(0.75)


def _depth_by_rounding(x: Tensor) -> Tensor:
    return x / 0.75 * (0.75 + torch.rand((x.shape[0], 1, 1))).floor_()


def _uniform(x: Tensor) -> Tensor:
    return x * torch.empty_like(x).uniform_(-1.0, 3.0)


def _normal(x: Tensor) -> Tensor:
    return x * torch.empty(x.shape[0], 4, 3).normal_(2.0, 0.5)


DRAWS = {
    # mean and variance of a factor
    _depth: (1.0, 1 / 3),
    _depth_by_rounding: (1.0, 1 / 3),
    _uniform: (1.0, 16 / 12),
    _normal: (2.0, 0.25),
}


class Factors(Assigns):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.change(torch.ones_like(x) + 0 * self.linear(x))[:, 0, 0] + 0 * y[:, 0, 0]


@pytest.mark.parametrize("change", DRAWS, ids=lambda change: change.__name__)
def test_draws_are_accepted_and_have_their_distribution(change):
    exported(change)
    prepared = prepare(Factors(change), None, CONTRACT)
    _internal.check_archive(prepared.archive, CONTRACT.to_json(), prepared.input_columns)
    program = torch.export.load(io.BytesIO(prepared.archive)).module()
    torch.manual_seed(1)
    rows = 40_000
    drawn = program(torch.rand(rows, 4, 3), torch.rand(rows, 4, 3)).detach()
    mean, variance = DRAWS[change]
    assert float(drawn.mean()) == pytest.approx(mean, abs=5 * (variance / rows) ** 0.5)
    assert float(drawn.var()) == pytest.approx(variance, rel=0.05)


def _depth_of_the_batch(x: Tensor) -> Tensor:
    return x * torch.empty(1, 1, 1).bernoulli_(0.75)


def _noise_of_the_batch(x: Tensor) -> Tensor:
    return x + torch.randn(4, 3)


@pytest.mark.parametrize("change", [_depth_of_the_batch, _noise_of_the_batch], ids=lambda change: change.__name__)
def test_one_draw_for_the_whole_batch_is_refused_at_its_line(change):
    prepared = prepare(Assigns(change), None, CONTRACT)
    with pytest.raises(ModelRefused, match="one random value for all samples") as caught:
        _internal.check_archive(prepared.archive, CONTRACT.to_json(), prepared.input_columns)
    assert [refusal.source for refusal in caught.value.refusals] == [LINE]


def _rows_of_the_batch(x: Tensor) -> Tensor:
    x = x * 1.0
    x[0] = 0
    return x


def test_assigning_to_rows_of_the_batch_is_refused_at_its_line():
    prepared = prepare(Assigns(_rows_of_the_batch), None, CONTRACT)
    with pytest.raises(ModelRefused) as caught:
        _internal.check_archive(prepared.archive, CONTRACT.to_json(), prepared.input_columns)
    assert {refusal.source for refusal in caught.value.refusals} == {LINE}
