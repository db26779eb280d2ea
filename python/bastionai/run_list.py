"""The runs you may see, as a list that knows how to show itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from bastionai.display import html_table, text_table
from bastionai.exceptions import MissingPackage
from bastionai.runs import Run

if TYPE_CHECKING:
    import pandas

_HEADER = ("run", "kind", "state", "model", "step", "datasets", "created (UTC)")


class RunList(list[Run]):
    """Runs, newest last. A list, with tables for terminals, notebooks and pandas.

    Args:
        runs: The runs.
    """

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        super().__init__(runs)

    def to_frame(self) -> pandas.DataFrame:
        """One row a run and dataset it was charged to, as a pandas ``DataFrame``; ε and δ are exact ``Decimal``.

        Raises:
            MissingPackage: If pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise MissingPackage("pandas makes data frames, and is not installed: pip install pandas") from None
        columns = list(_frame_row_keys())
        return pandas.DataFrame([row for run in self for row in _frame_rows(run)], columns=columns)

    def __repr__(self) -> str:
        if not self:
            return "no runs"
        return text_table(_HEADER, [_cells(run) for run in self])

    def _repr_html_(self) -> str:
        return html_table("Runs", _HEADER, [_cells(run) for run in self])


def _cells(run: Run) -> tuple[str, ...]:
    steps, datasets = f"{run.released_step}/{run.steps}", ", ".join(run.dataset_names)
    return (run.id, run.kind, run.state, run.model_name, steps, datasets, f"{run.created:%Y-%m-%d %H:%M:%S}")


def _frame_row_keys() -> tuple[str, ...]:
    facts = ("run", "kind", "state", "model", "scientist", "steps", "released_step", "created", "ended")
    return (*facts, "dataset", "epsilon", "delta")


def _frame_rows(run: Run) -> list[dict[str, Any]]:
    """A refunded run has no charges, and one row without a dataset's numbers."""
    facts = {
        "run": run.id,
        "kind": run.kind,
        "state": run.state,
        "model": run.model_name,
        "scientist": run.scientist,
        "steps": run.steps,
        "released_step": run.released_step,
        "created": run.created,
        "ended": run.ended,
    }
    if not run.charges:
        names = ", ".join(run.dataset_names)
        return [{**facts, "dataset": names, "epsilon": None, "delta": None}]
    return [
        {**facts, "dataset": charge.dataset_name, "epsilon": charge.cost.epsilon, "delta": charge.cost.delta}
        for charge in run.charges
    ]
