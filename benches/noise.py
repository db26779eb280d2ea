"""Noise per value on one thread: ours against ``torch.normal`` and ``rand_distr``, alternating in one process.

A row of ``make bench``, and a script of its own: ``python benches/noise.py [SECONDS]``. The process is
``crates/trainer/examples/bench_noise.rs``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = Path("target/release/examples/bench_noise")


def measure(seconds: float) -> list[dict[str, object]]:
    """Best nanoseconds per value of each contender, and the median of its ratios to ours, which stands first.

    Raises:
        RuntimeError: If the example is not built or fails.
    """
    if not PROGRAM.exists():
        raise RuntimeError(f"{PROGRAM} is not there: run `make bench` in the repository's root")
    done = subprocess.run([PROGRAM, str(seconds)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{PROGRAM} failed: {done.stderr.strip()}")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return [{"name": name, "nanoseconds": float(best), "ratio": float(ratio)} for name, best, ratio in rows]


def table(rows: list[dict[str, object]]) -> str:
    """In Markdown."""
    lines = ["| noise, one thread | ns a value | over ours |", "| --- | --- | --- |"]
    lines += [f"| {row['name']} | {row['nanoseconds']:.2f} | {row['ratio']:.2f} |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(measure(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)))
