//! Ledger and plan types to the wire's, and the wire's policy to the ledger's. No decisions.

use crate::errors::{Failure, Reason};
use crate::spec;
use bastionai_ledger::{
    Amount, Budget, Composition, Dataset, DatasetKind, Freshness, Ledger, MayEvaluate, MayTrain, Outcome,
    Policy, Principal, RefundReason, RenyiAccount, Run, RunKind, RunLimits, RunStatus, SignedHead,
};
use bastionai_privacy::filter::terms::{Order, RenyiTerms, TermsError};
use bastionai_wire::v1;
use std::collections::BTreeSet;

pub(crate) fn kind_from_wire(kind: i32) -> Result<DatasetKind, Failure> {
    match v1::DatasetKind::try_from(kind) {
        Ok(v1::DatasetKind::Private) => Ok(DatasetKind::Private),
        Ok(v1::DatasetKind::Public) => Ok(DatasetKind::Public),
        Ok(v1::DatasetKind::Synthetic) => Ok(DatasetKind::Synthetic),
        _ => Err(Failure::malformed("kind must be private, public or synthetic")),
    }
}

pub(crate) fn policy_from_wire(
    policy: &v1::Policy,
    kind: DatasetKind,
    limits: RunLimits,
) -> Result<Policy, Failure> {
    let may_train = match (policy.anyone_may_train, policy.may_train.is_empty()) {
        (true, true) => MayTrain::Anyone,
        (true, false) => return Err(invalid("set anyone_may_train or list may_train, not both")),
        (false, _) => MayTrain::Only(principals("may_train", &policy.may_train)?),
    };
    let may_train = match may_train {
        MayTrain::Anyone if policy.evaluation_only => MayTrain::Nobody(MayEvaluate::Anyone),
        MayTrain::Only(only) if policy.evaluation_only => MayTrain::Nobody(MayEvaluate::Only(only)),
        may_train => may_train,
    };
    let policy = Policy {
        lifetime: lifetime(policy)?,
        composition: composition(policy)?,
        require_hardened: policy.require_hardened,
        may_train,
        recipients: principals("recipients", &policy.recipients)?,
        scientist_receives: policy.scientist_receives,
        expires_unix_ms: (policy.expires_unix_ms > 0).then_some(policy.expires_unix_ms),
        freshness: Freshness::None,
        limits,
    };
    policy
        .check(kind)
        .map_err(|error| Failure::of(Reason::PolicyInvalid, error))?;
    Ok(policy)
}

pub(crate) fn policy_to_wire(policy: &Policy) -> v1::Policy {
    let list =
        |principals: &BTreeSet<Principal>| principals.iter().map(|one| one.as_bytes().to_vec()).collect();
    let (epsilon, delta) = policy.lifetime.map_or_else(Default::default, decimals);
    v1::Policy {
        lifetime_epsilon: epsilon,
        lifetime_delta: delta,
        may_train: match &policy.may_train {
            MayTrain::Anyone | MayTrain::Nobody(MayEvaluate::Anyone) => Vec::new(),
            MayTrain::Only(principals) | MayTrain::Nobody(MayEvaluate::Only(principals)) => list(principals),
        },
        anyone_may_train: matches!(
            policy.may_train,
            MayTrain::Anyone | MayTrain::Nobody(MayEvaluate::Anyone)
        ),
        recipients: list(&policy.recipients),
        scientist_receives: policy.scientist_receives,
        expires_unix_ms: policy.expires_unix_ms.unwrap_or(0),
        evaluation_only: policy.is_evaluation_only(),
        composition: rule(&policy.composition).into(),
        renyi_orders: match &policy.composition {
            Composition::Basic => Vec::new(),
            Composition::Renyi(terms) => orders(terms),
        },
        require_hardened: policy.require_hardened,
    }
}

pub(crate) fn budget(budget: Budget) -> v1::Budget {
    let (lifetime_epsilon, lifetime_delta) = decimals(budget.lifetime);
    let (committed_epsilon, committed_delta) = decimals(budget.committed);
    let (reserved_epsilon, reserved_delta) = decimals(budget.reserved);
    let (remaining_epsilon, remaining_delta) = decimals(budget.remaining);
    v1::Budget {
        lifetime_epsilon,
        lifetime_delta,
        committed_epsilon,
        committed_delta,
        reserved_epsilon,
        reserved_delta,
        remaining_epsilon,
        remaining_delta,
    }
}

pub(crate) fn dataset(dataset: &Dataset, caller: &Principal, now_unix_ms: u64) -> v1::Dataset {
    v1::Dataset {
        id: dataset.id().as_bytes().to_vec(),
        name: dataset.name().to_owned(),
        kind: match dataset.kind() {
            DatasetKind::Private => v1::DatasetKind::Private,
            DatasetKind::Public => v1::DatasetKind::Public,
            DatasetKind::Synthetic => v1::DatasetKind::Synthetic,
        }
        .into(),
        owner: dataset.owner().as_bytes().to_vec(),
        contract_json: dataset.contract_json().as_bytes().to_vec(),
        policy: Some(policy_to_wire(dataset.policy())),
        budget: dataset.budget().map(budget),
        created_unix_ms: dataset.created_unix_ms(),
        trainable_by_caller: dataset.is_trainable_by(caller, now_unix_ms),
        evaluable_by_caller: dataset.is_evaluable_by(caller, now_unix_ms),
        state: dataset_state(dataset).into(),
        renyi_budget: dataset
            .renyi_account()
            .map(|account| renyi_budget(account, dataset.policy())),
    }
}

fn dataset_state(dataset: &Dataset) -> v1::DatasetState {
    match (dataset.is_withdrawn(), dataset.is_removed()) {
        (_, true) => v1::DatasetState::Removed,
        (true, false) => v1::DatasetState::Withdrawn,
        (false, false) => v1::DatasetState::Offered,
    }
}

/// The rule of a policy.
pub(crate) fn rule(composition: &Composition) -> v1::Composition {
    match composition {
        Composition::Basic => v1::Composition::Basic,
        Composition::Renyi(_) => v1::Composition::Renyi,
    }
}

fn orders(terms: &RenyiTerms) -> Vec<v1::RenyiOrder> {
    let order = |each: &bastionai_privacy::filter::terms::WeightedOrder| v1::RenyiOrder {
        order: each.order.to_string(),
        weight: each.weight,
    };
    terms.weighted().iter().map(order).collect()
}

fn renyi_budget(account: &RenyiAccount, policy: &Policy) -> v1::RenyiBudget {
    let (filter, committed, reserved) = (
        account.filter(),
        account.committed().rho(),
        account.reserved().rho(),
    );
    let lifetime = policy.lifetime.unwrap_or_default().epsilon;
    let used = account.used_epsilon();
    let of_order = |at: usize| v1::RenyiOrderBudget {
        order: filter.orders()[at].to_string(),
        budget: filter.budgets()[at]
            .map(|budget| budget.to_string())
            .unwrap_or_default(),
        committed: committed[at].to_string(),
        reserved: reserved[at].to_string(),
    };
    v1::RenyiBudget {
        orders: (0..filter.orders().len()).map(of_order).collect(),
        used_epsilon: used.to_string(),
        remaining_epsilon: lifetime.checked_sub(used).unwrap_or_default().to_string(),
    }
}

/// The units of a run's charges, in order; nothing where a dataset is not known any more.
fn charged_units(ledger: &Ledger, charges: &[&bastionai_ledger::Charge]) -> Vec<String> {
    let datasets: Option<Vec<&Dataset>> = charges.iter().map(|one| ledger.dataset(&one.dataset)).collect();
    datasets.map_or_else(
        || vec![String::new(); charges.len()],
        |datasets| bastionai_ledger::privacy_units(&datasets),
    )
}

/// Says of each of a run's charges, made by [`charge`], what it protects: that depends on all of them (rule D9).
pub(crate) fn with_units(
    ledger: &Ledger,
    charges: &[&bastionai_ledger::Charge],
    made: impl IntoIterator<Item = v1::Charge>,
) -> Vec<v1::Charge> {
    let units = charged_units(ledger, charges);
    let both = made.into_iter().zip(units);
    both.map(|(one, privacy_unit)| v1::Charge { privacy_unit, ..one })
        .collect()
}

/// A charge by the sums of (ε, δ); [`crate::charges`] adds the other currency, and decides.
pub(crate) fn charge(ledger: &Ledger, charge: &bastionai_ledger::Charge) -> v1::Charge {
    let dataset = ledger.dataset(&charge.dataset);
    let before = dataset.and_then(Dataset::budget);
    let (epsilon, delta) = decimals(charge.amount);
    v1::Charge {
        dataset_id: charge.dataset.as_bytes().to_vec(),
        dataset_name: dataset
            .map(|dataset| dataset.name().to_owned())
            .unwrap_or_default(),
        epsilon,
        delta,
        budget_before: before.map(budget),
        affordable: before.is_none_or(|before| before.admits(charge.amount)),
        composition: dataset
            .map_or(v1::Composition::Basic, |dataset| {
                rule(&dataset.policy().composition)
            })
            .into(),
        renyi: None,
        privacy_unit: String::new(),
    }
}

/// A run as its ledger entries tell it. A refunded run costs nothing, so it shows no charges.
pub(crate) fn run(ledger: &Ledger, run: &Run) -> v1::Run {
    let state = match run.status() {
        RunStatus::Reserved | RunStatus::Started if run.is_suspended() => v1::RunState::Suspended,
        RunStatus::Reserved => v1::RunState::Queued,
        RunStatus::Started => v1::RunState::Running,
        RunStatus::Committed(Outcome::Succeeded) => v1::RunState::Succeeded,
        RunStatus::Committed(Outcome::Cancelled) | RunStatus::Refunded(RefundReason::Cancelled) => {
            v1::RunState::Cancelled
        }
        RunStatus::Committed(Outcome::Failed) | RunStatus::Refunded(_) => v1::RunState::Failed,
    };
    let refunded = matches!(run.status(), RunStatus::Refunded(_));
    let charged: Vec<_> = run.charges().iter().collect();
    let made = charged.iter().map(|one| charge(ledger, one));
    let charges = with_units(ledger, &charged, made)
        .into_iter()
        .map(|one| v1::Charge {
            budget_before: None,
            affordable: true,
            ..one
        });
    v1::Run {
        id: run.id().as_bytes().to_vec(),
        run_digest: run.run_digest().as_bytes().to_vec(),
        state: state.into(),
        model_name: run.model_name().to_owned(),
        scientist: run.scientist().as_bytes().to_vec(),
        dataset_ids: run
            .charges()
            .iter()
            .map(|charge| charge.dataset.as_bytes().to_vec())
            .collect(),
        steps: run.steps(),
        released_step: run.released_step(),
        created_unix_ms: run.created_unix_ms(),
        ended_unix_ms: run.ended_unix_ms().unwrap_or(0),
        charges: if refunded {
            Vec::new()
        } else {
            charges.clone().collect()
        },
        dataset_names: charges.map(|charge| charge.dataset_name).collect(),
        kind: match run.kind() {
            RunKind::Training => v1::RunKind::Training,
            RunKind::Evaluation => v1::RunKind::Evaluation,
        }
        .into(),
        queue_position: 0, // the queue's to say
        suspended_by: run
            .suspended_by()
            .iter()
            .map(|by| by.as_bytes().to_vec())
            .collect(),
    }
}

pub(crate) fn head(signed: &SignedHead) -> v1::LedgerHead {
    v1::LedgerHead {
        ledger_id: signed.head.ledger.as_bytes().to_vec(),
        sequence: signed.head.sequence,
        entry_hash: signed.head.entry_hash.as_bytes().to_vec(),
        signature: signed.signature.to_vec(),
        public_key: signed.public_key.as_bytes().to_vec(),
    }
}

fn lifetime(policy: &v1::Policy) -> Result<Option<Amount>, Failure> {
    if policy.lifetime_epsilon.is_empty() && policy.lifetime_delta.is_empty() {
        return Ok(None);
    }
    let epsilon = policy
        .lifetime_epsilon
        .parse()
        .map_err(|error| invalid(format!("lifetime_epsilon: {error}")))?;
    let delta = policy
        .lifetime_delta
        .parse()
        .map_err(|error| invalid(format!("lifetime_delta: {error}")))?;
    Ok(Some(Amount::new(epsilon, delta)))
}

fn composition(policy: &v1::Policy) -> Result<Composition, Failure> {
    let listed = &policy.renyi_orders;
    match v1::Composition::try_from(policy.composition) {
        Ok(v1::Composition::Unspecified | v1::Composition::Basic) if listed.is_empty() => {
            Ok(Composition::Basic)
        }
        Ok(v1::Composition::Renyi) if listed.is_empty() => Ok(Composition::Renyi(RenyiTerms::default())),
        Ok(v1::Composition::Renyi) => {
            let orders: Result<Vec<Order>, TermsError> =
                listed.iter().map(|each| each.order.parse()).collect();
            let weights: Vec<u32> = listed.iter().map(|each| each.weight.max(1)).collect();
            let terms = orders.and_then(|orders| RenyiTerms::new(&orders, &weights));
            terms
                .map(Composition::Renyi)
                .map_err(|error| invalid(format!("renyi_orders: {error}")))
        }
        Ok(_) => Err(invalid("renyi_orders belong to composition by Rényi divergences")),
        Err(_) => Err(invalid("composition must be basic or Rényi's")),
    }
}

fn principals(field: &str, list: &[Vec<u8>]) -> Result<BTreeSet<Principal>, Failure> {
    let parse = |bytes: &Vec<u8>| {
        Principal::try_from(&bytes[..]).map_err(|_| {
            invalid(format!(
                "{field}: a principal has 32 bytes (`bastionai keygen` prints it)"
            ))
        })
    };
    list.iter().map(parse).collect()
}

fn decimals(amount: Amount) -> (String, String) {
    (amount.epsilon.to_string(), amount.delta.to_string())
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(Reason::PolicyInvalid, message)
}

/// A dataset's name, checked as the ledger will.
pub(crate) fn dataset_name(text: &str) -> Result<String, Failure> {
    spec::name("name", text)
}
