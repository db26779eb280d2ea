"""One private training step of a model against plain PyTorch and Opacus, interleaved in one run.

Every round takes one step with each contender, in an order that rotates; what counts is the median over rounds of the
ratio to the plain step *of the same round*, so that a busy machine slows both sides of a ratio alike. Of Opacus' modes
and f32 settings the fastest of a short trial goes into the rounds. Memory is that of processes that do nothing else.

    python benches/private_step.py lstm minilm     # some rows of `make bench`
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from typing import Any

import contenders
import torch
from contenders import OPACUS_MODES, PRECISIONS, EngineStep, OpacusStep, PlainStep, Step
from machine import peak_mib, resident_mib
from models import TASKS, Task

PLAIN_DEFAULT, PLAIN_FASTER = (f"plain PyTorch, {precision}" for precision in PRECISIONS)
OURS, AT_CAP, OPACUS = "BastionAI", "BastionAI at the cap", "Opacus"
#: Steps whose memory is measured: the second has the optimizer's state, the third nothing new.
MEMORY_STEPS = 3
LEAST_ROUNDS, MOST_ROUNDS = 5, 60
#: A padded step is measured beside the others where it takes no longer than this.
SHORT_STEP_SECONDS = 0.8


@dataclass(frozen=True)
class Effort:
    """How long a row may take.

    Attributes:
        seconds: Of rounds, if at least :data:`LEAST_ROUNDS` fit.
        threads: Of every contender.
    """

    seconds: float
    threads: int


def fastest_opacus(task: Task) -> tuple[OpacusStep | None, dict[str, str]]:
    """Its best mode at its best f32 setting by the second of two steps, and what it says where it cannot."""
    best: tuple[float, OpacusStep | None] = (float("inf"), None)
    refusals: dict[str, str] = {}
    for mode in OPACUS_MODES:
        for precision in PRECISIONS:
            try:
                step = OpacusStep(task, mode, precision)
                taken = [step() for _ in range(2)][-1]
            except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError) as refusal:
                refusals[mode] = str(refusal).strip().split(". ")[0].split("\n")[0]
                break
            if taken < best[0]:
                best = (taken, step)
    return best[1], refusals


def memory_of(task: Task, threads: int, kind: str, *arguments: str) -> tuple[float, float]:
    """Of a process of its own that takes a few steps, in MiB: the most memory, and what of it is not model or data."""
    name = next(name for name, value in TASKS.items() if value is task)
    command = [sys.executable, __file__, "--memory", str(threads), name, kind, *arguments]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    peak, own = map(float, run.stdout.split())
    return peak, own


def print_memory(threads: str, name: str, kind: str, *arguments: str) -> None:
    """What :func:`memory_of` starts."""
    torch.set_num_threads(int(threads))
    warnings.filterwarnings("ignore")
    step = contenders.step_of(TASKS[name], kind, list(arguments))
    tensors = [*step.network.parameters(), *step.records.values()]
    held = sum(tensor.nbytes for tensor in tensors) / 2**20
    own = resident_mib("self") - held
    for _ in range(MEMORY_STEPS):
        step()
    print(peak_mib("self"), own)


def engine_memory(task: Task, threads: int) -> tuple[float, float]:
    """The same of the engine; what is not model or data is libtorch."""
    engine = EngineStep(task, threads)
    for _ in range(MEMORY_STEPS):
        engine()
    peak = engine.peak_mib()
    engine.close()
    return peak, float(engine.chosen["libraries_mib"])


def rounds_of(steps: dict[str, Step], seconds: float) -> dict[str, list[float]]:
    """Seconds of every contender in every round, after a tenth of the time for warming up."""
    names, taken = list(steps), {name: [] for name in steps}
    started = time.perf_counter()
    warm_until, turn = started + seconds / 10, 0
    while True:
        times = {name: steps[name]() for name in names[turn % len(names) :] + names[: turn % len(names)]}
        turn += 1
        if turn == 1 or time.perf_counter() < warm_until:
            continue
        for name, value in times.items():
            taken[name].append(value)
        done = len(taken[names[0]])
        if done >= MOST_ROUNDS or (done >= LEAST_ROUNDS and time.perf_counter() - started > seconds):
            return taken


def measure(task: Task, effort: Effort) -> dict[str, Any]:
    """All of a row: medians of seconds and of paired ratios, memory, what was chosen and refused."""
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(effort.threads)
    engine = EngineStep(task, effort.threads)
    opacus, refusals = fastest_opacus(task)
    steps: dict[str, Step] = {
        PLAIN_DEFAULT: PlainStep(task, PRECISIONS[0]),
        PLAIN_FASTER: PlainStep(task, PRECISIONS[1]),
        OURS: engine,
    }
    engines = [engine]
    if min(engine() for _ in range(2)) < SHORT_STEP_SECONDS:
        engines.append(EngineStep(task, effort.threads, at_cap=True))
        steps[AT_CAP] = engines[-1]
    if opacus is not None:
        steps[OPACUS] = opacus
    taken = rounds_of(steps, effort.seconds)
    chosen = [each.chosen for each in engines]
    for each in engines:
        each.close()
    fastest = min(PLAIN_DEFAULT, PLAIN_FASTER, key=lambda name: statistics.median(taken[name]))
    del steps, engines
    plain, python = memory_of(task, effort.threads, "plain", fastest.removeprefix("plain PyTorch, "))
    ours, libraries = engine_memory(task, effort.threads)
    memory = {"plain": plain, "of it Python's own": python, OURS: ours, "of it libtorch": libraries}
    if opacus is not None:
        memory[OPACUS], _ = memory_of(task, effort.threads, "opacus", opacus.mode, opacus.precision)

    def ratio(name: str, base: str) -> float | None:
        if name not in taken:
            return None
        return statistics.median(own / other for own, other in zip(taken[name], taken[base], strict=True))

    return {
        "task": task.name,
        "optimizer": task.optimizer,
        "rows": {"others": task.batch_size, OURS: int(chosen[0]["cap"]), AT_CAP: int(chosen[-1]["cap"])},
        "rounds": len(taken[OURS]),
        "kernels": chosen[0]["kernels"],
        "slack": float(chosen[0]["slack"]),
        "median_ms": {name: 1e3 * statistics.median(values) for name, values in taken.items()},
        "plain_fastest": fastest,
        "opacus_chosen": None if opacus is None else f"{opacus.mode}, {opacus.precision}",
        "opacus_refusals": refusals,
        "ratio_to_plain_default": ratio(OURS, PLAIN_DEFAULT),
        "ratio_to_plain_fastest": ratio(OURS, fastest),
        "at_cap_to_plain_fastest": ratio(AT_CAP, fastest),
        "opacus_to_ours": ratio(OPACUS, OURS),
        "peak_mib": memory,
        "memory_to_plain": ours / plain,
        "model_and_work_to_plain": (ours - libraries) / (plain - python),
        "goal": {"plain": task.goal.plain, "opacus": task.goal.opacus},
    }


_HEAD = (
    "| step | rows: ours, others | private / plain default | private / plain fastest | goal | at the cap (rows) "
    "| Opacus' best / ours | goal | memory / plain | without libraries | ms |"
)


def table(results: list[dict[str, Any]]) -> str:
    """All rows for people, in Markdown."""

    def number(value: float | None) -> str:
        return "" if not value else f"{value:.2f}"

    lines = [_HEAD, "|" + " --- |" * (_HEAD.count("|") - 1)]
    for row in results:
        rows, cap = row["rows"], row["at_cap_to_plain_fastest"]
        same = f"equal: {rows['others']}" if rows[OURS] == rows["others"] else f"{rows[OURS]}, {rows['others']}"
        opacus = number(row["opacus_to_ours"])
        cells = [
            row["task"] + (", AdamW" if row["optimizer"] == "adamw" else ""),
            same,
            number(row["ratio_to_plain_default"]),
            number(row["ratio_to_plain_fastest"]),
            number(row["goal"]["plain"]),
            f"{cap:.2f} ({rows[AT_CAP]})" if cap else "",
            f"{opacus} ({row['opacus_chosen']})" if opacus else "refuses",
            number(row["goal"]["opacus"]),
            number(row["memory_to_plain"]),
            number(row["model_and_work_to_plain"]),
            f"{row['median_ms'][OURS]:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    refused = [
        f"{row['task']}: Opacus, {mode}: {why}" for row in results for mode, why in row["opacus_refusals"].items()
    ]
    return "\n".join(lines + ([""] if refused else []) + refused)


def main(names: list[str]) -> int:
    """Measures the tasks named; exit status 2 for a name that is none."""
    unknown = [name for name in names if name not in TASKS]
    if unknown or not names:
        print(f"usage: private_step.py TASK...; tasks are {', '.join(TASKS)}", file=sys.stderr)
        return 2
    threads = os.cpu_count() or 1
    effort = Effort(float(os.environ.get("BASTIONAI_BENCH_SECONDS", "30")), threads)
    print(table([measure(TASKS[name], effort) for name in names]))
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        print_memory(*sys.argv[2:])
    else:
        sys.exit(main(sys.argv[1:]))
