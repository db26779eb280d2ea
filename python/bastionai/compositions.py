"""Operators without a rule of their own, written with operators that have one while a module is exported.

The numbers are PyTorch's; what the checker has to prove is smaller. What is not rewritten here is exported as it is,
and the server proves or refuses it, with the line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bastionai.einsum import composed_einsum
from bastionai.interception import Interception


class ComposedOperators(Interception):
    """While active, the functions below are computed from simpler ones."""

    def called(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Tries the composition; functions without one, and forms it does not know, are called as they are."""
        composition = _COMPOSITIONS.get(func)
        composed = NotImplemented if composition is None else composition(*args, **kwargs)
        return func(*args, **kwargs) if composed is NotImplemented else composed


def _einsum(equation: object, *operands: object) -> Any:
    given: Sequence[Any] = operands
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        given = operands[0]
    if not isinstance(equation, str) or not all(isinstance(operand, Tensor) for operand in given):
        return NotImplemented
    composed = composed_einsum(equation, given)
    return NotImplemented if composed is None else composed


def _axis(value: Tensor, dim: int) -> int:
    return dim if dim >= 0 else dim + value.dim()


def _chunk(input: Tensor, chunks: int, dim: int = 0) -> Any:
    size = input.shape[dim]
    return torch.split(input, -(-size // chunks), dim) if isinstance(size, int) else NotImplemented


def _unflatten(input: Tensor, dim: Any, sizes: Any) -> Any:
    if not isinstance(dim, int):
        return NotImplemented
    axis = _axis(input, dim)
    return input.view([*input.shape[:axis], *sizes, *input.shape[axis + 1 :]])


def _movedim(input: Tensor, source: Any, destination: Any) -> Tensor:
    sources = [_axis(input, dim) for dim in ([source] if isinstance(source, int) else source)]
    destinations = [_axis(input, dim) for dim in ([destination] if isinstance(destination, int) else destination)]
    others = iter([axis for axis in range(input.dim()) if axis not in sources])
    placed = dict(zip(destinations, sources, strict=True))
    return input.permute([placed[axis] if axis in placed else next(others) for axis in range(input.dim())])


def _swapped(input: Tensor, axis0: int, axis1: int) -> Tensor:
    return input.transpose(axis0, axis1)


def _matrix_transposed(input: Tensor) -> Tensor:
    return input.transpose(-2, -1)


def _matrix_T(input: Tensor) -> Any:
    return input.transpose(0, 1) if input.dim() == 2 else NotImplemented


def _eye(n: Any, m: Any = None, *, dtype: torch.dtype | None = None, **more: Any) -> Any:
    columns = n if m is None else m
    if not isinstance(n, int) or not isinstance(columns, int) or more.get("out") is not None:
        return NotImplemented
    return (torch.arange(n).unsqueeze(1) == torch.arange(columns)).to(dtype or torch.get_default_dtype())


def _norm_of_axes(A: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, **more: Any) -> Any:
    # Over one axis, whatever the order, or over several without one, it is the norm of vectors; else of matrices.
    if more or dim is None or not (isinstance(dim, int) or ord is None):
        return NotImplemented
    return torch.linalg.vector_norm(A, 2 if ord is None else ord, dim, keepdim)


def _narrow(input: Tensor, dim: int, start: Any, length: int) -> Any:
    if not isinstance(start, int):
        return NotImplemented
    first = start if start >= 0 else start + input.shape[dim]
    return torch.ops.aten.slice.Tensor(input, dim, first, first + length)


def _diff(input: Tensor, n: int = 1, dim: int = -1, prepend: Tensor | None = None, append: Tensor | None = None) -> Any:
    axis = _axis(input, dim)
    parts = [part for part in (prepend, input, append) if part is not None]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts, axis)
    extent = whole.shape[axis]
    if n != 1 or not isinstance(extent, int) or input.dtype == torch.bool:
        return NotImplemented
    before = (slice(None),) * axis
    return whole[(*before, slice(1, extent))] - whole[(*before, slice(0, extent - 1))]


def _smaller(input: Tensor, *other: Any, **more: Any) -> Any:
    return torch.minimum(input, other[0]) if len(other) == 1 and isinstance(other[0], Tensor) else NotImplemented


def _larger(input: Tensor, *other: Any, **more: Any) -> Any:
    return torch.maximum(input, other[0]) if len(other) == 1 and isinstance(other[0], Tensor) else NotImplemented


def _expand_as(input: Tensor, other: Tensor) -> Tensor:
    return input.expand(other.shape)


def _view_as(input: Tensor, other: Tensor) -> Tensor:
    return input.view(other.shape)


def _index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    return input[(slice(None),) * _axis(input, dim) + (index,)]


def _take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Any:
    if dim is None or input.dim() != indices.dim():
        return NotImplemented
    axis = _axis(input, dim)
    alike = all(input.shape[other] == indices.shape[other] for other in range(input.dim()) if other not in (0, axis))
    return input.gather(axis, indices) if alike else NotImplemented


def _unfold(input: Tensor, dimension: int, size: int, step: int) -> Any:
    axis = _axis(input, dimension)
    extent = input.shape[axis]
    if not isinstance(extent, int):
        return NotImplemented
    starts = torch.arange((extent - size) // step + 1).unsqueeze(1) * step
    windows = input[(slice(None),) * axis + (starts + torch.arange(size),)]
    rank = windows.dim()
    return windows.permute([other for other in range(rank) if other != axis + 1] + [axis + 1])


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    left, right = torch.split(input, input.shape[dim] // 2, dim)
    return torch.mul(left, torch.sigmoid(right))


def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    out, first, second = weight.shape
    by_first = input1 @ weight.permute(1, 0, 2).reshape(first, out * second)
    by_first = by_first.reshape([*input1.shape[:-1], out, second])
    result = (by_first @ input2.unsqueeze(-1)).squeeze(-1)
    return result if bias is None else result + bias


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Any:
    axes = [axis for axis in range(v.dim()) if dim == -1 or axis != _axis(v, dim)]
    return v * (g / torch.linalg.vector_norm(v, dim=axes, keepdim=True))


def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Any:
    lengths = [torch.linalg.vector_norm(x, dim=dim).clamp(min=eps) for x in (x1, x2)]
    return (x1 * x2).sum(dim) / (lengths[0] * lengths[1])


def _pairwise_distance(x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Any:
    return torch.linalg.vector_norm(x1 - x2 + eps, ord=p, dim=-1, keepdim=keepdim)


def _threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Any:
    return NotImplemented if inplace else torch.where(input > threshold, input, value)


def _where(condition: Any, input: Any = None, other: Any = None, **more: Any) -> Any:
    both = [_for_every_sample(each, condition) for each in (input, other)]
    if more or not isinstance(condition, Tensor) or (both[0] is input and both[1] is other):
        return NotImplemented
    return torch.where(condition, *both)


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *rest: Any, **more: Any) -> Any:
    mask = _for_every_sample(attn_mask, query)
    return (
        NotImplemented if mask is attn_mask else F.scaled_dot_product_attention(query, key, value, mask, *rest, **more)
    )


def _for_every_sample(value: Any, sample: Any) -> Any:
    """A trained table (of relative positions) that meets samples, with a row of its own for each: that has a rule."""
    if not isinstance(value, Tensor) or not isinstance(sample, Tensor) or not value.requires_grad:
        return value
    batch: Any = sample.shape[0] if sample.dim() else 1
    alike = value.dim() == sample.dim() and value.dim() > 0 and value.shape[0] == 1
    return value.expand(batch, *value.shape[1:]) if alike and isinstance(batch, torch.SymInt) else value


def _forms(name: str, composition: Callable[..., Any]) -> dict[Any, Callable[..., Any]]:
    found = [getattr(place, name, None) for place in (torch, Tensor)]
    return {function: composition for function in found if function is not None}


_COMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.einsum: _einsum,
    Tensor.__dict__.get("mT", torch._C.TensorBase.mT).__get__: _matrix_transposed,
    Tensor.__dict__.get("T", torch._C.TensorBase.T).__get__: _matrix_T,
    torch.eye: _eye,
    torch.linalg.norm: _norm_of_axes,
    F.glu: _glu,
    F.bilinear: _bilinear,
    torch._weight_norm: _weight_norm,
    F.cosine_similarity: _cosine_similarity,
    F.pairwise_distance: _pairwise_distance,
    F.threshold: _threshold,
    F.scaled_dot_product_attention: _attention,
    **_forms("where", _where),
    **_forms("chunk", _chunk),
    **_forms("unflatten", _unflatten),
    **_forms("movedim", _movedim),
    **_forms("moveaxis", _movedim),
    **_forms("swapaxes", _swapped),
    **_forms("swapdims", _swapped),
    **_forms("narrow", _narrow),
    **_forms("diff", _diff),
    **_forms("min", _smaller),
    **_forms("max", _larger),
    **_forms("expand_as", _expand_as),
    **_forms("view_as", _view_as),
    **_forms("index_select", _index_select),
    **_forms("take_along_dim", _take_along_dim),
    **_forms("unfold", _unfold),
}
