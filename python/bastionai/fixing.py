"""Replaces parts of a model that cannot train with differential privacy by parts that can."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bastionai.exceptions import ExportError

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@dataclass(frozen=True)
class Change:
    """One replaced or altered module.

    Attributes:
        module: Its qualified name.
        before: What it was.
        after: What it is now.
        why: The reason.
    """

    module: str
    before: str
    after: str
    why: str

    def __str__(self) -> str:
        return f"{self.module or 'model'}: {self.before} → {self.after} ({self.why})"


class GroupNorm1d(nn.GroupNorm):
    """Group normalisation for what ``nn.BatchNorm1d`` takes: ``[batch, channels]`` or ``[batch, channels, length]``.

    On ``[batch, channels]`` there is nothing to average within one channel, so all channels of the
    sample form one group: layer normalisation.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalises every sample by itself."""
        if input.dim() == 2:
            return F.layer_norm(input, (self.num_channels,), self.weight, self.bias, self.eps)
        return super().forward(input)


class FrozenBatchNorm(nn.Module):
    """Batch normalisation by its running statistics, in training too: an affine map per channel.

    The statistics are constants (they were estimated before, on data that is already public or
    paid for); scale and shift stay trainable.

    Args:
        norm: The layer to freeze; it must track running statistics.
    """

    running_mean: Tensor
    running_scale: Tensor

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        if not norm.track_running_stats:
            raise ExportError("a BatchNorm without running statistics cannot be frozen; use batchnorm='group'")
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        self.register_buffer("running_mean", mean.detach().clone())
        self.register_buffer("running_scale", torch.rsqrt(variance.detach() + norm.eps))
        self.affine = norm.affine
        self.weight = norm.weight
        self.bias = norm.bias

    def forward(self, input: Tensor) -> Tensor:
        """Normalises with the frozen statistics."""

        def channel(values: Tensor) -> Tensor:
            return values if input.dim() == 2 else values.view(-1, *([1] * (input.dim() - 2)))

        output = (input - channel(self.running_mean)) * channel(self.running_scale)
        if not self.affine:
            return output
        return output * channel(self.weight) + channel(self.bias)


def fix(
    model: nn.Module,
    batchnorm: str | None = None,
    verbose: bool = True,
) -> nn.Module:
    """A copy of the model in which every sample is processed by itself.

    * BatchNorm normalises a sample by the others of its batch. It becomes GroupNorm (the largest
      number of groups up to 32 that divides the channels) with the same scale and shift, or is
      frozen to its running statistics. By default a layer is frozen when it looks pre-trained: when
      its running mean or variance is not the 0 and 1 that a new layer has. (PyTorch's count of
      batches does not tell: old checkpoints lack it.)
    * InstanceNorm stops tracking running statistics, which are a memory of private samples.
    * In-place activations become out-of-place, which changes no value.
    * LayerDrop and SpecAugment of Hugging Face's speech models are switched off: they draw on the host, once for a
      whole batch.

    Args:
        model: Left as it is.
        batchnorm: ``"group"`` or ``"freeze"`` for every BatchNorm; None decides for each by itself.
        verbose: Print what changed, on stderr.

    Returns:
        The changed copy. Its weights start from the model's.

    Raises:
        ExportError: If ``batchnorm`` is unknown, or a layer without statistics is to be frozen.
    """
    if batchnorm not in (None, "group", "freeze"):
        raise ExportError(f"batchnorm={batchnorm!r}: expected 'group' or 'freeze'")
    fixed = copy.deepcopy(model)
    changes: list[Change] = []
    replaced: dict[int, nn.Module] = {}

    def replacement(name: str, module: nn.Module) -> nn.Module:
        # A module used in two places stays one module.
        if id(module) not in replaced:
            replaced[id(module)] = _fixed(name, module, batchnorm, changes)
        return replaced[id(module)]

    fixed = _rebuild(fixed, "", replacement)
    _stop_host_draws(fixed, changes)
    if verbose:
        lines = [str(change) for change in changes] or ["nothing to fix"]
        print("\n".join(f"bastionai.fix: {line}" for line in lines), file=sys.stderr)
    return fixed


def unfixed(model: nn.Module) -> list[str]:
    """Qualified names of layers that :func:`fix` would have to replace before training."""
    tracking = [name for name, module in model.named_modules() if isinstance(module, _BATCH_NORMS)]
    return tracking + [
        name for name, module in model.named_modules() if isinstance(module, _INSTANCE_NORMS) and _tracks(module)
    ]


def _rebuild(module: nn.Module, name: str, replacement: Callable[[str, nn.Module], nn.Module]) -> nn.Module:
    result = replacement(name, module)
    if result is module:
        # Not named_children(), which names a shared module once only.
        for child_name, child in list(module._modules.items()):
            if child is None:
                continue
            setattr(module, child_name, _rebuild(child, f"{name}.{child_name}".lstrip("."), replacement))
    return result


def _fixed(name: str, module: nn.Module, batchnorm: str | None, changes: list[Change]) -> nn.Module:
    if isinstance(module, _BATCH_NORMS):
        freeze = batchnorm == "freeze" or (batchnorm is None and _is_pretrained(module))
        result = FrozenBatchNorm(module) if freeze else _group_norm(module)
        why = "normalised a sample by others of its batch"
        if batchnorm is None:
            why += "; it has statistics to keep" if freeze else "; it has no statistics yet"
        changes.append(Change(name, _short(module), _short(result), why))
        return result
    if isinstance(module, _INSTANCE_NORMS) and _tracks(module):
        module.track_running_stats = False
        module.running_mean = module.running_var = module.num_batches_tracked = None
        changes.append(Change(name, _short(module), "no running statistics", "they remember private samples"))
    if getattr(module, "inplace", False) is True:
        vars(module)["inplace"] = False
        changes.append(Change(name, f"{_short(module)} in place", "out of place", "the graph must be functional"))
    return module


#: Probabilities by which Hugging Face's models draw on the host in training.
_HOST_DRAWS = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop", "mask_time_prob", "mask_feature_prob")


def _stop_host_draws(model: nn.Module, changes: list[Change]) -> None:
    for name, module in model.named_modules():
        for holder in (getattr(module, "config", None), module):
            for setting in _HOST_DRAWS:
                before = getattr(holder, setting, None)
                # A configuration is shared by many modules, and named once.
                if isinstance(before, float) and before > 0.0:
                    setattr(holder, setting, 0.0)
                    why = "drew once for a whole batch"
                    changes.append(Change(name, f"{setting}={before}", f"{setting}=0.0", why))


def _is_pretrained(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        return False
    return bool((mean != 0).any() or (variance != 1).any())


def _tracks(module: nn.Module) -> bool:
    return bool(getattr(module, "track_running_stats", False))


def _group_norm(norm: nn.modules.batchnorm._BatchNorm) -> nn.GroupNorm:
    channels = norm.num_features
    groups = max(g for g in range(1, min(32, channels) + 1) if channels % g == 0)
    # One channel per group would be instance normalisation, which erases a channel's level.
    groups = groups if groups < channels else max(g for g in range(1, max(2, channels)) if channels % g == 0)
    kind = GroupNorm1d if isinstance(norm, nn.BatchNorm1d) else nn.GroupNorm
    result = kind(groups, channels, eps=norm.eps, affine=norm.affine)
    if norm.affine:
        result.weight, result.bias = norm.weight, norm.bias
    return result


def _short(module: nn.Module) -> str:
    if isinstance(module, nn.GroupNorm):
        return f"{type(module).__name__}({module.num_groups}, {module.num_channels})"
    features = getattr(module, "num_features", None)
    return f"{type(module).__name__}({features})" if features is not None else type(module).__name__
