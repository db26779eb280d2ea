//! Entries: what can happen, and its one binary form.
//!
//! ```text
//! entry  = version u8 = 1 ‖ sequence u64 ‖ previous hash [32] ‖ time u64 (Unix ms) ‖ body length u32 ‖ body
//! body   = postcard(Body)                              (events as in crate::event)
//! hash   = SHA-256("bastionai/v1/ledger-entry\0" ‖ version ‖ sequence ‖ previous hash ‖ time ‖ SHA-256(body))
//! ```
//! Integers are little-endian. Sequences count from 0, the genesis.

use crate::amount::Amount;
use crate::event;
use crate::id::{BootId, DatasetId, Digest32, EntryHash, LedgerId, LedgerPublicKey, Principal, RunId};
use crate::policy::{DatasetKind, Freshness, NoiseMode, Policy, RunKind};
use bastionai_privacy::event::{DpEvent, NeighboringRelation};
use bastionai_privacy::filter::renyi::RenyiCost;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Version of entries and their hashes.
pub const ENTRY_VERSION: u8 = 1;

/// One event in a ledger's life. The order of variants and fields is the format: append only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Body {
    /// The first entry.
    Genesis(Genesis),
    /// A server started; runs of earlier boots are resumed or settled from here on.
    BootStarted(BootStarted),
    /// A dataset was uploaded completely.
    DatasetCreated(DatasetCreated),
    /// Its owner withdrew a dataset: no run starts on it any more (rule D7).
    DatasetWithdrawn(DatasetWithdrawn),
    /// The full cost of a run was set aside.
    RunReserved(RunReserved),
    /// From here on records may reach the trainer: the reserve stays charged (rule D5).
    RunStarted(RunStarted),
    /// Progress up to this step may be released (rule D1).
    RunAdvanced(RunAdvanced),
    /// A started run ended, one way or another.
    RunCommitted(RunCommitted),
    /// A run ended that never started: its reserve is free again.
    RunRefunded(RunRefunded),
    /// What a run yielded was handed to a principal.
    Released(Released),
    /// Its owner had a dataset erased: withdrawn, and its key destroyed (rule A8).
    DatasetRemoved(DatasetRemoved),
    /// The full cost of an evaluation was set aside: a run of one step whose result is a noisy histogram.
    EvaluationReserved(RunReserved),
    /// A later boot took over a run that an earlier one left open: same digest, same steps, same charge (rule D1).
    RunResumed(RunResumed),
    /// An owner stopped a run for the time being: it neither advances nor succeeds until they lift that.
    RunSuspended(RunSuspended),
    /// The owner who suspended a run lets it go on.
    RunUnsuspended(RunUnsuspended),
    /// As `RunAdvanced`, and weights of steps up to this one are kept, to be released with the run.
    RunAdvancedKeeping(RunAdvancedKeeping),
    /// As `RunReserved` or `EvaluationReserved`, and some of the datasets add their runs up in Rényi divergences.
    RunReservedRenyi(RunReservedRenyi),
    /// As `RunCommitted` of a cancelled run, and it is known how many steps were started: accounts of Rényi divergences
    /// are charged these alone (rule D5).
    RunStopped(RunStopped),
}

/// See [`Body::Genesis`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// The ledger's id.
    pub ledger: LedgerId,
}

/// See [`Body::BootStarted`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootStarted {
    /// The boot's id.
    pub boot: BootId,
    /// The key that signs heads and receipts during this boot; made in the TEE (rule A4).
    pub ledger_key: LedgerPublicKey,
    /// SHA-256 of the boot's canonical runtime claims (rule A4).
    pub claims_digest: Digest32,
    /// Freshness level of this boot (rule A1).
    pub freshness: Freshness,
}

/// See [`Body::DatasetCreated`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetCreated {
    /// The dataset's id.
    pub dataset: DatasetId,
    /// Its name, unique in the ledger for ever.
    pub name: String,
    /// Private, public or synthetic.
    pub kind: DatasetKind,
    /// Who uploaded it.
    pub owner: Principal,
    /// The data contract, canonical JSON; its digest is SHA-256 of these bytes.
    pub contract_json: String,
    /// Declared number of records (rule D10). The true number is nowhere in the ledger.
    pub declared_size: u64,
    /// The owner's terms.
    pub policy: Policy,
    /// Number of stored blocks: a function of contract and declared size (rules A10, D10).
    pub blocks: u64,
    /// SHA-256 over the stored blocks' digests in order: the dataset's version root (rule A11).
    pub root: Digest32,
}

/// See [`Body::DatasetWithdrawn`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetWithdrawn {
    /// The dataset.
    pub dataset: DatasetId,
    /// Who withdrew it: its owner.
    pub by: Principal,
}

/// See [`Body::DatasetRemoved`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetRemoved {
    /// The dataset. Its account stays, and so does its name.
    pub dataset: DatasetId,
    /// Who removed it: its owner.
    pub by: Principal,
}

/// See [`Body::RunReserved`] and [`Body::EvaluationReserved`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunReserved {
    /// The run's id.
    pub run: RunId,
    /// The boot that reserved it (rule A11).
    pub boot: BootId,
    /// Digest of everything that was agreed (rule A11).
    pub run_digest: Digest32,
    /// Digest of the canonical typed graph (rule T9).
    pub graph_digest: Digest32,
    /// Who started it.
    pub scientist: Principal,
    /// Name given by the scientist.
    pub model_name: String,
    /// Steps planned.
    pub steps: u64,
    /// How noise is made (rule D2).
    pub noise_mode: NoiseMode,
    /// One charge per dataset, ids distinct (rule D3).
    pub charges: Vec<Charge>,
}

/// What a run costs one dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Charge {
    /// The dataset.
    pub dataset: DatasetId,
    /// The mechanism, in full.
    #[serde(with = "event::pinned")]
    pub event: DpEvent,
    /// Which pairs of datasets the guarantee compares.
    pub relation: NeighboringRelation,
    /// (ε, δ) set aside and charged; zero exactly for public and synthetic datasets.
    pub amount: Amount,
}

/// See [`Body::RunReservedRenyi`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunReservedRenyi {
    /// What it does with the data.
    pub kind: RunKind,
    /// What every reservation says.
    pub reserved: RunReserved,
    /// One for each dataset whose policy composes by Rényi divergences, in the order of the charges; at least one.
    pub renyi: Vec<RenyiCharge>,
}

/// What a run costs an account of Rényi divergences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenyiCharge {
    /// The dataset.
    pub dataset: DatasetId,
    /// Of the charge's event, at each order of the dataset's policy, rounded up.
    pub cost: RenyiCost,
}

/// See [`Body::RunStarted`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunStarted {
    /// The run.
    pub run: RunId,
}

/// See [`Body::RunAdvanced`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunAdvanced {
    /// The run.
    pub run: RunId,
    /// Last step whose progress may leave; strictly above the one before.
    pub released_step: u64,
}

/// See [`Body::RunAdvancedKeeping`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunAdvancedKeeping {
    /// The run.
    pub run: RunId,
    /// Last step whose progress may leave; strictly above the one before.
    pub released_step: u64,
    /// Rising by step, an iterate before the average of the same step; at least one.
    pub kept: Vec<KeptWeights>,
}

/// A set of weights that a run keeps on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptWeights {
    /// After which step.
    pub step: u64,
    /// The average of the iterates up to that step instead of the iterate.
    pub ema: bool,
    /// Digest of the weights ([`crate::weights::weights_digest`]).
    pub weights_digest: Digest32,
}

/// See [`Body::RunCommitted`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunCommitted {
    /// The run.
    pub run: RunId,
    /// How it ended.
    pub outcome: Outcome,
    /// Digest of the trained weights ([`crate::weights::weights_digest`]): present exactly on success.
    pub weights_digest: Option<Digest32>,
}

/// See [`Body::RunStopped`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunStopped {
    /// The run.
    pub run: RunId,
    /// Steps started, released or not: at least one, at least those released, fewer than planned.
    pub started_steps: u64,
}

/// How a started run ended. The whole reserve stays charged in every case (rule D5), but where
/// [`Body::RunStopped`] says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All steps were taken; weights are stored.
    Succeeded,
    /// The trainer or the server died, or something else went wrong. Never says what (rule G4).
    Failed,
    /// Stopped on request; weights were destroyed (rule D5).
    Cancelled,
}

/// See [`Body::RunRefunded`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRefunded {
    /// The run.
    pub run: RunId,
    /// Why it never started.
    pub reason: RefundReason,
}

/// Why a run never started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefundReason {
    /// The scientist cancelled it while it was queued.
    Cancelled,
    /// The trainer refused the job or could not be started.
    NotStartable,
    /// The server stopped before the run started.
    ServerStopped,
}

/// See [`Body::Released`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Released {
    /// The run.
    pub run: RunId,
    /// Who receives its weights.
    pub recipient: Principal,
    /// What is handed over.
    pub weights_digest: Digest32,
}

/// See [`Body::RunResumed`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunResumed {
    /// The run.
    pub run: RunId,
    /// The boot that goes on with it: the current one.
    pub boot: BootId,
}

/// See [`Body::RunSuspended`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSuspended {
    /// The run.
    pub run: RunId,
    /// An owner of one of its datasets.
    pub by: Principal,
}

/// See [`Body::RunUnsuspended`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunUnsuspended {
    /// The run.
    pub run: RunId,
    /// The owner who had suspended it. While another one's suspension stands, so does the run.
    pub by: Principal,
}

impl Body {
    /// The kind of event, as shown to people.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Genesis(_) => "genesis",
            Self::BootStarted(_) => "boot_started",
            Self::DatasetCreated(_) => "dataset_created",
            Self::DatasetWithdrawn(_) => "dataset_withdrawn",
            Self::RunReserved(_) => "run_reserved",
            Self::RunStarted(_) => "run_started",
            Self::RunAdvanced(_) => "run_advanced",
            Self::RunCommitted(_) => "run_committed",
            Self::RunRefunded(_) => "run_refunded",
            Self::Released(_) => "released",
            Self::DatasetRemoved(_) => "dataset_removed",
            Self::EvaluationReserved(_) => "evaluation_reserved",
            Self::RunResumed(_) => "run_resumed",
            Self::RunSuspended(_) => "run_suspended",
            Self::RunUnsuspended(_) => "run_unsuspended",
            Self::RunAdvancedKeeping(_) => "run_advanced_keeping",
            Self::RunReservedRenyi(_) => "run_reserved_renyi",
            Self::RunStopped(_) => "run_stopped",
        }
    }

    /// The run this event is about, if any.
    pub fn run(&self) -> Option<RunId> {
        match self {
            Self::RunReserved(RunReserved { run, .. })
            | Self::RunStarted(RunStarted { run })
            | Self::RunAdvanced(RunAdvanced { run, .. })
            | Self::RunCommitted(RunCommitted { run, .. })
            | Self::RunRefunded(RunRefunded { run, .. })
            | Self::Released(Released { run, .. })
            | Self::EvaluationReserved(RunReserved { run, .. })
            | Self::RunResumed(RunResumed { run, .. })
            | Self::RunSuspended(RunSuspended { run, .. })
            | Self::RunUnsuspended(RunUnsuspended { run, .. })
            | Self::RunAdvancedKeeping(RunAdvancedKeeping { run, .. })
            | Self::RunReservedRenyi(RunReservedRenyi {
                reserved: RunReserved { run, .. },
                ..
            })
            | Self::RunStopped(RunStopped { run, .. }) => Some(*run),
            Self::Genesis(_)
            | Self::BootStarted(_)
            | Self::DatasetCreated(_)
            | Self::DatasetWithdrawn(_)
            | Self::DatasetRemoved(_) => None,
        }
    }

    /// The dataset this event is about, if it is about one alone.
    pub fn dataset(&self) -> Option<DatasetId> {
        match self {
            Self::DatasetCreated(DatasetCreated { dataset, .. })
            | Self::DatasetWithdrawn(DatasetWithdrawn { dataset, .. })
            | Self::DatasetRemoved(DatasetRemoved { dataset, .. }) => Some(*dataset),
            _ => None,
        }
    }

    /// The canonical encoding.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("postcard encodes every field type of Body")
    }
}

/// A link of the chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    sequence: u64,
    previous: EntryHash,
    time_unix_ms: u64,
    body: Body,
    body_digest: Digest32,
    hash: EntryHash,
}

/// Why bytes are not an entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// Written by a newer program.
    #[error("ledger entry version {found} is not {ENTRY_VERSION}; update this program")]
    Version {
        /// The version found.
        found: u8,
    },
    /// Cut short or followed by more.
    #[error("ledger entry has the wrong length")]
    Length,
    /// The body is not a canonical encoding.
    #[error("ledger entry body is not a canonical encoding")]
    Body,
}

impl Entry {
    /// Only the state machine makes entries, and the decoder.
    pub(crate) fn new(sequence: u64, previous: EntryHash, time_unix_ms: u64, body: Body) -> Self {
        let body_digest = Digest32::of(&body.to_bytes());
        let hash = entry_hash(sequence, previous, time_unix_ms, body_digest);
        Self {
            sequence,
            previous,
            time_unix_ms,
            body,
            body_digest,
            hash,
        }
    }

    /// Position in the chain, from 0.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Hash of the entry before; [`EntryHash::NONE`] for the genesis.
    pub fn previous(&self) -> EntryHash {
        self.previous
    }

    /// Ledger time: never behind an earlier entry (rule A8).
    pub fn time_unix_ms(&self) -> u64 {
        self.time_unix_ms
    }

    /// What happened.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// SHA-256 of the body's encoding.
    pub fn body_digest(&self) -> Digest32 {
        self.body_digest
    }

    /// This entry's hash.
    pub fn hash(&self) -> EntryHash {
        self.hash
    }

    /// The body as JSON, for people.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.body).expect("every field type of Body has a JSON form")
    }

    /// The canonical encoding (module documentation).
    pub fn to_bytes(&self) -> Vec<u8> {
        let body = self.body.to_bytes();
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
        bytes.push(ENTRY_VERSION);
        bytes.extend(self.sequence.to_le_bytes());
        bytes.extend(self.previous.as_bytes());
        bytes.extend(self.time_unix_ms.to_le_bytes());
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(body);
        bytes
    }

    /// Decodes [`Entry::to_bytes`]; the link to the entry before is checked by [`crate::Ledger::replay`].
    ///
    /// # Errors
    /// [`EntryError`] unless the bytes are exactly one canonical encoding of this version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EntryError> {
        let (&found, _) = bytes.split_first().ok_or(EntryError::Length)?;
        if found != ENTRY_VERSION {
            return Err(EntryError::Version { found });
        }
        let (header, body_bytes) = bytes.split_at_checked(HEADER_BYTES).ok_or(EntryError::Length)?;
        let sequence = u64::from_le_bytes(field(header, 1));
        let previous = EntryHash::from_bytes(field(header, 9));
        let time_unix_ms = u64::from_le_bytes(field(header, 41));
        if u32::from_le_bytes(field(header, 49)) as usize != body_bytes.len() {
            return Err(EntryError::Length);
        }
        let (body, rest) = postcard::take_from_bytes::<Body>(body_bytes).map_err(|_| EntryError::Body)?;
        // Postcard reads padded integers too: one event must have one encoding, or one hash is not one event.
        if !rest.is_empty() || body.to_bytes() != body_bytes {
            return Err(EntryError::Body);
        }
        Ok(Self::new(sequence, previous, time_unix_ms, body))
    }
}

/// The hash of an entry from its parts (module documentation).
pub fn entry_hash(sequence: u64, previous: EntryHash, time_unix_ms: u64, body_digest: Digest32) -> EntryHash {
    let mut hasher = Sha256::new();
    hasher.update(ENTRY_LABEL);
    hasher.update([ENTRY_VERSION]);
    hasher.update(sequence.to_le_bytes());
    hasher.update(previous.as_bytes());
    hasher.update(time_unix_ms.to_le_bytes());
    hasher.update(body_digest.as_bytes());
    EntryHash::from_bytes(hasher.finalize().into())
}

fn field<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    header[at..at + N]
        .try_into()
        .expect("the header has HEADER_BYTES bytes")
}

const ENTRY_LABEL: &[u8] = b"bastionai/v1/ledger-entry\0";
const HEADER_BYTES: usize = 1 + 8 + 32 + 8 + 4;
