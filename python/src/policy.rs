//! `bastionai.AppraisalPolicy` → the verifier's policy.

use bastionai_client::{AppraisalPolicy, Freshness, ReferenceValues};
use serde::Deserialize;

/// Reads a policy; `None` stands for the development attester, accepted by name.
///
/// # Errors
/// What is wrong with it, in words.
pub(crate) fn appraisal_policy(json: Option<&str>) -> Result<AppraisalPolicy, String> {
    let Some(json) = json else {
        return Ok(AppraisalPolicy::insecure_development());
    };
    let written: Written =
        serde_json::from_str(json).map_err(|error| format!("the appraisal policy: {error}"))?;
    let mut policy = AppraisalPolicy::default();
    policy.measurements = values("measurements", written.measurements, fixed)?;
    policy.configuration_digests = values("configuration_digests", written.configuration_digests, fixed)?;
    policy.trainer_digests = values("trainer_digests", written.trainer_digests, fixed)?;
    policy.libtorch_digests = values("libtorch_digests", written.libtorch_digests, fixed)?;
    policy.root_key_providers = values("root_key_providers", written.root_key_providers, |_, text| {
        Ok(text.to_owned())
    })?;
    policy.allowed_insecure_flags = written.allowed_insecure_flags;
    policy.minimum_freshness = Some(freshness(&written.minimum_freshness)?);
    let chips = written.chip_ids.map(|ids| {
        ids.iter()
            .map(|id| fixed("chip_ids", id))
            .collect::<Result<Vec<_>, _>>()
    });
    policy.chip_ids = chips.transpose()?;
    policy.ledger_id = written.ledger_id.map(|id| fixed("ledger_id", &id)).transpose()?;
    Ok(policy)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    measurements: OneOrMany,
    configuration_digests: OneOrMany,
    trainer_digests: OneOrMany,
    libtorch_digests: OneOrMany,
    root_key_providers: OneOrMany,
    allowed_insecure_flags: Vec<String>,
    minimum_freshness: String,
    chip_ids: Option<Vec<String>>,
    ledger_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

fn values<T>(
    field: &str,
    written: OneOrMany,
    read: impl Fn(&str, &str) -> Result<T, String>,
) -> Result<ReferenceValues<T>, String> {
    let texts = match written {
        OneOrMany::One(text) if text == "any" => return Ok(ReferenceValues::AcceptAny),
        OneOrMany::One(text) => vec![text],
        OneOrMany::Many(texts) if texts.is_empty() => return Ok(ReferenceValues::Missing),
        OneOrMany::Many(texts) => texts,
    };
    let read = texts
        .iter()
        .map(|text| read(field, text))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(ReferenceValues::AnyOf(read))
}

fn fixed<const N: usize>(field: &str, text: &str) -> Result<[u8; N], String> {
    let bytes = hex::decode(text).map_err(|_| format!("{field}: {text:?} is not hexadecimal"))?;
    bytes
        .try_into()
        .map_err(|_| format!("{field}: {text:?} does not have {} hex digits", 2 * N))
}

fn freshness(name: &str) -> Result<Freshness, String> {
    match name {
        "none" => Ok(Freshness::None),
        "unlock" => Ok(Freshness::Unlock),
        "witness" => Ok(Freshness::Witness),
        _ => Err(format!(
            "minimum_freshness: {name:?} is not none, unlock or witness"
        )),
    }
}
