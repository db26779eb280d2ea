"""Choices a scientist may leave to us: batch size, steps, and whether noise would drown the signal."""

from __future__ import annotations

import math

from bastionai.exceptions import InvalidRequest
from bastionai.quote import Quote

#: Fewer steps than this and an optimizer barely moves, whatever the noise.
_MIN_STEPS = 60
#: Below this, what all steps together say about the gradient is smaller than the noise they add.
_DROWNED = 1.0


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


def signal_to_noise(quote: Quote) -> float:
    """How the run's summed signal compares with its summed noise, in L2 norm; a rule of thumb.

    If every clipped gradient pointed the same way, T steps would add up to T·b·C; their noise adds up
    to √T·σ·C per coordinate, so √(T·d)·σ·C over d parameters.
    """
    noise = quote.noise_multiplier * math.sqrt(max(1, quote.trainable_parameters))
    return math.inf if noise == 0.0 else quote.batch_size * math.sqrt(quote.steps) / noise


def noise_warning(quote: Quote) -> str | None:
    """A warning when the settings let noise drown the signal, else None."""
    ratio = signal_to_noise(quote)
    if ratio >= _DROWNED:
        return None
    return (
        f"noise will drown the model: over the whole run the signal is at most {ratio:.2g} times the noise. "
        f"batch_size={quote.batch_size} is the expected batch over all datasets; leave it out to have it planned, "
        "train fewer parameters, or spend more ε (max_batch_size is only the physical cap)"
    )


def default_max_batch_size(batch_size: int) -> int:
    """Rows computed at once when the user sets no cap: enough for one micro-batch of a usual sample."""
    return min(max(16, batch_size), 256)
