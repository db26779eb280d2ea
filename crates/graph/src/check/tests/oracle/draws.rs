//! Draws that no value enters.

use super::*;

impl Step<'_> {
    /// Independent for every element. Without the batch in its shape a draw is shared by all samples: some extent is
    /// then no multiple of some batch size of [`judge`].
    pub(super) fn draw(&self, shape: Vec<usize>) -> Tensor {
        let spans_batch = shape.iter().any(|extent| extent % self.batch == 0);
        let how = self.how();
        Tensor::from_fn(shape, |_| {
            let mut cell = constant(how);
            if !spans_batch {
                cell.samples |= SHARED_RANDOM;
            }
            cell
        })
    }
}
