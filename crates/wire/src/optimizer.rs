//! One description of an optimizer for client, server and trainer, and its two wire forms.

use crate::v1;
use serde::{Deserialize, Serialize};

/// Update rule and its hyper-parameters, with the names and the meaning of `torch.optim`.
///
/// JSON is `{"sgd": {"lr": 0.1, …}}`; postcard, between server and trainer, counts the variants.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// `torch.optim.SGD`.
    Sgd {
        /// Learning rate.
        lr: f64,
        /// Momentum.
        momentum: f64,
        /// Dampening.
        dampening: f64,
        /// L2 penalty.
        weight_decay: f64,
        /// Nesterov momentum.
        nesterov: bool,
    },
    /// `torch.optim.AdamW`: weight decay is decoupled.
    AdamW(Adam),
    /// `torch.optim.Adam`, without amsgrad: weight decay is an L2 penalty that enters the moments.
    Adam(Adam),
    /// Either of them with its second moment corrected for the noise's variance: the step is
    /// `m̂/√max(v̂ − Φ, floor)`, Φ being the public variance of the noise in a coordinate of the gradient. `eps` has no
    /// part in it. DP-AdamBC (Tang, Shpilevskiy and Lécuyer 2023, <https://arxiv.org/abs/2312.14334>).
    NoiseCorrected {
        /// The numbers of Adam.
        adam: Adam,
        /// Whether weight decay is decoupled, as AdamW's.
        decoupled: bool,
        /// Least value under the root, above 0: γ′ of the paper.
        floor: f64,
    },
}

/// The numbers of `torch.optim.Adam` and `AdamW`, which share their names, defaults but for the decay, and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Adam {
    /// Learning rate.
    pub lr: f64,
    /// First-moment decay.
    pub beta1: f64,
    /// Second-moment decay.
    pub beta2: f64,
    /// Denominator offset.
    pub eps: f64,
    /// Weight decay; the variant says how it enters.
    pub weight_decay: f64,
}

impl Optimizer {
    /// Groups of tensors that the optimizer keeps beside the parameters, each shaped like them: momentum, or first and
    /// second moments.
    pub fn moments(&self) -> usize {
        match *self {
            Self::Sgd { momentum, .. } => usize::from(momentum != 0.0),
            Self::AdamW(_) | Self::Adam(_) | Self::NoiseCorrected { .. } => 2,
        }
    }
}

/// A message that names no optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("optimizer is missing: set sgd, adam or adamw")]
pub struct NoOptimizer;

impl From<Optimizer> for v1::Optimizer {
    fn from(optimizer: Optimizer) -> Self {
        let kind = match optimizer {
            Optimizer::Sgd {
                lr,
                momentum,
                dampening,
                weight_decay,
                nesterov,
            } => v1::optimizer::Kind::Sgd(v1::Sgd {
                lr,
                momentum,
                dampening,
                weight_decay,
                nesterov,
            }),
            Optimizer::AdamW(adam) => v1::optimizer::Kind::Adamw(adamw_to_wire(adam, 0.0)),
            Optimizer::Adam(adam) => v1::optimizer::Kind::Adam(adam_to_wire(adam, 0.0)),
            Optimizer::NoiseCorrected {
                adam,
                decoupled: true,
                floor,
            } => v1::optimizer::Kind::Adamw(adamw_to_wire(adam, floor)),
            Optimizer::NoiseCorrected { adam, floor, .. } => {
                v1::optimizer::Kind::Adam(adam_to_wire(adam, floor))
            }
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::Optimizer> for Optimizer {
    type Error = NoOptimizer;

    /// Takes the numbers as they are: whether they make sense is the server's to say.
    fn try_from(wire: v1::Optimizer) -> Result<Self, NoOptimizer> {
        Ok(match wire.kind.ok_or(NoOptimizer)? {
            v1::optimizer::Kind::Sgd(v1::Sgd {
                lr,
                momentum,
                dampening,
                weight_decay,
                nesterov,
            }) => Self::Sgd {
                lr,
                momentum,
                dampening,
                weight_decay,
                nesterov,
            },
            v1::optimizer::Kind::Adamw(v1::AdamW {
                lr,
                beta1,
                beta2,
                eps,
                weight_decay,
                noise_correction,
            }) => {
                let adam = Adam {
                    lr,
                    beta1,
                    beta2,
                    eps,
                    weight_decay,
                };
                corrected(adam, true, noise_correction).unwrap_or(Self::AdamW(adam))
            }
            v1::optimizer::Kind::Adam(v1::Adam {
                lr,
                beta1,
                beta2,
                eps,
                weight_decay,
                noise_correction,
            }) => {
                let adam = Adam {
                    lr,
                    beta1,
                    beta2,
                    eps,
                    weight_decay,
                };
                corrected(adam, false, noise_correction).unwrap_or(Self::Adam(adam))
            }
        })
    }
}

/// `None` without a floor.
fn corrected(adam: Adam, decoupled: bool, floor: f64) -> Option<Optimizer> {
    (floor != 0.0).then_some(Optimizer::NoiseCorrected {
        adam,
        decoupled,
        floor,
    })
}

fn adamw_to_wire(adam: Adam, noise_correction: f64) -> v1::AdamW {
    let Adam {
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
    } = adam;
    v1::AdamW {
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        noise_correction,
    }
}

fn adam_to_wire(adam: Adam, noise_correction: f64) -> v1::Adam {
    let v1::AdamW {
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        noise_correction,
    } = adamw_to_wire(adam, noise_correction);
    v1::Adam {
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        noise_correction,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NUMBERS: Adam = Adam {
        lr: 0.1,
        beta1: 0.2,
        beta2: 0.3,
        eps: 0.4,
        weight_decay: 0.5,
    };

    /// Stored runs hold these forms: variant and fields, as when each variant had fields of its own.
    #[test]
    fn the_stored_forms_of_adam_are_pinned() {
        let json = |name: &str| {
            format!(r#"{{"{name}":{{"lr":0.1,"beta1":0.2,"beta2":0.3,"eps":0.4,"weight_decay":0.5}}}}"#)
        };
        let numbers: Vec<u8> = [0.1, 0.2, 0.3, 0.4, 0.5]
            .iter()
            .flat_map(|value: &f64| value.to_le_bytes())
            .collect();
        for (variant, name, optimizer) in [
            (1u8, "adam_w", Optimizer::AdamW(NUMBERS)),
            (2, "adam", Optimizer::Adam(NUMBERS)),
        ] {
            assert_eq!(serde_json::to_string(&optimizer).unwrap(), json(name));
            assert_eq!(serde_json::from_str::<Optimizer>(&json(name)).unwrap(), optimizer);
            let bytes = postcard::to_allocvec(&optimizer).unwrap();
            assert_eq!(bytes, [&[variant], &numbers[..]].concat());
            assert_eq!(postcard::from_bytes::<Optimizer>(&bytes).unwrap(), optimizer);
        }
    }

    #[test]
    fn every_optimizer_survives_the_wire() {
        let sgd = Optimizer::Sgd {
            lr: 0.1,
            momentum: 0.2,
            dampening: 0.3,
            weight_decay: 0.4,
            nesterov: true,
        };
        let corrected = |decoupled| Optimizer::NoiseCorrected {
            adam: NUMBERS,
            decoupled,
            floor: 5e-8,
        };
        let adams = [Optimizer::AdamW(NUMBERS), Optimizer::Adam(NUMBERS)];
        for optimizer in adams.into_iter().chain([sgd, corrected(true), corrected(false)]) {
            assert_eq!(Optimizer::try_from(v1::Optimizer::from(optimizer)), Ok(optimizer));
        }
        assert_eq!(
            Optimizer::try_from(v1::Optimizer { kind: None }),
            Err(NoOptimizer)
        );
    }
}
