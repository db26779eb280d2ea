"""A two-layer transformer learns spam from real text messages, through the real server."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from bastionai import Adam, Column, DataContract

pytestmark = pytest.mark.e2e

#: SMS Spam Collection v.1 (Almeida and Gómez Hidalgo), beside the repository and never in it.
MESSAGES = Path(__file__).resolve().parents[3] / "shared/data/sms/SMSSpamCollection"
TOKENS, BUCKETS, WIDTH = 24, 1024, 32

CONTRACT = DataContract(
    [
        Column("words", "int64", (TOKENS,), range=(0, BUCKETS - 1)),
        Column("label", "int64", classes=["ham", "spam"]),
    ],
    declared_size=8192,
)


def tokenised(text: str) -> list[int]:
    """Hashes of the first words and signs; numbers by their length. 0 pads."""
    words = re.findall(r"[a-z']+|\d+|[^\sa-z\d]", text.lower())[:TOKENS]
    words = [f"#{len(word)}" if word.isdigit() else word for word in words]
    ids = [1 + zlib.crc32(word.encode()) % (BUCKETS - 1) for word in words]
    return ids + [0] * (TOKENS - len(ids))


def messages() -> tuple[TensorDataset, TensorDataset]:
    """Every fifth message is held out."""
    lines = [line.split("\t", 1) for line in MESSAGES.read_text(encoding="utf-8").splitlines() if "\t" in line]
    words = torch.tensor([tokenised(text) for _, text in lines])
    labels = torch.tensor([int(label == "spam") for label, _ in lines])
    held_out = torch.arange(len(lines)) % 5 == 0
    return TensorDataset(words[~held_out], labels[~held_out]), TensorDataset(words[held_out], labels[held_out])


class Transformer(nn.Module):
    """Word and position embeddings, two encoder layers, the mean over a message's own words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(BUCKETS, WIDTH, padding_idx=0)
        self.positions = nn.Embedding(TOKENS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        padding = words == 0
        # The first place always counts: a message without words has no other.
        padding = padding & (torch.arange(TOKENS) > 0)
        hidden = self.words(words) + self.positions(torch.arange(TOKENS))
        hidden = self.encoder(hidden, src_key_padding_mask=padding)
        kept = (~padding).to(hidden.dtype).unsqueeze(-1)
        return self.head((hidden * kept).sum(1) / kept.sum(1))


def area_under_curve(model: nn.Module, data: TensorDataset) -> float:
    """Probability that a random spam scores above a random ham; 0.5 is chance."""
    words, labels = data.tensors
    with torch.no_grad():
        scores = model.eval()(words).diff(dim=1).squeeze(1)
    order = scores.argsort().argsort().double() + 1
    spam = int(labels.sum())
    return float((order[labels == 1].sum() - spam * (spam + 1) / 2) / (spam * (len(labels) - spam)))


@pytest.mark.skipif(not MESSAGES.exists(), reason=f"{MESSAGES} is not there")
def test_a_two_layer_transformer_learns_spam_from_private_messages(connect):
    train, held_out = messages()
    connect("phone-company").RemoteDataset(
        train, 8.0, "messages", contract=CONTRACT, may_train="anyone", delta=1e-5, verbose=False
    )
    torch.manual_seed(0)
    model = Transformer()
    client = connect("scientist")
    dataset = next(d for d in client.list_remote_datasets() if d.name == "messages")
    learner = client.RemoteLearner(
        model, dataset, loss="cross_entropy", optimizer=Adam(lr=8e-3), batch_size=512, max_batch_size=128
    )
    run = learner.fit(steps=30, eps=6.0, progress=False)
    assert run.state == "succeeded"
    before, after = area_under_curve(model, held_out), area_under_curve(learner.get_model(), held_out)
    assert after > max(0.75, before), f"{before:.3f} before, {after:.3f} after"
    assert all(bool(torch.isfinite(value).all()) for value in learner.get_model().state_dict().values())
