"""Where a private step's time goes, beside a plain one's: medians of a few interleaved steps.

    python benches/step_profile.py gpt2              # every core
    python benches/step_profile.py lora 1 20         # one thread, 20 steps each

The engine's phases come from a clock in its own code (crates/trainer/src/phases.rs) that only the benches' program
starts. For single functions: ``perf record -p`` of the bench_step process while this runs.
"""

from __future__ import annotations

import os
import statistics
import sys
import warnings
from collections import defaultdict

os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch
from contenders import PRECISIONS, EngineStep, PlainStep
from models import TASKS

STEPS = 8


def profile(name: str, threads: int, steps: int) -> str:
    """The table."""
    torch.set_num_threads(threads)
    task = TASKS[name]
    engine = EngineStep(task, threads)
    plain = {precision: PlainStep(task, precision) for precision in PRECISIONS}
    ours: dict[str, list[float]] = defaultdict(list)
    theirs: dict[str, dict[str, list[float]]] = {precision: defaultdict(list) for precision in PRECISIONS}
    totals: dict[str, list[float]] = defaultdict(list)
    for turn in range(steps + 1):
        seconds, phases = engine.parts()
        parts = {precision: step.parts() for precision, step in plain.items()}
        if turn == 0:
            continue  # warming up
        totals["ours"].append(seconds)
        for phase, taken in phases.items():
            ours[phase].append(taken)
        for precision, found in parts.items():
            totals[precision].append(found.total())
            for part, taken in found.seconds.items():
                theirs[precision][part].append(taken)
    engine.close()
    fastest = min(PRECISIONS, key=lambda precision: statistics.median(totals[precision]))
    whole = statistics.median(totals[fastest])
    lines = [f"{task.name}, {task.batch_size} rows, {threads} threads; engine: {engine.chosen}", ""]
    lines += [f"{'':34}{'ms':>9}{'of the plain step':>20}"]

    def lines_of(title: str, parts: dict[str, list[float]], total: list[float]) -> None:
        for part, taken in {title: total, **parts}.items():
            median = statistics.median(taken)
            indent = "" if part == title else "  "
            lines.append(f"{indent + part:34}{1e3 * median:9.1f}{100 * median / whole:19.0f}%")

    lines_of(f"plain PyTorch, {fastest}", theirs[fastest], totals[fastest])
    lines_of("BastionAI", ours, totals["ours"])
    return "\n".join(lines)


def main(name: str = "", threads: str = "", steps: str = str(STEPS)) -> int:
    """Prints the table; exit status 2 for a task that is none."""
    if name not in TASKS:
        print(f"usage: step_profile.py TASK [THREADS [STEPS]]; tasks are {', '.join(TASKS)}", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore")
    print(profile(name, int(threads or os.cpu_count() or 1), int(steps)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
