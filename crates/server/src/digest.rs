//! The run digest (rule A11): SHA-256 over everything that was agreed, each field length-prefixed, so that no
//! two runs share one. An approval or a receipt that names it names all of this.

use crate::plan::Plan;
use crate::spec::RunRequest;
use bastionai_ledger::{BootId, DatasetId, Digest32, EntryHash, Principal};
use bastionai_wire::{Adam, Average, Compute, Decay, Optimizer, Schedule};
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

impl DatasetVersion {
    /// Adds the datasets' versions, counted.
    pub(crate) fn add_all(datasets: &[Self], fields: &mut Fields) {
        fields.count(datasets.len());
        for dataset in datasets {
            fields.add(dataset.dataset.as_bytes());
            fields.add(dataset.contract.as_bytes());
            fields.add(dataset.policy.as_bytes());
            fields.add(dataset.root.as_bytes());
        }
    }
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
        DatasetVersion::add_all(self.datasets, &mut fields);
        fields.add(self.claims.as_bytes());
        fields.add(self.boot.as_bytes());
        fields.add(self.ledger_head.as_bytes());
        fields.integer(self.expires_unix_ms);
        self.add_schedule(&mut fields);
        self.add_kept(&mut fields);
        if self.request.compute != Compute::default() {
            fields.add(b"compute");
            fields.add(self.request.compute.name().as_bytes());
        }
        self.add_band(&mut fields);
        fields.finish()
    }

    /// Later options stand last, each under its name and only when used: a run without them has the digest it had
    /// before there were any.
    fn add_schedule(&self, fields: &mut Fields) {
        let schedule = self.request.schedule;
        if schedule == Schedule::default() {
            return;
        }
        let (name, final_ratio) = match schedule.decay {
            Decay::Constant => ("constant", 1.0),
            Decay::Linear { final_ratio } => ("linear", final_ratio),
            Decay::Cosine { final_ratio } => ("cosine", final_ratio),
        };
        fields.add(b"schedule");
        fields.add(name.as_bytes());
        fields.float(final_ratio);
        fields.integer(schedule.warmup.steps(self.request.steps));
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
            &format!("clipping={}", request.clipping.name()),
            &format!("noise={}", request.noise_mode.name()),
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
            Optimizer::AdamW(numbers) => add_adam(fields, b"adamw", numbers),
            Optimizer::Adam(numbers) => add_adam(fields, b"adam", numbers),
            Optimizer::NoiseCorrected {
                adam,
                decoupled,
                floor,
            } => {
                let name: &[u8] = if decoupled { b"adamw_bc" } else { b"adam_bc" };
                add_adam(fields, name, adam);
                fields.float(floor);
            }
        }
    }

    fn add_kept(&self, fields: &mut Fields) {
        let request = self.request;
        match request.average {
            None => {}
            Some(Average::Exponential { decay }) => {
                fields.add(b"ema");
                fields.float(decay);
            }
            Some(Average::Tail { share }) => {
                fields.add(b"tail");
                fields.float(share);
            }
        }
        if !request.keep_steps.is_empty() {
            fields.add(b"keep");
            fields.count(request.keep_steps.len());
            request.keep_steps.iter().for_each(|&step| fields.integer(step));
        }
    }

    /// The matrix that correlates noise; classes and their turns follow from its size.
    fn add_band(&self, fields: &mut Fields) {
        let numerators = self.plan.band.numerators();
        if numerators.is_empty() {
            return;
        }
        fields.add(b"bands");
        fields.count(numerators.len());
        numerators
            .iter()
            .for_each(|&each| fields.integer(u64::from(each)));
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
        // Which datasets share units, their contracts say.
        if plan.records_per_unit != 1 {
            fields.add(b"records-per-unit");
            fields.integer(u64::from(plan.records_per_unit));
        }
        fields.integer(plan.amount.epsilon.units());
        fields.integer(plan.amount.delta.units());
    }
}

/// The numbers of Adam or AdamW, which the name tells apart.
fn add_adam(fields: &mut Fields, name: &[u8], numbers: Adam) {
    let Adam {
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
    } = numbers;
    fields.add(name);
    [lr, beta1, beta2, eps, weight_decay]
        .into_iter()
        .for_each(|value| fields.float(value));
}

/// SHA-256 over the initial values of parameters and constants, in graph order.
pub(crate) fn tensors_digest(tensors: &[Vec<u8>]) -> Digest32 {
    let mut fields = Fields::new(b"bastionai/v1/initial-weights");
    fields.count(tensors.len());
    tensors.iter().for_each(|bytes| fields.add(bytes));
    fields.finish()
}

/// Length-prefixed fields (u64, little-endian) under a label.
pub(crate) struct Fields(Sha256);

impl Fields {
    pub(crate) fn new(label: &[u8]) -> Self {
        let mut fields = Self(Sha256::new());
        fields.add(label);
        fields
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    pub(crate) fn integer(&mut self, value: u64) {
        self.add(&value.to_le_bytes());
    }

    pub(crate) fn count(&mut self, value: usize) {
        self.integer(value as u64);
    }

    pub(crate) fn float(&mut self, value: f64) {
        self.add(&value.to_bits().to_le_bytes());
    }

    pub(crate) fn finish(self) -> Digest32 {
        Digest32::from_bytes(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{request, sgd};
    use crate::plan::RELATION;
    use crate::spec::{LossRequest, Privacy};
    use bastionai_ledger::{Amount, Delta, Epsilon};
    use bastionai_privacy::banded::BandedMatrix;
    use bastionai_privacy::event::{DpEvent, NeighboringRelation};
    use bastionai_wire::{Clipping, NoiseMode, Warmup};

    struct Example {
        request: RunRequest,
        plan: Plan,
        scientist: Principal,
        digests: [Digest32; 3],
        datasets: Vec<DatasetVersion>,
        boot: BootId,
        head: EntryHash,
        expires: u64,
    }

    fn example() -> Example {
        let version = |tag| DatasetVersion {
            dataset: DatasetId::from_bytes([tag; 16]),
            contract: Digest32::from_bytes([tag; 32]),
            policy: Digest32::from_bytes([tag; 32]),
            root: Digest32::from_bytes([tag; 32]),
        };
        let loss = LossRequest {
            max_loss: 4.0,
            share: 0.1,
        };
        Example {
            request: RunRequest {
                records_per_unit: None,
                model: Digest32::from_bytes([1; 32]),
                datasets: vec![DatasetId::from_bytes([2; 16])],
                input_columns: vec!["x".into(), "y".into()],
                max_batch_size: None,
                optimizer: sgd(0.1, 0.9, false),
                ..request(64, 10, Privacy::TargetEpsilon(1.0), Some(loss))
            },
            plan: Plan {
                noise_multiplier: 1.0,
                loss_noise_multiplier: Some(3.0),
                joint_noise_multiplier: 0.95,
                sample_threshold: 1 << 60,
                sample_rate: 0.0625,
                declared_size: 1024,
                records_per_unit: 1,
                physical_batch_size: 100,
                micro_batches: 1,
                event: DpEvent::NoOp,
                band: BandedMatrix::from_numerators(vec![]).unwrap(),
                noise_ratio: 1.0,
                amount: Amount::new(Epsilon::from_units(5), Delta::from_units(7)),
            },
            scientist: Principal::from_bytes([3; 32]),
            digests: [4, 5, 6].map(|tag| Digest32::from_bytes([tag; 32])),
            datasets: vec![version(7), version(8)],
            boot: BootId::from_bytes([9; 16]),
            head: EntryHash::from_bytes([10; 32]),
            expires: 11,
        }
    }

    fn digest(example: &Example) -> Digest32 {
        Agreement {
            request: &example.request,
            plan: &example.plan,
            scientist: example.scientist,
            graph: example.digests[0],
            initial_weights: example.digests[1],
            datasets: &example.datasets,
            claims: example.digests[2],
            boot: example.boot,
            ledger_head: example.head,
            expires_unix_ms: example.expires,
        }
        .digest()
    }

    fn corrected(decoupled: bool, floor: f64) -> Optimizer {
        let adam = Adam {
            lr: 0.1,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.0,
        };
        Optimizer::NoiseCorrected {
            adam,
            decoupled,
            floor,
        }
    }

    #[test]
    fn every_field_of_the_agreement_changes_the_digest() {
        assert_eq!(
            RELATION,
            NeighboringRelation::AddOrRemoveOne,
            "the only one: it needs no field"
        );
        type Edit = fn(&mut Example);
        let edits: Vec<(&str, Edit)> = vec![
            ("model name", |e| e.request.model_name.push('x')),
            ("input columns", |e| e.request.input_columns.swap(0, 1)),
            ("columns joined", |e| e.request.input_columns = vec!["xy".into()]),
            ("batch size", |e| e.request.batch_size += 1),
            ("steps", |e| e.request.steps += 1),
            ("C", |e| e.request.max_grad_norm = 2.0),
            ("clipping per layer", |e| e.request.clipping = Clipping::PerLayer),
            ("bfloat16", |e| e.request.compute = Compute::Bfloat16),
            ("hardened", |e| e.request.noise_mode = NoiseMode::Hardened),
            ("automatic clipping", |e| e.request.clipping = Clipping::Automatic),
            ("max_loss", |e| e.request.loss.as_mut().unwrap().max_loss = 5.0),
            ("no loss", |e| e.request.loss = None),
            ("lr", |e| e.request.optimizer = sgd(0.2, 0.9, false)),
            ("nesterov", |e| e.request.optimizer = sgd(0.1, 0.9, true)),
            ("optimizer", |e| {
                e.request.optimizer = Optimizer::AdamW(Adam {
                    lr: 0.1,
                    beta1: 0.9,
                    beta2: 0.0,
                    eps: 0.0,
                    weight_decay: 0.0,
                })
            }),
            ("Adam is not AdamW", |e| {
                e.request.optimizer = Optimizer::Adam(Adam {
                    lr: 0.1,
                    beta1: 0.9,
                    beta2: 0.0,
                    eps: 0.0,
                    weight_decay: 0.0,
                })
            }),
            ("warm-up", |e| e.request.schedule.warmup = Warmup::Steps(1)),
            ("longer warm-up", |e| e.request.schedule.warmup = Warmup::Steps(2)),
            ("linear", |e| {
                e.request.schedule.decay = Decay::Linear { final_ratio: 0.0 }
            }),
            ("final ratio", |e| {
                e.request.schedule.decay = Decay::Linear { final_ratio: 0.1 }
            }),
            ("cosine", |e| {
                e.request.schedule.decay = Decay::Cosine { final_ratio: 0.0 }
            }),
            ("average", |e| {
                e.request.average = Some(Average::Exponential { decay: 0.9 })
            }),
            ("its decay", |e| {
                e.request.average = Some(Average::Exponential { decay: 0.99 })
            }),
            ("an average of the tail", |e| {
                e.request.average = Some(Average::Tail { share: 0.9 })
            }),
            ("bands", |e| {
                e.plan.band = BandedMatrix::from_numerators(vec![2048]).unwrap()
            }),
            ("their coefficients", |e| {
                e.plan.band = BandedMatrix::from_numerators(vec![2047]).unwrap()
            }),
            ("correction for noise", |e| {
                e.request.optimizer = corrected(false, 1e-8)
            }),
            ("its floor", |e| e.request.optimizer = corrected(false, 1e-9)),
            ("its weight decay decoupled", |e| {
                e.request.optimizer = corrected(true, 1e-8)
            }),
            ("kept step", |e| e.request.keep_steps = vec![3]),
            ("two kept steps", |e| e.request.keep_steps = vec![3, 4]),
            ("σ of the gradient", |e| e.plan.noise_multiplier = 1.5),
            ("σ of the loss", |e| e.plan.loss_noise_multiplier = None),
            ("joint σ", |e| e.plan.joint_noise_multiplier = 1.5),
            ("q", |e| e.plan.sample_threshold += 1),
            ("declared size", |e| e.plan.declared_size += 1),
            ("physical batch", |e| e.plan.physical_batch_size += 1),
            ("micro-batches", |e| e.plan.micro_batches += 1),
            ("records of a unit", |e| e.plan.records_per_unit = 2),
            ("more records of a unit", |e| e.plan.records_per_unit = 3),
            ("ε", |e| e.plan.amount.epsilon = Epsilon::from_units(6)),
            ("δ", |e| e.plan.amount.delta = Delta::from_units(8)),
            ("scientist", |e| e.scientist = Principal::from_bytes([0; 32])),
            ("graph", |e| e.digests[0] = Digest32::from_bytes([0; 32])),
            ("initial weights", |e| {
                e.digests[1] = Digest32::from_bytes([0; 32])
            }),
            ("claims", |e| e.digests[2] = Digest32::from_bytes([0; 32])),
            ("a dataset less", |e| e.datasets.truncate(1)),
            ("dataset order", |e| e.datasets.swap(0, 1)),
            ("dataset", |e| {
                e.datasets[0].dataset = DatasetId::from_bytes([0; 16])
            }),
            ("contract", |e| {
                e.datasets[0].contract = Digest32::from_bytes([0; 32])
            }),
            ("policy", |e| e.datasets[0].policy = Digest32::from_bytes([0; 32])),
            ("version root", |e| {
                e.datasets[0].root = Digest32::from_bytes([0; 32])
            }),
            ("boot", |e| e.boot = BootId::from_bytes([0; 16])),
            ("ledger head", |e| e.head = EntryHash::from_bytes([0; 32])),
            ("expiry", |e| e.expires += 1),
        ];
        let mut seen = vec![digest(&example())];
        for (what, edit) in edits {
            let mut changed = example();
            edit(&mut changed);
            let changed = digest(&changed);
            assert!(!seen.contains(&changed), "{what} is not covered");
            seen.push(changed);
        }
        assert_eq!(digest(&example()), seen[0]);
    }

    /// Receipts name run digests for ever.
    #[test]
    fn the_run_digest_of_this_version_is_pinned() {
        assert_eq!(
            digest(&example()).to_string(),
            "34371c36df66de1574329f6fc4d9127b3d82206b4d771176f36ee586fc7b0bad"
        );
    }

    #[test]
    fn tensors_cannot_be_moved_across_their_borders() {
        let one = tensors_digest(&[vec![1, 2], vec![3]]);
        assert_ne!(one, tensors_digest(&[vec![1], vec![2, 3]]));
        assert_ne!(one, tensors_digest(&[vec![1, 2, 3]]));
        assert_ne!(one, tensors_digest(&[vec![1, 2], vec![3], vec![]]));
    }
}
