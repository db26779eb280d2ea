//! What is checked at start, on made-up rows: floating-point mode, kernel choice, immutability, that a row's numbers do
//! not depend on the other rows, and that a row that cannot be used adds what an absent one does (rules G3, G4, G6, T2, T8).

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
    prove_absence(
        made_up(engine.graph(), i64::from(engine.settings().physical_batch_size))?,
        i64::from(engine.settings().records_per_unit),
        |inputs, present| engine.frozen_sums(&engine.batch(inputs, present)?),
    )?;
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
        let present = Tensor::f_ones([size], (Kind::Bool, tch::Device::Cpu))?;
        Ok::<_, EngineError>(engine.frozen_sums(&engine.batch(copies, present)?)?.0)
    };
    if sums()? == sums()? {
        Ok(())
    } else {
        Err(EngineError::RowsInteract {
            physical_batch_size: engine.settings().physical_batch_size,
        })
    }
}

/// A record that is not a number, or out of range, must add to the sums what an absent one does, bit for bit: nothing,
/// and no rounding of the others (rules G3, G4).
///
/// What such values make of a record is the graph's matter (`where` may make a number of NaN): held to it are the
/// records that `added` says did not count. `added` gives the sums of a batch, or their digest, and which of its records
/// are in them: of units of `length` records, one record is made so.
fn prove_absence<S: PartialEq>(
    inputs: Vec<Tensor>,
    length: i64,
    added: impl Fn(Vec<Tensor>, Tensor) -> Result<(S, Vec<bool>)>,
) -> Result<()> {
    let size = inputs.first().map_or(0, |input| input.size()[0]);
    let floats = inputs.iter().any(|input| is_float(input.kind()));
    let rows_at = |rest: i64| -> Result<Tensor> {
        let rows: Vec<bool> = (0..size)
            .map(|row| row % length == 0 && row / length % 4 == rest)
            .collect();
        Ok(Tensor::f_from_slice(&rows)?)
    };
    let (first, second) = (rows_at(0)?, rows_at(2)?);
    // Some rows with floats that are no numbers, others with integers out of any range.
    let (no_number, no_index) = if floats {
        (&first, &second)
    } else {
        (&second, &first)
    };
    let poisoned = inputs
        .iter()
        .map(|input| poison(input, no_number, no_index))
        .collect::<Result<Vec<_>>>()?;
    let copies = poisoned.iter().map(Tensor::shallow_clone).collect();
    let (sums, counted) = added(copies, Tensor::f_ones([size], (Kind::Bool, tch::Device::Cpu))?)?;
    let counted_mask = Tensor::f_from_slice(&counted)?;
    let absent = poisoned
        .iter()
        .map(|input| select(&counted_mask, input, &input.f_zeros_like()?))
        .collect::<Result<Vec<_>>>()?;
    if added(absent, counted_mask)? == (sums, counted) {
        Ok(())
    } else {
        Err(EngineError::UnusableAdds)
    }
}

fn is_float(kind: Kind) -> bool {
    matches!(kind, Kind::Float | Kind::Double)
}

/// The input with some rows that are no numbers, or integers out of range; a Boolean is always in range.
fn poison(input: &Tensor, no_number: &Tensor, no_index: &Tensor) -> Result<Tensor> {
    match input.kind() {
        kind if is_float(kind) => select(no_number, &input.f_full_like(f64::NAN)?, input),
        Kind::Bool => Ok(input.shallow_clone()),
        Kind::Uint8 => select(no_index, &input.f_full_like(255)?, input),
        Kind::Int => select(no_index, &input.f_full_like(i64::from(i32::MIN))?, input),
        _ => select(no_index, &input.f_full_like(i64::MIN)?, input),
    }
}

/// Rows of `chosen` where the mask is true, of `others` elsewhere.
fn select(rows: &Tensor, chosen: &Tensor, others: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; chosen.size().len()];
    shape[0] = -1;
    Ok(chosen.f_where_self(&rows.f_reshape(&shape[..])?, others)?)
}

/// What computes on batches of records whose rows must not influence one another.
pub(crate) trait RowProof {
    /// The graph it runs.
    fn graph(&self) -> &TypedGraph;
    /// Rows of every batch.
    fn batch_size(&self) -> u32;
    /// Rows of a batch that belong together: those of a unit.
    fn records_per_unit(&self) -> u32;
    /// Over all parameters and constants (rule T8).
    fn state_digest(&self) -> Result<[u8; 32]>;
    /// Everything about each unit that is used; axis 0 is the unit.
    fn per_record_values(&self, inputs: Vec<Tensor>, present: Tensor) -> Result<Vec<Tensor>>;
}

impl RowProof for Engine {
    fn graph(&self) -> &TypedGraph {
        Self::graph(self)
    }

    fn batch_size(&self) -> u32 {
        self.settings().physical_batch_size
    }

    fn records_per_unit(&self) -> u32 {
        self.settings().records_per_unit
    }

    fn state_digest(&self) -> Result<[u8; 32]> {
        Self::state_digest(self)
    }

    fn per_record_values(&self, inputs: Vec<Tensor>, present: Tensor) -> Result<Vec<Tensor>> {
        Self::per_record_values(self, &self.batch(inputs, present)?)
    }
}

/// Replacing a unit's rows, whatever by, must leave every other unit's numbers bit for bit; nothing may be written.
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
        let length = i64::from(subject.records_per_unit());
        let units: Vec<bool> = (0..size / length)
            .map(|unit| (unit + unit / 3) % 2 == round as i64 % 2)
            .collect();
        let units = Tensor::f_from_slice(&units)?;
        let replaced = units.f_repeat_interleave_self_int(length, 0, None)?;
        let changed = inputs
            .iter()
            .zip(&others)
            .map(|(input, other)| replace(input, other, &replaced, filling))
            .collect::<Result<Vec<_>>>()?;
        let values = subject.per_record_values(changed, whole()?)?;
        let kept = units.f_logical_not()?;
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
    let filled = match filling {
        Some(value) if is_float(input.kind()) => other.f_full_like(value)?,
        Some(0.0) => other.f_zeros_like()?,
        _ => other.shallow_clone(),
    };
    select(replaced, &filled, input)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Sums;

    /// A sum of rows in units of 1/1024: of those that are present, finite and index one of four classes, if `careful`.
    fn engine(careful: bool) -> impl Fn(Vec<Tensor>, Tensor) -> Result<(Sums, Vec<bool>)> {
        move |inputs, present| {
            let in_range = inputs[1].f_ge(0)?.f_logical_and(&inputs[1].f_lt(4)?)?;
            let finite = inputs[0].f_isfinite()?.f_all_dim(1, false)?;
            let counted = present.f_logical_and(&in_range)?.f_logical_and(&finite)?;
            let rows = if careful {
                select(&counted, &inputs[0], &inputs[0].f_zeros_like()?)?
            } else {
                // Forgets that the index was out of range: such a row is in the sum as it is.
                select(
                    &present.f_logical_and(&finite)?,
                    &inputs[0],
                    &inputs[0].f_zeros_like()?,
                )?
            };
            let sum: Vec<f64> = rows.f_sum_dim_intlist(0, false, Kind::Double)?.try_into()?;
            let sums = Sums(vec![sum.iter().map(|&each| (each * 1024.0) as i64).collect()]);
            Ok((sums, Vec::<bool>::try_from(counted)?))
        }
    }

    fn inputs(rows: i64) -> Vec<Tensor> {
        tch::manual_seed(SEED);
        let values = Tensor::f_rand([rows, 3], (Kind::Float, tch::Device::Cpu)).unwrap();
        let classes = Tensor::f_randint(4, [rows], (Kind::Int64, tch::Device::Cpu)).unwrap();
        vec![values, classes]
    }

    #[test]
    fn a_record_that_is_no_number_or_out_of_range_adds_what_an_absent_one_does() {
        for rows in [1, 3, 16] {
            prove_absence(inputs(rows), 1, engine(true)).unwrap();
        }
    }

    #[test]
    fn an_engine_that_adds_a_record_out_of_range_is_found() {
        let found = prove_absence(inputs(16), 1, engine(false));
        assert!(matches!(found, Err(EngineError::UnusableAdds)), "{found:?}");
    }

    #[test]
    fn an_engine_that_rounds_the_others_otherwise_for_a_record_that_is_no_number_is_found() {
        let honest = engine(true);
        let rounds = |inputs: Vec<Tensor>, present: Tensor| {
            let poisoned = bool::try_from(inputs[0].f_isnan()?.f_any()?)?;
            let (mut sums, counted) = honest(inputs, present)?;
            sums.0[0][0] += i64::from(poisoned);
            Ok((sums, counted))
        };
        let found = prove_absence(inputs(16), 1, rounds);
        assert!(matches!(found, Err(EngineError::UnusableAdds)), "{found:?}");
    }

    #[test]
    fn both_kinds_of_unusable_records_are_made() {
        let (no_number, no_index) = (
            Tensor::f_from_slice(&[true, false, false]).unwrap(),
            Tensor::f_from_slice(&[false, false, true]).unwrap(),
        );
        let given = inputs(3);
        let values = poison(&given[0], &no_number, &no_index).unwrap();
        let classes = poison(&given[1], &no_number, &no_index).unwrap();
        let rows: Vec<bool> = values.isnan().all_dim(1, false).try_into().unwrap();
        assert_eq!(rows, [true, false, false]);
        assert_eq!(classes.int64_value(&[2]), i64::MIN);
        assert_eq!(classes.int64_value(&[1]), given[1].int64_value(&[1]));
    }
}
