"""Who takes the steps: plain PyTorch, Opacus, and the engine in a process of its own.

A contender is called for one step and returns its seconds.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import peak_mib
from models import ROWS, Task
from torch import Tensor, nn

from bastionai.exporting import prepare

#: The engine's example; another build of it, to compare two.
ENGINE = Path(os.environ.get("BASTIONAI_BENCH_STEP", "target/release/examples/bench_step"))
#: Where everybody computes.
DEVICE = torch.device(os.environ.get("BASTIONAI_BENCH_DEVICE", "cpu"))
#: What `torch.set_float32_matmul_precision` takes: PyTorch's default, and what permits faster kernels.
PRECISIONS = ("highest", "medium")
#: Opacus' `grad_sample_mode`.
OPACUS_MODES = ("hooks", "ghost")

Step = Callable[[], float]


class Logits(nn.Module):
    """A model that returns logits, whatever it returns itself.

    Position ids of transformers' models are passed for every record: Opacus needs a batch axis everywhere.
    """

    def __init__(self, network: nn.Module) -> None:
        """Of this model."""
        super().__init__()
        self.network = network

    def forward(self, **columns: Tensor) -> Tensor:
        """Logits of each record, or of each token."""
        if "attention_mask" in columns:
            ids = columns["input_ids"]
            columns["position_ids"] = (
                torch.arange(ids.shape[1], device=ids.device).expand(ids.shape[0], -1).contiguous()
            )
        output = self.network(**columns)
        return output if isinstance(output, Tensor) else output.logits


class NextToken(nn.CrossEntropyLoss):
    """Cross-entropy of each next token, the mean over a record's tokens."""

    def forward(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """One loss, or one for each record."""
        losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none").mean(dim=1)
        return losses.mean() if self.reduction == "mean" else losses


def optimizer_of(task: Task, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The same optimizer that the engine's side runs."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if task.optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=1e-3)
    return torch.optim.SGD(trained, lr=0.1, momentum=0.9)


def wait_for_device() -> None:
    """Until it has done what it was given: its operators return before."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def placed(records: dict[str, Tensor]) -> dict[str, Tensor]:
    """The records where everybody computes."""
    return {name: column.to(DEVICE) for name, column in records.items()}


class Parts:
    """Seconds of the parts of a step, in order."""

    def __init__(self) -> None:
        """None yet."""
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def end(self, part: str) -> None:
        """What passed since the last call belongs to this part."""
        wait_for_device()
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.last
        self.last = now

    def total(self) -> float:
        """Of all parts."""
        return sum(self.seconds.values())


class PlainStep:
    """Not private: gather a batch, forward, backward, update, as one would write it."""

    def __init__(self, task: Task, precision: str) -> None:
        """Of this task, at this `float32_matmul_precision`."""
        self.task, self.precision = task, precision
        self.network, self.records = task.model().train().to(DEVICE), placed(task.records())
        self.optimizer = optimizer_of(task, self.network.parameters())

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        if self.task.loss == "causal_lm":
            return self.network(**batch, labels=batch["input_ids"]).loss
        label = batch.pop("label")
        if list(batch) == ["input"]:
            return F.cross_entropy(self.network(batch["input"]), label)
        output = self.network(**batch)
        return F.cross_entropy(output if isinstance(output, Tensor) else output.logits, label)

    def parts(self) -> Parts:
        """Takes a step, and tells where the time went."""
        torch.set_float32_matmul_precision(self.precision)
        parts = Parts()
        rows = torch.randint(ROWS, (self.task.batch_size,))
        batch = {name: column[rows] for name, column in self.records.items()}
        self.optimizer.zero_grad(set_to_none=True)
        parts.end("sample and gather")
        loss = self._loss(batch)
        parts.end("forward")
        loss.backward()
        parts.end("backward")
        self.optimizer.step()
        parts.end("optimizer")
        return parts

    def __call__(self) -> float:
        """One step."""
        return self.parts().total()


class OpacusStep:
    """Opacus 1.x. Batches of the expected size: it pays nothing for sampling here."""

    def __init__(self, task: Task, mode: str, precision: str) -> None:
        """In `hooks` (its default) or `ghost` mode."""
        from opacus import PrivacyEngine
        from opacus.validators import ModuleValidator
        from torch.utils.data import DataLoader, TensorDataset

        self.task, self.mode, self.precision = task, mode, precision
        self.records = placed(task.records())
        # Its own recurrent layers in place of PyTorch's.
        network = ModuleValidator.fix(task.model()).train()
        network = (network if "input" in self.records else Logits(network)).to(DEVICE)
        criterion = NextToken() if task.loss == "causal_lm" else nn.CrossEntropyLoss()
        made = PrivacyEngine().make_private(
            module=network,
            optimizer=optimizer_of(task, network.parameters()),
            data_loader=DataLoader(TensorDataset(*self.records.values()), batch_size=task.batch_size),
            criterion=criterion,
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            grad_sample_mode=mode,
        )
        self.network, self.optimizer = made[0], made[1]
        self.criterion = made[2] if mode == "ghost" else criterion

    def __call__(self) -> float:
        """One step."""
        torch.set_float32_matmul_precision(self.precision)
        start = time.perf_counter()
        rows = torch.randint(ROWS, (self.task.batch_size,))
        batch = {name: column[rows] for name, column in self.records.items()}
        target = batch["input_ids"] if self.task.loss == "causal_lm" else batch.pop("label")
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.network(batch["input"]) if "input" in batch else self.network(**batch)
        self.criterion(logits, target).backward()
        self.optimizer.step()
        wait_for_device()
        return time.perf_counter() - start


class EngineStep:
    """The engine in a process of its own, as in production; it sleeps between its steps."""

    def __init__(self, task: Task, threads: int, at_cap: bool = False) -> None:
        """Exports the model as the client does and starts it; reads what it chose.

        Args:
            task: What is trained.
            threads: Of the engine.
            at_cap: Whether it runs the padded batch of a run of 1000 steps; else as many rows as the others.
        """
        prepared = prepare(task.model(), task.loss, task.contract())
        # A sample of three quarters of the rows hardly ever exceeds them.
        rows = str(task.batch_size) if at_cap else f"{max(1, 3 * task.batch_size // 4)}:{task.batch_size}"
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "model.pt2"
            archive.write_bytes(prepared.archive)
            ranges = task.integer_ranges(prepared.input_columns)
            command = [str(ENGINE), "--device", DEVICE.type, str(archive), rows, str(threads), task.optimizer]
            command += [ranges] if ranges else []
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
            #: `kernels`, `cap` (physical rows), `slack` (noise for rounding, in parts of max_grad_norm),
            #: `libraries_mib` (held before there is a model).
            self.chosen = dict(pair.split("=") for pair in self._ask(None).split())

    def _ask(self, line: str | None) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if line is not None:
            self.process.stdin.write(line + "\n")
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the engine ended with status {self.process.wait()}; its error is above")
        return answer.strip()

    def __call__(self) -> float:
        """One step; seconds as the engine measured them."""
        return float(self._ask(""))

    def parts(self) -> tuple[float, dict[str, float]]:
        """One step: its seconds and those of its phases."""
        seconds, *phases = self._ask("profile").split("\t")
        pairs = (phase.split("=") for phase in phases)
        return float(seconds), {name: float(taken) for name, taken in pairs}

    def peak_mib(self) -> float:
        """The most memory its process has held."""
        return peak_mib(self.process.pid)

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def step_of(task: Task, kind: str, arguments: list[str]) -> PlainStep | OpacusStep:
    """A contender of this process by its name: `plain PRECISION` or `opacus MODE PRECISION`."""
    return PlainStep(task, *arguments) if kind == "plain" else OpacusStep(task, *arguments)
