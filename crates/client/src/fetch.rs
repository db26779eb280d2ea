//! Fetching a run's receipt and weights, and checking both before anybody sees them.

use crate::convert::required;
use crate::errors::ClientError;
use crate::receipts::audit_receipt_under;
use crate::rows::Transfer;
use crate::runs::Run;
use crate::session::AppraisedPeer;
use bastionai_graph::dtype::DType;
use bastionai_ledger::id::{Digest32, LedgerPublicKey, RunId};
use bastionai_ledger::receipt::Receipt;
use bastionai_ledger::weights::{self, weights_digest};
use bastionai_wire::v1::{self, FetchRunRequest, fetch_run_reply::Part};
use serde::Serialize;
use tonic::Streaming;

/// A finished run: what is proven about it, and its weights.
#[derive(Clone, Debug)]
pub struct FetchedRun {
    /// The signed statement, read from `receipt_dsse_json` after its signature was checked.
    pub receipt: Receipt,
    /// The DSSE envelope as it came: what an auditor checks offline.
    pub receipt_dsse_json: Vec<u8>,
    /// One per distinct tensor; `names` lists every name that shares it.
    pub weights: Vec<WeightTensor>,
}

/// What is proven about a finished run.
#[derive(Clone, Debug)]
pub struct FetchedReceipt {
    /// The signed statement, read from `receipt_dsse_json` after its signature was checked.
    pub receipt: Receipt,
    /// The DSSE envelope as it came: what an auditor checks offline.
    pub receipt_dsse_json: Vec<u8>,
}

/// A trained tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WeightTensor {
    /// Every fully qualified name that shares it.
    pub names: Vec<String>,
    /// Element type.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<u64>,
    /// Row-major, little-endian.
    #[serde(skip)]
    pub bytes: Vec<u8>,
}

/// Which of a run's weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightsAt {
    /// A kept step; absent: the last.
    pub step: Option<u64>,
    /// The average of the iterates up to that step instead of the iterate.
    pub ema: bool,
}

impl AppraisedPeer {
    /// Fetches the receipt and the trained weights of a run.
    ///
    /// # Errors
    /// As [`AppraisedPeer::fetch_weights`].
    pub async fn fetch_run(
        &self,
        run: RunId,
        expected: Option<&Run>,
        on_progress: &mut (dyn FnMut(Transfer) + Send),
    ) -> Result<FetchedRun, ClientError> {
        self.fetch_weights(run, WeightsAt::default(), expected, on_progress)
            .await
    }

    /// Fetches the receipt of a run and one set of its weights: the trained ones, or a set kept on the way.
    ///
    /// # Guarantee
    /// The receipt is signed by the ledger key bound in the appraised evidence, and its own evidence meets
    /// the same policy, so that [`crate::audit_receipt`] accepts it later; it speaks of this run and, if `expected`
    /// is given, of its run digest; the weights have the digest in the receipt. Otherwise nothing is
    /// returned.
    /// # Errors
    /// [`ClientError::NotAllowed`] if a policy does not release them to this client,
    /// [`ClientError::ReceiptRefused`] if anything does not check out.
    pub async fn fetch_weights(
        &self,
        run: RunId,
        at: WeightsAt,
        expected: Option<&Run>,
        on_progress: &mut (dyn FnMut(Transfer) + Send),
    ) -> Result<FetchedRun, ClientError> {
        let request = FetchRunRequest {
            run_id: run.as_bytes().to_vec(),
            step: at.step.unwrap_or(0),
            ema: at.ema,
        };
        let mut stream = self.answer(CALL, self.client().fetch_run(request)).await?;
        let header = match self.next_part(&mut stream).await? {
            Some(Part::Header(header)) => header,
            _ => return Err(ClientError::protocol(CALL, "the header is missing")),
        };
        let receipt = self
            .check_receipt(run, expected, &header.receipt_dsse_json)
            .await?;
        let total = total_bytes(&header.tensors)?;
        let data = self.receive(&mut stream, total, on_progress).await?;
        let weights = check_weights(&receipt, at, header.tensors, &data)?;
        Ok(FetchedRun {
            receipt,
            receipt_dsse_json: header.receipt_dsse_json,
            weights,
        })
    }

    /// Fetches the receipt of a run that was charged, however it ended and whoever has its weights: for its
    /// scientist, the owners of its datasets, and its recipients.
    ///
    /// # Guarantee
    /// That of [`AppraisedPeer::fetch_run`], the weights aside.
    /// # Errors
    /// [`ClientError::NotFound`] if there is no such run or it does not concern this client; a refusal with reason
    /// `not-releasable` if it is not over or was never charged; [`ClientError::ReceiptRefused`].
    pub async fn fetch_receipt(
        &self,
        run: RunId,
        expected: Option<&Run>,
    ) -> Result<FetchedReceipt, ClientError> {
        let request = v1::FetchReceiptRequest {
            run_id: run.as_bytes().to_vec(),
        };
        let reply = self
            .answer("FetchReceipt", self.client().fetch_receipt(request))
            .await?;
        let receipt_dsse_json = reply.receipt_dsse_json;
        let receipt = self.check_receipt(run, expected, &receipt_dsse_json).await?;
        Ok(FetchedReceipt {
            receipt,
            receipt_dsse_json,
        })
    }

    /// Checks a receipt against this session, and as an auditor will.
    async fn check_receipt(
        &self,
        run: RunId,
        expected: Option<&Run>,
        envelope: &[u8],
    ) -> Result<Receipt, ClientError> {
        let receipt = check_receipt(run, expected, envelope, &self.ledger_key())?;
        // What is kept must convince an auditor later, who has nothing but this file and a policy.
        let now_unix_ms = self.attestation().verified_unix_ms();
        let (envelope, policy) = (envelope.to_vec(), self.policy().clone());
        let anchors = self.trust_anchors().clone();
        // Prices are recomputed: seconds of arithmetic, which would keep the session from being driven.
        tokio::task::spawn_blocking(move || audit_receipt_under(&envelope, &policy, &anchors, now_unix_ms))
            .await
            .map_err(|error| ClientError::Setup(format!("the receipt's check broke off: {error}")))??;
        Ok(receipt)
    }

    async fn receive(
        &self,
        stream: &mut Streaming<v1::FetchRunReply>,
        total: u64,
        on_progress: &mut (dyn FnMut(Transfer) + Send),
    ) -> Result<Vec<u8>, ClientError> {
        let mut data = Vec::new();
        while let Some(part) = self.next_part(stream).await? {
            let Part::Chunk(chunk) = part else {
                return Err(ClientError::protocol(CALL, "a second header"));
            };
            if data.len() as u64 + chunk.len() as u64 > total {
                return Err(ClientError::protocol(CALL, "more bytes than the header says"));
            }
            data.extend_from_slice(&chunk);
            on_progress(Transfer {
                done_bytes: data.len() as u64,
                total_bytes: Some(total),
            });
        }
        if data.len() as u64 != total {
            return Err(ClientError::protocol(CALL, "fewer bytes than the header says"));
        }
        Ok(data)
    }

    async fn next_part(
        &self,
        stream: &mut Streaming<v1::FetchRunReply>,
    ) -> Result<Option<Part>, ClientError> {
        let limit = self.call_timeout();
        let message = tokio::time::timeout(limit, stream.message())
            .await
            .map_err(|_| ClientError::TimedOut {
                call: CALL,
                seconds: limit.as_secs(),
            })?
            .map_err(|status| self.refusal(CALL, &status))?;
        message
            .map(|reply| required(CALL, "the part", reply.part))
            .transpose()
    }
}

fn check_receipt(
    run: RunId,
    expected: Option<&Run>,
    envelope: &[u8],
    key: &LedgerPublicKey,
) -> Result<Receipt, ClientError> {
    let refused = |what: String| ClientError::ReceiptRefused {
        run: run.to_string(),
        what,
    };
    let receipt = Receipt::verify_offline(envelope, key).map_err(|error| refused(error.to_string()))?;
    if receipt.run.id != run {
        return Err(refused(format!("it is the receipt of run {}", receipt.run.id)));
    }
    if let Some(expected) = expected.filter(|expected| expected.run_digest != receipt.run.run_digest) {
        let (found, wanted) = (receipt.run.run_digest, expected.run_digest);
        return Err(refused(format!(
            "it covers run digest {found}, the run that was started has {wanted}"
        )));
    }
    Ok(receipt)
}

/// Sum of the tensors' sizes, each checked against its own dtype and shape.
fn total_bytes(tensors: &[v1::WeightTensor]) -> Result<u64, ClientError> {
    tensors.iter().try_fold(0u64, |total, tensor| {
        let width = dtype(tensor)?.size_bytes() as u64;
        let size = tensor
            .shape
            .iter()
            .try_fold(width, |size, &extent| size.checked_mul(extent));
        if size != Some(tensor.size_bytes) {
            return Err(ClientError::protocol(
                CALL,
                "a tensor's size is not that of its shape",
            ));
        }
        total
            .checked_add(tensor.size_bytes)
            .filter(|&total| total <= MAX_WEIGHT_BYTES)
            .ok_or_else(|| {
                ClientError::protocol(CALL, format!("more than {MAX_WEIGHT_BYTES} bytes of weights"))
            })
    })
}

fn check_weights(
    receipt: &Receipt,
    at: WeightsAt,
    tensors: Vec<v1::WeightTensor>,
    data: &[u8],
) -> Result<Vec<WeightTensor>, ClientError> {
    let described: Vec<weights::WeightTensor> = tensors
        .iter()
        .map(|tensor| weights::WeightTensor {
            names: tensor.names.clone(),
            dtype: tensor.dtype.clone(),
            shape: tensor.shape.clone(),
            size_bytes: tensor.size_bytes,
        })
        .collect();
    let found = weights_digest(&described, data);
    let wanted = expected_digest(receipt, at);
    if wanted != Some(found) {
        let wanted = wanted.map_or("no such weights".to_owned(), |digest| digest.to_string());
        let what = format!("the weights received have digest {found}, it covers {wanted}");
        return Err(ClientError::ReceiptRefused {
            run: receipt.run.id.to_string(),
            what,
        });
    }
    let mut rest = data;
    tensors
        .into_iter()
        .map(|tensor| {
            let (bytes, tail) = rest.split_at(tensor.size_bytes as usize);
            rest = tail;
            let dtype = dtype(&tensor)?;
            Ok(WeightTensor {
                names: tensor.names,
                dtype,
                shape: tensor.shape,
                bytes: bytes.to_vec(),
            })
        })
        .collect()
}

/// What the receipt says of a set of weights.
fn expected_digest(receipt: &Receipt, at: WeightsAt) -> Option<Digest32> {
    let run = &receipt.run;
    let step = at.step.unwrap_or(run.steps);
    if step == run.steps && !at.ema {
        return run.weights_digest;
    }
    let kept = run
        .kept
        .iter()
        .find(|kept| (kept.step, kept.ema) == (step, at.ema));
    kept.map(|kept| kept.weights_digest)
}

fn dtype(tensor: &v1::WeightTensor) -> Result<DType, ClientError> {
    [
        DType::U8,
        DType::I32,
        DType::I64,
        DType::F32,
        DType::F64,
        DType::Bool,
    ]
    .into_iter()
    .find(|dtype| dtype.torch_name() == tensor.dtype)
    .ok_or_else(|| ClientError::protocol(CALL, format!("a tensor of dtype {:?}", tensor.dtype)))
}

const CALL: &str = "FetchRun";
/// Largest result held in memory: nothing before this is believed about sizes.
const MAX_WEIGHT_BYTES: u64 = 16 * 1024 * 1024 * 1024;
