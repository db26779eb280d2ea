"""The accountants, from Python: near dp_accounting's and never below what is exact; calibration never overshoots."""

from __future__ import annotations

import itertools
import math
import random
from decimal import Decimal

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from dp_accounting.pld import privacy_loss_distribution
from scipy.linalg import toeplitz

from bastionai import BudgetExceeded, InvalidRequest, privacy

RUNS = [(1.0, 0.01, 100, 1e-5), (0.7, 0.1, 50, 1e-6), (3.0, 1.0, 10, 1e-5), (2.5, 0.125, 120, 1e-5)]


def tolerance(reference: float) -> float:
    """What an ε may be off a reference."""
    return max(1e-4, 1e-3 * reference)


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), RUNS)
def test_epsilon_agrees_with_dp_accounting(noise, rate, steps, delta):
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    reference = pld.PLDAccountant().compose(step, steps).get_epsilon(delta)
    assert privacy.epsilon(noise, rate, steps, delta) == pytest.approx(reference, rel=1e-2)
    back = privacy.delta(noise, rate, steps, privacy.epsilon(noise, rate, steps, delta))
    assert 0.97 * delta <= back <= 1.01 * delta


def interval(noise: float, rate: float) -> float:
    """A hundredth of the standard deviation of a step's loss: fine enough for dp_accounting to be a reference."""
    deviation = rate * math.sqrt(math.expm1(1 / noise**2))
    return min(max(deviation / 100, 1e-6), 1e-2)


def test_rows_drawn_at_random_agree_with_dp_accounting_on_a_fine_grid():
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for _ in range(8):
        noise, rate = draw.uniform(0.6, 5.0), 10 ** draw.uniform(-3, -0.3)
        steps, delta = int(10 ** draw.uniform(0, 3.5)), 10 ** draw.uniform(-9, -3)
        reference = (
            privacy_loss_distribution.from_gaussian_mechanism(
                noise, sampling_prob=rate, value_discretization_interval=interval(noise, rate)
            )
            .self_compose(steps)
            .get_epsilon_for_delta(delta)
        )
        ours = privacy.epsilon(noise, rate, steps, delta)
        row = (seed, noise, rate, steps, delta, ours, reference)
        assert abs(ours - reference) <= tolerance(reference), row
        below = privacy.dp_sgd(noise, rate, steps).epsilon_lower_bound(delta)
        assert below <= min(ours, reference + 1e-9), row


def test_compositions_drawn_at_random_agree_with_dp_accounting_on_a_fine_grid():
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for _ in range(5):
        scale, count = draw.uniform(2.0, 30.0), draw.randrange(1, 20)
        noise, rate, steps = draw.uniform(0.8, 3.0), draw.uniform(0.005, 0.1), draw.randrange(1, 500)
        delta = 10 ** draw.uniform(-8, -4)
        grid = min(interval(noise, rate), 1 / scale / 200)
        theirs = privacy_loss_distribution.from_laplace_mechanism(
            scale, value_discretization_interval=grid
        ).self_compose(count)
        theirs = theirs.compose(
            privacy_loss_distribution.from_gaussian_mechanism(
                noise, sampling_prob=rate, value_discretization_interval=grid
            ).self_compose(steps)
        )
        event = privacy.Composed(
            [privacy.dp_sgd(noise, rate, steps), privacy.SelfComposed(privacy.Laplace(scale), count)]
        )
        reference, ours = theirs.get_epsilon_for_delta(delta), event.epsilon(delta)
        row = (seed, scale, count, noise, rate, steps, delta, ours, reference)
        assert abs(ours - reference) <= tolerance(reference), row


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), RUNS)
def test_the_rdp_accountant_is_dp_accountings_where_its_best_order_is_whole(noise, rate, steps, delta):
    orders = [float(order) for order in range(2, 64)]
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    theirs = rdp.RdpAccountant(orders).compose(step, steps).get_epsilon(delta)
    ours = privacy.epsilon(noise, rate, steps, delta, accountant="rdp")
    assert privacy.epsilon(noise, rate, steps, delta) <= ours <= theirs * (1 + 1e-9)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), RUNS)
def test_calibration_meets_its_target_and_does_not_overshoot(noise, rate, steps, delta, accountant):
    def cost(noise, rate, steps):
        return privacy.epsilon(noise, rate, steps, delta, accountant=accountant)

    target = cost(noise, rate, steps)
    found = privacy.noise_multiplier(target, delta, rate, steps, accountant=accountant)
    assert found == pytest.approx(noise, rel=1e-2)
    assert cost(found, rate, steps) <= target
    found = privacy.sample_rate(target, delta, noise, steps, accountant=accountant)
    assert found == pytest.approx(rate, rel=1e-2)
    assert cost(noise, found, steps) <= target
    found = privacy.steps(target, delta, noise, rate, accountant=accountant)
    assert found == pytest.approx(steps, rel=1e-2)
    assert cost(noise, rate, found) <= target < cost(noise, rate, found + 1)


def test_a_profile_is_composed_once_and_agrees_with_its_points():
    event = privacy.dp_sgd(1.0, 0.01, 2000)
    profile = event.profile(smallest_delta=1e-9)
    for delta in (1e-9, 1e-6, 1e-3, 0.1):
        assert profile.epsilon(delta) == pytest.approx(event.epsilon(delta), rel=1e-3, abs=1e-4)
    assert profile.delta(profile.epsilon(1e-5)) == pytest.approx(1e-5, rel=1e-2)
    points = profile.points(30)
    assert len(points) == 30
    assert all(a[0] <= b[0] and a[1] > b[1] for a, b in itertools.pairwise(points))
    assert "PrivacyProfile(" in repr(profile)


def test_notebooks_show_a_profile_as_a_plot():
    picture = privacy.dp_sgd(1.0, 0.1, 10).profile()._repr_html_()
    assert picture.startswith("<svg")
    assert "polyline" in picture
    assert "1e-10" in picture
    assert "no finite point" in privacy.NonPrivate().profile()._repr_html_()


def test_events_describe_mechanisms_and_price_them():
    assert privacy.NoOp().epsilon(1e-5) == 0
    assert privacy.NonPrivate().epsilon(1e-5) == math.inf
    assert privacy.Laplace(2.0).epsilon(1e-9) == pytest.approx(0.5, abs=1e-8)
    assert privacy.Histograms(4, 6.0).epsilon(1e-6) == pytest.approx(privacy.Gaussian(3.0).epsilon(1e-6))
    cut = privacy.TruncatedSubsampledGaussian(4096, 0.0625, 310, 1.0)
    assert cut.epsilon(1e-6) > privacy.epsilon(1.0, 0.0625, 1, 1e-6)
    both = privacy.PoissonSampled(0.1, privacy.Composed([privacy.Gaussian(2.0), privacy.Gaussian(2.0)]))
    assert both.epsilon(1e-5) == pytest.approx(privacy.epsilon(math.sqrt(2), 0.1, 1, 1e-5))


def account_of(gaussians: int, noise: float, orders: list[float]) -> float:
    """ε of equal Gaussians by Canonne, Kamath and Steinke 2020, proposition 12, δ = 1e-5 split evenly over orders."""
    share = 1e-5 / len(orders)
    return min(
        gaussians * a / (2 * noise**2) + math.log(1 - 1 / a) - (math.log(share) + math.log(a)) / (a - 1) for a in orders
    )


@pytest.mark.parametrize("orders", [[8.0], [4.0, 8.0, 16.0]])
def test_a_filter_admits_as_many_as_its_orders_allow_and_not_one_more(orders):
    account = privacy.RenyiFilter(3.0, 1e-5, orders=orders)
    event, spent = privacy.Gaussian(10.0), 0
    while account.admits(event):
        account.spend(event)
        spent += 1
        assert float(account.epsilon) == pytest.approx(account_of(spent, 10.0, orders), abs=1e-6)
    assert account_of(spent, 10.0, orders) <= 3.0 < account_of(spent + 1, 10.0, orders)
    left = account.epsilon
    with pytest.raises(BudgetExceeded, match=r"does not fit: \d"):
        account.spend(event)
    assert account.epsilon == left, "refused, and nothing counted"
    account.spend(privacy.NoOp())


def test_an_odometer_reads_more_than_was_spent_and_rises_by_its_rungs():
    account = privacy.RenyiFilter(4.0, 1e-6)
    readings = [account.reading]
    while account.admits(privacy.Gaussian(30.0)):
        account.spend(privacy.Gaussian(30.0))
        readings.append(account.reading)
    assert readings[0] == Decimal("0.5")
    rungs = sorted(set(readings))
    assert rungs == [Decimal(rung) for rung in ("0.5", "1", "2", "4", "8")][: len(rungs)]
    assert len(rungs) > 2
    assert readings == sorted(readings)
    exact = privacy.Gaussian(30.0 / math.sqrt(len(readings) - 1)).epsilon(1e-6)
    assert exact <= float(account.epsilon) <= readings[-1]


def test_a_filter_that_can_admit_nothing_is_refused_and_so_is_what_has_no_divergence():
    for epsilon, delta, orders in ((0.001, 1e-9, None), (1.0, 1e-5, [0.5]), (1.0, 1e-5, {4: 0}), (-1.0, 1e-5, None)):
        with pytest.raises(InvalidRequest):
            privacy.RenyiFilter(epsilon, delta, orders=orders)
    account = privacy.RenyiFilter(1.0, 1e-5)
    assert not account.admits(privacy.NonPrivate())
    with pytest.raises(InvalidRequest):
        account.spend(privacy.PoissonSampled(0.5, privacy.PoissonSampled(0.5, privacy.Gaussian(1.0))))


def test_a_planned_band_leaves_less_noise_and_its_event_meets_the_target():
    plan = privacy.plan_bands(8.0, 1e-5, 10_000, 100, epochs=4)
    assert 1 < plan.bands <= 100
    assert plan.noise_ratio < 0.98
    assert plan.noise_multiplier > plan.plain_noise_multiplier
    assert plan.plain_noise_multiplier == pytest.approx(privacy.noise_multiplier(8.0, 1e-5, 0.01, 400), rel=1e-4)
    assert plan.event.epsilon(1e-5) == pytest.approx(8.0, rel=1e-3)
    assert plan.event.epsilon(1e-5) <= 8.0
    # ceil(400 / b) turns at b times the rate: what dp-accounting prices as plain DP-SGD.
    turns, rate = -(-400 // plan.bands), plan.bands * 0.01
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(plan.noise_multiplier))
    assert pld.PLDAccountant().compose(step, turns).get_epsilon(1e-5) == pytest.approx(8.0, rel=1e-2)


def dense_ratio(plan: privacy.BandPlan, steps: int, momentum: float) -> float:
    """Noise in the weights by dense matrices, with unrounded coefficients, over that of independent noise."""
    lags = np.arange(steps)
    workload = toeplitz(np.cumsum(momentum**lags), np.zeros(steps))
    # The square root of 1/((1-x)(1-mx)): the coefficients of 1/sqrt(1-x) convolved with those of 1/sqrt(1-mx).
    root = np.array([math.comb(2 * j, j) / 4.0**j for j in range(plan.bands)])
    band = np.zeros(steps)
    band[: plan.bands] = np.convolve(root, root * momentum ** lags[: plan.bands])[: plan.bands]
    spread = workload @ np.linalg.inv(toeplitz(band, np.zeros(steps)))
    ours = plan.noise_multiplier * np.linalg.norm(band) * np.linalg.norm(spread)
    return float(ours / (plan.plain_noise_multiplier * np.linalg.norm(workload)))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("bands", [None, 4])
def test_the_share_of_the_noise_that_is_left_is_that_of_dense_matrices(bands, momentum):
    plan = privacy.plan_bands(6.0, 1e-5, 6400, 64, steps=200, momentum=momentum, bands=bands)
    assert plan.bands == (bands or plan.bands)
    assert plan.noise_ratio == pytest.approx(dense_ratio(plan, 200, momentum), rel=1e-3)


def test_a_chosen_band_is_never_worse_than_none_and_a_given_one_may_be():
    many_epochs = {"target_epsilon": 0.5, "target_delta": 1e-6, "dataset_size": 2000, "batch_size": 200, "epochs": 60}
    plan = privacy.plan_bands(**many_epochs)
    assert (plan.bands, plan.noise_ratio) == (1, 1.0)
    assert plan.event.epsilon(1e-6) <= 0.5
    assert privacy.plan_bands(**many_epochs, bands=8).noise_ratio > 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"steps": 10, "epochs": 1.0},
        {"epochs": -1.0},
        {"epochs": math.nan},
        {"steps": 10, "bands": 0},
        {"steps": 10, "bands": 11},
        {"steps": 10, "momentum": 1.0},
        {"steps": 10, "decay": 2.0},
    ],
)
def test_senseless_bands_are_refused(wrong):
    with pytest.raises(InvalidRequest):
        privacy.plan_bands(1.0, 1e-5, 1000, 10, **wrong)


def test_what_no_proof_covers_is_refused_with_a_reason():
    unproven = privacy.PoissonSampled(0.1, privacy.Composed([privacy.Gaussian(2.0), privacy.Laplace(2.0)]))
    with pytest.raises(InvalidRequest, match="Laplace"):
        unproven.epsilon(1e-5)
    with pytest.raises(InvalidRequest, match="replace_one"):
        privacy.epsilon(1.0, 0.1, 10, 1e-5, relation="replace_one")
    with pytest.raises(InvalidRequest, match="prv"):
        privacy.epsilon(1.0, 0.1, 10, 1e-5, accountant="prv")
    with pytest.raises(InvalidRequest, match="number of steps"):
        privacy.steps(0.01, 1e-9, 0.5, 0.5)


@pytest.mark.parametrize("arguments", [(-1.0, 0.1, 10, 1e-5), (1.0, 1.5, 10, 1e-5), (1.0, 0.1, 10, 2.0)])
def test_senseless_arguments_are_refused(arguments):
    with pytest.raises(InvalidRequest):
        privacy.epsilon(*arguments)
