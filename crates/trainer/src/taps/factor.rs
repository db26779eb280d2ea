//! How the gradients of tables and weights factor into rows, so that a tie needs no gradient of the whole parameter.

use super::{Role, Use, ViewBack};

/// How one use's gradient factors into rows: `Σ_t l_t r_tᵀ` in the parameter's own shape `[rows, width]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Factor {
    /// `l` is one-hot in the token's id, `r` the output gradient.
    Table,
    /// `l` is the output gradient and `r` the input.
    GradientInput,
    /// `l` is the input and `r` the output gradient.
    InputGradient,
}

impl Use {
    /// `None` where the parameter enters through more than transposes.
    pub(crate) fn factor(&self) -> Option<Factor> {
        let mut turned = false;
        for step in &self.back {
            match step {
                ViewBack::Permute(axes) if axes[..] == [1, 0] => turned = !turned,
                ViewBack::Permute(axes) if axes[..] == [0, 1] => {}
                _ => return None,
            }
        }
        match &self.role {
            Role::Table if !turned => Some(Factor::Table),
            Role::Weight { transposed } if self.value_shape.len() == 2 => Some(if *transposed == turned {
                Factor::GradientInput
            } else {
                Factor::InputGradient
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(transposed: bool, back: Vec<ViewBack>) -> Use {
        Use {
            tap: 0,
            role: Role::Weight { transposed },
            value_shape: vec![2, 3],
            back,
        }
    }

    #[test]
    fn two_transposes_cancel_and_one_swaps_the_factors() {
        let turn = || ViewBack::Permute(vec![1, 0]);
        assert_eq!(weight(false, vec![]).factor(), Some(Factor::GradientInput));
        assert_eq!(weight(true, vec![]).factor(), Some(Factor::InputGradient));
        assert_eq!(weight(true, vec![turn()]).factor(), Some(Factor::GradientInput));
        assert_eq!(
            weight(false, vec![turn(), turn()]).factor(),
            Some(Factor::GradientInput)
        );
        assert_eq!(weight(false, vec![ViewBack::Reshape(vec![6])]).factor(), None);
    }
}
