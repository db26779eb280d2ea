//! Constants, random values and losses by class.

use super::*;

impl Step<'_> {
    pub(super) fn arange(&self) -> Run<Tensor> {
        let end = match self.argument("end") {
            Argument::Sizes(extents) => concrete(extents, self.batch)[0],
            Argument::Int(end) => *end as usize,
            other => return Err(format!("arange of {other:?}")),
        };
        let start = match self.node.overload.as_str() {
            "start" => usize::try_from(self.int("start")?).map_err(|_| "a negative start")?,
            _ => 0,
        };
        Ok(Tensor::from_fn(vec![end - start], |at| Cell {
            index: Some(start + at[0]),
            ..constant(("arange", start + at[0]))
        }))
    }

    /// Zero on one side of a diagonal of the last two axes.
    pub(super) fn triangle(&self) -> Run<Tensor> {
        let (value, diagonal) = (self.tensor("self")?, self.int("diagonal")?);
        let rank = value.shape.len();
        let lower = self.node.operator == "tril";
        Ok(Tensor::from_fn(value.shape.clone(), |at| {
            let above = at[rank - 1] as i64 - at[rank - 2] as i64 - diagonal;
            if (lower && above <= 0) || (!lower && above >= 0) {
                value.at(at)
            } else {
                constant("zero")
            }
        }))
    }

    /// Draws are independent for every element; a draw for an element without a sample is shared by all.
    pub(super) fn dropout(&self) -> Run<Tensor> {
        let input = self.tensor("input")?;
        let (how, random) = (
            self.how(),
            self.bool("train") || *self.argument("train") == Argument::None,
        );
        Ok(Tensor::from_fn(input.shape.clone(), |at| {
            let mut cell = mix(how, &[input.at(at)]);
            // A filled constant of the batch's shape carries no sample, but its draws differ by row: some extent
            // is then a multiple of every batch size of `judge`.
            let spans_batch = input.shape.iter().any(|extent| extent % self.batch == 0);
            if random && cell.samples == 0 && !spans_batch {
                cell.samples |= SHARED_RANDOM;
            }
            cell
        }))
    }

    pub(super) fn class_loss(&self) -> Run<Tensor> {
        let (input, target) = (self.tensor("self")?, self.tensor("target")?);
        let weight = self.optional("weight");
        if input.shape.len() < 2 {
            return Err("a loss over unbatched classes".into());
        }
        let mut shape = input.shape.clone();
        let classes = shape.remove(1);
        let by_index = target.shape == shape;
        if (!by_index && target.shape != input.shape)
            || weight.is_some_and(|weight| weight.shape != [classes])
        {
            return Err("target or weight does not fit".into());
        }
        let how = self.how();
        let losses = Tensor::from_fn(shape, |at| {
            let line = |tensor: &Tensor| -> Vec<Cell> {
                (0..classes)
                    .map(|class| tensor.at(&[&at[..1], &[class], &at[1..]].concat()))
                    .collect()
            };
            let mut from = line(input);
            from.extend(if by_index {
                vec![target.at(at)]
            } else {
                line(target)
            });
            from.extend(weight.iter().flat_map(|weight| weight.cells.iter().copied()));
            mix(how, &from)
        });
        if *self.argument("reduction") == Argument::Int(0) {
            return Ok(losses);
        }
        Ok(Tensor {
            shape: Vec::new(),
            cells: vec![mix(how, &losses.cells)],
        })
    }
}
