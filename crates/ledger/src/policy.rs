//! What an owner allows: the terms under which a dataset entered the ledger. They never change;
//! their hash is bound into every stored block (rule A10).

use crate::amount::{Amount, Delta};
use crate::id::{Digest32, Principal};
use crate::policy_form::PolicyForm;
use bastionai_privacy::filter::renyi::RenyiFilter;
use bastionai_privacy::filter::terms::{RenyiTerms, TermsError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Whether a dataset's rows are anybody's secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatasetKind {
    /// People's data: has a budget.
    Private,
    /// The owner states that anyone may know the rows: no budget.
    Public,
    /// Nobody's data: no budget.
    Synthetic,
}

/// How rollback and forks of the ledger are dealt with (rule A1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freshness {
    /// Development: detectable by clients that remember heads, not prevented.
    None,
}

/// How noise is made; the mode is in the run digest and the receipt (rule D2).
///
/// The order of variants is the format (reservations are ledger entries): append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseMode {
    /// Rounded Gaussian on an integer grid from ChaCha20, float slack in the charged sensitivity.
    Standard,
    /// The same noise on sums of integers: each record's clipped gradient is rounded and checked by itself, no slack.
    Hardened,
}

/// Principals that may train. Who may train may also evaluate: both are releases under the same account.
///
/// The order of variants is the format (policies are part of ledger entries): append only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MayTrain {
    /// Every client.
    Anyone,
    /// These.
    Only(BTreeSet<Principal>),
    /// Nobody: the dataset is held out, for evaluation only.
    Nobody(MayEvaluate),
}

/// Principals that may evaluate on a held-out dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MayEvaluate {
    /// Every client.
    Anyone,
    /// These.
    Only(BTreeSet<Principal>),
}

/// How the runs of a private dataset add up (rules D4, D6). One rule for the whole life of a dataset: two, whichever
/// admits, would cost δ twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Composition {
    /// ε and δ are summed.
    #[default]
    Basic,
    /// Rényi divergences at these orders are summed.
    Renyi(RenyiTerms),
}

/// What a run does with a dataset. The order of variants is the format (ledger entries): append only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunKind {
    /// Steps of DP-SGD; its result is weights.
    #[default]
    Training,
    /// One forward pass; its result is one noisy histogram release.
    Evaluation,
}

/// Limits beside the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunLimits {
    /// Runs reserved and not refunded in any 24 hours (rule A13).
    pub max_starts_per_day: u32,
    /// Failed runs in the dataset's life: each failure may tell one bit outside the noise (rule G4).
    pub max_failed_runs: u32,
}

/// The terms of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "PolicyForm", into = "PolicyForm")]
pub struct Policy {
    /// Lifetime budget: present exactly for private datasets.
    pub lifetime: Option<Amount>,
    /// How runs add up to it; basic unless private.
    pub composition: Composition,
    /// Training runs sum in integers, [`NoiseMode::Hardened`] (rule D2); never unless private. Evaluations count in integers
    /// in any case.
    pub require_hardened: bool,
    /// Who may train.
    pub may_train: MayTrain,
    /// Who receives weights, beside the scientist.
    pub recipients: BTreeSet<Principal>,
    /// Whether the scientist of a run receives its weights.
    pub scientist_receives: bool,
    /// No run may be reserved from this time on.
    pub expires_unix_ms: Option<u64>,
    /// Freshness level the owner accepts.
    pub freshness: Freshness,
    /// Further limits; they bind private datasets only.
    pub limits: RunLimits,
}

/// Why a policy is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Private without a lifetime.
    #[error("a private dataset needs a lifetime budget: set lifetime ε and δ")]
    NoLifetime,
    /// A lifetime where none can be spent.
    #[error("a public or synthetic dataset has no budget: leave lifetime ε and δ out")]
    UnneededLifetime,
    /// A lifetime that allows no run, or promises nothing.
    #[error("lifetime {lifetime} is no guarantee: ε must be above 0, δ above 0 and below 1")]
    Lifetime {
        /// What was asked for.
        lifetime: Amount,
    },
    /// Orders where nothing is added up.
    #[error("a public or synthetic dataset has no budget: leave the orders of its composition out")]
    UnneededComposition,
    /// A noise mode where there is no noise to speak of.
    #[error("a public or synthetic dataset has no budget: leave require_hardened out")]
    UnneededNoiseMode,
    /// Orders that make no account.
    #[error("composition by Rényi divergences: {0}")]
    Composition(#[from] TermsError),
    /// Too many principals.
    #[error("a policy names at most {MAX_PRINCIPALS} principals in each list")]
    TooManyPrincipals,
    /// Limits of zero allow no run at all.
    #[error("run limits must be at least 1")]
    ZeroLimits,
}

impl Default for RunLimits {
    fn default() -> Self {
        Self {
            max_starts_per_day: 1000,
            max_failed_runs: 100,
        }
    }
}

impl Policy {
    /// Checks the policy for a dataset of this kind.
    ///
    /// # Errors
    /// [`PolicyError`] says which rule is broken.
    pub fn check(&self, kind: DatasetKind) -> Result<(), PolicyError> {
        match (kind, self.lifetime) {
            (DatasetKind::Private, None) => return Err(PolicyError::NoLifetime),
            (DatasetKind::Private, Some(lifetime)) => {
                check_lifetime(lifetime)?;
                if let Composition::Renyi(terms) = &self.composition {
                    RenyiFilter::new(lifetime, terms)?;
                }
            }
            (_, Some(_)) => return Err(PolicyError::UnneededLifetime),
            (_, None) if self.composition != Composition::Basic => {
                return Err(PolicyError::UnneededComposition);
            }
            (_, None) if self.require_hardened => return Err(PolicyError::UnneededNoiseMode),
            (_, None) => {}
        }
        let trainers = match &self.may_train {
            MayTrain::Anyone | MayTrain::Nobody(MayEvaluate::Anyone) => 0,
            MayTrain::Only(principals) | MayTrain::Nobody(MayEvaluate::Only(principals)) => principals.len(),
        };
        if trainers.max(self.recipients.len()) > MAX_PRINCIPALS {
            return Err(PolicyError::TooManyPrincipals);
        }
        if self.limits.max_starts_per_day == 0 || self.limits.max_failed_runs == 0 {
            return Err(PolicyError::ZeroLimits);
        }
        Ok(())
    }

    /// Whether `principal` may train.
    pub fn allows_training_by(&self, principal: &Principal) -> bool {
        match &self.may_train {
            MayTrain::Anyone => true,
            MayTrain::Only(principals) => principals.contains(principal),
            MayTrain::Nobody(_) => false,
        }
    }

    /// Whether `principal` may evaluate a model: on a held-out dataset those named, elsewhere those that may train.
    ///
    /// A policy cannot allow training and forbid evaluation: a training run releases more about the same records
    /// under the same account, so the refusal would protect nobody.
    pub fn allows_evaluation_by(&self, principal: &Principal) -> bool {
        match &self.may_train {
            MayTrain::Nobody(MayEvaluate::Anyone) => true,
            MayTrain::Nobody(MayEvaluate::Only(principals)) => principals.contains(principal),
            MayTrain::Anyone | MayTrain::Only(_) => self.allows_training_by(principal),
        }
    }

    /// Whether the dataset is held out: evaluation only, no training.
    pub fn is_evaluation_only(&self) -> bool {
        matches!(self.may_train, MayTrain::Nobody(_))
    }

    /// Whether `principal` may receive the weights of a run started by `scientist`.
    pub fn allows_release_to(&self, principal: &Principal, scientist: &Principal) -> bool {
        self.recipients.contains(principal) || (self.scientist_receives && principal == scientist)
    }

    /// Whether a training run may make its noise like this.
    pub fn allows_noise_mode(&self, mode: NoiseMode) -> bool {
        !self.require_hardened || mode == NoiseMode::Hardened
    }

    /// Whether the policy has expired at this time.
    pub fn is_expired(&self, now_unix_ms: u64) -> bool {
        self.expires_unix_ms.is_some_and(|expiry| now_unix_ms >= expiry)
    }

    /// SHA-256 over a label and the canonical encoding.
    pub fn digest(&self) -> Digest32 {
        let mut bytes = POLICY_LABEL.to_vec();
        bytes.extend(postcard::to_stdvec(self).expect("postcard encodes every field type of Policy"));
        Digest32::of(&bytes)
    }
}

fn check_lifetime(lifetime: Amount) -> Result<(), PolicyError> {
    let below_one = lifetime.delta < Delta::from_units(10u64.pow(Delta::DECIMALS));
    if lifetime.epsilon.units() == 0 || lifetime.delta.units() == 0 || !below_one {
        return Err(PolicyError::Lifetime { lifetime });
    }
    Ok(())
}

/// Longest list of principals.
pub const MAX_PRINCIPALS: usize = 1024;

const POLICY_LABEL: &[u8] = b"bastionai/v1/policy\0";
