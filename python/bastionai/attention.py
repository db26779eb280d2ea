"""``nn.MultiheadAttention`` in a form whose samples stay apart on every line.

PyTorch computes attention with the sequence first and, before the last projection, joins sequence and batch
into one axis: rows of different samples then lie beside each other and no type tells them apart (rule T6). While a
module is exported, attention is therefore computed with the batch first throughout, with the same numbers. The
fused inference paths, which would hide attention in one operator, are switched off for the same time.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

_original = F.multi_head_attention_forward
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def exportable_attention() -> Iterator[None]:
    """While this is entered, attention modules of PyTorch compute batch-first and unfused."""
    with _one_at_a_time:
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with (
                mock.patch.object(F, "multi_head_attention_forward", batch_first_attention),
                # nn.TransformerEncoder compares a mask's values with the causal one, which no export can follow.
                mock.patch.object(torch.nn.modules.transformer, "_detect_is_causal_mask", _said_to_be_causal),
            ):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)


def _said_to_be_causal(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    return is_causal is True


def batch_first_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``F.multi_head_attention_forward``, batch-first inside.

    Args: As PyTorch's. ``query``, ``key`` and ``value`` are ``[length, batch, width]``, as the module hands them over.

    Returns:
        The result ``[length, batch, width]``, and the attention weights if they are needed.
    """
    if query.dim() != 3 or static_k is not None or static_v is not None:
        return _original(**locals())
    if is_causal and attn_mask is None:
        raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
    if query.shape[-1] != embed_dim_to_check:
        raise AssertionError(f"was expecting embedding dimension of {embed_dim_to_check}, but got {query.shape[-1]}")
    batch, length = query.shape[1], query.shape[0]
    width = embed_dim_to_check // num_heads
    projected = (
        _separate(query, key, value, q_proj_weight, k_proj_weight, v_proj_weight, in_proj_bias)
        if use_separate_proj_weight
        else _packed(query, key, value, in_proj_weight, in_proj_bias)
    )
    q, k, v = projected
    added = 0
    if bias_k is not None and bias_v is not None:
        k = torch.cat([k, bias_k.expand(batch, 1, embed_dim_to_check)], dim=1)
        v = torch.cat([v, bias_v.expand(batch, 1, embed_dim_to_check)], dim=1)
        added += 1
    if add_zero_attn:
        zeros = torch.zeros(batch, 1, embed_dim_to_check, dtype=k.dtype, device=k.device)
        k, v = torch.cat([k, zeros], dim=1), torch.cat([v, zeros], dim=1)
        added += 1
    q, k, v = (x.view(batch, x.shape[1], num_heads, width).transpose(1, 2) for x in (q, k, v))
    causal = is_causal and key_padding_mask is None and not need_weights
    mask = None if causal else _mask(attn_mask, key_padding_mask, query.dtype, batch, num_heads, added)
    dropout_p = dropout_p if training else 0.0
    weights = None
    if need_weights:
        scores = (q * math.sqrt(1.0 / width)) @ k.transpose(-2, -1)
        weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        weights = F.dropout(weights, p=dropout_p) if dropout_p > 0 else weights
        attended = weights @ v
    else:
        attended = F.scaled_dot_product_attention(q, k, v, mask, dropout_p, causal)
    joined = attended.transpose(1, 2).reshape(batch, length, embed_dim_to_check)
    out = F.linear(joined, out_proj_weight, out_proj_bias).transpose(0, 1)
    if weights is not None and average_attn_weights:
        weights = weights.mean(dim=1)
    return out, weights


def _packed(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, ...]:
    """Projections by one weight ``[3·width, width]``: in one product where the inputs are the same."""
    assert weight is not None
    width = query.shape[-1]
    if query is key and key is value:
        return torch.split(F.linear(query.transpose(0, 1), weight, bias), width, -1)
    if key is value:
        weights = torch.split(weight, [width, 2 * width])
        biases = (None, None) if bias is None else torch.split(bias, [width, 2 * width])
        k, v = torch.split(F.linear(key.transpose(0, 1), weights[1], biases[1]), width, -1)
        return F.linear(query.transpose(0, 1), weights[0], biases[0]), k, v
    q_weight, k_weight, v_weight = torch.split(weight, width)
    return _separate(query, key, value, q_weight, k_weight, v_weight, bias)


def _separate(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    v_weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, ...]:
    assert q_weight is not None
    assert k_weight is not None
    assert v_weight is not None
    biases = (None, None, None) if bias is None else torch.split(bias, bias.shape[0] // 3)
    inputs, weights = (query, key, value), (q_weight, k_weight, v_weight)
    return tuple(F.linear(x.transpose(0, 1), w, b) for x, w, b in zip(inputs, weights, biases, strict=True))


def _mask(
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    dtype: torch.dtype,
    batch: int,
    heads: int,
    added: int,
) -> Tensor | None:
    """Both masks as one that is added to ``[batch, heads, length, key length]``."""
    total = None
    for given, shape in ((attn_mask, None), (key_padding_mask, (batch, 1, 1))):
        if given is None:
            continue
        mask = given if given.is_floating_point() else torch.zeros(1, dtype=dtype).masked_fill(given, -math.inf)
        if added:
            mask = F.pad(mask, (0, added))
        if shape is not None:
            mask = mask.view(*shape, mask.shape[-1])
        elif mask.dim() == 3:
            mask = mask.view(batch, heads, *mask.shape[1:])
        total = mask if total is None else total + mask
    return total
