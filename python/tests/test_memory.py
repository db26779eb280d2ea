"""The memory a price announces, against what the trainer takes; runs that cannot fit, refused before they start."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from server_process import ServerProcess
from torch import nn
from torch.utils.data import TensorDataset

import bastionai
from bastionai import Adam, Column, DataContract

pytestmark = pytest.mark.e2e

#: How far an estimate may lie above what was measured. Below it must never be.
MOST_OVER = 3.5


class Peak:
    """The most resident memory of any trainer of a server, while it is watched."""

    def __init__(self, server: ServerProcess) -> None:
        self.bytes = 0
        self._server = server.process_id
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        children = Path(f"/proc/{self._server}/task")
        while not self._stop.is_set():
            for task in children.iterdir():
                for child in text_of(task / "children").split():
                    self.bytes = max(self.bytes, high_water(int(child)))
            time.sleep(0.005)


def high_water(process: int) -> int:
    """`VmHWM` of a process in bytes; 0 once it is gone."""
    lines = text_of(Path(f"/proc/{process}/status")).splitlines()
    found = [line.split() for line in lines if line.startswith("VmHWM:")]
    return int(found[0][1]) << 10 if found else 0


def text_of(path: Path) -> str:
    """A file below /proc; nothing once its process or thread is gone."""
    try:
        return path.read_text()
    except OSError:
        return ""


class Sequence(nn.Module):
    """Linear layers over every position, then a mean."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.Linear(hidden, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.norm(self.up(x))).mean(1))


class Attention(nn.Module):
    """A transformer layer over vectors, then a mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x).mean(1))


class Recurrent(nn.Module):
    """A recurrent layer over a signal, then its last output."""

    def __init__(self, layer: type[nn.Module], width: int, hidden: int, **more: object) -> None:
        super().__init__()
        self.layer = layer(width, hidden, batch_first=True, **more)
        self.head = nn.LazyLinear(2)
        with torch.no_grad():
            self(torch.zeros(2, 2, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x)[0][:, -1])


def cnn() -> nn.Module:
    """Opacus' MNIST example."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=3),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 32),
        nn.ReLU(),
        nn.Linear(32, 2),
    )


def mlp(width: int, hidden: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2)
    )


#: name: (shape of a record, model, rows, logical and largest physical batch)
MODELS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module], int, int, int]] = {
    "small MLP": ((30,), lambda: mlp(30, 64), 1024, 64, 64),
    "wide MLP": ((784,), lambda: mlp(784, 2048), 1024, 256, 256),
    "large batch": ((784,), lambda: mlp(784, 512), 8192, 4096, 4096),
    "sequence": ((128, 64), lambda: Sequence(64, 256), 1024, 128, 128),
    "CNN": ((1, 28, 28), cnn, 1024, 256, 256),
    "transformer": ((64, 64), lambda: Attention(64), 1024, 128, 128),
    "LSTM": ((64, 32), lambda: Recurrent(nn.LSTM, 32, 128), 1024, 256, 256),
    "GRU, two layers in both directions": (
        (64, 32),
        lambda: Recurrent(nn.GRU, 32, 64, num_layers=2, bidirectional=True),
        1024,
        256,
        256,
    ),
    "transformer in bfloat16": ((64, 64), lambda: Attention(64), 1024, 128, 128),
}
BFLOAT16 = {"transformer in bfloat16"}


def uploaded(client: bastionai.Connection, name: str, shape: tuple[int, ...], rows: int) -> bastionai.RemoteDataset:
    contract = DataContract(
        [Column("x", "float32", shape, range=(-1, 1)), Column("label", "int64", classes=["no", "yes"])],
        declared_size=rows,
    )
    x = torch.rand(rows, *shape) * 2 - 1
    records = TensorDataset(x, (x.flatten(1)[:, 0] > 0).long())
    client.RemoteDataset(records, 20.0, name, delta=1e-3, contract=contract, may_train="anyone")
    return next(dataset for dataset in client.list_remote_datasets() if dataset.name == name)


@pytest.mark.parametrize("name", MODELS)
def test_the_announced_memory_bounds_what_a_trainer_takes_and_is_not_wild(name, connect, server):
    shape, model, rows, batch_size, physical = MODELS[name]
    client = connect("owner")
    dataset = uploaded(client, name, shape, rows)
    compute = "bfloat16" if name in BFLOAT16 else "float32"
    options = {"loss": "cross_entropy", "optimizer": Adam(lr=1e-3), "batch_size": batch_size, "compute": compute}
    learner = client.RemoteLearner(model(), dataset, max_batch_size=physical, **options)
    announced = learner.price(steps=4, eps=2.0).memory_bytes
    with Peak(server) as peak:
        assert learner.fit(steps=4, eps=2.0, progress=False).state == "succeeded"
    ratio = announced / peak.bytes
    print(f"{name}: announced {announced >> 20} MiB, measured {peak.bytes >> 20} MiB, ratio {ratio:.2f}")
    assert 1.0 <= ratio <= MOST_OVER, f"announced {announced >> 20} MiB, measured {peak.bytes >> 20} MiB"


@pytest.fixture(scope="module")
def tight(binaries, tmp_path_factory, people) -> Iterator[bastionai.Connection]:
    """A connection to a server whose trainers get 1 GiB."""
    folder = tmp_path_factory.mktemp("tight")
    config = folder / "server.toml"
    config.write_text(
        f'data_dir = "{folder / "vault"}"\nattester = "insecure-simulated"\nroot_key = "insecure-file"\n'
        "[trainer]\nmemory_bytes = 1_073_741_824\n"
    )
    binary = Path(os.environ.get("BASTIONAI_BIN", "target/release/bastionai"))
    with ServerProcess(binary, folder, config) as running:
        client = bastionai.Connection(running.address, identity=people("tight-owner"), allow_simulated=True)
        yield client
        client.close()


def test_a_batch_that_cannot_fit_is_said_with_the_one_that_would(tight):
    client = tight
    dataset = uploaded(client, "images", (784,), 16384)
    options = {"loss": "cross_entropy", "optimizer": Adam(lr=1e-3), "batch_size": 8192}
    model = mlp(784, 2048)
    with pytest.raises(bastionai.InvalidRequest, match=r"max_batch_size 8192 .* the server allows 1\.0 GiB") as refused:
        client.RemoteLearner(model, dataset, max_batch_size=8192, **options).price(steps=2, eps=2.0)
    fitting = int(str(refused.value).split("choose max_batch_size ")[1].split()[0])
    assert 256 < fitting < 8192
    quote = client.RemoteLearner(model, dataset, max_batch_size=fitting, **options).price(steps=2, eps=2.0)
    assert quote.memory_bytes <= 1 << 30
    # Without a wish the server chooses one that fits.
    assert client.RemoteLearner(model, dataset, **options).price(steps=2, eps=2.0).memory_bytes <= 1 << 30


class Huge(nn.Module):
    """Shapes that no machine holds."""

    def __init__(self, extent: int) -> None:
        super().__init__()
        self.first, self.last, self.extent = nn.Linear(4, 1), nn.Linear(1, 2), extent

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.first(x).expand(x.shape[0], self.extent) * 2.0
        return self.last(wide.sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("extent", "refusal", "said"),
    [
        (2**34, bastionai.InvalidRequest, "even one record at a time, or one unit of several, needs about"),
        (2**58, bastionai.ModelRefused, "more than 2^40 elements a record"),
    ],
)
def test_shapes_that_no_machine_holds_are_refused_with_numbers_before_anything_starts(extent, refusal, said, tight):
    client = tight
    dataset = uploaded(client, f"small-{extent}", (4,), 64)
    learner = client.RemoteLearner(Huge(extent), dataset, loss="cross_entropy", optimizer=Adam(lr=1e-3), batch_size=16)
    with pytest.raises(refusal, match=re.escape(said)):
        learner.price(steps=2, eps=1.0)
    after = next(each for each in client.list_remote_datasets() if each.name == dataset.name).budget
    assert after.committed.epsilon == after.reserved.epsilon == 0
