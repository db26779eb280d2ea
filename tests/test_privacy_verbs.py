"""`bastionai epsilon` and `bastionai calibrate` against other people's numbers."""

from __future__ import annotations

import csv
import io
import itertools
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


def answer(*arguments: str, stdin: str | None = None) -> dict[str, object]:
    """The JSON of a command that succeeds."""
    done = bastionai(*arguments, "--json", stdin=stdin)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_composition_file_meets_the_reference() -> None:
    with (REFERENCE.parent / "hetero_reference.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 33
    for row in rows[::4]:
        found = answer("epsilon", "--composition", "-", "--delta", row["delta"], stdin=row["spec_json"])
        reference = float(row["eps_fine_h2e-5"])
        assert found["epsilon"] == pytest.approx(reference, rel=1e-3, abs=1e-4), row


def test_the_rdp_accountant_meets_opacus_and_is_never_below_the_other() -> None:
    query = ["epsilon", "--noise-multiplier", "1.5", "--sample-rate", "0.04", "--steps", "2250", "--delta", "1e-5"]
    renyi, losses = answer(*query, "--accountant", "rdp"), answer(*query)
    assert renyi["epsilon"] == pytest.approx(7.32911117143, rel=1e-10)
    assert renyi["accountant"] == "rdp"
    assert losses["epsilon"] < renyi["epsilon"]


def test_a_lower_bound_shows_how_tight_the_answer_is() -> None:
    query = ["epsilon", "--noise-multiplier", "1", "--sample-rate", "0.01", "--steps", "10000", "--delta", "1e-5"]
    found = answer(*query, "--lower-bound")
    assert 0.995 * found["epsilon"] < found["epsilon_lower_bound"] <= found["epsilon"]
    lines = bastionai(*query, "--lower-bound").stdout.split()
    assert [float(line) for line in lines] == [found["epsilon"], found["epsilon_lower_bound"]]


def test_a_profile_is_the_whole_curve_as_table_csv_and_json() -> None:
    query = ["epsilon", "--noise-multiplier", "1", "--sample-rate", "0.01", "--steps", "1000"]
    whole = answer(*query, "--profile", "--points", "20")
    points = [(point["delta"], point["epsilon"]) for point in whole["points"]]
    assert len(points) == 20
    assert points[0][0] == 0.5
    assert points[-1][0] == pytest.approx(1e-10)
    assert all(a[0] > b[0] and a[1] <= b[1] for a, b in itertools.pairwise(points))
    for delta, epsilon in points[5::5]:
        assert epsilon == pytest.approx(answer(*query, "--delta", str(delta))["epsilon"], rel=1e-3, abs=1e-4)
    rows = list(csv.DictReader(io.StringIO(bastionai(*query, "--profile=csv", "--points", "20").stdout)))
    assert [(float(row["delta"]), float(row["eps"])) for row in rows] == points
    table = bastionai(*query, "--profile", "--points", "20", "--delta", "1e-6").stdout.splitlines()
    assert table[0].split() == ["δ", "ε"]
    assert len(table) == 22
    assert float(table[-1].split()[0]) == pytest.approx(1e-6, rel=1e-3)


def test_a_composition_has_a_profile() -> None:
    parts = [{"type": "sg", "sigma": 1.1, "q": 0.01, "steps": 500}, {"type": "laplace", "scale": 20, "count": 2}]
    listed = json.dumps(parts)
    points = answer("epsilon", "--composition", "-", "--profile", "--points", "3", stdin=listed)["points"]
    alone = answer("epsilon", "--composition", "-", "--delta", "1e-10", stdin=listed)["epsilon"]
    assert points[-1]["epsilon"] == pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_csv_and_json_go_together_with_either_accountant(accountant: str) -> None:
    rows = "sigma,q,steps,delta\n1.5,0.04,2249,1e-5\n1,0.01,100,1e-6\n"
    form = ["--csv", "-", "--accountant", accountant]
    found = answer("epsilon", *form, stdin=rows)
    assert [row["steps"] for row in found] == [2249, 100]
    back = "eps,q,steps,delta\n" + "".join(f"{r['eps']},{r['q']},{r['steps']},{r['delta']}\n" for r in found)
    noise = [row["sigma"] for row in answer("calibrate", *form, stdin=back)]
    assert noise == pytest.approx([1.5, 1.0], rel=1e-3)
    done = bastionai("calibrate", *form, stdin=back)
    assert next(csv.reader(io.StringIO(done.stdout))) == ["eps", "q", "steps", "delta", "sigma"]


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_rate_steps_and_epochs_meet_their_target(accountant: str) -> None:
    target = ["calibrate", "--target-epsilon", "3", "--delta", "1e-5", "--accountant", accountant]
    noise = ["--noise-multiplier", "1.5"]
    steps = answer(*target, "--find", "steps", *noise, "--sample-rate", "0.01")
    rate = answer(*target, "--find", "sample-rate", *noise, "--steps", str(steps["steps"]))
    assert rate["sample_rate"] == pytest.approx(0.01, rel=1e-3)
    assert rate["sample_rate"] >= 0.01 * (1 - 2e-5)
    epochs = answer(*target, "--find", "epochs", *noise, "--sample-rate", "0.01")
    assert epochs["epochs"] == pytest.approx(0.01 * steps["steps"])
    assert max(steps["epsilon"], rate["epsilon"], epochs["epsilon"]) <= 3.0


def test_replacing_a_record_is_refused_not_priced() -> None:
    done = bastionai("epsilon", "--noise-multiplier", "1", "--delta", "1e-5", "--relation", "replace_one")
    assert done.returncode != 0
    assert "replace_one" in done.stderr
    assert "add_or_remove_one" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["epsilon", "--composition", "/nonexistent.json", "--delta", "1e-5"],
        ["calibrate", "--target-epsilon", "1", "--delta", "1e-5", "--find", "steps"],
        ["calibrate", "--target-epsilon", "1", "--delta", "1e-5", "--noise-multiplier", "1"],
        ["calibrate", "--target-epsilon", "0.01", "--delta", "1e-9", "--find", "steps", "--noise-multiplier", "0.5"],
        ["epsilon", "--noise-multiplier", "-1", "--delta", "1e-5"],
        ["epsilon", "--noise-multiplier", "1", "--delta", "0"],
        ["epsilon", "--noise-multiplier", "1", "--sample-rate", "1.5", "--delta", "1e-5"],
        ["epsilon", "--noise-multiplier", "nan", "--delta", "1e-5"],
        ["calibrate", "--target-epsilon", "0", "--delta", "1e-5"],
        ["epsilon", "--csv", "/nonexistent.csv"],
        ["epsilon", "--noise-multiplier", "1", "--profile", "--accountant", "rdp"],
        ["epsilon", "--noise-multiplier", "1", "--profile", "--lower-bound"],
        ["epsilon", "--noise-multiplier", "1", "--profile", "--points", "1"],
        ["epsilon", "--noise-multiplier", "1", "--delta", "1e-5", "--points", "7"],
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
