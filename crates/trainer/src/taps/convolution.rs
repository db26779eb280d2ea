//! A convolution's weight gradient as one matrix product a record and group: the plain tensor `[channels, positions]`
//! times the unfolded one `[channels·kernel, positions]`, transposed.
//!
//! Of an ordinary convolution the input is unfolded and the output gradient is plain; of a transposed one, which is
//! the gradient of an ordinary one, the output gradient is unfolded and the input is plain.

use crate::program::{BatchAxis, Expected, element_count};
use bastionai_graph::typed::Convolution;

/// Extents and steps of one convolution, checked to be those of its operator.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ConvolutionPlan {
    pub(crate) unfolded_channels: i64,
    pub(crate) plain_channels: i64,
    /// Spatial extents of what is unfolded.
    pub(crate) unfolded_extents: Vec<i64>,
    /// Spatial extents of what is plain: where the kernel stands.
    pub(crate) positions: Vec<i64>,
    pub(crate) kernel: Vec<i64>,
    pub(crate) stride: Vec<i64>,
    pub(crate) dilation: Vec<i64>,
    pub(crate) padding_before: Vec<i64>,
    pub(crate) groups: i64,
    pub(crate) transposed: bool,
}

/// Elements of a record's padded input: 1 GiB in f32. Each thread holds one group's, which no other bound counts.
const MOST_PADDED_ELEMENTS: i64 = 1 << 28;

impl ConvolutionPlan {
    /// None when input, output and geometry do not belong together, or the batch is not axis 0.
    pub(super) fn new(geometry: &Convolution, input: &Expected, output: &Expected) -> Option<Self> {
        let axes = geometry.kernel.len();
        let leading = Some(BatchAxis { axis: 0, inner: 1 });
        let batched = |value: &Expected| value.batch == leading && value.shape.len() == axes + 2;
        if !batched(input) || !batched(output) || axes == 0 {
            return None;
        }
        let (unfolded, plain) = if geometry.transposed {
            (output, input)
        } else {
            (input, output)
        };
        let numbers = |values: &[u64]| -> Option<Vec<i64>> {
            let converted: Option<Vec<i64>> = values.iter().map(|&value| i64::try_from(value).ok()).collect();
            converted.filter(|values| values.len() == axes)
        };
        let plan = Self {
            unfolded_channels: unfolded.shape[1],
            plain_channels: plain.shape[1],
            unfolded_extents: unfolded.shape[2..].to_vec(),
            positions: plain.shape[2..].to_vec(),
            kernel: numbers(&geometry.kernel)?,
            stride: numbers(&geometry.stride)?,
            dilation: numbers(&geometry.dilation)?,
            padding_before: numbers(&geometry.padding_before)?,
            groups: i64::try_from(geometry.groups).ok().filter(|&groups| groups > 0)?,
            transposed: geometry.transposed,
        };
        let after = numbers(&geometry.padding_after)?;
        let mut window = vec![plan.unfolded_channels / plan.groups];
        window.extend(&plan.kernel);
        element_count(&window)?;
        let padded = (0..axes).try_fold(plan.unfolded_channels, |elements, axis| {
            let extent = plan.unfolded_extents[axis]
                .checked_add(plan.padding_before[axis])?
                .checked_add(after[axis])?;
            elements.checked_mul(extent)
        });
        if padded? > MOST_PADDED_ELEMENTS {
            return None;
        }
        let divides = plan.unfolded_channels % plan.groups == 0 && plan.plain_channels % plan.groups == 0;
        (divides && (0..axes).all(|axis| plan.fits(axis, after[axis]))).then_some(plan)
    }

    /// The positions are as many as the padded extent has room for, up to a transposed operator's output padding.
    fn fits(&self, axis: usize, after: i64) -> bool {
        let reach = |positions: i64| -> Option<i64> {
            let steps = (positions - 1).checked_mul(self.stride[axis])?;
            let within = self.dilation[axis].checked_mul(self.kernel[axis] - 1)?;
            steps.checked_add(within)?.checked_add(1)
        };
        let padded = self.unfolded_extents[axis]
            .checked_add(self.padding_before[axis])
            .and_then(|extent| extent.checked_add(after));
        let positive =
            self.stride[axis] > 0 && self.dilation[axis] > 0 && self.kernel[axis] > 0 && after >= 0;
        let Some((padded, reached)) = padded.zip(reach(self.positions[axis])) else {
            return false;
        };
        let Some(left) = padded.checked_sub(reached) else {
            return false;
        };
        let most = if self.transposed {
            self.stride[axis].max(self.dilation[axis])
        } else {
            self.stride[axis]
        };
        positive && self.padding_before[axis] >= 0 && (0..most).contains(&left)
    }

    /// Positions of the kernel: rows of a record.
    pub(crate) fn length(&self) -> i64 {
        self.positions.iter().product()
    }

    /// Elements that a position meets in one group: channels times kernel.
    pub(crate) fn unfolded_width(&self) -> i64 {
        self.unfolded_channels / self.groups * self.kernel.iter().product::<i64>()
    }

    /// Plain channels of one group.
    pub(crate) fn plain_width(&self) -> i64 {
        self.plain_channels / self.groups
    }

    /// Channels of the output, which the bias has.
    pub(crate) fn output_channels(&self) -> i64 {
        if self.transposed {
            self.unfolded_channels
        } else {
            self.plain_channels
        }
    }

    /// The weight as the operator takes it.
    pub(crate) fn weight_shape(&self) -> Vec<i64> {
        let mut shape = vec![self.plain_channels, self.unfolded_channels / self.groups];
        shape.extend(&self.kernel);
        shape
    }

    /// Whether the kernel has one place, which meets every element once and nothing else.
    pub(crate) fn is_pointwise(&self) -> bool {
        let all = |values: &[i64], value: i64| values.iter().all(|&each| each == value);
        let still = all(&self.kernel, 1) && all(&self.stride, 1) && all(&self.padding_before, 0);
        still && self.positions == self.unfolded_extents
    }

    /// Elements of a record after unfolding.
    pub(crate) fn unfolded_elements(&self) -> i64 {
        self.unfolded_width()
            .saturating_mul(self.groups)
            .saturating_mul(self.length())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn value(shape: &[i64]) -> Expected {
        Expected {
            shape: shape.to_vec(),
            kind: Kind::Float,
            batch: Some(BatchAxis { axis: 0, inner: 1 }),
        }
    }

    fn geometry(padding_after: u64, transposed: bool) -> Convolution {
        Convolution {
            kernel: vec![3],
            stride: vec![2],
            padding_before: vec![1],
            padding_after: vec![padding_after],
            dilation: vec![1],
            groups: 1,
            transposed,
        }
    }

    #[test]
    fn extents_that_the_operator_would_not_give_are_refused() {
        let plan = |input: &[i64], output: &[i64]| {
            ConvolutionPlan::new(&geometry(1, false), &value(input), &value(output))
        };
        assert!(plan(&[4, 2, 7], &[4, 5, 4]).is_some());
        for (input, output) in [
            (&[4, 2, 7][..], &[4, 5, 5][..]),
            (&[4, 2, 7], &[4, 5, 3]),
            (&[4, 7], &[4, 4]),
            (&[4, 2, 7], &[4, 5, 4, 1]),
        ] {
            assert!(plan(input, output).is_none(), "{input:?} {output:?}");
        }
    }

    #[test]
    fn padding_that_no_memory_holds_is_refused_although_the_stride_skips_it() {
        let plan = |padding: u64| {
            let geometry = Convolution {
                kernel: vec![3],
                stride: vec![1 << 40],
                padding_before: vec![padding],
                padding_after: vec![padding],
                dilation: vec![1],
                groups: 1,
                transposed: false,
            };
            ConvolutionPlan::new(&geometry, &value(&[4, 2, 7]), &value(&[4, 5, 1]))
        };
        assert!(plan(1 << 20).is_some());
        assert!(plan(1 << 28).is_none() && plan(1 << 38).is_none());
    }

    #[test]
    fn a_transposed_convolution_unfolds_its_output_and_leaves_room_for_output_padding() {
        let plan = |output: i64| {
            ConvolutionPlan::new(&geometry(1, true), &value(&[4, 5, 4]), &value(&[4, 2, output]))
        };
        assert!(plan(7).is_some() && plan(8).is_some());
        assert!(plan(6).is_none() && plan(9).is_none());
        let plan = plan(8).unwrap();
        assert_eq!(
            (plan.weight_shape(), plan.output_channels(), plan.length()),
            (vec![5, 2, 3], 2, 4)
        );
    }

    #[test]
    fn extents_beyond_any_memory_are_refused_and_overflow_nothing() {
        let huge = Convolution {
            kernel: vec![1 << 40; 3],
            stride: vec![1; 3],
            padding_before: vec![1 << 40; 3],
            padding_after: vec![0; 3],
            dilation: vec![1; 3],
            groups: 1,
            transposed: false,
        };
        let (input, output) = (value(&[4, 2, 1, 1, 1]), value(&[4, 2, 2, 2, 2]));
        assert!(ConvolutionPlan::new(&huge, &input, &output).is_none());
        let no_position = Convolution {
            stride: vec![i64::MAX as u64],
            padding_before: vec![i64::MAX as u64 - 7],
            ..geometry(0, false)
        };
        assert!(ConvolutionPlan::new(&no_position, &value(&[4, 2, 7]), &value(&[4, 5, 0])).is_none());
    }

    #[test]
    fn a_batch_elsewhere_or_in_blocks_is_refused() {
        for batch in [
            None,
            Some(BatchAxis { axis: 1, inner: 1 }),
            Some(BatchAxis { axis: 0, inner: 2 }),
        ] {
            let input = Expected {
                batch,
                ..value(&[4, 2, 7])
            };
            assert!(ConvolutionPlan::new(&geometry(1, false), &input, &value(&[4, 5, 4])).is_none());
        }
    }
}
