"""Choices a scientist may leave to us: the batch size, and steps from epochs."""

from __future__ import annotations

import math

from bastionai.exceptions import InvalidRequest

#: Fewer steps than this and an optimizer barely moves, whatever the noise.
_MIN_STEPS = 60


def plan_batch_size(declared_size: int, nb_epochs: float | None, steps: int | None) -> int:
    """An expected batch size for private training.

    At a fixed number of epochs the noise per step, relative to the batch, falls faster with the batch
    size than the number of steps does; so: the largest power of two that leaves at least 60 steps and
    takes at most a quarter of the records, 16 at the least.

    Args:
        declared_size: Declared records over all datasets.
        nb_epochs: Passes over them, if that is what was asked for.
        steps: Optimizer steps, otherwise.
    """
    most = max(16, declared_size // 4)
    if nb_epochs is not None:
        most = min(most, int(nb_epochs * declared_size / _MIN_STEPS))
    elif steps is None:
        raise InvalidRequest("give nb_epochs= or steps=")
    power = 1 << (max(16, most).bit_length() - 1)
    return min(power, declared_size)


def plan_steps(declared_size: int, batch_size: int, nb_epochs: float | None, steps: int | None) -> int:
    """Optimizer steps: as given, or as many as make ``nb_epochs`` expected passes.

    Raises:
        InvalidRequest: Unless exactly one of the two is given and positive.
    """
    if (nb_epochs is None) == (steps is None):
        raise InvalidRequest("give either nb_epochs= or steps=")
    if steps is not None:
        if steps < 1:
            raise InvalidRequest(f"steps={steps}: at least one step is needed")
        return steps
    assert nb_epochs is not None
    if not (math.isfinite(nb_epochs) and nb_epochs > 0):
        raise InvalidRequest(f"nb_epochs={nb_epochs}: expected a positive number")
    return max(1, math.ceil(nb_epochs * declared_size / batch_size))
