//! In what precision, and over how many rows at once, clipped sums are contracted: the fastest choice whose
//! rounding error costs little noise (rule G1).

use crate::engine::Settings;
use crate::error::{EngineError, Result};
use crate::gradients;
use crate::taps::{Method, ParameterPlan, Plan, TapKind};
use bastionai_graph::dtype::DType;
use bastionai_graph::typed::TypedGraph;
use bastionai_privacy::sensitivity::{
    ClipRule, Contraction, SumError, UNIT_ROUNDOFF_F32, UNIT_ROUNDOFF_F64, rounding_constant,
};
use bastionai_wire::Clipping;
use tch::Kind;

/// κ: how far a record's rows may cancel before they are clipped for it. In f64 its error is negligible.
const CANCELLATION: f64 = 1024.0;

/// Most extra noise that f32 contractions may cost: above it they are done in f64.
const F32_SENSITIVITY_SHARE: f64 = 0.01;

/// Fewest rows of an f32 contraction: shorter ones would be slower than f64.
const FEWEST_F32_ROWS: i64 = 64;

/// How one contraction is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Chosen {
    pub(crate) kind: Kind,
    /// Rows of one matrix product; its result is then moved to the integer grid.
    pub(crate) rows: i64,
}

/// The choices of one engine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Precision {
    /// For weights with one row per record.
    single: Chosen,
    /// For weights with several rows per record.
    sequence: Chosen,
    norm_rounding: f64,
    batch_size: i64,
}

/// Chooses. Weights of one row per record are contracted in f32 as long as it costs at most a percent of noise.
pub(crate) fn precision(plan: &Plan, graph: &TypedGraph, settings: &Settings) -> Result<Precision> {
    let batch_size = i64::from(settings.physical_batch_size);
    let records = records(settings);
    let has_f64 = graph
        .values()
        .iter()
        .any(|value| value.value_type.dtype == DType::F64);
    let affordable = |rows: i64| {
        2.0 * rounding_constant(rows as u64 + 2, UNIT_ROUNDOFF_F32) * records as f64 <= F32_SENSITIVITY_SHARE
    };
    let mut rows = batch_size;
    while rows > FEWEST_F32_ROWS && !affordable(rows) {
        rows = (rows + 1) / 2;
    }
    let double = |rows| Chosen {
        kind: Kind::Double,
        rows,
    };
    let single = if affordable(rows) && !has_f64 {
        Chosen {
            kind: Kind::Float,
            rows,
        }
    } else {
        double(batch_size)
    };
    let longest = plan.taps.iter().map(|tap| tap.rows_per_record).max().unwrap_or(1);
    let rows_of_batch = batch_size
        .checked_mul(longest)
        .ok_or_else(|| EngineError::Job("rows of a batch exceed 2^63".into()))?;
    let norm_rounding = rounding_constant(norm_length(plan), UNIT_ROUNDOFF_F64);
    Ok(Precision {
        single,
        sequence: double(rows_of_batch),
        norm_rounding,
        batch_size,
    })
}

/// Roundings in the longest norm: widths, `T²` products of a Gram matrix or the elements of an instantiated
/// gradient; twice, since `S_i` is rounded as well, and a few for roots and squares.
fn norm_length(plan: &Plan) -> u64 {
    let of_tap = |tap: &crate::taps::TapPlan| match tap.kind {
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
fn of_factors(parameter: &ParameterPlan, taps: &[crate::taps::TapPlan]) -> i64 {
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
fn rows(parameter: &ParameterPlan, taps: &[crate::taps::TapPlan]) -> i64 {
    let uses = parameter.uses.iter().map(|each| taps[each.tap].rows_per_record);
    uses.fold(0, i64::saturating_add)
}

fn records(settings: &Settings) -> u64 {
    u64::from(settings.physical_batch_size) * u64::from(settings.micro_batches)
}

impl Precision {
    pub(crate) fn contraction(&self, method: Method) -> Chosen {
        if method == Method::Rows {
            self.single
        } else {
            self.sequence
        }
    }

    /// The rule for a whole gradient, or for each of `parameters` parts of it.
    pub(crate) fn clip_rule(&self, settings: &Settings, parameters: usize) -> Result<ClipRule> {
        let rule = ClipRule::new(settings.max_grad_norm, self.norm_rounding, CANCELLATION)
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
            records,
            rows: records.saturating_mul(longest),
            coordinates: plan
                .parameters
                .iter()
                .map(|each| each.shape.iter().product::<i64>() as u64)
                .sum(),
            grid,
            grid_roundings: u64::from(settings.micro_batches) * self.partial_sums(plan),
            contractions: self.contractions(plan),
        }
    }

    /// Partial sums of a micro-batch, at most, for any one coordinate.
    fn partial_sums(&self, plan: &Plan) -> u64 {
        let of = |parameter: &ParameterPlan| match parameter.method {
            Method::Instantiate { .. } => self.blocks(parameter).len() as u64,
            method => {
                let chosen = self.contraction(method);
                let rows = if method == Method::Rows {
                    self.batch_size
                } else {
                    self.sequence.rows
                };
                (rows as u64).div_ceil(chosen.rows as u64) * parameter.uses.len() as u64
            }
        };
        plan.parameters.iter().map(of).max().unwrap_or(1).max(1)
    }

    fn contractions(&self, plan: &Plan) -> Vec<Contraction> {
        let used = |wanted: &dyn Fn(Method) -> bool| plan.parameters.iter().any(|each| wanted(each.method));
        let of = |chosen: Chosen, cancellation| Contraction {
            rows: chosen.rows as u64,
            unit_roundoff: if chosen.kind == Kind::Float {
                UNIT_ROUNDOFF_F32
            } else {
                UNIT_ROUNDOFF_F64
            },
            cancellation,
        };
        let mut out = Vec::new();
        if used(&|method| method == Method::Rows) {
            out.push(of(self.single, 1.0));
        }
        if used(&|method| matches!(method, Method::Ghost | Method::Factored)) {
            out.push(of(self.sequence, CANCELLATION));
        }
        // What is summed is what was clipped, so that only the summation over records can be off.
        if used(&|method| matches!(method, Method::Instantiate { .. })) {
            out.push(of(
                Chosen {
                    kind: Kind::Double,
                    rows: self.batch_size,
                },
                1.0,
            ));
        }
        out
    }
}
