//! Clip factors of one micro-batch: one for each record, or one for each record and parameter. The maths is
//! `bastionai_privacy::sensitivity`'s; here it meets the norms that the engine computed.

use crate::error::Result;
use crate::gradients::Norms;
use bastionai_privacy::sensitivity::ClipRule;
use tch::Tensor;

/// The factors of each parameter.
pub(crate) struct Factors(Vec<RecordFactors>);

/// A factor for each record; 0 for one that adds nothing.
pub(crate) struct RecordFactors {
    pub(crate) list: Vec<f64>,
    /// The same, `[B]`, f64.
    pub(crate) tensor: Tensor,
}

impl Factors {
    /// From the norms of whole gradients, for flat and automatic clipping.
    pub(crate) fn of_records(rule: &ClipRule, norms: &Norms) -> Result<Self> {
        let factors = record_factors(rule, &norms.norm_squared, &norms.magnitude_squared, &norms.usable);
        Ok(Self(vec![factors?]))
    }

    /// From the norms of each parameter's gradients; `rule` is that of one of them. A record that is not usable in one
    /// parameter adds nothing to any.
    pub(crate) fn of_parameters(rule: &ClipRule, norms: &Norms) -> Result<Self> {
        let each = norms.parameters.iter();
        let factors = each.map(|(norm, magnitude)| record_factors(rule, norm, magnitude, &norms.usable));
        factors.collect::<Result<_>>().map(Self)
    }

    /// Those of the parameter at this place of the plan.
    pub(crate) fn of(&self, parameter: usize) -> &RecordFactors {
        &self.0[if self.0.len() == 1 { 0 } else { parameter }]
    }
}

/// `norm_squared`, `magnitude_squared`: `[B]`, f64; `usable`: `[B]`, bool.
fn record_factors(
    rule: &ClipRule,
    norm_squared: &Tensor,
    magnitude_squared: &Tensor,
    usable: &Tensor,
) -> Result<RecordFactors> {
    let norms = Vec::<f64>::try_from(norm_squared)?;
    let magnitudes = Vec::<f64>::try_from(magnitude_squared)?;
    let usable = Vec::<bool>::try_from(usable)?;
    let factor = |((&norm, &magnitude), &usable): ((&f64, &f64), &bool)| {
        if usable {
            rule.factor(norm, magnitude.sqrt())
        } else {
            0.0
        }
    };
    let list: Vec<f64> = norms.iter().zip(&magnitudes).zip(&usable).map(factor).collect();
    Ok(RecordFactors {
        tensor: Tensor::f_from_slice(&list)?,
        list,
    })
}
