"""Heart disease in four real hospitals: what a common model brings them, and what its privacy costs.

The UCI heart disease data are 920 patients of four hospitals with 13 measurements, many of them missing. Each hospital
is an owner of its own. One model is trained on all four, privately, and one on each hospital alone; both are compared
with the same training in the open, and with always guessing the commoner diagnosis.

    python examples/heart_disease.py --data FOLDER

FOLDER holds processed.cleveland.data, processed.hungarian.data, processed.switzerland.data and processed.va.data from
https://archive.ics.uci.edu/dataset/45/heart+disease (Janosi, Steinbrunn, Pfisterer and Detrano; CC BY 4.0).
"""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path

import torch
from study import Records, arguments, commonest, console, needed, pooled, results, row, seeded, split, study
from study import row_of_private_test as test_privately
from study import train_in_the_open as train_plainly
from torch import nn

import bastionai

HOSPITALS = {
    "Cleveland": "processed.cleveland.data",
    "Budapest": "processed.hungarian.data",
    "Zurich and Basel": "processed.switzerland.data",
    "Long Beach": "processed.va.data",
}
SOURCE = "https://archive.ics.uci.edu/dataset/45/heart+disease"
#: Public ranges of what is measured, as medicine knows them: never computed from the records. Values are cut to them.
RANGES = {0: (0, 100), 3: (60, 220), 4: (80, 600), 7: (50, 220), 9: (-3, 7), 11: (0, 3)}
#: Codes of what is not measured but classified, from heart-disease.names.
CODES = {1: (1,), 2: (1, 2, 3, 4), 5: (1,), 6: (0, 1, 2), 8: (1,), 10: (1, 2, 3), 12: (3, 6, 7)}
#: A measured value of 0 means that nobody measured it, whatever the file says.
ZERO_IS_MISSING = (3, 4)
CLASSES = ["healthy", "narrowed vessels"]
HELD_OUT, LEARNING_RATE = 0.25, 0.02


def encode(line: list[str]) -> list[float]:
    """A patient as numbers in [0, 1].

    Measurements are scaled by their public range and marked when missing; codes become one-hot.
    """
    cells: list[float] = []
    for place in range(13):
        text = line[place].strip()
        value = None if text in ("?", "-9", "-9.0") else float(text)
        if place in RANGES:
            low, high = RANGES[place]
            if value is None or (value == 0 and place in ZERO_IS_MISSING):
                cells += [0.0, 1.0]
            else:
                cells += [(min(max(value, low), high) - low) / (high - low), 0.0]
        else:
            cells += [float(value == code) for code in CODES[place]]
            cells.append(float(value is None))
    return cells


def read(path: Path) -> Records:
    """A hospital's patients, and whether the angiogram showed a vessel narrowed by more than half."""
    with path.open(newline="") as file:
        lines = [line for line in csv.reader(file) if len(line) == 14]
    features = torch.tensor([encode(line) for line in lines])
    return features, torch.tensor([int(float(line[13]) > 0) for line in lines])


class HeartClassifier(nn.Module):
    """Small on purpose: noise grows with the number of parameters."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits of the two diagnoses."""
        return self.layers(features - 0.3)


def main() -> int:
    """Lends, trains with and without pooling, compares."""
    options = arguments(__doc__.splitlines()[0], "folder of the four processed.*.data files", eps=2.0, steps=None)
    files = needed(options.data, list(HOSPITALS.values()), SOURCE)
    splits = {name: split(read(file), HELD_OUT, options.seed) for name, file in zip(HOSPITALS, files, strict=True)}
    lent = {name: parts[0] for name, parts in splits.items()}
    test = pooled([parts[1] for parts in splits.values()])
    width = test[0].shape[1]
    columns = [
        bastionai.Column("patient", "float32", (width,), range=(0, 1)),
        bastionai.Column("diagnosis", "int64", classes=CLASSES),
    ]
    started = time.monotonic()
    with study(options.server) as stage:
        for name, records in lent.items():
            contract = bastionai.DataContract(columns).with_declared_size(_size(len(records[1])))
            stage.lend(name, records, contract, 2.1 * options.eps, "scientist", splits[name][1])
        table = results(f"Heart disease, on {len(test[1])} patients held out (seed {options.seed})")
        with stage.connect("scientist") as client:
            model = seeded(lambda: HeartClassifier(width), options.seed)
            settings = {"eps": options.eps, "steps": options.steps, "lr": LEARNING_RATE}
            together = stage.train(client, list(lent), model, show_price=True, **settings)
            found, _ = row(table, "all four hospitals, private", together, test)
            test_privately(table, together, ["accuracy", "auroc"])
            for name in lent:
                row(table, f"{name} alone, private", stage.train(client, [name], model, **settings), test)
        steps = options.steps or 200
        everything = pooled(list(lent.values()))
        plain = train_plainly(model, everything, steps=steps, batch_size=64, lr=LEARNING_RATE)
        row(table, "all four hospitals, in the open", plain, test)
        for name, records in lent.items():
            alone = train_plainly(model, records, steps=steps, batch_size=64, lr=LEARNING_RATE)
            row(table, f"{name} alone, in the open", alone, test)
        chance = commonest(test[1])
        table.add_row("always the commoner diagnosis", "", f"{chance:.3f}", "0.500", "")
        console.print(table)
        console.print(f"{time.monotonic() - started:.0f} s in all; nothing is left running.")
    if found <= chance:
        raise SystemExit("the private model should be better than guessing; is --eps or --steps too small?")
    return 0


def _size(rows: int) -> int:
    """The hospital's public size class: the next rung above what it lends."""
    return bastionai.contract.default_declared_size(rows)


if __name__ == "__main__":
    sys.exit(main())
