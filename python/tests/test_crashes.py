"""What survives Ctrl-C, a killed server and an operator who restores an old disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import bastionai
from bastionai import Adam, Column, DataContract

pytestmark = pytest.mark.e2e

CONTRACT = DataContract(
    [Column("x", "float32", (4,), range=(0, 1)), Column("label", "int64", classes=2)], declared_size=512
)


def lend(client: bastionai.Connection, name: str, limit: float = 4.0) -> bastionai.RemoteDataset:
    rows = TensorDataset(torch.rand(500, 4), torch.randint(0, 2, (500,)))
    return client.RemoteDataset(rows, limit, name, delta=1e-4, contract=CONTRACT)


def learner(client: bastionai.Connection, dataset: bastionai.RemoteDataset) -> bastionai.RemoteLearner:
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    return client.RemoteLearner(model, dataset, loss="cross_entropy", optimizer=Adam(lr=1e-2), batch_size=64)


SCRIPT = """
import sys, bastionai, torch
from torch import nn
client = bastionai.Connection(sys.argv[1], identity=sys.argv[2], allow_simulated=True)
dataset = client.list_remote_datasets()[0]
model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
learner = client.RemoteLearner(model, dataset, loss="cross_entropy", optimizer=bastionai.Adam(), batch_size=64)
print("fitting", flush=True)
learner.fit(steps=200_000, eps=1.0)
"""


def test_ctrl_c_detaches_and_the_run_goes_on(own_server, people):
    identity = people("owner")
    with bastionai.Connection(own_server.address, identity=identity, allow_simulated=True) as client:
        lend(client, "long")
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, own_server.address, str(identity)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with bastionai.Connection(own_server.address, identity=identity, allow_simulated=True) as client:
        deadline = time.monotonic() + 120
        while not any(run.released_step for run in client.runs()):
            assert time.monotonic() < deadline
            assert script.poll() is None
            time.sleep(0.1)
        script.send_signal(signal.SIGINT)
        pressed = time.monotonic()
        _, said = script.communicate(timeout=30)
        assert time.monotonic() - pressed < 10
        [run] = client.runs()
        assert f"client.run('{run.id}')" in said, said
        assert "detached" in said
        assert run.state in ("queued", "running")
        seen, deadline = run.released_step, time.monotonic() + 60
        while client.run(run.id).released_step <= seen and time.monotonic() < deadline:
            time.sleep(0.1)
        assert client.run(run.id).released_step > seen
        assert client.run(run.id).cancel().state == "cancelled"


def test_detaching_raises_what_a_notebook_can_read(own_server, people):
    with bastionai.Connection(own_server.address, identity=people("owner"), allow_simulated=True) as client:
        training = learner(client, lend(client, "interrupted"))

        def press_when_it_runs() -> None:
            with bastionai.Connection(own_server.address, identity=people("owner"), allow_simulated=True) as other:
                deadline = time.monotonic() + 120
                while not any(run.released_step for run in other.runs()) and time.monotonic() < deadline:
                    time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=press_when_it_runs).start()
        with pytest.raises(bastionai.Detached) as caught:
            training.fit(steps=200_000, eps=1.0, progress=False)
        run = client.run(caught.value.run_id)
        assert not run.finished
        assert run.cancel().refresh().state == "cancelled"
        # Cancelled weights are destroyed (rule D5) and the charge stays.
        with pytest.raises(bastionai.BastionError):
            run.get_model(training.model)
        with pytest.raises(bastionai.RunFailed, match="was cancelled"):
            run.wait(progress=False)
        budget = next(d for d in client.list_remote_datasets() if d.name == "interrupted").budget
        assert budget.committed.epsilon > 0


def test_a_killed_server_knows_every_budget_when_it_is_back(own_server, people):
    identity = people("owner")
    with bastionai.Connection(own_server.address, identity=identity, allow_simulated=True) as client:
        dataset = lend(client, "kept")
        run = learner(client, dataset).fit(steps=10, eps=1.0, progress=False)
        before = {d.id: d.budget for d in client.list_remote_datasets()}
        weights = client.run(run.id).state_dict()
        own_server.kill()
        with pytest.raises(bastionai.ConnectionFailed):
            client.list_remote_datasets()
    own_server.start()
    with bastionai.Connection(own_server.address, identity=identity, allow_simulated=True) as client:
        assert {d.id: d.budget for d in client.list_remote_datasets()} == before
        again = client.run(run.id).state_dict()
        assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_server_killed_in_training_goes_on_with_the_run_at_the_same_price(own_server, people):
    identity = people("owner")
    seen = {}
    with bastionai.Connection(own_server.address, identity=identity, allow_simulated=True) as client:
        training = learner(client, lend(client, "cut"))
        quote = training.price(steps=200_000, eps=1.0)
        run = client._start(quote)
        for progress in run.watch():
            seen[progress.step] = progress.noisy_loss
            if progress.step > 0:
                break
        own_server.kill()
    own_server.start()
    with bastionai.Connection(own_server.address, identity=identity, allow_simulated=True) as client:
        found = client.run(run.id)
        assert found.state in ("queued", "running")
        last = max(seen)
        for progress in found.watch():
            assert seen.get(progress.step, progress.noisy_loss) == progress.noisy_loss, "a step has two values (D1)"
            if progress.step > last:
                break
        with pytest.raises(bastionai.PermissionRefused):
            found.resume()
        assert found.suspend().state == "suspended"
        halted = found.refresh().released_step
        time.sleep(1)
        assert found.refresh().released_step == halted
        assert found.resume().state in ("queued", "running")
        assert found.cancel().state == "cancelled"
        budget = client.list_remote_datasets()[0].budget
        assert budget.committed.epsilon == quote.charges[0].cost.epsilon
        assert budget.reserved.epsilon == 0


def test_a_rolled_back_ledger_is_refused(own_server, people, tmp_path):
    identity = people("rolled")
    copy = tmp_path / "old-vault"
    with bastionai.Connection(own_server.address, identity=identity, allow_simulated=True) as client:
        dataset = lend(client, "rolled")
    own_server.stop()
    shutil.copytree(own_server.folder / "vault", copy)
    own_server.start()
    with bastionai.Connection(own_server.address, identity=identity, allow_simulated=True) as client:
        learner(client, dataset).fit(steps=5, eps=1.0, progress=False)
        client.ledger()
    own_server.stop()
    shutil.rmtree(own_server.folder / "vault")
    shutil.copytree(copy, own_server.folder / "vault")
    own_server.start()
    with pytest.raises(bastionai.LedgerError, match="rollback or fork"):
        bastionai.Connection(own_server.address, identity=identity, allow_simulated=True)


CANARY = 0.7316958423


def test_private_values_appear_in_no_file_and_no_log(own_server, people):
    rows = TensorDataset(torch.full((500, 4), CANARY), torch.ones(500, dtype=torch.int64))
    with bastionai.Connection(own_server.address, identity=people("owner"), allow_simulated=True) as client:
        dataset = client.RemoteDataset(rows, 4.0, "canary", delta=1e-4, contract=CONTRACT)
        learner(client, dataset).fit(steps=5, eps=1.0, progress=False)
    own_server.stop()
    needles = [torch.tensor([CANARY]).numpy().tobytes() * 2, str(CANARY)[:8].encode()]
    for path in files(own_server.folder):
        content = path.read_bytes()
        assert not [needle for needle in needles if needle in content], path


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
