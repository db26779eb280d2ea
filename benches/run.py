"""`make bench`: ratios from one interleaved run, as a table and as JSON in .bench/.

Environment: BASTIONAI_BENCH_ROUNDS (default 60) for a quicker or a steadier run.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# Before torch is imported: its threads wait about as long as a trainer's do (wire::trainer::TRAINER_ENVIRONMENT),
# so that no contender spins on the cores while another is timed.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import private_step
import server

RESULTS = Path(".bench/private_step.json")
SERVER_RESULTS = Path(".bench/server.json")


def main() -> int:
    """Runs every setting; exit status 1 when the engine's example is not built."""
    if not private_step.ENGINE.exists():
        print(
            f"{private_step.ENGINE} is not there: run `make bench` in the repository's root",
            file=sys.stderr,
        )
        return 1
    rounds = int(os.environ.get("BASTIONAI_BENCH_ROUNDS", "60"))
    results = []
    for task, batch_size, optimizer in (
        (private_step.MLP, 256, "sgd"),
        (private_step.MLP, 256, "adamw"),
        (private_step.CNN, 256, "sgd"),
        (private_step.RESNET, 32, "sgd"),
        (private_step.TRANSFORMER, 64, "sgd"),
        (private_step.MINILM, 16, "sgd"),
        (private_step.BERT_BASE, 8, "sgd"),
        (private_step.LSTM, 256, "sgd"),
    ):
        # A step of Opacus takes seconds there.
        of_task = max(5, rounds // 6) if task is private_step.LSTM else rounds
        setting = private_step.Setting(task, batch_size, optimizer, rounds=of_task)
        results.append(private_step.measure(setting))
        print(private_step.table(results[-1]), end="\n\n")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    served = server.measure(max(3, rounds // 6))
    print(server.table(served), end="\n\n")
    SERVER_RESULTS.write_text(json.dumps(served, indent=1) + "\n")
    print(f"written to {RESULTS} and {SERVER_RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
