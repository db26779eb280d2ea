//! `bastionai.AppraisalPolicy` → the verifier's policy.

use bastionai_client::{AppraisalPolicy, AppraisalTerms};

/// Reads a policy; `None` stands for the development attester, accepted by name. `also` are insecure flags that are accepted
/// besides.
///
/// # Errors
/// What is wrong with it, in words.
pub(crate) fn appraisal_policy(json: Option<&str>, also: Vec<String>) -> Result<AppraisalPolicy, String> {
    let mut policy = match json {
        None => AppraisalPolicy::insecure_development(),
        Some(json) => {
            let terms = AppraisalTerms::parse_json(json).map_err(|error| error.to_string())?;
            terms.into_policy().map_err(|error| error.to_string())?
        }
    };
    policy.allowed_insecure_flags.extend(also);
    Ok(policy)
}
