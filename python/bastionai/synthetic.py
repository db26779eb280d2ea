"""Records made from a contract alone: example inputs for the export, and data for rehearsals.

Nothing here sees a row of anybody's data.
"""

from __future__ import annotations

import math

import torch

from bastionai.contract import Column, DataContract


def synthetic_columns(contract: DataContract, rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random records: every element uniform over its declared domain.

    Args:
        contract: The declaration.
        rows: How many records.
        seed: Of the generator; PyTorch's global one is left alone.

    Returns:
        One tensor ``[rows, *shape]`` per column, by name.
    """
    generator = torch.Generator().manual_seed(seed)
    return {column.name: _column(column, rows, generator) for column in contract.columns}


def _column(column: Column, rows: int, generator: torch.Generator) -> torch.Tensor:
    low, high = (torch.from_numpy(bound) for bound in column.bounds())
    if column.shape and max(low.numel(), high.numel()) > 1:
        low, high = (b.reshape(column.shape) if b.numel() > 1 else b for b in (low, high))
    size = (rows, *column.shape)
    unit = torch.rand(size, generator=generator, dtype=torch.float64)
    if column.torch_dtype.is_floating_point:
        values = (low + unit * (high - low)).to(column.torch_dtype)
        # Rounding to f32 may step over a bound by one unit in the last place.
        return values.clamp(_inside(low, column, math.inf), _inside(high, column, -math.inf)).contiguous()
    low, high = torch.ceil(low), torch.floor(high)
    values = torch.floor(low + unit * (high - low + 1.0))
    return torch.minimum(values, high.expand(size)).to(column.torch_dtype).contiguous()


def _inside(bound: torch.Tensor, column: Column, inward: float) -> torch.Tensor:
    """The bound in the column's dtype, moved inward where rounding moved it outward."""
    rounded = bound.to(column.torch_dtype)
    outside = rounded.double() < bound if inward > 0 else rounded.double() > bound
    return torch.where(outside, torch.nextafter(rounded, torch.full_like(rounded, inward)), rounded)


class SyntheticDataset(torch.utils.data.TensorDataset):
    """A dataset of random records under a contract, each a unit of its own.

    Args:
        contract: The declaration; identifiers are not made.
        rows: How many records.
        seed: Of the generator.
    """

    def __init__(self, contract: DataContract, rows: int, seed: int = 0) -> None:
        super().__init__(*synthetic_columns(contract, rows, seed).values())
        self.contract = contract.per_record()
