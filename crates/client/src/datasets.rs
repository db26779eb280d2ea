//! The owner's verbs: upload a dataset under a contract and a policy, list what is there.

use crate::convert::{all, amount, dataset_id, number, principal, required};
use crate::errors::ClientError;
use crate::link::Link;
use crate::outgoing::Outgoing;
use crate::rows::{CheckedRecords, RecordBatch, Transfer};
use crate::session::AppraisedPeer;
use bastionai_graph::contract::{DataContract, UnitCount};
use bastionai_ledger::amount::{Amount, Epsilon, Rho};
use bastionai_ledger::id::{DatasetId, Principal};
use bastionai_privacy::filter::terms::{Order, RenyiTerms};
use bastionai_wire::v1::bastion_client::BastionClient;
use bastionai_wire::v1::{self, upload_dataset_request::Part};
use serde::{Deserialize, Serialize};

/// Whether a dataset's rows are anybody's secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatasetKind {
    /// People's data: has a budget.
    Private,
    /// The owner states that anyone may know the rows: no budget.
    Public,
    /// Nobody's data: no budget.
    Synthetic,
}

/// Whether a dataset is still lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatasetState {
    /// Runs may start on it.
    Offered,
    /// No run starts any more; its records stay for runs that had started.
    Withdrawn,
    /// Its records are erased.
    Removed,
}

/// Principals that may train.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MayTrain {
    /// Every client.
    Anyone,
    /// These.
    Only(Vec<Principal>),
}

/// How the runs of a private dataset add up to its lifetime.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Composition {
    /// ε and δ are summed.
    #[default]
    Basic,
    /// Rényi divergences at fixed orders are summed: several times as many runs, none of whose reserve is refunded for its
    /// failing. Without orders the server's default ones; its answers always name them.
    Renyi(Option<RenyiTerms>),
}

/// The owner's terms. They never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Lifetime budget: present exactly for private datasets.
    pub lifetime: Option<Amount>,
    /// How runs add up to it; basic unless private.
    #[serde(default)]
    pub composition: Composition,
    /// Who may train, and evaluate; if `evaluation_only`, who may evaluate.
    pub may_train: MayTrain,
    /// Who receives weights, beside the scientist.
    pub recipients: Vec<Principal>,
    /// Whether the scientist of a run receives its weights.
    pub scientist_receives: bool,
    /// No run may start from this time on; absent: never expires.
    pub expires_unix_ms: Option<u64>,
    /// Held out: nobody may train on it.
    #[serde(default)]
    pub evaluation_only: bool,
    /// Training runs have noise mode hardened; never unless private.
    #[serde(default)]
    pub require_hardened: bool,
}

/// A dataset to be uploaded.
#[derive(Clone, Debug, PartialEq)]
pub struct NewDataset {
    /// Unique on the server.
    pub name: String,
    /// Private, public or synthetic.
    pub kind: DatasetKind,
    /// What a record looks like; checked row by row before anything is sent.
    pub contract: DataContract,
    /// The owner's terms.
    pub policy: Policy,
}

/// A dataset as everyone may see it: never a row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dataset {
    /// Set by the server.
    pub id: DatasetId,
    /// Unique on the server.
    pub name: String,
    /// Private, public or synthetic.
    pub kind: DatasetKind,
    /// Who uploaded it.
    pub owner: Principal,
    /// What a record looks like.
    pub contract: DataContract,
    /// The owner's terms.
    pub policy: Policy,
    /// What was spent and what is left; absent unless private.
    pub budget: Option<Budget>,
    /// Server's clock.
    pub created_unix_ms: u64,
    /// Whether this client may train on it now.
    pub trainable_by_caller: bool,
    /// Offered, withdrawn or removed.
    pub state: DatasetState,
    /// Whether this client may evaluate models on it now.
    pub evaluable_by_caller: bool,
    /// Of a dataset that composes by Rényi divergences: this counts, and `budget` is shown beside it.
    pub renyi_budget: Option<RenyiBudget>,
}

impl Dataset {
    /// ε that runs may still spend, by the rule that counts; none unless private.
    pub fn epsilon_left(&self) -> Option<Epsilon> {
        match &self.renyi_budget {
            Some(account) => Some(account.remaining_epsilon),
            None => self.budget.map(|budget| budget.remaining.epsilon),
        }
    }
}

/// An account of Rényi divergences, exact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RenyiBudget {
    /// Rising.
    pub orders: Vec<OrderBudget>,
    /// ε that runs committed and in flight mean together, at the lifetime's δ.
    pub used_epsilon: Epsilon,
    /// Lifetime ε − used.
    pub remaining_epsilon: Epsilon,
}

/// One order of an account. A run is admitted while some order has enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OrderBudget {
    /// The order.
    pub order: Order,
    /// None if it cannot give the lifetime.
    pub budget: Option<Rho>,
    /// Spent.
    pub committed: Rho,
    /// Set aside for runs in flight.
    pub reserved: Rho,
}

/// A dataset's budget, exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Budget {
    /// Set by the owner.
    pub lifetime: Amount,
    /// Spent.
    pub committed: Amount,
    /// Set aside for runs in flight.
    pub reserved: Amount,
    /// lifetime − committed − reserved.
    pub remaining: Amount,
}

/// An upload in progress. Dropped before [`DatasetUpload::finish`], the server keeps nothing.
#[derive(Debug)]
pub struct DatasetUpload {
    outgoing: Outgoing<v1::UploadDatasetRequest, v1::Dataset>,
    contract: DataContract,
    /// Records of each unit so far, where the contract has a column of units.
    units: Option<UnitCount>,
    chunk_bytes: usize,
    rows: u64,
    sent_bytes: u64,
    is_whole: bool,
}

impl AppraisedPeer {
    /// Uploads a dataset held in memory. Every row is checked before the first one leaves.
    ///
    /// # Errors
    /// [`ClientError::RowRefused`] with row and column, nothing sent; [`ClientError::NameTaken`];
    /// [`ClientError::LimitExceeded`]; others. On any error the server keeps nothing.
    pub async fn upload_dataset(
        &self,
        dataset: &NewDataset,
        batches: Vec<RecordBatch>,
        on_progress: &mut (dyn FnMut(Transfer) + Send),
    ) -> Result<Dataset, ClientError> {
        let records = CheckedRecords::check(&dataset.contract, batches)?;
        self.upload_checked(dataset, records, on_progress).await
    }

    /// Uploads rows that were checked already, perhaps before there was a connection.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] if they were checked against another contract; else as
    /// [`AppraisedPeer::upload_dataset`].
    pub async fn upload_checked(
        &self,
        dataset: &NewDataset,
        records: CheckedRecords,
        on_progress: &mut (dyn FnMut(Transfer) + Send),
    ) -> Result<Dataset, ClientError> {
        if records.contract != dataset.contract {
            return Err(ClientError::Invalid(
                "the rows were checked against another contract than the dataset's".into(),
            ));
        }
        let batches = records.batches;
        let total_bytes = batches.iter().map(RecordBatch::size_bytes).sum();
        if total_bytes > self.server().max_upload_bytes {
            let most = self.server().max_upload_bytes;
            return Err(ClientError::LimitExceeded(format!(
                "the dataset has {total_bytes} bytes, the server accepts at most {most}; split it or ask the operator"
            )));
        }
        let mut upload = self.begin_upload(dataset).await?;
        for batch in batches {
            upload.push_checked(batch).await?;
            on_progress(Transfer {
                done_bytes: upload.sent_bytes,
                total_bytes: Some(total_bytes),
            });
        }
        upload.finish().await
    }

    /// Begins an upload whose rows come piece by piece, for data larger than memory.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] for a contract or name that cannot be, [`ClientError::SessionEnded`].
    pub async fn begin_upload(&self, dataset: &NewDataset) -> Result<DatasetUpload, ClientError> {
        dataset
            .contract
            .validate()
            .map_err(|error| ClientError::Invalid(error.to_string()))?;
        let header = v1::UploadHeader {
            name: dataset.name.clone(),
            kind: kind_to_wire(dataset.kind).into(),
            contract_json: dataset.contract.to_canonical_json(),
            policy: Some(policy_to_wire(&dataset.policy)),
        };
        let start =
            |mut client: BastionClient<Link>, stream| async move { client.upload_dataset(stream).await };
        let mut upload = DatasetUpload {
            outgoing: Outgoing::begin(self, "UploadDataset", start),
            contract: dataset.contract.clone(),
            units: dataset.contract.unit_column().map(UnitCount::new),
            chunk_bytes: self.chunk_bytes(),
            rows: 0,
            sent_bytes: 0,
            is_whole: true,
        };
        upload.send(Part::Header(header)).await?;
        Ok(upload)
    }

    /// Every dataset this client may see, with contract and budget; never a row.
    ///
    /// # Errors
    /// [`ClientError::SessionEnded`] and the server's refusals.
    pub async fn list_datasets(&self) -> Result<Vec<Dataset>, ClientError> {
        let call = "ListDatasets";
        let reply = self
            .answer(call, self.client().list_datasets(v1::ListDatasetsRequest {}))
            .await?;
        all(call, reply.datasets, parse_dataset)
    }
}

impl DatasetUpload {
    /// Checks a batch and sends it, in pieces the server accepts.
    ///
    /// # Errors
    /// [`ClientError::RowRefused`] before anything of this batch is sent; the server's refusal, if it
    /// ended the upload. After an error the upload is over and nothing is kept.
    pub async fn push(&mut self, batch: RecordBatch) -> Result<(), ClientError> {
        self.refuse_torn()?;
        batch.check(&self.contract, self.rows)?;
        batch.count(self.units.as_mut(), self.rows)?;
        self.push_checked(batch).await
    }

    /// Sends a batch whose rows were checked against the contract.
    async fn push_checked(&mut self, batch: RecordBatch) -> Result<(), ClientError> {
        // A wait dropped half-way (Ctrl-C) must not leave an upload that could be finished without its rest.
        self.is_whole = false;
        for piece in batch.split(self.chunk_bytes) {
            self.rows += piece.rows;
            let size_bytes = piece.size_bytes();
            let rows = u32::try_from(piece.rows).map_err(|_| {
                ClientError::Invalid(format!("a batch of {} rows without data is no batch", piece.rows))
            })?;
            self.send(Part::Records(v1::RecordBatch {
                rows,
                columns: piece.columns,
            }))
            .await?;
            self.sent_bytes += size_bytes;
        }
        self.is_whole = true;
        Ok(())
    }

    /// Bytes of rows handed to the connection so far.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Ends the upload; the dataset is durable and visible when this returns.
    ///
    /// # Errors
    /// The server's refusal; nothing is kept then. After [`ClientError::SessionEnded`] or
    /// [`ClientError::TimedOut`] it may have been kept: list to see.
    pub async fn finish(mut self) -> Result<Dataset, ClientError> {
        self.refuse_torn()?;
        let rows = self.rows;
        self.send(Part::Finish(v1::UploadFinish { rows })).await?;
        parse_dataset("UploadDataset", self.outgoing.finish().await?)
    }

    fn refuse_torn(&self) -> Result<(), ClientError> {
        if self.is_whole {
            return Ok(());
        }
        Err(ClientError::Invalid(
            "a batch of this upload was only sent in part; begin the upload again".into(),
        ))
    }

    async fn send(&mut self, part: Part) -> Result<(), ClientError> {
        self.outgoing
            .send(v1::UploadDatasetRequest { part: Some(part) })
            .await
    }
}

pub(crate) fn parse_dataset(call: &'static str, wire: v1::Dataset) -> Result<Dataset, ClientError> {
    let contract = DataContract::parse_json(&wire.contract_json)
        .map_err(|error| ClientError::protocol(call, format!("contract of {:?}: {error}", wire.name)))?;
    Ok(Dataset {
        state: parse_state(call, wire.state())?,
        id: dataset_id(call, &wire.id)?,
        kind: kind_from_wire(call, wire.kind())?,
        owner: principal(call, &wire.owner)?,
        contract,
        policy: parse_policy(call, required(call, "a policy", wire.policy)?)?,
        budget: wire
            .budget
            .map(|budget| parse_budget(call, &budget))
            .transpose()?,
        created_unix_ms: wire.created_unix_ms,
        trainable_by_caller: wire.trainable_by_caller,
        evaluable_by_caller: wire.evaluable_by_caller,
        renyi_budget: wire
            .renyi_budget
            .map(|account| parse_renyi_budget(call, &account))
            .transpose()?,
        name: wire.name,
    })
}

pub(crate) fn parse_budget(call: &'static str, wire: &v1::Budget) -> Result<Budget, ClientError> {
    Ok(Budget {
        lifetime: amount(call, &wire.lifetime_epsilon, &wire.lifetime_delta)?,
        committed: amount(call, &wire.committed_epsilon, &wire.committed_delta)?,
        reserved: amount(call, &wire.reserved_epsilon, &wire.reserved_delta)?,
        remaining: amount(call, &wire.remaining_epsilon, &wire.remaining_delta)?,
    })
}

fn parse_renyi_budget(call: &'static str, wire: &v1::RenyiBudget) -> Result<RenyiBudget, ClientError> {
    let of_order = |each: &v1::RenyiOrderBudget| {
        Ok(OrderBudget {
            order: number(call, &each.order)?,
            budget: match each.budget.as_str() {
                "" => None,
                budget => Some(number(call, budget)?),
            },
            committed: number(call, &each.committed)?,
            reserved: number(call, &each.reserved)?,
        })
    };
    Ok(RenyiBudget {
        orders: wire
            .orders
            .iter()
            .map(of_order)
            .collect::<Result<_, ClientError>>()?,
        used_epsilon: number(call, &wire.used_epsilon)?,
        remaining_epsilon: number(call, &wire.remaining_epsilon)?,
    })
}

fn parse_composition(call: &'static str, wire: &v1::Policy) -> Result<Composition, ClientError> {
    match wire.composition() {
        v1::Composition::Basic | v1::Composition::Unspecified => Ok(Composition::Basic),
        v1::Composition::Renyi => {
            let orders = wire.renyi_orders.iter().map(|each| number(call, &each.order));
            let orders: Vec<Order> = orders.collect::<Result<_, _>>()?;
            let weights: Vec<u32> = wire.renyi_orders.iter().map(|each| each.weight).collect();
            let terms = RenyiTerms::new(&orders, &weights);
            let terms = terms.map_err(|error| ClientError::protocol(call, error.to_string()))?;
            Ok(Composition::Renyi(Some(terms)))
        }
    }
}

fn parse_policy(call: &'static str, wire: v1::Policy) -> Result<Policy, ClientError> {
    let no_budget = wire.lifetime_epsilon.is_empty() && wire.lifetime_delta.is_empty();
    let lifetime = if no_budget {
        None
    } else {
        Some(amount(call, &wire.lifetime_epsilon, &wire.lifetime_delta)?)
    };
    let only = all(call, &wire.may_train, |call, bytes| principal(call, bytes))?;
    Ok(Policy {
        lifetime,
        composition: parse_composition(call, &wire)?,
        may_train: if wire.anyone_may_train {
            MayTrain::Anyone
        } else {
            MayTrain::Only(only)
        },
        recipients: all(call, &wire.recipients, |call, bytes| principal(call, bytes))?,
        scientist_receives: wire.scientist_receives,
        expires_unix_ms: (wire.expires_unix_ms != 0).then_some(wire.expires_unix_ms),
        evaluation_only: wire.evaluation_only,
        require_hardened: wire.require_hardened,
    })
}

fn policy_to_wire(policy: &Policy) -> v1::Policy {
    let bytes = |principals: &[Principal]| principals.iter().map(|p| p.as_bytes().to_vec()).collect();
    let (may_train, anyone_may_train) = match &policy.may_train {
        MayTrain::Anyone => (Vec::new(), true),
        MayTrain::Only(principals) => (bytes(principals), false),
    };
    v1::Policy {
        lifetime_epsilon: policy
            .lifetime
            .map(|amount| amount.epsilon.to_string())
            .unwrap_or_default(),
        lifetime_delta: policy
            .lifetime
            .map(|amount| amount.delta.to_string())
            .unwrap_or_default(),
        may_train,
        anyone_may_train,
        recipients: bytes(&policy.recipients),
        scientist_receives: policy.scientist_receives,
        expires_unix_ms: policy.expires_unix_ms.unwrap_or(0),
        evaluation_only: policy.evaluation_only,
        require_hardened: policy.require_hardened,
        composition: match policy.composition {
            Composition::Basic => v1::Composition::Basic,
            Composition::Renyi(_) => v1::Composition::Renyi,
        }
        .into(),
        renyi_orders: match &policy.composition {
            Composition::Basic | Composition::Renyi(None) => Vec::new(),
            Composition::Renyi(Some(terms)) => {
                let order = |each: &bastionai_privacy::filter::terms::WeightedOrder| v1::RenyiOrder {
                    order: each.order.to_string(),
                    weight: each.weight,
                };
                terms.weighted().iter().map(order).collect()
            }
        },
    }
}

fn kind_to_wire(kind: DatasetKind) -> v1::DatasetKind {
    match kind {
        DatasetKind::Private => v1::DatasetKind::Private,
        DatasetKind::Public => v1::DatasetKind::Public,
        DatasetKind::Synthetic => v1::DatasetKind::Synthetic,
    }
}

fn kind_from_wire(call: &'static str, kind: v1::DatasetKind) -> Result<DatasetKind, ClientError> {
    match kind {
        v1::DatasetKind::Private => Ok(DatasetKind::Private),
        v1::DatasetKind::Public => Ok(DatasetKind::Public),
        v1::DatasetKind::Synthetic => Ok(DatasetKind::Synthetic),
        v1::DatasetKind::Unspecified => Err(ClientError::protocol(call, "a dataset of unknown kind")),
    }
}

fn parse_state(call: &'static str, state: v1::DatasetState) -> Result<DatasetState, ClientError> {
    match state {
        v1::DatasetState::Offered => Ok(DatasetState::Offered),
        v1::DatasetState::Withdrawn => Ok(DatasetState::Withdrawn),
        v1::DatasetState::Removed => Ok(DatasetState::Removed),
        v1::DatasetState::Unspecified => Err(ClientError::protocol(call, "a dataset in an unknown state")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_survive_the_wire_exactly() {
        let policy = Policy {
            lifetime: Some(Amount::new(
                "6.000000001".parse().unwrap(),
                "1e-5".parse().unwrap(),
            )),
            composition: Composition::Renyi(Some(RenyiTerms::default())),
            may_train: MayTrain::Only(vec![Principal::from_bytes([1; 32])]),
            recipients: vec![Principal::from_bytes([2; 32])],
            scientist_receives: true,
            expires_unix_ms: Some(7),
            evaluation_only: true,
            require_hardened: true,
        };
        assert_eq!(parse_policy("test", policy_to_wire(&policy)).unwrap(), policy);
        let open = Policy {
            lifetime: None,
            composition: Composition::Basic,
            may_train: MayTrain::Anyone,
            expires_unix_ms: None,
            evaluation_only: false,
            require_hardened: false,
            ..policy
        };
        assert_eq!(parse_policy("test", policy_to_wire(&open)).unwrap(), open);
    }

    #[test]
    fn malformed_datasets_from_the_server_are_errors_not_panics() {
        let error = parse_dataset("ListDatasets", v1::Dataset::default()).unwrap_err();
        assert_eq!(error.kind(), "protocol");
    }
}
