"""Gradients that a module computes or changes itself: refused, because an exported graph knows nothing of them.

``torch.export`` records what a module computes forwards. The server differentiates *that*: a custom ``backward``, or a
hook that changes a gradient on its way, would be lost without a word.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from bastionai.exceptions import ExportError
from bastionai.interception import Interception
from bastionai.lines import current_line

_HOOKS = {Tensor.register_hook, Tensor.register_post_accumulate_grad_hook}


class NoGradientHooks(Interception):
    """While active, a hook on a tensor's gradient is refused at its line."""

    def called(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Calls the function."""
        if func in _HOOKS:
            raise ExportError(
                f"{current_line()}: a hook on a gradient would be lost: the server differentiates what the module "
                "computes. Write what it does into forward, e.g. x.detach() where no gradient shall flow"
            )
        return func(*args, **kwargs)


@contextlib.contextmanager
def plain_derivatives() -> Iterator[None]:
    """While active, a ``torch.autograd.Function`` is refused at the line that applies it.

    PyTorch's own do not change what a derivative is, but for reentrant checkpointing: that computes forwards without
    gradients, so its part would not be trained.
    """
    original = torch.autograd.Function.__dict__["apply"]

    def apply(cls: type, *args: Any, **more: Any) -> Any:
        if cls.__module__.startswith("torch.") and cls is not CheckpointFunction:
            return original.__get__(None, cls)(*args, **more)
        raise ExportError(
            f"{current_line()}: the backward of {cls.__name__} would be lost: the server differentiates what a module "
            "computes. Write it with PyTorch's operators; a straight-through estimate of f is x + (f(x) - x).detach(), "
            "and checkpointing takes use_reentrant=False"
        )

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[assignment, method-assign]
    try:
        with NoGradientHooks():
            yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]


def refuse_gradient_hooks(module: nn.Module) -> None:
    """Refuses hooks that are on a module already.

    Raises:
        ExportError: Naming the layer or parameter.
    """
    for name, layer in module.named_modules():
        if layer._backward_hooks or layer._backward_pre_hooks:
            raise ExportError(f"{name or type(layer).__name__}: {_LOST}")
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise ExportError(f"{name}: {_LOST}")


_LOST = (
    "has a hook on its gradient, which would be lost: the server differentiates what the module computes. Remove the "
    "hook, and freeze with requires_grad_(False) what shall not be trained"
)
