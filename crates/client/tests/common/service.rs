//! The service behind the test server.

use super::ledger::TestLedger;
use bastionai_attestation::{Attester, Binding, Role};
use bastionai_client::Digest32;
use bastionai_wire::v1::bastion_server::Bastion;
use bastionai_wire::v1::*;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status, Streaming};

/// What a session is bound to, on the server's side.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    pub exporter: [u8; 32],
    pub spki_sha256: [u8; 32],
    pub principal: [u8; 32],
}

type Attest =
    dyn Fn(AttestRequest, SessionInfo) -> Pin<Box<dyn Future<Output = AttestReply> + Send>> + Send + Sync;

/// How the server behaves; honest by default.
#[derive(Clone)]
pub struct Behaviour {
    pub ledger: TestLedger,
    pub certificate_algorithm: &'static rcgen::SignatureAlgorithm,
    /// PKCS #8; absent: a fresh key.
    pub certificate_key: Option<Vec<u8>>,
    pub alpn: Vec<&'static str>,
    /// Answers evidence requests in place of the true attester.
    pub attest: Option<Arc<Attest>>,
    pub change_attest: fn(&mut AttestReply),
    pub change_hello: Arc<dyn Fn(&mut HelloReply) + Send + Sync>,
    /// The ledger that ShowLedger tells of, if another than [`Behaviour::ledger`].
    pub shown_ledger: Option<TestLedger>,
    /// Entries in a reply of ShowLedger, at most.
    pub page: usize,
    pub change_show_ledger: Arc<dyn Fn(&mut ShowLedgerReply) + Send + Sync>,
    /// Refuses an upload when this many batches were read.
    pub refuse_upload_after: Option<(usize, &'static str)>,
    /// Never reads an upload and never answers calls with one reply.
    pub hangs: bool,
    /// Says of every stored tensor that it is held, and has forgotten it when it is named.
    pub forgets_storages: bool,
    pub fetch: Vec<FetchRunReply>,
    pub progress: Vec<RunProgress>,
    pub progress_ends: bool,
}

impl Behaviour {
    pub fn honest() -> Self {
        Self {
            ledger: TestLedger::new(&[1, 2, 3]),
            certificate_algorithm: &rcgen::PKCS_ED25519,
            certificate_key: None,
            alpn: vec!["h2"],
            attest: None,
            change_attest: |_| {},
            change_hello: Arc::new(|_| {}),
            shown_ledger: None,
            page: 10,
            change_show_ledger: Arc::new(|_| {}),
            refuse_upload_after: None,
            hangs: false,
            forgets_storages: false,
            fetch: Vec::new(),
            progress: Vec::new(),
            progress_ends: true,
        }
    }

    pub fn on(attester: &Arc<dyn Attester>) -> Self {
        Self {
            ledger: TestLedger::on(attester),
            ..Self::honest()
        }
    }

    pub fn with_ledger(entries: &[u8]) -> Self {
        Self {
            ledger: TestLedger::new(entries),
            ..Self::honest()
        }
    }
}

pub struct TestService {
    pub behaviour: Behaviour,
    pub calls: Arc<Mutex<Vec<&'static str>>>,
    pub rows_received: Arc<Mutex<u64>>,
    pub models: Arc<Mutex<Vec<Vec<u8>>>>,
    pub asked: Arc<Mutex<Vec<ShowLedgerRequest>>>,
}

impl TestService {
    fn called(&self, name: &'static str) {
        self.calls.lock().unwrap().push(name);
    }

    async fn maybe_hang(&self) {
        if self.behaviour.hangs {
            std::future::pending::<()>().await;
        }
    }

    async fn read_upload(
        &self,
        mut stream: Streaming<UploadDatasetRequest>,
        owner: [u8; 32],
    ) -> Result<Dataset, Status> {
        use upload_dataset_request::Part;
        let Some(Part::Header(header)) = stream.next().await.transpose()?.and_then(|m| m.part) else {
            return Err(Status::invalid_argument("no header"));
        };
        let mut batches = 0;
        loop {
            if let Some((after, reason)) = self.behaviour.refuse_upload_after
                && batches >= after
            {
                return Err(refusal(Code::AlreadyExists, reason));
            }
            match stream.next().await.transpose()?.and_then(|message| message.part) {
                Some(Part::Records(batch)) => {
                    batches += 1;
                    *self.rows_received.lock().unwrap() += u64::from(batch.rows);
                }
                Some(Part::Finish(finish)) if finish.rows == *self.rows_received.lock().unwrap() => break,
                _ => return Err(Status::invalid_argument("the upload has no end")),
            }
        }
        Ok(Dataset {
            renyi_budget: None,
            id: vec![6; 16],
            name: header.name,
            kind: header.kind,
            owner: owner.to_vec(),
            contract_json: header.contract_json,
            policy: header.policy,
            budget: None,
            created_unix_ms: 1,
            trainable_by_caller: true,
            state: DatasetState::Offered.into(),
            evaluable_by_caller: true,
        })
    }
}

fn entry(sequence: u64) -> LedgerEntry {
    LedgerEntry {
        sequence,
        time_unix_ms: sequence + 1,
        kind: "boot_started".into(),
        json: r#"{"boot":"04"}"#.into(),
        hash: vec![1; 32],
    }
}

pub fn refusal(code: Code, reason: &'static str) -> Status {
    let mut status = Status::new(code, format!("refused: {reason}"));
    status
        .metadata_mut()
        .insert("bastionai-reason", reason.parse().unwrap());
    status
}

/// The reply of an honest server: fresh evidence for this very session.
pub fn honest_reply(request: &AttestRequest, info: &SessionInfo, ledger: &TestLedger) -> AttestReply {
    bound_reply(&binding(request, info, ledger), ledger)
}

/// What evidence for this request on this session is bound to.
pub fn binding(request: &AttestRequest, info: &SessionInfo, ledger: &TestLedger) -> Binding {
    Binding {
        nonce: request.nonce[..].try_into().unwrap(),
        exporter: info.exporter,
        spki_sha256: info.spki_sha256,
        role: Role::Server,
        claims_sha256: ledger.claims().digest(),
    }
}

/// True evidence bound to whatever it is told, with the claims of this ledger.
pub fn bound_reply(binding: &Binding, ledger: &TestLedger) -> AttestReply {
    let evidence = ledger.attester.attest(&binding.report_data()).unwrap();
    AttestReply {
        media_type: evidence.media_type,
        evidence: evidence.bytes,
        runtime_claims: ledger.claims().to_bytes(),
    }
}

type Reply<T> = Result<Response<T>, Status>;
type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Bastion for TestService {
    type WatchRunStream = Replies<RunProgress>;
    type FetchRunStream = Replies<FetchRunReply>;

    async fn attest(&self, request: Request<AttestRequest>) -> Reply<AttestReply> {
        self.called("Attest");
        let info = request.extensions().get::<SessionInfo>().unwrap().clone();
        let request = request.into_inner();
        let mut reply = match &self.behaviour.attest {
            Some(attest) => attest(request, info).await,
            None => honest_reply(&request, &info, &self.behaviour.ledger),
        };
        (self.behaviour.change_attest)(&mut reply);
        Ok(Response::new(reply))
    }

    async fn hello(&self, request: Request<HelloRequest>) -> Reply<HelloReply> {
        self.called("Hello");
        let info = request.extensions().get::<SessionInfo>().unwrap();
        let mut reply = HelloReply {
            protocol_version: 1,
            server_version: "0.1.0".into(),
            max_message_bytes: 1 << 22,
            max_upload_bytes: 1 << 30,
            max_model_bytes: 1 << 24,
            principal: info.principal.to_vec(),
            time_unix_ms: 1_000,
            ledger_head: Some(self.behaviour.ledger.wire_head()),
        };
        (self.behaviour.change_hello)(&mut reply);
        Ok(Response::new(reply))
    }

    async fn upload_dataset(&self, request: Request<Streaming<UploadDatasetRequest>>) -> Reply<Dataset> {
        self.called("UploadDataset");
        self.maybe_hang().await;
        let owner = request.extensions().get::<SessionInfo>().unwrap().principal;
        self.read_upload(request.into_inner(), owner)
            .await
            .map(Response::new)
    }

    async fn list_datasets(&self, _: Request<ListDatasetsRequest>) -> Reply<ListDatasetsReply> {
        self.called("ListDatasets");
        self.maybe_hang().await;
        Ok(Response::new(ListDatasetsReply { datasets: vec![] }))
    }

    async fn find_model(&self, request: Request<FindModelRequest>) -> Reply<FindModelReply> {
        self.called("FindModel");
        let request = request.into_inner();
        let held = self.models.lock().unwrap().contains(&request.model_id);
        let storages_held = vec![self.behaviour.forgets_storages; request.storage_digests.len()];
        Ok(Response::new(FindModelReply { held, storages_held }))
    }

    async fn upload_model(&self, request: Request<Streaming<UploadModelRequest>>) -> Reply<UploadModelReply> {
        self.called("UploadModel");
        let mut stream = request.into_inner();
        let mut archive = Vec::new();
        while let Some(message) = stream.next().await.transpose()? {
            match message.part {
                Some(upload_model_request::Part::Chunk(chunk)) => archive.extend(chunk),
                Some(upload_model_request::Part::HeldStorage(_)) => {
                    return Err(refusal(Code::NotFound, "unknown-model"));
                }
                _ => {}
            }
        }
        let model_id = Digest32::of(&archive).as_bytes().to_vec();
        self.models.lock().unwrap().push(model_id.clone());
        Ok(Response::new(UploadModelReply { model_id }))
    }

    async fn price_run(&self, _: Request<PriceRunRequest>) -> Reply<Quote> {
        self.called("PriceRun");
        let mut status = Status::with_details(
            Code::InvalidArgument,
            "1 refusal",
            br#"[{"node":"sum"}]"#.to_vec().into(),
        );
        status
            .metadata_mut()
            .insert("bastionai-reason", "graph-refused".parse().unwrap());
        Err(status)
    }

    async fn price_evaluation(&self, _: Request<PriceEvaluationRequest>) -> Reply<EvaluationQuote> {
        Err(refusal(Code::InvalidArgument, "graph-refused"))
    }

    async fn start_run(&self, _: Request<StartRunRequest>) -> Reply<Run> {
        self.called("StartRun");
        Err(refusal(Code::FailedPrecondition, "budget-exceeded"))
    }

    async fn cancel_run(&self, _: Request<CancelRunRequest>) -> Reply<Run> {
        self.called("CancelRun");
        Err(refusal(Code::NotFound, "unknown-run"))
    }

    async fn suspend_run(&self, _: Request<SuspendRunRequest>) -> Reply<Run> {
        self.called("SuspendRun");
        Err(refusal(Code::NotFound, "unknown-run"))
    }

    async fn resume_run(&self, _: Request<ResumeRunRequest>) -> Reply<Run> {
        self.called("ResumeRun");
        Err(refusal(Code::NotFound, "unknown-run"))
    }

    async fn list_runs(&self, _: Request<ListRunsRequest>) -> Reply<ListRunsReply> {
        self.called("ListRuns");
        Ok(Response::new(ListRunsReply { runs: vec![] }))
    }

    async fn watch_run(&self, _: Request<WatchRunRequest>) -> Reply<Self::WatchRunStream> {
        self.called("WatchRun");
        let shown = tokio_stream::iter(self.behaviour.progress.clone()).map(Ok);
        let ends = self.behaviour.progress_ends;
        let rest = tokio_stream::pending().take_while(move |_: &Result<RunProgress, Status>| !ends);
        let stream: Self::WatchRunStream = if ends {
            Box::pin(shown)
        } else {
            Box::pin(shown.chain(rest))
        };
        Ok(Response::new(stream))
    }

    async fn fetch_run(&self, _: Request<FetchRunRequest>) -> Reply<Self::FetchRunStream> {
        self.called("FetchRun");
        Ok(Response::new(Box::pin(
            tokio_stream::iter(self.behaviour.fetch.clone()).map(Ok),
        )))
    }

    async fn withdraw_dataset(&self, _: Request<WithdrawDatasetRequest>) -> Reply<Dataset> {
        self.called("WithdrawDataset");
        Err(refusal(Code::NotFound, "unknown-dataset"))
    }

    async fn remove_dataset(&self, _: Request<RemoveDatasetRequest>) -> Reply<Dataset> {
        self.called("RemoveDataset");
        Err(refusal(Code::FailedPrecondition, "dataset-in-use"))
    }

    async fn fetch_receipt(&self, _: Request<FetchReceiptRequest>) -> Reply<FetchReceiptReply> {
        self.called("FetchReceipt");
        let header = self.behaviour.fetch.iter().find_map(|reply| match &reply.part {
            Some(fetch_run_reply::Part::Header(header)) => Some(header.receipt_dsse_json.clone()),
            _ => None,
        });
        Ok(Response::new(FetchReceiptReply {
            receipt_dsse_json: header.unwrap_or_default(),
        }))
    }

    async fn show_ledger(&self, request: Request<ShowLedgerRequest>) -> Reply<ShowLedgerReply> {
        self.called("ShowLedger");
        let behaviour = &self.behaviour;
        let ledger = behaviour.shown_ledger.as_ref().unwrap_or(&behaviour.ledger);
        let request = request.into_inner();
        self.asked.lock().unwrap().push(request.clone());
        let extension = ledger.links();
        let extension = extension.iter().skip(request.known_sequence as usize);
        // The genesis concerns nobody here.
        let first = request.from_sequence.max(1);
        let end = ledger.entries.len() as u64;
        let shown = if request.links_only { end..end } else { first..end };
        let entries: Vec<_> = shown.clone().take(behaviour.page).map(entry).collect();
        let mut reply = ShowLedgerReply {
            head: Some(ledger.wire_head()),
            more: (entries.len() as u64) < shown.count() as u64,
            entries,
            extension: extension.map(|link| link.to_bytes().to_vec()).collect(),
        };
        (self.behaviour.change_show_ledger)(&mut reply);
        Ok(Response::new(reply))
    }
}
