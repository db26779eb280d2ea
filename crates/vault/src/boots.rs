//! Starts of the server: the entry that opens a boot, its evidence for later receipts, and what earlier
//! boots left open.

use crate::database::{BOOTS, insert};
use crate::error::{StorageError, TransactError};
use crate::vault::Vault;
use bastionai_ledger::{BootId, BootStarted, Digest32, Freshness, LedgerPublicKey, Orphan, RuntimeEvidence};

/// One start of a server.
#[derive(Clone, Debug)]
pub struct Boot {
    /// Its id, key, canonical claims and evidence; receipts carry them (rule A6).
    pub evidence: RuntimeEvidence,
    /// Freshness level.
    pub freshness: Freshness,
}

impl Vault {
    /// Opens a boot: the first step after [`Vault::open`]. Runs that earlier boots left open are resumed if `resumable`
    /// says so and all their datasets are still lent, else settled: never started → refunded, started →
    /// committed as failed. Returns each with whether it was resumed.
    ///
    /// # Errors
    /// [`TransactError`].
    pub fn start_boot(
        &self,
        boot: Boot,
        resumable: impl Fn(&Orphan) -> bool,
        now_unix_ms: u64,
    ) -> Result<Vec<(Orphan, bool)>, TransactError> {
        let started = BootStarted {
            boot: boot.evidence.boot,
            ledger_key: boot.evidence.ledger_key,
            claims_digest: Digest32::of(&boot.evidence.claims),
            freshness: boot.freshness,
        };
        let sealed = self.seal_evidence(&boot.evidence)?;
        self.transact_with(
            |ledger| ledger.propose_boot(started, now_unix_ms),
            |write, _| insert(write, BOOTS, boot.evidence.boot.as_bytes(), &sealed),
        )?;
        let orphans = self.read(|ledger| ledger.orphans());
        orphans
            .into_iter()
            .map(|orphan| {
                let resumed = resumable(&orphan) && self.resume_orphan(orphan, now_unix_ms)?;
                if !resumed {
                    self.end_run(&orphan.run, |ledger| {
                        ledger.propose_settlement(orphan, now_unix_ms)
                    })?;
                }
                Ok((orphan, resumed))
            })
            .collect()
    }

    /// False when the ledger refuses: a dataset is withdrawn or expired.
    fn resume_orphan(&self, orphan: Orphan, now_unix_ms: u64) -> Result<bool, TransactError> {
        match self.transact(|ledger| ledger.propose_resumption(orphan, now_unix_ms)) {
            Ok(_) => Ok(true),
            Err(TransactError::Refused(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The evidence of a boot, for receipts of runs it ran.
    ///
    /// # Errors
    /// [`StorageError::Missing`] when no such boot is known.
    pub fn boot_evidence(&self, boot: &BootId) -> Result<RuntimeEvidence, StorageError> {
        let what = "the evidence of a boot";
        let sealed = self
            .inner
            .store
            .get(BOOTS, boot.as_bytes())?
            .ok_or(StorageError::Missing { what })?;
        let bytes = self.inner.store.records.open(&boot_aad(boot), &sealed, what)?;
        let (ledger_key, claims, evidence_media_type, evidence): (LedgerPublicKey, _, _, _) =
            postcard::from_bytes(&bytes).map_err(|_| StorageError::Sealed { what })?;
        Ok(RuntimeEvidence {
            boot: *boot,
            ledger_key,
            claims,
            evidence_media_type,
            evidence,
        })
    }

    fn seal_evidence(&self, evidence: &RuntimeEvidence) -> Result<Vec<u8>, StorageError> {
        let fields = (
            evidence.ledger_key,
            &evidence.claims,
            &evidence.evidence_media_type,
            &evidence.evidence,
        );
        let plain = postcard::to_stdvec(&fields).expect("postcard encodes bytes and strings");
        self.inner.store.records.seal(&boot_aad(&evidence.boot), &plain)
    }
}

fn boot_aad(boot: &BootId) -> Vec<u8> {
    [BOOT_LABEL, boot.as_bytes()].concat()
}

const BOOT_LABEL: &[u8] = b"boot-evidence\0";
