"""A module → the ``.pt2`` archive that is sent: a functional graph with one loss per sample."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bastionai.attention import exportable_attention
from bastionai.bags import BagsWithinSample
from bastionai.compositions import ComposedOperators
from bastionai.contract import DataContract
from bastionai.derivatives import plain_derivatives, refuse_gradient_hooks
from bastionai.exceptions import BastionError, ExportError, LossError
from bastionai.fixing import unfixed
from bastionai.functionalise import functionalise
from bastionai.hub import logits_of, with_fused_activations, without_caches
from bastionai.lines import SizesDecided, is_users, line_of, line_of_node
from bastionai.losses import (
    BinaryCrossEntropy,
    CausalLanguageModel,
    CrossEntropy,
    LossLike,
    PerSampleLoss,
    classes_second,
    per_sample_loss,
)
from bastionai.recurrent import exportable_recurrence
from bastionai.synthetic import synthetic_columns

#: Batch size of example inputs: above 1, which PyTorch would take for a constant, and otherwise
#: arbitrary, because the batch axis is exported as a symbol.
EXAMPLE_BATCH_SIZE = 3

_LABEL_NAMES = ("label", "labels", "target", "targets", "y", "class")
#: Columns by which tokenizers name a text's tokens, and which of them are not padding.
TOKENS, PADDING_MASK = "input_ids", "attention_mask"


def export(
    module: nn.Module,
    example_inputs: Sequence[Tensor] | Mapping[str, Tensor],
    path: str | os.PathLike[str],
) -> Path:
    """Writes exactly the ``.pt2`` archive that would be sent for this module.

    Args:
        module: Maps its inputs to one loss per sample, ``[batch]``. It is exported in training mode
            and left as it is.
        example_inputs: Tensors of any values with the batch first, in calling order or by the name
            of the argument. They must agree in batch size, at least 2.
        path: The file to write, e.g. ``model.pt2``; then try ``bastionai check model.pt2``.

    Returns:
        The path.

    Raises:
        ExportError: If ``torch.export`` cannot follow the module, or the result is not ``[batch]``.
    """
    destination = Path(path)
    destination.write_bytes(export_bytes(module, example_inputs))
    return destination


def export_bytes(module: nn.Module, example_inputs: Sequence[Tensor] | Mapping[str, Tensor]) -> bytes:
    """The archive of :func:`export`, in memory. Equal modules give equal bytes."""
    inputs = example_inputs if isinstance(example_inputs, Mapping) else tuple(example_inputs)
    _check_examples(list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs))
    program = functionalise(_trace(_training_copy(module, inputs), inputs))
    _check_result(program)
    return _saved(program)


def _saved(program: torch.export.ExportedProgram) -> bytes:
    # Example inputs would travel as a pickle; nobody needs them.
    program._example_inputs = None
    archive = io.BytesIO()
    try:
        with _quiet():
            torch.export.save(program, archive)
    except Exception as error:
        raise ExportError(_unsaved(program, str(error))) from error
    return archive.getvalue()


def _unsaved(program: torch.export.ExportedProgram, text: str) -> str:
    named = re.search(r"Failed serializing node (\w+) in graph", text)
    nodes = [node for node in program.graph.nodes if named is not None and node.name == named.group(1)]
    line = next((line for line in map(line_of_node, nodes) if line is not None), None)
    return (
        f"{f'{line}: ' if line else ''}torch.export cannot write down {named.group(1) if named else 'the graph'}: "
        f"{_first_line(text)}. Write this place with plain operators on the whole batch (instead of torch.vmap)"
    )


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def export_scores(
    model: nn.Module,
    contract: DataContract,
    path: str | os.PathLike[str],
    *,
    loss: LossLike | None = None,
    inputs: Sequence[str] | None = None,
    label: str | None = None,
) -> Path:
    """Writes the ``.pt2`` archive that evaluates a model: its scores and the label, per sample.

    Args:
        model: A trained module that returns logits; left as it is.
        contract: Of the data it is evaluated on.
        path: The file to write, e.g. ``scores.pt2``; then ``bastionai run evaluate scores.pt2``.
        loss: What it was trained with, if its outputs are probabilities instead of logits (``"bce"``).
        inputs: Columns to pass, in order; by default all but the label.
        label: Column with the true class; by default as for :meth:`bastionai.Connection.RemoteLearner`.

    Returns:
        The path.

    Raises:
        ExportError: If the model cannot be exported, or its output is not one score or one logit per class.
    """
    destination = Path(path)
    destination.write_bytes(prepare_scores(model, loss, contract, inputs, label).archive)
    return destination


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's own warnings, log lines and half-made graphs say nothing that our errors do not."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _check_examples(tensors: list[Tensor]) -> None:
    sizes = {tensor.shape[0] if tensor.dim() else 0 for tensor in tensors}
    if len(sizes) != 1 or min(sizes) < 2:
        raise ExportError("example inputs must be tensors with the batch first, of one batch size of at least 2")


def _check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ExportError(f"the model is a {type(model).__name__}; expected a torch.nn.Module")


def _training_copy(module: nn.Module, inputs: tuple[Tensor, ...] | Mapping[str, Tensor]) -> nn.Module:
    _check_module(module)
    names = unfixed(module)
    if names:
        lines = _calling_lines(module, inputs, names)
        layers = [f"{name} ({lines[name]})" if name in lines else name for name in names[:5]]
        raise ExportError(
            f"{', '.join(layers)}: BatchNorm (or InstanceNorm with running statistics) normalises a sample by "
            "the others of its batch, so no sample's influence can be bounded. Use model = bastionai.fix(model)"
        )
    refuse_gradient_hooks(module)
    return with_fused_activations(without_caches(_copied(module))).train()


def _copied(module: nn.Module) -> nn.Module:
    """A copy on the CPU: the user's module is not touched, its mode, buffers and device stay as they are."""
    try:
        return copy.deepcopy(module).cpu()
    except Exception as error:
        raise ExportError(
            f"the module cannot be copied: {_first_line(str(error))}. It must have its weights (no meta device), and "
            "keep no computed tensors: for torch.nn.utils.weight_norm use torch.nn.utils.parametrizations.weight_norm"
        ) from error


def _calling_lines(
    module: nn.Module, inputs: tuple[Tensor, ...] | Mapping[str, Tensor], names: list[str]
) -> dict[str, str]:
    """``file:line`` of the user's code that calls each of these layers, as far as one run of a copy tells."""
    trial = copy.deepcopy(module).cpu()
    lines: dict[str, str] = {}

    def note(name: str) -> Callable[[nn.Module, object], None]:
        def before(_layer: nn.Module, _input: object) -> None:
            frames = (frame for frame in inspect.stack(context=0) if is_users(frame.filename))
            caller = next(frames, None)
            if caller is not None:
                lines.setdefault(name, f"{caller.filename}:{caller.lineno}")

        return before

    for name in names:
        trial.get_submodule(name).register_forward_pre_hook(note(name))
    # Any failure is the export's to report; here it only costs the line.
    with contextlib.suppress(Exception), torch.no_grad(), _quiet():
        trial(**inputs) if isinstance(inputs, Mapping) else trial(*inputs)
    return lines


def _trace(module: nn.Module, inputs: tuple[Tensor, ...] | Mapping[str, Tensor]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=2)
    args: tuple[Tensor, ...]
    if isinstance(inputs, Mapping):
        args, kwargs = (), {name: tensor.cpu() for name, tensor in inputs.items()}
    else:
        args, kwargs = tuple(tensor.cpu() for tensor in inputs), {}
    shapes = _dynamic_shapes(module, args, kwargs, batch)
    sizes = SizesDecided()
    try:
        with (
            _quiet(),
            sizes,
            BagsWithinSample(),
            ComposedOperators(),
            exportable_attention(),
            exportable_recurrence(),
            plain_derivatives(),
        ):
            return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    except BastionError:
        raise
    except Exception as error:
        raise ExportError(_explain(error, sizes.lines)) from error


def _dynamic_shapes(
    module: nn.Module,
    args: tuple[Tensor, ...],
    kwargs: dict[str, Tensor],
    batch: object,
) -> dict[str, object]:
    """Axis 0 of every input is the one batch symbol, by the name of its argument."""
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise ExportError(f"the example inputs do not fit {type(module).__name__}.forward: {error}") from error
    axes: dict[str, object] = {}
    for name, value in bound.arguments.items():
        if isinstance(value, Tensor):
            axes[name] = {0: batch}
        elif isinstance(value, Mapping):
            axes[name] = {key: {0: batch} for key in value}
        else:
            axes[name] = tuple({0: batch} for _ in value)
    return axes


def _check_result(program: torch.export.ExportedProgram) -> None:
    outputs = program.graph_signature.user_outputs
    nodes = {node.name: node for node in program.graph.nodes}
    value = nodes[outputs[0]].meta.get("val") if len(outputs) == 1 and outputs[0] in nodes else None
    if not isinstance(value, torch.Tensor):
        raise ExportError(f"the module must return one tensor, its loss per sample; it returns {len(outputs)} values")
    if value.dim() != 1 or not value.is_floating_point():
        shape = "a single number" if value.dim() == 0 else f"{value.dim()} dimensions, {value.dtype}"
        raise ExportError(
            f"the module must return one floating loss per sample, of shape [batch]; it returns {shape}. "
            "Average within a sample (mean over every axis but the first), never over the batch"
        )


def _explain(error: Exception, sizes_decided: list[str]) -> str:
    text = str(error)
    if "Constraints violated" in text or ("constant" in text and "batch" in text):
        places = f" (at {', '.join(sizes_decided[:3])})" if sizes_decided else ""
        return (
            f"the module fixes the batch size{places}: its code only works for the batch size of the example inputs. "
            "Use x.shape[0] or -1 instead of a number, compare no size with the batch size, and do not loop over it.\n"
            + _without_advice(text)
        )
    if "data-dependent" in text or "Could not guard" in text:
        return (
            "the module branches on values of its inputs, or on random numbers (if, while, .item(), boolean indexing): "
            f"use torch.where instead, and layerdrop=0 where a model drops whole layers.{_failing_line(text)}"
        )
    line, said = line_of(error), _without_advice(text)
    return (
        f"{f'{line}: ' if line else ''}torch.export cannot follow the module: "
        f"{type(error).__name__}{f': {said}' if said else ''}. If the module runs as it is, write this place with "
        "PyTorch's plain operators"
    )


def _without_advice(text: str) -> str:
    """Without what PyTorch tells its own developers: stacks of C++, and which of its functions to call instead."""
    for end in ("Exception raised from", "The error above occurred when calling", "Please file an issue"):
        text = text.partition(end)[0]
    return text.strip().rstrip(".")


def _failing_line(text: str) -> str:
    """The line of code that PyTorch names at the end of a long explanation for its own developers."""
    named = re.search(r"^ *File .+\n.+$", text.partition("The following call raised this error:")[2], re.MULTILINE)
    return f"\n{named.group(0)}" if named else f"\n{text.strip()}"


@dataclass(frozen=True)
class PreparedModel:
    """A model with its loss, ready to send.

    Attributes:
        archive: The ``.pt2`` bytes.
        input_columns: Contract column of each graph input, in order.
    """

    archive: bytes
    input_columns: list[str]


class ModelWithLoss(nn.Module):
    """Model and per-sample loss as one module over the columns of a record.

    Args:
        model: The user's module.
        loss: Its per-sample loss; None when the model itself returns one loss per sample.
        inputs: Columns the model takes, in order.
        label: Column the loss compares with.
        by_name: Pass the inputs by keyword.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: PerSampleLoss | None,
        inputs: list[str],
        label: str | None,
        by_name: bool,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.inputs = inputs
        self.label = label
        self.by_name = by_name

    @property
    def columns(self) -> list[str]:
        """Columns of ``forward``, in order; a label that is an input too (a language model's tokens) comes once."""
        return self.inputs if self.label is None or self.label in self.inputs else [*self.inputs, self.label]

    def forward(self, *columns: Tensor) -> Tensor:
        """One loss per sample."""
        record = dict(zip(self.columns, columns, strict=True))
        inputs = {name: record[name] for name in self.inputs}
        output, named = logits_of(self.model(**inputs) if self.by_name else self.model(*inputs.values()))
        if self.loss is None:
            return output
        target = record[self.label or ""]
        if isinstance(self.loss, CausalLanguageModel):
            target = self.loss.without_padding(target, record.get(PADDING_MASK))
        elif isinstance(self.loss, CrossEntropy):
            output = classes_second(output, target, named)
        losses: Tensor = self.loss(output, target)
        return losses


class ModelWithScores(nn.Module):
    """Model and label column as one module that returns scores and label per sample, for an evaluation.

    Args:
        model: The user's module.
        loss: What it was trained with: says whether its outputs are logits.
        inputs: Columns the model takes, in order.
        label: Column with the true class.
        by_name: Pass the inputs by keyword.
    """

    def __init__(
        self, model: nn.Module, loss: PerSampleLoss | None, inputs: list[str], label: str, by_name: bool
    ) -> None:
        super().__init__()
        self.model = model
        self.probabilities = isinstance(loss, BinaryCrossEntropy) and not loss.logits
        self.inputs = inputs
        self.label = label
        self.by_name = by_name

    def forward(self, *columns: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``[batch]`` (log-odds) or ``[batch, classes]``, and the class of each sample ``[batch]``."""
        record = dict(zip([*self.inputs, self.label], columns, strict=True))
        inputs = {name: record[name] for name in self.inputs}
        scores, _ = logits_of(self.model(**inputs) if self.by_name else self.model(*inputs.values()))
        if scores.dim() not in (1, 2) or not scores.is_floating_point():
            raise ExportError(
                f"to be evaluated, a model returns logits [batch, classes], or [batch] for two classes; it returns "
                f"{scores.dim()} dimensions, {scores.dtype}"
            )
        label = record[self.label]
        if label.dim() == 2 and label.shape[1] == 1:
            label = label.squeeze(1)
        if label.dim() != 1:
            raise ExportError(f"column {self.label!r} holds {label.dim() - 1}-dimensional labels; one class is needed")
        if self.probabilities:
            scores = torch.log(scores) - torch.log1p(-scores)
        return scores, label > 0.5 if label.is_floating_point() else label


def prepare_scores(
    model: nn.Module,
    loss: LossLike | None,
    contract: DataContract,
    inputs: Sequence[str] | None = None,
    label: str | None = None,
) -> PreparedModel:
    """Exports a model to scores and label against a contract. The arguments are those of :func:`prepare`.

    The model is exported in evaluation mode: no dropout, and normalisation by stored statistics.

    Raises:
        ExportError: If the model cannot be exported, or its output is not one score or one logit per class.
    """
    label = label_column(contract, label)
    chosen = [contract.column(name).name for name in inputs] if inputs is not None else None
    names = chosen or [column.name for column in contract.columns if column.name != label]
    if not names:
        raise ExportError(f"the contract has only the label column {label!r}: the model would have no input")
    per_sample = None if loss is None else per_sample_loss(loss)
    by_name = _by_name(model, names, inputs is not None)
    own = with_fused_activations(without_caches(_copied(model)))
    module = ModelWithScores(own, per_sample, names, label, by_name).eval()
    synthetic = synthetic_columns(contract, EXAMPLE_BATCH_SIZE)
    columns = [*names, label]
    program = functionalise(_trace(module, tuple(synthetic[name] for name in columns)))
    return PreparedModel(_saved(program), columns)


def prepare(
    model: nn.Module,
    loss: LossLike | None,
    contract: DataContract,
    inputs: Sequence[str] | None = None,
    label: str | None = None,
) -> PreparedModel:
    """Joins model and loss and exports them against a contract.

    Args:
        model: Any ``nn.Module``; left as it is.
        loss: See :func:`bastionai.losses.per_sample_loss`. None when the model takes inputs and label
            and returns one loss per sample itself.
        contract: Of the datasets; example inputs are made from it, never from data.
        inputs: Columns to pass, in order. By default all but the label, by keyword where the names
            of the columns are arguments of ``model.forward``.
        label: Column to compare with. By default the one called label, labels, target, targets, y or
            class, else the last one.

    Raises:
        ExportError: If the model cannot be exported.
        LossError: If the loss has no per-sample form.
    """
    joined = _join(model, loss, contract, inputs, label)
    synthetic = synthetic_columns(contract, EXAMPLE_BATCH_SIZE)
    archive = export_bytes(joined, [synthetic[name] for name in joined.columns])
    return PreparedModel(archive, list(joined.columns))


def _join(
    model: nn.Module,
    loss: LossLike | None,
    contract: DataContract,
    inputs: Sequence[str] | None,
    label: str | None,
) -> ModelWithLoss:
    per_sample = None if loss is None else per_sample_loss(loss)
    predicts_tokens = isinstance(per_sample, CausalLanguageModel)
    if loss is not None or label is not None:
        label = target_column(contract, per_sample, label)
    chosen = [contract.column(name).name for name in inputs] if inputs is not None else None
    # A language model's tokens are input and target, where there is no column of labels beside them.
    is_input = predicts_tokens and label is not None and label not in _usual_labels(contract)
    names = chosen or [column.name for column in contract.columns if column.name != label or is_input]
    if not names:
        raise ExportError(f"the contract has only the label column {label!r}: the model would have no input")
    if loss is None and label is not None:
        names, label = [*names, label], None
    if isinstance(per_sample, CrossEntropy) and label is not None:
        per_sample = _fit_labels(per_sample, contract, label)
    return ModelWithLoss(model, per_sample, names, label, _by_name(model, names, inputs is not None))


def label_column(contract: DataContract, label: str | None = None) -> str:
    """The column a loss compares with: the one named, else by its usual names, else the last one."""
    if label is not None:
        return contract.column(label).name
    usual = _usual_labels(contract)
    return usual[0] if usual else contract.columns[-1].name


def target_column(contract: DataContract, loss: PerSampleLoss | None, label: str | None = None) -> str:
    """The column that this loss compares with: for a language model the tokens, where no labels are beside them."""
    if isinstance(loss, CausalLanguageModel):
        return _tokens_column(contract, label)
    return label_column(contract, label)


def _usual_labels(contract: DataContract) -> list[str]:
    return [column.name for column in contract.columns if column.name.lower() in _LABEL_NAMES]


def _tokens_column(contract: DataContract, label: str | None) -> str:
    """What a language model is to predict: the column named, else one of labels, else the tokens themselves."""
    if label is None and not _usual_labels(contract) and any(column.name == TOKENS for column in contract.columns):
        return TOKENS
    return label_column(contract, label)


def _fit_labels(loss: CrossEntropy, contract: DataContract, label: str) -> CrossEntropy:
    column = contract.column(label)
    if column.torch_dtype.is_floating_point:
        return loss
    low, high = column.bounds()
    may_ignore = bool(low.min() <= loss.ignore_index <= high.max())
    if low.min() < 0 and not (may_ignore and low.min() == loss.ignore_index):
        raise LossError(
            f"cross_entropy: labels of column {label!r} may be as low as {low.min():g} by contract; "
            "class indices start at 0 (an ignored label must be the loss's ignore_index)"
        )
    fitted = copy.deepcopy(loss)
    fitted.may_ignore = may_ignore or (isinstance(loss, CausalLanguageModel) and _has_padding_mask(contract))
    return fitted


def _has_padding_mask(contract: DataContract) -> bool:
    return any(column.name == PADDING_MASK for column in contract.columns)


def _by_name(model: nn.Module, names: list[str], in_order: bool) -> bool:
    """Whether the columns are passed by the names of the model's arguments, as they are where those are all there.

    Args:
        model: Whose ``forward`` is called.
        names: Columns to pass.
        in_order: They were chosen in an order. It is kept, unless one would become another argument that may be left
            out: the second of GPT-2's is a cache.

    Raises:
        ExportError: If some are arguments, and another would be passed as an argument that may be left out:
            columns that a tokenizer adds would silently be taken for something else.
    """
    _check_module(model)
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return False
    known = {parameter.name for parameter in parameters}
    optional = {p.name for p in parameters if p.default is not p.empty}
    others = [(name, p) for name, p in zip(names, parameters, strict=False) if name != p.name and p.name in optional]
    if _takes(model, names):
        return bool(others) or not in_order
    for name, parameter in others:
        if name not in known and known & set(names):
            raise ExportError(
                f"column {name!r} is no argument of {type(model).__name__}.forward, and in its order would be passed "
                f"as {parameter.name!r}; say which columns to pass: inputs=[...]"
            )
    return False


def _takes(model: nn.Module, names: list[str]) -> bool:
    """Whether the columns are keyword arguments of the model's forward."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return False
    known = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    required = {p.name for p in parameters if p.default is p.empty and p.name in known}
    return set(names) <= known and required <= set(names) and all(re.fullmatch(r"\w+", name) for name in names)
