"""Which line of a user's code an export fails at.

``torch.export`` says what it cannot follow, seldom where. The line is the innermost frame that is neither PyTorch's,
nor Python's own library's, nor ours: a library of models is named as its user would name it.
"""

from __future__ import annotations

import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from bastionai.interception import Interception

_OURS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"]


def is_users(filename: str) -> bool:
    """Whether a file of code belongs to the user, or to a library of models."""
    if filename.startswith(("<", *_OURS)):
        return False
    return "site-packages" in filename or not filename.startswith(_STANDARD_LIBRARY)


def line_of(error: BaseException) -> str | None:
    """``file:line`` of the code that raised it, below the frame that caught it; None if no user's code is there."""
    frames = traceback.walk_tb(error.__traceback__)
    places = [(frame.f_code.co_filename, number) for frame, number in frames if is_users(frame.f_code.co_filename)]
    return f"{places[-1][0]}:{places[-1][1]}" if places else None


def line_of_node(node: Node) -> str | None:
    """``file:line`` that a node of an exported graph was made at."""
    trace = str(node.meta.get("stack_trace") or "")
    quoted = [line.split('"') for line in trace.splitlines() if line.strip().startswith('File "')]
    users = [parts for parts in quoted if len(parts) == 3 and is_users(parts[1])]
    return f"{users[-1][1]}:{users[-1][2].split()[2].rstrip(',')}" if users else None


def current_line() -> str | None:
    """``file:line`` of the user's code that is running in an export; None where only its caller is a user's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != torch.export.__file__:
        if is_users(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return None


class SizesDecided(Interception):
    """While active during an export, remembers the lines at which code decided something about the batch size.

    Attributes:
        lines: ``file:line`` of each, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._decided = 0

    def called(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Calls the function; what was decided since the last call was decided by it, or just before it."""
        result = func(*args, **kwargs)
        # Typed as int, which an extent that is a symbol is not.
        sizes: list[Any] = [size for value in (*args, result) if isinstance(value, Tensor) for size in value.shape]
        symbol = next((size for size in sizes if isinstance(size, torch.SymInt)), None)
        if symbol is not None:
            self._note(symbol.node.shape_env)
        return result

    def _note(self, environment: Any) -> None:
        for guard in environment.guards[self._decided :]:
            # A comparison in the user's own code names itself; one within an operator is where that was called.
            place = guard.sloc.framework_loc
            own = place is not None and hasattr(place, "filename") and is_users(place.filename)
            line = f"{place.filename}:{place.lineno}" if own else current_line()
            if line is not None and line not in self.lines:
                self.lines.append(line)
        self._decided = len(environment.guards)
