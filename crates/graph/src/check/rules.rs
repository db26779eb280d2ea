//! One rule per allowed operator and overload. No rule: refused.

mod attention;
mod channelwise;
mod contraction;
mod convolution;
mod draw;
mod elementwise;
mod embedding;
mod factory;
mod index;
mod join;
mod loss;
mod mask;
mod normalise;
mod order;
mod pool;
mod random;
mod recurrent;
mod reduce;
mod repeat;
mod resample;
mod reshape;
mod rows;
mod select;
mod spatial;
mod tap;

use super::call::Call;
use super::facts::Output;
use super::refusal::Objection;
use crate::typed::Tap;

/// What a rule finds.
pub(super) struct Outcome {
    pub(super) outputs: Vec<Output>,
    pub(super) tap: Option<Tap>,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Self {
            outputs: vec![output],
            tap: None,
        }
    }
}

/// A rule: reads the arguments it knows, objects or types the outputs.
pub(super) type Rule = fn(&mut Call<'_>) -> Result<Outcome, Objection>;

/// The rule of `name.overload`.
pub(super) fn find(name: &str, overload: &str) -> Option<Rule> {
    Some(match (name, overload) {
        ("linear", "default") => contraction::linear,
        ("addmm", "default") => contraction::addmm,
        ("mm" | "matmul", "default") => contraction::matmul,
        ("bmm", "default") => contraction::bmm,
        ("baddbmm", "default") => contraction::baddbmm,
        ("scaled_dot_product_attention", "default") => attention::scaled_dot_product,

        (
            "relu" | "gelu" | "tanh" | "sigmoid" | "silu" | "elu" | "leaky_relu" | "softplus" | "hardtanh"
            | "hardswish" | "hardsigmoid" | "selu" | "celu" | "mish" | "relu6" | "log_sigmoid" | "exp"
            | "expm1" | "log" | "log1p" | "sqrt" | "rsqrt" | "reciprocal" | "sin" | "cos" | "erf",
            "default",
        ) => elementwise::float_unary,
        (
            "abs" | "neg" | "square" | "sign" | "floor" | "ceil" | "clamp" | "clamp_min" | "clamp_max",
            "default",
        ) => elementwise::number_unary,
        ("pow", "Tensor_Scalar" | "Scalar") => elementwise::power,
        ("add" | "sub" | "mul" | "div", "Tensor" | "Scalar") | ("rsub", "Scalar") => elementwise::arithmetic,
        ("maximum" | "minimum", "default") => elementwise::arithmetic,
        ("eq" | "ne" | "lt" | "le" | "gt" | "ge", "Tensor" | "Scalar") => elementwise::comparison,
        ("logical_and" | "logical_or" | "logical_xor", "default") => elementwise::logical,
        ("logical_not" | "bitwise_not", "default") => elementwise::logical_not,
        ("__and__" | "__or__" | "__xor__" | "bitwise_and" | "bitwise_or" | "bitwise_xor", "Tensor") => {
            elementwise::bitwise
        }
        ("where", "self" | "ScalarSelf" | "ScalarOther") => elementwise::choose,
        ("masked_fill", "Scalar" | "Tensor") => elementwise::masked_fill,
        ("alias" | "clone" | "contiguous" | "detach", "default") => elementwise::copy,
        ("to", "dtype") | ("_to_copy", "default") => elementwise::convert,
        ("zeros_like" | "ones_like" | "full_like", "default") => factory::like,

        (
            "mse_loss" | "l1_loss" | "smooth_l1_loss" | "huber_loss" | "soft_margin_loss" | "kl_div"
            | "poisson_nll_loss",
            "default",
        ) => loss::pointwise,
        ("binary_cross_entropy_with_logits", "default") => loss::binary_cross_entropy,
        ("cross_entropy_loss", "default") => loss::cross_entropy,
        ("nll_loss_nd" | "nll_loss", "default") => loss::nll,

        ("sum", "dim_IntList" | "default") | ("mean", "dim" | "default") => reduce::sum_or_mean,
        ("amax" | "amin" | "logsumexp", "default") => reduce::extremum,
        ("argmax" | "argmin", "default") => reduce::arg_extremum,
        ("max" | "min", "dim") => reduce::extremum_with_index,
        ("var" | "std", "correction" | "dim") => reduce::variance,
        ("linalg_vector_norm", "default") => reduce::vector_norm,
        ("any" | "all", "dim") => reduce::any_or_all,
        ("cumsum" | "cumprod", "default") => order::cumulative,
        ("sort", "default" | "stable") => order::sort,
        ("argsort", "default") => order::argsort,
        ("topk", "default") => order::topk,
        ("softmax" | "log_softmax", "int") | ("_softmax" | "_log_softmax", "default") => reduce::softmax,

        ("view" | "reshape" | "_unsafe_view", "default") => reshape::view,
        ("flatten", "using_ints") => reshape::flatten,
        ("unsqueeze", "default") => reshape::unsqueeze,
        ("squeeze", "dim" | "dims" | "default") => reshape::squeeze,
        ("expand", "default") => reshape::expand,
        ("t", "default") | ("transpose", "int") | ("permute", "default") => reshape::permute,
        ("repeat", "default") => repeat::repeat,
        ("repeat_interleave", "self_int") => repeat::repeat_interleave,
        ("flip" | "roll", "default") => repeat::turned,

        ("slice", "Tensor") => select::slice,
        ("select", "int") => select::select,
        ("split", "Tensor") | ("split_with_sizes", "default") => select::split,
        ("unbind", "int") => select::unbind,

        ("cat", "default") => join::cat,
        ("stack", "default") => join::stack,
        ("broadcast_tensors", "default") => join::broadcast_tensors,

        ("layer_norm" | "rms_norm", "default") => normalise::trailing,
        ("group_norm", "default") => channelwise::group_norm,
        ("instance_norm", "default") => channelwise::instance_norm,
        ("batch_norm", "default") => channelwise::batch_norm,
        ("prelu", "default") => channelwise::prelu,

        ("conv1d" | "conv2d" | "conv3d", "default" | "padding")
        | ("convolution", "default")
        | ("conv_transpose1d", "default")
        | ("conv_transpose2d" | "conv_transpose3d", "input") => convolution::convolution,
        ("max_pool1d" | "max_pool2d" | "max_pool3d", "default") => pool::max,
        ("max_pool1d_with_indices" | "max_pool2d_with_indices" | "max_pool3d_with_indices", "default") => {
            pool::max_with_indices
        }
        ("avg_pool1d" | "avg_pool2d" | "avg_pool3d", "default") => pool::average,
        ("adaptive_avg_pool1d" | "adaptive_avg_pool2d" | "adaptive_avg_pool3d", "default") => {
            pool::adaptive_average
        }
        ("adaptive_max_pool1d" | "adaptive_max_pool2d" | "adaptive_max_pool3d", "default") => {
            pool::adaptive_max
        }
        ("upsample_nearest1d" | "upsample_nearest2d" | "upsample_nearest3d", "vec") => resample::nearest,
        (
            "upsample_linear1d" | "upsample_bilinear2d" | "upsample_trilinear3d" | "upsample_bicubic2d",
            "vec",
        ) => resample::interpolate,
        ("constant_pad_nd" | "pad", "default") => resample::pad,
        ("pixel_shuffle" | "pixel_unshuffle", "default") => resample::pixel_shuffle,

        ("gather", "default") => index::gather,
        ("index", "Tensor") => index::index,
        ("one_hot", "default") => index::one_hot,
        ("embedding", "default") => embedding::embedding,

        ("zeros" | "ones" | "full", "default") => factory::filled,
        ("new_zeros" | "new_ones" | "new_full", "default") => factory::new_filled,
        ("arange", "default" | "start") => factory::arange,
        ("scalar_tensor", "default") => factory::scalar,
        ("tril" | "triu", "default") => mask::triangle,

        ("lstm" | "gru" | "rnn_tanh" | "rnn_relu", "input") => recurrent::recurrent,

        ("dropout", "default") => random::dropout,
        ("native_dropout", "default") => random::native_dropout,
        ("feature_dropout", "default") => random::feature_dropout,
        ("rand" | "randn", "default") => draw::sized,
        ("rand_like" | "randn_like", "default") => draw::like,
        _ => return None,
    })
}

/// The objection to a call that has no rule, with what is known to replace it.
pub(super) fn no_rule(target: &str) -> Objection {
    let name = target.strip_prefix("torch.ops.aten.").unwrap_or(target);
    let base = name.split('.').next().unwrap_or(name);
    let (rule, reason, remedy) = match base {
        "native_batch_norm"
        | "cudnn_batch_norm"
        | "_batch_norm_with_update"
        | "_native_batch_norm_legit"
        | "_native_batch_norm_legit_functional"
        | "_batch_norm_no_update" => (
            "T7",
            "BatchNorm normalises with statistics of the whole batch: every sample's loss depends on the others",
            "use GroupNorm or LayerNorm; bastionai.fix(model) replaces BatchNorm",
        ),
        "rand" | "randn" | "randint" | "randperm" | "normal" | "bernoulli" | "multinomial" | "poisson"
        | "binomial" | "rand_like" | "randn_like" | "randint_like" | "uniform" => (
            "T3",
            "of random draws only dropout, rand and randn with the batch axis in their shape have a rule",
            "use dropout, rand_like or randn_like on per-sample data, or pass randomness in as an input column",
        ),
        "item"
        | "_local_scalar_dense"
        | "nonzero"
        | "masked_select"
        | "unique"
        | "_unique2"
        | "bincount"
        | "histc" => (
            "T5",
            "its result's size or value on the host depends on the data",
            "use where() or masks of fixed shape",
        ),
        "binary_cross_entropy" => (
            "G4",
            "it fails when a value leaves [0, 1], and failing tells about the data",
            "use binary_cross_entropy_with_logits on the value before the sigmoid",
        ),
        "_assert_async" | "_assert_scalar" | "sym_constrain_range" | "sym_constrain_range_for_size" => (
            "T1",
            "an assertion on values or on the batch size tells about the data",
            "remove the assertion",
        ),
        "embedding_bag" | "_embedding_bag" => (
            "T7",
            "it cuts bags out of one list of ids for the whole batch, by offsets: whose id is whose depends on the batch",
            "give ids of shape [batch, tokens] and export with bastionai.export, or use an embedding and a sum over tokens",
        ),
        "empty" | "empty_like" | "new_empty" | "empty_strided" => {
            ("T7", "it returns uninitialised memory", "use zeros")
        }
        "einsum" => (
            "T7",
            "its equation has no rule",
            "export with bastionai.export, which writes it as permute, reshape and bmm; or use matmul",
        ),
        _ if target.starts_with("torch.ops.higher_order.") => (
            "T7",
            "it calls a sub-graph, as a `with` block of the module is exported",
            "export with bastionai.export, which writes no_grad and disabled autocast out in place",
        ),
        _ if base.ends_with('_') && !base.ends_with("__") => (
            "T8",
            "it writes to its argument",
            "export with bastionai.export, which makes the program functional",
        ),
        _ => (
            "T7",
            "this operator has no rule, and what has no rule is refused",
            "use one of the supported operators (docs/limitations.md)",
        ),
    };
    Objection {
        rule: Some(rule),
        reason: format!("`{name}`: {reason}"),
        remedy: remedy.into(),
    }
}
