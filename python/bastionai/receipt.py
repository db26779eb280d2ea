"""Receipts: what was done to whose data, at what cost, under which code; checkable offline."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

from bastionai import _internal
from bastionai.attestation import UNATTESTED_GPU, AppraisalPolicy
from bastionai.display import html_table
from bastionai.exceptions import InvalidRequest


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

    def verify(
        self,
        policy: AppraisalPolicy | None = None,
        *,
        allow_simulated: bool = False,
        allow_unattested_gpu: bool = False,
        ledger_key: str | None = None,
    ) -> None:
        """Checks it as an auditor does, offline: signature, the server's evidence, and every price.

        The evidence proves whose key signed: nothing in the receipt is believed without it. Prices are
        recomputed from the mechanisms charged, which takes the accountant a moment.

        Args:
            policy: What the server must have proven, as for :class:`~bastionai.Connection`. The default
                has no reference values and refuses every server.
            allow_simulated: Instead of a policy: accept the development attester, which proves nothing.
            allow_unattested_gpu: Accept a server that computed on a GPU outside of what it proves.
            ledger_key: The only signing key accepted, in hex, e.g. ``client.attestation.ledger_key``.

        Raises:
            ReceiptError: If it was changed, contradicts itself, or charges less than its mechanism costs.
            AttestationError: If its evidence does not meet the policy.
        """
        if policy is not None and allow_simulated:
            raise InvalidRequest("give policy= or allow_simulated=True, not both")
        terms = None if allow_simulated else (policy or AppraisalPolicy()).to_json()
        flags = [UNATTESTED_GPU] if allow_unattested_gpu else []
        _internal.verify_receipt(self.envelope, terms, ledger_key, flags)

    @property
    def ledger_key(self) -> str:
        """The key that signed, as the receipt names it: :meth:`verify` says whether that is true."""
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
            ("noise mode", str(run["noise_mode"])),
            ("freshness", str(self.statement["freshness"])),
        ]
        for dataset in self.statement["datasets"]:
            text = f"ε={dataset['epsilon']}, δ={dataset['delta']}"
            if dataset["budget"] is not None:
                budget = dataset["budget"]
                spent = f"spent in all ε={budget['total_epsilon']}"
                if "renyi" in budget:
                    spent = f"spent and reserved in all, by Rényi divergences, ε={budget['renyi']['epsilon']}"
                text += f"; {spent} of {budget['lifetime_epsilon']}"
            if "privacy_unit" in dataset:
                text += f"; {dataset['privacy_unit']}"
            facts.append((dataset["name"], text))
        return facts

    def __str__(self) -> str:
        return "\n".join(f"{key:<16} {value}" for key, value in self.facts())

    def __repr__(self) -> str:
        return f"Receipt(run={self.statement['run']['id']!r})"

    def _repr_html_(self) -> str:
        return html_table("Receipt", (), self.facts())
