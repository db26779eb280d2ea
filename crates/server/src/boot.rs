//! What a start makes inside the TEE: boot id, ledger key, runtime claims, and the evidence that ties them
//! together for offline receipts (rules A4, A6). Runs that an earlier boot left open are resumed or settled here.

use crate::attester::{self, AttesterError};
use crate::config::{Config, DeviceKind, RootKeyKind};
use crate::log::Event;
use crate::program::{TrainerError, TrainerProgram};
use crate::root_key::INSECURE_FILE_ROOT_KEY;
use crate::runs::resume;
use crate::terms;
use bastionai_attestation::claims::{self, RuntimeClaims};
use bastionai_attestation::{AttestError, Attester, BootBinding, Freshness};
use bastionai_ledger::{BootId, Digest32, LedgerKey, Orphan, RuntimeEvidence, SignatureError};
use bastionai_vault::{StorageError, TransactError, Vault};
use ring::rand::SystemRandom;
use std::sync::Arc;

/// This start of the server.
pub(crate) struct Boot {
    pub(crate) id: BootId,
    /// Signs heads and receipts; never leaves memory.
    pub(crate) key: LedgerKey,
    /// Canonical runtime claims.
    pub(crate) claims: Vec<u8>,
    pub(crate) claims_digest: Digest32,
    /// What must be the same in a later boot that goes on with a run of this one.
    pub(crate) conditions: Digest32,
    pub(crate) attester: Arc<dyn Attester>,
    /// For receipts.
    pub(crate) evidence: RuntimeEvidence,
    pub(crate) trainer: TrainerProgram,
}

/// Why the server did not boot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// No ledger key.
    #[error("cannot make the ledger key: {0}")]
    Key(#[from] SignatureError),
    /// The trainer cannot be used.
    #[error(transparent)]
    Trainer(#[from] TrainerError),
    /// No path to the trainer.
    #[error("trainer.path is not set and this program's own path is unknown: {0}")]
    TrainerPath(#[source] std::io::Error),
    /// Nobody to vouch for it.
    #[error(transparent)]
    Attester(#[from] AttesterError),
    /// No evidence.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// The vault failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The boot or a settlement could not be entered in the ledger.
    #[error("cannot enter the boot in the ledger: {0}")]
    Enter(#[from] TransactError),
}

impl Boot {
    /// Makes keys and claims, enters the boot in the ledger with its evidence, settles orphaned runs.
    pub(crate) fn start(
        config: &Config,
        vault: &Vault,
        attester: Arc<dyn Attester>,
        now_unix_ms: u64,
    ) -> Result<Self, BootError> {
        Event::Attester {
            media_type: attester.media_type(),
        }
        .emit();
        let key = LedgerKey::generate(&SystemRandom::new())?;
        let id = vault.new_boot_id()?;
        let program = config.trainer.program().map_err(BootError::TrainerPath)?;
        let trainer = TrainerProgram::measure(program, config.trainer.device)?;
        if config.trainer.require_landlock && trainer.sandbox.landlock_abi.is_none() {
            return Err(TrainerError::NoLandlock.into());
        }
        Event::Sandbox {
            landlock_abi: trainer.sandbox.landlock_abi.unwrap_or_default(),
        }
        .emit();
        let runtime_claims = runtime_claims(config, vault, &trainer, &*attester, id, &key);
        let claims_digest = Digest32::from_bytes(runtime_claims.digest());
        let binding = BootBinding {
            ledger_public_key: *key.public_key().as_bytes(),
            boot_id: *id.as_bytes(),
            genesis_digest: *bastionai_ledger::genesis_digest(vault.ledger_id()).as_bytes(),
            claims_sha256: *claims_digest.as_bytes(),
        };
        let evidence = attester.attest(&binding.report_data())?;
        let evidence = RuntimeEvidence {
            boot: id,
            ledger_key: key.public_key(),
            claims: runtime_claims.to_bytes(),
            evidence_media_type: evidence.media_type,
            evidence: evidence.bytes,
        };
        let freshness = bastionai_ledger::Freshness::None;
        let boot = bastionai_vault::Boot {
            evidence: evidence.clone(),
            freshness,
        };
        let conditions = resume::conditions(&runtime_claims);
        let orphans = vault.start_boot(
            boot,
            |orphan| resume::is_resumable(vault, orphan, conditions, now_unix_ms),
            now_unix_ms,
        )?;
        let count = |which: &dyn Fn(&(Orphan, bool)) -> bool| {
            orphans.iter().filter(|orphan| which(orphan)).count() as u64
        };
        Event::Orphans {
            resumed: count(&|(_, resumed)| *resumed),
            refunded: count(&|(orphan, resumed)| !resumed && !orphan.started),
            failed: count(&|(orphan, resumed)| !resumed && orphan.started),
        }
        .emit();
        let claims = evidence.claims.clone();
        Ok(Self {
            id,
            key,
            claims,
            claims_digest,
            conditions,
            attester,
            evidence,
            trainer,
        })
    }

    /// This boot, as run digests name it.
    pub(crate) fn as_priced(&self) -> terms::Boot {
        terms::Boot {
            id: self.id,
            claims: self.claims_digest,
        }
    }
}

/// Everything the launch measurement does not cover. The ledger head is the one this boot continues.
fn runtime_claims(
    config: &Config,
    vault: &Vault,
    trainer: &TrainerProgram,
    attester: &dyn Attester,
    boot: BootId,
    key: &LedgerKey,
) -> RuntimeClaims {
    let head = vault.head();
    let RootKeyKind::InsecureFile = config.root_key;
    let mut insecure_flags = vec![claims::INSECURE_FILE_ROOT_KEY.to_owned()];
    // By what it makes, not by what the configuration calls it.
    if attester::is_simulated(attester) {
        insecure_flags.push(claims::INSECURE_SIMULATED_EVIDENCE.to_owned());
    }
    if trainer.sandbox.landlock_abi.is_none() {
        insecure_flags.push(claims::INSECURE_TRAINER_SANDBOX.to_owned());
    }
    if trainer.device == DeviceKind::Cuda {
        insecure_flags.push(claims::INSECURE_UNATTESTED_GPU.to_owned());
    }
    RuntimeClaims {
        server_version: env!("CARGO_PKG_VERSION").to_owned(),
        root_key_provider: INSECURE_FILE_ROOT_KEY.to_owned(),
        insecure_flags,
        configuration_digest: config.digest(),
        trainer_digest: trainer.digest,
        libtorch_digest: trainer.libraries_digest,
        boot_id: *boot.as_bytes(),
        ledger_id: *head.ledger.as_bytes(),
        ledger_public_key: *key.public_key().as_bytes(),
        ledger_sequence: head.sequence,
        ledger_head: *head.entry_hash.as_bytes(),
        freshness: Freshness::None,
    }
}
