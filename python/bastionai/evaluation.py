"""Evaluations: what a model is worth on records that nobody may see, with error bars.

One noisy histogram release is paid for; every metric is computed from it, so asking for another metric of the
same histogram costs nothing more. See ``docs/privacy.md`` for what is released and why the error bars hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bastionai.display import html_table
from bastionai.exceptions import InvalidRequest, MissingPackage
from bastionai.ledger_types import Charge, shown
from bastionai.receipt import Receipt

if TYPE_CHECKING:
    import pandas

#: What can be asked for.
METRICS = ("accuracy", "auroc", "f1", "f1_macro", "confusion")
#: Score bins by default: more bins bring the area closer to the exact one, and more noise into it.
SCORE_BINS = 32


def checked_metrics(metrics: Sequence[str] | str) -> list[str]:
    """The metrics asked for, each once.

    Raises:
        InvalidRequest: If one is unknown, or none is given.
    """
    named = [metrics] if isinstance(metrics, str) else list(dict.fromkeys(metrics))
    unknown = [name for name in named if name not in METRICS]
    if unknown or not named:
        raise InvalidRequest(f"metrics={metrics!r}: choose from {', '.join(METRICS)}")
    return named


@dataclass(frozen=True)
class Estimate:
    """A number computed from noisy counts, and how far off it may be.

    Attributes:
        value: The estimate; None where the noise drowns the count that it divides by.
        std_error: Standard error from the noise: the distance to the metric of exactly these records.
        sampling_error: Standard error from the sample: what comes on top when these records stand for a population.
        discretisation: Most that counting scores in bins can move it; 0 where nothing is binned.
        interval: Holds the metric of exactly these records with a probability of about 95%: noise and
            discretisation, not the sampling error.
    """

    value: float | None
    std_error: float | None
    sampling_error: float | None
    discretisation: float
    interval: tuple[float, float]

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Estimate:
        """From the client library's answer."""
        low, high = document["interval"]
        return cls(
            document["value"],
            document["std_error"],
            document["sampling_error"],
            document["discretisation"],
            (low, high),
        )

    def __float__(self) -> float:
        return float("nan") if self.value is None else self.value

    def __str__(self) -> str:
        if self.value is None:
            return "drowned in noise: take a larger eps, or more records"
        digits = 3 if self.value <= 1 else 0
        return f"{self.value:.{digits}f} ± {self.std_error:.{digits}f}"


class Evaluation(Mapping[str, Estimate]):
    """The result of ``learner.test``: metric name → :class:`Estimate`.

    Attributes:
        run_id: Find it again with ``client.run(run_id).evaluation()``.
        records: How many records were counted, noisy: the true number is nobody's to know.
        noise_standard_deviation: Of the noise on each count.
        class_names: Names of the classes, or their numbers.
        confusion: Noisy counts ``[label, predicted]``, which may be negative, or None if they were not asked for.
        unscored: Noisy counts of records without finite scores, by label; None likewise.
        receipt: The signed receipt, checked.
    """

    def __init__(self, document: dict[str, Any], receipt: bytes, class_names: Sequence[str] | None = None) -> None:
        self.run_id: str = document["run"]
        self.records = Estimate.parse(document["records"])
        self.noise_standard_deviation: float = document["noise_standard_deviation"]
        classes = int(document["classes"])
        fits = class_names is not None and len(class_names) == classes
        self.class_names = list(class_names or ()) if fits else [str(each) for each in range(classes)]
        self.confusion: npt.NDArray[np.int64] | None = None
        self.unscored: npt.NDArray[np.int64] | None = None
        if document["confusion"] is not None:
            counts = np.asarray(document["confusion"]["counts"], dtype=np.int64)
            self.confusion, self.unscored = counts[:, :classes], counts[:, classes]
        self.receipt = Receipt(receipt)
        self._estimates = {name: Estimate.parse(each) for name, each in document["metrics"].items()}

    def __getitem__(self, metric: str) -> Estimate:
        if metric not in self._estimates:
            raise KeyError(f"{metric!r} was not asked for; there is {', '.join(self._estimates) or 'no metric'}")
        return self._estimates[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self._estimates)

    def __len__(self) -> int:
        return len(self._estimates)

    def to_frame(self) -> pandas.DataFrame:
        """One row per metric. Needs pandas.

        Raises:
            MissingPackage: If pandas is not installed.
        """
        rows = {
            name: {
                "value": each.value,
                "std_error": each.std_error,
                "low": each.interval[0],
                "high": each.interval[1],
                "sampling_error": each.sampling_error,
                "discretisation": each.discretisation,
            }
            for name, each in self.items()
        }
        return _pandas().DataFrame.from_dict(rows, orient="index")

    def confusion_frame(self) -> pandas.DataFrame:
        """The confusion matrix with the classes' names. Needs pandas.

        Raises:
            InvalidRequest: If it was not asked for.
            MissingPackage: If pandas is not installed.
        """
        if self.confusion is None:
            raise InvalidRequest('the confusion matrix was not asked for: metrics=[..., "confusion"]')
        pd = _pandas()
        labels, predicted = pd.Index(self.class_names, name="label"), pd.Index(self.class_names, name="predicted")
        return pd.DataFrame(self.confusion, index=labels, columns=predicted)

    def _cost(self) -> str:
        return "; ".join(
            f"{each['name']}: ε={each['epsilon']}, δ={each['delta']}" for each in self.receipt.statement["datasets"]
        )

    def _rows(self) -> list[tuple[str, str, str, str]]:
        rows = []
        for name, each in [*self.items(), ("records", self.records)]:
            digits = 0 if name == "records" else 3
            interval = f"{each.interval[0]:.{digits}f} to {each.interval[1]:.{digits}f}"
            sampling = "" if not each.sampling_error else f"± {each.sampling_error:.3f}"
            rows.append((name, str(each), interval, sampling))
        return rows

    def __str__(self) -> str:
        lines = [f"{'':<10} {'with noise':<18} {'95% interval':<18} sample"]
        lines += [
            f"{name:<10} {value:<18} {interval:<18} {sample}".rstrip() for name, value, interval, sample in self._rows()
        ]
        if self.confusion is not None:
            lines.append(f"confusion, each count ± {self.noise_standard_deviation:.1f} (rows: labels):")
            lines += [
                f"  {name}: {list(map(int, row))}" for name, row in zip(self.class_names, self.confusion, strict=True)
            ]
        return "\n".join([*lines, f"cost: {self._cost()}"])

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={each}" for name, each in self.items())
        return f"Evaluation({inner})"

    def _repr_html_(self) -> str:
        table = html_table(
            f"Evaluation {self.run_id}", ("metric", "with noise", "95% interval", "sampling error"), self._rows()
        )
        if self.confusion is not None:
            title = f"Confusion, each count ± {self.noise_standard_deviation:.1f}"
            rows = [[name, *map(int, row)] for name, row in zip(self.class_names, self.confusion, strict=True)]
            table += html_table(title, ("label \\ predicted", *self.class_names), rows)
        return table + html_table("Cost", (), [("charged", self._cost())])


@dataclass(frozen=True)
class EvaluationQuote:
    """What an evaluation would cost. Binding until it expires.

    Attributes:
        run_digest: Names the evaluation exactly: graph, weights, bins, noise, datasets, server.
        classes: Of the model's scores.
        noise_multiplier: Of all histograms as one release.
        noise_standard_deviation: Of the noise on each count.
        declared_size: Declared records over all datasets.
        memory_bytes: Estimate for the trainer.
        charges: What it costs each dataset.
        warnings: What you should reconsider.
        document: The server's answer in full.
    """

    run_digest: str
    classes: int
    noise_multiplier: float
    noise_standard_deviation: float
    declared_size: int
    memory_bytes: int
    charges: list[Charge]
    warnings: list[str]
    document: dict[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, document: dict[str, Any]) -> EvaluationQuote:
        """From the server's answer."""
        return cls(
            document["run_digest"],
            document["classes"],
            document["noise_multiplier"],
            document["noise_standard_deviation"],
            document["declared_size"],
            document["memory_bytes"],
            [Charge.parse(charge) for charge in document["charges"]],
            list(document["warnings"]),
            document,
        )

    @property
    def affordable(self) -> bool:
        """Whether every dataset's budget covers its charge."""
        return all(charge.affordable for charge in self.charges)

    def _facts(self) -> list[tuple[str, str]]:
        facts = [
            ("evaluation", f"{self.run_digest[:16]}…"),
            ("each count", f"± {self.noise_standard_deviation:.1f} over {self.declared_size} declared records"),
            ("trainer memory", f"{self.memory_bytes / 2**20:.0f} MiB"),
        ]
        facts += [
            (charge.dataset_name, f"ε {shown(charge.cost.epsilon)}, δ {shown(charge.cost.delta)}")
            for charge in self.charges
        ]
        return facts + [("warning", warning) for warning in self.warnings]

    def __str__(self) -> str:
        return "\n".join(f"{key:<20} {value}" for key, value in self._facts())

    def _repr_html_(self) -> str:
        return html_table("Price of the evaluation", (), self._facts())


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise MissingPackage("pandas makes data frames, and is not installed: pip install pandas") from None
    return pandas
