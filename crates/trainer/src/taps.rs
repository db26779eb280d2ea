//! Where trainable parameters meet data, worked out once: for each parameter its uses, and how its per-sample
//! norms and clipped sum are computed.

mod checks;
mod convolution;
mod factor;
mod functions;
mod method;
mod recurrent;

use self::checks::{
    check_function, check_origin, check_untapped, check_value_shape, reaching_the_loss, views_back,
};
pub(crate) use self::convolution::ConvolutionPlan;
pub(crate) use self::factor::Factor;
pub(crate) use self::functions::FunctionPlan;
pub(crate) use self::method::BLOCK_ELEMENTS;
pub(crate) use self::recurrent::sides;
use crate::error::{EngineError, Result};
use crate::program::{BatchAxis, Expected, Program, index};
use bastionai_graph::dtype::DType;
use bastionai_graph::typed::{Argument, Number, Tap, TappedParameter, TypedGraph, TypedNode};

/// What one tap computes with: rows of inputs and of output gradients, or a broadcast.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TapKind {
    /// `linear`, `mm`, `addmm`, `matmul`: input rows of one width, gradient rows of another.
    Rows { input_width: i64, output_width: i64 },
    /// `layer_norm`: rows of `width`, normalised again.
    LayerNorm {
        normalized_shape: Vec<i64>,
        eps: f64,
        width: i64,
    },
    /// Addition or multiplication by broadcasting.
    Broadcast,
    /// `embedding`: `rows` of `width`; a token with the padding id has no gradient.
    Embedding {
        rows: i64,
        width: i64,
        padding: Option<i64>,
    },
    /// `conv*` and `conv_transpose*`.
    Convolution(ConvolutionPlan),
    /// Normalisations and slopes with one parameter a channel of `[B, channels, ..]`.
    Channels { channels: i64, normalised: Normalised },
    /// `rms_norm`: rows of `width`, normalised again.
    RmsNorm { eps: f64, width: i64 },
    /// No node: gradients `[B, parameter shape]` pulled back through a function of the parameter.
    Pulled,
}

/// What a parameter of [`TapKind::Channels`] is multiplied with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Normalised {
    /// By mean and variance of the sample's own groups of channels.
    InGroups { groups: i64, eps: f64 },
    /// By fixed statistics, which are saved with the input.
    ByStatistics { eps: f64 },
    /// The input where it is negative: a slope.
    NegativePart,
}

/// One tapped node.
#[derive(Clone, Debug)]
pub(crate) struct TapPlan {
    pub(crate) kind: TapKind,
    /// The output's batch axis; rows of input and output gradient are brought into the same order.
    pub(crate) batch: BatchAxis,
    /// Shape of the output.
    pub(crate) output_shape: Vec<i64>,
    /// Rows of a unit: T of each of its records, 1 for plain `[B, width]`.
    pub(crate) rows_per_record: i64,
    /// Whether a convolution's weight is handled by rows ([`Method::Rows`], [`Method::Ghost`]).
    pub(crate) as_rows: bool,
    /// Whether a norm needs those of the rows of a linear layer, input and output gradient: Gram matrices in f32 have
    /// them on the diagonal.
    pub(crate) needs_row_norms: bool,
}

/// How a parameter's per-sample gradient follows from a tap.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Role {
    /// `Σ_t g_t x_tᵀ`, or its transpose for `x·W`.
    Weight { transposed: bool },
    /// `Σ_t g_t`.
    Sum,
    /// `Σ_t g_t ∘ x̂_t`.
    Scale,
    /// ± the output gradient summed over broadcast axes.
    BroadcastAdd { scale: f64 },
    /// Output gradient times the other operand, summed over broadcast axes.
    BroadcastMul,
    /// `Σ_t g_t` into the row that the token's id names.
    Table,
    /// The output gradient summed over all but the channels.
    ChannelSum,
    /// Output gradient times normalised input, summed over all but the channels; over them too for a single number.
    ChannelScale,
    /// The pulled-back gradient itself.
    Pulled,
}

/// One use of a parameter.
#[derive(Clone, Debug)]
pub(crate) struct Use {
    pub(crate) tap: usize,
    pub(crate) role: Role,
    /// Shape in which the parameter enters the node; a convolution's weight with its channels last.
    pub(crate) value_shape: Vec<i64>,
    /// From that shape back to the parameter's, in order.
    pub(crate) back: Vec<ViewBack>,
}

/// One step from a view back to its source.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ViewBack {
    Permute(Vec<i64>),
    Reshape(Vec<i64>),
    /// Zeros before and after along an axis.
    Widen {
        axis: i64,
        before: i64,
        after: i64,
    },
}

/// How norms and sums are computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Method {
    /// One weight use, one row per record: `‖G_i‖ = ‖x_i‖‖g_i‖`.
    Rows,
    /// One weight use, several rows per record: Gram matrices of inputs and gradients.
    Ghost,
    /// The gradient of each record, for norm and sum. `kept` until the sum is made, else computed twice.
    Instantiate { kept: bool },
    /// A table, or a tie of tables and weights: norms from the factors of each use and their cross terms, never a
    /// gradient of the whole parameter for a record.
    Factored,
}

impl Method {
    /// Its part of the norms, as a bench calls it.
    pub(crate) fn norms(self) -> &'static str {
        match self {
            Self::Rows => "norms: one row a record",
            Self::Ghost => "norms: Gram matrices",
            Self::Instantiate { .. } => "norms: gradients of records",
            Self::Factored => "norms: tables and ties",
        }
    }

    /// The same of the sums.
    pub(crate) fn sums(self) -> &'static str {
        match self {
            Self::Rows | Self::Ghost => "sums: contractions",
            Self::Instantiate { .. } => "sums: gradients of records",
            Self::Factored => "sums: tables and ties",
        }
    }
}

/// One trainable parameter.
#[derive(Clone, Debug)]
pub(crate) struct ParameterPlan {
    /// Index among the graph's parameters.
    pub(crate) parameter: usize,
    pub(crate) shape: Vec<i64>,
    pub(crate) uses: Vec<Use>,
    pub(crate) method: Method,
    /// Records whose gradients are instantiated at once.
    pub(crate) block: i64,
}

/// All taps and trainable parameters.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) taps: Vec<TapPlan>,
    pub(crate) parameters: Vec<ParameterPlan>,
    /// Whether any value is f64: then everything is.
    pub(crate) in_f64: bool,
    /// Whether the gradient of every parameter is written out for each record: noise mode `hardened`.
    pub(crate) written_out: bool,
    /// As in the program. Their pulled-back gradients are the last of `taps`.
    pub(crate) functions: Vec<FunctionPlan>,
    /// Units of a batch; each is a record where the record is the unit, and called so.
    pub(crate) units: i64,
}

impl Plan {
    /// # Errors
    /// [`EngineError::Unsupported`] when a trainable parameter reaches data other than through a tap (G2), or a tap
    /// has a form that the engine has no exact gradient for.
    pub(crate) fn new(graph: &TypedGraph, program: &Program, records_per_unit: u32) -> Result<Self> {
        let length = i64::from(records_per_unit.max(1));
        let reaches = reaching_the_loss(graph);
        let mut plan = Self {
            taps: Vec::new(),
            parameters: trainable(graph),
            in_f64: graph
                .values()
                .iter()
                .any(|value| value.value_type.dtype == DType::F64),
            written_out: false,
            functions: vec![FunctionPlan::default(); program.functions.len()],
            units: program.batch_size / length,
        };
        for node in graph.nodes() {
            if let Some(tap) = &node.tap {
                let made = match tap {
                    Tap::Recurrent { cells } => recurrent::plans(node, cells, program)?,
                    _ => vec![(tap_plan(node, tap, program)?, roles(tap))],
                };
                for (mut tap, roles) in made {
                    tap.rows_per_record = tap.rows_per_record.saturating_mul(length);
                    let tap_index = plan.taps.len();
                    plan.taps.push(tap);
                    for (tapped, role) in roles {
                        plan.add_use(graph, node, program, tap_index, tapped, role)?;
                    }
                }
            }
            check_untapped(graph, node, &reaches)?;
        }
        plan.pull_back_functions(graph, program)?;
        plan.choose_methods(length, method::KEPT_ELEMENTS);
        for parameter in &plan.parameters {
            method::check_instantiable(graph, parameter)?;
        }
        Ok(plan)
    }

    fn add_use(
        &mut self,
        graph: &TypedGraph,
        node: &TypedNode,
        program: &Program,
        tap: usize,
        tapped: &TappedParameter,
        role: Role,
    ) -> Result<()> {
        let refuse = |reason: &str| EngineError::Unsupported {
            node: node.name.clone(),
            reason: reason.into(),
        };
        let value_shape = program.expected[index(tapped.value)].shape.clone();
        check_value_shape(&self.taps[tap], &role, &value_shape).ok_or_else(|| {
            refuse("the parameter's shape does not fit the operator's; use a parameter of the operator's own shape")
        })?;
        if let Some(parameters) = tapped.function() {
            check_function(graph, tapped.value, parameters).ok_or_else(|| {
                refuse("the tapped value is not a function of the parameters it names and of constants only")
            })?;
            let functions = self.functions.iter_mut();
            let function = functions
                .zip(&program.functions)
                .find(|(_, function)| function.value == index(tapped.value));
            let (plan, _) =
                function.ok_or_else(|| refuse("the tapped function is not among the program's"))?;
            plan.uses.push(Use {
                tap,
                role,
                value_shape,
                back: Vec::new(),
            });
            return Ok(());
        }
        let plan = self
            .parameters
            .iter_mut()
            .find(|plan| plan.parameter == tapped.parameter.0 as usize)
            .ok_or_else(|| refuse("the tap names a parameter that is not trainable"))?;
        let back = views_back(&plan.shape, &tapped.views, &value_shape)
            .ok_or_else(|| refuse("the tap's views do not lead from the parameter to the value"))?;
        check_origin(graph, tapped)
            .ok_or_else(|| refuse("the tapped value is not a view of its parameter"))?;
        plan.uses.push(Use {
            tap,
            role,
            value_shape,
            back,
        });
        Ok(())
    }
}

fn trainable(graph: &TypedGraph) -> Vec<ParameterPlan> {
    let shape = |extents: &[u64]| extents.iter().map(|&extent| extent as i64).collect();
    graph
        .parameters()
        .iter()
        .enumerate()
        .filter(|(_, parameter)| parameter.trainable)
        .map(|(index, parameter)| ParameterPlan {
            parameter: index,
            shape: shape(&parameter.shape),
            uses: Vec::new(),
            method: Method::Instantiate { kept: false },
            block: 1,
        })
        .collect()
}

/// The parameters that a tap of one kind serves, each with its role.
fn roles(tap: &Tap) -> Vec<(&TappedParameter, Role)> {
    let mut out = Vec::new();
    match tap {
        Tap::Linear { weight, bias, .. } => {
            out.extend(
                weight
                    .as_ref()
                    .map(|tapped| (tapped, Role::Weight { transposed: false })),
            );
            out.extend(bias.as_ref().map(|tapped| (tapped, Role::Sum)));
        }
        Tap::MatMul { weight, bias, .. } => {
            out.extend(
                weight
                    .as_ref()
                    .map(|tapped| (tapped, Role::Weight { transposed: true })),
            );
            out.extend(bias.as_ref().map(|tapped| (tapped, Role::Sum)));
        }
        Tap::LayerNorm { weight, bias, .. } => {
            out.extend(weight.as_ref().map(|tapped| (tapped, Role::Scale)));
            out.extend(bias.as_ref().map(|tapped| (tapped, Role::Sum)));
        }
        Tap::BroadcastAdd { parameter, scale } => {
            out.push((parameter, Role::BroadcastAdd { scale: scale.get() }))
        }
        Tap::BroadcastMul { parameter, .. } => out.push((parameter, Role::BroadcastMul)),
        Tap::Embedding { weight, .. } => out.push((weight, Role::Table)),
        // Repeating is adding to zeros.
        Tap::Expand { parameter } => out.push((parameter, Role::BroadcastAdd { scale: 1.0 })),
        Tap::Convolution {
            weight,
            bias,
            geometry,
            ..
        } => {
            let transposed = geometry.transposed;
            out.extend(
                weight
                    .as_ref()
                    .map(|tapped| (tapped, Role::Weight { transposed })),
            );
            out.extend(bias.as_ref().map(|tapped| (tapped, Role::ChannelSum)));
        }
        Tap::GroupNorm { weight, bias, .. } | Tap::FrozenBatchNorm { weight, bias, .. } => {
            out.extend(weight.as_ref().map(|tapped| (tapped, Role::ChannelScale)));
            out.extend(bias.as_ref().map(|tapped| (tapped, Role::ChannelSum)));
        }
        Tap::RmsNorm { weight, .. } => out.push((weight, Role::Scale)),
        Tap::Prelu { weight, .. } => out.push((weight, Role::ChannelScale)),
        // Has taps of its own: see `recurrent`.
        Tap::Recurrent { .. } => {}
    }
    out
}

fn tap_plan(node: &TypedNode, tap: &Tap, program: &Program) -> Result<TapPlan> {
    let refuse = |reason: &str| EngineError::Unsupported {
        node: node.name.clone(),
        reason: reason.into(),
    };
    let output = node
        .outputs
        .first()
        .map(|value| &program.expected[index(*value)])
        .ok_or_else(|| refuse("no output"))?;
    let batch = output
        .batch
        .ok_or_else(|| refuse("a tapped output must be per sample"))?;
    if output.shape.contains(&0) {
        return Err(refuse("its output has no elements: nothing there can be trained"));
    }
    let kind = match tap {
        Tap::Linear { input, .. } | Tap::MatMul { input, .. } => {
            let input = &program.expected[index(*input)];
            rows_kind(node, input, output).ok_or_else(|| {
                refuse("input and output must have the same axes but the last, and the batch axis before it")
            })?
        }
        Tap::LayerNorm {
            input,
            normalized_shape,
            eps,
            ..
        } => {
            let normalized =
                trailing_axes(normalized_shape, &program.expected[index(*input)]).ok_or_else(|| {
                    refuse("layer_norm normalises the last axes of its input, behind the batch")
                })?;
            TapKind::LayerNorm {
                normalized_shape: normalized.to_vec(),
                eps: eps.get(),
                width: normalized.iter().product(),
            }
        }
        Tap::BroadcastAdd { .. } | Tap::BroadcastMul { .. } | Tap::Expand { .. } => TapKind::Broadcast,
        Tap::Embedding {
            indices,
            weight,
            padding_idx,
        } => {
            let table = &program.expected[index(weight.value)].shape;
            table_kind(table, &program.expected[index(*indices)], output, *padding_idx)
                .ok_or_else(|| refuse("the ids and the table do not give the output's shape"))?
        }
        Tap::Convolution { input, geometry, .. } => {
            let input = &program.expected[index(*input)];
            let plan = ConvolutionPlan::new(geometry, input, output);
            TapKind::Convolution(plan.ok_or_else(|| {
                refuse("its extents are not those of a convolution, or a record's padded input has above 2^28 elements")
            })?)
        }
        Tap::GroupNorm { groups, eps, .. } => {
            let groups = *groups as i64;
            let eps = eps.get();
            let fits = |channels: i64| groups > 0 && channels % groups == 0;
            channels_kind(output, Normalised::InGroups { groups, eps })
                .filter(|kind| matches!(kind, TapKind::Channels { channels, .. } if fits(*channels)))
                .ok_or_else(|| refuse("the groups do not divide the channels of [B, channels, ..]"))?
        }
        Tap::FrozenBatchNorm { eps, .. } => {
            channels_kind(output, Normalised::ByStatistics { eps: eps.get() })
                .ok_or_else(|| refuse("the input is not [B, channels, ..]"))?
        }
        Tap::Prelu { .. } => channels_kind(output, Normalised::NegativePart)
            .ok_or_else(|| refuse("the input is not [B, channels, ..]"))?,
        Tap::RmsNorm {
            normalized_shape,
            eps,
            ..
        } => {
            let normalized = trailing_axes(normalized_shape, output)
                .ok_or_else(|| refuse("rms_norm normalises the last axes of its input, behind the batch"))?;
            TapKind::RmsNorm {
                eps: eps.get(),
                width: normalized.iter().product(),
            }
        }
        Tap::Recurrent { .. } => return Err(refuse("a recurrent layer has taps within")),
    };
    let elements: i64 = output.shape.iter().product();
    let rows_of = |width: i64| elements / program.batch_size.saturating_mul(width).max(1);
    let rows_per_record = match &kind {
        TapKind::Rows { output_width, .. } => rows_of(*output_width),
        TapKind::LayerNorm { width, .. }
        | TapKind::RmsNorm { width, .. }
        | TapKind::Embedding { width, .. } => rows_of(*width),
        TapKind::Channels { channels, .. } => rows_of(*channels),
        TapKind::Convolution(plan) => plan.length(),
        TapKind::Broadcast | TapKind::Pulled => rows_of(1),
    };
    check_scales(node, tap).ok_or_else(|| refuse("addmm must have beta = alpha = 1"))?;
    Ok(TapPlan {
        kind,
        batch,
        output_shape: output.shape.clone(),
        rows_per_record,
        as_rows: false,
        needs_row_norms: false,
    })
}

/// The last axes of a value, if they are `normalized` and the batch is before them.
fn trailing_axes<'v>(normalized: &[u64], value: &'v Expected) -> Option<&'v [i64]> {
    let leading = value.shape.len().checked_sub(normalized.len())?;
    let behind = value.batch.is_some_and(|batch| batch.axis < leading as i64);
    let trailing = &value.shape[leading..];
    let same = |(own, given): (&i64, &u64)| u64::try_from(*own) == Ok(*given);
    (behind && trailing.iter().zip(normalized).all(same)).then_some(trailing)
}

/// The batch is axis 0 and the channels are axis 1.
fn channels_kind(output: &Expected, normalised: Normalised) -> Option<TapKind> {
    let channels = *output.shape.get(1)?;
    let leading = output.batch == Some(BatchAxis { axis: 0, inner: 1 });
    leading.then_some(TapKind::Channels { channels, normalised })
}

/// Widths of a contraction over the input's last axis; a vector as right operand gives width 1.
fn rows_kind(node: &TypedNode, input: &Expected, output: &Expected) -> Option<TapKind> {
    let (&input_width, leading) = input.shape.split_last()?;
    let vector = node.operator == "matmul" && output.shape.len() + 1 == input.shape.len();
    let output_width = if vector { 1 } else { *output.shape.last()? };
    let output_leading = if vector {
        &output.shape[..]
    } else {
        output.shape.split_last()?.1
    };
    let aligned = leading == output_leading && input.batch == output.batch;
    let before_last = input.batch.is_some_and(|batch| batch.axis < leading.len() as i64);
    (aligned && before_last).then_some(TapKind::Rows {
        input_width,
        output_width,
    })
}

/// One row of the table for each id.
fn table_kind(table: &[i64], ids: &Expected, output: &Expected, padding: Option<u64>) -> Option<TapKind> {
    let &[rows, width] = table else { return None };
    let (last, leading) = output.shape.split_last()?;
    let fits = *last == width && leading == ids.shape && ids.batch.is_some() && ids.batch == output.batch;
    fits.then_some(TapKind::Embedding {
        rows,
        width,
        // A padding id beyond the table pads nothing.
        padding: padding
            .and_then(|row| i64::try_from(row).ok())
            .filter(|row| *row < rows),
    })
}

fn check_scales(node: &TypedNode, tap: &Tap) -> Option<()> {
    if !matches!(tap, Tap::MatMul { .. }) {
        return Some(());
    }
    let one = |argument: &Argument| match argument {
        Argument::Int(value) | Argument::NumberAsTensor(Number::Int(value)) => *value == 1,
        Argument::Float(bits) | Argument::NumberAsTensor(Number::Float(bits)) => bits.get() == 1.0,
        _ => false,
    };
    let mut scales = node
        .arguments
        .iter()
        .filter(|named| named.name == "beta" || named.name == "alpha");
    scales.all(|named| one(&named.value)).then_some(())
}
