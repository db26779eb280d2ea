"""The data contract: what one record looks like, declared in public before any row is read.

A contract is *declared*, never computed: a range fitted to private rows would publish the rows'
extremes. Only element types whose range is their own (``bool`` and ``uint8``) need no declaration.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from bastionai import _internal
from bastionai.exceptions import ContractError

_NAMES: dict[str, tuple[torch.dtype, np.dtype[Any]]] = {
    "u8": (torch.uint8, np.dtype("uint8")),
    "i32": (torch.int32, np.dtype("int32")),
    "i64": (torch.int64, np.dtype("int64")),
    "f32": (torch.float32, np.dtype("float32")),
    "f64": (torch.float64, np.dtype("float64")),
    "bool": (torch.bool, np.dtype("bool")),
}


def dtype_name(dtype: object) -> str:
    """The contract's name of an element type.

    Args:
        dtype: A ``torch.dtype``, a NumPy dtype or type, or a name such as ``"float32"`` or ``"f32"``.

    Returns:
        One of ``u8``, ``i32``, ``i64``, ``f32``, ``f64``, ``bool``.

    Raises:
        ContractError: If records cannot hold that type.
    """
    for name, (torch_dtype, numpy_dtype) in _NAMES.items():
        # Strings are compared here only: to NumPy, "u8" is eight bytes wide.
        if isinstance(dtype, str):
            if dtype in (name, str(numpy_dtype)):
                return name
        elif dtype is torch_dtype or _is_numpy(dtype, numpy_dtype):
            return name
    supported = ", ".join(str(t).removeprefix("torch.") for t, _ in _NAMES.values())
    raise ContractError(f"dtype {dtype!r} cannot be stored; use one of {supported}")


def _is_numpy(dtype: object, expected: np.dtype[Any]) -> bool:
    if isinstance(dtype, torch.dtype):
        return False
    try:
        return bool(np.dtype(cast(Any, dtype)) == expected)
    except TypeError:
        return False


@dataclass(frozen=True)
class Column:
    """One column: a tensor of fixed shape per record, and the public range of its elements.

    Attributes:
        name: Unique in the contract; also the key of dict items.
        dtype: A torch or NumPy dtype, or its name.
        shape: Extents of one record, without the batch axis; ``()`` for a scalar.
        range: ``(lowest, highest)`` value of every element; either may be a sequence with one bound
            per element (row-major). A *public* statement about the domain, not about your rows.
        classes: For labels: the class names, or how many classes there are.
    """

    name: str
    dtype: object
    shape: tuple[int, ...] = ()
    range: tuple[object, object] | None = None
    classes: int | Sequence[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        object.__setattr__(self, "shape", tuple(int(extent) for extent in self.shape))
        if self.dtype == "u8" and self.range is None and self.classes is None:
            object.__setattr__(self, "range", (0.0, 255.0))
        if isinstance(self.classes, int):
            object.__setattr__(self, "classes", tuple(str(index) for index in range(self.classes)))
        elif self.classes is not None:
            object.__setattr__(self, "classes", tuple(str(name) for name in self.classes))
        if self.range is not None:
            object.__setattr__(self, "range", tuple(_public_bound(self.name, bound) for bound in self.range))
        if self.range is not None and self.classes is not None:
            raise ContractError(f"column {self.name!r}: give range= or classes=, not both")
        if self.classes is not None and self.dtype not in ("u8", "i32", "i64"):
            raise ContractError(f"column {self.name!r}: classes= is for integer columns, this one is {self.dtype}")
        if self.range is None and self.classes is None and self.dtype != "bool":
            raise ContractError(
                f"column {self.name!r} ({self.torch_dtype}) has no public range; declare "
                f"range=(lowest, highest) from what is publicly known, or classes=[...] for labels"
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        """The element type, for PyTorch."""
        return _NAMES[str(self.dtype)][0]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The element type as it is stored: little-endian."""
        dtype: np.dtype[Any] = _NAMES[str(self.dtype)][1].newbyteorder("<")
        return dtype

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, or None for a column that is no label."""
        return None if self.classes is None else list(cast("tuple[str, ...]", self.classes))

    @property
    def class_count(self) -> int | None:
        """How many classes a label of this column can name.

        The declared classes, or what lies below the end of an integer range (token ids), or the width of a column of
        class probabilities; None for a single float.
        """
        if self.torch_dtype.is_floating_point:
            return self.shape[0] if self.shape else None
        return int(self.bounds()[1].max()) + 1

    def bounds(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Lowest and highest value: one bound, or one per element (float64, flat)."""
        if self.class_names is not None:
            return np.zeros(1), np.full(1, float(len(self.class_names) - 1))
        if self.dtype == "bool":
            return np.zeros(1), np.ones(1)
        low, high = (np.asarray(bound, dtype=np.float64).reshape(-1) for bound in self.range or (0.0, 0.0))
        return low, high

    def to_dict(self) -> dict[str, Any]:
        """The column in the contract's canonical form."""
        names = self.class_names
        domain: Any
        if names is not None:
            domain = {"classes": {"names": names}}
        elif self.dtype == "bool":
            domain = "bool"
        else:
            low, high = self.bounds()
            domain = {"range": {"minimum": low.tolist(), "maximum": high.tolist()}}
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape), "domain": domain}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Column:
        """The inverse of :meth:`to_dict`."""
        domain = document["domain"]
        value_range = classes = None
        if isinstance(domain, dict) and "range" in domain:
            value_range = (_unwrap(domain["range"]["minimum"]), _unwrap(domain["range"]["maximum"]))
        elif isinstance(domain, dict):
            classes = tuple(domain["classes"]["names"])
        return cls(document["name"], document["dtype"], tuple(document["shape"]), value_range, classes)


def _unwrap(bounds: list[float]) -> object:
    return bounds[0] if len(bounds) == 1 else tuple(bounds)


def _public_bound(name: str, bound: object) -> float | tuple[float, ...]:
    values = np.asarray(bound, dtype=np.float64).reshape(-1)
    # JSON has no infinity, and an unbounded column has no public range to scale by.
    if values.size == 0 or not np.isfinite(values).all():
        raise ContractError(f"column {name!r}: the bounds of a range must be finite numbers")
    return float(values[0]) if values.size == 1 else tuple(map(float, values))


@dataclass(frozen=True)
class UnitColumn:
    """A column of identifiers (patients, customers) whose records are protected together: the privacy unit.

    The guarantee is then about all records of one identifier at once, whether they are one or ``max_records``. The
    column is no input of a model: its values are checked here, sealed, and never leave the server's memory; a trainer
    gets the grouping alone. Datasets of a run whose unit columns have the same name and dtype share their units: a
    patient of two hospitals is protected as one.

    Identifiers are compared byte by byte, after white space at the ends of a text is cut off.

    Attributes:
        name: Key of dict items, or name of the Arrow or CSV column; for tuples the last field. No column of the
            contract has it.
        max_records: Most records of one identifier in this dataset, at most 1024. An upload with more is refused.
        dtype: ``"string"`` (1 to 64 bytes of UTF-8) or ``"int64"``.
        declared_units: Public number of units, a rung of the size ladder: rates are computed from it. None until
            upload: then the next rung above their number.
    """

    name: str
    max_records: int
    dtype: str = "string"
    declared_units: int | None = None

    def __post_init__(self) -> None:
        names = {"string": "string", "str": "string", "i64": "int64", "int64": "int64"}
        if self.dtype not in names:
            raise ContractError(f"unit column {self.name!r}: dtype {self.dtype!r} is neither 'string' nor 'int64'")
        object.__setattr__(self, "dtype", names[self.dtype])

    def to_dict(self) -> dict[str, Any]:
        """The unit in the contract's canonical form.

        Raises:
            ContractError: If the number of units is not declared yet.
        """
        if self.declared_units is None:
            raise ContractError(f"unit column {self.name!r} has no declared_units yet; use with_declared_units(...)")
        dtype = "i64" if self.dtype == "int64" else self.dtype
        column = {
            "name": self.name,
            "dtype": dtype,
            "max_records": self.max_records,
            "declared_units": self.declared_units,
        }
        return {"column": column}


@dataclass(frozen=True)
class DataContract:
    """Columns of a dataset's records, its privacy unit, and its public size class.

    Attributes:
        columns: In the order of a record's fields.
        declared_size: A rung of the public size ladder, at least the number of records. Everybody
            sees it, and rates are computed from it, so that the true number stays private.
            None until upload: then the next rung above ``len(dataset)``.
        privacy_unit: What is protected together: a :class:`UnitColumn`, or None for single records.
    """

    columns: Sequence[Column]
    declared_size: int | None = None
    privacy_unit: UnitColumn | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        if not self.columns:
            raise ContractError("a contract needs at least one column")
        if self.privacy_unit is not None and not isinstance(self.privacy_unit, UnitColumn):
            raise ContractError(
                f"privacy_unit={self.privacy_unit!r}: expected bastionai.UnitColumn(name, max_records=...), "
                "or None for single records"
            )
        if self.is_complete:
            self.to_json()

    @property
    def is_complete(self) -> bool:
        """Whether all sizes are declared."""
        return self.declared_size is not None and (
            self.privacy_unit is None or self.privacy_unit.declared_units is not None
        )

    @property
    def field_names(self) -> list[str]:
        """Names of a record's fields: the columns, and the identifier of its unit last, if there is one."""
        unit = [] if self.privacy_unit is None else [self.privacy_unit.name]
        return [*(column.name for column in self.columns), *unit]

    @property
    def declared_units(self) -> int | None:
        """Declared number of units: that of records, where a record is the unit."""
        return self.declared_size if self.privacy_unit is None else self.privacy_unit.declared_units

    def column(self, name: str) -> Column:
        """The column of that name.

        Raises:
            ContractError: If there is none.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise ContractError(f"no column {name!r}; the contract has {', '.join(c.name for c in self.columns)}")

    def with_declared_size(self, declared_size: int | None) -> DataContract:
        """The same columns under another size class; None: one still to be chosen."""
        return replace(self, declared_size=declared_size)

    def with_declared_units(self, declared_units: int | None) -> DataContract:
        """The same with another number of units; None: one still to be chosen.

        Raises:
            ContractError: If a record is the unit.
        """
        if self.privacy_unit is None:
            raise ContractError("the privacy unit of this contract is the record: declared_size counts it")
        return replace(self, privacy_unit=replace(self.privacy_unit, declared_units=declared_units))

    def per_record(self) -> DataContract:
        """The same columns with single records as units."""
        return replace(self, privacy_unit=None)

    def to_json(self) -> str:
        """The canonical JSON that the server stores and the run digest covers.

        Raises:
            ContractError: If the contract is incomplete or contradicts itself.
        """
        if self.declared_size is None:
            raise ContractError("the contract has no declared_size yet; use with_declared_size(...)")
        document = {
            "version": 1,
            "columns": [column.to_dict() for column in self.columns],
            "privacy_unit": "record" if self.privacy_unit is None else self.privacy_unit.to_dict(),
            "declared_size": self.declared_size,
        }
        return _internal.canonical_contract(json.dumps(document))

    @classmethod
    def from_json(cls, text: str) -> DataContract:
        """Reads a contract from its JSON form.

        Raises:
            ContractError: If it is not one.
        """
        document = json.loads(_internal.canonical_contract(text))
        columns = [Column.from_dict(column) for column in document["columns"]]
        unit = document["privacy_unit"]
        unit_column = None if unit == "record" else UnitColumn(**unit["column"])
        return cls(columns, document["declared_size"], unit_column)

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hex."""
        return _internal.contract_digest(self.to_json())

    def __repr__(self) -> str:
        lines = [f"  {describe(column)}" for column in self.columns]
        if self.privacy_unit is not None:
            lines.append(f"  protected: {describe_unit(self.privacy_unit)}")
        return "\n".join([f"DataContract(declared_size={self.declared_size})", *lines])

    def _repr_html_(self) -> str:
        from bastionai.display import html_table

        rows = [(c.name, _type(c), _domain(c)) for c in self.columns]
        if self.privacy_unit is not None:
            rows.append((self.privacy_unit.name, "unit", describe_unit(self.privacy_unit)))
        return html_table(f"Data contract · size class {self.declared_size}", ("column", "type", "public domain"), rows)


def describe(column: Column) -> str:
    """A column in one line, for people."""
    return f"{column.name}: {_type(column)} {_domain(column)}"


def describe_unit(unit: UnitColumn) -> str:
    """A privacy unit in one line, for people."""
    return f"all records of a {unit.name} together, at most {unit.max_records} each ({unit.declared_units} declared)"


def _type(column: Column) -> str:
    dtype = str(column.torch_dtype).removeprefix("torch.")
    return f"{dtype}[{', '.join(map(str, column.shape))}]" if column.shape else dtype


def _domain(column: Column) -> str:
    names = column.class_names
    if names is not None:
        shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
        return f"{len(names)} classes ({shown})"
    if column.dtype == "bool":
        return "true or false"
    low, high = column.bounds()
    if low.size == 1 and high.size == 1:
        return f"in [{low[0]:g}, {high[0]:g}]"
    return f"ranges per element, within [{low.min():g}, {high.max():g}]"


def default_declared_size(rows: int) -> int:
    """The smallest rung of the public size ladder that holds ``rows`` records."""
    return _internal.declared_size_for(rows)
