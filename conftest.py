"""A real server process over a real socket, and people who talk to it: for python/tests and tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_process import ServerProcess

import bastionai

ROOT = Path(__file__).resolve().parent
BINARY = Path(os.environ.get("BASTIONAI_BIN", ROOT / "target/release/bastionai"))


# A shell that starts tests in the background has them ignore Ctrl-C, which some of them press.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def binaries() -> None:
    """The release binaries; a missing one is a failure, never a silent skip."""
    for binary in (BINARY, BINARY.with_name("bastionai-trainer")):
        if not binary.exists():
            pytest.fail(f"{binary} is missing: run `make setup`, or set BASTIONAI_BIN", pytrace=False)


@pytest.fixture(scope="module")
def server(binaries: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server shared by the tests of a module."""
    with ServerProcess(BINARY, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def own_server(binaries: None, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server of the test's own, to be killed."""
    with ServerProcess(BINARY, tmp_path) as running:
        yield running


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
def connect(server: ServerProcess, people: Callable[[str], Path]) -> Iterator[Callable[..., bastionai.Connection]]:
    """Connections to the module's server, as anybody; closed afterwards."""
    opened: list[bastionai.Connection] = []

    def connection(name: str = "alice") -> bastionai.Connection:
        client = bastionai.Connection(server.address, identity=people(name), allow_simulated=True)
        opened.append(client)
        return client

    yield connection
    for client in opened:
        client.close()
