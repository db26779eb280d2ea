"""Losses that give one number per sample.

DP-SGD clips the gradient of *each sample's* loss, so a loss must not mix samples. PyTorch's losses
average over the batch by default; here each is rewritten so that sample i's loss depends on sample i
alone. The optimizer then divides the sum of clipped gradients by the public batch size, which is
what a mean over the batch is in DP training.

What changes against PyTorch's ``reduction="mean"``:

* Class weights: sample i counts ``weight[target_i]`` times. PyTorch also divides by the sum of the
  weights *in the batch*, a number that depends on the other samples; here there is no such division,
  so scale the weights around 1 to keep the size of the gradients.
* ``causal_lm``: the shift to the next token, and the mean over tokens, are within each sample.
* Targets with several positions per sample (token labels): positions are averaged *within* a sample,
  by weight, and ``ignore_index`` positions do not count. A sample with no counted position has loss 0.
* Other outputs of several dimensions (``[batch, ...]``) are averaged within a sample.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bastionai.exceptions import LossError

if TYPE_CHECKING:
    from bastionai.contract import Column

#: What ``loss=`` accepts.
LossLike = str | nn.Module | type[nn.Module] | Callable[[Tensor, Tensor], Tensor]


class PerSampleLoss(nn.Module):
    """Maps a batch of outputs and targets to one loss per sample, ``[batch]``."""

    #: Sum within a sample instead of averaging.
    total: bool = False

    def suggested_max_loss(self, label: Column) -> float:
        """Where to clip the loss that is shown during training, from public facts alone.

        Args:
            label: The column that is compared with.

        Returns:
            The suggestion for one position, times the positions of a sample where those are summed.
        """
        return self._suggested_of_position(label) * (self._positions_of(label) if self.total else 1)

    def _suggested_of_position(self, label: Column) -> float:
        del label
        return 1.0

    def _positions_of(self, label: Column) -> int:
        """Numbers of one sample that a loss with ``total`` sums."""
        return math.prod(label.shape)


class CrossEntropy(PerSampleLoss):
    """Cross-entropy of logits ``[batch, classes, ...]``; targets are class indices or probabilities.

    Args:
        weight: Per class; see the module's text for what it means per sample.
        ignore_index: Target value that counts nothing.
        label_smoothing: As in ``nn.CrossEntropyLoss``.
        log_probabilities: The outputs are log-probabilities already (``nn.NLLLoss``).
        total: Sum positions within a sample instead of averaging them (``reduction="sum"``).
        may_ignore: Whether ``ignore_index`` can occur in the label column; when it cannot, the
            graph is simpler.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        log_probabilities: bool = False,
        total: bool = False,
        may_ignore: bool = True,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", None if weight is None else weight.detach().clone())
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.log_probabilities = log_probabilities
        self.total = total
        self.may_ignore = may_ignore

    def _suggested_of_position(self, label: Column) -> float:
        """Twice the loss of guessing uniformly."""
        return 2.0 * math.log(max(2, label.class_count or 2))

    def _positions_of(self, label: Column) -> int:
        # Of a column of probabilities the first axis is the classes.
        return math.prod(label.shape[1:] if label.torch_dtype.is_floating_point else label.shape)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """One loss per sample."""
        if output.dim() < 2:
            raise LossError(
                f"cross_entropy needs logits of shape [batch, classes, ...], the model gives {_shape(output)}; "
                'for one logit per sample use loss="bce_with_logits"'
            )
        # Classes last: [batch, positions..., classes].
        log_p = _classes_last(output)
        if not self.log_probabilities:
            log_p = torch.log_softmax(log_p, dim=-1)
        if target.is_floating_point():
            soft = self._soft(log_p, _classes_last(target))
            return _within(soft, self.total)
        if target.dim() == output.dim() and target.shape[1] == 1:
            target = target.squeeze(1)
        if target.dim() != output.dim() - 1:
            raise LossError(
                f"cross_entropy: logits are {_shape(output)}, so class targets must be "
                f"{_shape(log_p[..., 0])}, but they are {_shape(target)}"
            )
        return self._hard(log_p, target)

    def _soft(self, log_p: Tensor, probabilities: Tensor) -> Tensor:
        if self.label_smoothing > 0.0:
            classes = log_p.shape[-1]
            probabilities = probabilities * (1.0 - self.label_smoothing) + self.label_smoothing / classes
        weighted = log_p if self.weight is None else log_p * self.weight
        return -(weighted * probabilities).sum(dim=-1)

    def _hard(self, log_p: Tensor, target: Tensor) -> Tensor:
        losses, counts = self._positions(log_p, target)
        return self._reduced(losses, counts)

    def _positions(self, log_p: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """The loss of every position, and its weight; None where each counts once."""
        ignored = target == self.ignore_index if self.may_ignore else None
        index = target if ignored is None else torch.where(ignored, torch.zeros_like(target), target)
        index = (index if index.dtype == torch.int64 else index.to(torch.int64)).unsqueeze(-1)
        weighted = log_p if self.weight is None else log_p * self.weight
        losses = -weighted.gather(-1, index).squeeze(-1)
        if self.label_smoothing > 0.0:
            smooth = -weighted.mean(dim=-1)
            losses = losses * (1.0 - self.label_smoothing) + smooth * self.label_smoothing
        counts = None
        if self.weight is not None:
            counts = (torch.ones_like(log_p) * self.weight).gather(-1, index).squeeze(-1)
        if ignored is not None:
            zeros = torch.zeros_like(losses)
            counts = torch.where(ignored, zeros, torch.ones_like(losses) if counts is None else counts)
            losses = torch.where(ignored, zeros, losses)
        return losses, counts

    def _reduced(self, losses: Tensor, counts: Tensor | None) -> Tensor:
        """One loss per sample."""
        if losses.dim() == 1:
            return losses
        if self.total or counts is None:
            return _within(losses, self.total)
        # A sample without a counted position is divided by a tiny number instead of zero.
        counted = _within(counts, total=True).clamp(min=torch.finfo(counts.dtype).tiny)
        return _within(losses, total=True) / counted


class CausalLanguageModel(CrossEntropy):
    """Cross-entropy of each next token: logits ``[batch, tokens, vocabulary]``, targets the tokens themselves.

    The shift by one is within each sample: the logits at position t are compared with token t + 1. A
    sample's loss is the mean over its own counted tokens, whatever the other samples' lengths are
    (HuggingFace's loss divides by the tokens of the whole batch). A sample with none has loss 0.

    Args:
        ignore_index: Target token that counts nothing: -100, or the id of the padding token.
        label_smoothing: As in ``nn.CrossEntropyLoss``.
        total: Sum over a sample's tokens instead of averaging.
    """

    def __init__(self, ignore_index: int = -100, label_smoothing: float = 0.0, total: bool = False) -> None:
        super().__init__(ignore_index=ignore_index, label_smoothing=label_smoothing, total=total)

    def _positions_of(self, label: Column) -> int:
        """Every token but the first is guessed."""
        return max(1, super()._positions_of(label) - 1)

    def without_padding(self, target: Tensor, mask: Tensor | None) -> Tensor:
        """The target tokens, padding ignored.

        Args:
            target: ``[batch, tokens]``.
            mask: ``[batch, tokens]``, zero where the tokenizer padded; None where nothing is known of padding.
        """
        if mask is None or mask.shape != target.shape:
            return target
        return torch.where(mask == 0, torch.full_like(target, self.ignore_index), target)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """One loss per sample."""
        if output.dim() != 3 or target.dim() != 2 or output.shape[1] != target.shape[1] or output.shape[1] < 2:
            raise LossError(
                "causal_lm needs logits [batch, tokens, vocabulary] and at least two target tokens [batch, tokens]; "
                f"the model gives {_shape(output)}, the targets are {_shape(target)}"
            )
        # Targets are moved, not logits: a slice of the logits would be copied, and they are the largest value by far.
        # The last position meets the first token, and is dropped.
        following = torch.roll(target, -1, 1)
        losses, counts = self._positions(torch.log_softmax(output, dim=-1), following)
        return self._reduced(losses[:, :-1], None if counts is None else counts[:, :-1])


class BinaryCrossEntropy(PerSampleLoss):
    """Binary cross-entropy of logits or probabilities, averaged within a sample.

    Args:
        logits: Whether outputs are logits (``nn.BCEWithLogitsLoss``) or probabilities (``nn.BCELoss``).
        weight: Factor per element of the output, broadcast within a sample.
        pos_weight: Factor of positive targets, broadcast within a sample.
        total: Sum within a sample instead of averaging.
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        logits: bool,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        total: bool = False,
    ) -> None:
        super().__init__()
        self.logits = logits
        self.total = total
        self.register_buffer("weight", None if weight is None else weight.detach().clone())
        self.register_buffer("pos_weight", None if pos_weight is None else pos_weight.detach().clone())

    def _suggested_of_position(self, label: Column) -> float:
        """Twice the loss of guessing 0.5."""
        del label
        return 2.0 * math.log(2.0)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """One loss per sample."""
        output, target = _aligned(output, target, "binary cross-entropy")
        if self.logits:
            negative, positive = -F.logsigmoid(-output), -F.logsigmoid(output)
        else:
            # A probability of exactly 0 or 1 costs 87 (nn.BCELoss: 100), never infinity, and its
            # gradient is 0: clamping the logarithm instead would give 0·∞ there.
            tiny = torch.finfo(output.dtype).tiny
            negative = -torch.log((1.0 - output).clamp(min=tiny))
            positive = -torch.log(output.clamp(min=tiny))
        if self.pos_weight is not None:
            positive = positive * self.pos_weight
        losses = target * positive + (1.0 - target) * negative
        return _within(losses if self.weight is None else losses * self.weight, self.total)


class Regression(PerSampleLoss):
    """Squared, absolute or Huber error, averaged within a sample.

    Args:
        kind: ``mse``, ``l1``, ``huber`` or ``smooth_l1``.
        threshold: ``delta`` of Huber, ``beta`` of smooth L1.
        total: Sum within a sample instead of averaging.
    """

    def __init__(self, kind: str, threshold: float = 1.0, total: bool = False) -> None:
        super().__init__()
        self.total = total
        self.kind = kind
        self.threshold = threshold

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """One loss per sample."""
        output, target = _aligned(output, target, self.kind)
        difference = output - target
        if self.kind == "mse":
            return _within(difference * difference, self.total)
        distance = difference.abs()
        if self.kind == "l1" or self.threshold == 0.0:
            return _within(distance, self.total)
        # Quadratic up to the threshold, linear beyond: near·(distance − near/2).
        near = distance.clamp(max=self.threshold)
        losses = near * (distance - near * 0.5)
        return _within(losses / self.threshold if self.kind == "smooth_l1" else losses, self.total)


class Unreduced(PerSampleLoss):
    """Any other loss: called with ``reduction="none"`` where it knows that, averaged within a sample.

    Args:
        loss: The user's module or function.
        name: For messages.
        total: Sum within a sample instead of averaging (the module said ``reduction="sum"``).
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], name: str, total: bool = False) -> None:
        super().__init__()
        self.loss = loss
        self.name = name
        self.total = total

    def _positions_of(self, label: Column) -> int:
        # A divergence sums the classes of one distribution.
        return 1 if isinstance(self.loss, nn.KLDivLoss) else super()._positions_of(label)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """One loss per sample."""
        losses = self.loss(output, target)
        if not isinstance(losses, Tensor) or losses.dim() == 0:
            raise LossError(
                f"{self.name} gives one number for the whole batch. DP training needs one loss per sample: "
                'return a tensor of shape [batch] (reduction="none", or mean(dim=1) within a sample)'
            )
        return _within(losses, self.total)


def per_sample_loss(loss: LossLike) -> PerSampleLoss:
    """Rewrites a loss so that it gives one number per sample.

    Args:
        loss: A name (``cross_entropy``, ``nll``, ``causal_lm``, ``bce_with_logits``, ``bce`` on probabilities,
            ``mse``, ``l1``, ``huber``, ``smooth_l1``), a loss module or class of ``torch.nn``, a
            function of ``torch.nn.functional``, or your own callable ``(output, target)`` that
            returns ``[batch]`` or ``[batch, ...]``.

    Raises:
        LossError: If it has no per-sample form.
    """
    if isinstance(loss, PerSampleLoss):
        return loss
    if isinstance(loss, str):
        return _named(loss)
    if isinstance(loss, type):
        return per_sample_loss(loss())
    if isinstance(loss, nn.Module):
        return _module(loss)
    if callable(loss):
        return _function(loss)
    raise LossError(f"loss={loss!r}: expected a name, a loss module or a function of (output, target)")


_NAMED: dict[str, Callable[[], PerSampleLoss]] = {
    "cross_entropy": CrossEntropy,
    "nll": lambda: CrossEntropy(log_probabilities=True),
    "nll_loss": lambda: CrossEntropy(log_probabilities=True),
    "causal_lm": CausalLanguageModel,
    "bce_with_logits": lambda: BinaryCrossEntropy(logits=True),
    "binary_cross_entropy_with_logits": lambda: BinaryCrossEntropy(logits=True),
    "bce": lambda: BinaryCrossEntropy(logits=False),
    "binary_cross_entropy": lambda: BinaryCrossEntropy(logits=False),
    "mse": lambda: Regression("mse"),
    "mse_loss": lambda: Regression("mse"),
    "l1": lambda: Regression("l1"),
    "l1_loss": lambda: Regression("l1"),
    "huber": lambda: Regression("huber"),
    "huber_loss": lambda: Regression("huber"),
    "smooth_l1": lambda: Regression("smooth_l1"),
    "smooth_l1_loss": lambda: Regression("smooth_l1"),
}


def _named(name: str) -> PerSampleLoss:
    if name not in _NAMED:
        raise LossError(f"no loss named {name!r}; there are {', '.join(_NAMED)}")
    return _NAMED[name]()


def _module(loss: nn.Module) -> PerSampleLoss:
    # Exact types only: a subclass may have changed what forward computes.
    total = getattr(loss, "reduction", "mean") == "sum"
    match loss:
        case nn.CrossEntropyLoss() if type(loss) is nn.CrossEntropyLoss:
            return CrossEntropy(loss.weight, loss.ignore_index, loss.label_smoothing, total=total)
        case nn.NLLLoss() if type(loss) is nn.NLLLoss:
            return CrossEntropy(loss.weight, loss.ignore_index, log_probabilities=True, total=total)
        case nn.BCEWithLogitsLoss() if type(loss) is nn.BCEWithLogitsLoss:
            return BinaryCrossEntropy(True, loss.weight, loss.pos_weight, total)
        case nn.BCELoss() if type(loss) is nn.BCELoss:
            return BinaryCrossEntropy(False, loss.weight, total=total)
        case nn.MSELoss() if type(loss) is nn.MSELoss:
            return Regression("mse", total=total)
        case nn.L1Loss() if type(loss) is nn.L1Loss:
            return Regression("l1", total=total)
        case nn.HuberLoss() if type(loss) is nn.HuberLoss:
            return Regression("huber", loss.delta, total)
        case nn.SmoothL1Loss() if type(loss) is nn.SmoothL1Loss:
            return Regression("smooth_l1", loss.beta, total)
        case nn.CTCLoss() | nn.AdaptiveLogSoftmaxWithLoss():
            name = type(loss).__name__
            raise LossError(f"nn.{name} is not supported: no rule proves that its operators keep samples apart")
    return _generic_module(loss)


def _generic_module(loss: nn.Module) -> PerSampleLoss:
    reduction = getattr(loss, "reduction", None)
    if reduction is None:
        return Unreduced(loss, type(loss).__name__)
    unreduced = copy.deepcopy(loss)
    vars(unreduced)["reduction"] = "none"
    # `batchmean` (KLDivLoss) sums what belongs to a sample and divides by the batch size.
    return Unreduced(unreduced, type(loss).__name__, total=reduction in ("sum", "batchmean"))


def _function(loss: Callable[[Tensor, Tensor], Tensor]) -> PerSampleLoss:
    name = getattr(loss, "__name__", type(loss).__name__)
    if getattr(F, name, None) is loss and name in _NAMED:
        return _NAMED[name]()
    try:
        parameters = inspect.signature(loss).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    if "reduction" in parameters:
        return Unreduced(lambda output, target: loss(output, target, reduction="none"), name)  # type: ignore[call-arg]
    return Unreduced(loss, name)


def classes_second(output: Tensor, target: Tensor, named: bool) -> Tensor:
    """Logits of several positions as PyTorch has them, ``[batch, classes, positions...]``.

    Models that label tokens return ``[batch, tokens, classes]``. Shapes tell the two apart; where they do not, an
    output that was called ``logits`` (``named``) has its classes last.

    Args:
        output: The model's logits.
        target: Class indices.
        named: Whether the model returned an object with ``logits``.
    """
    if output.dim() != 3 or target.dim() != 2 or target.is_floating_point():
        return output
    second, last = output.shape[1], output.shape[2]
    fits_second, fits_last = target.shape[1] == last, target.shape[1] == second
    return output.transpose(1, 2) if fits_last and (named or not fits_second) else output


def _aligned(output: Tensor, target: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Output and target of one shape.

    ``[batch, 1]`` against ``[batch]`` would broadcast to ``[batch, batch]``: every sample against
    every other one (rule T4).
    """
    if output.dim() == target.dim() + 1 and output.shape[-1] == 1:
        output = output.squeeze(-1)
    elif target.dim() == output.dim() + 1 and target.shape[-1] == 1:
        target = target.squeeze(-1)
    if output.dim() != target.dim() or output.shape[1:] != target.shape[1:]:
        raise LossError(f"{name}: the model gives {_shape(output)}, the targets are {_shape(target)}; make them equal")
    return output, target if target.dtype == output.dtype else target.to(output.dtype)


def _classes_last(tensor: Tensor) -> Tensor:
    """``[batch, classes, positions...]`` → ``[batch, positions..., classes]``."""
    return tensor if tensor.dim() == 2 else tensor.permute(0, *range(2, tensor.dim()), 1)


def _within(losses: Tensor, total: bool) -> Tensor:
    """Sums or averages everything of a sample."""
    if losses.dim() == 1:
        return losses
    inner = list(range(1, losses.dim()))
    return losses.sum(dim=inner) if total else losses.mean(dim=inner)


def _shape(tensor: Tensor) -> str:
    return f"[{', '.join(['batch', *(str(int(extent)) for extent in tensor.shape[1:])])}]"
