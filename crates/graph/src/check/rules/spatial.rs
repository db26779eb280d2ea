//! Windows over the spatial axes of a sample: how many there are, and that they stay within it.

use super::super::call::{Call, batch_axis};
use super::super::facts::Typed;
use super::super::premise::{Premise, is_dropped, require};
use super::super::refusal::Objection;
use crate::display;
use crate::typed::Extent;

/// Largest kernel, stride, padding and dilation. Far above what anybody uses, and products of two stay exact.
const LARGEST: i64 = 1 << 16;

/// Spatial axes of an operator that is named by them (`max_pool2d`, `upsample_linear1d`); one where it names none.
pub(super) fn named_axes(call: &Call<'_>) -> usize {
    let mut characters = call.schema.name.chars();
    let digit = characters.find_map(|character| character.to_digit(10));
    digit.map_or(1, |digit| digit as usize)
}

/// One number for every spatial axis; a single one stands for all (`conv2d(stride=2)`).
pub(super) fn per_axis(call: &Call<'_>, name: &str, axes: usize) -> Result<Option<Vec<i64>>, Objection> {
    let Some(mut given) = call.ints(name)?.filter(|given| !given.is_empty()) else {
        return Ok(None);
    };
    if let [one] = given[..] {
        given = vec![one; axes];
    }
    if given.len() == axes {
        return Ok(Some(given));
    }
    let reason = format!("{name} has {} numbers for {axes} spatial axes", given.len());
    Err(Objection::plain(reason, "give one number, or one for every axis"))
}

/// [`per_axis`] with every number in `least..=2^16`.
pub(super) fn bounded(
    call: &Call<'_>,
    name: &str,
    axes: usize,
    least: i64,
) -> Result<Option<Vec<u64>>, Objection> {
    let Some(given) = per_axis(call, name, axes)? else {
        return Ok(None);
    };
    if given.iter().all(|value| (least..=LARGEST).contains(value)) {
        return Ok(Some(given.iter().map(|value| value.unsigned_abs()).collect()));
    }
    let reason = format!("{name} is {given:?}; each number must be in {least}..={LARGEST}");
    Err(Objection::plain(reason, "use numbers in that range"))
}

/// As [`bounded`], for an argument that must be there.
pub(super) fn required(call: &Call<'_>, name: &str, axes: usize, least: i64) -> Result<Vec<u64>, Objection> {
    bounded(call, name, axes, least)?
        .ok_or_else(|| Objection::plain(format!("{name} is empty"), "give one number for every axis"))
}

/// One axis over which a window moves.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub(super) kernel: u64,
    pub(super) stride: u64,
    pub(super) before: u64,
    pub(super) after: u64,
    pub(super) dilation: u64,
    /// Whether a last window may hang over the end (`ceil_mode`).
    pub(super) ceil: bool,
}

impl Window {
    /// How many positions an axis of `size` has; None when it has none.
    ///
    /// Mirrors `pooling_output_shape_pad_lr` (aten/src/ATen/native/Pool.h) and `conv_output_size`.
    pub(super) fn positions(&self, size: u64) -> Option<u64> {
        let padded = size.checked_add(self.before)?.checked_add(self.after)?;
        let reach = self.dilation.checked_mul(self.kernel.checked_sub(1)?)?;
        let room = padded.checked_sub(reach.checked_add(1)?);
        // A window that does not fit may still hang over in ceil mode; PyTorch then counts one or none.
        let room = room?;
        let slack = if self.ceil { self.stride - 1 } else { 0 };
        let positions = room.checked_add(slack)? / self.stride + 1;
        let hangs =
            self.ceil && (positions - 1).checked_mul(self.stride)? >= size.checked_add(self.before)?;
        let positions = if hangs { positions - 1 } else { positions };
        (positions > 0).then_some(positions)
    }
}

/// The extents after windows over the last axes, one window an axis.
pub(super) fn after_windows(input: &Typed, windows: &[Window]) -> Result<Vec<Extent>, Objection> {
    let mut shape = input.value_type.shape.clone();
    let first = shape.len() - windows.len();
    for (extent, window) in shape[first..].iter_mut().zip(windows) {
        // Only in a rule mutant do windows move over the batch.
        if let Extent::Fixed(size) = *extent {
            *extent = Extent::Fixed(window.positions(size).ok_or_else(|| empty(input))?);
        }
    }
    Ok(shape)
}

fn empty(input: &Typed) -> Objection {
    let reason = format!(
        "the window does not fit into {}: the result is empty",
        display::ty(&input.value_type)
    );
    Objection::plain(reason, "use a smaller kernel or dilation, or more padding")
}

/// The input is `[B, channels, ..]` with this many spatial axes (rule T4: fewer axes would make the batch a channel).
pub(super) fn require_leading_batch(input: &Typed, spatial: usize, what: &str) -> Result<(), Objection> {
    let rank = input.value_type.shape.len();
    let leading = batch_axis(&input.value_type).is_none_or(|batch| batch == (0, 1)) && rank == spatial + 2;
    require(Premise::BatchIsLeading, leading, || {
        let reason = format!(
            "{what} of {} would take another axis for the batch; it needs f32[B, channels{}]",
            display::ty(&input.value_type),
            ", length".repeat(spatial)
        );
        (
            reason,
            "keep the batch as axis 0, e.g. x.unsqueeze(1) for one channel".into(),
        )
    })?;
    if rank == spatial + 2 || (is_dropped(Premise::BatchIsLeading) && rank == spatial + 1) {
        return Ok(());
    }
    let reason = format!("{what} takes {} axes, not {rank}", spatial + 2);
    Err(Objection::plain(reason, "give an input of [B, channels, ..]"))
}
