"""What a case of the zoo says: how its model is made, what its records look like, and what is expected of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bastionai import DataContract
from bastionai.losses import LossLike
from bastionai.synthetic import synthetic_columns


@dataclass
class Model:
    """A model with its records.

    Attributes:
        module: As a user has it, in float32; only parameters that require a gradient are trained.
        contract: Of its records, with the library's own names of arguments where there are any.
        loss: As a user would give it to ``RemoteLearner``; None where the module returns its losses itself.
        records: ``[rows, column shape]`` for each column; by default drawn from the contract's domains.
        inputs: As ``RemoteLearner``'s.
        label: As ``RemoteLearner``'s.
    """

    module: nn.Module
    contract: DataContract
    loss: LossLike | None
    records: Mapping[str, torch.Tensor] | None = None
    inputs: Sequence[str] | None = None
    label: str | None = None


@dataclass(frozen=True)
class Case:
    """One model of the zoo.

    Attributes:
        name: Unique, e.g. ``bert-sequence``.
        shows: The library's class and what is special, for ``docs/coverage.md``.
        build: Makes the model; called under a fixed seed. Random weights, few layers, narrow.
        rows: Records of a batch.
        tolerance: Greatest relative distance of losses and per-sample gradients from PyTorch's in f64. A model
            that computes parts in float32 whatever its parameters are needs more, and says why beside it.
        opacus: Empty where Opacus' hooks give the same clipped sum; else why they do not. Both are tested.
        refused: Text of the checker's refusal where the model is not to be accepted; then nothing else is tested.
        slow: Left to ``BASTIONAI_SLOW=1``.
    """

    name: str
    shows: str
    build: Callable[[], Model]
    rows: int = 4
    tolerance: float = 1e-9
    opacus: str = ""
    refused: str = ""
    slow: bool = False

    def made(self) -> Model:
        """The model and its records under a seed of the case's own; PyTorch's generator is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(sum(map(ord, self.name)))
            model = self.build()
        if model.records is None:
            model.records = synthetic_columns(model.contract, self.rows, seed=1)
        return model
