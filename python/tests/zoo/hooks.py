"""Clipped sums by Opacus' hooks, of a model made ready for them without changing what it computes.

Hooks want a batch first in every layer, nothing in place, no buffers, and recurrent layers of Opacus'
own. Each of these has a form that computes the same numbers, so that most models have sums to compare with.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.layers import DPGRU, DPLSTM, DPRNN
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zoo import harness
from zoo.case import Model

_OWN = {nn.LSTM: DPLSTM, nn.GRU: DPGRU, nn.RNN: DPRNN}
_IN_PLACE = {"__iadd__": torch.add, "add_": torch.add, "__imul__": torch.mul, "mul_": torch.mul}


class OpacusDiffers(Exception):
    """Opacus' hooks do not give a per-sample gradient of every parameter."""


def opacus_sum(model: Model, reached: Collection[str]) -> dict[str, Tensor]:
    """The clipped sum by Opacus' hooks.

    Args:
        model: In f64 and without dropout.
        reached: Names of the parameters that the losses depend on; others have no gradient.

    Raises:
        OpacusDiffers: If they refuse the model, or leave a parameter without its rows.
    """
    module = copy.deepcopy(harness.joined(model))
    assert model.records is not None
    columns = [model.records[name] for name in module.columns]
    rows = len(columns[0])
    # Of a module with parameters of its own, Opacus runs the whole anew, and asks for a gradient of each of them.
    for name, parameter in harness.trained(module).items():
        parameter.requires_grad_(name in reached)
    _made_ready(module, rows)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hooked = GradSampleModule(module, loss_reduction="sum", strict=True)
            with _OutOfPlace():
                hooked(*columns).sum().backward()
    except Exception as error:
        raise OpacusDiffers(f"{type(error).__name__}: {error}") from error
    found = {name: getattr(each, "grad_sample", None) for name, each in harness.trained(hooked._module).items()}
    for name, gradients in found.items():
        if not isinstance(gradients, Tensor) or len(gradients) != rows:
            raise OpacusDiffers(f"no per-sample gradient of {name}")
    return harness.clipped_sum(found)


def _made_ready(module: nn.Module, rows: int) -> None:
    for layer in module.modules():
        for name, child in layer.named_children():
            if type(child) in _OWN:
                setattr(layer, name, _own(child))
    for layer in module.modules():
        if getattr(layer, "inplace", False):
            layer.inplace = False
        _without_buffers(layer)
        if isinstance(layer, nn.Embedding):
            layer.register_forward_pre_hook(lambda _, given: _of_every_record(given[0], rows))
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            # Opacus reads a convolution's input by strides that it takes for granted.
            layer.register_forward_pre_hook(lambda _, given: (given[0].contiguous(),))


def _own(layer: nn.RNNBase) -> nn.Module:
    """Opacus' layer of the same weights under the same names."""
    options: dict[str, Any] = {
        name: getattr(layer, name) for name in ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
    }
    if isinstance(layer, nn.RNN):
        options["nonlinearity"] = layer.nonlinearity
    made = _OWN[type(layer)](layer.input_size, layer.hidden_size, **options).to(layer.all_weights[0][0].dtype)
    made.load_state_dict(layer.state_dict())
    originals = dict(layer.named_parameters())
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(originals[name].requires_grad)
    return made


def _without_buffers(layer: nn.Module) -> None:
    """Statistics and tables of indices as plain attributes: they are constants."""
    for name, buffer in list(layer.named_buffers(recurse=False)):
        delattr(layer, name)
        setattr(layer, name, buffer.detach())


def _of_every_record(ids: Tensor, rows: int) -> tuple[Tensor]:
    """Positions are looked up once for a batch: here once for each record."""
    return (ids.expand(rows, -1) if ids.dim() == 2 and len(ids) == 1 else ids,)


class _OutOfPlace(TorchFunctionMode):
    """``a += b`` as ``a = a + b``."""

    def __torch_function__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        return _IN_PLACE.get(name, function)(*given, **(named or {}))
