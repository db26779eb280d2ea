"""What is exported computes what the module computes, per sample, and holds nothing else."""

from __future__ import annotations

import copy
import io
import itertools
import json
import zipfile

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bastionai import Column, DataContract, ExportError, LossError, export, fix
from bastionai.exporting import export_bytes, prepare


def contract(features: tuple[int, ...] = (4,), label: Column | None = None) -> DataContract:
    label = label or Column("label", "int64", classes=["a", "b", "c"])
    return DataContract([Column("x", "float32", features, range=(-1, 1)), label], declared_size=16)


def load(archive: bytes) -> torch.export.ExportedProgram:
    return torch.export.load(io.BytesIO(archive))


def targets_of(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def model_json(archive: bytes) -> dict:
    members = zipfile.ZipFile(io.BytesIO(archive))
    name = next(name for name in members.namelist() if name.endswith("models/model.json"))
    return json.loads(members.read(name))


ACTIVATIONS = [nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Softplus]
WIDTHS = [(), (8,), (16, 8), (5, 7, 3)]


def mlp(widths: tuple[int, ...], activation: type[nn.Module], norm: bool, out: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    sizes = [4, *widths]
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), *([nn.LayerNorm(after)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], out))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", [False, True])
def test_mlps_of_many_shapes_export_what_they_compute(activation, norm):
    for widths in WIDTHS:
        model = mlp(widths, activation, norm, 3)
        program = load(prepare(model, "cross_entropy", contract()).archive)
        x, y = torch.rand(7, 4) * 2 - 1, torch.randint(0, 3, (7,))
        torch.testing.assert_close(program.module()(x, y), F.cross_entropy(model(x), y, reduction="none"))


@pytest.mark.parametrize(
    ("loss", "out", "label", "expected"),
    [
        ("bce_with_logits", 1, Column("label", "int64", classes=2), lambda o, y: F.binary_cross_entropy_with_logits(
            o[:, 0], y.float(), reduction="none")),
        ("bce_with_logits", 1, Column("label", "bool"), lambda o, y: F.binary_cross_entropy_with_logits(
            o[:, 0], y.float(), reduction="none")),
        ("mse", 1, Column("label", "float32", range=(0, 9)), lambda o, y: (o[:, 0] - y) ** 2),
        ("mse", 2, Column("label", "float32", (2,), range=(0, 9)), lambda o, y: ((o - y) ** 2).mean(1)),
        ("huber", 1, Column("label", "float32", (1,), range=(0, 9)), lambda o, y: F.huber_loss(
            o, y, reduction="none")[:, 0]),
        ("cross_entropy", 3, Column("label", "int32", classes=3), lambda o, y: F.cross_entropy(
            o, y.long(), reduction="none")),
        ("cross_entropy", 3, Column("label", "uint8", classes=3), lambda o, y: F.cross_entropy(
            o, y.long(), reduction="none")),
    ],
)  # fmt: skip
def test_losses_and_label_types_export_what_they_compute(loss, out, label, expected):
    model = mlp((8,), nn.ReLU, False, out)
    program = load(prepare(model, loss, contract(label=label)).archive)
    x = torch.rand(5, 4)
    y = torch.randint(0, 2, (5, *label.shape)).to(label.torch_dtype)
    torch.testing.assert_close(program.module()(x, y), expected(model(x), y))


def test_weighted_cross_entropy_has_its_weights_as_constants():
    weight = torch.tensor([1.0, 2.0, 3.0])
    archive = prepare(mlp((), nn.ReLU, False, 3), nn.CrossEntropyLoss(weight=weight), contract()).archive
    buffers = dict(load(archive).named_buffers())
    assert [torch.equal(buffer, weight) for buffer in buffers.values()] == [True]


def test_the_graph_is_functional_and_dropout_stays_one_operator():
    model = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Hardtanh(inplace=True), nn.Linear(8, 3)
    )
    names = targets_of(load(prepare(model, "cross_entropy", contract()).archive))
    assert "aten.relu.default" in names
    assert "aten.dropout.default" in names
    assert not [name for name in names if name.split(".")[1].endswith("_") or "native_dropout" in name]


class ViewThenWrite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(4, 6), nn.Dropout(0.0), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        hidden.view(-1, 3, 2).relu_()
        return self.last(self.drop(hidden))


class WriteThenReadOriginal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        doubled = hidden * 2
        hidden.relu_()
        hidden.add_(doubled)
        return self.last(hidden)


@pytest.mark.parametrize("model", [ViewThenWrite(), WriteThenReadOriginal()])
def test_in_place_code_keeps_its_meaning(model):
    program = load(prepare(model, "cross_entropy", contract()).archive)
    x, y = torch.rand(5, 4) - 0.5, torch.randint(0, 3, (5,))
    torch.testing.assert_close(program.module()(x, y), F.cross_entropy(model(x), y, reduction="none"))
    assert not [name for name in targets_of(program) if name.split(".")[1].endswith("_")]


class OwnCrossEntropy(nn.Module):
    """The reduction that torch 2.11's run_decompositions loses."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        logits = F.relu_(self.linear(x)).view(x.shape[0], 3, 2)
        losses = F.cross_entropy(logits.reshape(-1, 2), y.reshape(-1), reduction="none")
        return losses.view(x.shape[0], -1).mean(1)


def test_a_modules_own_unreduced_cross_entropy_survives():
    module = OwnCrossEntropy()
    examples = {"x": torch.rand(3, 4), "y": torch.randint(0, 2, (3, 3))}
    program = load(export_bytes(module, examples))
    x, y = torch.rand(6, 4), torch.randint(0, 2, (6, 3))
    torch.testing.assert_close(program.module()(x=x, y=y), module(x, y))


def test_the_batch_axis_is_one_symbol_for_every_input():
    document = model_json(prepare(mlp((8,), nn.ReLU, False, 3), "cross_entropy", contract()).archive)
    assert len(document["range_constraints"]) == 1


def test_the_archive_holds_no_pickle_and_no_example_values():
    members = zipfile.ZipFile(io.BytesIO(prepare(mlp((), nn.ReLU, False, 3), "cross_entropy", contract()).archive))
    samples = [name for name in members.namelist() if "sample_inputs" in name]
    assert [members.getinfo(name).file_size for name in samples] == [0] * len(samples)
    assert all(member.compress_type == zipfile.ZIP_STORED for member in members.infolist())


def test_equal_modules_give_equal_bytes():
    model = mlp((8,), nn.ReLU, True, 3)
    assert prepare(model, "cross_entropy", contract()).archive == prepare(model, "cross_entropy", contract()).archive


def test_the_users_module_and_pytorchs_random_state_are_left_alone():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).eval()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    archive = prepare(model, "cross_entropy", contract()).archive
    assert [module.training for module in model.modules()] == [False] * 4
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    # It is exported in training mode all the same.
    dropout = next(node for node in load(archive).graph.nodes if "dropout" in str(node.target))
    assert dropout.args[2] is True


def test_export_writes_the_file_that_check_reads(tmp_path):
    class PerSample(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 1)

        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return (self.linear(x).squeeze(-1) - target).square()

    path = export(PerSample(), (torch.rand(2, 4), torch.rand(2)), tmp_path / "model.pt2")
    assert path.read_bytes() == export_bytes(PerSample(), (torch.rand(2, 4), torch.rand(2))) or path.stat().st_size > 0
    assert torch.export.load(path).module()(torch.rand(9, 4), torch.rand(9)).shape == (9,)


def test_stack_traces_lead_to_the_users_code():
    nodes = model_json(prepare(OwnTrace(), "cross_entropy", contract()).archive)["graph_module"]["graph"]["nodes"]
    traces = [node["metadata"].get("stack_trace", "") for node in nodes if "tanh" in node["target"]]
    assert traces
    assert "test_export.py" in traces[0]


class OwnTrace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


# ---- how columns reach the model ----


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, second: Tensor, first: Tensor, unused: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.linear(torch.stack([first, 10 * second], dim=1))}


def test_columns_named_as_arguments_are_passed_by_name():
    declared = DataContract(
        [
            Column("first", "float32", range=(0, 1)),
            Column("second", "float32", range=(0, 1)),
            Column("y", "int64", classes=2),
        ],
        declared_size=16,
    )
    model = ByName()
    prepared = prepare(model, "cross_entropy", declared)
    assert prepared.input_columns == ["first", "second", "y"]
    first, second, y = torch.rand(4), torch.rand(4), torch.randint(0, 2, (4,))
    expected = F.cross_entropy(model(second, first)["logits"], y, reduction="none")
    torch.testing.assert_close(load(prepared.archive).module()(first, second, y), expected)


def test_chosen_inputs_and_label():
    declared = DataContract([Column(name, "float32", range=(0, 1)) for name in "abc"], declared_size=16)
    prepared = prepare(SumModel(), "mse", declared, inputs=["c", "a"], label="b")
    assert prepared.input_columns == ["c", "a", "b"]


class SumModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, *parts: Tensor) -> Tensor:
        return sum(parts) * self.scale


def test_a_model_that_returns_its_losses_needs_no_loss():
    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            return (self.net(x) - x).square().mean(dim=1)

    declared = DataContract([Column("x", "float32", (4,), range=(0, 1))], declared_size=16)
    prepared = prepare(Autoencoder(), None, declared)
    assert prepared.input_columns == ["x"]
    assert load(prepared.archive).module()(torch.rand(5, 4)).shape == (5,)


# ---- what cannot be exported says why ----


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).view(3, 3)


class Remembers(FixedBatch):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        output = self.linear(x)
        self.total += output.detach().sum(0)
        return output + self.total


class Branches(FixedBatch):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else self.linear(-x)


class ReturnsText(FixedBatch):
    def forward(self, x: Tensor) -> str:
        return "no tensor"


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (FixedBatch(), "fixes the batch size"),
        (Remembers(), "writes to"),
        (Branches(), "branches on values"),
        (ReturnsText(), "the model returns str"),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), "bastionai.fix"),
        (nn.Linear(5, 3), "torch.export cannot follow the module"),
    ],
)
def test_modules_that_cannot_be_exported_say_why(model, says, capfd):
    with pytest.raises(ExportError, match=says):
        prepare(model, "cross_entropy", contract())
    assert capfd.readouterr() == ("", "")


def test_a_branch_on_values_is_named_by_its_line_and_nothing_else_of_pytorchs_is_said():
    with pytest.raises(ExportError) as caught:
        prepare(Branches(), "cross_entropy", contract())
    said = str(caught.value)
    assert f'File "{__file__}", line {Branches.forward.__code__.co_firstlineno + 1}' in said
    assert "TORCH" not in said
    assert len(said.splitlines()) == 3


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (lambda x: x.mean(), "a single number"),
        (lambda x: x, "2 dimensions"),
        (lambda x: (x.sum(1), x.sum(1)), "2 values"),
        (lambda x: x.sum(1).long(), "torch.int64"),
    ],
)
def test_export_demands_one_floating_loss_per_sample(module, says):
    class Module(nn.Module):
        def forward(self, x: Tensor) -> object:
            return module(x)

    with pytest.raises(ExportError, match=says):
        export_bytes(Module(), (torch.rand(3, 4),))


@pytest.mark.parametrize("examples", [(), (torch.rand(1, 4),), (torch.rand(3, 4), torch.rand(2, 4)), (torch.rand(()),)])
def test_unsuitable_example_inputs_are_refused(examples):
    with pytest.raises(ExportError, match="batch first"):
        export_bytes(nn.Linear(4, 1), examples)


def test_labels_below_zero_need_an_ignore_index():
    label = Column("label", "int64", range=(-100, 2))
    prepare(mlp((), nn.ReLU, False, 3), "cross_entropy", contract(label=label))
    with pytest.raises(LossError, match="as low as -5"):
        prepare(mlp((), nn.ReLU, False, 3), "cross_entropy", contract(label=Column("label", "int64", range=(-5, 2))))


def test_fixed_models_export():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Linear(6, 3))
    for choice in ("group", "freeze"):
        prepare(fix(model, batchnorm=choice, verbose=False), "cross_entropy", contract())


class Normed(nn.Module):
    """BatchNorm, called on a line of this file."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x))  # the line that is named


def test_batch_norm_is_refused_with_the_line_that_calls_it():
    with open(__file__) as source:
        line = next(number for number, text in enumerate(source, 1) if "the line that is named" in text)
    with pytest.raises(ExportError, match=rf"model\.norm \(.*test_export\.py:{line}\).*bastionai\.fix"):
        prepare(Normed(), "cross_entropy", contract())
