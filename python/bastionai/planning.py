"""Choices a scientist may leave to us: batch size and steps. The rules are ``crates/privacy/src/planner.rs``."""

from __future__ import annotations

from dataclasses import dataclass

from bastionai import _internal

#: δ of runs that touch no private dataset, as the server chooses it.
_REHEARSAL_DELTA = 1e-6


@dataclass(frozen=True)
class Plan:
    """A batch size and a number of steps.

    Attributes:
        batch_size: Expected records per step over all datasets.
        steps: Optimizer steps.
    """

    batch_size: int
    steps: int


def plan(
    declared_size: int,
    *,
    eps: float | None = None,
    delta: float | None = None,
    noise_multiplier: float | None = None,
    batch_size: int | None = None,
    steps: int | None = None,
    nb_epochs: float | None = None,
) -> Plan:
    """Fills in what is open.

    A run's signal-to-noise ratio is B·√T/σ. At a fixed (ε, δ) it rises with q·√T and levels off: for the same
    work a larger batch is never worse, and more work helps until σ is well above 1 (Ponomareva et al. 2023,
    arXiv 2303.00654; De et al. 2022, arXiv 2204.13650). So: with ``nb_epochs``, the largest power of two that
    leaves 60 steps; without, 200 steps (or those given) of the smallest power of two that brings 90 % of the limit.
    What is given is kept.

    Args:
        declared_size: Declared records over all datasets.
        eps: ε of the run; or give ``noise_multiplier``.
        delta: δ of the run.
        noise_multiplier: Noise of the gradient; then steps or epochs are needed.
        batch_size: Expected records per step, if that is fixed.
        steps: Optimizer steps, if they are fixed; not together with ``nb_epochs``.
        nb_epochs: Expected passes over the declared records, if they are fixed.

    Raises:
        InvalidRequest: If a number is out of range or contradicts another.
    """
    target = _REHEARSAL_DELTA if delta is None else delta
    chosen = _internal.plan(declared_size, eps, noise_multiplier, target, batch_size, steps, nb_epochs)
    return Plan(*chosen)
