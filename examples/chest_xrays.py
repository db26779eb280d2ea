"""Chest X-rays of several hospitals: a ResNet, or a smaller network, learns to see pneumonia.

PneumoniaMNIST has 5856 X-rays of children, 28 by 28 pixels, with pneumonia or without. Its training part is dealt out
to four hospitals of different size, each an owner of its own; the official validation and test parts stay out, in
public, and utility is measured on the test part.

    python examples/chest_xrays.py --data FOLDER --model resnet

Of torchvision's ResNet the blocks are taken, fewer and narrower: noise grows with the number of trained parameters.
FOLDER holds pneumoniamnist.npz from https://zenodo.org/records/10519652 (MedMNIST v2, Yang et al. 2023; CC BY 4.0).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from study import Records, arguments, commonest, console, needed, pooled, results, row, seeded, study
from study import train_in_the_open as train_plainly
from torch import nn
from torchvision.models.resnet import BasicBlock

import bastionai

SOURCE = "https://zenodo.org/records/10519652"
#: Shares of the training part: hospitals are not alike.
HOSPITALS = {"North": 0.4, "East": 0.3, "South": 0.2, "West": 0.1}
CLASSES = ["healthy", "pneumonia"]


def read(path: Path, part: str) -> Records:
    """Pictures ``[rows, 1, 28, 28]`` in [0, 1] and labels ``[rows]``."""
    with np.load(path) as archive:
        pictures, labels = archive[f"{part}_images"], archive[f"{part}_labels"]
    features = torch.from_numpy(pictures).float().div(255)[:, None]
    return features, torch.from_numpy(labels).long().flatten()


def deal(records: Records, seed: int) -> dict[str, Records]:
    """The training part, shuffled and dealt out."""
    features, labels = records
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    ends = torch.tensor([0.0, *HOSPITALS.values()]).cumsum(0).mul(len(order)).round().long().tolist()
    parts = zip(HOSPITALS, ends[:-1], ends[1:], strict=True)
    return {name: (features[order[a:b]], labels[order[a:b]]) for name, a, b in parts}


class XrayClassifier(nn.Module):
    """Two convolutions and a linear layer: 3026 parameters, for noise grows with their number."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(144, 2),
        )

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Logits of the two classes."""
        return self.layers((picture - 0.5) * 4)


class XrayResNet(nn.Module):
    """A stem, three residual blocks, the mean over the picture: 19,626 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(_block(8, 8, 2), _block(8, 16, 2), _block(16, 32, 2))
        self.head = nn.Linear(32, 2)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """Logits of the two classes."""
        return self.head(self.blocks(self.stem((picture - 0.5) * 4)).mean(dim=(2, 3)))


def _block(inputs: int, outputs: int, stride: int) -> BasicBlock:
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return BasicBlock(inputs, outputs, stride, shortcut)


#: Each with the learning rate that suits it. BatchNorm would mix samples: `fix` puts GroupNorm in its place.
MODELS = {
    "cnn": (XrayClassifier, 0.005),
    "resnet": (lambda: bastionai.fix(XrayResNet(), batchnorm="group", verbose=False), 0.005),
}


def main() -> int:
    """Lends, trains, compares."""
    more = {"model": f"{' or '.join(MODELS)}; cnn by default"}
    options = arguments(__doc__.splitlines()[0], "pneumoniamnist.npz, or its folder", eps=3.0, steps=150, more=more)
    if options.model not in (None, *MODELS):
        raise SystemExit(f"--model {options.model}: choose from {', '.join(MODELS)}")
    make, rate = MODELS[options.model or "cnn"]
    (file,) = needed(options.data, ["pneumoniamnist.npz"], SOURCE)
    lent, test = deal(read(file, "train"), options.seed), read(file, "test")
    columns = [
        bastionai.Column("picture", "float32", (1, 28, 28), range=(0, 1)),
        bastionai.Column("diagnosis", "int64", classes=CLASSES),
    ]
    started = time.monotonic()
    with study(options.server) as stage:
        for name, records in lent.items():
            size = bastionai.contract.default_declared_size(len(records[1]))
            contract = bastionai.DataContract(columns, declared_size=size)
            stage.lend(name, records, contract, 2.1 * options.eps, "scientist")
        table = results(f"Chest X-rays, on the {len(test[1])} of the official test part (seed {options.seed})")
        with stage.connect("scientist") as client:
            model = seeded(make, options.seed)
            settings = {"eps": options.eps, "steps": options.steps, "lr": rate}
            together = stage.train(client, list(lent), model, show_price=True, **settings)
            _, found = row(table, "four hospitals, private", together, test)
            row(table, "North alone, private", stage.train(client, ["North"], model, **settings), test)
        steps = options.steps or 200
        for name, records in {"four hospitals": pooled(list(lent.values())), "North alone": lent["North"]}.items():
            plain = train_plainly(model, records, steps=steps, batch_size=128, lr=rate)
            row(table, f"{name}, in the open", plain, test)
        table.add_row("always pneumonia", "", f"{commonest(test[1]):.3f}", "0.500", "")
        console.print(table)
        console.print(f"{time.monotonic() - started:.0f} s in all; nothing is left running.")
    if found <= 0.6:
        raise SystemExit("the private model should be far better than chance; is --eps or --steps too small?")
    return 0


if __name__ == "__main__":
    sys.exit(main())
