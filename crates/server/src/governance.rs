//! Who may do what: pure decisions over the ledger's views, time passed in. The ledger refuses again what is
//! refused here; asking first gives a better answer before anything expensive or durable happens.

use crate::errors::{Failure, Reason};
use bastionai_ledger::{Dataset, DatasetId, Ledger, Outcome, Principal, Run, RunId, RunKind, RunStatus};
use bastionai_vault::WeightsAt;

/// The datasets of a run, if this scientist may use every one of them so now.
pub(crate) fn usable<'a>(
    ledger: &'a Ledger,
    ids: &[DatasetId],
    scientist: &Principal,
    kind: RunKind,
    now_unix_ms: u64,
) -> Result<Vec<&'a Dataset>, Failure> {
    ids.iter()
        .map(|id| usable_dataset(ledger, id, scientist, kind, now_unix_ms))
        .collect()
}

fn usable_dataset<'a>(
    ledger: &'a Ledger,
    id: &DatasetId,
    scientist: &Principal,
    kind: RunKind,
    now_unix_ms: u64,
) -> Result<&'a Dataset, Failure> {
    let unknown = || {
        Failure::new(
            Reason::UnknownDataset,
            format!("there is no dataset {id}; list datasets to see which there are"),
        )
    };
    let dataset = ledger.dataset(id).ok_or_else(unknown)?;
    let name = dataset.name();
    let policy = dataset.policy();
    let (allowed, verb) = match kind {
        RunKind::Training if policy.is_evaluation_only() => {
            let message =
                format!("`{name}` is held out for evaluation: nobody trains on it; choose another dataset");
            return Err(Failure::new(Reason::NotPermitted, message));
        }
        RunKind::Training => (policy.allows_training_by(scientist), "train"),
        RunKind::Evaluation => (policy.allows_evaluation_by(scientist), "evaluate"),
    };
    if !allowed {
        let message = format!("the policy of `{name}` does not allow {scientist} to {verb}; ask its owner");
        return Err(Failure::new(Reason::NotPermitted, message));
    }
    if dataset.is_withdrawn() {
        return Err(Failure::new(
            Reason::NotPermitted,
            format!("`{name}` was withdrawn by its owner"),
        ));
    }
    if dataset.policy().is_expired(now_unix_ms) {
        return Err(Failure::new(
            Reason::PolicyExpired,
            format!("the policy of `{name}` has expired"),
        ));
    }
    Ok(dataset)
}

/// A dataset of this principal's own. One that is somebody else's and one that does not exist are refused alike.
pub(crate) fn owned_dataset<'a>(
    ledger: &'a Ledger,
    id: &[u8],
    owner: &Principal,
) -> Result<&'a Dataset, Failure> {
    let id = DatasetId::try_from(id).map_err(|_| Failure::malformed("a dataset id has 16 bytes"))?;
    let own = ledger.dataset(&id).filter(|dataset| dataset.owner() == *owner);
    own.ok_or_else(|| {
        let message = "you have lent no such dataset; list datasets to see yours";
        Failure::new(Reason::UnknownDataset, message)
    })
}

/// A run this principal may know about: its scientist, the owners of its datasets, its recipients. To anyone
/// else there is no such run.
pub(crate) fn visible_run<'a>(ledger: &'a Ledger, id: &[u8], caller: &Principal) -> Result<&'a Run, Failure> {
    let unknown = || {
        Failure::new(
            Reason::UnknownRun,
            "there is no such run, or it does not concern you",
        )
    };
    let id = RunId::try_from(id).map_err(|_| Failure::malformed("a run id has 16 bytes"))?;
    let run = ledger.run(&id).ok_or_else(unknown)?;
    if ledger.concerns(&id, caller) || ledger.may_receive(&id, caller) {
        Ok(run)
    } else {
        Err(unknown())
    }
}

/// Whether this principal may stop the run: its scientist and the owners of its datasets.
pub(crate) fn may_cancel(ledger: &Ledger, run: &Run, caller: &Principal) -> Result<(), Failure> {
    if ledger.concerns(&run.id(), caller) {
        return Ok(());
    }
    Err(Failure::new(
        Reason::NotPermitted,
        "only the run's scientist and its datasets' owners may cancel it",
    ))
}

/// Whether this principal may suspend the run: the owners of its datasets, not its scientist.
pub(crate) fn may_suspend(ledger: &Ledger, run: &Run, caller: &Principal) -> Result<(), Failure> {
    if ledger.lends(run, caller) {
        return Ok(());
    }
    Err(Failure::new(
        Reason::NotPermitted,
        "only the owners of the run's datasets may suspend it",
    ))
}

/// Whether this principal may have the run's weights now: succeeded, and allowed by every owner.
pub(crate) fn may_fetch(ledger: &Ledger, run: &Run, caller: &Principal) -> Result<(), Failure> {
    if !ledger.may_receive(&run.id(), caller) {
        let message = "the policies of the run's datasets do not all allow you to receive its weights";
        return Err(Failure::new(Reason::NotPermitted, message));
    }
    let state = match run.status() {
        RunStatus::Committed(Outcome::Succeeded) => return Ok(()),
        RunStatus::Reserved => "is queued",
        RunStatus::Started => "is running",
        RunStatus::Committed(Outcome::Cancelled) | RunStatus::Refunded(_) => {
            "was cancelled or never started: it has no weights"
        }
        RunStatus::Committed(Outcome::Failed) => "failed: it has no weights",
    };
    Err(Failure::new(
        Reason::NotReleasable,
        format!("run {} {state}", run.id()),
    ))
}

/// Whether the run was charged, so that there is something to state.
pub(crate) fn has_receipt(run: &Run) -> Result<(), Failure> {
    let state = match run.status() {
        RunStatus::Committed(_) => return Ok(()),
        RunStatus::Refunded(_) => "never started and cost nothing: there is nothing to state",
        RunStatus::Reserved | RunStatus::Started => "is not over; its receipt is made when it is",
    };
    Err(Failure::new(
        Reason::NotReleasable,
        format!("run {} {state}", run.id()),
    ))
}

/// Whether a run has these weights: its last ones, or a set that it kept; says which there are.
pub(crate) fn has_weights(run: &Run, at: WeightsAt) -> Result<(), Failure> {
    let step = if at.step == 0 { run.steps() } else { at.step };
    let is_last = step == run.steps() && !at.ema;
    if is_last || run.kept_digest(step, at.ema).is_some() {
        return Ok(());
    }
    let kept = run
        .kept()
        .iter()
        .map(|kept| match (kept.step == run.steps(), kept.ema) {
            (true, true) => "the last average".to_owned(),
            (_, true) => format!("the average of step {}", kept.step),
            (_, false) => format!("step {}", kept.step),
        });
    let kept: Vec<String> = kept.collect();
    let there = if kept.is_empty() {
        String::new()
    } else {
        format!(" and {}", kept.join(", "))
    };
    let what = if at.ema { "average" } else { "weights" };
    let message = format!(
        "run {} has no {what} of step {step}: it has its last weights{there}; what else a run keeps is agreed before it \
         starts (keep_steps, ema_decay, tail_average)",
        run.id()
    );
    Err(Failure::new(Reason::NotReleasable, message))
}
