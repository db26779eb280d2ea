"""Models of Hugging Face's libraries: what they do beside computing logits is switched off while they are exported."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from bastionai.exceptions import ExportError


def without_caches(module: nn.Module) -> nn.Module:
    """The module with its key-value caches off: they are for generating text token by token, and change no logit.

    Args:
        module: A copy that may be changed; its configurations are changed with it.
    """
    for layer in module.modules():
        config = getattr(layer, "config", None)
        if config is not None and getattr(config, "use_cache", False):
            config.use_cache = False
    return module


def with_fused_activations(module: nn.Module) -> nn.Module:
    """The module with GPT-2's GELU, which its library spells out in eight operators, as the one that computes it.

    Args:
        module: A copy that may be changed.
    """
    for parent in module.modules():
        for name, child in parent.named_children():
            if f"{type(child).__module__}.{type(child).__name__}" == "transformers.activations.NewGELUActivation":
                setattr(parent, name, nn.GELU(approximate="tanh"))
    return module


def logits_of(output: object) -> tuple[Tensor, bool]:
    """The logits of a model's output, and whether they were in an object or mapping under that name.

    Raises:
        ExportError: If there are none.
    """
    if isinstance(output, Tensor):
        return output, False
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0], False
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits, True
    raise ExportError(f"the model returns {type(output).__name__}; expected a tensor, or something with logits")
