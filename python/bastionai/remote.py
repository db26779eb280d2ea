"""A dataset at the server: its contract, its terms, what is left of its budget. Never a row."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from bastionai.contract import DataContract, describe, describe_unit
from bastionai.display import html_table
from bastionai.ledger_types import Budget, RenyiBudget, shown


@dataclass(frozen=True)
class RemoteDataset:
    """What everyone may know about a dataset.

    Attributes:
        id: Set by the server.
        name: Unique on the server.
        kind: ``private``, ``public`` or ``synthetic``.
        owner: Principal of who uploaded it.
        contract: What a record looks like.
        policy: The owner's terms, as the server keeps them.
        budget: At the time of listing; None unless private.
        trainable: Whether you may train on it now.
        evaluable: Whether you may evaluate models on it now.
        state: ``offered``, ``withdrawn`` or ``removed``; only its owner sees it in the last two.
        renyi_budget: Of a dataset whose runs add up in Rényi divergences: this counts; ``budget`` is shown beside it.
        test: The held-out dataset that was uploaded with it; None when it was listed or had none.
    """

    id: str
    name: str
    kind: str
    owner: str
    contract: DataContract
    policy: dict[str, Any]
    budget: Budget | None
    trainable: bool
    evaluable: bool
    state: str = "offered"
    test: RemoteDataset | None = None
    renyi_budget: RenyiBudget | None = None

    @property
    def evaluation_only(self) -> bool:
        """Whether it is held out: nobody may train on it."""
        return bool(self.policy["evaluation_only"])

    @classmethod
    def parse(cls, document: dict[str, Any]) -> RemoteDataset:
        """From the server's answer."""
        return cls(
            document["id"],
            document["name"],
            document["kind"],
            document["owner"],
            DataContract.from_json(json.dumps(document["contract"])),
            document["policy"],
            Budget.parse(document["budget"]),
            document["trainable_by_caller"],
            document["evaluable_by_caller"],
            document["state"],
            renyi_budget=RenyiBudget.parse(document["renyi_budget"]),
        )

    def __repr__(self) -> str:
        lines = [f"RemoteDataset({self.name!r}, {self.kind}, size class {self.contract.declared_size})"]
        lines += [f"  {key}: {value}" for key, value in self._facts()]
        return "\n".join(lines + [f"  {describe(column)}" for column in self.contract.columns])

    def _facts(self) -> list[tuple[str, str]]:
        may = ("you may evaluate", self.evaluable) if self.evaluation_only else ("you may train", self.trainable)
        facts = [("owner", f"{self.owner[:16]}…"), (may[0], "yes" if may[1] else "no")]
        if self.evaluation_only:
            facts.append(("held out", "for evaluation only"))
        if self.policy["require_hardened"]:
            facts.append(("noise mode", "hardened required"))
        if self.contract.privacy_unit is not None:
            facts.append(("protected", describe_unit(self.contract.privacy_unit)))
        if self.state != "offered":
            facts.append(("state", self.state))
        if self.budget is not None:
            left, whole = self.budget.remaining, self.budget.lifetime
            text = f"ε {shown(left.epsilon)} of {shown(whole.epsilon)}, δ {shown(left.delta)}"
            if self.renyi_budget is not None:
                rest = self.renyi_budget.remaining_epsilon
                text = f"ε {shown(rest)} of {shown(whole.epsilon)} at δ {shown(whole.delta)}, by Rényi divergences"
            facts.append(("budget left", text))
        return facts

    def _repr_html_(self) -> str:
        rows = [*self._facts(), *(tuple(describe(c).split(": ", 1)) for c in self.contract.columns)]
        return html_table(f"{self.name} · {self.kind} · size class {self.contract.declared_size}", (), rows)
