"""`bastionai epsilon` and `bastionai calibrate` against other people's numbers."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BINARY = ROOT / "target" / "release" / "bastionai"
REFERENCE = ROOT / "crates" / "privacy" / "tests" / "data" / "pld_reference.csv"


def bastionai(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command as a user would."""
    return subprocess.run([str(BINARY), *arguments], input=stdin, capture_output=True, text=True, timeout=300)


def test_epsilon_answers_the_reference_table_from_csv() -> None:
    with REFERENCE.open() as file:
        reference = list(csv.DictReader(file))[::7]
    lines = ["sigma,q,steps,delta"] + [f"{r['sigma']},{r['q']},{r['steps']},{r['delta']}" for r in reference]
    done = bastionai("epsilon", "--csv", "-", stdin="\n".join(lines) + "\n")
    assert done.returncode == 0, done.stderr
    answers = list(csv.DictReader(io.StringIO(done.stdout)))
    assert list(answers[0]) == ["sigma", "q", "steps", "delta", "eps"]
    assert len(answers) == len(reference)
    for answer, row in zip(answers, reference, strict=True):
        expected = float(row["eps"])
        assert math.isclose(float(answer["eps"]), expected, rel_tol=1e-3, abs_tol=1e-4), row


def test_calibrate_never_overshoots_and_epsilon_agrees() -> None:
    query = ["--sample-rate", "0.01", "--steps", "10000", "--delta", "1e-5"]
    done = bastionai("calibrate", "--target-epsilon", "3", *query, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["epsilon"] <= 3.0
    # 1.5650: dp-accounting 0.6, the same query.
    assert answer["noise_multiplier"] == pytest.approx(1.5650, abs=2e-3)
    again = bastionai("epsilon", "--noise-multiplier", str(answer["noise_multiplier"]), *query)
    assert float(again.stdout) == pytest.approx(answer["epsilon"], rel=1e-9)


@pytest.mark.parametrize(
    "arguments",
    [
        ["epsilon", "--noise-multiplier", "-1", "--delta", "1e-5"],
        ["epsilon", "--noise-multiplier", "1", "--delta", "0"],
        ["epsilon", "--noise-multiplier", "1", "--sample-rate", "1.5", "--delta", "1e-5"],
        ["epsilon", "--noise-multiplier", "nan", "--delta", "1e-5"],
        ["calibrate", "--target-epsilon", "0", "--delta", "1e-5"],
        ["epsilon", "--csv", "/nonexistent.csv"],
    ],
)
def test_impossible_queries_are_refused_with_a_reason(arguments: list[str]) -> None:
    done = bastionai(*arguments)
    assert done.returncode != 0
    assert done.stdout == ""
    assert len(done.stderr.strip()) > 10


def test_a_csv_without_its_columns_says_which_is_missing() -> None:
    done = bastionai("epsilon", "--csv", "-", stdin="sigma,q,steps\n1,0.1,10\n")
    assert done.returncode != 0
    assert "delta" in done.stderr


def test_keygen_never_overwrites_an_identity(tmp_path: Path) -> None:
    key = tmp_path / "identity.pem"
    first = bastionai("keygen", "--out", str(key))
    assert first.returncode == 0, first.stderr
    assert len(first.stdout.strip()) == 64
    assert key.stat().st_mode & 0o777 == 0o600
    before = key.read_bytes()
    second = bastionai("keygen", "--out", str(key))
    assert second.returncode != 0
    assert key.read_bytes() == before
