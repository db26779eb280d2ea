"""Learning-rate schedules: warm-up from 0, then constant, linear or cosine.

The rate of each step depends on the step's number alone, so a schedule costs no privacy. Steps count from 0 and
the factors are those of ``transformers.get_{constant,linear,cosine}_schedule_with_warmup``: the first step of a
warm-up has rate 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bastionai.exceptions import InvalidRequest


@dataclass(frozen=True, kw_only=True)
class _WarmedUp:
    warmup_steps: int | None = None
    warmup_ratio: float | None = None

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise InvalidRequest(f"{name}: give warmup_steps or warmup_ratio, not both")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise InvalidRequest(f"{name}: warmup_steps must not be negative, got {self.warmup_steps}")
        self._check_ratio("warmup_ratio", self.warmup_ratio or 0.0)

    def _check_ratio(self, field: str, ratio: float) -> None:
        if not 0.0 <= ratio <= 1.0:
            raise InvalidRequest(f"{type(self).__name__}: {field} must lie in [0, 1], got {ratio}")


@dataclass(frozen=True, kw_only=True)
class _Falling(_WarmedUp):
    final_ratio: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_ratio("final_ratio", self.final_ratio)


@dataclass(frozen=True, kw_only=True)
class Constant(_WarmedUp):
    """The full rate after the warm-up.

    Attributes:
        warmup_steps: Steps over which the rate rises linearly from 0.
        warmup_ratio: The same as a share of the run's steps, rounded up; give one of the two.
    """


@dataclass(frozen=True, kw_only=True)
class Linear(_Falling):
    """Falls linearly after the warm-up, to reach ``final_ratio`` of the full rate one step after the last.

    Attributes:
        warmup_steps: Steps over which the rate rises linearly from 0.
        warmup_ratio: The same as a share of the run's steps, rounded up; give one of the two.
        final_ratio: In [0, 1].
    """


@dataclass(frozen=True, kw_only=True)
class Cosine(_Falling):
    """Falls along half a cosine after the warm-up, to reach ``final_ratio`` of the full rate one step after the last.

    Attributes:
        warmup_steps: Steps over which the rate rises linearly from 0.
        warmup_ratio: The same as a share of the run's steps, rounded up; give one of the two.
        final_ratio: In [0, 1].
    """


#: What the server's trainer knows.
Schedule = Constant | Linear | Cosine


def as_schedule(schedule: object) -> Schedule:
    """Reads a schedule: one of this module, or None for a constant rate.

    Raises:
        InvalidRequest: If it is something else, such as a scheduler object of PyTorch.
    """
    if schedule is None:
        return Constant()
    if isinstance(schedule, (Constant, Linear, Cosine)):
        return schedule
    raise InvalidRequest(
        f"schedule={schedule!r} is not known; use bastionai.schedules.Constant, Linear or Cosine, "
        "e.g. Linear(warmup_ratio=0.1)"
    )


def document(schedule: Schedule) -> dict[str, Any]:
    """The schedule as the server's specification has it."""
    if schedule.warmup_ratio is not None:
        warmup: dict[str, Any] = {"ratio": schedule.warmup_ratio}
    else:
        warmup = {"steps": schedule.warmup_steps or 0}
    if isinstance(schedule, Constant):
        return {"decay": "constant", "warmup": warmup}
    name = "linear" if isinstance(schedule, Linear) else "cosine"
    return {"decay": {name: {"final_ratio": schedule.final_ratio}}, "warmup": warmup}
