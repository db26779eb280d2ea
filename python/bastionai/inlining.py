"""Sub-graphs that ``torch.export`` makes of ``with`` blocks → the same nodes in the graph that calls them.

``with torch.no_grad():`` and ``with torch.autocast(..., enabled=False):`` become calls of a sub-graph. The server
reads one graph, so they are written out where they are called; what leaves a block without gradients is detached.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import TensorArgument
from torch.fx import GraphModule, Node

from bastionai.exceptions import ExportError


def inline_subgraphs(program: ExportedProgram) -> None:
    """Writes every sub-graph out in place.

    Raises:
        ExportError: If a sub-graph runs under an autocast that is on: its precision would silently be lost.
    """
    renamed = _inline(program.graph_module)
    for spec in program.graph_signature.output_specs:
        if isinstance(spec.arg, TensorArgument):
            spec.arg.name = renamed.get(spec.arg.name, spec.arg.name)


def _inline(module: GraphModule) -> dict[str, str]:
    """What values of calls are called afterwards."""
    renamed: dict[str, str] = {}
    for node in list(module.graph.nodes):
        call = _block(node)
        if call is None:
            continue
        attribute, operands, detached = call
        body = getattr(module, str(attribute.target))
        _inline(body)
        renamed |= _write_out(module, node, body, operands, detached)
        if not attribute.users:
            module.graph.erase_node(attribute)
    return renamed


def _block(node: Node) -> tuple[Node, tuple[Any, ...], bool] | None:
    """The sub-graph a node calls, what it is given, and whether its results carry no gradient."""
    if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
        enabled, attribute, *operands = node.args
        return _called(attribute), tuple(operands), enabled is False
    if node.target is torch.ops.higher_order.wrap_with_autocast:
        device, dtype, enabled, _cache, attribute, *operands = node.args
        if enabled:
            raise ExportError(
                f"the module computes in {dtype} under torch.autocast({device!r}); its precision is chosen when it is "
                "trained. Remove the autocast, or convert with .to(dtype) where the dtype is meant"
            )
        return _called(attribute), tuple(operands), False
    return None


def _called(attribute: Any) -> Node:
    assert isinstance(attribute, Node)
    return attribute


def _write_out(
    module: GraphModule, call: Node, body: GraphModule, operands: tuple[Any, ...], detached: bool
) -> dict[str, str]:
    renamed: dict[str, str] = {}
    graph = module.graph
    given = iter(operands)
    copied: dict[Node, Any] = {}
    outputs: tuple[Any, ...] = ()
    with graph.inserting_before(call):
        for node in body.graph.nodes:
            if node.op == "placeholder":
                copied[node] = next(given)
            elif node.op == "output":
                outputs = torch.fx.node.map_arg(node.args[0], lambda inner: copied[inner])
            else:
                copied[node] = graph.node_copy(node, lambda inner: copied[inner])
        if detached:
            outputs = tuple(_detached(graph, output) for output in outputs)
    for user in list(call.users):
        position = user.args[1]
        assert user.target is operator.getitem
        assert isinstance(position, int)
        output = outputs[position]
        user.replace_all_uses_with(output)
        graph.erase_node(user)
        renamed[user.name] = output.name
    graph.erase_node(call)
    return renamed


def _detached(graph: torch.fx.Graph, output: Any) -> Any:
    value = output.meta.get("val") if isinstance(output, Node) else None
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return output
    detached = graph.call_function(torch.ops.aten.detach.default, (output,))
    detached.meta = dict(output.meta)
    return detached
