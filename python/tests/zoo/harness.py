"""Runs a case: through export, checker and engine on one side, through PyTorch and Opacus on the other."""

from __future__ import annotations

import copy
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bastionai import Column, DataContract, _internal
from bastionai.exporting import PreparedModel, _join, prepare
from zoo.case import Model

ENGINE = Path(
    os.environ.get("BASTIONAI_ZOO_STEP", Path(__file__).resolve().parents[3] / "target/release/examples/zoo_step")
)
MAX_GRAD_NORM = 1.0
#: Attributes by which the libraries' modules know their dropout.
_DROPOUT = ("p", "dropout", "drop_prob", "dropout_p", "attention_dropout", "activation_dropout", "layerdrop")


def exported(model: Model) -> tuple[PreparedModel, str]:
    """The archive as a user would send it, and the server's description of the graph it accepts."""
    prepared = prepare(model.module, model.loss, model.contract, model.inputs, model.label)
    return prepared, _internal.check_archive(prepared.archive, model.contract.to_json(), prepared.input_columns)


def exact(model: Model) -> Model:
    """The same model in f64 and without dropout, so that numbers can be compared; the original is left alone."""
    module = copy.deepcopy(model.module).double().train()
    for layer in module.modules():
        for name in _DROPOUT:
            if isinstance(getattr(layer, name, None), float):
                setattr(layer, name, 0.0)
    columns = [replace(column, dtype=_wide(column)) for column in model.contract.columns]
    assert model.records is not None
    records = {name: value.double() if value.is_floating_point() else value for name, value in model.records.items()}
    return replace(model, module=module, contract=DataContract(columns, model.contract.declared_size), records=records)


def of_rows(model: Model, rows: slice) -> Model:
    """The model with some of its records."""
    assert model.records is not None
    return replace(model, records={name: value[rows] for name, value in model.records.items()})


def _wide(column: Column) -> object:
    return torch.float64 if column.torch_dtype.is_floating_point else column.dtype


# ---- PyTorch ----


@dataclass
class Gradients:
    """Losses ``[rows]`` and gradients ``[rows, shape]`` by the parameter's name; f64."""

    losses: Tensor
    gradients: dict[str, Tensor]


def joined(model: Model) -> nn.Module:
    """Model and loss as one module over the columns, as the client joins them."""
    return _join(model.module, model.loss, model.contract, model.inputs, model.label)


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters, each once: tied ones under their first name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def one_by_one(model: Model) -> Gradients:
    """Every record as a batch of its own, by autograd."""
    module = joined(model)
    assert model.records is not None
    columns = [model.records[name] for name in module.columns]
    parameters = trained(module)
    losses, gradients = [], {name: [] for name in parameters}
    for row in range(len(columns[0])):
        (loss,) = module(*(column[row : row + 1] for column in columns))
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        losses.append(loss.detach())
        for name, gradient in zip(parameters, found, strict=True):
            gradients[name].append(gradient)
    # What the loss of no record depends on is not trained.
    reached = {name: rows for name, rows in gradients.items() if any(row is not None for row in rows)}
    filled = {
        name: [torch.zeros_like(parameters[name]) if row is None else row for row in rows]
        for name, rows in reached.items()
    }
    return Gradients(torch.stack(losses), {name: torch.stack(rows) for name, rows in filled.items()})


def batch_losses(model: Model) -> Tensor:
    """The losses of all records in one batch."""
    module = joined(model)
    assert model.records is not None
    with torch.no_grad():
        return module(*(model.records[name] for name in module.columns))


def library_losses(model: Model) -> Tensor:
    """The loss of each record alone, as the library's own classes compute it, or ``F.cross_entropy``; f64."""
    assert model.records is not None
    losses = []
    for row in range(len(next(iter(model.records.values())))):
        record = {name: value[row : row + 1] for name, value in model.records.items()}
        label = record.pop("labels", record.pop("label", None))
        if label is None:
            # A language model's own tokens; padding is not predicted.
            label = record["input_ids"].masked_fill(record.get("attention_mask", torch.tensor(1)) == 0, -100)
        with torch.no_grad():
            if hasattr(model.module, "config"):
                losses.append(model.module(**record, labels=label).loss)
            else:
                losses.append(nn.functional.cross_entropy(model.module(*record.values()), label))
    return torch.stack(losses).double()


def clipped_sum(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Σ_i min(1, C/‖g_i‖)·g_i over all parameters jointly."""
    squared = sum(each.flatten(1).square().sum(1) for each in gradients.values())
    factors = (MAX_GRAD_NORM / squared.sqrt().clamp(min=1e-300)).clamp(max=1.0)
    return {name: torch.einsum("b,b...->...", factors, each) for name, each in gradients.items()}


# ---- the engine ----


def engine(
    model: Model,
    batches: Mapping[str, tuple[Mapping[str, Tensor], Tensor]],
    folder: Path,
    clipping: str = "flat",
    noise_mode: str = "standard",
) -> dict[str, Tensor]:
    """What the engine computes of each batch of records and ``present`` (``crates/trainer/examples/zoo_step.rs``)."""
    assert ENGINE.exists(), f"{ENGINE} is missing: cargo build --release -p bastionai-trainer --example zoo_step"
    prepared, _ = exported(model)
    archive, contract, given, results = (
        folder / name for name in ("m.pt2", "c.json", "in.safetensors", "out.safetensors")
    )
    archive.write_bytes(prepared.archive)
    contract.write_text(model.contract.to_json())
    tensors = {}
    for name, (records, present) in batches.items():
        tensors[f"{name}/present"] = present.clone()
        tensors |= {f"{name}/{column}": records[column].clone().contiguous() for column in prepared.input_columns}
    save_file(tensors, given)
    columns = ",".join(prepared.input_columns)
    command = [ENGINE, archive, contract, columns, str(MAX_GRAD_NORM), given, results, clipping]
    command += [noise_mode] if noise_mode != "standard" else []
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return load_file(results)


def of(results: Mapping[str, Tensor], batch: str, kind: str) -> dict[str, Tensor]:
    """``gradients`` or ``sums`` of a batch, by the parameter's name."""
    prefix = f"{batch}/{kind}/"
    return {key.removeprefix(prefix): value for key, value in results.items() if key.startswith(prefix)}


# ---- what happens to one record ----


@dataclass
class Neighbours:
    """Batches that differ in one record, for the soundness oracle.

    Attributes:
        batches: Records and ``present`` by name; ``all`` is the plain one.
        order: ``permuted`` row i is row ``order[i]`` of ``all``.
        changed: The row that ``replaced``, ``hostile`` and ``removed`` change, and the only one left in ``alone``.
    """

    batches: dict[str, tuple[dict[str, Tensor], Tensor]]
    order: Tensor
    changed: int


def neighbours(model: Model) -> Neighbours:
    """The batches of a model's oracle."""
    assert model.records is not None
    records = dict(model.records)
    rows, changed = len(next(iter(records.values()))), 1
    present = torch.ones(rows, dtype=torch.bool)
    only = torch.arange(rows) == changed
    order = (torch.arange(rows) + 1) % rows

    def where(rows_changed: Tensor, other: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mask = {name: rows_changed.view(-1, *[1] * (value.dim() - 1)) for name, value in records.items()}
        return {name: torch.where(mask[name], other[name], value) for name, value in records.items()}

    nothing = {name: torch.zeros_like(value) for name, value in records.items()}
    return Neighbours(
        {
            "all": (records, present),
            "replaced": (where(only, {name: value.roll(1, 0) for name, value in records.items()}), present),
            "hostile": (where(only, {name: _hostile(value) for name, value in records.items()}), present),
            "removed": (where(only, nothing), ~only),
            "alone": (where(~only, nothing), only),
            "permuted": ({name: value[order] for name, value in records.items()}, present),
        },
        order,
        changed,
    )


def _hostile(value: Tensor) -> Tensor:
    if value.is_floating_point():
        return torch.full_like(value, float("nan"))
    return ~value if value.dtype == torch.bool else torch.full_like(value, torch.iinfo(value.dtype).max)


# ---- distances ----


def length(tensors: Iterable[Tensor]) -> float:
    """Norm of all tensors as one vector, in f64."""
    return sum(float(tensor.double().square().sum()) for tensor in tensors) ** 0.5
