"""One private training step of a model against plain PyTorch and Opacus, interleaved in one run.

Every round takes one step with each contender, in an order that rotates; what counts is the median over rounds of the
ratio to the plain step *of the same round*, so that a busy machine slows both sides of a ratio alike.
"""

from __future__ import annotations

import functools
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bastionai

ENGINE = Path("target/release/examples/bench_step")
ROWS = 4096
WARM_UP_ROUNDS = 5


@dataclass
class Task:
    """A model and made-up records for it.

    Attributes:
        name: For the table.
        network: Makes the model: features to logits.
        features: Makes the features of all records.
        classes: Of the labels.
        values: How many values integer features take; None for floats.
        equal_rows: Whether the engine's physical batch is the batch size of the others, so that the ratio is that of
            equal work; otherwise it is the cap of a run of 1000 steps.
    """

    name: str
    network: Callable[[], nn.Module]
    features: Callable[[], Tensor]
    classes: int
    values: int | None = None
    equal_rows: bool = False


@dataclass
class Setting:
    """What is trained: the task, expected batch size, optimizer, threads, rounds."""

    task: Task
    batch_size: int
    optimizer: str = "sgd"
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    rounds: int = 60

    def rows(self) -> str:
        """The engine's argument: expected batch size, and the physical one where it is given."""
        if self.task.equal_rows:
            # A sample of three quarters of the rows hardly ever exceeds them.
            return f"{max(1, 3 * self.batch_size // 4)}:{self.batch_size}"
        return str(self.batch_size)


def mlp(*sizes: int) -> nn.Sequential:
    """Linear → relu → … → linear."""
    parts: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        parts += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


class Transformer(nn.Module):
    """Word and position embeddings, encoder layers, the mean over the words, a linear layer."""

    def __init__(self, words: int, tokens: int, width: int, layers: int, classes: int) -> None:
        """Weights are PyTorch's own initial ones."""
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.positions = nn.Embedding(tokens, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, words: Tensor) -> Tensor:
        """Logits of each record. Positions are looked up for each record: Opacus needs a batch axis everywhere."""
        places = torch.arange(words.shape[1]).expand(words.shape[0], -1).contiguous()
        return self.head(self.encoder(self.words(words) + self.positions(places)).mean(dim=1))


class Encoder(nn.Module):
    """BERT's encoder: word and position embeddings, layers normalised after the sum, the first word's state."""

    def __init__(self, words: int, tokens: int, width: int, layers: int, heads: int) -> None:
        """Weights are PyTorch's own initial ones."""
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.positions = nn.Embedding(tokens, width)
        self.norm = nn.LayerNorm(width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.pooler = nn.Linear(width, width)
        self.head = nn.Linear(width, 2)

    def forward(self, words: Tensor) -> Tensor:
        """Logits of each record."""
        places = torch.arange(words.shape[1]).expand(words.shape[0], -1).contiguous()
        states = self.encoder(self.norm(self.words(words) + self.positions(places)))
        return self.head(torch.tanh(self.pooler(states[:, 0])))


class Recurrent(nn.Module):
    """Word embeddings, an LSTM, a linear layer over its last output."""

    def __init__(self, words: int, width: int, hidden: int, classes: int) -> None:
        """Weights are PyTorch's own initial ones."""
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.layer = nn.LSTM(width, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, words: Tensor) -> Tensor:
        """Logits of each record."""
        return self.head(self.layer(self.words(words))[0][:, -1])


def cnn() -> nn.Sequential:
    """The CNN of Opacus' MNIST example (examples/mnist.py)."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Flatten(), nn.Linear(32 * 4 * 4, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


def resnet() -> nn.Module:
    """The resnet18 of torchvision, with groups of 32 channels in place of batch statistics."""
    from torchvision.models import resnet18

    return resnet18(num_classes=10, norm_layer=functools.partial(nn.GroupNorm, 32))


MLP = Task("MLP 784-512-512-10", lambda: mlp(784, 512, 512, 10), lambda: torch.rand(ROWS, 784) * 2 - 1, 10)
CNN = Task("CNN of Opacus' MNIST example", cnn, lambda: torch.rand(ROWS, 1, 28, 28) * 2 - 1, 10)
RESNET = Task("resnet18 with GroupNorm, 64 x 64", resnet, lambda: torch.rand(ROWS, 3, 64, 64) * 2 - 1, 10)
TRANSFORMER = Task(
    "transformer, 2 layers of width 128, 64 tokens, 4096 words",
    lambda: Transformer(4096, 64, 128, 2, 2),
    lambda: torch.randint(4096, (ROWS, 64)),
    2,
    4096,
)

MINILM = Task(
    "encoder of MiniLM-L6's size (6 layers of 384, 30522 words), 128 tokens",
    lambda: Encoder(30522, 128, 384, 6, 12),
    lambda: torch.randint(30522, (ROWS, 128)),
    2,
    30522,
    equal_rows=True,
)
BERT_BASE = Task(
    "encoder of BERT-base's size (12 layers of 768, 30522 words), 128 tokens",
    lambda: Encoder(30522, 128, 768, 12, 12),
    lambda: torch.randint(30522, (ROWS, 128)),
    2,
    30522,
    equal_rows=True,
)

LSTM = Task(
    "LSTM of 128, 64 tokens of width 64, 4096 words",
    lambda: Recurrent(4096, 64, 128, 2),
    lambda: torch.randint(4096, (ROWS, 64)),
    2,
    4096,
    equal_rows=True,
)


class PerSample(nn.Module):
    """Model and cross-entropy, one loss per sample: what the engine trains."""

    def __init__(self, network: nn.Module) -> None:
        """Of this model."""
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """One loss per sample."""
        return F.cross_entropy(self.network(features), labels, reduction="none")


def optimizer_of(setting: Setting, parameters: Any) -> torch.optim.Optimizer:
    """The same optimizer that the engine's side runs."""
    if setting.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=1e-3)
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def data(setting: Setting) -> tuple[Tensor, Tensor]:
    """Made-up records."""
    return setting.task.features(), torch.randint(setting.task.classes, (ROWS,))


def torch_step(setting: Setting, precision: str) -> Callable[[], float]:
    """Plain, not private: gather a batch, forward, backward, update."""
    network, (features, labels) = setting.task.network(), data(setting)
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
    from opacus.validators import ModuleValidator
    from torch.utils.data import DataLoader, TensorDataset

    # Its own attention module in place of PyTorch's.
    network, (features, labels) = ModuleValidator.fix(setting.task.network()).train(), data(setting)
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
        """Exports the model and starts it; reads what it chose (kernels, physical batch, extra noise for rounding)."""
        features, labels = data(setting)
        values = [setting.task.values, setting.task.classes]
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "model.pt2"
            bastionai.export(PerSample(setting.task.network()), [features[:3], labels[:3]], archive)
            command = [
                str(ENGINE),
                str(archive),
                setting.rows(),
                str(setting.threads),
                setting.optimizer,
                ",".join(str(value) for value in values if value is not None),
            ]
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
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

    def peak_mib(self) -> float:
        """The most memory its process has held."""
        return peak_mib(self.process.pid)

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def peak_mib(process: int | str) -> float:
    """The most memory a process has held so far, in MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def plain_peak_mib(setting: Setting) -> float:
    """The same of a process of its own that takes three plain steps."""
    name = next(name for name, value in globals().items() if value is setting.task)
    arguments = [name, str(setting.batch_size), setting.optimizer, str(setting.threads)]
    run = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return float(run.stdout)


def main(name: str, batch_size: str, optimizer: str, threads: str) -> None:
    """Three plain steps; prints the memory they took at most."""
    setting = Setting(globals()[name], int(batch_size), optimizer, int(threads))
    torch.set_num_threads(setting.threads)
    step = torch_step(setting, "medium")
    for _ in range(3):
        step()
    print(peak_mib("self"))


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
    refusals = {}
    for name in ("Opacus, hooks", "Opacus, ghost"):
        try:
            contenders[name]()
        except (RuntimeError, NotImplementedError, ValueError) as refusal:
            refusals[name] = str(refusal).split(". ")[0]
            del contenders[name]
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(WARM_UP_ROUNDS + setting.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken = contenders[name]()
            if turn >= WARM_UP_ROUNDS:
                seconds[name].append(taken)
    memory = {"plain PyTorch": plain_peak_mib(setting), "BastionAI, private": engine.peak_mib()}
    engine.close()
    plain = seconds[names[0]]
    fastest = min(plain, seconds[names[1]], key=statistics.median)

    def ratio(name: str, base: list[float]) -> float:
        return statistics.median(own / other for own, other in zip(seconds[name], base, strict=True))

    return {
        "setting": {**vars(setting), "task": setting.task.name},
        "engine": engine.chosen,
        "torch": torch.__version__,
        "peak_mib": memory,
        "refusals": refusals,
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
    lines = [
        (
            f"{setting['task']}, batch {setting['batch_size']}, {setting['optimizer']}, {setting['threads']} threads, "
            f"{setting['rounds']} rounds, torch {result['torch']}; engine: {result['engine']}"
        ),
        f"{'':28}{'median ms':>12}{'× plain':>10}{'× fastest plain':>18}",
    ]
    for name, row in result["contenders"].items():
        lines.append(
            f"{name:28}{row['median_ms']:12.2f}{row['ratio_to_plain_default']:10.2f}"
            f"{row['ratio_to_plain_fastest']:18.2f}"
        )
    lines += [f"{name:28}{'refuses:':>12} {why}" for name, why in result["refusals"].items()]
    memory = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in result["peak_mib"].items())
    lines.append(f"peak memory of the whole process: {memory}")
    return "\n".join(lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
