"""What you demand of a server before you trust it with anything, and what it proved."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: What a server says of itself that hands data to a GPU which no evidence covers.
UNATTESTED_GPU = "insecure-unattested-gpu"

#: Accept whatever is found, by explicit choice; the result says so.
ANY = "any"


@dataclass(frozen=True)
class AppraisalPolicy:
    """Your terms. Whatever has no reference value refuses: the default refuses every server.

    Each field that takes reference values takes a list of them, or ``"any"``.

    Attributes:
        measurements: Launch measurements, 96 hex digits each: which image runs.
        configuration_digests: SHA-256 of effective configurations, 64 hex digits each.
        trainer_digests: SHA-256 of trainer programs.
        libtorch_digests: SHA-256 over the libtorch libraries.
        root_key_providers: Where the root key may come from, by name.
        allowed_insecure_flags: Insecure choices that you accept; any other refuses.
        minimum_freshness: ``none``, ``unlock`` (the lowest that prevents a rollback) or ``witness``.
        chip_ids: The only chips accepted, 128 hex digits each; None: any genuine one.
        ledger_id: The only ledger accepted, 32 hex digits.
        manifest: The signed manifest of a release, its path or its content: its reference values fill in those that are
            absent here, and never replace one; the result names the release.
        manifest_key: The public key that must have signed it, 64 hex digits: whom you trust to make releases.
    """

    measurements: Sequence[str] | str = ()
    configuration_digests: Sequence[str] | str = ()
    trainer_digests: Sequence[str] | str = ()
    libtorch_digests: Sequence[str] | str = ()
    root_key_providers: Sequence[str] | str = ()
    allowed_insecure_flags: Sequence[str] = ()
    minimum_freshness: str = "unlock"
    chip_ids: Sequence[str] | None = None
    ledger_id: str | None = None
    manifest: Path | bytes | None = None
    manifest_key: str | None = None

    def to_json(self) -> str:
        """The policy as the verifier reads it.

        Raises:
            ValueError: If only one of `manifest` and `manifest_key` is given.
            OSError: If the manifest cannot be read.
        """
        terms = asdict(self)
        manifest, key = terms.pop("manifest"), terms.pop("manifest_key")
        if (manifest is None) != (key is None):
            raise ValueError("manifest and manifest_key go together: a manifest counts under a key that you trust")
        if manifest is not None:
            signed = manifest if isinstance(manifest, bytes) else Path(manifest).read_bytes()
            terms["manifest"] = {"signed": signed.decode("utf-8", errors="replace"), "key": key}
        return json.dumps(terms)


class Attestation:
    """The result of appraising a server's evidence.

    Args:
        document: The verifier's result.
        text: The same for people.

    Attributes:
        document: Complete.
    """

    def __init__(self, document: dict[str, Any], text: str) -> None:
        self.document = document
        self._text = text

    @property
    def simulated(self) -> bool:
        """Whether the evidence came from the development attester, which anyone can forge."""
        return bool(self.document["report"]["kind"] == "insecure-simulated")

    @property
    def ledger_key(self) -> str:
        """The key that signs receipts, in hex: give it to auditors with the receipt."""
        return str(self.document["runtime_claims"]["ledger_public_key"])

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Attestation({self.document['status']}; print() shows it)"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self._text)}</pre>"
