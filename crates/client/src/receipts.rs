//! Checking a receipt offline, as an auditor does who never met the server (rule A6).

use crate::errors::ClientError;
use bastionai_attestation::{
    AppraisalPolicy, AttestationResult, BootBinding, Evidence, Freshness, RuntimeClaims, TrustAnchors, verify,
};
use bastionai_ledger::chain::{Head, genesis_digest};
use bastionai_ledger::id::{LedgerId, LedgerPublicKey};
use bastionai_ledger::policy::Freshness as StatedFreshness;
use bastionai_ledger::receipt::{Receipt, RuntimeEvidence};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// A receipt whose signature, evidence, claims and prices were checked. Only [`audit_receipt`] makes one.
#[derive(Clone, Debug, Serialize)]
pub struct AuditedReceipt {
    receipt: Receipt,
    issuer: AttestationResult,
    runner: Option<AttestationResult>,
    resumers: Vec<AttestationResult>,
}

impl AuditedReceipt {
    /// The signed statement.
    pub fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// What was attested of the boot that signed it.
    pub fn issuer(&self) -> &AttestationResult {
        &self.issuer
    }

    /// What was attested of the boot that ran the run, if it was another.
    pub fn runner(&self) -> Option<&AttestationResult> {
        self.runner.as_ref()
    }

    /// The boots that went on with the run after a restart, beside the two above, in order.
    pub fn resumers(&self) -> &[AttestationResult] {
        &self.resumers
    }
}

/// Checks a receipt (a DSSE envelope) with nothing but a policy.
///
/// `at_unix_ms` is the time at which certificates, lists of revoked ones and collateral in the evidence must be valid.
/// A receipt carries what was stapled when its boots began and outlives it: Intel's collateral is good for a month, a
/// VLEK for a year. The safe choice is the auditor's own clock. A time in the past, say [`Receipt::issued_unix_ms`], is
/// the auditor's decision to take what was valid then: of the time of issue a receipt is no proof, since the operator
/// sets the server's clock, so whatever was withdrawn in between (a leaked key, a revoked certificate) passes.
///
/// # Guarantee
/// A server that meets `policy` made the signing key in its TEE and signed exactly this statement; so
/// did the server that reserved the run, if it was an earlier boot, and every one that went on with it; all are of
/// one ledger, which the receipt's head continues. Every private dataset's charge covers its mechanism over all steps, recomputed here.
/// # Errors
/// [`ClientError::ReceiptRefused`] if it was changed, contradicts itself or its evidence, or charges too little,
/// [`ClientError::EvidenceRefused`] or [`ClientError::AppraisalRefused`] if the server is not good enough.
pub fn audit_receipt(
    envelope: &[u8],
    policy: &AppraisalPolicy,
    at_unix_ms: u64,
) -> Result<AuditedReceipt, ClientError> {
    audit_receipt_under(envelope, policy, &TrustAnchors::bundled(), at_unix_ms)
}

/// The same by other roots than the vendors' own.
///
/// # Errors
/// As [`audit_receipt`].
pub fn audit_receipt_under(
    envelope: &[u8],
    policy: &AppraisalPolicy,
    anchors: &TrustAnchors,
    at_unix_ms: u64,
) -> Result<AuditedReceipt, ClientError> {
    let terms = Terms {
        policy,
        anchors,
        at_unix_ms,
    };
    let key = claimed_key(envelope)?;
    let receipt = Receipt::verify_offline(envelope, &key).map_err(|error| refused("?", error.to_string()))?;
    let ledger = receipt.ledger_head.ledger;
    let issuer = appraise(&receipt, &receipt.issuer, ledger, &terms)?;
    let runner = match &receipt.runner {
        Some(runner) => Some(appraise(&receipt, runner, ledger, &terms)?),
        None => None,
    };
    let resumers = receipt.resumers.iter();
    let resumers = resumers.map(|resumer| appraise(&receipt, resumer, ledger, &terms));
    let resumers = resumers.collect::<Result<_, _>>()?;
    let freshness = match receipt.freshness {
        StatedFreshness::None => Freshness::None,
    };
    let attested = issuer.runtime_claims().freshness;
    if freshness != attested {
        let what = format!("it states freshness {freshness}, its evidence {attested}");
        return Err(refused(&receipt.run.id.to_string(), what));
    }
    receipt.check_prices().map_err(|(dataset, error)| {
        let what = format!("the charge to `{dataset}` does not cover its mechanism: {error}");
        refused(&receipt.run.id.to_string(), what)
    })?;
    Ok(AuditedReceipt {
        receipt,
        issuer,
        runner,
        resumers,
    })
}

/// The key the receipt says it is signed with: believed only once the evidence binds it.
fn claimed_key(envelope: &[u8]) -> Result<LedgerPublicKey, ClientError> {
    let unreadable = || refused("?", "not a DSSE envelope with a receipt".into());
    let envelope: serde_json::Value = serde_json::from_slice(envelope).map_err(|_| unreadable())?;
    let payload = envelope["payload"]
        .as_str()
        .and_then(decode_base64)
        .ok_or_else(unreadable)?;
    let payload: serde_json::Value = serde_json::from_slice(&payload).map_err(|_| unreadable())?;
    serde_json::from_value(payload["issuer"]["ledger_key"].clone()).map_err(|_| unreadable())
}

/// What the boots of a receipt must meet.
struct Terms<'a> {
    policy: &'a AppraisalPolicy,
    anchors: &'a TrustAnchors,
    at_unix_ms: u64,
}

fn appraise(
    receipt: &Receipt,
    boot: &RuntimeEvidence,
    ledger: LedgerId,
    terms: &Terms<'_>,
) -> Result<AttestationResult, ClientError> {
    let evidence = Evidence {
        media_type: boot.evidence_media_type.clone(),
        bytes: boot.evidence.clone(),
    };
    let verified = verify(&evidence, terms.anchors, terms.at_unix_ms)?;
    let claims = RuntimeClaims::from_bytes(&boot.claims)?;
    if claims.ledger_id != *ledger.as_bytes() {
        let found = LedgerId::from_bytes(claims.ledger_id);
        let what = format!("its evidence is of ledger {found}, its head of {ledger}");
        return Err(refused(&receipt.run.id.to_string(), what));
    }
    let binding = BootBinding {
        ledger_public_key: *boot.ledger_key.as_bytes(),
        boot_id: *boot.boot.as_bytes(),
        genesis_digest: *genesis_digest(ledger).as_bytes(),
        claims_sha256: Sha256::digest(&boot.claims).into(),
    };
    let result = verified.appraise_boot(terms.policy, &binding, &claims)?;
    check_head(&receipt.ledger_head, &claims).map_err(|what| refused(&receipt.run.id.to_string(), what))?;
    Ok(result)
}

/// A boot signs for nothing that came before it.
fn check_head(head: &Head, claims: &RuntimeClaims) -> Result<(), String> {
    let (found, attested) = (head.sequence, claims.ledger_sequence);
    if found < attested {
        return Err(format!(
            "its ledger has {found} entries, fewer than the {attested} bound in its evidence"
        ));
    }
    if found == attested && head.entry_hash.as_bytes() != &claims.ledger_head {
        return Err("its ledger head is not the one bound in its evidence".to_owned());
    }
    Ok(())
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).ok()
}

fn refused(run: &str, what: String) -> ClientError {
    ClientError::ReceiptRefused {
        run: run.to_owned(),
        what,
    }
}
