"""Receipts: what was done to whose data, at what cost, under which code; checkable offline."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

from bastionai import _internal
from bastionai.display import html_table


class Receipt:
    """The signed statement about one run, in a DSSE envelope.

    Args:
        envelope: The envelope's JSON, as the server sent it.

    Attributes:
        envelope: The same bytes; give these to an auditor.
        statement: The signed content.
    """

    def __init__(self, envelope: bytes) -> None:
        self.envelope = envelope
        self.statement: dict[str, Any] = json.loads(base64.b64decode(json.loads(envelope)["payload"]))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Receipt:
        """Reads a receipt that :meth:`save` wrote; call :meth:`verify` before believing it."""
        return cls(Path(path).read_bytes())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the envelope, e.g. to ``receipt.json``."""
        destination = Path(path)
        destination.write_bytes(self.envelope)
        return destination

    def verify(self, ledger_key: str | None = None) -> None:
        """Checks the signature and the content, offline.

        Args:
            ledger_key: The server's ledger key in hex, which attestation binds. By default the one
                the receipt names: that proves that nothing was changed, not who signed.

        Raises:
            ReceiptError: If anything does not hold.
        """
        _internal.verify_receipt(self.envelope, ledger_key or self.ledger_key)

    @property
    def ledger_key(self) -> str:
        """The key that signed, as the receipt names it."""
        return str(self.statement["issuer"]["ledger_key"])

    def facts(self) -> list[tuple[str, str]]:
        """The statement in a few lines for people."""
        run = self.statement["run"]
        facts = [
            ("run", run["id"]),
            ("outcome", str(run["outcome"])),
            ("steps", f"{run['released_step']} of {run['steps']} released"),
            ("run digest", run["run_digest"]),
            ("graph digest", run["graph_digest"]),
            ("weights digest", run["weights_digest"] or "none"),
            ("freshness", str(self.statement["freshness"])),
        ]
        for dataset in self.statement["datasets"]:
            text = f"ε={dataset['epsilon']}, δ={dataset['delta']}"
            if dataset["budget"] is not None:
                budget = dataset["budget"]
                text += f"; spent in all ε={budget['total_epsilon']} of {budget['lifetime_epsilon']}"
            facts.append((dataset["name"], text))
        return facts

    def __str__(self) -> str:
        return "\n".join(f"{key:<16} {value}" for key, value in self.facts())

    def __repr__(self) -> str:
        return f"Receipt(run={self.statement['run']['id']!r})"

    def _repr_html_(self) -> str:
        return html_table("Receipt", (), self.facts())
