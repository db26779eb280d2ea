"""The Rust side: client, graph and privacy. Answers of a session are JSON texts."""

#: Share of the privacy that the released loss takes when none is named; the server's own default.
DEFAULT_LOSS_SHARE: float

def canonical_contract(json: str) -> str:
    """The canonical JSON of a contract. Raises ContractError."""

def contract_digest(json: str) -> str:
    """SHA-256 of the canonical JSON, in hex. Raises ContractError."""

def declared_size_for(rows: int) -> int:
    """The smallest rung of the size ladder that holds so many records. Raises ContractError."""

def check_batch(json: str, first_row: int, rows: int, columns: list[bytes]) -> None:
    """Checks records against a contract. Raises RowError, counting from ``first_row``."""

def encode_identifiers(json: str, first_row: int, texts: list[str]) -> bytes:
    """Identifiers of units as a batch has them. Raises RowError, counting from ``first_row``."""

class UnitCount:
    """Records of each unit of a dataset, counted against its contract."""

    def __init__(self, json: str) -> None:
        """Raises ContractError if the contract has no column of units."""

    def add(self, first_row: int, identifiers: bytes) -> None:
        """Counts one batch. Raises RowError, counting from ``first_row``."""

    @property
    def units(self) -> int:
        """Units seen."""

def check_archive(archive: bytes, contract_json: str | None, input_columns: list[str]) -> str:
    """Proves that a ``.pt2`` archive keeps samples apart, as the server does.

    Without a contract the input shapes come from the archive itself. Returns the typed graph in
    words. Raises ModelRefused with every refusal.
    """

def check_scores_archive(archive: bytes, contract_json: str | None, input_columns: list[str]) -> str:
    """Proves that a ``.pt2`` archive returns scores and label per sample, as an evaluation needs.

    Returns the typed graph in words. Raises ModelRefused with every refusal.
    """

def estimate_metrics(histograms_json: str, names: list[str]) -> str:
    """Metrics with their errors from histograms. Raises InvalidRequest for an unknown or impossible metric."""

def score_edges(bins: int) -> list[float]:
    """Inner edges of the score bins, in log-odds. Raises InvalidRequest."""

def event_epsilon(event_json: str, delta: float, relation: str, accountant: str) -> float:
    """ε of a mechanism at δ, an upper bound. Raises InvalidRequest."""

def event_epsilon_lower_bound(event_json: str, delta: float, relation: str) -> float:
    """An ε that does not suffice at δ. Raises InvalidRequest."""

def event_delta(event_json: str, epsilon: float, relation: str, accountant: str) -> float:
    """δ of a mechanism at ε, an upper bound. Raises InvalidRequest."""

class PrivacyProfile:
    """A mechanism's whole curve, composed once. Raises InvalidRequest."""

    def __init__(self, event_json: str, smallest_delta: float, relation: str) -> None: ...
    def epsilon(self, delta: float) -> float: ...
    def delta(self, epsilon: float) -> float: ...
    def points(self, count: int) -> list[tuple[float, float]]: ...

class RenyiFilter:
    """A lifetime and what was spent of it. Raises InvalidRequest."""

    def __init__(self, epsilon: str, delta: str, orders: list[tuple[str, int]] | None) -> None: ...
    def admits(self, event_json: str, relation: str) -> bool: ...
    def spend(self, event_json: str, relation: str) -> bool: ...
    def epsilon(self) -> str: ...
    def reading(self) -> str | None: ...

def noise_multiplier(
    target_epsilon: float, target_delta: float, sample_rate: float, steps: int, accountant: str
) -> float:
    """The smallest noise that meets the target; never overshoots. Raises InvalidRequest."""

def sample_rate(
    target_epsilon: float, target_delta: float, noise_multiplier: float, steps: int, accountant: str
) -> float:
    """The largest sample rate that meets the target. Raises InvalidRequest."""

def steps(
    target_epsilon: float, target_delta: float, noise_multiplier: float, sample_rate: float, accountant: str
) -> int:
    """The most steps that meet the target. Raises InvalidRequest."""

def plan_bands(
    target_epsilon: float,
    target_delta: float,
    dataset_size: int,
    batch_size: int,
    steps: int,
    momentum: float,
    keep: float,
    bands: int | None,
    most_bands: int,
) -> tuple[int, float, float, float, float]:
    """The band of least noise, or a given one.

    Returns bands, noise multiplier, that of independent noise, share of the noise left, sampling probability of a turn.
    Raises InvalidRequest.
    """

def plan(
    dataset_size: int,
    epsilon: float | None,
    noise_multiplier: float | None,
    delta: float,
    batch_size: int | None,
    steps: int | None,
    passes: float | None,
) -> tuple[int, int]:
    """Batch size and steps where they are open. Raises InvalidRequest."""

def generate_identity(path: str) -> str:
    """Makes a key file and returns its principal. Raises InvalidRequest if the file exists."""

def exceptions_by_reason() -> list[tuple[str, str]]:
    """Every reason a server gives for a refusal, with the name of its exception."""

def verify_receipt(
    envelope: bytes, policy_json: str | None, ledger_key: str | None, allowed_insecure_flags: list[str]
) -> None:
    """Checks a receipt offline: signature, evidence under the policy, prices.

    Raises ReceiptError or AttestationError.
    """

class Session:
    """A session with an appraised server. Every call releases the GIL and hears Ctrl-C."""

    @staticmethod
    def connect(
        address: str,
        identity_path: str,
        heads_path: str,
        policy_json: str | None,
        allowed_insecure_flags: list[str],
    ) -> Session: ...
    @property
    def principal(self) -> str: ...
    def close(self) -> None: ...
    def attestation(self) -> str: ...
    def attestation_text(self) -> str: ...
    def server(self) -> str: ...
    def list_datasets(self) -> str: ...
    def withdraw_dataset(self, dataset_id: str) -> str: ...
    def remove_dataset(self, dataset_id: str) -> str: ...
    def begin_upload(self, dataset_json: str) -> Upload: ...
    def upload_model(self, name: str, archive: bytes) -> str: ...
    def price(self, spec_json: str) -> str: ...
    def price_evaluation(self, spec_json: str) -> str: ...
    def start_run(self, run_digest: str) -> str: ...
    def watch_run(self, run_id: str, from_step: int) -> Watch: ...
    def list_runs(self) -> str: ...
    def cancel_run(self, run_id: str) -> str: ...
    def suspend_run(self, run_id: str) -> str: ...
    def resume_run(self, run_id: str) -> str: ...
    def fetch_receipt(self, run_id: str, run_digest: str) -> bytes: ...
    def fetch_run(self, run_id: str, run_digest: str, step: int | None, ema: bool) -> FetchedRun: ...
    def fetch_evaluation(self, run_id: str, run_digest: str, names: list[str]) -> FetchedEvaluation: ...
    def show_ledger(self, subject: str | None) -> str: ...

class Upload:
    """An upload in progress; aborted or dropped before ``finish``, the server keeps nothing."""

    def push(self, rows: int, columns: list[bytes]) -> None: ...
    def finish(self) -> str: ...
    def abort(self) -> None: ...

class Watch:
    """Progress of a run; dropping it detaches."""

    def next(self) -> str | None: ...

class FetchedEvaluation:
    """An evaluation's checked receipt, and its metrics as JSON."""

    @property
    def receipt(self) -> bytes: ...
    @property
    def evaluation(self) -> str: ...

class FetchedRun:
    """A run's checked receipt and weights: (names, dtype, shape, little-endian bytes)."""

    @property
    def receipt(self) -> bytes: ...
    @property
    def weights(self) -> list[tuple[list[str], str, list[int], bytes]]: ...
