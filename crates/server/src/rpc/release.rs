//! FetchRun: the receipt, then the weights, for those every owner allows. The `Released` entry is durable
//! before the first byte leaves. FetchReceipt: the receipt alone, for everyone whom the run concerns.

use super::{Replies, blocking};
use crate::acceptor::Peer;
use crate::errors::{Failure, Reason};
use crate::governance;
use crate::log::{Event, Hex};
use crate::state::Server;
use bastionai_ledger::receipt::boots_due;
use bastionai_ledger::{BootId, Principal, RunId, RuntimeEvidence, WeightTensor};
use bastionai_vault::{Weights, WeightsAt};
use bastionai_wire::v1;
use bastionai_wire::v1::fetch_run_reply::Part;
use std::sync::Arc;

pub(crate) async fn fetch(
    server: Arc<Server>,
    peer: &Peer,
    request: v1::FetchRunRequest,
) -> Result<Replies<v1::FetchRunReply>, Failure> {
    let recipient = peer.principal;
    let (header, weights) = blocking(move || release(&server, &request, recipient)).await?;
    Ok(Box::pin(Parts {
        header: Some(header),
        weights,
        sent: 0,
    }))
}

/// The signed statement about a run that was charged, however it ended, for its scientist, its owners and those who may
/// receive its weights. It holds nothing that they could not read in the ledger: no entry is due.
pub(crate) async fn receipt(
    server: Arc<Server>,
    peer: &Peer,
    request: v1::FetchReceiptRequest,
) -> Result<v1::FetchReceiptReply, Failure> {
    let caller = peer.principal;
    blocking(move || {
        let (run, runner) = server.vault.read(|ledger| {
            let run = governance::visible_run(ledger, &request.run_id, &caller)?;
            governance::has_receipt(run)?;
            Ok::<_, Failure>((run.id(), run.reservation().boot))
        })?;
        let receipt_dsse_json = sign_receipt(&server, run, runner, server.now_unix_ms())?;
        Ok(v1::FetchReceiptReply { receipt_dsse_json })
    })
    .await
}

fn release(
    server: &Server,
    request: &v1::FetchRunRequest,
    recipient: Principal,
) -> Result<(v1::FetchHeader, Weights), Failure> {
    let at = WeightsAt {
        step: request.step,
        ema: request.ema,
    };
    let (run, runner, receipt) = server.vault.read(|ledger| {
        let run = governance::visible_run(ledger, &request.run_id, &recipient)?;
        governance::may_fetch(ledger, run, &recipient)?;
        governance::has_weights(run, at)?;
        let not_yet = || Failure::new(Reason::NotReleasable, "the run is not committed");
        let receipt = ledger.budget_receipt(&run.id()).ok_or_else(not_yet)?;
        Ok::<_, Failure>((run.id(), run.reservation().boot, receipt))
    })?;
    let now_unix_ms = server.now_unix_ms();
    let weights = server
        .vault
        .release_weights_at(receipt, at, recipient, now_unix_ms)?;
    Event::Released {
        run: Hex(run.as_bytes()),
        recipient,
    }
    .emit();
    let receipt_dsse_json = sign_receipt(server, run, runner, now_unix_ms)?;
    let tensors = weights.tensors.iter().map(tensor).collect();
    Ok((
        v1::FetchHeader {
            receipt_dsse_json,
            tensors,
        },
        weights,
    ))
}

fn sign_receipt(
    server: &Server,
    run: RunId,
    reserved_by: BootId,
    now_unix_ms: u64,
) -> Result<Vec<u8>, Failure> {
    let issuer = server.boot.evidence.clone();
    let runner = if reserved_by == issuer.boot {
        None
    } else {
        Some(evidence_of(server, reserved_by)?)
    };
    let resumed_by = server.vault.read(|ledger| {
        let found = ledger.run(&run);
        found.map_or(Vec::new(), |run| run.resumed_by().to_vec())
    });
    let resumers = boots_due(reserved_by, &resumed_by, issuer.boot)
        .map(|boot| evidence_of(server, boot))
        .collect::<Result<_, _>>()?;
    let receipt = server
        .vault
        .read(|ledger| bastionai_ledger::Receipt::issue(ledger, &run, issuer, runner, resumers, now_unix_ms))
        .map_err(Failure::internal)?;
    Ok(receipt.sign(&server.boot.key))
}

fn evidence_of(server: &Server, boot: BootId) -> Result<RuntimeEvidence, Failure> {
    Ok(server.vault.boot_evidence(&boot)?)
}

fn tensor(tensor: &WeightTensor) -> v1::WeightTensor {
    v1::WeightTensor {
        names: tensor.names.clone(),
        dtype: tensor.dtype.clone(),
        shape: tensor.shape.clone(),
        size_bytes: tensor.size_bytes,
    }
}

/// The reply's messages: header, then chunks.
struct Parts {
    header: Option<v1::FetchHeader>,
    weights: Weights,
    sent: usize,
}

impl tokio_stream::Stream for Parts {
    type Item = Result<v1::FetchRunReply, tonic::Status>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let part = if let Some(header) = self.header.take() {
            Part::Header(header)
        } else {
            let end = self.weights.data.len().min(self.sent + CHUNK_BYTES);
            if self.sent == end {
                return std::task::Poll::Ready(None);
            }
            let chunk = self.weights.data[self.sent..end].to_vec();
            self.sent = end;
            Part::Chunk(chunk)
        };
        std::task::Poll::Ready(Some(Ok(v1::FetchRunReply { part: Some(part) })))
    }
}

const CHUNK_BYTES: usize = 1 << 20;
