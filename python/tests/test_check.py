"""What is exported from honest models is accepted; models that mix samples are refused at their line."""

from __future__ import annotations

import io
import itertools
import runpy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bastionai import Column, ContractError, DataContract, ModelRefused, _internal, fix
from bastionai.exporting import export_bytes, prepare
from bastionai.functionalise import functionalise

LABEL = Column("label", "int64", classes=3)


def contract(features: tuple[int, ...] = (4,), label: Column = LABEL) -> DataContract:
    return DataContract([Column("x", "float32", features, range=(-1, 1)), label], declared_size=16)


def checked(model: nn.Module, loss: object, declared: DataContract) -> str:
    prepared = prepare(model, loss, declared)
    return _internal.check_archive(prepared.archive, declared.to_json(), prepared.input_columns)


# ---- honest models ----

ACTIVATIONS = [
    nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.Softplus,
    nn.Mish, nn.Hardtanh, nn.Hardswish, nn.ReLU6, lambda: nn.ReLU(inplace=True), lambda: nn.GELU("tanh"),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: getattr(a, "__name__", "?"))
def test_classifiers_of_every_activation_are_accepted(activation):
    for widths in ((), (8,), (16, 8, 4)):
        sizes, layers = [4, *widths], []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), activation(), nn.Dropout(0.1)]
        text = checked(nn.Sequential(*layers, nn.Linear(sizes[-1], 3)), "cross_entropy", contract())
        assert "[B" in text


LOSSES = [
    ("cross_entropy", 3, LABEL),
    (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1), 3, LABEL),
    (nn.CrossEntropyLoss(ignore_index=-1), 3, Column("label", "int64", range=(-1, 2))),
    ("cross_entropy", 3, Column("label", "int32", classes=3)),
    ("cross_entropy", 3, Column("label", "uint8", classes=3)),
    ("bce_with_logits", 1, Column("label", "bool")),
    ("bce_with_logits", 1, Column("label", "int64", classes=2)),
    ("bce_with_logits", 5, Column("label", "float32", (5,), range=(0, 1))),
    (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0])), 1, Column("label", "float32", (1,), range=(0, 1))),
    ("mse", 1, Column("label", "float32", range=(0, 9))),
    ("mse", 2, Column("label", "float32", (2,), range=(0, 9))),
    ("l1", 2, Column("label", "float32", (2,), range=(0, 9))),
    ("huber", 2, Column("label", "float32", (2,), range=(0, 9))),
    (nn.SmoothL1Loss(beta=0.5), 1, Column("label", "float32", range=(0, 9))),
    (lambda o, t: (o.squeeze(-1) - t).abs().pow(1.5), 1, Column("label", "float32", range=(0, 9))),
]


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: f"{case[0]}-{case[2].dtype}"[:50])
def test_every_loss_is_accepted(case):
    loss, out, label = case
    checked(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, out)), loss, contract(label=label))


def test_probabilities_with_bce_are_accepted():
    model = nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())
    checked(model, "bce", contract(label=Column("label", "float32", range=(0, 1))))


class Scaled(nn.Module):
    """Scaling from public ranges inside the model, as the README advises."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor([0.0, 1.0, 2.0, 3.0]))
        self.register_buffer("width", torch.tensor([1.0, 2.0, 3.0, 4.0]))
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.low) / self.width)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(x + F.gelu(self.first(x)))
        return self.last(torch.cat([hidden, hidden * torch.sigmoid(x)], dim=-1))


class FlattensImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.reshape(x.shape[0], 3, 4))


class TrainableScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift, self.net = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x * self.scale + self.shift)


@pytest.mark.parametrize("model", [Scaled(), Residual(), TrainableScale()], ids=lambda m: type(m).__name__)
def test_ordinary_modules_are_accepted(model):
    checked(model, "cross_entropy", contract())


def test_inputs_of_several_axes_are_accepted():
    checked(FlattensImages(), "cross_entropy", contract((3, 4)))
    checked(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), "cross_entropy", contract((1, 3, 4)))


@pytest.mark.parametrize("choice", ["group", "freeze"])
def test_fixed_models_are_accepted(choice):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Linear(6, 3))
    checked(fix(model, batchnorm=choice, verbose=False), "cross_entropy", contract())


def test_frozen_and_tied_parameters_are_accepted():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    model[0].requires_grad_(False)
    model[2].weight = nn.Parameter(torch.randn(4, 4))
    checked(model, "cross_entropy", contract())


def test_an_export_without_contract_is_typed_from_its_own_shapes():
    archive = export_bytes(LossOf(lambda x, y: (x.sum(1) - y).square()), (torch.rand(3, 4), torch.rand(3)))
    assert "[B" in _internal.check_archive(archive, None, [])


# ---- models that mix samples ----


class LossOf(nn.Module):
    """A hostile module around one expression; it has a parameter so that there is something to train."""

    def __init__(self, expression) -> None:
        super().__init__()
        self.linear, self.expression = nn.Linear(4, 4), expression

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.expression(self.linear(x), y)


LEAKY = {
    "centred by the batch mean": "(x - x.mean(dim=0)).sum(1)",
    "mean over a negative dim": "(x.sum(1) - x.sum(1).mean(-1))",
    "sum over everything": "x.sum(1) + x.sum()",
    "sum with an empty dim list": "x.sum(1) + x.sum(dim=[]).sum()",
    "softmax over the batch": "torch.softmax(x, dim=0).sum(1)",
    "log_softmax of a rank-1 loss": "torch.log_softmax(x.sum(1), dim=-1)",
    "divided by the batch size": "x.sum(1) / x.shape[0]",
    "times arange(B)": "x.sum(1) * torch.arange(x.shape[0])",
    "added batch size": "x.sum(1) + x.shape[0]",
    "layer norm over the batch": "F.layer_norm(x.t().contiguous(), (x.shape[0],)).t().sum(1)",
    "flipped rows": "x.flip(0).sum(1)",
    "rolled flat": "x.roll(1).sum(1)",
    "cumulative over the batch": "x.cumsum(0).sum(1)",
    "the largest of the batch": "x.sum(1) - x.sum(1).max()",
    "sorted batch": "x.sum(1).sort().values",
    "pairwise products": "(x @ x.t()).sum(1)",
    "outer broadcast": "(x.sum(1, keepdim=True) - y).sum(1)",
    "reshaped across samples": "x.t().flatten().unflatten(0, (x.shape[0], 4)).sum(1)",
    "batch variance": "x.sum(1) * x.var(dim=0).sum()",
    "first sample for all": "x.sum(1) + x[0].sum()",
    "reduced cross entropy": "x.sum(1) + F.cross_entropy(x, y.long().clamp(0, 3))",
    "noise shared by all": "x.sum(1) * torch.rand(1)",
    "batch norm in training": "F.batch_norm(x, None, None, training=True).sum(1)",
    "norm of the batch": "x.sum(1) / x.norm()",
    "expanded to the batch and summed": "x.sum(1) * torch.ones(1, 1).expand(1, x.shape[0]).sum(1)",
}

LEAKY_MODULE = """
import torch
import torch.nn.functional as F
class Leaky(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
    def forward(self, x, y):
        x = self.linear(x)
        return EXPRESSION
"""
LEAKY_LINE = 1 + LEAKY_MODULE.split("\n").index("        return EXPRESSION")


@pytest.mark.parametrize("name", LEAKY)
def test_models_that_mix_samples_are_refused_at_their_line(name, tmp_path):
    path = tmp_path / "leaky.py"
    path.write_text(LEAKY_MODULE.replace("EXPRESSION", LEAKY[name]))
    model = runpy.run_path(str(path))["Leaky"]()
    with pytest.raises(ModelRefused) as caught:
        _internal.check_archive(export_bytes(model, (torch.rand(3, 4), torch.rand(3))), None, [])
    refusals = caught.value.refusals
    assert refusals
    assert all(refusal.node and refusal.reason and refusal.remedy for refusal in refusals)
    assert f"leaky.py:{LEAKY_LINE}" in {(refusal.source or "").rpartition("/")[2] for refusal in refusals}
    assert f"leaky.py:{LEAKY_LINE}" in str(caught.value)


def test_batch_norm_is_refused_by_the_server_side_check_too():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).train()

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return (self.model(x).sum(1) - y).square()

    # As if a scientist wrote their own client: no refusal on this side.
    batch = torch.export.Dim("batch", min=2)
    shapes = {"x": {0: batch}, "y": {0: batch}}
    program = torch.export.export(Joined(), (torch.rand(3, 4), torch.rand(3)), dynamic_shapes=shapes)
    for archive in (saved(program), saved(program.run_decompositions({}))):
        with pytest.raises(ModelRefused):
            _internal.check_archive(archive, None, [])


def saved(program: torch.export.ExportedProgram) -> bytes:
    archive = io.BytesIO()
    torch.export.save(program, archive)
    return archive.getvalue()


def test_all_refusals_come_at_once():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            a = self.linear(x).softmax(dim=0)
            b = self.linear(x).cumsum(0)
            return (a + b).sum(1) - y

    with pytest.raises(ModelRefused) as caught:
        _internal.check_archive(export_bytes(Twice(), (torch.rand(3, 4), torch.rand(3))), None, [])
    assert len(caught.value.refusals) == 2


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "no model"])
def test_malformed_archives_are_refused(damage):
    archive = export_bytes(LossOf(lambda x, y: x.sum(1) - y), (torch.rand(3, 4), torch.rand(3)))
    broken = {"empty": b"", "text": b"hello", "cut": archive[: len(archive) // 2], "no model": archive[:22]}[damage]
    with pytest.raises(ModelRefused):
        _internal.check_archive(broken, None, [])


def test_a_column_that_the_contract_lacks_is_refused():
    prepared = prepare(nn.Linear(4, 3), "cross_entropy", contract())
    with pytest.raises(ContractError, match="nope"):
        _internal.check_archive(prepared.archive, contract().to_json(), ["nope", "label"])


def test_functionalising_twice_changes_nothing():
    model = LossOf(lambda x, y: F.relu_(x).sum(1) - y)
    batch = torch.export.Dim("batch", min=2)
    shapes = {"x": {0: batch}, "y": {0: batch}}
    program = functionalise(torch.export.export(model, (torch.rand(3, 4), torch.rand(3)), dynamic_shapes=shapes))
    nodes = [str(node.target) for node in program.graph.nodes]
    assert [str(node.target) for node in functionalise(program).graph.nodes] == nodes
