"""The systemd unit: accepted by systemd, hardened as documented, and its drain fits the configuration's."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
UNIT = ROOT / "packaging/systemd/bastionai.service"
ANALYZE = shutil.which("systemd-analyze")


def settings() -> dict[str, str]:
    """`Key=value` lines of the unit."""
    lines = (line for line in UNIT.read_text().splitlines() if line and not line.startswith(("#", "[")))
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    # `verify` wants the program to exist.
    program = tmp_path / "bastionai"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/lib/bastionai/bastionai", str(program)))
    done = subprocess.run([str(ANALYZE), "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert done.returncode == 0, done.stderr
    assert not ours, done.stderr


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
def test_its_exposure_is_low_by_systemds_own_measure() -> None:
    command = [str(ANALYZE), "security", "--offline=true", "--threshold=25", "--no-pager", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def test_what_the_manual_promises_of_the_unit_is_in_it() -> None:
    unit = settings()
    assert unit["OOMPolicy"] == "continue"
    assert unit["ProtectSystem"] == "strict"
    assert unit["NoNewPrivileges"] == "yes"
    assert unit["LoadCredentialEncrypted"].startswith("root-key:")
    assert "MemoryDenyWriteExecute" not in unit, "libtorch's kernels are compiled at run time"


def test_the_unit_waits_longer_than_a_drain_takes() -> None:
    source = (ROOT / "crates/server/src/config/trainer.rs").read_text()
    drain = re.search(r"drain_timeout_ms: ([0-9_]+),", source)
    assert drain is not None
    assert settings()["KillSignal"] == "SIGTERM"
    assert int(settings()["TimeoutStopSec"]) * 1000 > int(drain.group(1).replace("_", "")) + 10_000
