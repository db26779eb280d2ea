"""The README is true to the letter: its tours are run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bastionai import privacy

pytestmark = pytest.mark.e2e

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_accounting_by_itself_runs_and_says_what_its_comments_say(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    [accounting] = [block for block in blocks if "from bastionai import privacy" in block]
    said = re.findall(r"^(privacy\..*?)  # (\d+\.\d+)", accounting, re.MULTILINE)
    assert len(said) == 2
    for line, value in said:
        assert eval(line, {"privacy": privacy}) == pytest.approx(float(value), abs=6e-4)
    names: dict[str, object] = {}
    exec(compile(accounting, str(README), "exec"), names)
    renyi = privacy.epsilon(1.0, 0.01, 10_000, 1e-5, accountant="rdp")
    assert f'accountant="rdp": {renyi:.2f}' in accounting


def test_the_tours_of_owner_and_scientist_run(server, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    tours = [block for block in blocks if "bastionai.Connection(" in block]
    assert len(tours) >= 2, "README.md should show the tours of owner and scientist as python blocks"
    assert all('Connection("127.0.0.1:7443"' in tour for tour in tours)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for tour in tours:
        # To the letter, but for the port, which is the test's own.
        exec(compile(tour.replace("127.0.0.1:7443", server.address), str(README), "exec"), names)
    assert names["trained_model"] is not names["model"]
