//! The one binary form of a policy, and its JSON: those of version 1, in which a lifetime was an optional amount. How runs
//! add up and how their noise is made stands with it, as further cases beside "none" and "some", so that policies of before
//! keep their bytes.

use crate::amount::{Amount, Delta, Epsilon};
use crate::id::Principal;
use crate::policy::{Composition, Freshness, MayTrain, Policy, RunLimits};
use bastionai_privacy::filter::terms::RenyiTerms;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeSet;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PolicyForm {
    lifetime: Lifetime,
    may_train: MayTrain,
    recipients: BTreeSet<Principal>,
    scientist_receives: bool,
    expires_unix_ms: Option<u64>,
    freshness: Freshness,
    limits: RunLimits,
}

/// Postcard writes the first two as it writes an `Option`'s. Append only.
#[derive(Serialize, Deserialize)]
enum LifetimeBytes {
    None,
    Basic(Amount),
    Renyi(Amount, RenyiTerms),
    /// Either of the two above, and noise mode `hardened` required.
    Hardened(Amount, Option<RenyiTerms>),
}

/// In JSON nothing, or an amount, with its orders if there are any, and `require_hardened` where it is so.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LifetimeJson {
    epsilon: Epsilon,
    delta: Delta,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    renyi: Option<RenyiTerms>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    require_hardened: bool,
}

struct Lifetime {
    amount: Option<Amount>,
    composition: Composition,
    require_hardened: bool,
}

impl Lifetime {
    const NONE: Self = Self {
        amount: None,
        composition: Composition::Basic,
        require_hardened: false,
    };

    fn new(amount: Amount, renyi: Option<RenyiTerms>, require_hardened: bool) -> Self {
        Self {
            amount: Some(amount),
            composition: renyi.map_or(Composition::Basic, Composition::Renyi),
            require_hardened,
        }
    }
}

impl Serialize for Lifetime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let terms = match &self.composition {
            Composition::Basic => None,
            Composition::Renyi(terms) => Some(terms.clone()),
        };
        if serializer.is_human_readable() {
            let json = self.amount.map(|Amount { epsilon, delta }| LifetimeJson {
                epsilon,
                delta,
                renyi: terms,
                require_hardened: self.require_hardened,
            });
            return json.serialize(serializer);
        }
        match (self.amount, terms) {
            (None, _) => LifetimeBytes::None,
            (Some(amount), terms) if self.require_hardened => LifetimeBytes::Hardened(amount, terms),
            (Some(amount), None) => LifetimeBytes::Basic(amount),
            (Some(amount), Some(terms)) => LifetimeBytes::Renyi(amount, terms),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Lifetime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let json = Option::<LifetimeJson>::deserialize(deserializer)?;
            return Ok(json.map_or(Self::NONE, |json| {
                Self::new(
                    Amount::new(json.epsilon, json.delta),
                    json.renyi,
                    json.require_hardened,
                )
            }));
        }
        Ok(match LifetimeBytes::deserialize(deserializer)? {
            LifetimeBytes::None => Self::NONE,
            LifetimeBytes::Basic(amount) => Self::new(amount, None, false),
            LifetimeBytes::Renyi(amount, terms) => Self::new(amount, Some(terms), false),
            LifetimeBytes::Hardened(amount, terms) => Self::new(amount, terms, true),
        })
    }
}

impl From<Policy> for PolicyForm {
    fn from(policy: Policy) -> Self {
        Self {
            lifetime: Lifetime {
                amount: policy.lifetime,
                composition: policy.composition,
                require_hardened: policy.require_hardened,
            },
            may_train: policy.may_train,
            recipients: policy.recipients,
            scientist_receives: policy.scientist_receives,
            expires_unix_ms: policy.expires_unix_ms,
            freshness: policy.freshness,
            limits: policy.limits,
        }
    }
}

impl From<PolicyForm> for Policy {
    fn from(form: PolicyForm) -> Self {
        let Lifetime {
            amount: lifetime,
            composition,
            require_hardened,
        } = form.lifetime;
        Self {
            lifetime,
            composition,
            require_hardened,
            may_train: form.may_train,
            recipients: form.recipients,
            scientist_receives: form.scientist_receives,
            expires_unix_ms: form.expires_unix_ms,
            freshness: form.freshness,
            limits: form.limits,
        }
    }
}
