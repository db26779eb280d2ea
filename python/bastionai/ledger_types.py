"""Budgets and charges as the server states them: exact decimals."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any


@dataclass(frozen=True)
class Amount:
    """An (ε, δ) pair.

    Attributes:
        epsilon: ε.
        delta: δ.
    """

    epsilon: Decimal
    delta: Decimal

    @classmethod
    def parse(cls, document: dict[str, str]) -> Amount:
        """From the server's decimal strings."""
        return cls(Decimal(document["epsilon"]), Decimal(document["delta"]))

    def __str__(self) -> str:
        return f"ε={shown(self.epsilon)}, δ={shown(self.delta)}"


@dataclass(frozen=True)
class Budget:
    """A dataset's privacy budget.

    Attributes:
        lifetime: Set by the owner, for ever.
        committed: Spent.
        reserved: Set aside for runs in flight.
        remaining: What is left.
    """

    lifetime: Amount
    committed: Amount
    reserved: Amount
    remaining: Amount

    @classmethod
    def parse(cls, document: dict[str, Any] | None) -> Budget | None:
        """From the server's answer; None for datasets without a budget."""
        if document is None:
            return None
        parts = (Amount.parse(document[name]) for name in ("lifetime", "committed", "reserved", "remaining"))
        return cls(*parts)


@dataclass(frozen=True)
class OrderBudget:
    """One order of an account of Rényi divergences.

    Attributes:
        order: The order.
        budget: What it may spend, in nats; None if it cannot give the lifetime.
        committed: Spent.
        reserved: Set aside for runs in flight.
    """

    order: Decimal
    budget: Decimal | None
    committed: Decimal
    reserved: Decimal


@dataclass(frozen=True)
class RenyiBudget:
    """The account of a dataset whose runs add up in Rényi divergences: a run is admitted while one order has enough.

    Attributes:
        orders: Rising.
        used_epsilon: ε that runs committed and in flight mean together, at the lifetime's δ.
        remaining_epsilon: Lifetime ε less that.
    """

    orders: list[OrderBudget]
    used_epsilon: Decimal
    remaining_epsilon: Decimal

    @classmethod
    def parse(cls, document: dict[str, Any] | None) -> RenyiBudget | None:
        """From the server's answer; None for datasets that compose by sums."""
        if document is None:
            return None
        orders = [
            OrderBudget(
                Decimal(each["order"]),
                None if each["budget"] is None else Decimal(each["budget"]),
                Decimal(each["committed"]),
                Decimal(each["reserved"]),
            )
            for each in document["orders"]
        ]
        return cls(orders, Decimal(document["used_epsilon"]), Decimal(document["remaining_epsilon"]))


@dataclass(frozen=True)
class RenyiPrice:
    """What a run means in Rényi divergences.

    Attributes:
        divergences: Of this run alone, in nats, by order, rounded up; None where there is no bound.
        epsilon_before: ε that all runs so far mean together at the lifetime's δ.
        epsilon_after: The same with this run.
    """

    divergences: dict[Decimal, Decimal | None]
    epsilon_before: Decimal
    epsilon_after: Decimal

    @classmethod
    def parse(cls, document: dict[str, Any] | None) -> RenyiPrice | None:
        """From the server's answer; None for datasets without a budget."""
        if document is None:
            return None
        pairs = zip(document["orders"], document["divergences"], strict=True)
        divergences = {Decimal(order): None if value is None else Decimal(value) for order, value in pairs}
        return cls(divergences, Decimal(document["epsilon_before"]), Decimal(document["epsilon_after"]))


@dataclass(frozen=True)
class Charge:
    """What a run costs one dataset.

    Attributes:
        dataset_id: The dataset.
        dataset_name: Its name.
        cost: Exact, rounded up.
        budget_before: Before this charge; None for datasets without a budget.
        affordable: Whether the budget covers it, by the rule of the dataset's policy.
        by_renyi: Whether sums of Rényi divergences are that rule; else sums of (ε, δ) are.
        renyi: What it means in Rényi divergences, whichever rule decides; None without a budget.
        privacy_unit: What is protected: ``per record, per dataset``, or per unit, and over which datasets of the run.
    """

    dataset_id: str
    dataset_name: str
    cost: Amount
    budget_before: Budget | None
    affordable: bool
    by_renyi: bool = False
    renyi: RenyiPrice | None = None
    privacy_unit: str = ""

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Charge:
        """From the server's answer."""
        return cls(
            document["dataset_id"],
            document["dataset_name"],
            Amount.parse(document["cost"]),
            Budget.parse(document["budget_before"]),
            document["affordable"],
            document["by_renyi"],
            RenyiPrice.parse(document["renyi"]),
            document["privacy_unit"],
        )

    def epsilon_left(self) -> tuple[Decimal, Decimal] | None:
        """ε left before and after it, by the rule that decides; None without a budget. Below 0: it does not suffice."""
        before = self.budget_before
        if before is None:
            return None
        if self.by_renyi and self.renyi is not None:
            whole = before.lifetime.epsilon
            return whole - self.renyi.epsilon_before, whole - self.renyi.epsilon_after
        return before.remaining.epsilon, before.remaining.epsilon - self.cost.epsilon


def shown(value: Decimal) -> str:
    """A decimal for people: up to four significant digits."""
    number = float(value)
    return f"{number:.4g}"
