//! The owner's way out: withdraw a dataset, or have it erased.

use crate::datasets::{Dataset, parse_dataset};
use crate::errors::ClientError;
use crate::session::AppraisedPeer;
use bastionai_ledger::id::DatasetId;
use bastionai_wire::v1;

impl AppraisedPeer {
    /// Withdraws a dataset of this client's own: no run starts on it from now on, and queued runs are refunded.
    /// Runs that have started are not touched (rule D7); cancel them to stop them. Done twice is done once.
    ///
    /// # Errors
    /// [`ClientError::NotFound`] for an id that is unknown or somebody else's dataset.
    pub async fn withdraw_dataset(&self, dataset: DatasetId) -> Result<Dataset, ClientError> {
        let call = "WithdrawDataset";
        let request = v1::WithdrawDatasetRequest {
            dataset_id: dataset.as_bytes().to_vec(),
        };
        let reply = self.answer(call, self.client().withdraw_dataset(request)).await?;
        parse_dataset(call, reply)
    }

    /// Withdraws a dataset of this client's own, destroys its keys and deletes its blocks: best effort at
    /// freshness level `none` (rule A8). The account and the name stay. Done twice is done once.
    ///
    /// # Errors
    /// [`ClientError::NotFound`] as above; a refusal with reason `dataset-in-use` while a run uses it.
    pub async fn remove_dataset(&self, dataset: DatasetId) -> Result<Dataset, ClientError> {
        let call = "RemoveDataset";
        let request = v1::RemoveDatasetRequest {
            dataset_id: dataset.as_bytes().to_vec(),
        };
        let reply = self.answer(call, self.client().remove_dataset(request)).await?;
        parse_dataset(call, reply)
    }
}
