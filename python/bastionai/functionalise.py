"""Exported graph → the same graph without in-place operators (rule T8).

``torch.export`` keeps ``relu_`` and friends. ``run_decompositions({})`` removes them, but it also
replaces ``dropout`` by a private operator with a mask output, and on torch 2.11 it loses the
reduction of ``F.cross_entropy(..., reduction="none")`` on reshaped inputs. So the usual case, an
in-place operator on a value that nothing else aliases, is rewritten here, and only what remains goes
through PyTorch's own functionalisation.
"""

from __future__ import annotations

import operator
import warnings

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from bastionai.assignments import plain_assignments
from bastionai.conversions import plain_conversions
from bastionai.exceptions import ExportError
from bastionai.inlining import inline_subgraphs
from bastionai.lines import line_of_node


def functionalise(program: ExportedProgram) -> ExportedProgram:
    """The program without write aliases.

    Args:
        program: As ``torch.export.export`` gives it; changed in place where that suffices.

    Raises:
        ExportError: If the module writes to its inputs, buffers or parameters.
    """
    inline_subgraphs(program)
    _drop_metadata_asserts(program.graph)
    plain_conversions(program.graph)
    _copy_lifted_constants(program.graph)
    _replace_local_writes(program.graph)
    writes = [node for node in program.graph.nodes if _writes(node)]
    lines = list(dict.fromkeys(filter(None, map(line_of_node, writes))))
    if writes:
        program = _decompose(program)
        _drop_metadata_asserts(program.graph)
        _restore_dropout(program.graph)
    plain_assignments(program.graph)
    program.graph.lint()
    program.graph_module.recompile()
    _refuse_state(program, lines)
    return program


def _writes(node: Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _drop_metadata_asserts(graph: Graph) -> None:
    """Asserts about dtypes compute nothing, and the server infers every dtype itself (rule T4)."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)


def _copy_lifted_constants(graph: Graph) -> None:
    """``torch.tensor([…])`` within a module is a constant that export lifts and copies: a plain copy has a rule."""
    lifts = {torch.ops.aten.lift_fresh_copy.default, torch.ops.aten.lift_fresh.default}
    for node in graph.nodes:
        if node.target in lifts:
            node.target = torch.ops.aten.clone.default


def _replace_local_writes(graph: Graph) -> None:
    for node in list(graph.nodes):
        if not _writes(node):
            continue
        written, functional = node.args[0] if node.args else None, _functional(node.target)
        if functional is None or not isinstance(written, Node) or not _unaliased(written, node):
            continue
        with graph.inserting_after(node):
            result = graph.call_function(functional, node.args, dict(node.kwargs))
        result.meta = dict(node.meta)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
        # Later readers of the written value see the new one.
        nodes = list(graph.nodes)
        later = set(nodes[nodes.index(result) + 1 :])
        written.replace_all_uses_with(result, later.__contains__)


#: Counterparts under another name.
_RENAMED = {
    torch.ops.aten.bernoulli_.float: torch.ops.aten.bernoulli.p,
    torch.ops.aten.normal_.default: torch.ops.aten.normal_functional.default,
}


def _functional(target: object) -> torch._ops.OpOverload | None:
    """``aten.relu.default`` for ``aten.relu_.default``; None where there is no counterpart."""
    assert isinstance(target, torch._ops.OpOverload)
    if target in _RENAMED:
        return _RENAMED[target]
    namespace, name = target._schema.name.split("::")
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    counterpart = getattr(packet, target._overloadname, None)
    if counterpart is None or counterpart._schema.is_mutable:
        return None
    names = [argument.name for argument in target._schema.arguments]
    return counterpart if [a.name for a in counterpart._schema.arguments] == names else None


def _unaliased(value: Node, write: Node) -> bool:
    """Whether ``value`` is a fresh result that no view shares when it is written."""
    if value.op != "call_function" or _may_alias(value):
        return False
    return not any(_may_alias(user) for user in value.users if user is not write)


def _may_alias(node: Node) -> bool:
    if node.op == "output":
        return False
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return not getattr(target, "__module__", "").startswith("_operator") or target is operator.getitem
    # `reshape`, `contiguous` and the like return a view or a copy: their schemas do not say.
    undecided = {"reshape", "contiguous", "to", "flatten", "dropout", "feature_dropout", "expand_as", "type_as"}
    name = target._schema.name.split("::")[1]
    return name in undecided or any(result.alias_info is not None for result in target._schema.returns)


def _decompose(program: ExportedProgram) -> ExportedProgram:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            functional: ExportedProgram = program.run_decompositions({})
            return functional
    except Exception as error:
        raise ExportError(
            "the module changes tensors in place in a way that cannot be made functional: "
            f"{_first_line(error)}. Use out-of-place operators (bastionai.fix does it for activations)"
        ) from error


def _restore_dropout(graph: Graph) -> None:
    """``native_dropout(x, p, train)[0]`` → ``dropout(x, p, train)``."""
    for node in list(graph.nodes):
        if node.target is not torch.ops.aten.native_dropout.default:
            continue
        users = list(node.users)
        if all(user.target is operator.getitem and user.args[1] == 0 for user in users):
            with graph.inserting_before(node):
                dropout = graph.call_function(torch.ops.aten.dropout.default, node.args)
            dropout.meta = dict(users[0].meta if users else node.meta)
            dropout.meta["stack_trace"] = node.meta.get("stack_trace", "")
            for user in users:
                user.replace_all_uses_with(dropout)
                graph.erase_node(user)
            graph.erase_node(node)


def _refuse_state(program: ExportedProgram, lines: list[str]) -> None:
    signature, at = program.graph_signature, f" (written at {', '.join(lines[:3])})" if lines else ""
    inputs = ", ".join(map(str, signature.user_inputs_to_mutate.values()))
    if inputs:
        raise ExportError(
            f"the module changes its input in place: {inputs}{at}. Compute a new tensor instead, or start "
            "with x = x.clone()"
        )
    state = ", ".join(map(str, signature.buffers_to_mutate.values()))
    if state:
        raise ExportError(
            f"the module writes to {state} while it computes{at}: state that samples leave "
            "behind reaches the next sample's loss. BatchNorm and InstanceNorm do so: use bastionai.fix(model); "
            "spectral_norm as well: leave it out, clipping bounds what a record does"
        )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
