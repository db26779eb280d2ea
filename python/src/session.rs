//! The attested session. Answers are handed to Python as the client's types serialise (JSON).

use crate::blocking::wait;
use crate::errors::{client_error, exception};
use crate::evaluation::{self, FetchedEvaluation};
use crate::policy::appraisal_policy;
use bastionai_client::{
    AppraisedPeer, ClientError, ConnectOptions, DataContract, DatasetId, DatasetKind, DatasetUpload,
    Digest32, EvaluationSpec, HeadMemory, Identity, NewDataset, Policy, RecordBatch, RunId, RunSpec,
    RunWatch, WeightsAt, connect,
};
use bastionai_ledger::receipt::Receipt;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::runtime::{Builder, Runtime};

/// A session with an appraised server.
#[pyclass(frozen, module = "bastionai._internal")]
pub(crate) struct Session {
    peer: AppraisedPeer,
    runtime: Arc<Runtime>,
}

#[pymethods]
impl Session {
    /// Connects, verifies and appraises. `policy_json` None accepts the development attester; the flags are accepted besides.
    #[staticmethod]
    #[pyo3(signature = (address, identity_path, heads_path, policy_json, allowed_insecure_flags))]
    fn connect(
        py: Python<'_>,
        address: &str,
        identity_path: &str,
        heads_path: &str,
        policy_json: Option<&str>,
        allowed_insecure_flags: Vec<String>,
    ) -> PyResult<Self> {
        let policy = appraisal_policy(policy_json, allowed_insecure_flags)
            .map_err(|what| exception(py, "InvalidRequest", what))?;
        let identity = Identity::load(identity_path).map_err(|error| client_error(py, &error.into()))?;
        let heads = HeadMemory::open(heads_path);
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|error| exception(py, "ConnectionFailed", error))?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64);
        let peer = wait(py, &runtime, async {
            connect(address, &identity, &ConnectOptions::default())
                .await?
                .appraise(&policy, now, &heads)
                .await
        })?;
        Ok(Self {
            peer,
            runtime: Arc::new(runtime),
        })
    }

    fn close(&self) {
        self.peer.close();
    }

    #[getter]
    fn principal(&self) -> String {
        self.peer.principal().to_string()
    }

    fn attestation(&self, py: Python<'_>) -> PyResult<String> {
        to_json(py, self.peer.attestation())
    }

    fn attestation_text(&self) -> String {
        self.peer.attestation().to_string()
    }

    fn server(&self, py: Python<'_>) -> PyResult<String> {
        to_json(py, self.peer.server())
    }

    fn list_datasets(&self, py: Python<'_>) -> PyResult<String> {
        to_json(py, &wait(py, &self.runtime, self.peer.list_datasets())?)
    }

    fn begin_upload(&self, py: Python<'_>, dataset_json: &str) -> PyResult<Upload> {
        let header: UploadHeader = from_json(py, dataset_json)?;
        let contract = serde_json::to_vec(&header.contract).map_err(|e| exception(py, "ContractError", e))?;
        let dataset = NewDataset {
            name: header.name,
            kind: header.kind,
            contract: DataContract::parse_json(&contract).map_err(|e| exception(py, "ContractError", e))?,
            policy: header.policy,
        };
        let upload = wait(py, &self.runtime, self.peer.begin_upload(&dataset))?;
        Ok(Upload {
            upload: Some(upload),
            runtime: self.runtime.clone(),
        })
    }

    fn upload_model(&self, py: Python<'_>, name: &str, archive: &[u8]) -> PyResult<String> {
        let mut silent = |_| {};
        Ok(wait(
            py,
            &self.runtime,
            self.peer.upload_model(name, archive, &mut silent),
        )?
        .to_string())
    }

    fn price(&self, py: Python<'_>, spec_json: &str) -> PyResult<String> {
        let spec: RunSpec = from_json(py, spec_json)?;
        to_json(py, &wait(py, &self.runtime, self.peer.price(&spec))?)
    }

    fn price_evaluation(&self, py: Python<'_>, spec_json: &str) -> PyResult<String> {
        let spec: EvaluationSpec = from_json(py, spec_json)?;
        to_json(py, &wait(py, &self.runtime, self.peer.price_evaluation(&spec))?)
    }

    fn start_run(&self, py: Python<'_>, run_digest: &str) -> PyResult<String> {
        let digest: Digest32 = parse(py, run_digest)?;
        to_json(py, &wait(py, &self.runtime, self.peer.start_run(digest))?)
    }

    fn watch_run(&self, py: Python<'_>, run_id: &str, from_step: u64) -> PyResult<Watch> {
        let run: RunId = parse(py, run_id)?;
        let watch = wait(py, &self.runtime, self.peer.watch_run(run, from_step))?;
        Ok(Watch {
            watch: Some(watch),
            runtime: self.runtime.clone(),
        })
    }

    fn list_runs(&self, py: Python<'_>) -> PyResult<String> {
        to_json(py, &wait(py, &self.runtime, self.peer.list_runs())?)
    }

    fn cancel_run(&self, py: Python<'_>, run_id: &str) -> PyResult<String> {
        let run: RunId = parse(py, run_id)?;
        to_json(py, &wait(py, &self.runtime, self.peer.cancel_run(run))?)
    }

    fn suspend_run(&self, py: Python<'_>, run_id: &str) -> PyResult<String> {
        let run: RunId = parse(py, run_id)?;
        to_json(py, &wait(py, &self.runtime, self.peer.suspend_run(run))?)
    }

    fn resume_run(&self, py: Python<'_>, run_id: &str) -> PyResult<String> {
        let run: RunId = parse(py, run_id)?;
        to_json(py, &wait(py, &self.runtime, self.peer.resume_run(run))?)
    }

    fn withdraw_dataset(&self, py: Python<'_>, dataset_id: &str) -> PyResult<String> {
        let dataset: DatasetId = parse(py, dataset_id)?;
        to_json(py, &wait(py, &self.runtime, self.peer.withdraw_dataset(dataset))?)
    }

    fn remove_dataset(&self, py: Python<'_>, dataset_id: &str) -> PyResult<String> {
        let dataset: DatasetId = parse(py, dataset_id)?;
        to_json(py, &wait(py, &self.runtime, self.peer.remove_dataset(dataset))?)
    }

    /// The receipt alone, checked; `run_digest` is what was started.
    fn fetch_receipt(&self, py: Python<'_>, run_id: &str, run_digest: &str) -> PyResult<Py<PyBytes>> {
        let (run, digest): (RunId, Digest32) = (parse(py, run_id)?, parse(py, run_digest)?);
        let fetched = wait(py, &self.runtime, async {
            let fetched = self.peer.fetch_receipt(run, None).await?;
            check_digest(run, &fetched.receipt, digest)?;
            Ok(fetched)
        })?;
        Ok(PyBytes::new(py, &fetched.receipt_dsse_json).unbind())
    }

    /// Receipt and one set of weights, both checked; `run_digest` is what was started.
    #[pyo3(signature = (run_id, run_digest, step, ema))]
    fn fetch_run(
        &self,
        py: Python<'_>,
        run_id: &str,
        run_digest: &str,
        step: Option<u64>,
        ema: bool,
    ) -> PyResult<FetchedRun> {
        let (run, digest): (RunId, Digest32) = (parse(py, run_id)?, parse(py, run_digest)?);
        let fetched = wait(py, &self.runtime, async {
            let fetched = self
                .peer
                .fetch_weights(run, WeightsAt { step, ema }, None, &mut |_| {})
                .await?;
            check_digest(run, &fetched.receipt, digest)?;
            Ok(fetched)
        })?;
        let weights = fetched.weights.into_iter().map(|tensor| {
            let dtype = serde_json::to_value(tensor.dtype)
                .ok()
                .and_then(|v| v.as_str().map(str::to_owned));
            (
                tensor.names,
                dtype.unwrap_or_default(),
                tensor.shape,
                PyBytes::new(py, &tensor.bytes).unbind(),
            )
        });
        Ok(FetchedRun {
            receipt: PyBytes::new(py, &fetched.receipt_dsse_json).unbind(),
            weights: weights.collect(),
        })
    }

    /// Receipt and metrics of an evaluation, both checked; no names: all metrics that it allows.
    fn fetch_evaluation(
        &self,
        py: Python<'_>,
        run_id: &str,
        run_digest: &str,
        names: Vec<String>,
    ) -> PyResult<FetchedEvaluation> {
        let (run, digest): (RunId, Digest32) = (parse(py, run_id)?, parse(py, run_digest)?);
        let metrics = evaluation::metrics(py, &names)?;
        let fetched = wait(py, &self.runtime, async {
            let fetched = self
                .peer
                .fetch_evaluation(run, None, &metrics, &mut |_| {})
                .await?;
            check_digest(run, &fetched.receipt, digest)?;
            Ok(fetched)
        })?;
        Ok(FetchedEvaluation {
            receipt: PyBytes::new(py, &fetched.receipt_dsse_json).unbind(),
            evaluation: to_json(py, &fetched)?,
        })
    }

    #[pyo3(signature = (subject))]
    fn show_ledger(&self, py: Python<'_>, subject: Option<&str>) -> PyResult<String> {
        let subject: Option<DatasetId> = subject.map(|id| parse(py, id)).transpose()?;
        let subject = subject.map(|id| *id.as_bytes());
        to_json(py, &wait(py, &self.runtime, self.peer.show_ledger(subject))?)
    }
}

#[derive(Deserialize)]
struct UploadHeader {
    name: String,
    kind: DatasetKind,
    contract: serde_json::Value,
    policy: Policy,
}

/// An upload in progress; dropped or aborted before `finish`, the server keeps nothing.
#[pyclass(module = "bastionai._internal")]
pub(crate) struct Upload {
    upload: Option<DatasetUpload>,
    runtime: Arc<Runtime>,
}

#[pymethods]
impl Upload {
    fn push(&mut self, py: Python<'_>, rows: u64, columns: Vec<Vec<u8>>) -> PyResult<()> {
        let Some(upload) = self.upload.as_mut() else {
            return Err(over(py));
        };
        wait(py, &self.runtime, upload.push(RecordBatch { rows, columns }))
    }

    fn finish(&mut self, py: Python<'_>) -> PyResult<String> {
        let Some(upload) = self.upload.take() else {
            return Err(over(py));
        };
        to_json(py, &wait(py, &self.runtime, upload.finish())?)
    }

    fn abort(&mut self) {
        // Dropping it resets the stream, from within the runtime that drives it.
        let _inside = self.runtime.enter();
        self.upload = None;
    }
}

/// Progress of a run. Dropping it detaches; the run goes on.
#[pyclass(module = "bastionai._internal")]
pub(crate) struct Watch {
    watch: Option<RunWatch>,
    runtime: Arc<Runtime>,
}

#[pymethods]
impl Watch {
    /// The next message, or None after the last one.
    fn next(&mut self, py: Python<'_>) -> PyResult<Option<String>> {
        let Some(watch) = self.watch.as_mut() else {
            return Ok(None);
        };
        match wait(py, &self.runtime, watch.next())? {
            Some(progress) => to_json(py, &progress).map(Some),
            None => {
                self.watch = None;
                Ok(None)
            }
        }
    }
}

/// A tensor: its names, dtype, shape and little-endian bytes.
type Tensor = (Vec<String>, String, Vec<u64>, Py<PyBytes>);

/// What `fetch_run` gives.
#[pyclass(frozen, module = "bastionai._internal")]
pub(crate) struct FetchedRun {
    #[pyo3(get)]
    receipt: Py<PyBytes>,
    weights: Vec<Tensor>,
}

#[pymethods]
impl FetchedRun {
    #[getter]
    fn weights(&self, py: Python<'_>) -> Vec<Tensor> {
        let copy = |(names, dtype, shape, bytes): &Tensor| {
            (names.clone(), dtype.clone(), shape.clone(), bytes.clone_ref(py))
        };
        self.weights.iter().map(copy).collect()
    }
}

/// Makes a key file and returns its principal.
#[pyfunction]
pub(crate) fn generate_identity(py: Python<'_>, path: &str) -> PyResult<String> {
    let made = Identity::generate().and_then(|identity| identity.save(path).map(|()| identity.principal()));
    made.map(|principal| principal.to_string())
        .map_err(|error| client_error(py, &error.into()))
}

/// Refuses the receipt of another run than was started.
fn check_digest(run: RunId, receipt: &Receipt, digest: Digest32) -> Result<(), ClientError> {
    let found = receipt.run.run_digest;
    if found == digest {
        return Ok(());
    }
    Err(ClientError::ReceiptRefused {
        run: run.to_string(),
        what: format!("it covers run digest {found}, the run has {digest}"),
    })
}

fn over(py: Python<'_>) -> PyErr {
    exception(py, "InvalidRequest", "this upload has ended; begin another")
}

fn to_json<T: Serialize>(py: Python<'_>, value: &T) -> PyResult<String> {
    serde_json::to_string(value).map_err(|error| exception(py, "BastionError", error))
}

fn from_json<T: DeserializeOwned>(py: Python<'_>, json: &str) -> PyResult<T> {
    serde_json::from_str(json).map_err(|error| exception(py, "InvalidRequest", error))
}

fn parse<T: std::str::FromStr>(py: Python<'_>, text: &str) -> PyResult<T>
where
    T::Err: std::fmt::Display,
{
    text.parse()
        .map_err(|error: T::Err| exception(py, "InvalidRequest", error))
}
