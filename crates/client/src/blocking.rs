//! The same client without async, for the command line and Python. Do not call it from async code.
//!
//! Connection and appraisal are one step here: [`Client::connect`] returns an appraised peer or an error.
//! Every wait can be interrupted (Ctrl-C) through [`Settings::interrupt`]; the connection is driven by a
//! small runtime of its own and stays alive between calls.

use crate::datasets::{self, Dataset, NewDataset};
use crate::errors::ClientError;
use crate::evaluation::{Evaluation, EvaluationQuote, EvaluationSpec, Metric};
use crate::fetch::{FetchedReceipt, FetchedRun, WeightsAt};
use crate::heads::HeadMemory;
use crate::identity::Identity;
use crate::ledger::LedgerView;
use crate::rows::{CheckedRecords, RecordBatch, Transfer};
use crate::runs::{self, Progress, Quote, Run, RunSpec};
use crate::session::{AppraisedPeer, ConnectOptions, ServerInfo};
use bastionai_attestation::{AppraisalPolicy, AttestationResult};
use bastionai_ledger::id::{DatasetId, Digest32, Principal, RunId};
use serde::Serialize;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::runtime::{Builder, Runtime};

/// Says whether the user wants to stop waiting; asked ten times a second.
pub type Interrupt = Arc<dyn Fn() -> bool + Send + Sync>;

/// How to connect.
#[derive(Clone)]
pub struct Settings {
    /// What the server must prove.
    pub policy: AppraisalPolicy,
    /// Ledger heads seen before.
    pub heads: HeadMemory,
    /// How patient to be.
    pub options: ConnectOptions,
    /// If present, ends a wait with [`ClientError::Interrupted`] when it returns true.
    pub interrupt: Option<Interrupt>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("policy", &self.policy)
            .field("heads", &self.heads)
            .finish_non_exhaustive()
    }
}

/// An appraised peer whose methods block.
#[derive(Clone)]
pub struct Client {
    peer: AppraisedPeer,
    driver: Driver,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.peer).finish()
    }
}

/// What a wait for progress gave.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)]
pub enum Watched {
    /// A step was released, or the run changed its state.
    Progress(Progress),
    /// Nothing within the time given; ask again.
    Waiting,
    /// The run has ended and everything was shown.
    Ended,
}

/// A watched run. Dropping it detaches; the run goes on.
pub struct Watch {
    watch: runs::RunWatch,
    driver: Driver,
}

/// An upload in progress. Dropped before `finish`, the server keeps nothing.
pub struct Upload {
    upload: datasets::DatasetUpload,
    driver: Driver,
}

impl Client {
    /// Connects, appraises, and returns the peer.
    ///
    /// # Errors
    /// As [`crate::connect`] and [`crate::UnappraisedSession::appraise`].
    pub fn connect(address: &str, identity: &Identity, settings: &Settings) -> Result<Self, ClientError> {
        let driver = Driver::new(settings.interrupt.clone())?;
        let peer = driver.wait(async {
            let session = crate::connect(address, identity, &settings.options).await?;
            session
                .appraise(&settings.policy, now_unix_ms()?, &settings.heads)
                .await
        })?;
        Ok(Self { peer, driver })
    }

    /// What was attested.
    pub fn attestation(&self) -> &AttestationResult {
        self.peer.attestation()
    }

    /// What the server said about itself.
    pub fn server(&self) -> &ServerInfo {
        self.peer.server()
    }

    /// This client's principal.
    pub fn principal(&self) -> Principal {
        self.peer.principal()
    }

    /// Whether the session is over.
    pub fn has_ended(&self) -> bool {
        self.peer.has_ended()
    }

    /// Ends the session.
    pub fn close(&self) {
        self.peer.close();
    }

    /// See [`AppraisedPeer::upload_dataset`].
    ///
    /// # Errors
    /// As there.
    pub fn upload_dataset(
        &self,
        dataset: &NewDataset,
        batches: Vec<RecordBatch>,
        on_progress: &mut (dyn FnMut(Transfer) + Send),
    ) -> Result<Dataset, ClientError> {
        self.driver
            .wait(self.peer.upload_dataset(dataset, batches, on_progress))
    }

    /// See [`AppraisedPeer::upload_checked`].
    ///
    /// # Errors
    /// As there.
    pub fn upload_checked(
        &self,
        dataset: &NewDataset,
        records: CheckedRecords,
        on_progress: &mut (dyn FnMut(Transfer) + Send),
    ) -> Result<Dataset, ClientError> {
        self.driver
            .wait(self.peer.upload_checked(dataset, records, on_progress))
    }

    /// See [`AppraisedPeer::begin_upload`].
    ///
    /// # Errors
    /// As there.
    pub fn begin_upload(&self, dataset: &NewDataset) -> Result<Upload, ClientError> {
        let upload = self.driver.wait(self.peer.begin_upload(dataset))?;
        Ok(Upload {
            upload,
            driver: self.driver.clone(),
        })
    }

    /// See [`AppraisedPeer::list_datasets`].
    ///
    /// # Errors
    /// As there.
    pub fn list_datasets(&self) -> Result<Vec<Dataset>, ClientError> {
        self.driver.wait(self.peer.list_datasets())
    }

    /// See [`AppraisedPeer::withdraw_dataset`].
    ///
    /// # Errors
    /// As there.
    pub fn withdraw_dataset(&self, dataset: DatasetId) -> Result<Dataset, ClientError> {
        self.driver.wait(self.peer.withdraw_dataset(dataset))
    }

    /// See [`AppraisedPeer::remove_dataset`].
    ///
    /// # Errors
    /// As there.
    pub fn remove_dataset(&self, dataset: DatasetId) -> Result<Dataset, ClientError> {
        self.driver.wait(self.peer.remove_dataset(dataset))
    }

    /// See [`AppraisedPeer::upload_model`].
    ///
    /// # Errors
    /// As there.
    pub fn upload_model(
        &self,
        name: &str,
        archive: &[u8],
        on_progress: &mut (dyn FnMut(Transfer) + Send),
    ) -> Result<Digest32, ClientError> {
        self.driver
            .wait(self.peer.upload_model(name, archive, on_progress))
    }

    /// See [`AppraisedPeer::price`].
    ///
    /// # Errors
    /// As there.
    pub fn price(&self, spec: &RunSpec) -> Result<Quote, ClientError> {
        self.driver.wait(self.peer.price(spec))
    }

    /// See [`AppraisedPeer::price_evaluation`].
    ///
    /// # Errors
    /// As there.
    pub fn price_evaluation(&self, spec: &EvaluationSpec) -> Result<EvaluationQuote, ClientError> {
        self.driver.wait(self.peer.price_evaluation(spec))
    }

    /// See [`AppraisedPeer::fetch_evaluation`].
    ///
    /// # Errors
    /// As there.
    pub fn fetch_evaluation(
        &self,
        run: RunId,
        expected: Option<&Run>,
        metrics: &[Metric],
        on_progress: &mut (dyn FnMut(Transfer) + Send),
    ) -> Result<Evaluation, ClientError> {
        self.driver
            .wait(self.peer.fetch_evaluation(run, expected, metrics, on_progress))
    }

    /// See [`AppraisedPeer::start_run`].
    ///
    /// # Errors
    /// As there.
    pub fn start_run(&self, run_digest: Digest32) -> Result<Run, ClientError> {
        self.driver.wait(self.peer.start_run(run_digest))
    }

    /// See [`AppraisedPeer::watch_run`].
    ///
    /// # Errors
    /// As there.
    pub fn watch_run(&self, run: RunId, from_step: u64) -> Result<Watch, ClientError> {
        let watch = self.driver.wait(self.peer.watch_run(run, from_step))?;
        Ok(Watch {
            watch,
            driver: self.driver.clone(),
        })
    }

    /// See [`AppraisedPeer::list_runs`].
    ///
    /// # Errors
    /// As there.
    pub fn list_runs(&self) -> Result<Vec<Run>, ClientError> {
        self.driver.wait(self.peer.list_runs())
    }

    /// See [`AppraisedPeer::cancel_run`].
    ///
    /// # Errors
    /// As there.
    pub fn cancel_run(&self, run: RunId) -> Result<Run, ClientError> {
        self.driver.wait(self.peer.cancel_run(run))
    }

    /// See [`AppraisedPeer::suspend_run`].
    ///
    /// # Errors
    /// As there.
    pub fn suspend_run(&self, run: RunId) -> Result<Run, ClientError> {
        self.driver.wait(self.peer.suspend_run(run))
    }

    /// See [`AppraisedPeer::resume_run`].
    ///
    /// # Errors
    /// As there.
    pub fn resume_run(&self, run: RunId) -> Result<Run, ClientError> {
        self.driver.wait(self.peer.resume_run(run))
    }

    /// See [`AppraisedPeer::fetch_weights`].
    ///
    /// # Errors
    /// As there.
    pub fn fetch_weights(
        &self,
        run: RunId,
        at: WeightsAt,
        expected: Option<&Run>,
        on_progress: &mut (dyn FnMut(Transfer) + Send),
    ) -> Result<FetchedRun, ClientError> {
        self.driver
            .wait(self.peer.fetch_weights(run, at, expected, on_progress))
    }

    /// See [`AppraisedPeer::fetch_run`].
    ///
    /// # Errors
    /// As there.
    pub fn fetch_run(
        &self,
        run: RunId,
        expected: Option<&Run>,
        on_progress: &mut (dyn FnMut(Transfer) + Send),
    ) -> Result<FetchedRun, ClientError> {
        self.driver.wait(self.peer.fetch_run(run, expected, on_progress))
    }

    /// See [`AppraisedPeer::fetch_receipt`].
    ///
    /// # Errors
    /// As there.
    pub fn fetch_receipt(&self, run: RunId, expected: Option<&Run>) -> Result<FetchedReceipt, ClientError> {
        self.driver.wait(self.peer.fetch_receipt(run, expected))
    }

    /// See [`AppraisedPeer::show_ledger`].
    ///
    /// # Errors
    /// As there.
    pub fn show_ledger(&self, subject: Option<[u8; 16]>) -> Result<LedgerView, ClientError> {
        self.driver.wait(self.peer.show_ledger(subject))
    }
}

impl Upload {
    /// See [`datasets::DatasetUpload::push`].
    ///
    /// # Errors
    /// As there.
    pub fn push(&mut self, batch: RecordBatch) -> Result<(), ClientError> {
        self.driver.wait(self.upload.push(batch))
    }

    /// Bytes of rows handed to the connection so far.
    pub fn sent_bytes(&self) -> u64 {
        self.upload.sent_bytes()
    }

    /// See [`datasets::DatasetUpload::finish`].
    ///
    /// # Errors
    /// As there.
    pub fn finish(self) -> Result<Dataset, ClientError> {
        self.driver.wait(self.upload.finish())
    }
}

impl Watch {
    /// Waits for the next message at most so long, so that the caller can look at a signal or redraw.
    ///
    /// # Errors
    /// As [`runs::RunWatch::next`].
    pub fn next_progress(&mut self, timeout: Duration) -> Result<Watched, ClientError> {
        self.driver.wait(async {
            match tokio::time::timeout(timeout, self.watch.next()).await {
                Ok(Ok(Some(progress))) => Ok(Watched::Progress(progress)),
                Ok(Ok(None)) => Ok(Watched::Ended),
                Ok(Err(error)) => Err(error),
                Err(_) => Ok(Watched::Waiting),
            }
        })
    }
}

/// Milliseconds since 1970, by this machine's clock.
///
/// # Errors
/// [`ClientError::Setup`] if the clock is before 1970.
pub fn now_unix_ms() -> Result<u64, ClientError> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since =
        since.map_err(|_| ClientError::Setup("this machine's clock is before 1970; set it".into()))?;
    Ok(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The runtime behind a client, and the way to stop waiting on it.
#[derive(Clone)]
struct Driver {
    runtime: Arc<Runtime>,
    interrupt: Option<Interrupt>,
}

impl Driver {
    fn new(interrupt: Option<Interrupt>) -> Result<Self, ClientError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("bastionai-client")
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| ClientError::Setup(error.to_string()))?;
        Ok(Self {
            runtime: Arc::new(runtime),
            interrupt,
        })
    }

    fn wait<T>(&self, work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
        self.runtime.block_on(async {
            tokio::select! {
                outcome = work => outcome,
                () = self.interrupted() => Err(ClientError::Interrupted),
            }
        })
    }

    async fn interrupted(&self) {
        let Some(interrupt) = &self.interrupt else {
            return std::future::pending().await;
        };
        while !interrupt() {
            tokio::time::sleep(INTERRUPT_POLL).await;
        }
    }
}

const INTERRUPT_POLL: Duration = Duration::from_millis(100);
