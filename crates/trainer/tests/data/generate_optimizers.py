"""Writes optimizers.json: torch.optim's own numbers, which the fused pass must reproduce to rounding.

Run with the pinned torch: .venv/bin/python crates/trainer/tests/data/generate_optimizers.py
"""

import json
import math
import pathlib

import numpy as np
import torch

STEPS, SIZE, SCALE = 5, 6, 2.0**-20
CASES = {
    "sgd": (
        "Sgd",
        {
            "lr": 0.1,
            "momentum": 0.0,
            "dampening": 0.0,
            "weight_decay": 0.0,
            "nesterov": False,
        },
    ),
    "sgd_decay": (
        "Sgd",
        {
            "lr": 0.05,
            "momentum": 0.0,
            "dampening": 0.0,
            "weight_decay": 0.3,
            "nesterov": False,
        },
    ),
    "sgd_momentum": (
        "Sgd",
        {
            "lr": 0.1,
            "momentum": 0.9,
            "dampening": 0.0,
            "weight_decay": 0.01,
            "nesterov": False,
        },
    ),
    "sgd_dampening": (
        "Sgd",
        {
            "lr": 0.1,
            "momentum": 0.8,
            "dampening": 0.4,
            "weight_decay": 0.01,
            "nesterov": False,
        },
    ),
    "sgd_nesterov": (
        "Sgd",
        {
            "lr": 0.1,
            "momentum": 0.9,
            "dampening": 0.0,
            "weight_decay": 0.02,
            "nesterov": True,
        },
    ),
    "adamw": (
        "AdamW",
        {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01},
    ),
    "adamw_decay": (
        "AdamW",
        {"lr": 0.02, "beta1": 0.7, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.5},
    ),
    "adam": (
        "Adam",
        {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
    ),
    "adam_penalty": (
        "Adam",
        {"lr": 0.02, "beta1": 0.7, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.5},
    ),
}
#: DP-AdamBC: the variance of the noise in a gradient's coordinate at each step, which later steps know to be so.
CORRECTED = [
    {
        "decoupled": False,
        "numbers": {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1},
        "floor": 0.5,
        "bands": [],
        "variances": [1.0] * STEPS,
    },
    {
        "decoupled": True,
        "numbers": {"lr": 0.02, "beta1": 0.7, "beta2": 0.9, "eps": 1e-8, "weight_decay": 0.3},
        "floor": 1e-2,
        # Noise that takes back half of the step before: h = 1, -1/2, 1/4, ...
        "bands": [2048],
        "variances": [sum(0.25**i for i in range(t + 1)) for t in range(STEPS)],
    },
]
CONSTANT = {"decay": "constant", "warmup": {"steps": 0}}
#: Cases run under another schedule than the constant one.
SCHEDULED = {
    "sgd_momentum": {"decay": {"linear": {"final_ratio": 0.25}}, "warmup": {"steps": 2}},
    "adamw_decay": {"decay": {"cosine": {"final_ratio": 0.0}}, "warmup": {"steps": 2}},
    "adam_penalty": {"decay": {"linear": {"final_ratio": 0.0}}, "warmup": {"ratio": 0.3}},
}


def factor(schedule: dict, steps: int):
    """The lambdas of transformers' optimization.py, for torch.optim.lr_scheduler.LambdaLR.

    get_constant_schedule_with_warmup, get_linear_schedule_with_warmup, get_cosine_schedule_with_warmup
    (num_cycles = 0.5), and get_cosine_with_min_lr_schedule_with_warmup for the final ratio.
    """
    warmup = schedule["warmup"]
    warmup_steps = warmup["steps"] if "steps" in warmup else math.ceil(steps * warmup["ratio"])
    decay = schedule["decay"]
    name, options = (decay, {}) if isinstance(decay, str) else next(iter(decay.items()))
    final_ratio = options.get("final_ratio", 0.0)

    def at(current_step: int) -> float:
        if current_step < warmup_steps:
            return float(current_step) / float(max(1, warmup_steps))
        if name == "constant":
            return 1.0
        if name == "linear":
            plain = max(0.0, float(steps - current_step) / float(max(1, steps - warmup_steps)))
        else:
            progress = float(current_step - warmup_steps) / float(max(1, steps - warmup_steps))
            plain = max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * progress)))
        return plain * (1.0 - final_ratio) + final_ratio

    return at


def factors(schedule: dict, steps: int) -> list:
    """The learning rates that an optimizer of rate 1 has at its steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor(schedule, steps))
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def schedules() -> list:
    decays = ["constant"] + [
        {name: {"final_ratio": final_ratio}} for name in ("linear", "cosine") for final_ratio in (0.0, 0.1)
    ]
    warmups = [{"steps": 0}, {"steps": 7}, {"ratio": 0.06}, {"steps": 23}]
    cases = [{"decay": decay, "warmup": warmup} for decay in decays for warmup in warmups]
    return [{"schedule": case, "factors": factors(case, 23)} for case in cases]


def run(
    kind: str,
    numbers: dict,
    dtype: torch.dtype,
    units: torch.Tensor,
    start: torch.Tensor,
    schedule: dict,
) -> list:
    weight = torch.nn.Parameter(start.to(dtype, copy=True))
    if kind == "Sgd":
        optimizer = torch.optim.SGD([weight], **numbers, foreach=False)
    else:
        options = dict(numbers)
        betas = (options.pop("beta1"), options.pop("beta2"))
        optimizer = getattr(torch.optim, kind)([weight], betas=betas, **options, foreach=False)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor(schedule, STEPS))
    trajectory = []
    for step in range(STEPS):
        weight.grad = (units[step].double() * SCALE).to(dtype)
        optimizer.step()
        scheduler.step()
        trajectory.append(weight.detach().double().tolist())
    return trajectory


def corrected(case: dict, dtype: type, units: torch.Tensor, start: torch.Tensor) -> list:
    """Tang, Shpilevskiy and Lecuyer 2023, algorithm 1, in NumPy; Phi is averaged as the squares it is part of."""
    lr, b1, b2 = (case["numbers"][name] for name in ("lr", "beta1", "beta2"))
    decay = case["numbers"]["weight_decay"]
    weight = start.numpy().astype(dtype)
    mean, square, phi, trajectory = np.zeros_like(weight), np.zeros_like(weight), 0.0, []
    for step in range(STEPS):
        gradient = (units[step].double().numpy() * SCALE).astype(dtype)
        if not case["decoupled"]:
            gradient = gradient + dtype(decay) * weight
        mean = dtype(b1) * mean + dtype(1 - b1) * gradient
        square = dtype(b2) * square + dtype(1 - b2) * gradient * gradient
        phi = b2 * phi + (1 - b2) * case["variances"][step]
        mean_hat = mean / dtype(1 - b1 ** (step + 1))
        square_hat, phi_hat = square / dtype(1 - b2 ** (step + 1)), phi / (1 - b2 ** (step + 1))
        if case["decoupled"]:
            weight = weight * dtype(1 - lr * decay)
        weight = weight - dtype(lr) * mean_hat / np.sqrt(np.maximum(square_hat - dtype(phi_hat), dtype(case["floor"])))
        trajectory.append(weight.astype(np.float64).tolist())
    return trajectory


def averages(iterates: list, decay: float) -> list:
    """The mean of the first t iterates for every t, the one after step s weighted by decay ** (t - s)."""
    iterates = torch.tensor(iterates, dtype=torch.float64)
    means = []
    for t in range(1, len(iterates) + 1):
        weights = torch.tensor([decay ** (t - s) for s in range(1, t + 1)], dtype=torch.float64)
        means.append(((weights[:, None] * iterates[:t]).sum(0) / weights.sum()).tolist())
    return means


def main() -> None:
    generator = torch.Generator().manual_seed(20261123)
    units = torch.randint(-(2**22), 2**22, (STEPS, SIZE), generator=generator)
    start = torch.randn(SIZE, generator=generator).to(torch.float32).double()
    out = {
        "torch": torch.__version__,
        "scale": SCALE,
        "units": units.tolist(),
        "start": start.tolist(),
        "cases": {},
        "schedules": schedules(),
    }
    for name, (kind, numbers) in CASES.items():
        out["cases"][name] = {
            "kind": kind,
            "numbers": numbers,
            "schedule": SCHEDULED.get(name, CONSTANT),
            "float32": run(kind, numbers, torch.float32, units, start, SCHEDULED.get(name, CONSTANT)),
            "float64": run(kind, numbers, torch.float64, units, start, SCHEDULED.get(name, CONSTANT)),
        }
    out["corrected"] = [
        {
            **case,
            "float32": corrected(case, np.float32, units, start),
            "float64": corrected(case, np.float64, units, start),
        }
        for case in CORRECTED
    ]
    iterates = out["cases"]["sgd_momentum"]["float64"]
    out["averages"] = [{"decay": decay, "averages": averages(iterates, decay)} for decay in (0.5, 0.9, 0.9999)]
    pathlib.Path(__file__).with_name("optimizers.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
