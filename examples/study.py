"""What the studies share: a server of their own, owners with keys, training with and without privacy, and a table.

Utility is compared on held-out records of the study's own copy of the data, which each says so: the models trained in
the open need that. Where owners lend held-out records too, the private model is also tested where they lie
(``learner.test``), privately and with an error bar: what scientists without a copy would see.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from server_process import ServerProcess
from torch import nn
from torch.utils.data import TensorDataset

import bastionai

console = Console(width=110)
#: ε of the one private test, charged to the held-out records alone.
TEST_EPSILON = 1.0
#: Columns of equally many rows: a model's inputs, and last the labels.
Records = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Outcome:
    """A trained model and what it took.

    Attributes:
        model: Trained.
        seconds: From the start of the run to its weights.
        epsilon: Charged to each owner; None without privacy.
        learner: What trained it; None in the open.
    """

    model: nn.Module
    seconds: float
    epsilon: str | None = None
    learner: bastionai.RemoteLearner | None = None


@dataclass
class Study:
    """A server, and the people who talk to it.

    Attributes:
        server: Running.
        folder: Where keys go, one folder a person.
        lent: Datasets by owner.
    """

    server: ServerProcess
    folder: Path
    lent: dict[str, bastionai.RemoteDataset] = field(default_factory=dict)

    def identity(self, name: str) -> str:
        """Somebody's principal; their key is made when first asked for."""
        path = self._path(name)
        if not path.exists():
            path.parent.mkdir(parents=True)
            bastionai.keygen(path)
        with self.connect(name) as client:
            return client.principal

    def connect(self, name: str) -> bastionai.Connection:
        """Connects and verifies. The development attester is accepted by name: this is a demonstration."""
        return bastionai.Connection(self.server.address, identity=self._path(name), allow_simulated=True)

    def lend(
        self,
        owner: str,
        records: Records,
        contract: bastionai.DataContract,
        privacy_limit: float,
        scientist: str,
        held_out: Records | None = None,
    ) -> None:
        """An owner verifies the server and lends records under their own limit, and held-out ones to test on."""
        may_train = [self.identity(scientist)]
        self.identity(owner)
        with self.connect(owner) as client:
            self.lent[owner] = client.RemoteDataset(
                TensorDataset(*records),
                privacy_limit=round(privacy_limit, 6),
                name=owner,
                contract=contract,
                may_train=may_train,
                test_dataset=None if held_out is None else TensorDataset(*held_out),
                test_privacy_limit=None if held_out is None else TEST_EPSILON,
                verbose=False,
            )
        size = contract.declared_size
        console.print(f"{owner}: lent under a lifetime ε of {privacy_limit:g}, size class {size}; seen by nobody")

    def train(
        self,
        client: bastionai.Connection,
        owners: Sequence[str],
        model: nn.Module,
        *,
        eps: float,
        steps: int | None,
        lr: float,
        show_price: bool = False,
    ) -> Outcome:
        """One private run on these owners' records, pooled. Batch size, and steps if open, are planned."""
        learner = client.RemoteLearner(
            model,
            [self.lent[owner] for owner in owners],
            loss="cross_entropy",
            optimizer=bastionai.Adam(lr=lr),
            model_name=f"{type(model).__name__} of {', '.join(owners)}"[:120],
        )
        if show_price:
            console.print(str(learner.price(steps=steps, eps=eps)), highlight=False)
        started = time.monotonic()
        run = learner.fit(steps=steps, eps=eps)
        trained = learner.get_model()
        charged = {f"{charge.cost.epsilon:.3f}" for charge in run.charges}
        return Outcome(trained, time.monotonic() - started, ", ".join(sorted(charged)), learner)

    def _path(self, name: str) -> Path:
        return self.folder / name.replace(" ", "-") / "identity.pem"


def train_in_the_open(model: nn.Module, records: Records, *, steps: int, batch_size: int, lr: float) -> Outcome:
    """The same model and optimizer in plain PyTorch on the bare records: what privacy is compared with."""
    model, started = copy.deepcopy(model).train(), time.monotonic()
    *features, labels = records
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=lr)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randperm(len(labels), generator=generator)[:batch_size]
        optimizer.zero_grad()
        output = logits(model, [column[batch] for column in features])
        nn.functional.cross_entropy(output, labels[batch]).backward()
        optimizer.step()
    return Outcome(model, time.monotonic() - started)


def scores(model: nn.Module, records: Records) -> tuple[float, float]:
    """Accuracy, and the area under the ROC curve averaged over the classes, one against the rest."""
    *features, labels = records
    parts = zip(*(column.split(256) for column in features), strict=True)
    with torch.no_grad():
        output = torch.cat([logits(model.eval(), part) for part in parts])
    accuracy = float((output.argmax(1) == labels).float().mean())
    margins = output - output.logsumexp(1, keepdim=True)
    areas = [
        _auroc(margins[:, c], labels == c) for c in range(output.shape[1]) if 0 < (labels == c).sum() < len(labels)
    ]
    return accuracy, sum(areas) / len(areas)


def logits(model: nn.Module, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """What a model says of these inputs; models of transformers wrap it."""
    output = model(*inputs)
    return output if isinstance(output, torch.Tensor) else output.logits


def _auroc(score: torch.Tensor, positive: torch.Tensor) -> float:
    """Share of (positive, negative) pairs in the right order, ties half (Mann and Whitney 1947)."""
    difference = score[positive][:, None] - score[~positive][None, :]
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())


def commonest(labels: torch.Tensor) -> float:
    """Accuracy of always guessing the commonest class."""
    return float(labels.bincount().max() / len(labels))


def results(title: str) -> Table:
    """The table every study ends with."""
    return Table("training", "ε per owner", "accuracy", "AUROC", "time", title=title)


def row(table: Table, name: str, outcome: Outcome, test: Records) -> tuple[float, float]:
    """Adds a trained model; returns its scores."""
    accuracy, area = scores(outcome.model, test)
    epsilon = outcome.epsilon or "not private"
    table.add_row(name, epsilon, f"{accuracy:.3f}", f"{area:.3f}", f"{outcome.seconds:.0f} s")
    return accuracy, area


def row_of_private_test(table: Table, outcome: Outcome, metrics: Sequence[str]) -> None:
    """Tests a private model on the owners' held-out records, where they lie."""
    assert outcome.learner is not None
    started = time.monotonic()
    found = outcome.learner.test(list(metrics), eps=TEST_EPSILON)
    cells = [str(found[metric]) if metric in found else "" for metric in ("accuracy", "auroc")]
    table.add_row("  tested privately", f"{TEST_EPSILON:g}", *cells, f"{time.monotonic() - started:.0f} s")


def arguments(
    description: str, data_help: str, *, eps: float, steps: int | None, more: Mapping[str, str] | None = None
) -> argparse.Namespace:
    """The command line of a study. `more`: further options and what each is."""
    parser = argparse.ArgumentParser(description=description)
    for name, said in (more or {}).items():
        parser.add_argument(f"--{name}", help=said)
    parser.add_argument("--data", type=Path, help=data_help)
    parser.add_argument("--server", type=Path, default=Path("target/release/bastionai"), help="the bastionai binary")
    parser.add_argument("--eps", type=float, default=eps, help="ε of each run")
    parser.add_argument("--steps", type=int, default=steps, help="steps of each run; planned for ε when absent")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and of the split")
    return parser.parse_args()


def needed(data: Path | None, names: Sequence[str], source: str) -> list[Path]:
    """The files of a study, or what to download."""
    if data is None:
        raise SystemExit(f"give --data: {', '.join(names)} from {source}")
    files = [data / name if data.is_dir() else data for name in names]
    missing = [str(file) for file in files if not file.exists()]
    if missing:
        raise SystemExit(f"missing: {', '.join(missing)}; download {', '.join(names)} from {source}")
    return files


@contextmanager
def study(server: Path) -> Iterator[Study]:
    """A study on a server of its own, of which nothing is left."""
    with (
        tempfile.TemporaryDirectory(prefix="bastionai-study-") as folder,
        ServerProcess(server, Path(folder)) as running,
    ):
        yield Study(running, Path(folder))


def split(records: Records, share: float, seed: int) -> tuple[Records, Records]:
    """(what is lent, what is held out in public), shuffled."""
    order = torch.randperm(len(records[-1]), generator=torch.Generator().manual_seed(seed))
    held_out, lent = order[: int(share * len(order))], order[int(share * len(order)) :]
    return tuple(column[lent] for column in records), tuple(column[held_out] for column in records)


def pooled(parts: Sequence[Records]) -> Records:
    """Several owners' records as one."""
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A fresh model with reproducible weights."""
    torch.manual_seed(seed)
    return make()
