"""What the server costs: uploads against bare TLS, bare AES-256-GCM and the bare disk, a run against the bare trainer.

Every round takes each measurement once, in an order that rotates; what counts is the median over rounds of the ratio of
two measurements *of the same round*.
"""

from __future__ import annotations

import statistics
import subprocess
from pathlib import Path
from typing import Any

EXAMPLE = Path("target/release/examples/bench_server")
TRAINER = Path("target/release/bastionai-trainer")
STANDIN = Path("target/release/examples/standin_trainer")
MODEL = Path("crates/server/tests/fixtures/mlp.pt2")
MEASUREMENTS = ["upload", "tls", "gcm", "upload-to-disk", "disk", "run", "bare"]
WARM_UP_ROUNDS = 1


class Bench:
    """The example's process: one word in, its numbers out."""

    def __init__(self) -> None:
        """Starts it and reads what it measures."""
        command = [str(EXAMPLE), str(TRAINER.resolve()), str(STANDIN), str(MODEL)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.setting = self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"bench_server ended with status {self.process.wait()}; its error is above")
        return line.strip()

    def __call__(self, what: str) -> list[float]:
        """Seconds of one measurement."""
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        return [float(number) for number in self._read().split()]

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(rounds: int) -> dict[str, Any]:
    """All rounds; medians of seconds and of paired ratios."""
    bench = Bench()
    seconds: dict[str, list[list[float]]] = {name: [] for name in MEASUREMENTS}
    for turn in range(WARM_UP_ROUNDS + rounds):
        start = turn % len(MEASUREMENTS)
        for name in MEASUREMENTS[start:] + MEASUREMENTS[:start]:
            taken = bench(name)
            if turn >= WARM_UP_ROUNDS:
                seconds[name].append(taken)
    bench.close()

    def median(name: str, column: int = 0) -> float:
        return statistics.median(row[column] for row in seconds[name])

    def ratio(name: str, base: str, column: int = 0) -> float:
        pairs = zip(seconds[name], seconds[base], strict=True)
        return statistics.median(own[column] / other[column] for own, other in pairs)

    def whole(name: str) -> float:
        # Start to end: a client hears that a run has started only with its first progress.
        return statistics.median(sum(row) for row in seconds[name])

    megabytes = float(bench.setting.split()[0]) / 1e6
    return {
        "setting": bench.setting,
        "rounds": rounds,
        "upload_megabytes_a_second": megabytes / median("upload"),
        "tls_megabytes_a_second": megabytes / median("tls"),
        "gcm_megabytes_a_second": megabytes / median("gcm"),
        "upload_over_tls": ratio("upload", "tls"),
        "upload_over_gcm": ratio("upload", "gcm"),
        "upload_to_disk_megabytes_a_second": megabytes / median("upload-to-disk"),
        "disk_megabytes_a_second": megabytes / median("disk"),
        "upload_to_disk_over_disk": ratio("upload-to-disk", "disk"),
        "run_seconds": whole("run"),
        "bare_seconds": whole("bare"),
        "run_over_bare": statistics.median(
            sum(served) / sum(bare) for served, bare in zip(seconds["run"], seconds["bare"], strict=True)
        ),
        "run_start_seconds": median("run", 0),
        "bare_start_seconds": median("bare", 0),
    }


def table(result: dict[str, Any]) -> str:
    """The result for people."""

    def speed(name: str) -> str:
        return f"{result[f'{name}_megabytes_a_second']:.0f} MB/s"

    rows = [
        ("upload, data in memory", speed("upload"), ""),
        ("bare TLS 1.3, loopback", speed("tls"), f"upload takes {result['upload_over_tls']:.1f}×"),
        ("bare AES-256-GCM, memory", speed("gcm"), f"upload takes {result['upload_over_gcm']:.1f}×"),
        ("upload, data on disk", speed("upload_to_disk"), ""),
        ("bare disk, made durable", speed("disk"), f"upload takes {result['upload_to_disk_over_disk']:.1f}×"),
        (
            "whole run, by the server",
            f"{result['run_seconds']:.2f} s",
            f"{result['run_over_bare']:.3f}× the bare trainer",
        ),
        ("whole run, bare trainer", f"{result['bare_seconds']:.2f} s", ""),
        (
            "of it the start, by the server",
            f"{result['run_start_seconds']:.2f} s",
            "measures the trainer's files again first (A4)",
        ),
        ("of it the start, bare trainer", f"{result['bare_start_seconds']:.2f} s", ""),
    ]
    head = f"server: {result['setting']}, {result['rounds']} rounds"
    return "\n".join([head, *(f"{name:32}{value:>12}   {note}" for name, value, note in rows)])
