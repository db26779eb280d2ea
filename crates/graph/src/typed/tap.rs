//! Where a typed graph's trainable parameters meet per-sample data, and how they get there.

use super::{FloatBits, ParameterId, ValueId};
use serde::{Deserialize, Serialize};

/// A place where trainable parameters meet per-sample data (rules G1, G2). The node's first output is
/// tapped: its output gradient, with the saved inputs, gives per-sample norms and clipped sums.
///
/// A parameter reaches a tap as itself, through isometric injective views (transpose, view, slice), or through any
/// other differentiable function: gradients are then pulled back to it before they are clipped (G2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tap {
    /// `y = x · Wᵀ + b` over the last axis (`aten::linear`). `x` may carry any extents between the
    /// batch axis 0 and the last axis; all of them sum into the weight's gradient.
    Linear {
        /// `PerSample` input.
        input: ValueId,
        /// The weight `[out, in]`, when trainable.
        weight: Option<TappedParameter>,
        /// The bias `[out]`, when trainable.
        bias: Option<TappedParameter>,
    },
    /// `y = x · W + b` (`aten::addmm`, `aten::matmul`/`mm` with a Shared right operand): weight `[in, out]`.
    MatMul {
        /// `PerSample` left operand.
        input: ValueId,
        /// The weight `[in, out]`, when trainable.
        weight: Option<TappedParameter>,
        /// The added row, when trainable.
        bias: Option<TappedParameter>,
    },
    /// `aten::layer_norm` with affine parameters.
    LayerNorm {
        /// `PerSample` input.
        input: ValueId,
        /// Trailing extents normalised over.
        normalized_shape: Vec<u64>,
        /// Scale, when trainable.
        weight: Option<TappedParameter>,
        /// Shift, when trainable.
        bias: Option<TappedParameter>,
        /// Epsilon of the variance.
        eps: FloatBits,
    },
    /// A parameter added to or subtracted from per-sample data by broadcasting:
    /// its per-sample gradient is ± the output gradient summed over the broadcast axes.
    BroadcastAdd {
        /// The parameter.
        parameter: TappedParameter,
        /// +1 or −1 times `alpha`.
        scale: FloatBits,
    },
    /// A parameter multiplied with per-sample data by broadcasting:
    /// its per-sample gradient is output gradient × other operand, summed over the broadcast axes.
    BroadcastMul {
        /// The parameter.
        parameter: TappedParameter,
        /// The other, `PerSample` operand.
        other: ValueId,
    },
    /// `aten::embedding` of a trainable table: each token's output gradient is the gradient of the row its id names.
    Embedding {
        /// `PerSample` integer ids.
        indices: ValueId,
        /// The table `[rows, width]`.
        weight: TappedParameter,
        /// The row that gets no gradient, if any.
        padding_idx: Option<u64>,
    },
    /// A parameter repeated for every sample (`cls.expand(B, -1, -1)`): its per-sample gradient is the output gradient
    /// summed over the repeated axes.
    Expand {
        /// The parameter.
        parameter: TappedParameter,
    },
    /// `aten::conv1d` … `conv3d`, `conv_transpose1d` … `conv_transpose3d`, `convolution`: the input is
    /// `[B, channels, ..]`.
    Convolution {
        /// `PerSample` input.
        input: ValueId,
        /// The weight, `[out, in/groups, ..]` or, transposed, `[in, out/groups, ..]`, when trainable.
        weight: Option<TappedParameter>,
        /// The bias `[out]`, when trainable.
        bias: Option<TappedParameter>,
        /// Which elements meet.
        geometry: Convolution,
    },
    /// `aten::group_norm`, or `aten::instance_norm` as one group a channel, with affine parameters `[channels]`.
    GroupNorm {
        /// `PerSample` input `[B, channels, ..]`.
        input: ValueId,
        /// Number of groups.
        groups: u64,
        /// Scale, when trainable.
        weight: Option<TappedParameter>,
        /// Shift, when trainable.
        bias: Option<TappedParameter>,
        /// Epsilon of the variance.
        eps: FloatBits,
    },
    /// `aten::batch_norm` by fixed statistics, with affine parameters `[channels]`.
    FrozenBatchNorm {
        /// `PerSample` input `[B, channels, ..]`.
        input: ValueId,
        /// `Shared` mean, `[channels]`.
        mean: ValueId,
        /// `Shared` variance, `[channels]`.
        variance: ValueId,
        /// Scale, when trainable.
        weight: Option<TappedParameter>,
        /// Shift, when trainable.
        bias: Option<TappedParameter>,
        /// Epsilon of the variance.
        eps: FloatBits,
    },
    /// `aten::rms_norm` with a trainable scale.
    RmsNorm {
        /// `PerSample` input.
        input: ValueId,
        /// Trailing extents normalised over.
        normalized_shape: Vec<u64>,
        /// Scale.
        weight: TappedParameter,
        /// Epsilon of the mean square.
        eps: FloatBits,
    },
    /// `aten::prelu` with a trainable slope, one for all or one a channel.
    Prelu {
        /// `PerSample` input `[B, channels, ..]`.
        input: ValueId,
        /// The slope.
        weight: TappedParameter,
    },
    /// `aten::lstm.input`, `gru.input`, `rnn_tanh.input`, `rnn_relu.input`: within the node every cell has the
    /// projections of its input and of its own earlier outputs, `[rows, steps, gates]` each. Their gradients with those
    /// rows give the parameters'.
    Recurrent {
        /// Layer by layer, in each the forward direction first.
        cells: Vec<RecurrentCell>,
    },
}

/// The trainable parameters of one direction of one layer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecurrentCell {
    /// `[gates, input]`.
    pub weight_ih: Option<TappedParameter>,
    /// `[gates, hidden]`.
    pub weight_hh: Option<TappedParameter>,
    /// `[gates]`, added to the input's projection.
    pub bias_ih: Option<TappedParameter>,
    /// `[gates]`, added to the projection of earlier outputs.
    pub bias_hh: Option<TappedParameter>,
}

impl RecurrentCell {
    /// Those that are trained.
    pub fn parameters(&self) -> impl Iterator<Item = &TappedParameter> {
        let [weight_ih, weight_hh] = [&self.weight_ih, &self.weight_hh];
        [weight_ih, weight_hh, &self.bias_ih, &self.bias_hh]
            .into_iter()
            .flatten()
    }
}

impl Tap {
    /// The parameters it trains.
    pub fn parameters(&self) -> Vec<&TappedParameter> {
        match self {
            Self::Linear { weight, bias, .. }
            | Self::MatMul { weight, bias, .. }
            | Self::LayerNorm { weight, bias, .. }
            | Self::Convolution { weight, bias, .. }
            | Self::GroupNorm { weight, bias, .. }
            | Self::FrozenBatchNorm { weight, bias, .. } => weight.iter().chain(bias).collect(),
            Self::BroadcastAdd { parameter, .. }
            | Self::BroadcastMul { parameter, .. }
            | Self::Expand { parameter } => {
                vec![parameter]
            }
            Self::Embedding { weight, .. } | Self::RmsNorm { weight, .. } | Self::Prelu { weight, .. } => {
                vec![weight]
            }
            Self::Recurrent { cells } => cells.iter().flat_map(|cell| cell.parameters()).collect(),
        }
    }
}

/// Which elements of input and output meet in a convolution; one number for every spatial axis. Output position `o`
/// meets input position `o·stride + k·dilation − padding_before` at kernel position `k`; transposed, input and output
/// change places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Convolution {
    /// Extents of the kernel.
    pub kernel: Vec<u64>,
    /// Steps between positions.
    pub stride: Vec<u64>,
    /// Zeros before the first element.
    pub padding_before: Vec<u64>,
    /// Zeros after the last element: other than before only for `padding="same"` and an even reach.
    pub padding_after: Vec<u64>,
    /// Steps between elements of the kernel.
    pub dilation: Vec<u64>,
    /// Groups of channels that meet only each other.
    pub groups: u64,
    /// Whether it is the transposed operator.
    pub transposed: bool,
}

/// A `Shared` value of trainable parameters as it enters a tap: a parameter itself, an isometric view of one, or a
/// [`ParameterView::Function`] of some.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TappedParameter {
    /// Which parameter; of a function the first of those that reach it.
    pub parameter: ParameterId,
    /// The value that enters the node (the parameter, or the last view of it).
    pub value: ValueId,
    /// Views from the parameter to `value`, in order; empty when it enters as it is.
    pub views: Vec<ParameterView>,
}

/// An isometric, injective view of a parameter: every element of the result is one element of the parameter, and no
/// element appears twice. So the gradient of the parameter has the norm of the gradient of the view. The last variant
/// is no view and says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParameterView {
    /// Axes permuted: result axis `i` is source axis `permutation[i]`.
    Permute(Vec<u8>),
    /// Row-major reshape to this shape.
    Reshape(Vec<u64>),
    /// Elements `start..start + length` of an axis; the others get no gradient here.
    Narrow {
        /// The axis.
        axis: u8,
        /// First element kept.
        start: u64,
        /// How many are kept.
        length: u64,
    },
    /// Any other differentiable, deterministic function of these trainable parameters, ascending; the only step. The
    /// value's per-sample gradients are pulled back by its vector-Jacobian product and clipped in the space of the
    /// parameters (rule G2).
    Function(Vec<ParameterId>),
}

impl TappedParameter {
    /// The parameters of a [`ParameterView::Function`]; `None` when the value is a parameter or a view of one.
    pub fn function(&self) -> Option<&[ParameterId]> {
        match self.views.as_slice() {
            [ParameterView::Function(parameters)] => Some(parameters),
            _ => None,
        }
    }

    /// The trainable parameters that reach the value.
    pub fn parameters(&self) -> &[ParameterId] {
        self.function().unwrap_or(std::slice::from_ref(&self.parameter))
    }
}
