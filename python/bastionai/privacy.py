"""Privacy of mechanisms without a server: ε, δ, profiles and calibration, by the accountant that servers charge with.

    >>> from bastionai import privacy
    >>> round(privacy.epsilon(noise_multiplier=1.0, sample_rate=0.01, steps=10_000, delta=1e-5), 3)
    6.188
    >>> release = privacy.Composed([privacy.dp_sgd(1.0, 0.01, 1000), privacy.Laplace(10.0)])
    >>> release.epsilon(delta=1e-5) > privacy.epsilon(1.0, 0.01, 1000, 1e-5)
    True

Every ε and δ is an upper bound, for adding or removing one unit.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

from bastionai import _internal
from bastionai.display import svg_curve
from bastionai.exceptions import BudgetExceeded, InvalidRequest
from bastionai.policy import RenyiOrders, decimal

#: By privacy loss distributions (tight), or by Rényi divergences (what most papers report).
Accountant = Literal["pld", "rdp"]
#: The neighbouring relation that has prices. Others are refused.
Relation = Literal["add_or_remove_one"]


class Event:
    """A mechanism, fully described. Composed and sampled freely; what no proof covers is refused when it is priced."""

    def epsilon(
        self, delta: float, *, accountant: Accountant = "pld", relation: Relation = "add_or_remove_one"
    ) -> float:
        """The smallest ε proven at δ; ``inf`` where nothing protects.

        Args:
            delta: δ.
            accountant: How it is computed.
            relation: Which datasets are neighbours.

        Raises:
            InvalidRequest: If a parameter is out of range, or no proof covers the mechanism.
        """
        return _internal.event_epsilon(self.to_json(), delta, relation, accountant)

    def epsilon_lower_bound(self, delta: float, *, relation: Relation = "add_or_remove_one") -> float:
        """An ε that certainly does not suffice at δ: how tight :meth:`epsilon` is.

        Args:
            delta: δ.
            relation: Which datasets are neighbours.

        Raises:
            InvalidRequest: If a parameter is out of range, or no proof covers the mechanism.
        """
        return _internal.event_epsilon_lower_bound(self.to_json(), delta, relation)

    def delta(
        self, epsilon: float, *, accountant: Accountant = "pld", relation: Relation = "add_or_remove_one"
    ) -> float:
        """The smallest δ proven at ε.

        Args:
            epsilon: ε.
            accountant: How it is computed.
            relation: Which datasets are neighbours.

        Raises:
            InvalidRequest: If a parameter is out of range, or no proof covers the mechanism.
        """
        return _internal.event_delta(self.to_json(), epsilon, relation, accountant)

    def profile(self, smallest_delta: float = 1e-10) -> PrivacyProfile:
        """The whole curve; see :class:`PrivacyProfile`."""
        return PrivacyProfile(self, smallest_delta)

    def to_json(self) -> str:
        """As ledgers and receipts show it."""
        return json.dumps(self._form())

    def _form(self) -> Any:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {_NAMES[type(self)]: {name: _form_of(value) for name, value in fields.items()}}


def _form_of(value: Any) -> Any:
    if isinstance(value, Event):
        return value._form()
    if isinstance(value, list | tuple):
        return [_form_of(one) for one in value]
    return value


@dataclasses.dataclass(frozen=True)
class NoOp(Event):
    """Nothing is released."""

    def _form(self) -> Any:
        return "no_op"


@dataclasses.dataclass(frozen=True)
class NonPrivate(Event):
    """Something is released without protection: ε is infinite."""

    def _form(self) -> Any:
        return "non_private"


@dataclasses.dataclass(frozen=True)
class Gaussian(Event):
    """Gaussian noise.

    Args:
        noise_multiplier: Standard deviation over the L2 sensitivity.
    """

    noise_multiplier: float


@dataclasses.dataclass(frozen=True)
class Laplace(Event):
    """Laplace noise on a number, or on numbers of which one unit moves one at most.

    Args:
        noise_multiplier: Scale over the most that one unit moves it.
    """

    noise_multiplier: float


@dataclasses.dataclass(frozen=True)
class Histograms(Event):
    """Gaussian noise on every count of some histograms, each unit being in one cell of each at most.

    Args:
        histograms: How many a unit is counted in.
        standard_deviation: Of the noise, in counts.
    """

    histograms: int
    standard_deviation: float


@dataclasses.dataclass(frozen=True)
class PoissonSampled(Event):
    """A release from a sample that holds each unit independently.

    Args:
        sampling_probability: Of each unit.
        event: :class:`Gaussian`, several of them, or one :class:`Laplace`.
    """

    sampling_probability: float
    event: Event


@dataclasses.dataclass(frozen=True)
class TruncatedSubsampledGaussian(Event):
    """Gaussian noise on the sum over a Poisson sample that is cut when it is larger than a cap.

    Args:
        dataset_size: Upper bound on the number of units.
        sampling_probability: Of each unit.
        truncated_batch_size: The cap.
        noise_multiplier: Standard deviation over the L2 sensitivity.
    """

    dataset_size: int
    sampling_probability: float
    truncated_batch_size: int
    noise_multiplier: float


@dataclasses.dataclass(frozen=True)
class Banded(Event):
    """Steps that draw from ``bands`` classes of units in turn, their noise correlated over as many: BandMF.

    It costs as much as ``ceil(steps / bands)`` times the event.

    Args:
        bands: Classes, and steps from one turn of a unit to its next.
        steps: Steps of the run.
        event: What a unit takes part in when it has a turn: :class:`PoissonSampled` at ``bands`` times a step's rate.
    """

    bands: int
    steps: int
    event: Event


@dataclasses.dataclass(frozen=True)
class SelfComposed(Event):
    """A mechanism several times.

    Args:
        event: The mechanism.
        count: How many times.
    """

    event: Event
    count: int


@dataclasses.dataclass(frozen=True)
class Composed(Event):
    """Mechanisms one after the other, their parameters fixed beforehand.

    Args:
        events: The mechanisms.
    """

    events: Sequence[Event]


_NAMES: dict[type[Event], str] = {
    Gaussian: "gaussian",
    Laplace: "laplace",
    Histograms: "histograms",
    PoissonSampled: "poisson_sampled",
    TruncatedSubsampledGaussian: "truncated_subsampled_gaussian",
    Banded: "banded",
    SelfComposed: "self_composed",
    Composed: "composed",
}


def dp_sgd(noise_multiplier: float, sample_rate: float, steps: int) -> Event:
    """DP-SGD as an event.

    Args:
        noise_multiplier: Standard deviation of the noise over the clipping norm.
        sample_rate: Probability with which each unit enters a step.
        steps: Optimizer steps.
    """
    return SelfComposed(PoissonSampled(sample_rate, Gaussian(noise_multiplier)), steps)


class PrivacyProfile:
    """ε as a function of δ and the other way round, composed once. Notebooks show it as a plot.

    Args:
        event: The mechanism.
        smallest_delta: Tight for every δ from here up.
        relation: Which datasets are neighbours.

    Raises:
        InvalidRequest: If a parameter is out of range, or no proof covers the mechanism.
    """

    def __init__(
        self, event: Event, smallest_delta: float = 1e-10, *, relation: Relation = "add_or_remove_one"
    ) -> None:
        self.event = event
        self._profile = _internal.PrivacyProfile(event.to_json(), smallest_delta, relation)

    def epsilon(self, delta: float) -> float:
        """The smallest ε proven at δ."""
        return self._profile.epsilon(delta)

    def delta(self, epsilon: float) -> float:
        """The smallest δ proven at ε."""
        return self._profile.delta(epsilon)

    def points(self, count: int = 100) -> list[tuple[float, float]]:
        """Points (ε, δ), δ falling from ½ to the smallest by equal factors.

        Args:
            count: How many.
        """
        return self._profile.points(count)

    def __repr__(self) -> str:
        """The usual point and what it is of."""
        return f"PrivacyProfile({self.event!r}): ε = {self.epsilon(1e-5):.4g} at δ = 1e-5"

    def _repr_html_(self) -> str:
        finite = [point for point in self.points(200) if point[0] != float("inf")]
        return svg_curve("δ by ε", finite)


def epsilon(
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    delta: float,
    *,
    accountant: Accountant = "pld",
    relation: Relation = "add_or_remove_one",
) -> float:
    """ε of a training run.

    Args:
        noise_multiplier: Standard deviation of the noise over the clipping norm.
        sample_rate: Probability with which each record enters a step.
        steps: Optimizer steps.
        delta: δ.
        accountant: How it is computed.
        relation: Which datasets are neighbours.

    Returns:
        ε for adding or removing one record.

    Raises:
        InvalidRequest: If an argument is out of range.
    """
    return dp_sgd(noise_multiplier, sample_rate, steps).epsilon(delta, accountant=accountant, relation=relation)


def delta(
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    epsilon: float,
    *,
    accountant: Accountant = "pld",
    relation: Relation = "add_or_remove_one",
) -> float:
    """δ of a training run.

    Args:
        noise_multiplier: Standard deviation of the noise over the clipping norm.
        sample_rate: Probability with which each record enters a step.
        steps: Optimizer steps.
        epsilon: ε.
        accountant: How it is computed.
        relation: Which datasets are neighbours.

    Raises:
        InvalidRequest: If an argument is out of range.
    """
    return dp_sgd(noise_multiplier, sample_rate, steps).delta(epsilon, accountant=accountant, relation=relation)


def noise_multiplier(
    target_epsilon: float,
    target_delta: float,
    sample_rate: float,
    steps: int,
    *,
    accountant: Accountant = "pld",
) -> float:
    """The noise that a run needs for a target (ε, δ); never too little.

    Args:
        target_epsilon: ε.
        target_delta: δ.
        sample_rate: Probability with which each record enters a step.
        steps: Optimizer steps.
        accountant: How ε is computed.

    Raises:
        InvalidRequest: If an argument is out of range, or no noise reaches the target.
    """
    return _internal.noise_multiplier(target_epsilon, target_delta, sample_rate, steps, accountant)


def sample_rate(
    target_epsilon: float,
    target_delta: float,
    noise_multiplier: float,
    steps: int,
    *,
    accountant: Accountant = "pld",
) -> float:
    """The largest sample rate with which a run meets a target (ε, δ); never too large.

    Args:
        target_epsilon: ε.
        target_delta: δ.
        noise_multiplier: Standard deviation of the noise over the clipping norm.
        steps: Optimizer steps.
        accountant: How ε is computed.

    Raises:
        InvalidRequest: If an argument is out of range, or no rate reaches the target.
    """
    return _internal.sample_rate(target_epsilon, target_delta, noise_multiplier, steps, accountant)


def steps(
    target_epsilon: float,
    target_delta: float,
    noise_multiplier: float,
    sample_rate: float,
    *,
    accountant: Accountant = "pld",
) -> int:
    """The most steps with which a run meets a target (ε, δ); times ``sample_rate``, the most epochs.

    Args:
        target_epsilon: ε.
        target_delta: δ.
        noise_multiplier: Standard deviation of the noise over the clipping norm.
        sample_rate: Probability with which each record enters a step.
        accountant: How ε is computed.

    Raises:
        InvalidRequest: If an argument is out of range, a single step costs too much, or no number of steps does.
    """
    return _internal.steps(target_epsilon, target_delta, noise_multiplier, sample_rate, accountant)


class RenyiFilter:
    """A lifetime (ε, δ) over mechanisms that are chosen in view of earlier outputs: the code by which ledgers decide.

    >>> account = RenyiFilter(3.0, 1e-5)
    >>> while account.admits(Gaussian(20.0)):
    ...     account.spend(Gaussian(20.0))
    >>> account.epsilon <= 3
    True

    Sums of Rényi divergences at fixed orders, exact; δ is split over the orders, since which of them holds depends on
    outputs (docs/privacy.md, Composition). A mechanism is admitted while one order has enough.

    Args:
        epsilon: Lifetime ε.
        delta: Lifetime δ.
        orders: From 1.1 to 1024, rising, or a mapping to their weights in the split of δ; the ledger's own if left out.

    Raises:
        InvalidRequest: If they make no account.
    """

    def __init__(
        self, epsilon: float | str | Decimal, delta: float | str | Decimal, *, orders: RenyiOrders | None = None
    ) -> None:
        self._lifetime = (decimal("epsilon", epsilon), decimal("delta", delta))
        weighted = None
        if orders is not None:
            weights = orders if isinstance(orders, Mapping) else dict.fromkeys(orders, 1)
            weighted = [(decimal("orders", order), weight) for order, weight in weights.items()]
        self._filter = _internal.RenyiFilter(*self._lifetime, weighted)

    def admits(self, event: Event, *, relation: Relation = "add_or_remove_one") -> bool:
        """Whether the mechanism still fits; nothing is spent.

        Raises:
            InvalidRequest: If a parameter is out of range, or no proof covers the mechanism.
        """
        return self._filter.admits(event.to_json(), relation)

    def spend(self, event: Event, *, relation: Relation = "add_or_remove_one") -> None:
        """Counts a mechanism. Do this before it runs.

        Raises:
            BudgetExceeded: If it does not fit; nothing is counted.
            InvalidRequest: If a parameter is out of range, or no proof covers the mechanism.
        """
        if not self._filter.spend(event.to_json(), relation):
            epsilon, delta = self._lifetime
            raise BudgetExceeded(f"{event!r} does not fit: {self.epsilon} of ε = {epsilon} at δ = {delta} is spent")

    @property
    def epsilon(self) -> Decimal:
        """ε that the sums mean at the lifetime's δ. Of an end that was planned; :attr:`reading` holds at any moment."""
        return Decimal(self._filter.epsilon())

    @property
    def reading(self) -> Decimal | None:
        """ε of an odometer with the lifetime's δ, which holds at all times at once (Lécuyer 2021).

        The lifetime's ε times 2, 1, 1/2, 1/4 or 1/8; None beyond.
        """
        text = self._filter.reading()
        return None if text is None else Decimal(text)


@dataclasses.dataclass(frozen=True)
class BandPlan:
    """What noise that is correlated over a band of steps brings a run, before a cap of the sample.

    Attributes:
        bands: Steps over which it is correlated; 1: independent noise is best.
        noise_multiplier: That meets the target, in units of the l2_sensitivity of a unit's turn.
        plain_noise_multiplier: The same for independent noise.
        noise_ratio: Noise in the weights, root mean square over the steps, over that of independent noise; at most 1
            where the band was chosen.
        event: The run as a mechanism.
    """

    bands: int
    noise_multiplier: float
    plain_noise_multiplier: float
    noise_ratio: float
    event: Event


def plan_bands(
    target_epsilon: float,
    target_delta: float,
    dataset_size: int,
    batch_size: int,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    momentum: float = 0.0,
    decay: float = 0.0,
    bands: int | None = None,
    most_bands: int = 1024,
) -> BandPlan:
    """Which band leaves the least noise at (ε, δ), or what a given one leaves: the planner of ``bands="auto"``.

    >>> plan = plan_bands(8.0, 1e-5, dataset_size=50_000, batch_size=500, epochs=2)
    >>> plan.bands > 1 and plan.noise_ratio < 0.8
    True

    Args:
        target_epsilon: ε.
        target_delta: δ.
        dataset_size: Upper bound on the number of units: the declared size.
        batch_size: Expected units of a step.
        steps: Optimizer steps.
        epochs: Instead: passes over the units.
        momentum: Of the optimizer; β₁ of Adam, whose division is left out.
        decay: Share of the weights that a step takes off: lr times a decoupled weight decay.
        bands: A band to judge; chosen if left out.
        most_bands: None wider than this: each but one takes 8 bytes a trainable parameter.

    Raises:
        InvalidRequest: If an argument is out of range, a band too wide, or no noise reaches the target.
    """
    if (steps is None) == (epochs is None):
        raise InvalidRequest("give either steps= or epochs=")
    if steps is None:
        exact = (epochs or 0.0) * dataset_size / max(batch_size, 1)
        if not 0 < exact < 2**53:
            raise InvalidRequest(f"epochs={epochs!r}: expected a number above 0")
        steps = max(1, round(exact))
    found = _internal.plan_bands(
        target_epsilon, target_delta, dataset_size, batch_size, steps, momentum, 1.0 - decay, bands, most_bands
    )
    chosen, noise, plain, ratio, rate = found
    step = PoissonSampled(rate, Gaussian(noise))
    event = Banded(chosen, steps, step) if chosen > 1 else SelfComposed(step, steps)
    return BandPlan(chosen, noise, plain, ratio, event)
