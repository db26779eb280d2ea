"""The accountant, from Python: never below dp_accounting's, and calibration never overshoots."""

from __future__ import annotations

import dp_accounting
import pytest
from dp_accounting import pld

from bastionai import InvalidRequest, privacy

RUNS = [(1.0, 0.01, 100, 1e-5), (0.7, 0.1, 50, 1e-6), (3.0, 1.0, 10, 1e-5), (2.5, 0.125, 120, 1e-5)]


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), RUNS)
def test_epsilon_agrees_with_dp_accounting(noise, rate, steps, delta):
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    reference = pld.PLDAccountant().compose(step, steps).get_epsilon(delta)
    assert privacy.epsilon(noise, rate, steps, delta) == pytest.approx(reference, rel=1e-2)


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), RUNS)
def test_calibration_meets_its_target_and_does_not_overshoot(noise, rate, steps, delta):
    target = privacy.epsilon(noise, rate, steps, delta)
    found = privacy.noise_multiplier(target, delta, rate, steps)
    assert found == pytest.approx(noise, rel=1e-2)
    assert privacy.epsilon(found, rate, steps, delta) <= target


@pytest.mark.parametrize("arguments", [(-1.0, 0.1, 10, 1e-5), (1.0, 1.5, 10, 1e-5), (1.0, 0.1, 10, 2.0)])
def test_senseless_arguments_are_refused(arguments):
    with pytest.raises(InvalidRequest):
        privacy.epsilon(*arguments)
