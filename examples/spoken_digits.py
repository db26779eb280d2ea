"""Spoken digits: six people teach a voice assistant to count, and none of them shows a recording.

The Free Spoken Digit Dataset has six speakers who say the digits from zero to nine. Each speaker is an owner of their
own: the voice assistant's case. A one-dimensional convolutional network learns from the raw waveforms. The last
recordings of each digit and speaker are held out, and utility is measured on them.

    python examples/spoken_digits.py --data recordings.zip

The zip holds recordings named ``{digit}_{speaker}_{index}.wav`` (8 kHz, 16 bit, mono), as in
https://github.com/Jakobovski/free-spoken-digit-dataset (Jackson et al.; CC BY-SA 4.0).
"""

from __future__ import annotations

import io
import sys
import time
import wave
import zipfile
from pathlib import Path

import numpy as np
import torch
from study import Records, arguments, commonest, console, pooled, results, row, seeded, study
from study import row_of_private_test as test_privately
from study import train_in_the_open as train_plainly
from torch import nn

import bastionai

SOURCE = "https://github.com/Jakobovski/free-spoken-digit-dataset"
#: Half a second at 8 kHz: longer recordings are cut, shorter ones padded, so that lengths tell nothing.
SAMPLES = 4096
#: Of each digit and speaker, the share of recordings that is held out.
HELD_OUT = 0.25
LEARNING_RATE = 0.01


def read(path: Path) -> dict[str, tuple[Records, Records]]:
    """By speaker: (what is lent, what is held out)."""
    if not path.is_file():
        raise SystemExit(f"missing: {path}; zip the folder `recordings` of {SOURCE}")
    found: dict[str, list[tuple[int, int, torch.Tensor]]] = {}
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            parts = Path(name).stem.split("_")
            if name.endswith(".wav") and len(parts) == 3:
                digit, speaker, index = int(parts[0]), parts[1], int(parts[2])
                found.setdefault(speaker, []).append((digit, index, waveform(archive.read(name))))
    if not found:
        raise SystemExit(f"{path} holds no recordings named digit_speaker_index.wav; get them from {SOURCE}")
    return {speaker: part(recordings) for speaker, recordings in sorted(found.items())}


def waveform(data: bytes) -> torch.Tensor:
    """``[1, SAMPLES]`` in [-1, 1], at its loudest 1: how far somebody stands from the microphone tells nothing."""
    with wave.open(io.BytesIO(data)) as recording:
        if (recording.getnchannels(), recording.getsampwidth(), recording.getframerate()) != (1, 2, 8000):
            raise SystemExit("recordings should be mono, 16 bit, 8 kHz")
        raw = recording.readframes(recording.getnframes())
    samples = torch.from_numpy(np.frombuffer(raw, "<i2").astype("f4"))[:SAMPLES]
    samples = samples / samples.abs().max().clamp(min=1)
    return nn.functional.pad(samples, (0, SAMPLES - len(samples)))[None]


def part(recordings: list[tuple[int, int, torch.Tensor]]) -> tuple[Records, Records]:
    """The first recordings of each digit are lent, the last held out."""
    lent, held_out = [], []
    for digit in range(10):
        of_digit = sorted((index, sound) for other, index, sound in recordings if other == digit)
        first = round((1 - HELD_OUT) * len(of_digit))
        lent += [(sound, digit) for _, sound in of_digit[:first]]
        held_out += [(sound, digit) for _, sound in of_digit[first:]]
    return records(lent), records(held_out)


def records(pairs: list[tuple[torch.Tensor, int]]) -> Records:
    """Waveforms ``[rows, 1, SAMPLES]`` and digits ``[rows]``."""
    return torch.stack([sound for sound, _ in pairs]), torch.tensor([digit for _, digit in pairs])


class DigitListener(nn.Module):
    """One-dimensional convolutions on the raw waveform, then the mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 32, 64, stride=8, padding=28),
            nn.GroupNorm(8, 32),
            nn.ReLU(),
            nn.Conv1d(32, 32, 8, stride=4, padding=2),
            nn.GroupNorm(8, 32),
            nn.ReLU(),
            nn.Conv1d(32, 32, 8, stride=4, padding=2),
            nn.GroupNorm(8, 32),
            nn.ReLU(),
            nn.AvgPool1d(8),
            nn.Flatten(),
            nn.Linear(128, 10),
        )

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Logits of the ten digits."""
        return self.layers(waveform)


def main() -> int:
    """Lends, trains, compares."""
    options = arguments(__doc__.splitlines()[0], "the zip of recordings", eps=8.0, steps=200)
    if options.data is None:
        raise SystemExit(f"give --data: a zip of the folder `recordings` of {SOURCE}")
    speakers = read(options.data)
    test = pooled([held_out for _, held_out in speakers.values()])
    columns = [
        bastionai.Column("waveform", "float32", (1, SAMPLES), range=(-1, 1)),
        bastionai.Column("digit", "int64", classes=[str(digit) for digit in range(10)]),
    ]
    started = time.monotonic()
    with study(options.server) as stage:
        for name, (lent, held_out) in speakers.items():
            size = bastionai.contract.default_declared_size(len(lent[1]))
            contract = bastionai.DataContract(columns, declared_size=size)
            stage.lend(name, lent, contract, 1.1 * options.eps, "assistant", held_out)
        table = results(f"Spoken digits, on {len(test[1])} recordings held out (seed {options.seed})")
        with stage.connect("assistant") as client:
            model = seeded(DigitListener, options.seed)
            settings = {"eps": options.eps, "steps": options.steps, "lr": LEARNING_RATE}
            together = stage.train(client, list(speakers), model, show_price=True, **settings)
            found, _ = row(table, f"{len(speakers)} speakers, private", together, test)
            test_privately(table, together, ["accuracy"])
        everything = pooled([lent for lent, _ in speakers.values()])
        steps = options.steps or 200
        plain = train_plainly(model, everything, steps=steps, batch_size=128, lr=LEARNING_RATE)
        row(table, f"{len(speakers)} speakers, in the open", plain, test)
        first = next(iter(speakers))
        alone = train_plainly(model, speakers[first][0], steps=steps, batch_size=64, lr=LEARNING_RATE)
        row(table, f"{first} alone, in the open", alone, test)
        chance = commonest(test[1])
        table.add_row("guessing", "", f"{chance:.3f}", "0.500", "")
        console.print(table)
        console.print("Protected is each recording; a speaker's many recordings together are protected less (D9).")
        console.print(f"{time.monotonic() - started:.0f} s in all; nothing is left running.")
    if found <= chance:
        raise SystemExit("the private model should be better than guessing; is --eps or --steps too small?")
    return 0


if __name__ == "__main__":
    sys.exit(main())
