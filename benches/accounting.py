"""The accountant against dp-accounting and Opacus' PRV: same queries, one thread, one process, interleaved.

Every round takes each measurement once; what counts is the median over rounds of the ratio of two measurements *of
the same round*. dp-accounting is asked at its default grid of 1e-4; its answer and Opacus' upper
bound stand beside ours.

    .venv/bin/python benches/accounting.py
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dp_accounting
from dp_accounting import pld
from opacus.accountants import PRVAccountant

from bastionai import privacy

RESULTS = Path(".bench/accounting.json")
#: noise multiplier, sample rate, steps, δ
QUERIES = [(1.0, 0.01, 10_000, 1e-5), (0.7, 0.001, 100_000, 1e-6), (1.5, 0.04, 2249, 1e-5), (4.0, 0.2, 1000, 1e-9)]
#: target ε, δ, sample rate, steps
CALIBRATIONS = [(3.0, 1e-5, 0.01, 10_000), (1.0, 1e-6, 0.02, 1000)]
#: What the project promises: seconds, and times faster than dp-accounting.
QUERY_SECONDS, QUERY_FACTOR, CALIBRATION_SECONDS, CALIBRATION_FACTOR = 0.05, 20.0, 1.0, 10.0


def google(noise: float, rate: float, steps: int, delta: float) -> float:
    """ε by dp-accounting's PLD accountant as it comes."""
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    return float(pld.PLDAccountant().compose(step, steps).get_epsilon(delta))


def google_noise(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The noise multiplier by dp-accounting's calibration."""

    def event(noise: float) -> dp_accounting.DpEvent:
        step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
        return dp_accounting.SelfComposedDpEvent(step, steps)

    return float(dp_accounting.calibrate_dp_mechanism(pld.PLDAccountant, event, epsilon, delta))


def opacus(noise: float, rate: float, steps: int, delta: float) -> float:
    """The upper bound of ε by Opacus' PRV accountant, to a hundredth."""
    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps)]
    return float(accountant.get_epsilon(delta))


def timed(work: Callable[[], float]) -> tuple[float, float]:
    """Seconds and the answer."""
    start = time.perf_counter()
    answer = work()
    return time.perf_counter() - start, answer


def measure(rounds: int) -> list[dict[str, Any]]:
    """A row for every query and calibration: median seconds, median ratios of a round, answers."""
    rows = []
    for query in QUERIES:
        contenders = {
            "bastionai": lambda query=query: privacy.epsilon(*query),
            "dp_accounting": lambda query=query: google(*query),
            "opacus_prv": lambda query=query: opacus(*query),
        }
        rows.append(_row("epsilon", query, contenders, rounds, QUERY_SECONDS, QUERY_FACTOR))
    for target in CALIBRATIONS:
        contenders = {
            "bastionai": lambda target=target: privacy.noise_multiplier(*target),
            "dp_accounting": lambda target=target: google_noise(*target),
        }
        rows.append(_row("noise", target, contenders, max(1, rounds // 3), CALIBRATION_SECONDS, CALIBRATION_FACTOR))
    return rows


def _row(
    kind: str,
    arguments: tuple[float, ...],
    contenders: dict[str, Callable[[], float]],
    rounds: int,
    seconds: float,
    factor: float,
) -> dict[str, Any]:
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    answers: dict[str, float] = {}
    contenders["bastionai"]()
    for _ in range(rounds):
        for name, work in contenders.items():
            took, answers[name] = timed(work)
            taken[name].append(took)
    ratios = {
        name: statistics.median(theirs / ours for theirs, ours in zip(taken[name], taken["bastionai"], strict=True))
        for name in contenders
    }
    medians = {name: statistics.median(times) for name, times in taken.items()}
    met = medians["bastionai"] < seconds and ratios["dp_accounting"] >= factor
    return {
        "kind": kind,
        "arguments": arguments,
        "seconds": medians,
        "times_as_fast": ratios,
        "answers": answers,
        "rounds": rounds,
        "met": met,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| question | bastionai | dp-accounting | times as fast | Opacus PRV | times as fast | answers | goal |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for row in rows:
        seconds, ratios = row["seconds"], row["times_as_fast"]
        theirs = seconds.get("opacus_prv")
        cells = [
            f"{row['kind']} {', '.join(f'{value:g}' for value in row['arguments'])}",
            f"{1e3 * seconds['bastionai']:.1f} ms",
            f"{1e3 * seconds['dp_accounting']:.0f} ms",
            f"{ratios['dp_accounting']:.0f}",
            "" if theirs is None else f"{1e3 * theirs:.0f} ms",
            "" if theirs is None else f"{ratios['opacus_prv']:.0f}",
            " / ".join(f"{answer:.5g}" for answer in row["answers"].values()),
            "met" if row["met"] else "missed",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def run() -> None:
    """The same in a process of its own, where all have one thread. Prints the table and writes it to .bench/."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    subprocess.run([sys.executable, __file__], env=os.environ | one, check=True)


def main() -> None:
    """Measures, prints and writes."""
    rounds = 3 if float(os.environ.get("BASTIONAI_BENCH_SECONDS", "40")) >= 20 else 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = measure(rounds)
    print(table(rows), flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
