"""What a dataset looks like, and the message that teaches how to declare its contract.

Names, dtypes and shapes come from the first record. Ranges never do: the smallest and largest value
of private rows are private, so only the owner can say what is publicly known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bastionai.contract import Column, DataContract, dtype_name
from bastionai.exceptions import ContractError
from bastionai.records import items

#: Names under which an integer column is taken for a label in the suggested snippet.
LABEL_NAMES = ("label", "labels", "target", "targets", "y", "class")


@dataclass(frozen=True)
class Detected:
    """Name, dtype and shape of a field of the first record."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def needs_declaration(self) -> bool:
        """False for types that are their own public range."""
        return self.dtype not in ("bool", "u8")


def resolve_contract(
    dataset: object,
    contract: DataContract | None,
    ranges: Mapping[str, tuple[object, object]] | None,
    classes: Mapping[str, int | Sequence[str]] | None,
) -> DataContract:
    """The contract to upload under.

    Args:
        dataset: The dataset; its attribute ``bastionai_contract`` or ``contract`` is used when no
            other declaration is given.
        contract: The owner's declaration.
        ranges: Public ranges by column name; dtypes and shapes then come from the first record.
        classes: Label classes by column name; likewise.

    Raises:
        ContractError: If a column has no declaration. The message shows how to write it.
    """
    if contract is not None:
        if ranges or classes:
            raise ContractError("give contract=, or ranges= and classes=, not both")
        return contract
    if not ranges and not classes:
        attached = getattr(dataset, "bastionai_contract", None) or getattr(dataset, "contract", None)
        if isinstance(attached, DataContract):
            return attached
    return _declare(detect_columns(dataset), dict(ranges or {}), dict(classes or {}))


def _declare(
    detected: list[Detected],
    ranges: dict[str, tuple[object, object]],
    classes: dict[str, int | Sequence[str]],
) -> DataContract:
    names = [column.name for column in detected]
    unknown = [name for name in (*ranges, *classes) if name not in names]
    if unknown:
        raise ContractError(f"no column {unknown[0]!r} in the dataset; it has {', '.join(names)}")
    if any(c.needs_declaration and c.name not in ranges and c.name not in classes for c in detected):
        raise ContractError(_lesson(detected, ranges, classes))
    return DataContract(
        [Column(c.name, c.dtype, c.shape, range=ranges.get(c.name), classes=classes.get(c.name)) for c in detected]
    )


def detect_columns(dataset: object) -> list[Detected]:
    """Names, dtypes and shapes of the first record's fields.

    Raises:
        ContractError: If there is no record, or a field is neither tensor nor number.
    """
    if hasattr(dataset, "__arrow_c_stream__"):
        return _detect_arrow(dataset)
    first = next(iter(items(dataset)), None)
    if first is None:
        raise ContractError("the dataset is empty, so its columns cannot be seen; pass contract=")
    return [_detect(name, value) for name, value in _named(first)]


def _named(item: object) -> list[tuple[str, object]]:
    if isinstance(item, Mapping):
        return [(str(name), value) for name, value in item.items()]
    if not isinstance(item, (tuple, list)):
        return [("input", item)]
    if hasattr(item, "_fields"):
        return list(zip(item._fields, item, strict=True))
    inputs = ["input"] if len(item) <= 2 else [f"input_{index}" for index in range(len(item) - 1)]
    return list(zip([*inputs, "label"], item, strict=False))


def _detect(name: str, value: object) -> Detected:
    if isinstance(value, str):
        return Detected(name, "i64", ())
    if isinstance(value, torch.Tensor):
        return Detected(name, dtype_name(value.dtype), tuple(value.shape))
    if isinstance(value, (np.ndarray, np.generic)):
        return Detected(name, dtype_name(value.dtype.name), tuple(value.shape))
    array = np.asarray(value)
    kinds = {"b": "bool", "i": "i64", "f": "f32"}
    if array.dtype.kind not in kinds:
        raise ContractError(
            f"field {name!r} is a {type(value).__name__}: records hold tensors and numbers; convert it in the dataset"
        )
    return Detected(name, kinds[array.dtype.kind], array.shape)


def _detect_arrow(dataset: object) -> list[Detected]:
    import pyarrow

    from bastionai.arrow import open_stream

    detected = []
    for member in open_stream(dataset).schema:
        kind, shape = member.type, []
        if isinstance(kind, pyarrow.FixedShapeTensorType):
            shape, kind = list(kind.shape), kind.value_type
        while pyarrow.types.is_fixed_size_list(kind):
            shape, kind = [*shape, kind.list_size], kind.value_type
        if pyarrow.types.is_dictionary(kind) or pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
            detected.append(Detected(member.name, "i64", ()))
            continue
        try:
            detected.append(Detected(member.name, dtype_name(kind.to_pandas_dtype()), tuple(shape)))
        except (ContractError, NotImplementedError) as error:
            raise ContractError(
                f"column {member.name!r} is {member.type}, whose records have no fixed numeric form; "
                "pass contract= with the columns to use, or convert it first"
            ) from error
    return detected


def _lesson(
    detected: list[Detected],
    ranges: Mapping[str, object],
    classes: Mapping[str, object],
) -> str:
    found = "\n".join(f"    {c.name}: {_torch_name(c)} of shape {c.shape}" for c in detected)
    lines = "\n".join(f"        {_snippet(c, ranges, classes)}," for c in detected)
    return f"""this dataset has no data contract. Found in its first record:
{found}
A contract states in public what values may occur. It is never computed from your rows, because
their smallest and largest value would then be published. Declare what is known without looking, e.g.

    contract = bastionai.DataContract(columns=[
{lines}
    ])
    client.RemoteDataset(dataset, contract=contract, ...)

Shorter: ranges={{"name": (lowest, highest)}} and classes={{"name": [...]}} instead of contract=;
or set the attribute `bastionai_contract` on the dataset. Images: range=(0, 1) after ToTensor();
token ids: range=(0, vocabulary size - 1); labels: classes=["no", "yes"]."""


def _snippet(column: Detected, ranges: Mapping[str, object], classes: Mapping[str, object]) -> str:
    head = f'bastionai.Column("{column.name}", "{_torch_name(column)}", {column.shape}'
    if column.name in ranges:
        return f"{head}, range={ranges[column.name]!r})"
    if column.name in classes:
        return f"{head}, classes={classes[column.name]!r})"
    if not column.needs_declaration:
        return f"{head})"
    if column.dtype in ("i32", "i64") and not column.shape and column.name in LABEL_NAMES:
        return f"{head}, classes=[...])"
    return f"{head}, range=(..., ...))"


def _torch_name(column: Detected) -> str:
    return {"u8": "uint8", "i32": "int32", "i64": "int64", "f32": "float32", "f64": "float64"}.get(column.dtype, "bool")
