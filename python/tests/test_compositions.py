"""Operators that are composed while a module is exported compute what PyTorch's own compute, gradients included."""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bastionai import _internal
from bastionai.compositions import ComposedOperators
from bastionai.exporting import export_bytes

torch.manual_seed(0)
X = torch.randn(3, 4, 6, dtype=torch.float64)
WEIGHT, HEADS = torch.randn(5, 6, dtype=torch.float64), torch.randn(4, 6, 2, dtype=torch.float64)
PLACES = torch.randint(0, 4, (3, 2, 6))

COMPOSED = {
    "mT": lambda x: x.mT,
    "T of a matrix": lambda x: x[0].T,
    "eye": lambda x: x @ torch.eye(6, dtype=torch.float64),
    "eye of two extents": lambda x: x @ torch.eye(6, 3, dtype=torch.float64),
    "linalg.norm of an axis": lambda x: torch.linalg.norm(x, dim=1),
    "linalg.norm of an axis and order": lambda x: torch.linalg.norm(x, 1, dim=2, keepdim=True),
    "linalg.norm of two axes": lambda x: torch.linalg.norm(x, dim=(1, 2)),
    "movedim": lambda x: x.movedim(1, 2),
    "movedim of several": lambda x: torch.movedim(x, (1, 2), (2, 1)),
    "moveaxis": lambda x: torch.moveaxis(x, 0, -1),
    "swapaxes": lambda x: x.swapaxes(1, 2),
    "chunk": lambda x: x.chunk(4, -1)[2],
    "unflatten": lambda x: x.unflatten(-1, (2, -1)),
    "narrow": lambda x: x.narrow(1, 0, 2),
    "narrow from the end": lambda x: x.narrow(-1, -3, 2),
    "min of two": lambda x: torch.min(x, x.flip(2)),
    "max of two": lambda x: x.max(x.flip(2)),
    "expand_as": lambda x: x[:, :1].expand_as(x),
    "view_as": lambda x: x.view_as(x),
    "take_along_dim": lambda x: torch.take_along_dim(x, PLACES, 1),
    "unfold": lambda x: x.unfold(1, 2, 1),
    "unfold with a step": lambda x: x.unfold(-1, 3, 2),
    "index_select": lambda x: x.index_select(1, torch.tensor([0, 2])),
    "glu": lambda x: F.glu(x, -1),
    "threshold": lambda x: F.threshold(x, 0.1, 0.2),
    "cosine_similarity": lambda x: F.cosine_similarity(x, x + 1, dim=-1),
    "pairwise_distance": lambda x: F.pairwise_distance(x[:, 0], x[:, 1]),
    "bilinear": lambda x: F.bilinear(x, x, WEIGHT.reshape(5, 6, 1) * torch.ones(6), torch.ones(5, dtype=torch.float64)),
    "weight_norm": lambda x: torch._weight_norm(x[0], x[0, :, :1], 0),
    "weight_norm of the other axis": lambda x: torch._weight_norm(x[0], x[0, :1], 1),
    "weight_norm of everything": lambda x: torch._weight_norm(x[0], x[0, 0, 0], -1),
}

EQUATIONS = {
    "bij,bkj->bik": lambda x: (x, x),
    "bij,kj->bik": lambda x: (x, WEIGHT),
    "kj,bij->bki": lambda x: (WEIGHT, x),
    "bij->bji": lambda x: (x,),
    "bij->b": lambda x: (x,),
    "bij": lambda x: (x,),
    "bij,bij->b": lambda x: (x, x),
    "bij,bij->bij": lambda x: (x, x),
    "bij,j->bi": lambda x: (x, x[0, 0]),
    "bi,bj->bij": lambda x: (x[:, 0], x[:, 1]),
    "bhd,hde->bhe": lambda x: (x, HEADS),
    "bij,kj,kl->bil": lambda x: (x, WEIGHT, WEIGHT),
    "ij,jk": lambda x: (WEIGHT, x[0].t()),
    "bij , bik -> bjk": lambda x: (x, x),
    "i,i->": lambda x: (x[0, 0], x[0, 0]),
    "i,j->ij": lambda x: (x[0, 0], x[0, 1]),
    "bij,bkl->b": lambda x: (x, x),
    "bqhd,bkhd->bhqk": lambda x: (x.view(3, 2, 2, 6), x.view(3, 2, 2, 6)),
    "...ij,...kj->...ik": lambda x: (x, x),
    "bii->bi": lambda x: (x[:, :, :4],),
}


def same(compute) -> None:
    results = []
    for mode in (None, ComposedOperators()):
        x = X.clone().requires_grad_(True)
        if mode is None:
            value = compute(x)
        else:
            with mode:
                value = compute(x)
        (gradient,) = torch.autograd.grad((value * value.detach().cos()).sum(), x)
        results.append((value.detach(), gradient))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("name", COMPOSED)
def test_a_composed_operator_is_pytorchs(name):
    same(COMPOSED[name])


@pytest.mark.parametrize("equation", EQUATIONS)
def test_a_composed_equation_is_einsums(equation):
    same(lambda x: torch.einsum(equation, *EQUATIONS[equation](x)))
    same(lambda x: torch.einsum(equation, list(EQUATIONS[equation](x))))


#: What the server's checker has a rule for: composing these again would hide a rule from every test above it.
LEFT_ALONE = {
    "flip": lambda x: x.flip(1, 2),
    "roll": lambda x: torch.roll(x, (1, -2), (1, 2)),
    "repeat": lambda x: x.repeat(1, 2, 3),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1),
    "masked_fill": lambda x: x.masked_fill(x > 0, torch.tensor(0.5)),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_an_operator_with_a_rule_of_its_own_is_exported_as_it_is_and_accepted(name):
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4, 6, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return LEFT_ALONE[name](x * self.scale).flatten(1).sum(1)

    archive = export_bytes(Loss(), [X])
    nodes = torch.export.load(io.BytesIO(archive)).graph.nodes
    assert any(str(node.target).startswith(f"aten.{name}.") for node in nodes)
    assert "[B" in _internal.check_archive(archive, None, [])


def test_einsum_with_a_parameter_of_every_head_exports_to_operators_with_a_tap():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.last = nn.Parameter(HEADS.clone()), nn.Parameter(WEIGHT.clone())

        def forward(self, x: Tensor) -> Tensor:
            return (
                torch.einsum("bhd,hde->bhe", x, self.heads) + torch.einsum("kd,bhd->bhk", self.last, x)[..., :2]
            ).sum((1, 2))

    program = torch.export.load(io.BytesIO(export_bytes(Heads(), [X])))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.einsum.default" not in targets
    assert {"aten.matmul.default", "aten.mul.Tensor"} <= targets
    torch.testing.assert_close(program.module()(X), Heads()(X))
