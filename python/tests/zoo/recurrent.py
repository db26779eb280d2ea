"""Recurrent layers as PyTorch has them: classifiers over words and over real-valued sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bastionai import Column, DataContract
from zoo.case import Case, Model

STEPS, WORDS, CLASSES = 6, 30, 3


class Words(nn.Module):
    """Embedding, recurrent layer, the last output of every direction."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        """Of this layer."""
        super().__init__()
        self.words = nn.Embedding(WORDS, 5)
        self.layer = kind(5, 4, batch_first=True, **options)
        self.head = nn.Linear(8 if self.layer.bidirectional else 4, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        """Logits."""
        outputs, _ = self.layer(self.words(words))
        return self.head(outputs[:, -1])


class Signal(nn.Module):
    """A recurrent layer over real values, its last states of all layers and directions."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        """Of this layer."""
        super().__init__()
        self.layer = kind(3, 4, batch_first=True, **options)
        self.head = nn.Linear(4 * self.layer.num_layers * (2 if self.layer.bidirectional else 1), CLASSES)

    def forward(self, signal: Tensor) -> Tensor:
        """Logits."""
        states = self.layer(signal)[1]
        last = states[0] if isinstance(states, tuple) else states
        return self.head(last.transpose(0, 1).flatten(1))


class StepsFirst(nn.Module):
    """A layer without ``batch_first``, fed steps first, all its outputs averaged."""

    def __init__(self) -> None:
        """PyTorch's own initial weights."""
        super().__init__()
        self.layer = nn.LSTM(3, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, signal: Tensor) -> Tensor:
        """Logits."""
        outputs, _ = self.layer(signal.transpose(0, 1))
        return self.head(outputs.mean(0))


class Conditioned(nn.Module):
    """An LSTM whose first states are computed from the record, and a second one that goes on from its last."""

    def __init__(self) -> None:
        """PyTorch's own initial weights."""
        super().__init__()
        self.start = nn.Linear(3, 8)
        self.reader = nn.LSTM(3, 4, batch_first=True)
        self.writer = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, signal: Tensor) -> Tensor:
        """Logits."""
        first = self.start(signal.mean(1)).unsqueeze(0)
        _, states = self.reader(signal, (torch.tanh(first[..., :4]), first[..., 4:]))
        outputs, _ = self.writer(signal.flip(1), states)
        return self.head(outputs[:, -1])


class Projected(nn.Module):
    """An LSTM with projected outputs."""

    def __init__(self) -> None:
        """PyTorch's own initial weights."""
        super().__init__()
        self.layer = nn.LSTM(3, 4, proj_size=2, batch_first=True)
        self.head = nn.Linear(2, CLASSES)

    def forward(self, signal: Tensor) -> Tensor:
        """Logits."""
        outputs, _ = self.layer(signal)
        return self.head(outputs[:, -1])


def _words(kind: type[nn.RNNBase], **options: Any) -> Model:
    columns = [Column("words", "int64", (STEPS,), range=(0, WORDS - 1)), Column("label", "int64", classes=CLASSES)]
    return Model(Words(kind, **options), DataContract(columns, declared_size=16), "cross_entropy")


def _signal(module: nn.Module) -> Model:
    columns = [Column("signal", "float32", (STEPS, 3), range=(-2, 2)), Column("label", "int64", classes=CLASSES)]
    return Model(module, DataContract(columns, declared_size=16), "cross_entropy")


def _tuned_biases() -> Model:
    model = _words(nn.LSTM)
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_("bias" in name)
    return model


CASES = [
    Case("lstm", "`nn.LSTM` over word embeddings, last output", lambda: _words(nn.LSTM)),
    Case("gru", "`nn.GRU` over word embeddings, last output", lambda: _words(nn.GRU)),
    Case(
        "lstm-stacked",
        "`nn.LSTM`, 2 layers in both directions with dropout between, over word embeddings",
        lambda: _words(nn.LSTM, num_layers=2, bidirectional=True, dropout=0.2),
    ),
    Case(
        "gru-stacked",
        "`nn.GRU`, 2 layers in both directions with dropout between, last states, over a signal",
        lambda: _signal(Signal(nn.GRU, num_layers=2, bidirectional=True, dropout=0.2)),
    ),
    Case(
        "lstm-biasless",
        "`nn.LSTM(bias=False)`, last states, over a signal",
        lambda: _signal(Signal(nn.LSTM, bias=False)),
    ),
    Case("rnn-tanh", "`nn.RNN` with tanh, last states", lambda: _signal(Signal(nn.RNN))),
    Case(
        "rnn-relu",
        "`nn.RNN` with ReLU, in both directions, last states",
        lambda: _signal(Signal(nn.RNN, nonlinearity="relu", bidirectional=True)),
    ),
    Case(
        "lstm-steps-first",
        "`nn.LSTM` without `batch_first`, fed steps first",
        lambda: _signal(StepsFirst()),
    ),
    Case(
        "lstm-conditioned",
        "`nn.LSTM` from first states computed of the record, and a second from its last states",
        lambda: _signal(Conditioned()),
    ),
    Case(
        "lstm-bitfit",
        "`nn.LSTM` of which only biases are trained",
        _tuned_biases,
    ),
    Case(
        "lstm-projected",
        "`nn.LSTM(proj_size=2)`",
        lambda: _signal(Projected()),
        refused="proj_size",
    ),
]
