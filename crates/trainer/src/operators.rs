//! Which operators the engine runs, by name *and* overload, and which of them can raise on values.
//!
//! The table mirrors what the checker accepts; what is missing here is refused at start, whatever the
//! graph says. An operator that may raise on a value of its input (an index out of range) is guarded:
//! raising for one record would tell whether that record is there (rule G4).

/// How an operator reacts to values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// It never raises on values.
    Never,
    /// `index` must be in `0..size(self, dim)`.
    Gather,
    /// Every index tensor must be in `-size..size` of the axis it indexes.
    Index,
    /// `indices` must be in `0..rows(weight)`.
    Embedding,
    /// An integer `target` must be a class of `self`'s class axis, or `ignore_index`.
    Classes,
    /// `self` must be in `0..num_classes`.
    OneHot,
    /// It draws random numbers unless `train` is false.
    Random,
    /// It returns random numbers.
    Draw,
    /// `scaled_dot_product_attention`: it draws random numbers unless `dropout_p` is zero, and its shapes are
    /// checked before it runs (see [`crate::attention`]).
    Attention,
    /// A recurrent layer: it draws random numbers between layers, and is run by [`crate::recurrent`].
    Recurrent,
}

impl Guard {
    /// Whether the operator may draw random numbers.
    pub(crate) fn draws(self) -> bool {
        matches!(
            self,
            Self::Random | Self::Draw | Self::Attention | Self::Recurrent
        )
    }
}

/// The guard of an allowed operator; `None` when it is not allowed.
pub(crate) fn guard(operator: &str, overload: &str) -> Option<Guard> {
    OPERATORS
        .binary_search_by(|&(name, over, _)| (name, over).cmp(&(operator, overload)))
        .ok()
        .map(|position| OPERATORS[position].2)
}

/// Names and overloads of everything allowed, sorted.
#[cfg(test)]
pub(crate) fn allowed() -> Vec<(&'static str, &'static str)> {
    OPERATORS
        .iter()
        .map(|&(name, overload, _)| (name, overload))
        .collect()
}

/// Sorted by name and overload.
const OPERATORS: &[(&str, &str, Guard)] = &[
    ("__and__", "Tensor", Guard::Never),
    ("__or__", "Tensor", Guard::Never),
    ("__xor__", "Tensor", Guard::Never),
    ("_log_softmax", "default", Guard::Never),
    ("_softmax", "default", Guard::Never),
    ("_to_copy", "default", Guard::Never),
    ("_unsafe_view", "default", Guard::Never),
    ("abs", "default", Guard::Never),
    ("adaptive_avg_pool1d", "default", Guard::Never),
    ("adaptive_avg_pool2d", "default", Guard::Never),
    ("adaptive_avg_pool3d", "default", Guard::Never),
    ("adaptive_max_pool1d", "default", Guard::Never),
    ("adaptive_max_pool2d", "default", Guard::Never),
    ("adaptive_max_pool3d", "default", Guard::Never),
    ("add", "Scalar", Guard::Never),
    ("add", "Tensor", Guard::Never),
    ("addmm", "default", Guard::Never),
    ("alias", "default", Guard::Never),
    ("all", "dim", Guard::Never),
    ("amax", "default", Guard::Never),
    ("amin", "default", Guard::Never),
    ("any", "dim", Guard::Never),
    ("arange", "default", Guard::Never),
    ("arange", "start", Guard::Never),
    ("argmax", "default", Guard::Never),
    ("argmin", "default", Guard::Never),
    ("argsort", "default", Guard::Never),
    ("avg_pool1d", "default", Guard::Never),
    ("avg_pool2d", "default", Guard::Never),
    ("avg_pool3d", "default", Guard::Never),
    ("baddbmm", "default", Guard::Never),
    ("batch_norm", "default", Guard::Never),
    ("binary_cross_entropy_with_logits", "default", Guard::Never),
    ("bitwise_and", "Tensor", Guard::Never),
    ("bitwise_not", "default", Guard::Never),
    ("bitwise_or", "Tensor", Guard::Never),
    ("bitwise_xor", "Tensor", Guard::Never),
    ("bmm", "default", Guard::Never),
    ("broadcast_tensors", "default", Guard::Never),
    ("cat", "default", Guard::Never),
    ("ceil", "default", Guard::Never),
    ("celu", "default", Guard::Never),
    ("clamp", "default", Guard::Never),
    ("clamp_max", "default", Guard::Never),
    ("clamp_min", "default", Guard::Never),
    ("clone", "default", Guard::Never),
    ("constant_pad_nd", "default", Guard::Never),
    ("contiguous", "default", Guard::Never),
    ("conv1d", "default", Guard::Never),
    ("conv1d", "padding", Guard::Never),
    ("conv2d", "default", Guard::Never),
    ("conv2d", "padding", Guard::Never),
    ("conv3d", "default", Guard::Never),
    ("conv3d", "padding", Guard::Never),
    ("conv_transpose1d", "default", Guard::Never),
    ("conv_transpose2d", "input", Guard::Never),
    ("conv_transpose3d", "input", Guard::Never),
    ("convolution", "default", Guard::Never),
    ("cos", "default", Guard::Never),
    ("cross_entropy_loss", "default", Guard::Classes),
    ("cumprod", "default", Guard::Never),
    ("cumsum", "default", Guard::Never),
    ("detach", "default", Guard::Never),
    ("div", "Scalar", Guard::Never),
    ("div", "Tensor", Guard::Never),
    ("dropout", "default", Guard::Random),
    ("elu", "default", Guard::Never),
    ("embedding", "default", Guard::Embedding),
    ("eq", "Scalar", Guard::Never),
    ("eq", "Tensor", Guard::Never),
    ("erf", "default", Guard::Never),
    ("exp", "default", Guard::Never),
    ("expand", "default", Guard::Never),
    ("expm1", "default", Guard::Never),
    ("feature_dropout", "default", Guard::Random),
    ("flatten", "using_ints", Guard::Never),
    ("flip", "default", Guard::Never),
    ("floor", "default", Guard::Never),
    ("full", "default", Guard::Never),
    ("full_like", "default", Guard::Never),
    ("gather", "default", Guard::Gather),
    ("ge", "Scalar", Guard::Never),
    ("ge", "Tensor", Guard::Never),
    ("gelu", "default", Guard::Never),
    ("group_norm", "default", Guard::Never),
    ("gru", "input", Guard::Recurrent),
    ("gt", "Scalar", Guard::Never),
    ("gt", "Tensor", Guard::Never),
    ("hardsigmoid", "default", Guard::Never),
    ("hardswish", "default", Guard::Never),
    ("hardtanh", "default", Guard::Never),
    ("huber_loss", "default", Guard::Never),
    ("index", "Tensor", Guard::Index),
    ("instance_norm", "default", Guard::Never),
    ("kl_div", "default", Guard::Never),
    ("l1_loss", "default", Guard::Never),
    ("layer_norm", "default", Guard::Never),
    ("le", "Scalar", Guard::Never),
    ("le", "Tensor", Guard::Never),
    ("leaky_relu", "default", Guard::Never),
    ("linalg_vector_norm", "default", Guard::Never),
    ("linear", "default", Guard::Never),
    ("log", "default", Guard::Never),
    ("log1p", "default", Guard::Never),
    ("log_sigmoid", "default", Guard::Never),
    ("log_softmax", "int", Guard::Never),
    ("logical_and", "default", Guard::Never),
    ("logical_not", "default", Guard::Never),
    ("logical_or", "default", Guard::Never),
    ("logical_xor", "default", Guard::Never),
    ("logsumexp", "default", Guard::Never),
    ("lstm", "input", Guard::Recurrent),
    ("lt", "Scalar", Guard::Never),
    ("lt", "Tensor", Guard::Never),
    ("masked_fill", "Scalar", Guard::Never),
    ("masked_fill", "Tensor", Guard::Never),
    ("matmul", "default", Guard::Never),
    ("max", "dim", Guard::Never),
    ("max_pool1d", "default", Guard::Never),
    ("max_pool1d_with_indices", "default", Guard::Never),
    ("max_pool2d", "default", Guard::Never),
    ("max_pool2d_with_indices", "default", Guard::Never),
    ("max_pool3d", "default", Guard::Never),
    ("max_pool3d_with_indices", "default", Guard::Never),
    ("maximum", "default", Guard::Never),
    ("mean", "default", Guard::Never),
    ("mean", "dim", Guard::Never),
    ("min", "dim", Guard::Never),
    ("minimum", "default", Guard::Never),
    ("mish", "default", Guard::Never),
    ("mm", "default", Guard::Never),
    ("mse_loss", "default", Guard::Never),
    ("mul", "Scalar", Guard::Never),
    ("mul", "Tensor", Guard::Never),
    ("native_dropout", "default", Guard::Random),
    ("ne", "Scalar", Guard::Never),
    ("ne", "Tensor", Guard::Never),
    ("neg", "default", Guard::Never),
    ("new_full", "default", Guard::Never),
    ("new_ones", "default", Guard::Never),
    ("new_zeros", "default", Guard::Never),
    ("nll_loss", "default", Guard::Classes),
    ("nll_loss_nd", "default", Guard::Classes),
    ("one_hot", "default", Guard::OneHot),
    ("ones", "default", Guard::Never),
    ("ones_like", "default", Guard::Never),
    ("pad", "default", Guard::Never),
    ("permute", "default", Guard::Never),
    ("pixel_shuffle", "default", Guard::Never),
    ("pixel_unshuffle", "default", Guard::Never),
    ("poisson_nll_loss", "default", Guard::Never),
    ("pow", "Scalar", Guard::Never),
    ("pow", "Tensor_Scalar", Guard::Never),
    ("prelu", "default", Guard::Never),
    ("rand", "default", Guard::Draw),
    ("rand_like", "default", Guard::Draw),
    ("randn", "default", Guard::Draw),
    ("randn_like", "default", Guard::Draw),
    ("reciprocal", "default", Guard::Never),
    ("relu", "default", Guard::Never),
    ("relu6", "default", Guard::Never),
    ("repeat", "default", Guard::Never),
    ("repeat_interleave", "self_int", Guard::Never),
    ("reshape", "default", Guard::Never),
    ("rms_norm", "default", Guard::Never),
    ("rnn_relu", "input", Guard::Recurrent),
    ("rnn_tanh", "input", Guard::Recurrent),
    ("roll", "default", Guard::Never),
    ("rsqrt", "default", Guard::Never),
    ("rsub", "Scalar", Guard::Never),
    ("scalar_tensor", "default", Guard::Never),
    ("scaled_dot_product_attention", "default", Guard::Attention),
    ("select", "int", Guard::Never),
    ("selu", "default", Guard::Never),
    ("sigmoid", "default", Guard::Never),
    ("sign", "default", Guard::Never),
    ("silu", "default", Guard::Never),
    ("sin", "default", Guard::Never),
    ("slice", "Tensor", Guard::Never),
    ("smooth_l1_loss", "default", Guard::Never),
    ("soft_margin_loss", "default", Guard::Never),
    ("softmax", "int", Guard::Never),
    ("softplus", "default", Guard::Never),
    ("sort", "default", Guard::Never),
    ("sort", "stable", Guard::Never),
    ("split", "Tensor", Guard::Never),
    ("split_with_sizes", "default", Guard::Never),
    ("sqrt", "default", Guard::Never),
    ("square", "default", Guard::Never),
    ("squeeze", "default", Guard::Never),
    ("squeeze", "dim", Guard::Never),
    ("squeeze", "dims", Guard::Never),
    ("stack", "default", Guard::Never),
    ("std", "correction", Guard::Never),
    ("std", "dim", Guard::Never),
    ("sub", "Scalar", Guard::Never),
    ("sub", "Tensor", Guard::Never),
    ("sum", "default", Guard::Never),
    ("sum", "dim_IntList", Guard::Never),
    ("t", "default", Guard::Never),
    ("tanh", "default", Guard::Never),
    ("to", "dtype", Guard::Never),
    ("topk", "default", Guard::Never),
    ("transpose", "int", Guard::Never),
    ("tril", "default", Guard::Never),
    ("triu", "default", Guard::Never),
    ("unbind", "int", Guard::Never),
    ("unsqueeze", "default", Guard::Never),
    ("upsample_bicubic2d", "vec", Guard::Never),
    ("upsample_bilinear2d", "vec", Guard::Never),
    ("upsample_linear1d", "vec", Guard::Never),
    ("upsample_nearest1d", "vec", Guard::Never),
    ("upsample_nearest2d", "vec", Guard::Never),
    ("upsample_nearest3d", "vec", Guard::Never),
    ("upsample_trilinear3d", "vec", Guard::Never),
    ("var", "correction", Guard::Never),
    ("var", "dim", Guard::Never),
    ("view", "default", Guard::Never),
    ("where", "ScalarOther", Guard::Never),
    ("where", "ScalarSelf", Guard::Never),
    ("where", "self", Guard::Never),
    ("zeros", "default", Guard::Never),
    ("zeros_like", "default", Guard::Never),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_without_duplicates() {
        let keys: Vec<_> = OPERATORS
            .iter()
            .map(|&(name, overload, _)| (name, overload))
            .collect();
        assert!(keys.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn operators_that_write_or_read_files_are_not_allowed() {
        for (name, overload) in [
            ("from_file", "default"),
            ("add_", "Tensor"),
            ("empty", "memory_format"),
            ("bernoulli", "p"),
        ] {
            assert_eq!(guard(name, overload), None, "{name}.{overload}");
        }
        assert_eq!(guard("gather", "default"), Some(Guard::Gather));
        assert_eq!(guard("relu", "out"), None, "an overload that is not listed");
    }

    #[test]
    fn every_operator_exists_in_the_pinned_libtorch() {
        for &(name, overload, _) in OPERATORS {
            let found = crate::ffi::Operator::find(name, overload).expect("the dispatcher answers");
            assert!(found.is_some(), "aten::{name}.{overload}");
        }
    }
}
