"""What-ifs about DP-SGD, by the accountant that the server charges with."""

from __future__ import annotations

from bastionai import _internal


def epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    """ε of a training run, an upper bound by privacy loss distributions.

    Args:
        noise_multiplier: Standard deviation of the noise over the clipping norm.
        sample_rate: Probability with which each record enters a step.
        steps: Optimizer steps.
        delta: δ.

    Returns:
        ε for adding or removing one record.

    Raises:
        InvalidRequest: If an argument is out of range.
    """
    return _internal.epsilon(noise_multiplier, sample_rate, steps, delta)


def noise_multiplier(target_epsilon: float, target_delta: float, sample_rate: float, steps: int) -> float:
    """The noise that a run needs for a target (ε, δ); never too little.

    Args:
        target_epsilon: ε.
        target_delta: δ.
        sample_rate: Probability with which each record enters a step.
        steps: Optimizer steps.

    Raises:
        InvalidRequest: If an argument is out of range, or no noise reaches the target.
    """
    return _internal.noise_multiplier(target_epsilon, target_delta, sample_rate, steps)
