"""The price of a run, before anything is spent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bastionai.display import html_table, text_table
from bastionai.ledger_types import Charge


@dataclass(frozen=True)
class Quote:
    """What a run would cost and how it would train. Binding until it expires.

    Attributes:
        run_digest: Names the run exactly: graph, weights, hyper-parameters, noise, datasets, server.
        steps: Optimizer steps.
        batch_size: Expected number of units per step, over all datasets; records, where these are the unit.
        sample_rate: Probability with which each unit enters a step.
        noise_multiplier: Noise of the gradient, in units of ``max_grad_norm``.
        loss_noise_multiplier: Noise of the released loss; 0 when none is released.
        declared_size: Declared units over all datasets; records, where these are the unit.
        physical_batch_size: Rows computed at once.
        micro_batches: Physical batches per step.
        memory_bytes: Estimate for the trainer.
        expected_seconds: Of the run once it has its slot, by the server's estimate (graph, plan and the speed of
            its machine; never data); None if it could not measure its machine.
        trainable_parameters: Scalars trained.
        kept_bytes: Of the weights kept besides the last, iterates and averages; 0 when none are.
        bands: Steps over which the noise is correlated; 1: independent noise.
        noise_ratio: Noise in the weights over that of independent noise at the same price, by the server's measure
            (root mean square over the steps); 1 without bands.
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
    expected_seconds: float | None
    kept_bytes: int
    bands: int
    noise_ratio: float
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
            document["expected_seconds"],
            document["kept_bytes"],
            document["spec"]["bands"]["fixed"],
            document["noise_ratio"],
            document,
        )

    @property
    def affordable(self) -> bool:
        """Whether every dataset's budget covers its charge."""
        return all(charge.affordable for charge in self.charges)

    @property
    def noise_mode(self) -> str:
        """``"standard"`` or ``"hardened"``: what the sensitivity of a step's sum rests on."""
        return str(self.document["spec"]["noise_mode"])

    @property
    def noise_slack(self) -> float:
        """Most noise beyond ``noise_multiplier * max_grad_norm``, over it, that rounding costs; 0 if hardened."""
        return float(self.document["noise_slack"])

    @property
    def expected_minutes(self) -> float | None:
        """The same in minutes."""
        return None if self.expected_seconds is None else self.expected_seconds / 60

    def __str__(self) -> str:
        charges = text_table(_CHARGE_HEADER, [_charge_row(charge) for charge in self.charges])
        warnings = text_table((), [("warning:", warning) for warning in self.warnings])
        both = [text_table(_BOTH_HEADER, self._both()), ""] if self._both() else []
        return "\n".join([text_table((), self._facts()), "", charges, "", *both, warnings]).rstrip()

    def _both(self) -> list[tuple[str, ...]]:
        rows = (_both_row(charge) for charge in self.charges)
        return [row for row in rows if row is not None]

    def _facts(self) -> list[tuple[str, str]]:
        kept = [("weights kept on the way", f"{self.kept_bytes / 2**20:.1f} MiB")] if self.kept_bytes else []
        band = f"{self.bands} steps: {self.noise_ratio:.0%} of independent noise"
        correlated = [("noise correlated over", band)] if self.bands > 1 else []
        return [
            ("run", f"{self.run_digest[:16]}…"),
            ("steps", f"{self.steps}"),
            ("expected batch", f"{self.batch_size}"),
            ("sample rate q", f"{self.sample_rate:.4g}"),
            ("noise multiplier σ", f"{self.noise_multiplier:.4g}"),
            *correlated,
            ("noise mode", _noise_mode(self.noise_mode, self.noise_slack)),
            ("trainable parameters", f"{self.trainable_parameters}"),
            ("memory", f"{self.memory_bytes / 2**20:.0f} MiB"),
            ("expected time", _time(self.expected_seconds)),
            *kept,
        ]

    def _repr_html_(self) -> str:
        facts = [*self._facts(), *(("warning", warning) for warning in self.warnings)]
        charges = html_table("", _CHARGE_HEADER, [_charge_row(charge) for charge in self.charges])
        both = html_table("Both currencies", _BOTH_HEADER, self._both()) if self._both() else ""
        return html_table("Price of the run", (), facts) + charges + both


_CHARGE_HEADER = ("dataset", "ε", "δ", "ε left before", "ε left after", "protected")


def _charge_row(charge: Charge) -> tuple[str, ...]:
    left = charge.epsilon_left()
    if left is None:
        return (charge.dataset_name, "0", "0", "no budget needed", "", charge.privacy_unit)
    after = f"{left[1]}" if charge.affordable else "does not suffice"
    cost = (f"{charge.cost.epsilon}", f"{charge.cost.delta}")
    return (charge.dataset_name, *cost, f"{left[0]}", after, charge.privacy_unit)


_BOTH_HEADER = ("dataset", "rule that decides", "ε left after, by sums", "ε left after, by Rényi divergences")


def _both_row(charge: Charge) -> tuple[str, ...] | None:
    """What is left in both currencies."""
    before, price = charge.budget_before, charge.renyi
    if before is None or price is None:
        return None
    lefts = (before.remaining.epsilon - charge.cost.epsilon, before.lifetime.epsilon - price.epsilon_after)
    shown = (f"{left}" if left >= 0 else "does not suffice" for left in lefts)
    return (charge.dataset_name, "Rényi divergences" if charge.by_renyi else "sums", *shown)


def _noise_mode(name: str, slack: float) -> str:
    cost = f"rounding adds at most {100 * slack:.0f}% of noise" if slack else "sensitivity is the clipping norm exactly"
    return f"{name}: {cost}"


def _time(seconds: float | None) -> str:
    """An estimate deserves no decimals."""
    if seconds is None:
        return "not known: the server could not measure its machine"
    amount = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    return f"about {amount}, once it has its slot"
