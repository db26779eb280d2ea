//! What every call shares: vault, boot, stores in memory, places to work in, and whether the server drains.

use crate::boot::Boot;
use crate::config::Config;
use crate::errors::{Failure, Reason};
use crate::models::Models;
use crate::quotes::Quotes;
use crate::runs::Runs;
use crate::tls::ServerIdentity;
use bastionai_ledger::SignedHead;
use bastionai_vault::Vault;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Streaming;

/// The server of one boot.
pub(crate) struct Server {
    pub(crate) config: Config,
    pub(crate) vault: Vault,
    pub(crate) boot: Boot,
    pub(crate) identity: ServerIdentity,
    pub(crate) models: Models,
    pub(crate) quotes: Quotes,
    pub(crate) runs: Runs,
    uploads: Arc<Semaphore>,
    prices: Arc<Semaphore>,
    draining: AtomicBool,
}

impl Server {
    pub(crate) fn new(config: Config, vault: Vault, boot: Boot, identity: ServerIdentity) -> Self {
        let limits = &config.limits;
        Self {
            models: Models::new(limits.models_total_bytes),
            quotes: Quotes::new(limits.quotes, limits.quotes_per_principal),
            runs: Runs::new(limits.concurrent_runs, limits.queued_runs),
            uploads: Arc::new(Semaphore::new(limits.concurrent_uploads as usize)),
            prices: Arc::new(Semaphore::new(limits.concurrent_prices as usize)),
            draining: AtomicBool::new(false),
            config,
            vault,
            boot,
            identity,
        }
    }

    /// The machine's clock. The ledger's own time never falls behind its last entry (rule A8).
    pub(crate) fn now_unix_ms(&self) -> u64 {
        now_unix_ms()
    }

    /// The chain's end, signed by this boot's key.
    pub(crate) fn signed_head(&self) -> SignedHead {
        self.boot.key.sign_head(self.vault.read(|ledger| ledger.head()))
    }

    /// Refuses new uploads and runs while the server drains.
    pub(crate) fn accepts_work(&self) -> Result<(), Failure> {
        if self.draining.load(Ordering::Acquire) {
            let message = "the server is draining and takes no new work; connect again when it is back";
            return Err(Failure::new(Reason::Draining, message));
        }
        Ok(())
    }

    /// From now on new work is refused.
    pub(crate) fn start_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// A place among the concurrent uploads, given back when dropped.
    pub(crate) fn upload_place(&self) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(&self.uploads).try_acquire_owned().map_err(|_| {
            let most = self.config.limits.concurrent_uploads;
            Failure::new(
                Reason::TooManyUploads,
                format!("{most} uploads are in progress, as many as the server takes; try again"),
            )
        })
    }

    /// A place among the concurrent prices, given back when dropped. A price takes a second: worth a short wait.
    pub(crate) async fn price_place(&self) -> Result<OwnedSemaphorePermit, Failure> {
        match tokio::time::timeout(PRICE_PATIENCE, Arc::clone(&self.prices).acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            _ => {
                let most = self.config.limits.concurrent_prices;
                let message = format!(
                    "{most} prices are being computed, as many as the server does at once; try again"
                );
                Err(Failure::new(Reason::TooManyPrices, message))
            }
        }
    }

    /// The next message of an upload, in time. `None` at its end.
    pub(crate) async fn next_part<M>(&self, parts: &mut Streaming<M>) -> Result<Option<M>, Failure> {
        let patience = Duration::from_millis(self.config.limits.upload_idle_ms);
        match tokio::time::timeout(patience, parts.message()).await {
            Ok(Ok(message)) => Ok(message),
            Ok(Err(status)) => Err(Failure::broken_upload(&status, self.config.limits.message_bytes)),
            Err(_) => Err(Failure::new(
                Reason::UploadIdle,
                "the upload sent nothing for too long; nothing of it was kept",
            )),
        }
    }
}

/// How long a price waits for its turn.
const PRICE_PATIENCE: Duration = Duration::from_secs(20);

/// The machine's clock, in Unix milliseconds.
pub(crate) fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
