"""A small CNN (the one of Opacus' MNIST example) learns from chest X-rays through the real server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from bastionai import Adam, Column, DataContract

pytestmark = pytest.mark.e2e

XRAYS = Path(__file__).resolve().parents[3] / "shared/data/pneumoniamnist/pneumoniamnist.npz"
CONTRACT = DataContract(
    [Column("image", "float32", (1, 28, 28), range=(0, 1)), Column("label", "int64", classes=["normal", "pneumonia"])],
    declared_size=2048,
)


def xrays(split: str, of_each: int) -> TensorDataset:
    """As many of either class."""
    with np.load(XRAYS) as data:
        images = torch.from_numpy(data[f"{split}_images"]).float().unsqueeze(1) / 255
        labels = torch.from_numpy(data[f"{split}_labels"]).long().flatten()
    rows = torch.cat([(labels == label).nonzero().flatten()[:of_each] for label in (0, 1)])
    return TensorDataset(images[rows], labels[rows])


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2),
        nn.GroupNorm(8, 32),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 32),
        nn.ReLU(),
        nn.Linear(32, 2),
    )


@pytest.mark.skipif(not XRAYS.exists(), reason=f"{XRAYS} is not there")
def test_a_cnn_learns_to_tell_pneumonia_on_xrays_it_never_saw(connect):
    with connect("owner") as client:
        scientist = connect("scientist").principal
        client.RemoteDataset(
            xrays("train", 1000), privacy_limit=8.0, name="xrays", contract=CONTRACT, may_train=[scientist], delta=1e-4
        )
    with connect("scientist") as client:
        dataset = next(each for each in client.list_remote_datasets() if each.name == "xrays")
        learner = client.RemoteLearner(
            cnn(), dataset, loss="cross_entropy", optimizer=Adam(lr=3e-3), model_name="cnn", batch_size=256
        )
        assert learner.fit(nb_epochs=12, eps=8.0).state == "succeeded"
        trained = learner.get_model()
        images, labels = xrays("test", 230).tensors
        right = trained(images).argmax(1) == labels
        assert float(right[labels == 0].float().mean() + right[labels == 1].float().mean()) / 2 > 0.7
