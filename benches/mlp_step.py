"""One private training step of an MLP against plain PyTorch and Opacus, interleaved in one run.

Every round takes one step with each contender, in an order that rotates; what counts is the median over rounds of the
ratio to the plain step *of the same round*, so that a busy machine slows both sides of a ratio alike.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

ENGINE = Path("target/release/examples/bench_step")
ROWS = 4096
WARM_UP_ROUNDS = 5


@dataclass
class Setting:
    """What is trained: sizes of the layers, expected batch size, optimizer, threads, rounds."""

    layers: list[int] = field(default_factory=lambda: [784, 512, 512, 10])
    batch_size: int = 256
    optimizer: str = "sgd"
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    rounds: int = 60


def module(layers: list[int]) -> nn.Sequential:
    """Linear → relu → … → linear."""
    parts: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(layers):
        parts += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def optimizer_of(setting: Setting, parameters: Any) -> torch.optim.Optimizer:
    """The same optimizer that the engine's side runs."""
    if setting.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=1e-3)
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def data(setting: Setting) -> tuple[torch.Tensor, torch.Tensor]:
    """Made-up records."""
    return torch.rand(ROWS, setting.layers[0]) * 2 - 1, torch.randint(setting.layers[-1], (ROWS,))


def torch_step(setting: Setting, precision: str) -> Callable[[], float]:
    """Plain, not private: gather a batch, forward, backward, update."""
    network, (features, labels) = module(setting.layers), data(setting)
    optimizer, loss = optimizer_of(setting, network.parameters()), nn.CrossEntropyLoss()

    def step() -> float:
        torch.set_float32_matmul_precision(precision)
        start = time.perf_counter()
        rows = torch.randint(ROWS, (setting.batch_size,))
        optimizer.zero_grad(set_to_none=True)
        loss(network(features[rows]), labels[rows]).backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def opacus_step(setting: Setting, mode: str) -> Callable[[], float]:
    """Opacus 1.x: `hooks` (its default) or `ghost`. Batches of the expected size; it pays nothing for sampling here."""
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    network, (features, labels) = module(setting.layers).train(), data(setting)
    loader = DataLoader(TensorDataset(features, labels), batch_size=setting.batch_size)
    made = PrivacyEngine().make_private(
        module=network,
        optimizer=optimizer_of(setting, network.parameters()),
        data_loader=loader,
        criterion=nn.CrossEntropyLoss(),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        grad_sample_mode=mode,
    )
    private, optimizer = made[0], made[1]
    loss = made[2] if mode == "ghost" else nn.CrossEntropyLoss()

    def step() -> float:
        torch.set_float32_matmul_precision("highest")
        start = time.perf_counter()
        rows = torch.randint(ROWS, (setting.batch_size,))
        optimizer.zero_grad(set_to_none=True)
        loss(private(features[rows]), labels[rows]).backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


class EngineStep:
    """The engine in a process of its own, as in production; it sleeps between its steps."""

    def __init__(self, setting: Setting) -> None:
        """Starts it and reads what it chose (kernels, physical batch, extra noise for rounding)."""
        layers = ",".join(map(str, setting.layers))
        command = [
            str(ENGINE),
            layers,
            str(setting.batch_size),
            str(setting.threads),
            setting.optimizer,
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.chosen = self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the engine ended with status {self.process.wait()}; its error is above")
        return line.strip()

    def __call__(self) -> float:
        """One step; seconds as the engine measured them."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        return float(self._read())

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(setting: Setting) -> dict[str, Any]:
    """Runs all rounds; medians of seconds and of paired ratios to both plain settings."""
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(setting.threads)
    engine = EngineStep(setting)
    contenders: dict[str, Callable[[], float]] = {
        "plain PyTorch, default f32": torch_step(setting, "highest"),
        "plain PyTorch, medium f32": torch_step(setting, "medium"),
        "BastionAI, private": engine,
        "Opacus, hooks": opacus_step(setting, "hooks"),
        "Opacus, ghost": opacus_step(setting, "ghost"),
    }
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(WARM_UP_ROUNDS + setting.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken = contenders[name]()
            if turn >= WARM_UP_ROUNDS:
                seconds[name].append(taken)
    engine.close()
    plain = seconds[names[0]]
    fastest = min(plain, seconds[names[1]], key=statistics.median)

    def ratio(name: str, base: list[float]) -> float:
        return statistics.median(own / other for own, other in zip(seconds[name], base, strict=True))

    return {
        "setting": vars(setting),
        "engine": engine.chosen,
        "torch": torch.__version__,
        "contenders": {
            name: {
                "median_ms": 1e3 * statistics.median(seconds[name]),
                "ratio_to_plain_default": ratio(name, plain),
                "ratio_to_plain_fastest": ratio(name, fastest),
            }
            for name in names
        },
    }


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    setting = result["setting"]
    sizes = "-".join(map(str, setting["layers"]))
    lines = [
        (
            f"MLP {sizes}, batch {setting['batch_size']}, {setting['optimizer']}, {setting['threads']} threads, "
            f"{setting['rounds']} rounds, torch {result['torch']}; engine: {result['engine']}"
        ),
        f"{'':28}{'median ms':>12}{'× plain':>10}{'× fastest plain':>18}",
    ]
    for name, row in result["contenders"].items():
        lines.append(
            f"{name:28}{row['median_ms']:12.2f}{row['ratio_to_plain_default']:10.2f}"
            f"{row['ratio_to_plain_fastest']:18.2f}"
        )
    return "\n".join(lines)
