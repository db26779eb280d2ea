//! Which f32 matrix kernels a run uses: the faster of two, if it is really f32.

use crate::engine::Engine;
use crate::error::{EngineError, Result};
use crate::ffi;
use crate::gradients;
use crate::precision::GRAM_PIECE;
use crate::taps::BLOCK_ELEMENTS;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Repetitions of the timing; the best counts.
const TIMINGS: usize = 5;

/// Where timing cannot tell them apart the fast kernels are taken: the products that are not timed gain by them.
const AS_FAST: f64 = 1.1;

/// An f32 product of up to a few thousand terms is off by well under this; bf16 is off by 4e-3.
const TRUE_F32_ERROR: f64 = 2e-5;

/// Below this many multiplications in its largest product (about 50 µs) a model runs on one thread: waking others
/// costs more than they save.
const WORTH_THREADS: i64 = 1 << 21;

/// Fewer multiplications than this are not worth choosing kernels for.
const WORTH_CHOOSING: i64 = 1 << 20;

/// Which f32 matrix kernels a run uses; fixed for the whole run (rule T2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelChoice {
    /// libtorch's default.
    Default,
    /// What `float32_matmul_precision = "medium"` selects, where that is still true f32.
    Fast,
}

/// One linear layer's products: `[records·rows_per_record, input_width] · [input_width, output_width]`, the
/// contraction of its gradient, and the Gram matrices of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Product {
    pub(crate) records: i64,
    pub(crate) rows_per_record: i64,
    pub(crate) input_width: i64,
    pub(crate) output_width: i64,
    /// Rows that one contraction sums; 0 of a layer that is frozen, which has neither contraction nor Gram matrices.
    pub(crate) contracted_rows: i64,
}

impl Product {
    pub(crate) fn multiplications(&self) -> i64 {
        self.rows()
            .saturating_mul(self.input_width)
            .saturating_mul(self.output_width)
    }

    fn rows(&self) -> i64 {
        self.records.saturating_mul(self.rows_per_record)
    }
}

/// Whether the model is large enough for more than one thread.
pub(crate) fn is_worth_threads(engine: &Engine) -> bool {
    engine.largest_product() >= WORTH_THREADS
}

/// Times the largest product on both kinds of kernels; the fast kind wins if it is faster there and every product
/// of the run is true f32 on it, in each layout it occurs in. `"medium"` permits bf16, and which kernel runs
/// depends on the shape, so one shape says nothing about another. What is charged for (rule G1) does not rest on this:
/// see [`TrueF32`].
pub(crate) fn choose(engine: &Engine) -> Result<KernelChoice> {
    select(KernelChoice::Default)?;
    let Some(largest) = largest(engine).filter(|product| product.multiplications() >= WORTH_CHOOSING) else {
        return Ok(KernelChoice::Default);
    };
    let (left, right) = operands(
        &[largest.rows(), largest.input_width],
        &[largest.output_width, largest.input_width],
    )?;
    let default_seconds = seconds(&left, &right)?;
    select(KernelChoice::Fast)?;
    if seconds(&left, &right)? < default_seconds * AS_FAST && are_true_f32(engine)? {
        return Ok(KernelChoice::Fast);
    }
    select(KernelChoice::Default)?;
    Ok(KernelChoice::Default)
}

fn largest(engine: &Engine) -> Option<Product> {
    engine.products().into_iter().max_by_key(Product::multiplications)
}

/// What is selected in this process.
static FAST: AtomicBool = AtomicBool::new(false);

fn select(choice: KernelChoice) -> Result<()> {
    ffi::prefer_fast_f32(choice == KernelChoice::Fast).map_err(|_| EngineError::Torch {
        detail: ffi::last_error(),
    })?;
    FAST.store(choice == KernelChoice::Fast, Ordering::Relaxed);
    Ok(())
}

/// While it lives, products run on libtorch's default kernels, which are f32 for every shape and layout. Gram matrices
/// and contractions are made under it: their charged errors (rule G1) then rest on no measurement of kernels that may be
/// bf16. Gradients that are written out need it not: the very numbers are clipped and summed.
pub(crate) struct TrueF32 {
    was_fast: bool,
}

impl TrueF32 {
    pub(crate) fn enter() -> Result<Self> {
        let was_fast = FAST.load(Ordering::Relaxed);
        if was_fast {
            select(KernelChoice::Default)?;
        }
        Ok(Self { was_fast })
    }
}

impl Drop for TrueF32 {
    fn drop(&mut self) {
        // Should it fail, the run goes on with the default kernels: slower, and as sound.
        if self.was_fast && select(KernelChoice::Fast).is_err() {
            FAST.store(false, Ordering::Relaxed);
        }
    }
}

fn seconds(left: &Tensor, right: &Tensor) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..TIMINGS {
        let start = Instant::now();
        drop(left.f_linear::<Tensor>(right, None)?);
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn are_true_f32(engine: &Engine) -> Result<bool> {
    for product in engine.products() {
        for multiply in [forward, backward, contraction, grams] {
            if !multiply(&product)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn forward(product: &Product) -> Result<bool> {
    let (input, weight) = operands(
        &[product.rows(), product.input_width],
        &[product.output_width, product.input_width],
    )?;
    is_true_f32(&input, &weight, |input, weight| {
        input.f_linear::<Tensor>(weight, None)
    })
}

fn backward(product: &Product) -> Result<bool> {
    let (gradient, weight) = operands(
        &[product.rows(), product.output_width],
        &[product.output_width, product.input_width],
    )?;
    is_true_f32(&gradient, &weight, |gradient, weight| gradient.f_mm(weight))
}

fn contraction(product: &Product) -> Result<bool> {
    if product.contracted_rows == 0 {
        return Ok(true);
    }
    let (gradient, input) = operands(
        &[product.contracted_rows, product.output_width],
        &[product.contracted_rows, product.input_width],
    )?;
    let both = is_true_f32(&gradient, &input, |gradient, input| gradient.f_tr()?.f_mm(input))?;
    Ok(both && is_true_f32(&input, &gradient, |input, gradient| input.f_tr()?.f_mm(gradient))?)
}

fn grams(product: &Product) -> Result<bool> {
    if product.rows_per_record == 1 || product.contracted_rows == 0 {
        return Ok(true);
    }
    let (records, rows) = (product.records, product.rows_per_record);
    let (input, gradient) = operands(
        &[records, rows, product.input_width],
        &[records, rows, product.output_width],
    )?;
    let gram = |rows: &Tensor, same: &Tensor| rows.f_bmm(&same.f_transpose(1, 2)?);
    for rows in [&input, &gradient] {
        for (first, count) in gradients::blocks(rows.size()[2], GRAM_PIECE) {
            let piece = rows.f_narrow(2, first, count)?;
            if !is_true_f32(&piece, &piece, gram)? {
                return Ok(false);
            }
        }
    }
    // As many records at once as gradients are instantiated of: of GPT-2's head four would be 5 GB here.
    let elements = product.input_width.saturating_mul(product.output_width).max(1);
    let block = (BLOCK_ELEMENTS / elements).clamp(1, records);
    is_true_f32(
        &gradient.f_narrow(0, 0, block)?,
        &input.f_narrow(0, 0, block)?,
        |gradient, input| gradient.f_transpose(1, 2)?.f_bmm(input),
    )
}

/// Made-up operands of these shapes.
fn operands(left: &[i64], right: &[i64]) -> Result<(Tensor, Tensor)> {
    let random = |shape: &[i64]| Tensor::f_randn(shape, (Kind::Float, Device::Cpu));
    Ok((random(left)?, random(right)?))
}

fn is_true_f32(
    left: &Tensor,
    right: &Tensor,
    multiply: impl Fn(&Tensor, &Tensor) -> std::result::Result<Tensor, tch::TchError>,
) -> Result<bool> {
    let exact = multiply(&left.f_to_kind(Kind::Double)?, &right.f_to_kind(Kind::Double)?)?;
    let mut found = multiply(left, right)?.f_to_kind(Kind::Double)?;
    let error = found.f_sub_(&exact)?.f_norm()?;
    Ok(f64::try_from(error.f_div(&exact.f_norm()?)?)? < TRUE_F32_ERROR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::{Builder, b, n, settings};
    use bastionai_graph::dtype::DType;
    use bastionai_graph::typed::{Argument, Extent};

    const RECORDS: i64 = 4;

    /// The sum of `head(x · frozen)`: x `[B, 5, 8]`, a layer `[8, width]` that is frozen, as `linear` or as GPT-2 has
    /// its layers, `addmm` of all rows at once, and a head `[3, width]` that is trained.
    fn on_a_frozen_layer(width: u64, by_addmm: bool) -> Engine {
        let mut g = Builder::default();
        let x = g.input("x", DType::F32, &[5, 8]);
        let hidden = [b(1), n(5), n(width)];
        let sizes = |shape: &[Extent]| ("shape", Argument::Sizes(shape.to_vec()));
        let hidden = if by_addmm {
            let bias = g.parameter("frozen.bias", DType::F32, &[width], false);
            let weight = g.parameter("frozen.weight", DType::F32, &[8, width], false);
            let shape = [b(5), n(8)];
            let rows = g.node(
                "reshape",
                &[("self", Argument::Value(x)), sizes(&shape)],
                DType::F32,
                &shape,
            );
            let operands = [("self", bias), ("mat1", rows), ("mat2", weight)];
            let operands = operands.map(|(name, value)| (name, Argument::Value(value)));
            let rows = g.node("addmm", &operands, DType::F32, &[b(5), n(width)]);
            g.node(
                "reshape",
                &[("self", Argument::Value(rows)), sizes(&hidden)],
                DType::F32,
                &hidden,
            )
        } else {
            let weight = g.parameter("frozen.weight", DType::F32, &[width, 8], false);
            g.linear(x, weight, None, &hidden)
        };
        let head = g.parameter("head.weight", DType::F32, &[3, width], true);
        let scores = g.linear(hidden, head, None, &[b(1), n(5), n(3)]);
        let over = [
            ("self", Argument::Value(scores)),
            ("dim", Argument::Ints(vec![1, 2])),
        ];
        let loss = g.node("sum.dim_IntList", &over, DType::F32, &[b(1)]);
        let zeros = |elements: u64| vec![0; 4 * elements as usize];
        let bias = by_addmm.then(|| zeros(width));
        let weights: Vec<Vec<u8>> = bias
            .into_iter()
            .chain([zeros(8 * width), zeros(3 * width)])
            .collect();
        Engine::new(g.finish(loss), &weights, &[], settings(RECORDS as u32, 1.0)).unwrap()
    }

    #[test]
    fn kernels_are_proven_on_products_of_frozen_layers_but_not_on_contractions_that_these_never_have() {
        for by_addmm in [false, true] {
            let products = on_a_frozen_layer(16, by_addmm).products();
            let (frozen, trained): (Vec<Product>, Vec<Product>) =
                products.into_iter().partition(|each| each.contracted_rows == 0);
            let expected = Product {
                records: RECORDS,
                rows_per_record: 5,
                input_width: 8,
                output_width: 16,
                contracted_rows: 0,
            };
            assert_eq!(frozen, [expected], "by addmm: {by_addmm}");
            let [trained] = trained[..] else {
                panic!("{trained:?}")
            };
            assert_eq!((trained.input_width, trained.output_width), (16, 3));
        }
    }

    #[test]
    fn a_frozen_layer_decides_which_product_is_timed_and_whether_threads_are_worth_it() {
        let worth = WORTH_THREADS as u64 / (RECORDS as u64 * 5 * 8);
        for by_addmm in [false, true] {
            let (small, large) = (
                on_a_frozen_layer(64, by_addmm),
                on_a_frozen_layer(worth + 1, by_addmm),
            );
            assert_eq!(small.largest_product(), RECORDS * 5 * 8 * 64);
            assert_eq!(
                largest(&large).unwrap().multiplications(),
                large.largest_product()
            );
            assert_eq!(largest(&large).unwrap().contracted_rows, 0, "the frozen one");
            assert!(!is_worth_threads(&small) && is_worth_threads(&large));
        }
    }

    #[test]
    fn a_product_in_lower_precision_is_noticed() {
        let (left, right) = operands(&[64, 512], &[512, 32]).unwrap();
        assert!(is_true_f32(&left, &right, |left, right| left.f_mm(right)).unwrap());
        let bf16 = |left: &Tensor, right: &Tensor| {
            if left.kind() == Kind::Double {
                return left.f_mm(right);
            }
            let rounded = |tensor: &Tensor| tensor.f_to_kind(Kind::BFloat16)?.f_to_kind(Kind::Float);
            rounded(left)?.f_mm(&rounded(right)?)
        };
        assert!(!is_true_f32(&left, &right, bf16).unwrap());
    }

    #[test]
    fn every_layout_of_a_product_is_true_f32_on_the_default_kernels() {
        let product = Product {
            records: 8,
            rows_per_record: 3,
            input_width: 20,
            output_width: 7,
            contracted_rows: 12,
        };
        for multiply in [forward, backward, contraction, grams] {
            assert!(multiply(&product).unwrap());
        }
    }
}
