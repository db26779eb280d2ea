"""Seeing every call of PyTorch's functions while a module is traced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode


class Interception(TorchFunctionMode):
    """While active, PyTorch's functions are called through :meth:`called`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """PyTorch's way to say that a function is called."""
        del types
        return self.called(func, args, kwargs or {})

    def called(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Calls the function, or computes what it would; an override may do more."""
        return func(*args, **kwargs)
