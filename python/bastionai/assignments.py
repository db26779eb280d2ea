"""What in-place fills and assignments to parts become in a functional graph → operators that have a rule.

``torch.empty(rows, 1).bernoulli_(p)`` (stochastic depth), ``noise.normal_()``, ``mask[:, a:b] = 1`` and ``x[mask] = 0``
become draws, constants, joins of slices and choices. What stays is refused by the server, with its line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

_aten = torch.ops.aten


def plain_assignments(graph: Graph) -> None:
    """Rewrites them in place. The graph has no write aliases."""
    for node in list(graph.nodes):
        if node.target in _INITIALISED:
            node.target = _INITIALISED[node.target]
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "memory_format"}
        rewrite = _REWRITES.get(node.target)
        if rewrite is None or node.kwargs.get("generator") is not None:
            continue
        with graph.inserting_before(node):
            result = rewrite(_Writer(graph, node), *node.args, **node.kwargs)
        if result is not None:
            node.replace_all_uses_with(result)
            graph.erase_node(node)


class _Writer:
    """Writes the calls that stand in for one node: they have its line, and values of their own."""

    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph = graph
        self.meta = node.meta
        self.value: Tensor = node.meta["val"]

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        call = self.graph.call_function(target, args, kwargs)
        call.meta = dict(self.meta)
        given = map_arg((args, kwargs), lambda node: node.meta["val"])
        call.meta["val"] = target(*given[0], **given[1])
        return call

    def converted(self, value: Node) -> Node:
        """In the dtype of the node."""
        if value.meta["val"].dtype == self.value.dtype:
            return value
        return self(_aten.to.dtype, value, self.value.dtype)


#: Whatever uninitialised memory holds may as well be zeros.
_INITIALISED = {
    _aten.empty.memory_format: _aten.zeros.default,
    _aten.empty_like.default: _aten.zeros_like.default,
    _aten.new_empty.default: _aten.new_zeros.default,
}


def _bernoulli(write: _Writer, like: Node, p: float, **_: Any) -> Node:
    return write.converted(write(_aten.lt.Scalar, write(_aten.rand_like.default, like), p))


def _uniform(write: _Writer, like: Node, low: float = 0.0, high: float = 1.0, **_: Any) -> Node:
    drawn = write(_aten.rand_like.default, like)
    return write(_aten.add.Tensor, write(_aten.mul.Tensor, drawn, high - low), low)


def _normal(write: _Writer, like: Node, mean: float = 0.0, std: float = 1.0, **_: Any) -> Node:
    drawn = write(_aten.randn_like.default, like)
    return write(_aten.add.Tensor, write(_aten.mul.Tensor, drawn, std), mean)


def _zero(write: _Writer, like: Node) -> Node:
    return write(_aten.zeros_like.default, like)


def _fill(write: _Writer, like: Node, value: Any) -> Node:
    if isinstance(value, Node):
        return _copied(write, like, value)
    return write(_aten.full_like.default, like, value)


def _copied(write: _Writer, like: Node, source: Node, _non_blocking: bool = False) -> Node:
    source = write.converted(source)
    if source.meta["val"].shape == write.value.shape:
        return source
    # Broadcasting without naming a size: the batch's would be a node of its own.
    return write.converted(write(_aten.add.Tensor, write(_aten.zeros_like.default, like), source))


def _assigned_slice(
    write: _Writer,
    value: Node,
    part: Node,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Node | None:
    size = write.value.shape[dim]
    if (start in (None, 0)) and (end is None or end >= 2**63 - 1) and step == 1:
        return part
    if step != 1 or not all(isinstance(number, int) for number in (size, start or 0, end or 0)):
        return None
    first, last, _ = slice(start, end).indices(size)
    before = [write(_aten.slice.Tensor, value, dim, 0, first)] if first > 0 else []
    after = [write(_aten.slice.Tensor, value, dim, last, size)] if last < size else []
    return write(_aten.cat.default, [*before, part, *after], dim) if before or after else part


def _assigned_row(write: _Writer, value: Node, part: Node, dim: int, index: Any) -> Node | None:
    size = write.value.shape[dim]
    if not isinstance(size, int) or not isinstance(index, int):
        return None
    first = index % size
    return _assigned_slice(write, value, write(_aten.unsqueeze.default, part, dim), dim, first, first + 1)


def _assigned_where(
    write: _Writer, value: Node, indices: list[Node | None], part: Node, accumulate: bool = False
) -> Node | None:
    """``value[mask] = part`` where every chosen element gets the same."""
    if accumulate or len(indices) != 1 or indices[0] is None:
        return None
    mask, given = indices[0].meta["val"], part.meta["val"]
    inner = write.value.dim() - mask.dim()
    if mask.dtype != torch.bool or given.dim() > inner:
        return None
    chosen = indices[0]
    for _ in range(inner):
        chosen = write(_aten.unsqueeze.default, chosen, -1)
    return write(_aten.where.self, chosen, write.converted(part), value)


_REWRITES: dict[Any, Callable[..., Node | None]] = {
    _aten.bernoulli.p: _bernoulli,
    _aten.uniform.default: _uniform,
    _aten.normal_functional.default: _normal,
    _aten.zero.default: _zero,
    _aten.fill.Scalar: _fill,
    _aten.fill.Tensor: _fill,
    _aten.copy.default: _copied,
    _aten.slice_scatter.default: _assigned_slice,
    _aten.select_scatter.default: _assigned_row,
    _aten.index_put.default: _assigned_where,
}
