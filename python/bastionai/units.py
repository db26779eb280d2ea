"""Identifiers of privacy units → the bytes that a batch carries beside its columns.

They are as private as the records: no message shows one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from bastionai import _internal
from bastionai.contract import DataContract, UnitColumn
from bastionai.exceptions import ContractError, RowError


def encode(values: Sequence[object], contract: DataContract, first_row: int) -> bytes:
    """Identifiers of consecutive records, encoded.

    Raises:
        RowError: At the first value that is no identifier of the declared dtype.
    """
    unit = unit_of(contract)
    if unit.dtype == "int64":
        return np.array([_integer(value, unit, first_row + row) for row, value in enumerate(values)], "<i8").tobytes()
    texts = [_text(value, unit, first_row + row) for row, value in enumerate(values)]
    return _internal.encode_identifiers(contract.to_json(), first_row, texts)


def unit_of(contract: DataContract) -> UnitColumn:
    """The contract's column of units.

    Raises:
        ContractError: If a record is the unit.
    """
    if contract.privacy_unit is None:
        raise ContractError("the contract has no column of units")
    return contract.privacy_unit


def count(batches: Iterable[Any], contract: DataContract) -> int:
    """How many units the batches have.

    Raises:
        RowError: At the first record too many of a unit.
    """
    counted, first_row = _internal.UnitCount(contract.to_json()), 0
    for batch in batches:
        counted.add(first_row, batch.columns[-1])
        first_row += batch.rows
    return counted.units


def _integer(value: object, unit: UnitColumn, row: int) -> int:
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise _refused(value, unit, row, "declare dtype='string' for texts")
    if not -(2**63) <= int(value) < 2**63:
        raise _refused(value, unit, row, "it does not fit int64")
    return int(value)


def _text(value: object, unit: UnitColumn, row: int) -> str:
    if not isinstance(value, str):
        raise _refused(value, unit, row, "declare dtype='int64' for integers")
    return value


def _refused(value: object, unit: UnitColumn, row: int, remedy: str) -> RowError:
    what = f"row {row}, column {unit.name!r}: {type(value).__name__} is no identifier of dtype {unit.dtype}; {remedy}"
    return RowError(what, row, unit.name)
