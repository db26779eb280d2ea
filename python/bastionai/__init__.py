"""Train PyTorch models on data that nobody may see.

An owner lends a dataset under a public contract and a privacy limit; a scientist trains an ordinary
``nn.Module`` on it. The server runs in a trusted execution environment that clients verify before
anything is sent, clips and noises every gradient, and keeps an account of what was revealed.

Start at :class:`Connection`.
"""

from bastionai import privacy, schedules
from bastionai.attestation import AppraisalPolicy, Attestation
from bastionai.connection import Connection, keygen
from bastionai.contract import Column, DataContract, UnitColumn
from bastionai.evaluation import Estimate, Evaluation, EvaluationQuote
from bastionai.exceptions import (
    AlreadyExists,
    AttestationError,
    BastionError,
    BudgetExceeded,
    CallTimedOut,
    ConnectionFailed,
    ContractError,
    DatasetInUse,
    Detached,
    ExportError,
    InvalidRequest,
    LedgerError,
    LossError,
    MissingPackage,
    ModelRefused,
    NoiseWarning,
    NotFound,
    NotReleasable,
    PermissionRefused,
    PolicyError,
    ProtocolMismatch,
    QueueFull,
    QuoteExpired,
    ReceiptError,
    Refusal,
    RowError,
    RunFailed,
    ServerBusy,
    ServerDraining,
    ServerFailure,
    TooManyFailures,
    UploadBroken,
)
from bastionai.exporting import export, export_scores
from bastionai.fixing import fix
from bastionai.learner import RemoteLearner
from bastionai.ledger_types import Amount, Budget, Charge
from bastionai.optimizers import SGD, Adam, AdamW
from bastionai.quote import Quote
from bastionai.receipt import Receipt
from bastionai.remote import RemoteDataset
from bastionai.run_list import RunList
from bastionai.runs import Run
from bastionai.synthetic import SyntheticDataset

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "AlreadyExists",
    "Amount",
    "AppraisalPolicy",
    "Attestation",
    "AttestationError",
    "BastionError",
    "Budget",
    "BudgetExceeded",
    "CallTimedOut",
    "Charge",
    "Column",
    "Connection",
    "ConnectionFailed",
    "ContractError",
    "DataContract",
    "DatasetInUse",
    "Detached",
    "Estimate",
    "Evaluation",
    "EvaluationQuote",
    "ExportError",
    "InvalidRequest",
    "LedgerError",
    "LossError",
    "MissingPackage",
    "ModelRefused",
    "NoiseWarning",
    "NotFound",
    "NotReleasable",
    "PermissionRefused",
    "PolicyError",
    "ProtocolMismatch",
    "QueueFull",
    "Quote",
    "QuoteExpired",
    "Receipt",
    "ReceiptError",
    "Refusal",
    "RemoteDataset",
    "RemoteLearner",
    "RowError",
    "Run",
    "RunFailed",
    "RunList",
    "ServerBusy",
    "ServerDraining",
    "ServerFailure",
    "SyntheticDataset",
    "TooManyFailures",
    "UnitColumn",
    "UploadBroken",
    "export",
    "export_scores",
    "fix",
    "keygen",
    "privacy",
    "schedules",
]
