"""Writes `crates/privacy/tests/data/truncated_reference.csv` with dp-accounting (0.6.0).

    .venv/bin/python scripts/truncated_reference.py > crates/privacy/tests/data/truncated_reference.csv

`uncut`: the Poisson-sampled Gaussian without a cap. `exchange`: dp-accounting's own mixture, by `compute_mixture`, of
its add-or-remove-one losses at l2_sensitivity 1 and 2, which is the pair that `crates/privacy/src/truncation.rs`
proves dominating. `published`: `from_truncated_subsampled_gaussian_mechanism`, whose second part is replace-one at the
conditional probability. All three are connect-the-dots upper bounds at a fiftieth of a step's standard deviation.
"""

import math

from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy import stats

# dataset size, expected batch, standard deviations of the cap, noise multiplier, steps, delta
CASES = [
    (n, batch, deviations, noise, steps, delta)
    for n, batch, noise, steps, delta in [
        (60000, 256, 1.0, 1000, 1e-5),
        (60000, 256, 0.6, 300, 1e-6),
        (60000, 256, 4.0, 3000, 1e-5),
        (4096, 32, 1.0, 200, 1e-5),
        (4096, 32, 2.0, 2000, 1e-6),
        (6144, 512, 1.5, 100, 1e-7),
        (512, 128, 3.0, 50, 1e-5),
        (192, 64, 1.2, 1, 1e-5),
        (40, 20, 2.0, 10, 1e-4),
    ]
    for deviations in (0.5, 3.0, 4.0, 5.0)
]


def interval(probability: float, noise: float) -> float:
    """A fiftieth of the standard deviation of a step's loss, about."""
    return max(probability * math.sqrt(math.expm1(1 / noise**2)) / 50, 2e-6)


def sampled(probability: float, noise: float, spacing: float) -> pld.PrivacyLossDistribution:
    return pld.from_gaussian_mechanism(
        standard_deviation=noise,
        sampling_prob=probability,
        value_discretization_interval=spacing,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )


def main() -> None:
    print("dataset_size,sampling_probability,cap,noise_multiplier,steps,delta,uncut,exchange,published")
    for n, batch, deviations, noise, steps, delta in CASES:
        probability = batch / n
        cap = min(n, round(batch + deviations * math.sqrt(batch * (1 - probability))))
        spacing = interval(probability, noise)
        whole = sampled(probability, noise, spacing)
        full = stats.binom.sf(cap - 1, n - 1, probability)
        exchange = whole
        if full > 0:
            exchange = sampled(probability, noise / 2, spacing).compute_mixture(whole, full)
        published = pld.from_truncated_subsampled_gaussian_mechanism(
            n, probability, cap, noise, value_discretization_interval=spacing
        )
        costs = [loss.self_compose(steps).get_epsilon_for_delta(delta) for loss in (whole, exchange, published)]
        numbers = (n, probability, cap, noise, steps, delta, *costs)
        print(",".join(repr(float(x)) if isinstance(x, float) else str(x) for x in numbers), flush=True)


if __name__ == "__main__":
    main()
