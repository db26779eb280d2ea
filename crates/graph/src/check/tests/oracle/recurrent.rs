//! Recurrent layers: whatever axis they take for the batch, every output of a row is made from all steps of that row.

use super::*;

impl Step<'_> {
    pub(super) fn recurrent(&self) -> Run<Vec<Tensor>> {
        let input = self.tensor("input")?;
        let states = match self.argument("hx") {
            Argument::Value(_) => vec![self.tensor("hx")?],
            _ => self.list("hx"),
        };
        let parameters = self.list("params");
        let batch = usize::from(!self.bool("batch_first"));
        let directions = 1 + usize::from(self.bool("bidirectional"));
        let how = self.how();
        let of_row = |row: usize| -> Vec<Cell> {
            let part = |value: &Tensor, axis: usize| -> Vec<Cell> {
                let all = indices(&value.shape);
                all.iter()
                    .filter(|at| at[axis] == row)
                    .map(|at| value.at(at))
                    .collect()
            };
            let mut from = part(input, batch);
            from.extend(states.iter().flat_map(|state| part(state, 1)));
            from.extend(parameters.iter().flat_map(|parameter| parameter.cells.clone()));
            from
        };
        let rows: Vec<Cell> = (0..input.shape[batch])
            .map(|row| mix(how, &of_row(row)))
            .collect();
        let mut shape = input.shape.clone();
        shape[2] = states[0].shape[2] * directions;
        // The place among the steps is part of the computation, the place among the rows is not.
        let outputs = Tensor::from_fn(shape, |at| {
            mix(("output", at[1 - batch], at[2]), &[rows[at[batch]]])
        });
        let last = states.iter().map(|state| {
            Tensor::from_fn(state.shape.clone(), |at| {
                mix(("state", at[0], at[2]), &[rows[at[1]]])
            })
        });
        Ok(std::iter::once(outputs).chain(last).collect())
    }
}
