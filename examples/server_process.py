"""A ``bastionai serve`` process: started, killed, started again, and never left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

#: Seconds a start may take.
_START_SECONDS = 60.0
#: Seconds a stop may take before the process is killed: more than a server drains for.
_STOP_SECONDS = 45.0


class ServerProcess:
    """A server with the development attester and storage in a folder.

    Args:
        binary: The ``bastionai`` command.
        folder: Where its vault, log and ready file go.
        config: A configuration file; its `listen` and `data_dir` do not count.

    Attributes:
        address: ``host:port``, on a free port.
        folder: As given.
    """

    def __init__(self, binary: Path, folder: Path, config: Path | None = None) -> None:
        self.address = ""
        self.folder = folder
        self._binary = binary
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if kind is not None:
            print(f"the server's last words:\n{self._last_words()}", file=sys.stderr)

    @property
    def process_id(self) -> int:
        """Of the running server."""
        assert self._process is not None, "it runs"
        return self._process.pid

    def start(self) -> None:
        """Starts it and waits until it listens."""
        if not self._binary.exists():
            raise SystemExit(f"{self._binary} is missing: run `make setup`")
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        command = [
            str(self._binary),
            "serve",
            "--data-dir",
            str(self.folder / "vault"),
            "--listen",
            "127.0.0.1:0",
        ]
        command += ["--attester", "insecure-simulated", "--ready-file", str(ready)]
        if self._config is not None:
            command += ["--config", str(self._config)]
        with (self.folder / "server.log").open("ab") as log:
            # A group of its own, so that nothing it starts can be left behind.
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + _START_SECONDS
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start:\n{self._last_words()}")
            time.sleep(0.05)
        self.address = ready.read_text().strip()

    def kill(self) -> None:
        """``kill -9``, as a power cut would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def stop(self) -> int | None:
        """Asks it to stop, makes sure that it and its trainers are gone, and returns its exit status."""
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()

    def _last_words(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")[-2000:]
