"""Datasets → batches of canonical column bytes: little-endian, row-major, one buffer per column.

Every record is checked against the contract on this machine, before anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bastionai import _internal, units
from bastionai.contract import Column, DataContract
from bastionai.exceptions import ContractError, InvalidRequest, RowError

#: Upper bound of one message to the server; far below its limit and large enough to stream well.
_BATCH_BYTES = 1 << 20
_MAX_BATCH_ROWS = 4096


@dataclass(frozen=True)
class Batch:
    """Consecutive records, column by column.

    Attributes:
        rows: How many.
        columns: One buffer per contract column: ``rows × elements``; then the units' identifiers, if the contract has a
            column of them.
    """

    rows: int
    columns: list[bytes]


def record_batches(dataset: object, contract: DataContract) -> Iterator[Batch]:
    """Converts and checks a dataset, batch by batch.

    Args:
        dataset: A map-style or iterable PyTorch dataset of tensors, tuples or dicts, or any object
            with the Arrow PyCapsule interface (``__arrow_c_stream__``).
        contract: What every record must look like.

    Yields:
        Batches in the dataset's order.

    Raises:
        RowError: At the first record outside the contract, with its index.
        ContractError: If the dataset as a whole does not have the contract's columns.
    """
    first_row = 0
    counted = None if contract.privacy_unit is None else _internal.UnitCount(contract.to_json())
    for batch in _raw_batches(dataset, contract):
        _internal.check_batch(contract.to_json(), first_row, batch.rows, batch.columns)
        if counted is not None:
            counted.add(first_row, batch.columns[-1])
        first_row += batch.rows
        yield batch


def check_records(dataset: object, contract: DataContract) -> None:
    """Checks every record here, without sending any; a dataset that can be read only once is left alone.

    Raises:
        RowError: At the first record outside the contract.
    """
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        for _ in record_batches(dataset, contract):
            pass


def split_off(dataset: object, test_dataset: object | None, fraction: float | None) -> tuple[object, object]:
    """The records to train on, and those held out.

    Args:
        dataset: All records, or those to train on if ``test_dataset`` is given.
        test_dataset: The held-out records.
        fraction: Share of the records to hold out, drawn at random.

    Raises:
        InvalidRequest: If both or no sensible fraction is given.
        ContractError: If the dataset has no random access.
    """
    if test_dataset is not None:
        if fraction is not None:
            raise InvalidRequest("give test_dataset= or test_fraction=, not both")
        return dataset, test_dataset
    if fraction is None or not 0.0 < fraction < 1.0:
        raise InvalidRequest(f"test_fraction={fraction!r}: expected a share between 0 and 1")
    if hasattr(dataset, "__arrow_c_stream__") or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise ContractError("test_fraction= needs a map-style PyTorch dataset; split the data yourself: test_dataset=")
    count = len(dataset)
    if count < 2:
        raise InvalidRequest("a dataset of fewer than two records cannot be split")
    held_out = min(max(1, round(fraction * count)), count - 1)
    order = torch.randperm(count)
    return _part(dataset, order[held_out:]), _part(dataset, order[:held_out])


def _part(dataset: Any, indices: torch.Tensor) -> object:
    if type(dataset) is torch.utils.data.TensorDataset:
        return torch.utils.data.TensorDataset(*(tensor[indices] for tensor in dataset.tensors))
    return torch.utils.data.Subset(dataset, indices.tolist())


def _raw_batches(dataset: object, contract: DataContract) -> Iterator[Batch]:
    rows = rows_per_batch(contract)
    if hasattr(dataset, "__arrow_c_stream__"):
        from bastionai.arrow import arrow_batches

        yield from arrow_batches(dataset, contract, rows)
    elif isinstance(dataset, torch.utils.data.TensorDataset):
        yield from _tensor_batches(dataset, contract, rows)
    else:
        yield from _item_batches(items(dataset), contract, rows)


def rows_per_batch(contract: DataContract) -> int:
    """How many records of this contract make a message of about 1 MiB."""
    record_bytes = sum(_elements(column) * column.numpy_dtype.itemsize for column in contract.columns)
    return max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // max(1, record_bytes)))


def items(dataset: object) -> Iterator[object]:
    """The records of a map-style or iterable dataset, in order.

    Raises:
        ContractError: If the object is neither.
    """
    if isinstance(dataset, torch.utils.data.DataLoader):
        raise ContractError("a DataLoader makes batches; give its dataset: loader.dataset")
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        for index in range(len(dataset)):
            yield dataset[index]
    elif isinstance(dataset, Iterable):
        yield from dataset
    else:
        raise ContractError(
            f"{type(dataset).__name__} is no dataset: expected a PyTorch Dataset (map-style or iterable) "
            "of tensors, tuples or dicts, or an object with __arrow_c_stream__ (pyarrow, pandas, polars, …)"
        )


def fields(item: object, columns: Sequence[str], row: int) -> list[object]:
    """The fields of one record in the contract's order.

    Dict items are matched by name (undeclared keys are never sent), tuples by position.

    Raises:
        RowError: If a field is missing or the number of fields differs.
    """
    if isinstance(item, Mapping):
        missing = [name for name in columns if name not in item]
        if missing:
            raise RowError(f"row {row}: no field {missing[0]!r}; it has {', '.join(map(str, item))}", row, missing[0])
        return [item[name] for name in columns]
    parts = list(item) if isinstance(item, (tuple, list)) else [item]
    if len(parts) != len(columns):
        declared = ", ".join(columns)
        raise RowError(f"row {row}: {len(parts)} fields, but the contract declares {len(columns)} ({declared})", row)
    return parts


def _item_batches(records: Iterator[object], contract: DataContract, rows: int) -> Iterator[Batch]:
    names = contract.field_names
    pending: list[list[np.ndarray[Any, Any]]] = [[] for _ in contract.columns]
    identifiers: list[object] = []
    first_row = 0
    for row, item in enumerate(records):
        found = fields(item, names, row)
        identifiers.extend(found[len(pending) :])
        for column, values, value in zip(contract.columns, pending, found[: len(pending)], strict=True):
            values.append(encode(value, column, row))
        if len(pending[0]) == rows:
            yield _stack(pending, identifiers, contract, first_row)
            pending, identifiers, first_row = [[] for _ in contract.columns], [], row + 1
    if pending[0]:
        yield _stack(pending, identifiers, contract, first_row)


def _stack(
    pending: list[list[np.ndarray[Any, Any]]], identifiers: list[object], contract: DataContract, first_row: int
) -> Batch:
    columns = [
        np.stack(values).astype(column.numpy_dtype).tobytes()
        for column, values in zip(contract.columns, pending, strict=True)
    ]
    if contract.privacy_unit is not None:
        columns.append(units.encode(identifiers, contract, first_row))
    return Batch(len(pending[0]), columns)


def _tensor_batches(dataset: torch.utils.data.TensorDataset, contract: DataContract, rows: int) -> Iterator[Batch]:
    # Same result as record by record, without a Python call per record.
    fields(dataset.tensors, contract.field_names, 0)
    count = len(contract.columns)
    for start in range(0, len(dataset), rows):
        parts = [tensor[start : start + rows].detach().cpu().numpy() for tensor in dataset.tensors]
        columns = [
            cast(part, column, part.shape[1:], start).tobytes()
            for part, column in zip(parts[:count], contract.columns, strict=True)
        ]
        columns.extend(units.encode(list(part), contract, start) for part in parts[count:])
        yield Batch(len(parts[0]), columns)


def encode(value: object, column: Column, row: int) -> np.ndarray[Any, Any]:
    """One field as an array of the column's dtype and shape.

    Raises:
        RowError: If it has another shape, or a dtype that would lose values.
    """
    names = column.class_names
    if isinstance(value, str) and names is not None:
        if value not in names:
            raise RowError(f"row {row}, column {column.name!r}: not one of the declared classes", row, column.name)
        value = names.index(value)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    elif isinstance(value, (bool, int, float)) or _is_numbers(value):
        return _from_python(value, column, row)
    if not isinstance(value, (np.ndarray, np.generic)):
        kind = type(value).__name__
        raise RowError(f"row {row}, column {column.name!r}: {kind} is neither tensor nor number", row, column.name)
    array = np.asarray(value)
    return cast(array, column, array.shape, row)


def _is_numbers(value: object) -> bool:
    if not isinstance(value, (list, tuple)):
        return False
    return all(isinstance(v, (bool, int, float)) or _is_numbers(v) for v in value)


def _from_python(value: object, column: Column, row: int) -> np.ndarray[Any, Any]:
    # Python numbers carry no dtype: they take the column's, if they fit in it.
    where = f"row {row}, column {column.name!r}"
    try:
        array = np.asarray(value)
        if column.numpy_dtype.kind in "iub" and array.dtype.kind == "f":
            raise RowError(f"{where}: a float for a column declared {column.torch_dtype}", row, column.name)
        typed = np.asarray(value, dtype=column.numpy_dtype)
    except (ValueError, OverflowError) as error:
        raise RowError(
            f"{where}: does not fit {column.torch_dtype} of shape {column.shape}", row, column.name
        ) from error
    if column.dtype == "bool" and array.dtype.kind != "b" and not np.isin(array, (0, 1)).all():
        raise RowError(f"{where}: a bool column takes True, False, 0 or 1", row, column.name)
    return cast(typed, column, typed.shape, row)


def cast(array: np.ndarray[Any, Any], column: Column, shape: tuple[int, ...], row: int) -> np.ndarray[Any, Any]:
    """Checks shape and dtype of one record or a block of records; widens, never narrows.

    Args:
        array: The values.
        column: What they must be.
        shape: Extents of one record within ``array``.
        row: Index of its first record, for the message.

    Raises:
        RowError: If the shape differs or the dtype would lose values.
    """
    if tuple(shape) != column.shape:
        raise RowError(
            f"row {row}, column {column.name!r}: shape {tuple(shape)}, but the contract declares {column.shape}; "
            "records have one fixed shape, so pad or reshape in the dataset",
            row,
            column.name,
        )
    if not np.can_cast(array.dtype, column.numpy_dtype, "safe"):
        raise RowError(
            f"row {row}, column {column.name!r}: {array.dtype} does not fit in the declared {column.torch_dtype} "
            "without loss; convert it in the dataset or declare another dtype",
            row,
            column.name,
        )
    return np.ascontiguousarray(array, dtype=column.numpy_dtype)


def _elements(column: Column) -> int:
    return int(np.prod(column.shape, dtype=np.int64)) if column.shape else 1
