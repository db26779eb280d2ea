"""Conversions that also name a device or a layout → conversions of the element type alone.

``x.to(y.device, torch.bool)``, ``x.type_as(y)`` and the like differ only in how the element type is said: records
have no device of their own. One that changes nothing is dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Graph, Node

_aten = torch.ops.aten
#: Every overload that converts, and the conversion that copies.
_CONVERSIONS = {
    _aten.to.device,
    _aten.to.dtype,
    _aten.to.dtype_layout,
    _aten.to.other,
    _aten.to.prim_Device,
    _aten.to.prim_dtype,
    _aten.to.prim_other,
    _aten.type_as.default,
    _aten._to_copy.default,
}


def plain_conversions(graph: Graph) -> None:
    """Rewrites them in place."""
    for node in list(graph.nodes):
        if node.target not in _CONVERSIONS or not isinstance(node.args[0], Node):
            continue
        source, result = node.args[0].meta.get("val"), node.meta.get("val")
        if not isinstance(source, Tensor) or not isinstance(result, Tensor):
            continue
        if source.dtype == result.dtype and not any(user.op == "output" for user in node.users):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is not _aten.to.dtype:
            node.target, node.args, node.kwargs = _aten.to.dtype, (node.args[0], result.dtype), {}
