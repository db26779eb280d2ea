"""``torch.einsum`` as permutations, reshapes and matrix products, which have rules; an equation as text has none.

The batch axis stays an axis of its own on the way: it is never merged with an axis left of it (rule T6), and a
parameter stands on the right of a product, where its gradient is tapped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def composed_einsum(equation: str, operands: Sequence[Tensor]) -> Tensor | None:
    """The same result from simpler operators.

    Returns:
        None for what is left to the server to refuse: ellipses and diagonals.
    """
    parsed = _parsed(equation, len(operands))
    if parsed is None:
        return None
    inputs, output = parsed
    labels, value = inputs[0], operands[0]
    for position in range(1, len(operands)):
        later = set(output).union(*inputs[position + 1 :])
        labels, value = _pair(labels, value, inputs[position], operands[position], later)
    labels, value = _summed(labels, value, set(output))
    return _arranged(value, labels, output)


def _parsed(equation: str, count: int) -> tuple[list[str], str] | None:
    left, arrow, output = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    everything = "".join(inputs)
    if "." in equation or len(inputs) != count or any(len(set(labels)) != len(labels) for labels in inputs):
        return None
    if not arrow:
        output = "".join(sorted(label for label in set(everything) if everything.count(label) == 1))
    if len(set(output)) != len(output) or not set(output) <= set(everything):
        return None
    return inputs, output


def _summed(labels: str, value: Tensor, kept: set[str]) -> tuple[str, Tensor]:
    gone = [axis for axis, label in enumerate(labels) if label not in kept]
    if gone:
        value = value.sum(dim=gone)
    return "".join(label for label in labels if label in kept), value


def _arranged(value: Tensor, labels: str, wanted: str) -> Tensor:
    if labels == wanted:
        return value
    return value.permute([labels.index(label) for label in wanted])


def _is_data(value: Tensor) -> bool:
    """Whether an axis is symbolic: only the batch is, while a module is exported."""
    return any(not isinstance(size, int) for size in value.shape)


def _pair(labels: str, value: Tensor, other_labels: str, other: Tensor, later: set[str]) -> tuple[str, Tensor]:
    """Contracts two operands; labels that neither the result nor a later operand has are summed."""
    labels, value = _summed(labels, value, later | set(other_labels))
    other_labels, other = _summed(other_labels, other, later | set(labels))
    if _is_data(other) and not _is_data(value):
        labels, value, other_labels, other = other_labels, other, labels, value
    both = [label for label in labels if label in other_labels]
    shared = "".join(label for label in both if label in later)
    inner = "".join(label for label in both if label not in later)
    own = "".join(label for label in labels if label not in other_labels)
    new = "".join(label for label in other_labels if label not in labels)
    if shared and other.requires_grad and not _is_data(other):
        return _multiplied(labels, value, other_labels, other, inner)
    left, right = _arranged(value, labels, shared + own + inner), _arranged(other, other_labels, shared + inner + new)
    sizes = dict(zip(labels, value.shape, strict=True)) | dict(zip(other_labels, other.shape, strict=True))
    extents = {part: [sizes[label] for label in part] for part in (shared, own, inner, new)}
    width, columns = math.prod(extents[inner]), math.prod(extents[new])
    right = right.reshape([*extents[shared], width, columns])
    if shared:
        left = left.reshape([*extents[shared], math.prod(extents[own]), width])
    else:
        # The rows stay apart: the batch is one of them.
        left = left.reshape([*extents[own], width])
        right = right if own else right.squeeze(-1) if not new else right
    product = torch.matmul(left, right)
    return shared + own + new, product.reshape([*extents[shared], *extents[own], *extents[new]])


def _multiplied(labels: str, value: Tensor, other_labels: str, other: Tensor, inner: str) -> tuple[str, Tensor]:
    """A parameter with an axis that the data keeps, such as one matrix for each head: multiplied by broadcasting."""
    new = "".join(label for label in other_labels if label not in labels)
    wide = value.reshape([*value.shape, *[1] * len(new)])
    order = "".join(label for label in labels if label in other_labels) + new
    aligned = _arranged(other, other_labels, order)
    shape = [other.shape[other_labels.index(label)] if label in other_labels else 1 for label in labels + new]
    return _summed(labels + new, wide * aligned.reshape(shape), set(labels + new) - set(inner))
