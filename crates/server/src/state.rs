//! What every call shares: vault, boot, stores in memory, places to work in, and whether the server drains.

use crate::boot::Boot;
use crate::config::Config;
use crate::errors::{Failure, Reason};
use crate::models::Models;
use crate::places::{NoPlace, Place, Places};
use crate::quotes::Quotes;
use crate::runs::Runs;
use crate::storage::Storage;
use crate::throughput::Throughput;
use crate::tls::ServerIdentity;
use bastionai_ledger::{Principal, SignedHead};
use bastionai_vault::Vault;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;
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
    pub(crate) storage: Storage,
    /// Sessions take turns at the platform, in the order in which they asked.
    pub(crate) attesting: tokio::sync::Mutex<()>,
    /// Of one trainer, on the host: stated or the machine's.
    pub(crate) trainer_memory_bytes: u64,
    throughput: OnceLock<Throughput>,
    uploads: Places,
    prices: Places,
    draining: AtomicBool,
}

impl Server {
    pub(crate) fn new(config: Config, vault: Vault, boot: Boot, identity: ServerIdentity) -> Self {
        let limits = &config.limits;
        Self {
            models: Models::new(limits.models_total_bytes),
            quotes: Quotes::new(limits.quotes, limits.quotes_per_principal),
            runs: Runs::new(limits),
            storage: vault.read(|ledger| Storage::new(limits, ledger)),
            trainer_memory_bytes: config.trainer.memory_for(limits.concurrent_runs),
            attesting: tokio::sync::Mutex::new(()),
            throughput: OnceLock::new(),
            uploads: Places::new(limits.concurrent_uploads, limits.uploads_per_principal),
            prices: Places::new(limits.concurrent_prices, limits.prices_per_principal),
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

    /// How fast this machine is; `None` until it was measured, or if it could not be.
    pub(crate) fn throughput(&self) -> Option<Throughput> {
        self.throughput.get().copied()
    }

    /// Measures once a boot, while nothing else runs yet.
    pub(crate) fn measure_throughput(&self) {
        let threads = self
            .config
            .trainer
            .threads_for(self.config.limits.concurrent_runs);
        let trainer = &self.boot.trainer;
        if let Some(found) = Throughput::measure(&trainer.program, trainer.device, threads) {
            // Only one call is made; a second would find the same.
            let _ = self.throughput.set(found);
        }
    }

    /// Largest memory estimate of a run that is accepted: what a trainer gets of the machine, or what one of the concurrent runs gets of
    /// its device. Where both are in play nobody knows yet how the estimate divides, so each must hold the whole.
    pub(crate) fn run_memory_bytes(&self) -> u64 {
        let of_machine = self.trainer_memory_bytes;
        let runs = u64::from(self.config.limits.concurrent_runs.max(1));
        let of_device = self.boot.trainer.device_memory_bytes;
        of_device.map_or(of_machine, |all| of_machine.min(all / runs))
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

    /// A place among the concurrent uploads, given back when dropped, and the time by which it must be.
    pub(crate) fn upload_place(&self, principal: Principal) -> Result<UploadPlace, Failure> {
        let limits = &self.config.limits;
        let place = self.uploads.take(principal).map_err(|none| {
            let message = match none {
                NoPlace::Full => "as many uploads are in progress as the server takes; try again".to_owned(),
                NoPlace::Yours => format!(
                    "you have {} uploads in progress, as many as one may; finish one first",
                    limits.uploads_per_principal
                ),
            };
            Failure::new(Reason::TooManyUploads, message)
        })?;
        let deadline = Instant::now() + Duration::from_millis(limits.upload_timeout_ms);
        Ok(UploadPlace {
            deadline,
            _place: place,
        })
    }

    /// A place among the concurrent prices, given back when dropped. A price takes a second: worth a short wait.
    pub(crate) async fn price_place(&self, principal: Principal) -> Result<Place, Failure> {
        let deadline = Instant::now() + PRICE_PATIENCE;
        loop {
            let message = match self.prices.take(principal) {
                Ok(place) => return Ok(place),
                Err(_) if Instant::now() < deadline => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                    continue;
                }
                Err(NoPlace::Full) => {
                    "as many prices are being computed as the server does at once; try again"
                }
                Err(NoPlace::Yours) => {
                    "as many prices of yours are being computed as one may ask at once; try again"
                }
            };
            return Err(Failure::new(Reason::TooManyPrices, message));
        }
    }

    /// The next message of an upload, in time. `None` at its end.
    pub(crate) async fn next_part<M>(
        &self,
        place: &UploadPlace,
        parts: &mut Streaming<M>,
    ) -> Result<Option<M>, Failure> {
        let idle = Instant::now() + Duration::from_millis(self.config.limits.upload_idle_ms);
        match tokio::time::timeout_at(idle.min(place.deadline), parts.message()).await {
            Ok(Ok(message)) => Ok(message),
            Ok(Err(status)) => Err(Failure::broken_upload(&status, self.config.limits.message_bytes)),
            Err(_) => Err(Failure::new(
                Reason::UploadIdle,
                "the upload sent nothing for too long, or took too long in all; nothing of it was kept",
            )),
        }
    }
}

/// How long a price waits for its turn.
const PRICE_PATIENCE: Duration = Duration::from_secs(20);

/// A place among the concurrent uploads, until a deadline.
pub(crate) struct UploadPlace {
    deadline: Instant,
    _place: Place,
}

/// The machine's clock, in Unix milliseconds.
pub(crate) fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
/// Between two looks for a free place.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
