//! UploadDataset and ListDatasets. An upload becomes visible in one step, at its finish; before that, whatever
//! ends it (a bad row, a lost client, a full disk, a crash) leaves nothing.

use super::blocking;
use crate::acceptor::Peer;
use crate::convert;
use crate::errors::{Failure, Reason};
use crate::log::{Event, Hex};
use crate::state::{Server, UploadPlace};
use crate::storage::{self, Claim};
use bastionai_graph::contract::{DataContract, UnitCount};
use bastionai_ledger::{Principal, RunLimits};
use bastionai_vault::{Upload, UploadHeader};
use bastionai_wire::v1;
use bastionai_wire::v1::upload_dataset_request::Part;
use std::sync::Arc;
use tonic::Streaming;

pub(crate) async fn upload(
    server: Arc<Server>,
    peer: &Peer,
    mut parts: Streaming<v1::UploadDatasetRequest>,
) -> Result<v1::Dataset, Failure> {
    server.accepts_work()?;
    let place = server.upload_place(peer.principal)?;
    let header = match next(&server, &place, &mut parts).await? {
        Some(Part::Header(header)) => header,
        _ => {
            return Err(Failure::malformed(
                "the first message of an upload must be its header",
            ));
        }
    };
    let outcome = receive(&server, peer.principal, &place, header, &mut parts).await;
    if outcome.is_err() {
        Event::UploadDropped {
            owner: peer.principal,
        }
        .emit();
    }
    outcome
}

/// Datasets are public by what they declare: everyone attested sees names, contracts, terms and budgets of what
/// is offered. What was withdrawn is its owner's to see alone: the account goes on.
pub(crate) async fn list(server: Arc<Server>, peer: &Peer) -> Result<v1::ListDatasetsReply, Failure> {
    let caller = peer.principal;
    blocking(move || {
        let now_unix_ms = server.now_unix_ms();
        let mut datasets: Vec<_> = server.vault.read(|ledger| {
            let shown = ledger
                .datasets()
                .filter(|dataset| !dataset.is_withdrawn() || dataset.owner() == caller);
            shown
                .map(|dataset| convert::dataset(dataset, &caller, now_unix_ms))
                .collect()
        });
        datasets
            .sort_by(|one, other| (one.created_unix_ms, &one.id).cmp(&(other.created_unix_ms, &other.id)));
        Ok(v1::ListDatasetsReply { datasets })
    })
    .await
}

/// An upload in progress. Dropping it drops what was stored.
struct Progress {
    upload: Upload,
    contract: Arc<DataContract>,
    claim: Claim,
    /// Records of each unit so far, where the contract has a column of units.
    units: Option<UnitCount>,
    rows: u64,
    bytes: u64,
}

async fn receive(
    server: &Arc<Server>,
    owner: Principal,
    place: &UploadPlace,
    header: v1::UploadHeader,
    parts: &mut Streaming<v1::UploadDatasetRequest>,
) -> Result<v1::Dataset, Failure> {
    let mut progress = begin(Arc::clone(server), owner, header).await?;
    loop {
        match next(server, place, parts).await? {
            Some(Part::Records(batch)) => progress = push(server, progress, batch).await?,
            Some(Part::Finish(finish)) => {
                if next(server, place, parts).await?.is_some() {
                    return Err(Failure::malformed("nothing may follow the finish of an upload"));
                }
                return commit(Arc::clone(server), owner, progress, finish.rows).await;
            }
            Some(Part::Header(_)) => return Err(Failure::malformed("an upload has one header")),
            None => {
                let message = "the upload ended without its finish; nothing of it was kept";
                return Err(Failure::new(Reason::UploadIncomplete, message));
            }
        }
    }
}

async fn begin(server: Arc<Server>, owner: Principal, header: v1::UploadHeader) -> Result<Progress, Failure> {
    blocking(move || {
        let contract = DataContract::parse_json(&header.contract_json)
            .map_err(|error| Failure::of(Reason::ContractInvalid, error))?;
        let kind = convert::kind_from_wire(header.kind)?;
        let limits = &server.config.limits;
        let run_limits = RunLimits {
            max_starts_per_day: limits.starts_per_day,
            max_failed_runs: limits.failed_runs_per_dataset,
        };
        let policy = convert::policy_from_wire(&header.policy.unwrap_or_default(), kind, run_limits)?;
        let stored_bytes = contract.record_bytes().saturating_mul(contract.declared_size);
        if stored_bytes > limits.upload_bytes {
            let message = format!(
                "{} records of {} bytes are {stored_bytes} bytes, the server stores at most {} for one dataset",
                contract.declared_size,
                contract.record_bytes(),
                limits.upload_bytes
            );
            return Err(Failure::new(Reason::UploadTooLarge, message));
        }
        let claimed = storage::stored_bytes(&contract, &header.contract_json);
        let free_bytes = storage::free_bytes(&server.config.data_dir)?;
        let claim = server.storage.claim(owner, claimed, free_bytes)?;
        let new = UploadHeader {
            name: convert::dataset_name(&header.name)?,
            kind,
            owner,
            contract_json: String::from_utf8(contract.to_canonical_json()).map_err(Failure::internal)?,
            declared_size: contract.declared_size,
            column_bytes: contract.stored_column_bytes(),
            policy,
        };
        let upload = server.vault.begin_upload(new)?;
        let units = contract.unit_column().map(UnitCount::new);
        Ok(Progress { upload, contract: Arc::new(contract), claim, units, rows: 0, bytes: 0 })
    })
    .await
}

/// Checks every row against the contract again: the sender may be hostile, and a value outside the contract
/// would become an oracle in training (rule G4).
async fn push(server: &Server, mut progress: Progress, batch: v1::RecordBatch) -> Result<Progress, Failure> {
    let limit = server.config.limits.upload_bytes;
    blocking(move || {
        let columns: Vec<&[u8]> = batch.columns.iter().map(Vec::as_slice).collect();
        progress.bytes += columns.iter().map(|column| column.len() as u64).sum::<u64>();
        if progress.bytes > limit {
            let message = format!("the upload is longer than {limit} bytes; nothing of it was kept");
            return Err(Failure::new(Reason::UploadTooLarge, message));
        }
        let rows = u64::from(batch.rows);
        if rows == 0 {
            return Err(Failure::malformed(
                "a batch of an upload has no rows; leave it out",
            ));
        }
        let checked = progress.contract.check_batch(rows, &columns);
        let counted = checked.and_then(|()| match (&mut progress.units, columns.last()) {
            (Some(units), Some(identifiers)) => units.add(identifiers),
            _ => Ok(()),
        });
        counted.map_err(|error| {
            let message = format!("in the batch that starts at row {}: {error}", progress.rows);
            Failure::new(Reason::OutsideContract, message)
        })?;
        progress.upload.push(rows, &columns)?;
        progress.rows += rows;
        Ok(progress)
    })
    .await
}

async fn commit(
    server: Arc<Server>,
    owner: Principal,
    progress: Progress,
    rows: u64,
) -> Result<v1::Dataset, Failure> {
    blocking(move || {
        server.accepts_work()?;
        if progress.rows == 0 {
            let message = "the upload has no rows: a dataset has at least one; nothing was kept";
            return Err(Failure::new(Reason::UploadIncomplete, message));
        }
        let now_unix_ms = server.now_unix_ms();
        let id = progress.upload.finish(rows, now_unix_ms)?;
        progress.claim.entered();
        Event::DatasetCreated {
            dataset: Hex(id.as_bytes()),
            owner,
        }
        .emit();
        server.vault.read(|ledger| {
            let dataset = ledger
                .dataset(&id)
                .ok_or_else(|| Failure::new(Reason::UnknownDataset, "the dataset vanished"))?;
            Ok(convert::dataset(dataset, &owner, now_unix_ms))
        })
    })
    .await
}

async fn next(
    server: &Server,
    place: &UploadPlace,
    parts: &mut Streaming<v1::UploadDatasetRequest>,
) -> Result<Option<Part>, Failure> {
    match server.next_part(place, parts).await? {
        None => Ok(None),
        Some(message) => message
            .part
            .map(Some)
            .ok_or_else(|| Failure::malformed("a message of the upload is empty")),
    }
}
