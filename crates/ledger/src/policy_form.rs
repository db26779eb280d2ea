//! The one binary form of a policy, and its JSON: those of version 1, in which a lifetime was an optional amount. How runs
//! add up stands with it, as a third case beside "none" and "some", so that policies of before keep their bytes.

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
}

/// In JSON nothing, an amount, or an amount with its orders.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LifetimeJson {
    epsilon: Epsilon,
    delta: Delta,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    renyi: Option<RenyiTerms>,
}

struct Lifetime(Option<Amount>, Composition);

impl Serialize for Lifetime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(lifetime, composition) = self;
        let terms = match composition {
            Composition::Basic => None,
            Composition::Renyi(terms) => Some(terms.clone()),
        };
        if serializer.is_human_readable() {
            let json = lifetime.map(|Amount { epsilon, delta }| LifetimeJson {
                epsilon,
                delta,
                renyi: terms,
            });
            return json.serialize(serializer);
        }
        match (*lifetime, terms) {
            (None, _) => LifetimeBytes::None,
            (Some(lifetime), None) => LifetimeBytes::Basic(lifetime),
            (Some(lifetime), Some(terms)) => LifetimeBytes::Renyi(lifetime, terms),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Lifetime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let json = Option::<LifetimeJson>::deserialize(deserializer)?;
            return Ok(json.map_or(Self(None, Composition::Basic), |json| {
                let lifetime = Amount::new(json.epsilon, json.delta);
                Self(
                    Some(lifetime),
                    json.renyi.map_or(Composition::Basic, Composition::Renyi),
                )
            }));
        }
        Ok(match LifetimeBytes::deserialize(deserializer)? {
            LifetimeBytes::None => Self(None, Composition::Basic),
            LifetimeBytes::Basic(lifetime) => Self(Some(lifetime), Composition::Basic),
            LifetimeBytes::Renyi(lifetime, terms) => Self(Some(lifetime), Composition::Renyi(terms)),
        })
    }
}

impl From<Policy> for PolicyForm {
    fn from(policy: Policy) -> Self {
        Self {
            lifetime: Lifetime(policy.lifetime, policy.composition),
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
        let Lifetime(lifetime, composition) = form.lifetime;
        Self {
            lifetime,
            composition,
            may_train: form.may_train,
            recipients: form.recipients,
            scientist_receives: form.scientist_receives,
            expires_unix_ms: form.expires_unix_ms,
            freshness: form.freshness,
            limits: form.limits,
        }
    }
}
