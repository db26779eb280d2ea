//! `bastionai.AppraisalPolicy` → the verifier's policy.

use bastionai_client::{AppraisalPolicy, AppraisalTerms};

/// Reads a policy; `None` stands for the development attester, accepted by name.
///
/// # Errors
/// What is wrong with it, in words.
pub(crate) fn appraisal_policy(json: Option<&str>) -> Result<AppraisalPolicy, String> {
    let Some(json) = json else {
        return Ok(AppraisalPolicy::insecure_development());
    };
    let terms = AppraisalTerms::parse_json(json).map_err(|error| error.to_string())?;
    terms.into_policy().map_err(|error| error.to_string())
}
