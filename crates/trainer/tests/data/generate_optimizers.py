"""Writes optimizers.json: torch.optim's own numbers, which the fused pass must reproduce to rounding.

Run with the pinned torch: .venv/bin/python crates/trainer/tests/data/generate_optimizers.py
"""

import json
import pathlib

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
}


def run(
    kind: str,
    numbers: dict,
    dtype: torch.dtype,
    units: torch.Tensor,
    start: torch.Tensor,
) -> list:
    weight = torch.nn.Parameter(start.to(dtype, copy=True))
    if kind == "Sgd":
        optimizer = torch.optim.SGD([weight], **numbers, foreach=False)
    else:
        options = dict(numbers)
        betas = (options.pop("beta1"), options.pop("beta2"))
        optimizer = torch.optim.AdamW([weight], betas=betas, **options, foreach=False)
    trajectory = []
    for step in range(STEPS):
        weight.grad = (units[step].double() * SCALE).to(dtype)
        optimizer.step()
        trajectory.append(weight.detach().double().tolist())
    return trajectory


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
    }
    for name, (kind, numbers) in CASES.items():
        out["cases"][name] = {
            "kind": kind,
            "numbers": numbers,
            "float32": run(kind, numbers, torch.float32, units, start),
            "float64": run(kind, numbers, torch.float64, units, start),
        }
    pathlib.Path(__file__).with_name("optimizers.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
