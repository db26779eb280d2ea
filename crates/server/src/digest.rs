//! The run digest (rule A11): SHA-256 over everything that was agreed, each field length-prefixed, so that no
//! two runs share one. An approval or a receipt that names it names all of this.

use crate::plan::Plan;
use crate::spec::RunRequest;
use bastionai_ledger::{BootId, DatasetId, Digest32, EntryHash, Principal};
use bastionai_wire::trainer::Optimizer;
use sha2::{Digest, Sha256};

/// A dataset as a run uses it.
#[derive(Clone, Debug)]
pub(crate) struct DatasetVersion {
    pub(crate) dataset: DatasetId,
    pub(crate) contract: Digest32,
    /// Covers recipients and every other term (rule A10).
    pub(crate) policy: Digest32,
    /// Digest over the stored blocks.
    pub(crate) root: Digest32,
}

/// What the digest covers beside request and plan.
pub(crate) struct Agreement<'a> {
    pub(crate) request: &'a RunRequest,
    pub(crate) plan: &'a Plan,
    pub(crate) scientist: Principal,
    pub(crate) graph: Digest32,
    pub(crate) initial_weights: Digest32,
    pub(crate) datasets: &'a [DatasetVersion],
    pub(crate) claims: Digest32,
    pub(crate) boot: BootId,
    pub(crate) ledger_head: EntryHash,
    pub(crate) expires_unix_ms: u64,
}

impl Agreement<'_> {
    /// The run digest.
    pub(crate) fn digest(&self) -> Digest32 {
        let mut fields = Fields::new(b"bastionai/v1/run");
        fields.add(self.scientist.as_bytes());
        fields.add(self.graph.as_bytes());
        fields.add(self.initial_weights.as_bytes());
        fields.add(self.request.model_name.as_bytes());
        self.add_hyper_parameters(&mut fields);
        self.add_plan(&mut fields);
        fields.count(self.datasets.len());
        for dataset in self.datasets {
            fields.add(dataset.dataset.as_bytes());
            fields.add(dataset.contract.as_bytes());
            fields.add(dataset.policy.as_bytes());
            fields.add(dataset.root.as_bytes());
        }
        fields.add(self.claims.as_bytes());
        fields.add(self.boot.as_bytes());
        fields.add(self.ledger_head.as_bytes());
        fields.integer(self.expires_unix_ms);
        fields.finish()
    }

    fn add_hyper_parameters(&self, fields: &mut Fields) {
        let request = self.request;
        fields.count(request.input_columns.len());
        request
            .input_columns
            .iter()
            .for_each(|column| fields.add(column.as_bytes()));
        fields.integer(request.batch_size);
        fields.integer(request.steps);
        fields.float(request.max_grad_norm);
        // Modes of this version; another value here is another run (rule D2).
        for mode in [
            "clipping=flat",
            "noise=standard",
            "optimizer_state=zero",
            "evaluation_sets=none",
            "retirement=none",
        ] {
            fields.add(mode.as_bytes());
        }
        fields.float(request.loss.map_or(0.0, |loss| loss.max_loss));
        match request.optimizer {
            Optimizer::Sgd {
                lr,
                momentum,
                dampening,
                weight_decay,
                nesterov,
            } => {
                fields.add(b"sgd");
                [lr, momentum, dampening, weight_decay]
                    .into_iter()
                    .for_each(|value| fields.float(value));
                fields.integer(u64::from(nesterov));
            }
            Optimizer::AdamW {
                lr,
                beta1,
                beta2,
                eps,
                weight_decay,
            } => {
                fields.add(b"adamw");
                [lr, beta1, beta2, eps, weight_decay]
                    .into_iter()
                    .for_each(|value| fields.float(value));
            }
        }
    }

    fn add_plan(&self, fields: &mut Fields) {
        let plan = self.plan;
        fields.float(plan.noise_multiplier);
        fields.float(plan.loss_noise_multiplier.unwrap_or(0.0));
        fields.float(plan.joint_noise_multiplier);
        fields.integer(plan.sample_threshold);
        fields.integer(plan.declared_size);
        fields.integer(u64::from(plan.physical_batch_size));
        fields.integer(u64::from(plan.micro_batches));
        fields.integer(plan.amount.epsilon.units());
        fields.integer(plan.amount.delta.units());
    }
}

/// SHA-256 over the initial values of parameters and constants, in graph order.
pub(crate) fn tensors_digest(tensors: &[Vec<u8>]) -> Digest32 {
    let mut fields = Fields::new(b"bastionai/v1/initial-weights");
    fields.count(tensors.len());
    tensors.iter().for_each(|bytes| fields.add(bytes));
    fields.finish()
}

/// Length-prefixed fields (u64, little-endian) under a label.
struct Fields(Sha256);

impl Fields {
    fn new(label: &[u8]) -> Self {
        let mut fields = Self(Sha256::new());
        fields.add(label);
        fields
    }

    fn add(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn integer(&mut self, value: u64) {
        self.add(&value.to_le_bytes());
    }

    fn count(&mut self, value: usize) {
        self.integer(value as u64);
    }

    fn float(&mut self, value: f64) {
        self.add(&value.to_bits().to_le_bytes());
    }

    fn finish(self) -> Digest32 {
        Digest32::from_bytes(self.0.finalize().into())
    }
}
