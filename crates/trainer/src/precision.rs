//! In what precision, and over how many rows at once, norms and clipped sums are computed: the fastest choice whose
//! rounding error costs little noise (rule G1).

use crate::engine::Settings;
use crate::error::{EngineError, Result};
use crate::ffi::products::MOST_BLOCK_ROWS;
use crate::gradients;
use crate::taps::{Factor, Method, ParameterPlan, Plan, TapKind, TapPlan, Use};
use bastionai_privacy::sensitivity::{
    ClipRule, Contraction, GramRounding, SumError, UNIT_ROUNDOFF_F32, UNIT_ROUNDOFF_F64, rounding_constant,
};
use bastionai_wire::Clipping;
use tch::Kind;

/// κ where sums of several rows are contracted in f64: how far a record's rows may cancel before they are clipped
/// for it. In f64 its error is negligible.
const CANCELLATION: f64 = 1024.0;

/// Least κ where they are contracted in f32. Rows of T independent directions have `S_i/‖G_i‖` of `√T`, language
/// models come close to it, classifiers have 1 to 2 (measured on BERT and GPT-2): twice `√T` is hardly ever reached.
const LEAST_CANCELLATION: f64 = 16.0;

/// Most columns of rows whose dot products libtorch sums in f32 at once: γ is 5e-4 at most.
pub(crate) const GRAM_PIECE: i64 = 4096;

/// Whose f32 kernels compute contractions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Products {
    /// The engine's own (shim/products.h): a block's rows in one chain of f32 additions, the blocks in f64.
    Own,
    /// libtorch's, in any order of summation: where the run's device is not the CPU.
    Libtorch,
}

/// What bounds the choice of f32 contractions.
struct Limits {
    /// Most extra noise that they may cost: above it they are done in f64.
    sensitivity_share: f64,
    /// Fewest rows of a block: with fewer, f64 would be as fast.
    fewest_rows: i64,
    /// Most rows of a block with several rows a record.
    most_rows: i64,
    /// Most rows of a block with one.
    most_rows_alone: i64,
    /// Most products added up in f32 before the grid.
    most_products: i64,
}

impl Products {
    fn limits(self) -> Limits {
        match self {
            // Their blocks need not be long: a third of a percent leaves them some hundred rows, and longer are no faster.
            Self::Own => Limits {
                sensitivity_share: 0.003,
                fewest_rows: 32,
                most_rows: MOST_BLOCK_ROWS,
                most_rows_alone: MOST_BLOCK_ROWS,
                most_products: 1,
            },
            Self::Libtorch => Limits {
                sensitivity_share: 0.01,
                fewest_rows: 64,
                most_rows: 1024,
                most_rows_alone: i64::MAX,
                most_products: 8,
            },
        }
    }
}

/// f32 roundings that a term of one of the engine's own dot products goes through: shim/products.h.
pub(crate) fn gram_roundings(width: i64) -> u64 {
    let width = width as u64;
    width.min(64 + 4 + width.div_ceil(256))
}

/// How one contraction is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Chosen {
    pub(crate) kind: Kind,
    /// Rows of one matrix product.
    pub(crate) rows: i64,
    /// Products added up before they are moved to the integer grid.
    pub(crate) products: i64,
}

/// A kind of contraction: weights with so many rows per record; alone when that is one row of one use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    rows_per_record: i64,
    alone: bool,
}

/// The choices of one engine.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Precision {
    contractions: Vec<(Shape, Chosen)>,
    /// κ.
    cancellation: f64,
    /// γ of norms that are computed in f64.
    norm_rounding: f64,
    /// Of Gram matrices, and of products between them.
    gram: Kind,
    products: Products,
    batch_size: i64,
}

/// Chooses. Contractions are done in f32 as long as all of them cost at most a third of a percent of noise (a percent on
/// libtorch's kernels).
pub(crate) fn precision(plan: &Plan, products: Products) -> Result<Precision> {
    let batch_size = plan.units;
    let longest = plan.taps.iter().map(|tap| tap.rows_per_record).max().unwrap_or(1);
    batch_size
        .checked_mul(longest)
        .ok_or_else(|| EngineError::Job("rows of a batch exceed 2^63".into()))?;
    let shapes = shapes(plan);
    let several = shapes.iter().filter(|shape| !shape.alone);
    let most_rows = several.map(|shape| shape.rows_per_record).max().unwrap_or(1);
    let small = (2.0 * (most_rows as f64).sqrt()).max(LEAST_CANCELLATION);
    let small = 2f64.powi(small.log2().ceil() as i32).min(CANCELLATION);
    let single = |shape: &Shape| in_f64(*shape, batch_size);
    let mut contractions: Vec<(Shape, Chosen)> = shapes.iter().map(|shape| (*shape, single(shape))).collect();
    if !plan.in_f64 {
        let limits = products.limits();
        let mut left = limits.sensitivity_share;
        for (position, shape) in shapes.iter().enumerate() {
            let allowed = left / (shapes.len() - position) as f64;
            let cost = |chosen: Chosen| charge(*shape, chosen, small).rounding_share();
            if let Some(chosen) = in_f32(*shape, batch_size, &limits, |chosen| cost(chosen) <= allowed) {
                left -= cost(chosen);
                contractions[position].1 = chosen;
            }
        }
    }
    let uses_f32 = |(shape, chosen): &(Shape, Chosen)| !shape.alone && chosen.kind == Kind::Float;
    let cancellation = if contractions.iter().any(uses_f32) {
        small
    } else {
        CANCELLATION
    };
    Ok(Precision {
        contractions,
        cancellation,
        norm_rounding: rounding_constant(norm_length(plan), UNIT_ROUNDOFF_F64),
        gram: if plan.in_f64 { Kind::Double } else { Kind::Float },
        products,
        batch_size,
    })
}

/// The kinds of contractions of a plan, shortest first, each once.
fn shapes(plan: &Plan) -> Vec<Shape> {
    let of_use = |parameter: &ParameterPlan, each: &Use| {
        (each.factor() != Some(Factor::Table)).then(|| shape(parameter.method, &plan.taps[each.tap]))
    };
    let by_rows = |parameter: &&ParameterPlan| !matches!(parameter.method, Method::Instantiate { .. });
    let mut shapes: Vec<Shape> = plan
        .parameters
        .iter()
        .filter(by_rows)
        .flat_map(|parameter| {
            parameter
                .uses
                .iter()
                .filter_map(move |each| of_use(parameter, each))
        })
        .collect();
    shapes.sort_unstable();
    shapes.dedup();
    shapes
}

fn shape(method: Method, tap: &TapPlan) -> Shape {
    Shape {
        rows_per_record: tap.rows_per_record,
        alone: method == Method::Rows,
    }
}

fn in_f64(shape: Shape, batch_size: i64) -> Chosen {
    Chosen {
        kind: Kind::Double,
        rows: batch_size.saturating_mul(shape.rows_per_record),
        products: 1,
    }
}

/// The longest products in f32 that are affordable, of whole records where possible, and as many of them added up as
/// are.
fn in_f32(
    shape: Shape,
    batch_size: i64,
    limits: &Limits,
    is_affordable: impl Fn(Chosen) -> bool,
) -> Option<Chosen> {
    let of = |rows, products| Chosen {
        kind: Kind::Float,
        rows,
        products,
    };
    let length = shape.rows_per_record;
    let most = if shape.alone {
        limits.most_rows_alone
    } else {
        limits.most_rows.max(length)
    };
    let whole = (1..=batch_size.min(most / length))
        .rev()
        .map(|records| records * length);
    let parts = (1..)
        .map(|halvings| length >> halvings)
        .take_while(|rows| *rows >= limits.fewest_rows);
    let fewest = limits.fewest_rows.min(batch_size.saturating_mul(length));
    let rows = whole
        .chain(parts)
        .filter(|rows| *rows >= fewest && (limits.most_products > 1 || *rows <= limits.most_rows))
        .find(|rows| is_affordable(of(*rows, 1)))?;
    let blocks = if rows >= length {
        (batch_size as u64).div_ceil((rows / length) as u64) as i64
    } else {
        (length as u64).div_ceil(rows as u64) as i64
    };
    let products = (1..=blocks.min(limits.most_products)).rev();
    products
        .map(|products| of(rows, products))
        .find(|chosen| is_affordable(*chosen))
}

/// Blocks `(first, count)` of the rows of a batch, at most `rows` each: of whole records, or of parts of one record.
/// Those of one group are added up; where records are in parts, a group has parts of one record only.
fn groups(rows_per_record: i64, batch_size: i64, chosen: Chosen) -> Vec<Vec<(i64, i64)>> {
    let in_groups = |blocks: Vec<(i64, i64)>| -> Vec<Vec<(i64, i64)>> {
        let groups = blocks.chunks(chosen.products as usize);
        groups.map(<[(i64, i64)]>::to_vec).collect()
    };
    if chosen.rows >= rows_per_record {
        let records = gradients::blocks(batch_size, chosen.rows / rows_per_record);
        return in_groups(
            records
                .map(|(first, count)| (first * rows_per_record, count * rows_per_record))
                .collect(),
        );
    }
    let parts = |record: i64| {
        let parts = gradients::blocks(rows_per_record, chosen.rows);
        in_groups(
            parts
                .map(|(first, count)| (record * rows_per_record + first, count))
                .collect(),
        )
    };
    (0..batch_size).flat_map(parts).collect()
}

fn charge(shape: Shape, chosen: Chosen, cancellation: f64) -> Contraction {
    Contraction {
        rows: chosen.rows as u64,
        records: (chosen.rows / shape.rows_per_record).max(1) as u64,
        products: chosen.products as u64,
        unit_roundoff: if chosen.kind == Kind::Float {
            UNIT_ROUNDOFF_F32
        } else {
            UNIT_ROUNDOFF_F64
        },
        cancellation: if shape.alone { 1.0 } else { cancellation },
    }
}

/// Roundings in the longest norm computed in f64: widths, `T²` products of a Gram matrix or the elements of an
/// instantiated gradient; twice, since `S_i` is rounded as well, and a few for roots and squares.
fn norm_length(plan: &Plan) -> u64 {
    let of_tap = |tap: &TapPlan| match tap.kind {
        TapKind::Rows {
            input_width,
            output_width,
        } => (input_width + output_width)
            .saturating_add(tap.rows_per_record.saturating_mul(tap.rows_per_record)),
        TapKind::Convolution(ref plan) if tap.as_rows => {
            let widths = plan.unfolded_width() + plan.plain_width();
            widths.saturating_add(tap.rows_per_record.saturating_mul(tap.rows_per_record))
        }
        _ => tap.rows_per_record,
    };
    let of_parameter = |parameter: &ParameterPlan| match parameter.method {
        Method::Instantiate { .. } => parameter.shape.iter().product::<i64>(),
        Method::Factored => of_factors(parameter, &plan.taps),
        _ => 0,
    };
    let taps = plan.taps.iter().map(of_tap).max().unwrap_or(0);
    let parameters = plan.parameters.iter().map(of_parameter).max().unwrap_or(0);
    let terms = taps.saturating_add(parameters) as u64 + plan.parameters.len() as u64;
    terms.saturating_mul(2).saturating_add(64)
}

/// Of a tie, over all uses' rows `n`: Gram matrices of `rows` and `width` terms and their `n²` products, or sums over
/// `n` tokens and squares of `n·width` elements.
fn of_factors(parameter: &ParameterPlan, taps: &[TapPlan]) -> i64 {
    let rows = rows(parameter, taps);
    let widths = parameter
        .shape
        .iter()
        .fold(0i64, |sum, extent| sum.saturating_add(*extent));
    let width = parameter.shape.last().copied().unwrap_or(1);
    rows.saturating_mul(rows.saturating_add(width))
        .saturating_add(widths)
        .saturating_add(rows)
}

/// Rows of a record over all uses.
fn rows(parameter: &ParameterPlan, taps: &[TapPlan]) -> i64 {
    let uses = parameter.uses.iter().map(|each| taps[each.tap].rows_per_record);
    uses.fold(0, i64::saturating_add)
}

fn records(settings: &Settings) -> u64 {
    u64::from(settings.physical_batch_size / settings.records_per_unit) * u64::from(settings.micro_batches)
}

impl Precision {
    /// How the rows of one use are contracted.
    pub(crate) fn contraction(&self, method: Method, tap: &TapPlan) -> Chosen {
        let shape = shape(method, tap);
        let found = self.contractions.iter().find(|(own, _)| *own == shape);
        found.map_or(in_f64(shape, self.batch_size), |(_, chosen)| *chosen)
    }

    /// The blocks of rows `(first, count)` of one use, in groups that are added up.
    pub(crate) fn groups(&self, chosen: Chosen, tap: &TapPlan) -> Vec<Vec<(i64, i64)>> {
        groups(tap.rows_per_record, self.batch_size, chosen)
    }

    /// Rows of every batch.
    pub(crate) fn batch_size(&self) -> i64 {
        self.batch_size
    }

    /// Whether it is the engine's own kernels that compute it.
    pub(crate) fn is_own(&self, chosen: Chosen) -> bool {
        self.products == Products::Own && chosen.kind == Kind::Float
    }

    /// In what precision Gram matrices are computed.
    pub(crate) fn gram(&self) -> Kind {
        self.gram
    }

    /// How far norms from Gram matrices of these widths can be off; `None` where they are computed in f64 like any
    /// other norm.
    pub(crate) fn gram_rounding(&self, widths: [i64; 2]) -> Option<GramRounding> {
        (self.gram == Kind::Float).then_some(GramRounding {
            widths: widths.map(|width| width as u64),
            roundings: widths.map(|width| match self.products {
                Products::Own => gram_roundings(width),
                Products::Libtorch => width.min(GRAM_PIECE) as u64,
            }),
            sum: self.norm_rounding,
        })
    }

    /// The rule for a whole gradient, or for each of `parameters` parts of it.
    pub(crate) fn clip_rule(&self, settings: &Settings, parameters: usize) -> Result<ClipRule> {
        let rule = ClipRule::new(settings.max_grad_norm, self.norm_rounding, self.cancellation)
            .map_err(|error| EngineError::Job(error.to_string()))?;
        Ok(match settings.clipping {
            Clipping::Flat => rule,
            Clipping::PerLayer => rule.per_layer(parameters),
            Clipping::Automatic => rule.automatic(),
        })
    }

    /// Blocks of records of an instantiated parameter: `(first, count)`.
    pub(crate) fn blocks(&self, parameter: &ParameterPlan) -> Vec<(i64, i64)> {
        gradients::blocks(self.batch_size, parameter.block).collect()
    }

    /// Everything that [`bastionai_privacy::sensitivity::charged_sensitivity`] charges for.
    pub(crate) fn sum_error(&self, plan: &Plan, settings: &Settings, grid: f64) -> SumError {
        let records = records(settings);
        let of_parameters = plan.parameters.iter().map(|each| rows(each, &plan.taps));
        let longest = of_parameters.max().unwrap_or(1).max(1) as u64;
        SumError {
            max_grad_norm: settings.max_grad_norm,
            rows: records.saturating_mul(longest),
            coordinates: plan
                .parameters
                .iter()
                .map(|each| each.shape.iter().product::<i64>() as u64)
                .sum(),
            grid,
            grid_roundings: u64::from(settings.micro_batches) * self.partial_sums(plan),
            contractions: self.charges(plan),
        }
    }

    /// Partial sums of a micro-batch, at most, for any one coordinate.
    fn partial_sums(&self, plan: &Plan) -> u64 {
        let of_use = |method: Method, tap: &TapPlan| {
            let chosen = self.contraction(method, tap);
            if self.is_own(chosen) {
                1
            } else {
                self.groups(chosen, tap).len()
            }
        };
        let of = |parameter: &ParameterPlan| match parameter.method {
            Method::Instantiate { .. } => self.blocks(parameter).len(),
            method => {
                let uses = parameter
                    .uses
                    .iter()
                    .map(|each| of_use(method, &plan.taps[each.tap]));
                uses.sum()
            }
        };
        plan.parameters.iter().map(of).max().unwrap_or(1).max(1) as u64
    }

    fn charges(&self, plan: &Plan) -> Vec<Contraction> {
        let contractions = self.contractions.iter();
        let mut out: Vec<Contraction> = contractions
            .map(|(shape, chosen)| charge(*shape, *chosen, self.cancellation))
            .collect();
        // Gradients of records, and rows of tables, are summed over a batch in f64. What is summed of the first is
        // what was clipped, so that only the summation over records can be off.
        let any = |wanted: &dyn Fn(&ParameterPlan) -> bool| plan.parameters.iter().any(wanted);
        let summed = |rows: i64, cancellation| Contraction {
            rows: rows as u64,
            records: self.batch_size as u64,
            products: 1,
            unit_roundoff: UNIT_ROUNDOFF_F64,
            cancellation,
        };
        if any(&|each| matches!(each.method, Method::Instantiate { .. })) {
            out.push(summed(self.batch_size, 1.0));
        }
        // The blocks of the engine's own contractions are added in f64, no more of them than there are rows.
        let own = self
            .contractions
            .iter()
            .filter(|(_, chosen)| self.is_own(*chosen));
        if let Some(longest) = own.map(|(shape, _)| shape.rows_per_record).max() {
            out.push(summed(self.batch_size * longest, self.cancellation.max(1.0)));
        }
        if any(&|each| each.method == Method::Factored) {
            let longest = plan.taps.iter().map(|tap| tap.rows_per_record).max().unwrap_or(1);
            out.push(summed(self.batch_size * longest, self.cancellation));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(shape: Shape, chosen: Chosen) -> f64 {
        charge(shape, chosen, 32.0).rounding_share()
    }

    #[test]
    fn blocks_of_rows_are_whole_records_or_parts_of_one() {
        let of = |rows, products| Chosen {
            kind: Kind::Float,
            rows,
            products,
        };
        assert_eq!(groups(3, 5, of(7, 2)), [vec![(0, 6), (6, 6)], vec![(12, 3)]]);
        let parts = [
            vec![(0, 2), (2, 2)],
            vec![(4, 1)],
            vec![(5, 2), (7, 2)],
            vec![(9, 1)],
        ];
        assert_eq!(groups(5, 2, of(2, 2)), parts);
        assert_eq!(groups(1, 4, of(4, 1)), [[(0, 4)]]);
    }

    #[test]
    fn f32_is_taken_as_long_as_its_share_of_noise_allows() {
        for (rows_per_record, alone) in [(1, true), (32, false), (128, false), (512, false), (4096, false)] {
            let shape = Shape {
                rows_per_record,
                alone,
            };
            for products in [Products::Own, Products::Libtorch] {
                let limits = products.limits();
                let affordable = |chosen| cost(shape, chosen) <= limits.sensitivity_share;
                let chosen = in_f32(shape, 64, &limits, affordable).unwrap();
                assert!(chosen.rows >= limits.fewest_rows, "{rows_per_record}: {chosen:?}");
                assert!(affordable(chosen));
                assert!(chosen.rows % rows_per_record == 0 || chosen.rows < rows_per_record);
                if products == Products::Own {
                    assert!(chosen.rows <= MOST_BLOCK_ROWS && chosen.products == 1);
                }
            }
        }
        let shape = Shape {
            rows_per_record: 128,
            alone: false,
        };
        let limits = Products::Own.limits();
        assert_eq!(
            in_f32(shape, 64, &limits, |chosen| cost(shape, chosen) <= 1e-6),
            None
        );
    }

    #[test]
    fn a_known_order_of_summation_costs_a_fraction_of_the_noise_of_any_order() {
        let shape = Shape {
            rows_per_record: 128,
            alone: false,
        };
        let charged = |products: Products| {
            let limits = products.limits();
            let chosen = in_f32(shape, 16, &limits, |chosen| {
                cost(shape, chosen) <= limits.sensitivity_share
            });
            cost(shape, chosen.unwrap())
        };
        assert!(charged(Products::Own) < 0.5 * charged(Products::Libtorch));
    }

    #[test]
    fn a_small_batch_may_have_fewer_rows_than_a_long_product() {
        let shape = Shape {
            rows_per_record: 2,
            alone: false,
        };
        let limits = Products::Libtorch.limits();
        let chosen = in_f32(shape, 4, &limits, |chosen| {
            cost(shape, chosen) <= limits.sensitivity_share
        })
        .unwrap();
        assert_eq!(chosen.rows, 8);
    }
}
