//! Receipts: what was done to whose data, at what cost, under which code; checkable offline (rule A6).

use crate::account::RenyiAccount;
use crate::amount::{Amount, Delta, Epsilon};
use crate::chain::Head;
use crate::dsse::{self, EnvelopeError};
use crate::entry::{Charge, KeptWeights, Outcome};
use crate::id::{BootId, DatasetId, Digest32, LedgerPublicKey, Principal, RunId};
use crate::key::LedgerKey;
use crate::policy::{Composition, DatasetKind, Freshness, NoiseMode, RunKind};
use crate::state::{Dataset, Ledger, Run, RunStatus};
use crate::unit::{PER_RECORD, privacy_units};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bastionai_privacy::event::{DpEvent, NeighboringRelation};
use bastionai_privacy::filter::renyi::{RenyiCost, RenyiFilter, RenyiTotal};
use bastionai_privacy::filter::terms::RenyiTerms;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// DSSE payload type of a receipt.
pub const RECEIPT_PAYLOAD_TYPE: &str = "application/vnd.bastionai.receipt+json;version=1";

/// The signed statement about one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// 1.
    pub version: u32,
    /// When it was issued, in ledger time.
    pub issued_unix_ms: u64,
    /// The ledger when it was issued; the totals below are as of this head.
    pub ledger_head: Head,
    /// How rollback and forks are dealt with (rule A1).
    pub freshness: Freshness,
    /// The run.
    pub run: RunStatement,
    /// One per dataset, in run order.
    pub datasets: Vec<DatasetStatement>,
    /// What the numbers mean and rest on.
    pub accounting: AccountingStatement,
    /// The boot whose key signs this receipt, with its evidence.
    pub issuer: RuntimeEvidence,
    /// The boot that reserved the run, when it is another.
    pub runner: Option<RuntimeEvidence>,
    /// Boots that went on with the run after a restart and are neither of the above, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resumers: Vec<RuntimeEvidence>,
}

/// The run of a receipt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunStatement {
    /// Its id.
    pub id: RunId,
    /// What it did with the data; left out of a training run's receipt, as version 1 was first written.
    #[serde(default, skip_serializing_if = "RunStatement::is_training")]
    pub kind: RunKind,
    /// Digest of everything that was agreed (rule A11).
    pub run_digest: Digest32,
    /// Digest of the canonical typed graph.
    pub graph_digest: Digest32,
    /// Digest of the result, weights or histograms ([`crate::weights::weights_digest`]); none unless it succeeded.
    pub weights_digest: Option<Digest32>,
    /// Weights kept on the way, and the average of the iterates; none unless it succeeded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<KeptWeights>,
    /// Who started it.
    pub scientist: Principal,
    /// Name given by the scientist.
    pub model_name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Steps planned: all of them are charged, but where `started_steps` says otherwise.
    pub steps: u64,
    /// Steps started by a run that was cancelled: datasets that compose by Rényi divergences are charged these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_steps: Option<u64>,
    /// Last step whose progress was released.
    pub released_step: u64,
    /// How noise was made (rule D2).
    pub noise_mode: NoiseMode,
    /// The boot that reserved it.
    pub boot: BootId,
    /// Boots that took it over afterwards, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resumed_by: Vec<BootId>,
    /// When its budget was reserved.
    pub reserved_unix_ms: u64,
    /// When it was charged.
    pub committed_unix_ms: u64,
}

/// One dataset of a receipt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetStatement {
    /// Its id.
    pub id: DatasetId,
    /// Its name.
    pub name: String,
    /// Private, public or synthetic.
    pub kind: DatasetKind,
    /// Who lent it.
    pub owner: Principal,
    /// SHA-256 of its data contract.
    pub contract_digest: Digest32,
    /// Hash of its owner's terms.
    pub policy_digest: Digest32,
    /// Version root of its stored blocks.
    pub root: Digest32,
    /// Declared number of records.
    pub declared_size: u64,
    /// What is protected together in this dataset, and over which datasets of the run; left out where it is the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privacy_unit: Option<String>,
    /// The mechanism charged, in full.
    pub event: DpEvent,
    /// Which pairs of datasets the guarantee compares.
    pub relation: NeighboringRelation,
    /// ε charged for this run.
    pub epsilon: Epsilon,
    /// δ charged for this run.
    pub delta: Delta,
    /// What was charged in Rényi divergences, at the orders of the budget: this counts, for a dataset that composes by
    /// them; (ε, δ) above is then what the run would cost alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renyi: Option<RenyiCost>,
    /// The dataset's total spend (rule D12); none for public and synthetic datasets.
    pub budget: Option<BudgetStatement>,
}

/// A dataset's account as of the receipt's ledger head (rule D12).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetStatement {
    /// ε spent by all committed runs, this one included.
    pub total_epsilon: Epsilon,
    /// δ spent by all committed runs, this one included.
    pub total_delta: Delta,
    /// ε held by runs in flight.
    pub reserved_epsilon: Epsilon,
    /// δ held by runs in flight.
    pub reserved_delta: Delta,
    /// Lifetime ε.
    pub lifetime_epsilon: Epsilon,
    /// Lifetime δ.
    pub lifetime_delta: Delta,
    /// The account that counts, of a dataset that composes by Rényi divergences; the sums above may then exceed the lifetime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renyi: Option<RenyiStatement>,
}

/// An account of Rényi divergences as of the receipt's ledger head (rule D12).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenyiStatement {
    /// Orders, and their weights in the split of δ.
    pub orders: RenyiTerms,
    /// Spent at each order by all committed runs, this one included.
    pub total: RenyiCost,
    /// Held at each order by runs in flight.
    pub reserved: RenyiCost,
    /// ε that both together mean at the lifetime's δ.
    pub epsilon: Epsilon,
}

/// What the numbers of a receipt mean and rest on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountingStatement {
    /// What is protected (rule D9).
    pub privacy_unit: String,
    /// How runs add up (rule D6).
    pub composition: String,
    /// What the guarantee rests on.
    pub assumptions: Vec<String>,
}

/// A boot: its key, its runtime claims and the evidence that binds them (rules A4, A6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuntimeEvidence {
    /// The boot.
    pub boot: BootId,
    /// Its ledger key.
    pub ledger_key: LedgerPublicKey,
    /// Canonical runtime claims; opaque here, checked by crate `attestation`.
    #[serde(with = "base64_bytes")]
    pub claims: Vec<u8>,
    /// Kind of evidence.
    pub evidence_media_type: String,
    /// Evidence over label ‖ ledger key ‖ boot id ‖ genesis ‖ claims; opaque here.
    #[serde(with = "base64_bytes")]
    pub evidence: Vec<u8>,
}

/// Why there is no receipt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// The run is not committed (or unknown): nothing to attest to.
    #[error("run {run} has no receipt: it is not committed in the ledger")]
    NotCommitted {
        /// The run.
        run: RunId,
    },
    /// The evidence is of another boot than the ledger names.
    #[error("the runtime evidence is not of the boot that the ledger names")]
    OtherBoot,
}

/// Why a receipt is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptError {
    /// The envelope.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// Issued by a newer program.
    #[error("the receipt has version {found}; this program reads version {RECEIPT_VERSION}")]
    Version {
        /// The version found.
        found: u32,
    },
    /// Signed, but not a receipt of this version.
    #[error("the payload is not a receipt of version {RECEIPT_VERSION}")]
    Malformed,
    /// It contradicts itself.
    #[error("the receipt contradicts itself: {what}")]
    Inconsistent {
        /// Where.
        what: &'static str,
    },
}

impl Receipt {
    /// The statement about a committed run. `issuer` is the current boot; `runner` the boot that reserved the
    /// run, needed exactly when it is another; `resumers` those that went on with it, as [`boots_due`] names them.
    ///
    /// # Errors
    /// [`IssueError::NotCommitted`]; [`IssueError::OtherBoot`] when the evidence is not of the boots that the
    /// ledger names.
    pub fn issue(
        ledger: &Ledger,
        run: &RunId,
        issuer: RuntimeEvidence,
        runner: Option<RuntimeEvidence>,
        resumers: Vec<RuntimeEvidence>,
        now_unix_ms: u64,
    ) -> Result<Self, IssueError> {
        let not_committed = IssueError::NotCommitted { run: *run };
        let run = ledger.run(run).ok_or(not_committed.clone())?;
        let RunStatus::Committed(outcome) = run.status() else {
            return Err(not_committed);
        };
        check_boots(ledger, run, &issuer, runner.as_ref(), &resumers)?;
        let freshness = ledger
            .current_boot()
            .map_or(Freshness::None, |boot| boot.freshness);
        let datasets = dataset_statements(ledger, run);
        Ok(Self {
            version: RECEIPT_VERSION,
            issued_unix_ms: now_unix_ms.max(ledger.last_time_unix_ms()),
            ledger_head: ledger.head(),
            freshness,
            run: run_statement(run, outcome),
            accounting: accounting_statement(&datasets, !run.renyi_charges().is_empty()),
            datasets,
            issuer,
            runner,
            resumers,
        })
    }

    /// Signs the receipt: the JSON of a DSSE envelope.
    pub fn sign(&self, key: &LedgerKey) -> Vec<u8> {
        let payload = serde_json::to_vec(self).expect("every field type of Receipt has a JSON form");
        dsse::seal(&payload, RECEIPT_PAYLOAD_TYPE, key)
    }

    /// Checks an envelope offline and reads it.
    ///
    /// # Guarantee
    /// On success the holder of `expected_key` signed exactly this receipt. That the key lives in an attested
    /// server is checked by appraising `issuer.evidence` (crate `attestation`), which binds key and claims.
    /// # Errors
    /// [`ReceiptError`]; any changed byte of the envelope is refused.
    pub fn verify_offline(envelope: &[u8], expected_key: &LedgerPublicKey) -> Result<Self, ReceiptError> {
        let payload = dsse::open(envelope, RECEIPT_PAYLOAD_TYPE, expected_key)?;
        let version: VersionOnly = serde_json::from_slice(&payload).map_err(|_| ReceiptError::Malformed)?;
        if version.version != RECEIPT_VERSION {
            return Err(ReceiptError::Version {
                found: version.version,
            });
        }
        let receipt: Self = serde_json::from_slice(&payload).map_err(|_| ReceiptError::Malformed)?;
        receipt.check_consistency(expected_key)?;
        Ok(receipt)
    }

    fn check_consistency(&self, key: &LedgerPublicKey) -> Result<(), ReceiptError> {
        let fault = |what| Err(ReceiptError::Inconsistent { what });
        if self.issuer.ledger_key != *key {
            return fault("it is signed by another key than its issuer's");
        }
        let runner = self.runner.as_ref().unwrap_or(&self.issuer);
        if runner.boot != self.run.boot {
            return fault("its evidence is not of the boot that reserved the run");
        }
        let shown = self.resumers.iter().map(|evidence| evidence.boot);
        if !shown.eq(boots_due(self.run.boot, &self.run.resumed_by, self.issuer.boot)) {
            return fault("its evidence is not of the boots that resumed the run");
        }
        if self.run.weights_digest.is_some() != (self.run.outcome == Outcome::Succeeded) {
            return fault("weights and outcome disagree");
        }
        let order = |kept: &KeptWeights| (kept.step, kept.ema);
        let rising = self
            .run
            .kept
            .windows(2)
            .all(|pair| order(&pair[0]) < order(&pair[1]));
        let last = self.run.kept.last().map_or(0, |kept| kept.step);
        if !rising
            || last > self.run.steps
            || (!self.run.kept.is_empty() && self.run.weights_digest.is_none())
        {
            return fault("kept weights do not belong to its steps");
        }
        if self.run.started_steps.is_some_and(|started| {
            started >= self.run.steps
                || started < self.run.released_step
                || self.run.outcome != Outcome::Cancelled
        }) {
            return fault("steps started and outcome disagree");
        }
        if self.datasets.is_empty() || self.datasets.iter().any(|dataset| !dataset.is_consistent()) {
            return fault("a dataset's charge and budget disagree");
        }
        Ok(())
    }
}

impl RunStatement {
    // Serde passes a reference.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    fn is_training(kind: &RunKind) -> bool {
        *kind == RunKind::Training
    }
}

impl DatasetStatement {
    fn is_consistent(&self) -> bool {
        let Some(budget) = &self.budget else {
            return self.kind != DatasetKind::Private
                && self.epsilon == Epsilon::ZERO
                && self.delta == Delta::ZERO
                && self.renyi.is_none();
        };
        let charged = Amount::new(self.epsilon, self.delta);
        let total = Amount::new(budget.total_epsilon, budget.total_delta);
        let reserved = Amount::new(budget.reserved_epsilon, budget.reserved_delta);
        let lifetime = Amount::new(budget.lifetime_epsilon, budget.lifetime_delta);
        let Some(used) = total.checked_add(reserved) else {
            return false;
        };
        let is_within = match (&self.renyi, &budget.renyi) {
            (None, None) => used.fits_within(lifetime),
            (Some(cost), Some(account)) => account.is_consistent(cost, lifetime),
            (None, Some(_)) | (Some(_), None) => false,
        };
        self.kind == DatasetKind::Private && charged.fits_within(total) && is_within
    }
}

impl RenyiStatement {
    fn of(orders: &RenyiTerms, account: &RenyiAccount) -> Self {
        Self {
            orders: orders.clone(),
            total: RenyiCost::new(account.committed().rho()),
            reserved: RenyiCost::new(account.reserved().rho()),
            epsilon: account.used_epsilon(),
        }
    }

    /// The charge is part of the total, and the filter holds, of whose budgets nobody is believed.
    fn is_consistent(&self, charged: &RenyiCost, lifetime: Amount) -> bool {
        let Ok(filter) = RenyiFilter::new(lifetime, &self.orders) else {
            return false;
        };
        let orders = filter.orders().len();
        if [charged, &self.total, &self.reserved]
            .iter()
            .any(|cost| cost.rho().len() != orders)
        {
            return false;
        }
        let used = RenyiTotal::zero(orders).plus(&self.total).plus(&self.reserved);
        charged.is_within(&self.total) && filter.holds(&used) && filter.epsilon(&used) == self.epsilon
    }
}

/// The boots, beside the one that reserved a run and the one that issues its receipt, whose evidence is due.
pub fn boots_due(
    reserved: BootId,
    resumed_by: &[BootId],
    issuer: BootId,
) -> impl Iterator<Item = BootId> + '_ {
    resumed_by
        .iter()
        .copied()
        .filter(move |boot| *boot != reserved && *boot != issuer)
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

fn check_boots(
    ledger: &Ledger,
    run: &Run,
    issuer: &RuntimeEvidence,
    runner: Option<&RuntimeEvidence>,
    resumers: &[RuntimeEvidence],
) -> Result<(), IssueError> {
    let current = ledger.current_boot().ok_or(IssueError::OtherBoot)?;
    let run_boot = run.reservation().boot;
    let runner_is_due = run_boot != current.boot;
    let known = |evidence: &RuntimeEvidence| {
        ledger.boots().iter().any(|boot| {
            boot.boot == evidence.boot
                && boot.ledger_key == evidence.ledger_key
                && boot.claims_digest == Digest32::of(&evidence.claims)
        })
    };
    let runner_fits = match runner {
        Some(runner) => runner_is_due && runner.boot == run_boot && known(runner),
        None => !runner_is_due,
    };
    let resumed = resumers.iter().map(|evidence| evidence.boot);
    let resumers_fit =
        resumed.eq(boots_due(run_boot, run.resumed_by(), current.boot)) && resumers.iter().all(known);
    if issuer.boot == current.boot && known(issuer) && runner_fits && resumers_fit {
        Ok(())
    } else {
        Err(IssueError::OtherBoot)
    }
}

fn run_statement(run: &Run, outcome: Outcome) -> RunStatement {
    let reserved = run.reservation();
    RunStatement {
        id: run.id(),
        kind: run.kind(),
        run_digest: reserved.run_digest,
        graph_digest: reserved.graph_digest,
        weights_digest: run.weights_digest(),
        kept: match outcome {
            Outcome::Succeeded => run.kept().to_vec(),
            Outcome::Failed | Outcome::Cancelled => Vec::new(),
        },
        scientist: reserved.scientist,
        model_name: reserved.model_name.clone(),
        outcome,
        steps: reserved.steps,
        started_steps: run.started_steps(),
        released_step: run.released_step(),
        noise_mode: reserved.noise_mode,
        boot: reserved.boot,
        resumed_by: run.resumed_by().to_vec(),
        reserved_unix_ms: run.created_unix_ms(),
        committed_unix_ms: run.ended_unix_ms().unwrap_or_default(),
    }
}

fn dataset_statements(ledger: &Ledger, run: &Run) -> Vec<DatasetStatement> {
    let charged = run
        .charges()
        .iter()
        .filter_map(|charge| Some((ledger.dataset(&charge.dataset)?, charge)));
    let (datasets, charges): (Vec<&Dataset>, Vec<&Charge>) = charged.unzip();
    let units = privacy_units(&datasets);
    let all = datasets.into_iter().zip(charges).zip(units);
    all.map(|((dataset, charge), unit)| dataset_statement(run, dataset, charge, unit))
        .collect()
}

fn dataset_statement(run: &Run, dataset: &Dataset, charge: &Charge, unit: String) -> DatasetStatement {
    let renyi = match (&dataset.policy().composition, dataset.renyi_account()) {
        (Composition::Renyi(orders), Some(account)) => Some(RenyiStatement::of(orders, account)),
        _ => None,
    };
    let budget = dataset.budget().map(|budget| BudgetStatement {
        total_epsilon: budget.committed.epsilon,
        total_delta: budget.committed.delta,
        reserved_epsilon: budget.reserved.epsilon,
        reserved_delta: budget.reserved.delta,
        lifetime_epsilon: budget.lifetime.epsilon,
        lifetime_delta: budget.lifetime.delta,
        renyi,
    });
    DatasetStatement {
        id: dataset.id(),
        name: dataset.name().to_owned(),
        kind: dataset.kind(),
        owner: dataset.owner(),
        contract_digest: dataset.contract_digest(),
        policy_digest: dataset.policy_digest(),
        root: dataset.root(),
        declared_size: dataset.declared_size(),
        privacy_unit: (unit != PER_RECORD).then_some(unit),
        event: charge.event.clone(),
        relation: charge.relation,
        epsilon: charge.amount.epsilon,
        delta: charge.amount.delta,
        renyi: run.renyi_charged(charge),
        budget,
    }
}

fn accounting_statement(datasets: &[DatasetStatement], has_renyi: bool) -> AccountingStatement {
    let by_column = datasets.iter().any(|dataset| dataset.privacy_unit.is_some());
    let (unit, neighbours) = if by_column {
        (UNIT_OF_EACH_DATASET, NEIGHBOURS_BY_UNIT)
    } else {
        (PER_RECORD, NEIGHBOURS_BY_RECORD)
    };
    let composition = if has_renyi {
        COMPOSITION_WITH_RENYI
    } else {
        COMPOSITION
    };
    let assumptions = std::iter::once(&neighbours).chain(ASSUMPTIONS);
    AccountingStatement {
        privacy_unit: unit.to_owned(),
        composition: composition.to_owned(),
        assumptions: assumptions.map(|&text| text.to_owned()).collect(),
    }
}

mod base64_bytes {
    use super::{Deserialize, Deserializer, Engine, STANDARD, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

/// Version of receipts.
pub const RECEIPT_VERSION: u32 = 1;

/// Rule D9, where a dataset of the run has units of several records.
const UNIT_OF_EACH_DATASET: &str = "as stated for each dataset";
const NEIGHBOURS_BY_RECORD: &str =
    "neighbouring datasets differ by adding or removing one record of one dataset";
const NEIGHBOURS_BY_UNIT: &str = "neighbouring datasets differ by adding or removing all records of one unit, in every \
     dataset that it is joined over, or one record of a dataset that is protected per record";
/// Rule D6.
const COMPOSITION: &str =
    "basic composition of (epsilon, delta); the full reserve of every started run stays charged";
/// Rules D4 and D5.
const COMPOSITION_WITH_RENYI: &str = "each dataset by the rule of its policy: sums of (epsilon, delta), the full reserve of every \
     started run staying charged; or a filter on sums of Renyi divergences at fixed orders, with delta split over the orders, \
     a cancelled run being charged the steps it had started";
const ASSUMPTIONS: &[&str] = &[
    "the rounded Gaussian is exact up to the approximation of the normal stated in docs/privacy.md",
    "at one physical batch size the loss of a record does not depend on its position or on other records",
    "code execution inside libtorch is outside the guarantee",
    "rollback and forks of the ledger are detectable by clients that remember heads, not prevented, at freshness level none",
    "erasure is best effort at freshness level none",
];
