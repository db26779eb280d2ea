"""Optimizers the server knows, and what is understood of ``torch.optim``.

The update runs in the server's trainer, on noisy gradients, so an optimizer is a description here.
"""

from __future__ import annotations

import functools
import inspect
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bastionai.exceptions import InvalidRequest


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, as ``torch.optim.SGD``.

    Attributes:
        lr: Learning rate.
        momentum: Momentum factor.
        dampening: Dampening of the momentum.
        weight_decay: L2 penalty; acts on public weights, so it costs no privacy.
        nesterov: Nesterov momentum.
    """

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        _check("SGD", lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        if self.nesterov and (self.momentum <= 0.0 or self.dampening != 0.0):
            raise InvalidRequest("SGD: nesterov needs momentum > 0 and dampening = 0")


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay, as ``torch.optim.AdamW``.

    Attributes:
        lr: Learning rate.
        betas: Decay rates of the running averages.
        eps: Added to the denominator.
        weight_decay: Decoupled decay; acts on public weights, so it costs no privacy.
        noise_correction: As :class:`Adam` has it.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    noise_correction: float | None = None

    def __post_init__(self) -> None:
        _check("AdamW", lr=self.lr, eps=self.eps, weight_decay=self.weight_decay)
        _check_betas("AdamW", self.betas)
        _check_correction("AdamW", self.noise_correction)


@dataclass(frozen=True)
class Adam:
    """Adam, as ``torch.optim.Adam`` without amsgrad.

    Attributes:
        lr: Learning rate.
        betas: Decay rates of the running averages.
        eps: Added to the denominator.
        weight_decay: L2 penalty: enters the running averages, unlike AdamW's; costs no privacy.
        noise_correction: DP-AdamBC (Tang, Shpilevskiy and Lécuyer 2023, arXiv 2312.14334): the noise's variance,
            which is public, is taken off the running average of squares, which is then at least this number (γ′; try
            5e-8, smaller where gradients are). It takes the place of ``eps``. Without it most of that average is
            noise, and Adam is hardly more than SGD. Costs no privacy.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    noise_correction: float | None = None

    def __post_init__(self) -> None:
        _check("Adam", lr=self.lr, eps=self.eps, weight_decay=self.weight_decay)
        _check_betas("Adam", self.betas)
        _check_correction("Adam", self.noise_correction)


#: What the server's trainer knows.
Optimizer = SGD | Adam | AdamW


def as_optimizer(optimizer: object) -> Optimizer:
    """Reads an optimizer.

    Args:
        optimizer: One of this package, or a class (or ``functools.partial`` of one) or instance of
            ``torch.optim`` SGD, Adam or AdamW. An instance gives its hyper-parameters; its
            parameters and state are not used.

    Raises:
        InvalidRequest: If it is another optimizer or uses an option that has no counterpart.
    """
    if isinstance(optimizer, (SGD, Adam, AdamW)):
        return optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        return _from_torch(type(optimizer), _one_group(optimizer))
    if isinstance(optimizer, functools.partial):
        kind: object = optimizer.func
        options = dict(optimizer.keywords)
    else:
        kind, options = optimizer, {}
    if isinstance(kind, type) and issubclass(kind, (SGD, Adam, AdamW)):
        return kind(**options)
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
        return _from_torch(kind, {**_defaults(kind), **options})
    raise _unknown(optimizer)


def _unknown(optimizer: object) -> InvalidRequest:
    return InvalidRequest(
        f"optimizer={optimizer!r} is not known; use bastionai.SGD, bastionai.Adam or bastionai.AdamW "
        "(or torch.optim's of the same names)"
    )


def _defaults(kind: type) -> dict[str, object]:
    parameters = inspect.signature(kind).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}


def _one_group(optimizer: torch.optim.Optimizer) -> dict[str, object]:
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    if any(group != groups[0] for group in groups):
        raise InvalidRequest(
            f"{type(optimizer).__name__} has parameter groups with different options; "
            "use one group, or freeze parameters with requires_grad=False"
        )
    return groups[0]


def document(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer as the server's specification has it."""
    if isinstance(optimizer, SGD):
        return {"sgd": asdict(optimizer)}
    beta1, beta2 = optimizer.betas
    parts = {"lr": optimizer.lr, "beta1": beta1, "beta2": beta2, "eps": optimizer.eps}
    parts["weight_decay"] = optimizer.weight_decay
    decoupled = isinstance(optimizer, AdamW)
    if optimizer.noise_correction is not None:
        return {"noise_corrected": {"adam": parts, "decoupled": decoupled, "floor": optimizer.noise_correction}}
    return {"adam_w" if decoupled else "adam": parts}


def _from_torch(kind: type, options: dict[str, object]) -> Optimizer:
    if options.get("amsgrad"):
        raise InvalidRequest(
            f"{kind.__name__}: amsgrad=True is refused: its running maximum of noisy squares only grows with the "
            "noise; leave it off"
        )
    for option in ("maximize", "differentiable"):
        if options.get(option):
            raise InvalidRequest(f"{kind.__name__}: {option}=True has no counterpart; leave it off")

    def number(name: str) -> float:
        return float(options[name])  # type: ignore[arg-type]

    if kind is torch.optim.SGD:
        return SGD(
            number("lr"),
            number("momentum"),
            number("dampening"),
            number("weight_decay"),
            bool(options["nesterov"]),
        )
    if kind is torch.optim.AdamW or kind is torch.optim.Adam:
        first, second = options["betas"]  # type: ignore[misc]
        decoupled = kind is torch.optim.AdamW or bool(options.get("decoupled_weight_decay"))
        made = AdamW if decoupled else Adam
        return made(number("lr"), (float(first), float(second)), number("eps"), number("weight_decay"))  # type: ignore[has-type]
    raise _unknown(kind)


def _check_betas(name: str, betas: tuple[float, float]) -> None:
    if not all(0.0 <= beta < 1.0 for beta in betas):
        raise InvalidRequest(f"{name}: betas must lie in [0, 1), got {betas}")


def _check_correction(name: str, floor: float | None) -> None:
    if floor is not None and not (math.isfinite(floor) and floor > 0.0):
        raise InvalidRequest(
            f"{name}: noise_correction must be a finite number > 0, the least second moment, e.g. 5e-8; got {floor}"
        )


def _check(name: str, **values: float) -> None:
    for option, value in values.items():
        if not (math.isfinite(value) and value >= 0.0):
            raise InvalidRequest(f"{name}: {option} must be a finite number ≥ 0, got {value}")
