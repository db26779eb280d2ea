//! WithdrawDataset and RemoveDataset: an owner stops lending. Withdrawn, no run starts on the dataset any more;
//! removed, its records are gone too. Neither touches a run that has started (rule D7), and neither gives a budget
//! back: the account stays.

use super::blocking;
use crate::acceptor::Peer;
use crate::convert;
use crate::errors::Failure;
use crate::governance;
use crate::log::{Event, Hex};
use crate::state::Server;
use bastionai_ledger::{DatasetId, Ledger, Principal, Refusal};
use bastionai_vault::TransactError;
use bastionai_wire::v1;
use std::sync::Arc;

/// Asked twice, the answer is the same: a client that lost the first answer asks again.
pub(crate) async fn withdraw(
    server: Arc<Server>,
    peer: &Peer,
    request: v1::WithdrawDatasetRequest,
) -> Result<v1::Dataset, Failure> {
    let owner = peer.principal;
    blocking(move || {
        let id = owned(&server, &request.dataset_id, &owner)?;
        match server.vault.withdraw_dataset(&id, owner, server.now_unix_ms()) {
            Ok(()) => Event::DatasetWithdrawn {
                dataset: Hex(id.as_bytes()),
                owner,
            }
            .emit(),
            Err(TransactError::Refused(Refusal::Withdrawn { .. })) => {}
            Err(error) => return Err(error.into()),
        }
        show(&server, &id, &owner)
    })
    .await
}

/// Refused while a run that is not over uses the dataset. Asked twice, the answer is the same.
pub(crate) async fn remove(
    server: Arc<Server>,
    peer: &Peer,
    request: v1::RemoveDatasetRequest,
) -> Result<v1::Dataset, Failure> {
    let owner = peer.principal;
    blocking(move || {
        let id = owned(&server, &request.dataset_id, &owner)?;
        match server.vault.remove_dataset(&id, owner, server.now_unix_ms()) {
            Ok(()) => {
                server
                    .vault
                    .read(|ledger| ledger.dataset(&id).map(|dataset| server.storage.freed(dataset)));
                Event::DatasetRemoved {
                    dataset: Hex(id.as_bytes()),
                    owner,
                }
                .emit();
            }
            Err(TransactError::Refused(Refusal::Removed { .. })) => {}
            Err(error) => return Err(error.into()),
        }
        show(&server, &id, &owner)
    })
    .await
}

fn owned(server: &Server, id: &[u8], owner: &Principal) -> Result<DatasetId, Failure> {
    let find = |ledger: &Ledger| governance::owned_dataset(ledger, id, owner).map(|dataset| dataset.id());
    server.vault.read(find)
}

fn show(server: &Server, id: &DatasetId, owner: &Principal) -> Result<v1::Dataset, Failure> {
    let now_unix_ms = server.now_unix_ms();
    server.vault.read(|ledger| {
        let dataset = governance::owned_dataset(ledger, id.as_bytes(), owner)?;
        Ok(convert::dataset(dataset, owner, now_unix_ms))
    })
}
