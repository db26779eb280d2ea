"""Shows a run's progress: a bar on terminals and in notebooks, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

#: Seconds between plain lines.
_LINE_SECONDS = 5.0
#: Weight of the newest value in the smoothed loss. Smoothing noisy releases costs no privacy.
_NEWEST = 0.2


class ProgressDisplay:
    """A progress bar with the smoothed noisy loss.

    Args:
        title: Shown in front.
        steps: Total.
        enabled: False shows nothing.
        stream: Where to write; stderr by default, so that stdout stays data.
    """

    def __init__(self, title: str, steps: int, enabled: bool = True, stream: TextIO | None = None) -> None:
        self._title = title
        self._steps = steps
        self._enabled = enabled
        self._stream = stream or sys.stderr
        self._smoothed: float | None = None
        self._last_line = -_LINE_SECONDS
        self._last_step = -1
        self._bar = self._make_bar() if enabled else None
        self._task = None if self._bar is None else self._bar.add_task(title, total=steps, loss="")

    def _make_bar(self) -> Progress | None:
        console = Console(file=self._stream)
        if not (console.is_terminal or console.is_jupyter):
            return None
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        return Progress(*columns, TextColumn("{task.fields[loss]}"), console=console)

    def __enter__(self) -> ProgressDisplay:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, noisy_loss: float | None) -> None:
        """Shows that ``step`` steps are done."""
        if noisy_loss is not None:
            previous = noisy_loss if self._smoothed is None else self._smoothed
            self._smoothed = previous + _NEWEST * (noisy_loss - previous)
        loss = "" if self._smoothed is None else f"noisy loss {self._smoothed:.3f}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, loss=loss)
        elif self._enabled and self._line_is_due(step):
            self._last_line, self._last_step = time.monotonic(), step
            print(f"{self._title}: step {step}/{self._steps} {loss}".rstrip(), file=self._stream, flush=True)

    def _line_is_due(self, step: int) -> bool:
        if step == self._last_step:
            return False
        return time.monotonic() - self._last_line >= _LINE_SECONDS or step == self._steps

    @property
    def smoothed_loss(self) -> float | None:
        """The smoothed noisy loss, if any was released."""
        return self._smoothed
