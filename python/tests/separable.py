"""Records whose label a line separates, and their contract."""

from __future__ import annotations

import torch
from torch.utils.data import TensorDataset

from bastionai import Column, DataContract

CONTRACT = DataContract(
    [Column("x", "float32", (4,), range=(-1, 1)), Column("label", "int64", classes=["no", "yes"])], declared_size=512
)


def separable(rows: int = 500, seed: int = 0) -> TensorDataset:
    """Points in a cube of four dimensions; yes above the plane through the middle."""
    x = torch.rand(rows, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return TensorDataset(x, (x[:, 0] + x[:, 1] > 0).long())
