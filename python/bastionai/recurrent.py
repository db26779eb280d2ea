"""The shapes that an export records for ``nn.LSTM``.

PyTorch's traced form of an LSTM has an axis too many in its last states (``[layers, 1, batch, hidden]``, torch
2.11): what follows would be traced wrongly, and the server refuses what the archive records (rule T4).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch._decomp.decompositions as decompositions


@contextlib.contextmanager
def exportable_recurrence() -> Iterator[None]:
    """While active, an LSTM's last states are traced as what they are, ``[layers, batch, hidden]``."""
    chosen: Any = decompositions.select_one_layer_lstm_function

    def selected(*given: Any) -> Any:
        layer = chosen(*given)

        def run(inputs: Any, hidden: Any, *rest: Any, **more: Any) -> Any:
            outputs, last = layer(inputs, hidden, *rest, **more)
            return outputs, tuple(state.reshape(first.shape) for state, first in zip(last, hidden, strict=True))

        return run

    decompositions.select_one_layer_lstm_function = selected
    try:
        yield
    finally:
        decompositions.select_one_layer_lstm_function = chosen
