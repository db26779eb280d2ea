"""`make bench`: ratios from one interleaved run, as a table and as JSON in .bench/.

Environment: BASTIONAI_BENCH_SECONDS (default 40), of the rounds of each row, for a quicker or a steadier run;
BASTIONAI_BENCH_DEVICE (default cpu), cpu or cuda. Memory is the host's in either case.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# Before torch is imported: its threads wait about as long as a trainer's do (wire::trainer::TRAINER_ENVIRONMENT),
# so that no contender spins on the cores while another is timed.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import accounting
import contenders
import machine
import noise
import private_step
import server
from models import ROWS_OF_BENCH

RESULTS = Path(".bench/private_step.json")
SERVER_RESULTS = Path(".bench/server.json")


def main() -> int:
    """Runs every row; exit status 1 when the engine's example is not built."""
    if not contenders.ENGINE.exists():
        print(
            f"{contenders.ENGINE} is not there: run `make bench` in the repository's root",
            file=sys.stderr,
        )
        return 1
    seconds = float(os.environ.get("BASTIONAI_BENCH_SECONDS", "40"))
    effort = private_step.Effort(seconds, os.cpu_count() or 1)
    facts = machine.facts() | {"device": str(contenders.DEVICE)}
    print(", ".join(f"{name}: {value}" for name, value in facts.items()), end="\n\n", flush=True)
    results = []
    RESULTS.parent.mkdir(exist_ok=True)
    for task in ROWS_OF_BENCH.values():
        results.append(private_step.measure(task, effort))
        print(f"{task.name}: {results[-1]['rounds']} rounds, {results[-1]['kernels']} kernels", flush=True)
        RESULTS.write_text(json.dumps({"machine": facts, "rows": results}, indent=1) + "\n")
    print("\n" + private_step.table(results), end="\n\n")
    print(noise.table(noise.measure(max(3.0, seconds / 4))), end="\n\n", flush=True)
    served = server.measure(max(3, int(seconds) // 6))
    print(server.table(served), end="\n\n")
    SERVER_RESULTS.write_text(json.dumps(served, indent=1) + "\n")
    accounting.run()
    print(f"\nwritten to {RESULTS}, {SERVER_RESULTS} and {accounting.RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
