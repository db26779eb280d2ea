//! Why an event may not enter the ledger, and what its owner or scientist can do about it.

use crate::amount::{Amount, Epsilon};
use crate::event::EventError;
use crate::id::{DatasetId, Principal, RunId};
use crate::name::MAX_NAME_CHARACTERS;
use crate::policy::PolicyError;
use crate::state::RunStatus;

/// Why an event may not enter the ledger. Nothing has changed when this is returned.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The name is taken, for ever: also by withdrawn datasets.
    #[error("a dataset named `{name}` exists already; choose another name")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The name cannot be shown.
    #[error(
        "a name has 1 to {MAX_NAME_CHARACTERS} characters, no control or invisible format characters, and no space at its ends"
    )]
    BadName,
    /// The contract is empty or too long.
    #[error("a data contract has 1 to {MAX_CONTRACT_BYTES} bytes")]
    ContractLength,
    /// No records declared.
    #[error("declared size must be at least 1")]
    ZeroSize,
    /// The policy makes no sense.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// An id is used already.
    #[error("the id is used already")]
    IdTaken,
    /// No such dataset.
    #[error("there is no dataset {dataset}")]
    NoDataset {
        /// The id.
        dataset: DatasetId,
    },
    /// Only the owner may do this.
    #[error("only the owner of `{name}` may do this")]
    NotOwner {
        /// The dataset.
        name: String,
    },
    /// The owner withdrew the dataset.
    #[error("`{name}` was withdrawn by its owner")]
    Withdrawn {
        /// The dataset.
        name: String,
    },
    /// The owner had the dataset erased.
    #[error("`{name}` was removed by its owner")]
    Removed {
        /// The dataset.
        name: String,
    },
    /// A run that is not over needs the dataset's records.
    #[error(
        "run {run} still uses `{name}`: withdraw the dataset so that no other run starts, and remove it when this \
         run is over, or cancel the run first"
    )]
    InUse {
        /// The dataset.
        name: String,
        /// The oldest such run.
        run: RunId,
    },
    /// The policy has expired.
    #[error("the policy of `{name}` has expired")]
    Expired {
        /// The dataset.
        name: String,
    },
    /// The policy does not name this principal.
    #[error("the policy of `{name}` does not allow {principal} to train on it")]
    MayNotTrain {
        /// The dataset.
        name: String,
        /// Who asked.
        principal: Principal,
    },
    /// A held-out dataset is never trained on.
    #[error("`{name}` is held out for evaluation: its policy lets nobody train on it")]
    EvaluationOnly {
        /// The dataset.
        name: String,
    },
    /// The owner lends to runs whose sums are made in integers alone (rule D2).
    #[error(
        "the policy of `{name}` requires noise_mode hardened: each record's gradient rounded and summed in integers"
    )]
    NoiseMode {
        /// The dataset.
        name: String,
    },
    /// The policy does not name this principal for evaluations.
    #[error("the policy of `{name}` does not allow {principal} to evaluate on it")]
    MayNotEvaluate {
        /// The dataset.
        name: String,
        /// Who asked.
        principal: Principal,
    },
    /// An evaluation releases once.
    #[error("an evaluation has one step, its one release, not {steps}")]
    EvaluationSteps {
        /// Steps asked for.
        steps: u64,
    },
    /// The dataset started as many runs today as its policy allows.
    #[error("`{name}` allows {limit} runs in 24 hours and has had them; try again later")]
    TooManyStarts {
        /// The dataset.
        name: String,
        /// Its limit.
        limit: u32,
    },
    /// Too many runs failed (rule G4).
    #[error("{limit} runs on `{name}` have failed, as many as its policy allows")]
    TooManyFailures {
        /// The dataset.
        name: String,
        /// Its limit.
        limit: u32,
    },
    /// No datasets, or more than a run may have.
    #[error("a run uses 1 to {MAX_DATASETS_PER_RUN} datasets, not {found}")]
    DatasetCount {
        /// Datasets named.
        found: usize,
    },
    /// The same dataset twice (rule D3).
    #[error("dataset {dataset} is named twice; the datasets of a run are distinct")]
    DatasetTwice {
        /// The id.
        dataset: DatasetId,
    },
    /// No steps.
    #[error("a run has at least one step")]
    ZeroSteps,
    /// The mechanism cannot be priced.
    #[error("the mechanism charged to `{name}` is refused: {source}")]
    Event {
        /// The dataset.
        name: String,
        /// What is wrong with it.
        source: EventError,
    },
    /// A private dataset must be charged, a public one must not.
    #[error(
        "the charge {amount} to `{name}` is impossible: private datasets are charged ε above 0 and δ below 1, others nothing"
    )]
    Charge {
        /// The dataset.
        name: String,
        /// What was asked for.
        amount: Amount,
    },
    /// The budget does not suffice. Nothing was reserved on any dataset of the run.
    #[error("the budget of `{name}` does not suffice: the run needs {requested}, {remaining} is left")]
    BudgetExceeded {
        /// The dataset.
        name: String,
        /// Its id.
        dataset: DatasetId,
        /// What the run needs.
        requested: Amount,
        /// What is left.
        remaining: Amount,
    },
    /// No order's budget suffices. Nothing was reserved on any dataset of the run.
    #[error(
        "the budget of `{name}` does not suffice: with this run its Rényi divergences would mean ε = {with} at the lifetime's δ, {lifetime} is allowed"
    )]
    RenyiExceeded {
        /// The dataset.
        name: String,
        /// Its id.
        dataset: DatasetId,
        /// ε of what would be used.
        with: Epsilon,
        /// The lifetime's ε.
        lifetime: Epsilon,
    },
    /// Rényi charges belong to exactly the datasets that compose by them, at their orders, and are never zero.
    #[error(
        "the Rényi charges of the run are not one for each dataset that composes by Rényi divergences, in order"
    )]
    RenyiCharges,
    /// No such run.
    #[error("there is no run {run}")]
    NoRun {
        /// The id.
        run: RunId,
    },
    /// The run is not in a state where this can happen.
    #[error("run {run} is {status:?}: it cannot be {action}")]
    RunStatus {
        /// The run.
        run: RunId,
        /// Where it is.
        status: RunStatus,
        /// What was asked.
        action: &'static str,
    },
    /// The run belongs to another boot.
    #[error("the run belongs to another boot of the server")]
    OtherBoot,
    /// Only those who lend data to a run may suspend it.
    #[error("only an owner of one of its datasets may suspend run {run}")]
    NotLender {
        /// The run.
        run: RunId,
    },
    /// This owner's suspension is not there to be lifted, or there already.
    #[error("run {run} {}", if *suspended { "is suspended by you already" } else { "is not suspended by you: whoever suspended it lifts that" })]
    Suspension {
        /// The run.
        run: RunId,
        /// Whether it is there already.
        suspended: bool,
    },
    /// An owner suspended it: it neither starts nor advances nor succeeds until they lift that.
    #[error("run {run} is suspended by an owner")]
    Suspended {
        /// The run.
        run: RunId,
    },
    /// Its trainer started again and again, and nothing came of it.
    #[error(
        "run {run} went on {times} times without advancing: it goes on no more, and ends as cancelled and charged in full"
    )]
    GetsNowhere {
        /// The run.
        run: RunId,
        /// Times.
        times: u32,
    },
    /// Steps are released once, in order, and no further than planned.
    #[error("run {run} cannot advance to step {to}: it has released {released} of {steps}")]
    ReleasedStep {
        /// The run.
        run: RunId,
        /// Asked for.
        to: u64,
        /// Released so far.
        released: u64,
        /// Planned.
        steps: u64,
    },
    /// Kept weights belong to the steps they are kept at.
    #[error(
        "the weights that run {run} keeps must rise by step within the steps it advances by, up to a limit"
    )]
    Kept {
        /// The run.
        run: RunId,
    },
    /// Weights go with success, and success with all steps.
    #[error(
        "run {run} cannot be committed like this: success needs all steps released and weights, anything else has none"
    )]
    Outcome {
        /// The run.
        run: RunId,
    },
    /// The owners' policies do not allow it.
    #[error("the policies of run {run}'s datasets do not allow its weights to be released to {principal}")]
    MayNotReceive {
        /// The run.
        run: RunId,
        /// Who asked.
        principal: Principal,
    },
    /// Other weights than were committed.
    #[error("the weights of run {run} are not those committed in the ledger")]
    OtherWeights {
        /// The run.
        run: RunId,
    },
    /// A second genesis.
    #[error("the genesis is the first entry and the only one of its kind")]
    Genesis,
    /// Amounts overflow.
    #[error("amounts overflow the ledger's range")]
    Overflow,
}

/// Longest data contract: it stays in memory, and every client that lists datasets gets it.
pub const MAX_CONTRACT_BYTES: usize = 1 << 16;
/// Most datasets in one run.
pub const MAX_DATASETS_PER_RUN: usize = 1024;
