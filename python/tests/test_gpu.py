"""A server whose configuration asks for a GPU: trains on it, or says why it cannot and does not start."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from server_process import ServerProcess
from torch import nn
from torch.utils.data import TensorDataset

import bastionai
from bastionai import Adam, Column, DataContract

pytestmark = pytest.mark.e2e

BINARY = Path(os.environ.get("BASTIONAI_BIN", Path(__file__).resolve().parents[2] / "target/release/bastionai"))


def configuration(folder: Path, acknowledged: bool = True) -> Path:
    """A configuration that asks for a GPU."""
    path = folder / "server.toml"
    path.write_text(
        f'data_dir = "{folder / "data"}"\nattester = "insecure-simulated"\nroot_key = "insecure-file"\n'
        f'listen = "127.0.0.1:0"\n[trainer]\ndevice = "cuda"\ninsecure_unattested_gpu = {str(acknowledged).lower()}\n'
    )
    return path


def has_driver() -> bool:
    """Whether this machine has the driver's library."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def refusal(config: Path) -> str:
    """What a server says that does not start."""
    done = subprocess.run(
        [BINARY, "serve", "--config", config], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    return done.stderr


def test_a_gpu_that_nobody_acknowledged_is_refused_with_the_remedy(binaries: None, tmp_path: Path) -> None:
    assert "trainer.insecure_unattested_gpu = true" in refusal(configuration(tmp_path, acknowledged=False))


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver: test_training_on_a_gpu is for it")
def test_without_a_driver_the_server_says_so_and_does_not_compute_elsewhere(binaries: None, tmp_path: Path) -> None:
    said = refusal(configuration(tmp_path))
    for part in ("trainer.device", "there is no NVIDIA driver", "libcuda.so.1", "install the driver"):
        assert part in said, said


@pytest.mark.gpu
@pytest.mark.skipif(
    not has_driver() and "BASTIONAI_GPU" not in os.environ,
    reason="needs a CUDA device; this machine has no NVIDIA driver",
)
def test_training_on_a_gpu(binaries: None, tmp_path: Path, people: Callable[[str], Path]) -> None:
    torch.manual_seed(1)
    x = torch.randn(512, 4)
    y = (x.sum(1) > 0).long()
    contract = DataContract(
        [Column("x", "float32", (4,), range=(-10, 10)), Column("y", "int64", classes=["low", "high"])],
        declared_size=512,
    )
    with ServerProcess(BINARY, tmp_path, configuration(tmp_path)) as server:
        with pytest.raises(bastionai.AttestationError, match="insecure-unattested-gpu"):
            bastionai.Connection(server.address, identity=people("owner"), allow_simulated=True)
        with bastionai.Connection(
            server.address, identity=people("owner"), allow_simulated=True, allow_unattested_gpu=True
        ) as client:
            client.RemoteDataset(TensorDataset(x, y), 50.0, "sums", delta=1e-3, contract=contract, may_train="anyone")
            dataset = next(dataset for dataset in client.list_remote_datasets() if dataset.name == "sums")
            model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
            learner = client.RemoteLearner(model, dataset, loss="cross_entropy", optimizer=Adam(lr=0.02), batch_size=64)
            assert learner.fit(steps=200, eps=20.0, progress=False).state == "succeeded"
            trained = learner.get_model()
    with torch.no_grad():
        assert (trained(x).argmax(1) == y).float().mean() > 0.9
