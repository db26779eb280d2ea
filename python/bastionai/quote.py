"""The price of a run, before anything is spent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bastionai.display import html_table
from bastionai.ledger_types import Charge, shown


@dataclass(frozen=True)
class Quote:
    """What a run would cost and how it would train. Binding until it expires.

    Attributes:
        run_digest: Names the run exactly: graph, weights, hyper-parameters, noise, datasets, server.
        steps: Optimizer steps.
        batch_size: Expected number of records per step, over all datasets.
        sample_rate: Probability with which each record enters a step.
        noise_multiplier: Noise of the gradient, in units of ``max_grad_norm``.
        loss_noise_multiplier: Noise of the released loss; 0 when none is released.
        declared_size: Declared records over all datasets.
        physical_batch_size: Rows computed at once.
        micro_batches: Physical batches per step.
        memory_bytes: Estimate for the trainer.
        trainable_parameters: Scalars trained.
        charges: What it costs each dataset.
        expires_unix_ms: Server's clock.
        warnings: What you should reconsider.
        document: The server's answer in full.
    """

    run_digest: str
    steps: int
    batch_size: int
    sample_rate: float
    noise_multiplier: float
    loss_noise_multiplier: float
    declared_size: int
    physical_batch_size: int
    micro_batches: int
    memory_bytes: int
    trainable_parameters: int
    charges: list[Charge]
    expires_unix_ms: int
    warnings: list[str]
    document: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Quote:
        """From the server's answer."""
        return cls(
            document["run_digest"],
            document["spec"]["steps"],
            document["spec"]["batch_size"],
            document["sample_rate"],
            document["noise_multiplier"],
            document["loss_noise_multiplier"],
            document["declared_size"],
            document["physical_batch_size"],
            document["micro_batches"],
            document["memory_bytes"],
            document["trainable_parameters"],
            [Charge.parse(charge) for charge in document["charges"]],
            document["expires_unix_ms"],
            list(document["warnings"]),
            document,
        )

    @property
    def affordable(self) -> bool:
        """Whether every dataset's budget covers its charge."""
        return all(charge.affordable for charge in self.charges)

    def __str__(self) -> str:
        lines = [f"{key:<20} {value}" for key, value in self._facts()]
        lines += [f"{charge.dataset_name:<20} {_charge_text(charge)}" for charge in self.charges]
        return "\n".join(lines + [f"warning: {warning}" for warning in self.warnings])

    def _facts(self) -> list[tuple[str, str]]:
        return [
            ("run", f"{self.run_digest[:16]}…"),
            ("steps × batch", f"{self.steps} × {self.batch_size} (rate {self.sample_rate:.4g})"),
            ("noise multiplier", f"{self.noise_multiplier:.4g}"),
            ("parameters", f"{self.trainable_parameters}"),
            ("trainer memory", f"{self.memory_bytes / 2**20:.0f} MiB"),
        ]

    def _repr_html_(self) -> str:
        rows = [*self._facts(), *((charge.dataset_name, _charge_text(charge)) for charge in self.charges)]
        return html_table("Price of the run", (), [*rows, *(("warning", warning) for warning in self.warnings)])


def _charge_text(charge: Charge) -> str:
    if charge.budget_before is None:
        return "no budget needed"
    left = f"{'' if charge.affordable else 'only '}{shown(charge.budget_before.remaining.epsilon)} left"
    return f"ε {shown(charge.cost.epsilon)}, δ {shown(charge.cost.delta)} ({left})"
