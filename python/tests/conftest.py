"""A real server process over a real socket, for tests marked ``e2e``."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bastionai

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("BASTIONAI_BIN", ROOT / "target/release/bastionai"))


class Server:
    """``bastionai serve`` in a directory of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.address = ""
        self.start()

    def start(self) -> None:
        """Starts it and waits until it listens."""
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        command = [str(BINARY), "serve", "--data-dir", str(self.folder / "vault"), "--listen", "127.0.0.1:0"]
        command += ["--attester", "insecure-simulated", "--ready-file", str(ready)]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
        deadline = time.monotonic() + 60
        while not ready.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start: {self.log()[-2000:]}")
            time.sleep(0.05)
        self.address = ready.read_text().strip()

    def log(self) -> str:
        """Everything it logged."""
        return (self.folder / "server.log").read_text(errors="replace")

    def kill(self) -> None:
        """Kill -9, trainers included by their own watch on the server."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def stop(self) -> None:
        """Stops it and whatever it started."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


@pytest.fixture(scope="session")
def binaries() -> None:
    """The release binaries; a missing one is a failure, never a silent skip."""
    for binary in (BINARY, BINARY.with_name("bastionai-trainer")):
        if not binary.exists():
            pytest.fail(f"{binary} is missing: run `make setup`, or set BASTIONAI_BIN", pytrace=False)


@pytest.fixture(scope="module")
def server(binaries: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server shared by the tests of a module."""
    running = Server(tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


@pytest.fixture
def own_server(binaries: None, tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own, to be killed."""
    running = Server(tmp_path)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Identity files by name, made when first asked for."""
    folder = tmp_path_factory.mktemp("people")

    def identity(name: str) -> Path:
        path = folder / name / "identity.pem"
        if not path.exists():
            path.parent.mkdir()
            bastionai.keygen(path)
        return path

    return identity


@pytest.fixture
def connect(server: Server, people: Callable[[str], Path]) -> Iterator[Callable[..., bastionai.Connection]]:
    """Connections to the module's server, as anybody; closed afterwards."""
    opened: list[bastionai.Connection] = []

    def connection(name: str = "alice") -> bastionai.Connection:
        client = bastionai.Connection(server.address, identity=people(name), allow_simulated=True)
        opened.append(client)
        return client

    yield connection
    for client in opened:
        client.close()
