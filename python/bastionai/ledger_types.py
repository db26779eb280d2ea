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
class Charge:
    """What a run costs one dataset.

    Attributes:
        dataset_id: The dataset.
        dataset_name: Its name.
        cost: Exact, rounded up.
        budget_before: Before this charge; None for datasets without a budget.
        affordable: Whether the budget covers it.
    """

    dataset_id: str
    dataset_name: str
    cost: Amount
    budget_before: Budget | None
    affordable: bool

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Charge:
        """From the server's answer."""
        return cls(
            document["dataset_id"],
            document["dataset_name"],
            Amount.parse(document["cost"]),
            Budget.parse(document["budget_before"]),
            document["affordable"],
        )


def shown(value: Decimal) -> str:
    """A decimal for people: up to four significant digits."""
    number = float(value)
    return f"{number:.4g}"
