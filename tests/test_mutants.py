"""The mutants of ``scripts/mutants.py`` fit the sources as they are. Whether each is killed, ``make mutants`` shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_mutant_finds_its_source_text_once_and_names_a_test_that_exists() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "mutants.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
