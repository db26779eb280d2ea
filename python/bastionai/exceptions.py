"""Every error this package raises on purpose.

``_internal`` raises these classes too: they are defined once, here. Messages say what went wrong,
where, and what to do; none carries a value of a private record.
"""

from __future__ import annotations

from dataclasses import dataclass


class BastionError(Exception):
    """Base of every error of this package."""


class ConnectionFailed(BastionError):
    """The server could not be reached, or the attested session broke.

    A broken session is never repaired silently: what answers afterwards may be another server,
    so connect (and verify) again.
    """


class CallTimedOut(ConnectionFailed):
    """The server did not answer in time. The call may still have been done: look before you ask again."""


class AttestationError(BastionError):
    """The server's evidence did not verify, or your policy does not accept what it proves."""


class ContractError(BastionError):
    """The data contract is missing or invalid, or a dataset does not have its form."""


class RowError(ContractError):
    """A record lies outside the declared contract. Nothing was sent.

    Attributes:
        row: Index of the record in the dataset, from 0.
        column: The column, or None when the record as a whole is malformed.
    """

    def __init__(self, message: str, row: int | None = None, column: str | None = None) -> None:
        super().__init__(message)
        self.row = row
        self.column = column


class UploadBroken(BastionError):
    """An upload stopped half-way or arrived otherwise than it was sent. The server kept nothing: send it again."""


class ExportError(BastionError):
    """The module could not be turned into a graph that gives one loss per sample."""


class LossError(ExportError):
    """The loss has no per-sample form."""


@dataclass(frozen=True)
class Refusal:
    """One place of a model that could let a sample influence another's loss.

    Attributes:
        node: Name of the node in the exported graph.
        operator: The operator, e.g. ``aten.mean.dim``.
        source: ``file:line`` of the Python code it came from, when known.
        rule: The rule of docs/design.md that is not met, e.g. ``T7``; None for a plain mistake.
        reason: Why it is refused.
        remedy: What to use instead.
    """

    node: str
    operator: str
    source: str | None
    rule: str | None
    reason: str
    remedy: str


class ModelRefused(BastionError):
    """The model cannot be proven to keep samples apart, so it never meets private data.

    Attributes:
        refusals: All of them, in graph order (empty when the archive itself is malformed).
    """

    def __init__(self, message: str, refusals: list[Refusal] | None = None) -> None:
        super().__init__(message)
        self.refusals = refusals or []


class BudgetExceeded(BastionError):
    """A dataset's privacy budget does not cover the run. Nothing was charged."""


class TooManyFailures(BastionError):
    """Too many runs on a dataset have failed, and it takes no more: ask its owner, who can lend the data anew."""


class PermissionRefused(BastionError):
    """A dataset's policy does not allow this to your principal."""


class DatasetInUse(BastionError):
    """A run that is not over uses the dataset. Cancel it, or withdraw the dataset and remove it afterwards."""


class NotFound(BastionError):
    """No such dataset, model or run, or none that you may see."""


class AlreadyExists(BastionError):
    """The name is taken; names are unique on a server."""


class InvalidRequest(BastionError):
    """The server refused an argument."""


class PolicyError(InvalidRequest):
    """The terms under which a dataset would be lent contradict each other, or a number in them is out of range."""


class QuoteExpired(InvalidRequest):
    """The price is too old, or of an earlier start of the server. Ask it again; nothing was charged."""


class NotReleasable(InvalidRequest):
    """The run has no weights or no receipt, or not yet. ``client.run(id).state`` says how far it is."""


class MissingPackage(BastionError):
    """A package that this call needs is not installed; the message says which."""


class ServerBusy(BastionError):
    """A limit of the server or of a policy is met. The message says whether to wait or to ask for less."""


class ServerDraining(ServerBusy):
    """The server is about to stop and takes no new work. Connect (and verify) again when it is back."""


class ProtocolMismatch(BastionError):
    """Client and server speak different versions of the protocol: update the older one."""


class QueueFull(ServerBusy):
    """The queue of runs is full, or holds as many of yours as it may; nothing was charged. Let a run end first."""


class ServerFailure(BastionError):
    """The server failed. Its log has the cause; the answer deliberately does not."""


class LedgerError(BastionError):
    """The server's ledger does not extend the one this client saw before: rollback or fork."""


class ReceiptError(BastionError):
    """A receipt's signature or content does not verify."""


class RunFailed(BastionError):
    """The run ended without weights.

    Attributes:
        run_id: The run.
    """

    def __init__(self, message: str, run_id: str | None = None) -> None:
        super().__init__(message)
        self.run_id = run_id


class Detached(KeyboardInterrupt):
    """Ctrl-C while watching: the run goes on at the server.

    Attributes:
        run_id: Find it again with ``client.run(run_id)``.
    """

    def __init__(self, message: str, run_id: str) -> None:
        super().__init__(message)
        self.run_id = run_id


class NoiseWarning(UserWarning):
    """The server's advice about a run's settings, e.g. that noise would drown what the model could learn."""
