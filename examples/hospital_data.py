"""The Wisconsin breast cancer data, split into three hospitals and a test set, with its public contract."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_breast_cancer

import bastionai

#: Public value ranges, per measurement: (of the mean, of its standard error, of the worst).
#:
#: They are written out, not computed from the records: the minimum and maximum of private rows are
#: private. These are what the measurements can be by their definition and by the ranges printed in
#: the published description of the method (Street, Wolberg and Mangasarian 1993, "Nuclear feature
#: extraction for breast tumor diagnosis"), rounded outward, as hospitals would agree on them before
#: anybody looks at their own records. A record outside is refused at the owner.
RANGES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "radius": ((6, 30), (0, 3), (6, 40)),
    "texture": ((5, 45), (0, 6), (5, 60)),
    "perimeter": ((40, 200), (0, 25), (40, 260)),
    "area": ((100, 2600), (0, 600), (100, 4500)),
    "smoothness": ((0.04, 0.2), (0, 0.04), (0.04, 0.3)),
    "compactness": ((0, 0.4), (0, 0.15), (0, 1.2)),
    "concavity": ((0, 0.5), (0, 0.4), (0, 1.4)),
    "concave points": ((0, 0.25), (0, 0.06), (0, 0.35)),
    "symmetry": ((0.1, 0.35), (0, 0.1), (0.1, 0.7)),
    "fractal dimension": ((0.04, 0.1), (0, 0.03), (0.04, 0.25)),
}
CLASSES = ["malignant", "benign"]
#: Public size classes of the three shares: rungs of the ladder, chosen by each hospital.
SIZES = (192, 192, 128)
_SHARES = (0.40, 0.35)
_TEST = 0.2

Records = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Shares:
    """Who has what.

    Attributes:
        train: Each hospital's records: features ``[rows, 30]`` and labels ``[rows]``.
        test: The demo's own test split.
    """

    train: dict[str, Records]
    test: Records

    def contract(self, hospital: str) -> bastionai.DataContract:
        """The contract all hospitals agreed on, under this hospital's size class."""
        bounds = [RANGES[name][kind] for kind in range(3) for name in RANGES]
        low, high = zip(*bounds, strict=True)
        columns = [
            bastionai.Column("features", "float32", (30,), range=(low, high)),
            bastionai.Column("label", "int64", classes=CLASSES),
        ]
        return bastionai.DataContract(columns, declared_size=SIZES[list(self.train).index(hospital)])


def shares(hospitals: Iterable[str]) -> Shares:
    """Splits the data, shuffled, the same each time."""
    data = load_breast_cancer()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    features = torch.tensor(data.data, dtype=torch.float32)[order]
    labels = torch.tensor(data.target)[order]
    tested = int(_TEST * len(labels))
    ends = [tested + int(sum(_SHARES[:n]) * (len(labels) - tested)) for n in range(len(_SHARES) + 1)]
    parts = zip(hospitals, ends, [*ends[1:], len(labels)], strict=True)
    train = {name: (features[first:last], labels[first:last]) for name, first, last in parts}
    return Shares(train, (features[:tested], labels[:tested]))


def majority_accuracy(labels: torch.Tensor) -> float:
    """What always guessing the commoner class achieves."""
    benign = float(labels.float().mean())
    return max(benign, 1 - benign)
