"""Checks the shape of the house: dependency directions between crates, and who may link what.

`docs/design.md` ("The house") says which crate may know which; this script holds the build to it.
Exit status 1 and one line per breach otherwise.
"""

from __future__ import annotations

import json
import subprocess
import sys

PREFIX = "bastionai-"

# crate -> siblings it may depend on (normal dependencies; tests may look up at their users' side).
ALLOWED: dict[str, set[str]] = {
    "dsse": set(),
    "attestation": {"dsse"},
    "privacy": set(),
    "graph": set(),
    "ledger": {"privacy", "dsse"},
    "wire": set(),
    "vault": {"ledger"},
    "trainer": {"graph", "privacy", "wire"},
    "server": {"attestation", "vault", "ledger", "privacy", "graph", "wire"},
    "client": {"attestation", "graph", "ledger", "privacy", "wire"},
    "cli": {"server", "client", "attestation", "graph", "ledger", "privacy"},
    "test-platforms": {"attestation"},
    "python": {"client", "attestation", "graph", "ledger", "privacy"},
}
# third-party crate -> the only crates of ours that may name it.
RESERVED: dict[str, set[str]] = {
    "tch": {"trainer"},
    "torch-sys": {"trainer"},
    "tokio": {"server", "client", "cli", "python"},
    "redb": {"vault"},
    "pyo3": {"python"},
}


def main() -> int:
    """Reads `cargo metadata` and reports every breach."""
    command = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--locked"]
    metadata = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    breaches: list[str] = []
    for package in metadata["packages"]:
        crate = package["name"].removeprefix(PREFIX)
        if crate not in ALLOWED:
            breaches.append(f"{crate}: a crate that docs/design.md does not know")
            continue
        for dependency in package["dependencies"]:
            if dependency["kind"] is not None:
                continue
            name = dependency["name"]
            sibling = name.removeprefix(PREFIX)
            if name.startswith(PREFIX) and sibling not in ALLOWED[crate]:
                breaches.append(f"{crate} -> {sibling}: dependencies point downwards only")
            if name in RESERVED and crate not in RESERVED[name]:
                breaches.append(f"{crate} -> {name}: only {', '.join(sorted(RESERVED[name]))} may")
    for breach in breaches:
        print(f"structure: {breach}", file=sys.stderr)
    if not breaches:
        print(f"structure: {len(metadata['packages'])} crates, dependencies point downwards")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
