//! `bastionai keygen`: an Ed25519 identity; its fingerprint is the principal that policies name.

use crate::arguments::KeygenArguments;
use crate::output;
use bastionai_client::Identity;

/// Writes a fresh key and prints its principal.
pub(crate) fn run(arguments: &KeygenArguments, json: bool) -> anyhow::Result<()> {
    let identity = Identity::generate()?;
    identity.save(&arguments.out)?;
    if json {
        return output::json(&serde_json::json!({
            "principal": identity.principal().to_string(),
            "file": arguments.out,
        }));
    }
    eprintln!("wrote {}; your principal, for policies:", arguments.out.display());
    println!("{}", identity.principal());
    Ok(())
}
