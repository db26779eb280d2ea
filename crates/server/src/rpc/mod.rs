//! The gRPC service: one file per flow, each reading parse → authenticate → authorise → reserve → run →
//! commit → reply. This file only hands calls over and turns failures into statuses.

mod attest;
mod datasets;
mod hello;
mod ledger;
mod models;
mod price;
mod release;
mod runs;
mod withdrawal;

#[cfg(test)]
pub(crate) use runs::reserve;

use crate::acceptor::Peer;
use crate::errors::{Failure, Panicked, Reason};
use crate::log::Event;
use crate::state::Server;
use bastionai_ledger::Principal;
use bastionai_wire::v1;
use bastionai_wire::v1::bastion_server::Bastion;
use std::pin::Pin;
use std::sync::Arc;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

/// The service on one listener.
#[derive(Clone)]
pub(crate) struct Service {
    server: Arc<Server>,
}

type Answer<T> = Result<Response<T>, Status>;
type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    pub(crate) fn new(server: Arc<Server>) -> Self {
        Self { server }
    }

    /// The server and the appraisable caller of a call inside an attested session.
    fn enter<M>(&self, request: &Request<M>) -> Result<(Arc<Server>, Peer), Status> {
        let peer = peer(request)?;
        if !peer.is_attested() {
            let message =
                "call Attest first: nothing is answered on a session whose evidence was not asked for";
            return Err(Failure::new(Reason::NotAttested, message).into());
        }
        Ok((Arc::clone(&self.server), peer))
    }
}

/// The peer of the connection that the call came over.
fn peer<M>(request: &Request<M>) -> Result<Peer, Status> {
    let missing = || Failure::new(Reason::NotAttested, "the call came over no TLS session").into();
    request.extensions().get::<Peer>().cloned().ok_or_else(missing)
}

/// A flow's outcome as an answer; failures are logged by reason, faults of ours with their causes.
fn answer<T>(flow: &'static str, principal: Principal, outcome: Result<T, Failure>) -> Answer<T> {
    outcome
        .map(Response::new)
        .map_err(|failure| status(flow, principal, failure))
}

fn status(flow: &'static str, principal: Principal, failure: Failure) -> Status {
    let reason = failure.reason.name();
    match failure.chain() {
        Some(chain) => Event::CallFailed {
            flow,
            principal,
            reason,
            chain: &chain,
        }
        .emit(),
        None => Event::CallRefused {
            flow,
            principal,
            reason,
        }
        .emit(),
    }
    failure.into()
}

/// Runs blocking work (disk, CPU) off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Failure::internal(Panicked)),
    }
}

#[tonic::async_trait]
impl Bastion for Service {
    async fn attest(&self, request: Request<v1::AttestRequest>) -> Answer<v1::AttestReply> {
        let peer = peer(&request)?;
        answer(
            "attest",
            peer.principal,
            attest::attest(&self.server, &peer, &request.into_inner()).await,
        )
    }

    async fn hello(&self, request: Request<v1::HelloRequest>) -> Answer<v1::HelloReply> {
        let (server, peer) = self.enter(&request)?;
        answer(
            "hello",
            peer.principal,
            hello::hello(&server, &peer, &request.into_inner()),
        )
    }

    async fn upload_dataset(
        &self,
        request: Request<Streaming<v1::UploadDatasetRequest>>,
    ) -> Answer<v1::Dataset> {
        let (server, peer) = self.enter(&request)?;
        answer(
            "upload_dataset",
            peer.principal,
            datasets::upload(server, &peer, request.into_inner()).await,
        )
    }

    async fn list_datasets(
        &self,
        request: Request<v1::ListDatasetsRequest>,
    ) -> Answer<v1::ListDatasetsReply> {
        let (server, peer) = self.enter(&request)?;
        answer(
            "list_datasets",
            peer.principal,
            datasets::list(server, &peer).await,
        )
    }

    async fn find_model(&self, request: Request<v1::FindModelRequest>) -> Answer<v1::FindModelReply> {
        let (server, peer) = self.enter(&request)?;
        answer(
            "find_model",
            peer.principal,
            models::find(server, &peer, request.into_inner()).await,
        )
    }

    async fn withdraw_dataset(&self, request: Request<v1::WithdrawDatasetRequest>) -> Answer<v1::Dataset> {
        let (server, peer) = self.enter(&request)?;
        answer(
            "withdraw_dataset",
            peer.principal,
            withdrawal::withdraw(server, &peer, request.into_inner()).await,
        )
    }

    async fn remove_dataset(&self, request: Request<v1::RemoveDatasetRequest>) -> Answer<v1::Dataset> {
        let (server, peer) = self.enter(&request)?;
        answer(
            "remove_dataset",
            peer.principal,
            withdrawal::remove(server, &peer, request.into_inner()).await,
        )
    }

    async fn upload_model(
        &self,
        request: Request<Streaming<v1::UploadModelRequest>>,
    ) -> Answer<v1::UploadModelReply> {
        let (server, peer) = self.enter(&request)?;
        answer(
            "upload_model",
            peer.principal,
            models::upload(server, &peer, request.into_inner()).await,
        )
    }

    async fn price_run(&self, request: Request<v1::PriceRunRequest>) -> Answer<v1::Quote> {
        let (server, peer) = self.enter(&request)?;
        answer(
            "price_run",
            peer.principal,
            price::training(server, &peer, request.into_inner()).await,
        )
    }

    async fn price_evaluation(
        &self,
        request: Request<v1::PriceEvaluationRequest>,
    ) -> Answer<v1::EvaluationQuote> {
        let (server, peer) = self.enter(&request)?;
        answer(
            "price_evaluation",
            peer.principal,
            price::evaluation(server, &peer, request.into_inner()).await,
        )
    }

    async fn start_run(&self, request: Request<v1::StartRunRequest>) -> Answer<v1::Run> {
        let (server, peer) = self.enter(&request)?;
        answer(
            "start_run",
            peer.principal,
            runs::start(server, &peer, request.into_inner()).await,
        )
    }

    async fn cancel_run(&self, request: Request<v1::CancelRunRequest>) -> Answer<v1::Run> {
        let (server, peer) = self.enter(&request)?;
        answer(
            "cancel_run",
            peer.principal,
            runs::cancel(server, &peer, request.into_inner()).await,
        )
    }

    async fn suspend_run(&self, request: Request<v1::SuspendRunRequest>) -> Answer<v1::Run> {
        let (server, peer) = self.enter(&request)?;
        answer(
            "suspend_run",
            peer.principal,
            runs::suspend(server, &peer, request.into_inner()).await,
        )
    }

    async fn resume_run(&self, request: Request<v1::ResumeRunRequest>) -> Answer<v1::Run> {
        let (server, peer) = self.enter(&request)?;
        answer(
            "resume_run",
            peer.principal,
            runs::resume(server, &peer, request.into_inner()).await,
        )
    }

    async fn list_runs(&self, request: Request<v1::ListRunsRequest>) -> Answer<v1::ListRunsReply> {
        let (server, peer) = self.enter(&request)?;
        answer("list_runs", peer.principal, runs::list(server, &peer).await)
    }

    type WatchRunStream = Replies<v1::RunProgress>;

    async fn watch_run(&self, request: Request<v1::WatchRunRequest>) -> Answer<Self::WatchRunStream> {
        let (server, peer) = self.enter(&request)?;
        answer(
            "watch_run",
            peer.principal,
            runs::watch(server, &peer, &request.into_inner()),
        )
    }

    type FetchRunStream = Replies<v1::FetchRunReply>;

    async fn fetch_run(&self, request: Request<v1::FetchRunRequest>) -> Answer<Self::FetchRunStream> {
        let (server, peer) = self.enter(&request)?;
        answer(
            "fetch_run",
            peer.principal,
            release::fetch(server, &peer, request.into_inner()).await,
        )
    }

    async fn fetch_receipt(
        &self,
        request: Request<v1::FetchReceiptRequest>,
    ) -> Answer<v1::FetchReceiptReply> {
        let (server, peer) = self.enter(&request)?;
        answer(
            "fetch_receipt",
            peer.principal,
            release::receipt(server, &peer, request.into_inner()).await,
        )
    }

    async fn show_ledger(&self, request: Request<v1::ShowLedgerRequest>) -> Answer<v1::ShowLedgerReply> {
        let (server, peer) = self.enter(&request)?;
        answer(
            "show_ledger",
            peer.principal,
            ledger::show(server, &peer, request.into_inner()).await,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panics_words_reach_neither_the_caller_nor_the_log() {
        let outcome: Result<(), Failure> = blocking(|| panic!("row 7 is 3.14")).await;
        let failure = outcome.unwrap_err();
        assert_eq!(failure.chain().as_deref(), Some("panicked"));
        assert!(!Status::from(failure).message().contains("3.14"));
    }
}
