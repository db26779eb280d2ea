"""Anything with the Arrow PyCapsule interface → batches of canonical column bytes.

Only declared columns are read. Schema metadata, dictionaries and undeclared columns are raw data
(rule G5) and never leave this machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from bastionai import units
from bastionai.contract import Column, DataContract
from bastionai.exceptions import ContractError, RowError
from bastionai.records import Batch, cast

if TYPE_CHECKING:
    import pyarrow


def open_stream(dataset: object) -> pyarrow.RecordBatchReader:
    """A reader over the object's Arrow stream.

    Raises:
        ContractError: If pyarrow is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise ContractError("reading Arrow data needs pyarrow: pip install pyarrow") from error
    return pyarrow.RecordBatchReader.from_stream(dataset)


def arrow_batches(dataset: object, contract: DataContract, rows: int) -> Iterator[Batch]:
    """Converts an Arrow stream, at most ``rows`` records at a time.

    Raises:
        ContractError: If a declared column is missing or has a type that records cannot hold.
        RowError: At the first null, ragged list or unknown class.
    """
    reader = open_stream(dataset)
    for name in contract.field_names:
        if name not in reader.schema.names:
            names = ", ".join(reader.schema.names)
            raise ContractError(f"the Arrow data has no column {name!r}; it has {names}")
    first_row = 0
    for chunk in reader:
        for start in range(0, chunk.num_rows, rows):
            part = chunk.slice(start, rows)
            columns = [_column(part.column(c.name), c, first_row) for c in contract.columns]
            if contract.privacy_unit is not None:
                identifiers = part.column(contract.privacy_unit.name)
                columns.append(units.encode(identifiers.to_pylist(), contract, first_row))
            yield Batch(part.num_rows, columns)
            first_row += part.num_rows


def _column(array: pyarrow.Array, column: Column, first_row: int) -> bytes:
    import pyarrow

    if isinstance(array, pyarrow.ExtensionArray):
        array = array.storage
    _refuse_nulls(array, column, first_row)
    if pyarrow.types.is_dictionary(array.type) or _is_text(array.type):
        values = _classes(array, column, first_row)
        return cast(values, column, (), first_row).tobytes()
    rows = len(array)
    flat = _flatten(array, column, first_row)
    _check_primitive(flat.type, column)
    values = flat.to_numpy(zero_copy_only=False)
    shape = column.shape if values.size != rows or column.shape else ()
    return cast(values.reshape((rows, *shape)), column, shape, first_row).tobytes()


def _refuse_nulls(array: pyarrow.Array, column: Column, first_row: int) -> None:
    if array.null_count:
        row = first_row + int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
        raise RowError(f"row {row}, column {column.name!r}: null; fill or drop it first", row, column.name)


def _is_text(kind: pyarrow.DataType) -> bool:
    import pyarrow

    return bool(
        pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_string_view(kind)
    )


def _classes(array: pyarrow.Array, column: Column, first_row: int) -> np.ndarray[Any, Any]:
    names = column.class_names
    if names is None:
        raise ContractError(
            f"column {column.name!r} holds text; only labels may: declare classes=[...], or tokenise it first"
        )
    index = {name: position for position, name in enumerate(names)}
    found = [index.get(str(text), -1) for text in array.to_pylist()]
    if -1 in found:
        row = first_row + found.index(-1)
        raise RowError(f"row {row}, column {column.name!r}: not one of the declared classes", row, column.name)
    return np.asarray(found).astype(column.numpy_dtype)


def _flatten(array: pyarrow.Array, column: Column, first_row: int) -> pyarrow.Array:
    """Unnests lists, each level of which must have one length: the contract's extent."""
    import pyarrow

    rows, depth = len(array), 0
    expected: tuple[int, ...] = column.shape
    while (
        pyarrow.types.is_list(array.type)
        or pyarrow.types.is_large_list(array.type)
        or pyarrow.types.is_fixed_size_list(array.type)
    ):
        lengths = array.value_lengths().to_numpy(zero_copy_only=False)
        # A flat list may hold a record of any shape (fixed-shape tensors are stored so).
        flat = int(np.prod(expected[depth:], dtype=np.int64))
        inner = array.flatten()
        nested = hasattr(inner.type, "value_type") and not pyarrow.types.is_dictionary(inner.type)
        extent = expected[depth] if nested and depth < len(expected) else flat
        wrong = np.flatnonzero(lengths != extent)
        if depth >= len(expected) or wrong.size:
            per_record = max(1, len(array) // max(1, rows))
            row = first_row + (int(wrong[0]) // per_record if wrong.size else 0)
            raise RowError(
                f"row {row}, column {column.name!r}: not {column.shape} as declared; "
                "records have one fixed shape, so pad the lists first",
                row,
                column.name,
            )
        _refuse_nulls(inner, column, first_row)
        array, depth = inner, depth + 1
    return array


def _check_primitive(kind: pyarrow.DataType, column: Column) -> None:
    import pyarrow

    numeric = pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind)
    if not numeric:
        raise ContractError(f"column {column.name!r} is {kind}; records hold numbers, bools and declared classes")
