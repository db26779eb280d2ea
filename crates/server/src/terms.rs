//! What every price stands on, of training and of evaluation: the terms of the datasets, the archive and its graph, and
//! the physical batch that fits into memory.

use crate::charges::{PricedCharge, RenyiGrounds};
use crate::digest::DatasetVersion;
use crate::errors::{Failure, Reason};
use crate::memory::{self, Memory, Needs};
use crate::models::Model;
use crate::plan::{self, RELATION};
use crate::units;
use bastionai_graph::archive::{Archive, Limits};
use bastionai_graph::contract::{DataContract, InputColumn};
use bastionai_graph::typed::TypedGraph;
use bastionai_ledger::{
    Amount, BootId, Charge, Dataset, DatasetKind, Delta, Digest32, EntryHash, Ledger, Principal,
};
use bastionai_privacy::event::DpEvent;
use bastionai_vault::Weights;
use bastionai_wire::NoiseMode;
use bastionai_wire::units::Units;
use std::sync::Arc;

/// All that a price depends on beside the request.
pub(crate) struct Grounds {
    pub(crate) model: Arc<Model>,
    /// To start from, if not the model's own.
    pub(crate) weights: Option<Weights>,
    pub(crate) terms: Terms,
    pub(crate) boot: Boot,
    pub(crate) limits: PriceLimits,
}

/// What the datasets ask of a run on them, read from the ledger at one moment.
pub(crate) struct Terms {
    scientist: Principal,
    datasets: Vec<DatasetTerms>,
    ledger_head: EntryHash,
}

struct DatasetTerms {
    version: DatasetVersion,
    name: String,
    kind: DatasetKind,
    contract_json: String,
    declared_size: u64,
    lifetime_delta: Option<Delta>,
    require_hardened: bool,
    renyi: Option<RenyiGrounds>,
}

/// This boot, as the digest names it.
#[derive(Clone, Copy)]
pub(crate) struct Boot {
    pub(crate) id: BootId,
    pub(crate) claims: Digest32,
}

/// Bounds of a price.
#[derive(Clone, Copy)]
pub(crate) struct PriceLimits {
    pub(crate) model_bytes: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) kept_bytes: u64,
    pub(crate) expires_unix_ms: u64,
}

impl Terms {
    /// Copies what is needed, so that the ledger is free while the price is computed.
    pub(crate) fn of(ledger: &Ledger, datasets: &[&Dataset], scientist: Principal) -> Self {
        let datasets = datasets.iter().map(|dataset| DatasetTerms {
            version: DatasetVersion {
                dataset: dataset.id(),
                contract: dataset.contract_digest(),
                policy: dataset.policy_digest(),
                root: dataset.root(),
            },
            name: dataset.name().to_owned(),
            kind: dataset.kind(),
            contract_json: dataset.contract_json().to_owned(),
            declared_size: dataset.declared_size(),
            lifetime_delta: dataset.policy().lifetime.map(|lifetime| lifetime.delta),
            require_hardened: dataset.policy().require_hardened,
            renyi: RenyiGrounds::of(ledger, dataset),
        });
        Self {
            scientist,
            datasets: datasets.collect(),
            ledger_head: ledger.head().entry_hash,
        }
    }

    /// Who asked.
    pub(crate) fn scientist(&self) -> Principal {
        self.scientist
    }

    /// The chain's end when the terms were read.
    pub(crate) fn ledger_head(&self) -> EntryHash {
        self.ledger_head
    }

    /// The datasets, as a digest names them.
    pub(crate) fn versions(&self) -> Vec<DatasetVersion> {
        self.datasets
            .iter()
            .map(|dataset| dataset.version.clone())
            .collect()
    }

    /// Declared records of each dataset.
    pub(crate) fn declared_sizes(&self) -> Vec<u64> {
        self.datasets
            .iter()
            .map(|dataset| dataset.declared_size)
            .collect()
    }

    /// What the datasets' units are, and how many records of each a step uses.
    pub(crate) fn units(&self, asked: Option<u32>) -> Result<Units, Failure> {
        let contracts = self.contracts()?;
        let names = self.datasets.iter().map(|dataset| dataset.name.as_str());
        let named: Vec<(&str, &DataContract)> = names.zip(&contracts).collect();
        units::units(&named, asked)
    }

    /// Refuses datasets whose unit has several records.
    pub(crate) fn must_be_per_record(&self) -> Result<(), Failure> {
        for (dataset, contract) in self.datasets.iter().zip(self.contracts()?) {
            if let Some(unit) = contract.unit_column() {
                let message = format!(
                    "dataset `{}` protects all records of a `{}` together, and an evaluation counts records: evaluate on a \
                     dataset whose privacy unit is the record",
                    dataset.name, unit.name
                );
                return Err(Failure::new(Reason::RunSpecInvalid, message));
            }
        }
        Ok(())
    }

    fn contracts(&self) -> Result<Vec<DataContract>, Failure> {
        let json = self
            .datasets
            .iter()
            .map(|dataset| dataset.contract_json.as_bytes());
        json.map(|json| DataContract::parse_json(json).map_err(Failure::internal))
            .collect()
    }

    /// δ of the run: as asked, or a tenth of the smallest lifetime δ (rule D6).
    ///
    /// # Errors
    /// [`Reason::RunSpecInvalid`] above a dataset's lifetime δ: no budget would admit it, and where divergences decide, the
    /// sums of δ shown beside them would grow without bounds.
    pub(crate) fn delta(&self, asked: Option<Delta>) -> Result<Delta, Failure> {
        let lifetimes = self
            .datasets
            .iter()
            .filter_map(|dataset| Some((dataset.lifetime_delta?, &dataset.name)));
        match (asked, lifetimes.min()) {
            (Some(asked), Some((lifetime, name))) if asked > lifetime => Err(Failure::new(
                Reason::RunSpecInvalid,
                format!(
                    "target_delta = {asked} is above {lifetime}, the delta that dataset `{name}` has for its lifetime: \
                     choose less, or leave it out for a tenth of that"
                ),
            )),
            (Some(asked), _) => Ok(asked),
            (None, Some((lifetime, _))) => Ok(lifetime.tenth()),
            (None, None) => Ok(REHEARSAL_DELTA),
        }
    }

    /// # Errors
    /// [`Reason::NotPermitted`] where an owner asks for more than this of the noise of a training run (rule D2).
    pub(crate) fn check_noise_mode(&self, mode: NoiseMode) -> Result<(), Failure> {
        let asks = |dataset: &&DatasetTerms| dataset.require_hardened && mode != NoiseMode::Hardened;
        let Some(dataset) = self.datasets.iter().find(asks) else {
            return Ok(());
        };
        let message = format!(
            "the policy of `{}` requires noise_mode hardened, in which each record's gradient is rounded, checked and summed \
             in integers; this run asks for standard: choose hardened, or leave the dataset out",
            dataset.name
        );
        Err(Failure::new(Reason::NotPermitted, message))
    }

    /// The inputs' columns, which every dataset must declare alike.
    pub(crate) fn inputs(&self, columns: &[String]) -> Result<Vec<InputColumn>, Failure> {
        let mut agreed: Option<(&str, Vec<InputColumn>)> = None;
        for dataset in &self.datasets {
            let contract =
                DataContract::parse_json(dataset.contract_json.as_bytes()).map_err(Failure::internal)?;
            let inputs = contract.inputs(columns).map_err(|error| {
                Failure::new(
                    Reason::RunSpecInvalid,
                    format!("dataset `{}`: {error}", dataset.name),
                )
            })?;
            match &agreed {
                None => agreed = Some((&dataset.name, inputs)),
                Some((_, first)) if *first == inputs => {}
                Some((name, first)) => return Err(differing_columns(name, first, &dataset.name, &inputs)),
            }
        }
        agreed
            .map(|(_, inputs)| inputs)
            .ok_or_else(|| Failure::malformed("a run needs a dataset"))
    }

    /// The same charge for every private dataset, nothing for the others.
    ///
    /// # Errors
    /// [`Reason::Unpriceable`] for a mechanism without a proof in the currency that decides.
    pub(crate) fn charges(&self, event: &DpEvent, amount: Amount) -> Result<Vec<PricedCharge>, Failure> {
        let charge = |dataset: &DatasetTerms| {
            let (event, amount) = match dataset.kind {
                DatasetKind::Private => (event.clone(), amount),
                DatasetKind::Public | DatasetKind::Synthetic => (DpEvent::NoOp, Amount::ZERO),
            };
            let charge = Charge {
                dataset: dataset.version.dataset,
                event,
                relation: RELATION,
                amount,
            };
            PricedCharge::new(charge, dataset.renyi.as_ref())
        };
        self.datasets.iter().map(charge).collect()
    }
}

fn differing_columns(first_name: &str, first: &[InputColumn], name: &str, inputs: &[InputColumn]) -> Failure {
    let column = first
        .iter()
        .zip(inputs)
        .find(|(one, other)| one != other)
        .map_or("", |(one, _)| &one.column);
    let message = format!(
        "datasets `{first_name}` and `{name}` declare column `{column}` differently: a pooled run needs the same dtype, \
         shape and domain in all of them; agree on one contract"
    );
    Failure::new(Reason::IncompatibleDatasets, message)
}

/// Reads an archive within the server's limits; refuses pickles, other schemas, anything malformed.
pub(crate) fn read_archive(bytes: &[u8], model_bytes: u64) -> Result<Archive, Failure> {
    let limits = Limits {
        max_archive_bytes: model_bytes,
        max_tensor_bytes: model_bytes,
        ..Limits::default()
    };
    Archive::read(bytes, &limits).map_err(|error| Failure::of(Reason::ArchiveInvalid, error))
}

/// Raw parameters, then constants, in graph order: what the trainer is sent.
pub(crate) fn tensors(archive: &Archive, graph: &TypedGraph) -> Result<Vec<Vec<u8>>, Failure> {
    let missing = || {
        Failure::new(
            Reason::ArchiveInvalid,
            "the archive lacks the bytes of a tensor of its graph",
        )
    };
    let parameters = (0..graph.parameters().len()).map(|index| archive.parameter_bytes(index));
    let constants = (0..graph.constants().len()).map(|index| archive.constant_bytes(index));
    parameters
        .chain(constants)
        .map(|bytes| bytes.map(<[u8]>::to_vec).ok_or_else(missing))
        .collect()
}

pub(crate) fn refused(refusals: bastionai_graph::Refusals) -> Failure {
    let details = serde_json::to_vec(&refusals).unwrap_or_default();
    let failure = Failure::new(Reason::GraphRefused, refusals.to_string());
    if details.len() > MAX_DETAIL_BYTES {
        failure
    } else {
        failure.with_details(details)
    }
}

/// A column of a dataset goes to the trainer as one frame, which has at most 4 GiB.
pub(crate) fn check_frames(inputs: &[InputColumn], declared_sizes: &[u64]) -> Result<(), Failure> {
    let largest = declared_sizes.iter().copied().max().unwrap_or(0);
    let fits = |input: &InputColumn| {
        let record = plan::elements(&input.shape).saturating_mul(input.dtype.size_bytes() as u64);
        record.saturating_mul(largest) <= bastionai_wire::trainer::MAX_FRAME_BYTES
    };
    match inputs.iter().find(|input| !fits(input)) {
        None => Ok(()),
        Some(input) => Err(Failure::new(
            Reason::RunSpecInvalid,
            format!(
                "column `{}` of one dataset has more than 4 GiB: split the dataset",
                input.column
            ),
        )),
    }
}

/// The physical batch: `wanted`, or, where the scientist asked for none, the largest below it that fits into `allowed`
/// bytes.
///
/// # Errors
/// What one record takes, where not even that fits; the batch that would fit, where the one asked for does not.
pub(crate) fn fitting_batch(
    needs: Needs<'_>,
    wanted: u32,
    asked: Option<u32>,
    allowed: u64,
) -> Result<u32, Failure> {
    let needed = needs.memory(wanted).total();
    if needed <= allowed {
        return Ok(wanted);
    }
    let largest = needs.largest_batch(allowed, wanted);
    let Some(largest) = largest.filter(|&rows| rows >= needs.records_per_unit) else {
        return Err(too_large(needs.memory(needs.records_per_unit), allowed));
    };
    let Some(asked) = asked else {
        return Ok(largest);
    };
    let message = format!(
        "with max_batch_size {asked} the run needs about {} of memory, the server allows {}: choose max_batch_size \
         {largest} or less, or leave it out (it changes speed, not the result's privacy)",
        memory::in_words(needed),
        memory::in_words(allowed)
    );
    Err(Failure::new(Reason::RunSpecInvalid, message))
}

fn too_large(needs: Memory, allowed: u64) -> Failure {
    let message = format!(
        "even one record at a time, or one unit of several, needs about {} of memory (the records of all datasets {}, the \
         parameters {}, its activations and gradients {}, libtorch {}), the server allows {}: train a smaller model, on \
         shorter inputs, or on fewer records",
        memory::in_words(needs.total()),
        memory::in_words(needs.records),
        memory::in_words(needs.parameters),
        memory::in_words(needs.batch),
        memory::in_words(needs.runtime),
        memory::in_words(allowed)
    );
    Failure::new(Reason::RunSpecInvalid, message)
}

/// δ of runs that touch no private dataset: nothing is charged, but noise still needs a number.
const REHEARSAL_DELTA: Delta = Delta::from_units(10u64.pow(12));
/// Status details travel in headers, which peers bound.
const MAX_DETAIL_BYTES: usize = 128 << 10;
