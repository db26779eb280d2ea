"""Three hospitals train one cancer model, and none shows a record to anybody.

Starts a server of its own in a temporary directory, plays owners and scientist against it over a
real attested connection, prints what happened as tables, and leaves nothing running:

    python examples/three_hospitals.py --server target/release/bastionai
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from hospital_data import Shares, majority_accuracy, shares
from rich.console import Console
from rich.table import Table
from server_process import ServerProcess
from torch import nn
from torch.utils.data import TensorDataset

import bastionai

#: Lifetime ε and δ that each hospital grants: their own decision, so they differ.
LIMITS = {"Hôpital Nord": 6.0, "Hospital del Sur": 6.5, "Klinik West": 7.0}
LIFETIME_DELTA = 1e-4
#: What one training run asks for.
EPS, STEPS, BATCH_SIZE, LEARNING_RATE = 2.0, 120, 64, 0.02
SEEDS = (0, 1, 2)

console = Console(width=110)


class TumourClassifier(nn.Module):
    """An ordinary module. It scales its inputs from the *public* ranges of the contract.

    Mean and standard deviation of the records would be functions of private data that no privacy
    budget pays for; what a measurement can be is known to everybody.
    """

    def __init__(self, contract: bastionai.DataContract) -> None:
        super().__init__()
        low, high = contract.column("features").bounds()
        self.register_buffer("centre", torch.tensor((low + high) / 2, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(6 / (high - low), dtype=torch.float32))
        self.layers = nn.Sequential(nn.Linear(30, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits of the two classes."""
        return self.layers((features - self.centre) * self.scale)


def main() -> int:
    """Plays the whole story; 0 if everything held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--server",
        type=Path,
        default=Path("target/release/bastionai"),
        help="the bastionai binary",
    )
    arguments = parser.parse_args()
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="bastionai-demo-") as folder,
        ServerProcess(arguments.server, Path(folder)) as server,
    ):
        Story(server, Path(folder), shares(LIMITS)).play()
    console.print(f"\nAll of it held. {time.monotonic() - started:.0f} s; nothing is left running.")
    return 0


class Story:
    """The demo, step by step."""

    def __init__(self, server: ServerProcess, folder: Path, data: Shares) -> None:
        self.server = server
        self.folder = folder
        self.data = data
        self.scientist = self.identity("scientist")

    def play(self) -> None:
        """Owners lend, the scientist trains, the budget runs out, the server dies and remembers."""
        self.lend()
        with self.connect("scientist") as client:
            datasets = self.look_around(client)
            before = budgets(client)
            private = self.train(client, datasets)
            plain = [self.train_in_the_open(seed) for seed in SEEDS]
            self.compare(private, plain)
            after = budgets(client)
            self.show_budgets(before, after)
            self.fourth_run(client, datasets, after)
        self.survive_a_crash(after)

    def identity(self, name: str) -> str:
        """Makes somebody's key; each keeps their own, and their own memory of the server's ledger."""
        path = self.path(name)
        path.parent.mkdir(parents=True)
        return bastionai.keygen(path)

    def path(self, name: str) -> Path:
        """Where somebody keeps their key."""
        return self.folder / name.replace(" ", "-") / "identity.pem"

    def connect(self, name: str) -> bastionai.Connection:
        """Connects and verifies. The development attester is accepted by name: this is a demonstration."""
        return bastionai.Connection(self.server.address, identity=self.path(name), allow_simulated=True)

    def lend(self) -> None:
        """Each hospital verifies the server, then lends its share under its own terms."""
        console.rule("1  Three hospitals verify the server and lend their records")
        for name, records in self.data.train.items():
            self.identity(name)
            with self.connect(name) as client:
                client.RemoteDataset(
                    TensorDataset(*records),
                    privacy_limit=LIMITS[name],
                    delta=LIFETIME_DELTA,
                    name=name,
                    contract=self.data.contract(name),
                    may_train=[self.scientist],
                )
                console.print(f"{name}: lent, seen by nobody. Its principal is {client.principal[:16]}…")

    def look_around(self, client: bastionai.Connection) -> list[bastionai.RemoteDataset]:
        """What the scientist sees: evidence, contracts, budgets. Never a row."""
        console.rule("2  A data scientist looks around")
        table = Table(title="What was attested, verified before anything else was sent")
        table.add_column("what")
        table.add_column("value", overflow="fold")
        for line in str(client.attestation).splitlines():
            table.add_row(line[:19].strip(), line[19:].strip())
        console.print(table)
        datasets = client.list_remote_datasets()
        table = Table(
            "dataset",
            "size class",
            "columns",
            "ε left",
            "δ left",
            "may train",
            title="Datasets",
        )
        for dataset in datasets:
            assert dataset.budget is not None
            columns = ", ".join(f"{c.name} {c.shape or ''}" for c in dataset.contract.columns)
            left, size = dataset.budget.remaining, str(dataset.contract.declared_size)
            allowed = "yes" if dataset.trainable else "no"
            table.add_row(dataset.name, size, columns, f"{left.epsilon}", f"{left.delta}", allowed)
        console.print(table)
        return datasets

    def learner(
        self,
        client: bastionai.Connection,
        datasets: list[bastionai.RemoteDataset],
        seed: int,
    ):
        """An ordinary module, prepared to train on the pooled datasets."""
        return client.RemoteLearner(
            self.model(seed),
            datasets,
            loss="cross_entropy",
            optimizer=bastionai.Adam(lr=LEARNING_RATE),
            model_name=f"tumour classifier, seed {seed}",
            batch_size=BATCH_SIZE,
        )

    def model(self, seed: int) -> TumourClassifier:
        """A fresh model."""
        torch.manual_seed(seed)
        return TumourClassifier(self.data.contract(next(iter(LIMITS))))

    def train(self, client: bastionai.Connection, datasets: list[bastionai.RemoteDataset]) -> list[float]:
        """Price, rehearsal, then one private run per seed; returns the test accuracies."""
        console.rule("3  Price, rehearsal, training")
        first = self.learner(client, datasets, SEEDS[0])
        console.print(str(first.price(steps=STEPS, eps=EPS)), highlight=False)
        rehearsal = first.rehearse(steps=5)
        console.print(f"rehearsed on synthetic records, at no cost: {rehearsal.state}")
        accuracies = []
        for seed in SEEDS:
            learner = first if seed == SEEDS[0] else self.learner(client, datasets, seed)
            learner.fit(steps=STEPS, eps=EPS)
            accuracies.append(self.accuracy(learner.get_model()))
        receipt = learner.receipt
        receipt.verify(allow_simulated=True, ledger_key=client.attestation.ledger_key)
        table = Table(title="Receipt of the last run (signature, simulated evidence and prices verified)")
        table.add_column("what")
        table.add_column("value", overflow="fold")
        for fact in receipt.facts():
            table.add_row(*fact)
        console.print(table)
        return accuracies

    def train_in_the_open(self, seed: int) -> float:
        """The same model and optimizer in plain PyTorch on the bare records: what privacy is compared with."""
        model = self.model(seed)
        features, labels = (torch.cat(parts) for parts in zip(*self.data.train.values(), strict=True))
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(STEPS):
            batch = torch.randperm(len(labels), generator=generator)[:BATCH_SIZE]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(features[batch]), labels[batch]).backward()
            optimizer.step()
        return self.accuracy(model)

    def accuracy(self, model: nn.Module) -> float:
        """On the test split, which the demo keeps for itself."""
        features, labels = self.data.test
        with torch.no_grad():
            return float((model.eval()(features).argmax(dim=1) == labels).float().mean())

    def compare(self, private: list[float], plain: list[float]) -> None:
        """Accuracy beside its price."""
        majority = majority_accuracy(self.data.test[1])
        table = Table("model", "mean", "seeds", title="Accuracy on the test split, three seeds")
        for name, values in (("private (ε = 2 each)", private), ("not private", plain)):
            table.add_row(
                name,
                f"{statistics.mean(values):.3f}",
                ", ".join(f"{value:.3f}" for value in values),
            )
        table.add_row("majority class", f"{majority:.3f}", "")
        console.print(table)
        demand(
            statistics.mean(private) > majority + 0.15,
            "the private models should be far above the majority class",
        )

    def show_budgets(self, before: Budgets, after: Budgets) -> None:
        """Planned and charged, per hospital."""
        table = Table(
            "hospital",
            "ε lifetime",
            "ε left before",
            "ε planned",
            "ε charged",
            "ε left",
            title="Budgets",
        )
        planned = len(SEEDS) * EPS
        for name, budget in after.items():
            charged = budget.committed.epsilon - before[name].committed.epsilon
            cells = (
                budget.lifetime.epsilon,
                before[name].remaining.epsilon,
                planned,
                charged,
                budget.remaining.epsilon,
            )
            table.add_row(name, *map(str, cells))
            demand(0 < charged <= planned, "no more may be charged than was planned")
        console.print(table)

    def fourth_run(
        self,
        client: bastionai.Connection,
        datasets: list[bastionai.RemoteDataset],
        before: Budgets,
    ) -> None:
        """One run more than the budgets allow."""
        console.rule("4  A fourth run over the budget")
        try:
            self.learner(client, datasets, seed=3).fit(steps=STEPS, eps=EPS)
        except bastionai.BudgetExceeded as refusal:
            console.print(f"refused: {refusal}")
        else:
            demand(False, "a run over the budget should be refused")
        demand(budgets(client) == before, "a refused run should cost nothing")

    def survive_a_crash(self, before: Budgets) -> None:
        """Kill -9, start again on the same disk, ask everybody's client."""
        console.rule("5  kill -9, and a new start")
        self.server.kill()
        self.server.start()
        table = Table("asked by", *before, title="ε left, after the restart")
        for name in LIMITS:
            # Each client checks that the ledger continues the one it saw before the crash.
            with self.connect(name) as client:
                found = budgets(client)
            table.add_row(name, *(str(budget.remaining.epsilon) for budget in found.values()))
            demand(found == before, "no budget may be forgotten")
        console.print(table)


Budgets = dict[str, bastionai.Budget]


def budgets(client: bastionai.Connection) -> Budgets:
    """Every hospital's budget, by name."""
    return {d.name: d.budget for d in client.list_remote_datasets() if d.budget is not None}


def demand(holds: bool, what: str) -> None:
    """Ends the demo when something did not hold."""
    if not holds:
        raise SystemExit(f"the demo failed: {what}")


if __name__ == "__main__":
    sys.exit(main())
