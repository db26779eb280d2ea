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
class Constant:
    """The full rate after the warm-up.

    Attributes:
        warmup_steps: Steps over which the rate rises linearly from 0.
        warmup_ratio: The same as a share of the run's steps, rounded up; give one of the two.
    """

    warmup_steps: int | None = None
    warmup_ratio: float | None = None

    def __post_init__(self) -> None:
        _check_warmup(self)


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Falls linearly after the warm-up, to reach ``final_ratio`` of the full rate one step after the last.

    Attributes:
        warmup_steps: Steps over which the rate rises linearly from 0.
        warmup_ratio: The same as a share of the run's steps, rounded up; give one of the two.
        final_ratio: In [0, 1].
    """

    warmup_steps: int | None = None
    warmup_ratio: float | None = None
    final_ratio: float = 0.0

    def __post_init__(self) -> None:
        _check_warmup(self)
        _check_ratio(self, "final_ratio", self.final_ratio)


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Falls along half a cosine after the warm-up, to reach ``final_ratio`` of the full rate one step after the last.

    Attributes:
        warmup_steps: Steps over which the rate rises linearly from 0.
        warmup_ratio: The same as a share of the run's steps, rounded up; give one of the two.
        final_ratio: In [0, 1].
    """

    warmup_steps: int | None = None
    warmup_ratio: float | None = None
    final_ratio: float = 0.0

    def __post_init__(self) -> None:
        _check_warmup(self)
        _check_ratio(self, "final_ratio", self.final_ratio)


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


def _check_warmup(schedule: Schedule) -> None:
    name = type(schedule).__name__
    if schedule.warmup_steps is not None and schedule.warmup_ratio is not None:
        raise InvalidRequest(f"{name}: give warmup_steps or warmup_ratio, not both")
    if schedule.warmup_steps is not None and schedule.warmup_steps < 0:
        raise InvalidRequest(f"{name}: warmup_steps must not be negative, got {schedule.warmup_steps}")
    if schedule.warmup_ratio is not None:
        _check_ratio(schedule, "warmup_ratio", schedule.warmup_ratio)


def _check_ratio(schedule: Schedule, field: str, ratio: float) -> None:
    if not 0.0 <= ratio <= 1.0:
        raise InvalidRequest(f"{type(schedule).__name__}: {field} must lie in [0, 1], got {ratio}")
