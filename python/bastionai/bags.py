"""``F.embedding_bag`` on 2-D ids, written so that every bag is visibly one sample's.

PyTorch flattens ``[batch, tokens]`` ids and cuts them again by offsets that count up to batch × tokens:
whose token is whose then hangs on numbers made from the batch size, which no rule can prove (T1, T7).
The same result as an embedding and a reduction over the tokens can be proven, and costs the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bastionai.interception import Interception

_SIGNATURE = inspect.signature(F.embedding_bag)
_PLAIN = {"offsets": None, "max_norm": None, "scale_grad_by_freq": False, "sparse": False, "include_last_offset": False}


class BagsWithinSample(Interception):
    """While active, ``F.embedding_bag`` on 2-D ids is an embedding and a sum, mean or maximum over its tokens.

    Bags that are cut by offsets, and options whose gradient depends on the batch, are left as they are:
    the server refuses them, with the line.
    """

    def called(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Intercepts one function only."""
        if func is F.embedding_bag:
            given = _SIGNATURE.bind(*args, **kwargs)
            given.apply_defaults()
            bag = given.arguments
            if bag["input"].dim() == 2 and all(bag[name] == value for name, value in _PLAIN.items()):
                return _bag(bag["input"], bag["weight"], bag["mode"], bag["per_sample_weights"], bag["padding_idx"])
        return func(*args, **kwargs)


def _bag(ids: Tensor, table: Tensor, mode: str, weights: Tensor | None, padding_idx: int | None) -> Tensor:
    rows = F.embedding(ids, table, padding_idx)
    if padding_idx is None:
        return _reduced(rows, mode, weights)
    row = padding_idx if padding_idx >= 0 else padding_idx + table.shape[0]
    kept = (ids != row).unsqueeze(-1)
    if mode == "max":
        # A bag of padding only is 0, as PyTorch has it.
        some = kept.to(rows.dtype).amax(dim=1) > 0
        largest = torch.where(kept, rows, torch.finfo(rows.dtype).min).amax(dim=1)
        return torch.where(some, largest, 0.0)
    total = _reduced(torch.where(kept, rows, 0.0), "sum", weights)
    return total if mode == "sum" else total / kept.to(rows.dtype).sum(dim=1).clamp(min=1.0)


def _reduced(rows: Tensor, mode: str, weights: Tensor | None) -> Tensor:
    if mode == "max":
        return rows.amax(dim=1)
    if mode == "mean":
        return rows.mean(dim=1)
    return (rows if weights is None else rows * weights.unsqueeze(-1)).sum(dim=1)
