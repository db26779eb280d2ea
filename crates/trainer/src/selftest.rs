//! What is checked at start, on made-up rows: floating-point mode, kernel choice, immutability, and that a row's
//! numbers do not depend on the other rows (rules G6, T2, T8).

use crate::device::Device;
use crate::engine::Engine;
use crate::error::{EngineError, Result};
use crate::ffi;
use crate::kernels::{self, KernelChoice};
use crate::program::compare_schemas;
use bastionai_graph::dtype::DType;
use bastionai_graph::typed::TypedGraph;
use tch::{Kind, Tensor};

/// Seed of the made-up rows: they are public.
const SEED: i64 = 20_261_123;

/// Sets up this process: memory, and libtorch's threads, denormals, deterministic memory, no warnings.
///
/// # Errors
/// [`EngineError::Job`] when a worker thread does not flush denormals.
pub fn prepare_process(threads: u32) -> Result<()> {
    let threads = i32::try_from(threads).map_err(|_| EngineError::Job("too many threads".into()))?;
    let failed = |_| EngineError::Torch {
        detail: ffi::last_error(),
    };
    ffi::keep_freed_memory();
    ffi::setup(threads).map_err(failed)?;
    if !ffi::denormals_flushed().map_err(failed)? {
        return Err(EngineError::Job(
            "this CPU does not flush denormals on every thread (rule G6)".into(),
        ));
    }
    Ok(())
}

/// Chooses the f32 kernels by a short timing and proves the engine on made-up rows with them.
///
/// # Errors
/// [`EngineError::RowsInteract`] or [`EngineError::Mutated`] when the proof fails; a node's own error when the
/// graph does not run.
pub fn self_test(engine: &mut Engine) -> Result<KernelChoice> {
    compare_schemas()?;
    if !kernels::is_worth_threads(engine) {
        engine.use_one_thread();
    }
    tch::manual_seed(SEED);
    // A device has one kind of f32 kernels, chosen when it was started.
    let choice = match engine.device() {
        Device::Cpu => kernels::choose(engine)?,
        _ => KernelChoice::Default,
    };
    prove_rows(engine)?;
    prove_sums(engine)?;
    Ok(choice)
}

/// The same rows must give the same sums, bit for bit: blocks of rows without a record are taken to stay as they are
/// when that record comes or goes (`bastionai_privacy::sensitivity::Contraction`).
fn prove_sums(engine: &Engine) -> Result<()> {
    let size = i64::from(engine.settings().physical_batch_size);
    tch::manual_seed(SEED);
    let inputs = made_up(engine.graph(), size)?;
    let sums = || {
        let copies = inputs.iter().map(Tensor::shallow_clone).collect();
        engine.frozen_sums(&engine.batch(copies, Tensor::f_ones([size], (Kind::Bool, tch::Device::Cpu))?)?)
    };
    if sums()? == sums()? {
        Ok(())
    } else {
        Err(EngineError::RowsInteract {
            physical_batch_size: engine.settings().physical_batch_size,
        })
    }
}

/// What computes on batches of records whose rows must not influence one another.
pub(crate) trait RowProof {
    /// The graph it runs.
    fn graph(&self) -> &TypedGraph;
    /// Rows of every batch.
    fn batch_size(&self) -> u32;
    /// Over all parameters and constants (rule T8).
    fn state_digest(&self) -> Result<[u8; 32]>;
    /// Everything about each record that is used; axis 0 is the record.
    fn per_record_values(&self, inputs: Vec<Tensor>, present: Tensor) -> Result<Vec<Tensor>>;
}

impl RowProof for Engine {
    fn graph(&self) -> &TypedGraph {
        Self::graph(self)
    }

    fn batch_size(&self) -> u32 {
        self.settings().physical_batch_size
    }

    fn state_digest(&self) -> Result<[u8; 32]> {
        Self::state_digest(self)
    }

    fn per_record_values(&self, inputs: Vec<Tensor>, present: Tensor) -> Result<Vec<Tensor>> {
        Self::per_record_values(self, &self.batch(inputs, present)?)
    }
}

/// Replacing a row, whatever by, must leave every other row's numbers bit for bit; nothing may be written.
///
/// Rows are *not* required to be the same at another place of the batch: libtorch's kernels do not promise it
/// (MKL rounds a `[B, 6]·[6, 5]` product differently from row to row), and random places make it unnecessary
/// ([`crate::sample`]).
pub(crate) fn prove_rows(subject: &impl RowProof) -> Result<()> {
    let size = i64::from(subject.batch_size());
    let before = subject.state_digest()?;
    tch::manual_seed(SEED);
    let inputs = made_up(subject.graph(), size)?;
    let others = made_up(subject.graph(), size)?;
    let whole = || Tensor::f_ones([size], (Kind::Bool, tch::Device::Cpu));
    let copies = inputs.iter().map(Tensor::shallow_clone).collect();
    let reference = subject.per_record_values(copies, whole()?)?;
    for (round, filling) in fillings(&inputs).into_iter().enumerate() {
        let replaced: Vec<bool> = (0..size)
            .map(|row| (row + row / 3) % 2 == round as i64 % 2)
            .collect();
        let replaced = Tensor::f_from_slice(&replaced)?;
        let changed = inputs
            .iter()
            .zip(&others)
            .map(|(input, other)| replace(input, other, &replaced, filling))
            .collect::<Result<Vec<_>>>()?;
        let values = subject.per_record_values(changed, whole()?)?;
        let kept = replaced.f_logical_not()?;
        for (value, reference) in values.iter().zip(&reference) {
            if !same(value, reference, &kept)? {
                return Err(EngineError::RowsInteract {
                    physical_batch_size: subject.batch_size(),
                });
            }
        }
    }
    if subject.state_digest()? == before {
        Ok(())
    } else {
        Err(EngineError::Mutated)
    }
}

/// What replaces every element of a row: padding, not a number, infinite, huge, where exp overflows, denormal,
/// or another made-up row.
const FILLINGS: [Option<f64>; 8] = [
    Some(0.0),
    Some(f64::NAN),
    Some(f64::INFINITY),
    Some(-3e38),
    Some(200.0),
    Some(1e-40),
    None,
    None,
];

/// Where every input holds integers, all fillings but the first replace a row by the same other row: once in each of
/// the two halves of a batch is enough.
fn fillings(inputs: &[Tensor]) -> Vec<Option<f64>> {
    let floats = |input: &Tensor| matches!(input.kind(), Kind::Float | Kind::Double);
    if inputs.iter().any(floats) {
        FILLINGS.to_vec()
    } else {
        vec![Some(0.0), None, None]
    }
}

fn replace(input: &Tensor, other: &Tensor, replaced: &Tensor, filling: Option<f64>) -> Result<Tensor> {
    let shape: Vec<i64> = input
        .size()
        .iter()
        .enumerate()
        .map(|(axis, &extent)| if axis == 0 { extent } else { 1 })
        .collect();
    let rows = replaced.f_reshape(&shape[..])?;
    let filled = match filling {
        Some(value) if matches!(input.kind(), Kind::Float | Kind::Double) => other.f_full_like(value)?,
        Some(0.0) => other.f_zeros_like()?,
        _ => other.shallow_clone(),
    };
    Ok(filled.f_where_self(&rows, input)?)
}

fn made_up(graph: &TypedGraph, size: i64) -> Result<Vec<Tensor>> {
    let one = |input: &bastionai_graph::typed::Input| {
        let shape: Vec<i64> = std::iter::once(size)
            .chain(input.shape.iter().map(|&extent| extent as i64))
            .collect();
        let kind = crate::program::kind(input.dtype);
        Ok(match input.dtype {
            DType::F32 | DType::F64 => Tensor::f_rand(&shape[..], (kind, tch::Device::Cpu))?,
            _ => Tensor::f_randint(2, &shape[..], (Kind::Int64, tch::Device::Cpu))?.f_to_kind(kind)?,
        })
    };
    graph.inputs().iter().map(one).collect()
}

/// Equal bits in the rows that were kept, but for NaN, whose bits mean nothing.
fn same(left: &Tensor, right: &Tensor, kept: &Tensor) -> Result<bool> {
    let both_nan = left.f_isnan()?.f_logical_and(&right.f_isnan()?)?;
    let equal = left
        .f_eq_tensor(right)?
        .f_logical_or(&both_nan)?
        .f_reshape([kept.size()[0], -1])?;
    Ok(bool::try_from(
        equal
            .f_all_dim(1, false)?
            .f_logical_or(&kept.f_logical_not()?)?
            .f_all()?,
    )?)
}
