//! Tables, gathers and indices: what is read depends on an index.

use super::*;

impl Step<'_> {
    pub(super) fn gather(&self) -> Run<Tensor> {
        let (data, index) = (self.tensor("self")?, self.tensor("index")?);
        let axis = self.axis("dim", data.shape.len())?;
        let inside =
            (0..data.shape.len()).all(|other| other == axis || index.shape[other] <= data.shape[other]);
        if index.shape.len() != data.shape.len() || !inside {
            return Err("gather outside".into());
        }
        let how = self.how();
        Ok(Tensor::from_fn(index.shape.clone(), |at| {
            let line = (0..data.shape[axis]).map(|position| {
                let mut source = at.to_vec();
                source[axis] = position;
                data.at(&source)
            });
            mix(
                how,
                &std::iter::once(index.at(at)).chain(line).collect::<Vec<_>>(),
            )
        }))
    }

    /// Given indices lead or replace one axis; a known index picks its row, an unknown one may pick any.
    pub(super) fn index(&self) -> Run<Tensor> {
        let data = self.tensor("self")?;
        let Argument::OptionalValues(slots) = self.argument("indices") else {
            return Err("no indices".into());
        };
        let given: Vec<(usize, &Tensor)> = slots
            .iter()
            .enumerate()
            .filter_map(|(axis, id)| id.as_ref().map(|id| (axis, &self.values[id])))
            .collect();
        let first = given.first().ok_or("no index")?.0;
        let shape = broadcast_shape(
            &given
                .iter()
                .map(|(_, index)| index.shape.as_slice())
                .collect::<Vec<_>>(),
        )?;
        let (before, after) = (&data.shape[..first], &data.shape[first + given.len()..]);
        let result = [before, &shape, after].concat();
        let how = self.how();
        Ok(Tensor::from_fn(result, |at| {
            let (head, rest) = at.split_at(before.len());
            let (middle, tail) = rest.split_at(shape.len());
            let picks: Vec<Cell> = given
                .iter()
                .map(|(_, index)| index.broadcast_at(middle))
                .collect();
            let candidates =
                given
                    .iter()
                    .zip(&picks)
                    .fold(vec![Vec::new()], |all: Vec<Vec<usize>>, ((axis, _), pick)| {
                        let rows = pick
                            .index
                            .map_or_else(|| (0..data.shape[*axis]).collect(), |row| vec![row]);
                        all.iter()
                            .flat_map(|prefix| {
                                rows.iter().map(move |row| [prefix.as_slice(), &[*row]].concat())
                            })
                            .collect()
                    });
            let cells = candidates
                .iter()
                .map(|rows| data.at(&[head, rows.as_slice(), tail].concat()));
            // A known row says nothing but which element was read.
            let unknown = picks.iter().filter(|pick| pick.index.is_none()).copied();
            mix(how, &unknown.chain(cells).collect::<Vec<_>>())
        }))
    }

    pub(super) fn one_hot(&self) -> Run<Tensor> {
        let index = self.tensor("self")?;
        let classes =
            usize::try_from(self.int("num_classes")?).map_err(|_| "the shape depends on the labels")?;
        let shape = [index.shape.as_slice(), &[classes]].concat();
        let how = self.how();
        Ok(Tensor::from_fn(shape, |at| {
            mix((how, at[at.len() - 1]), &[index.at(&at[..at.len() - 1])])
        }))
    }

    pub(super) fn embedding(&self) -> Run<Tensor> {
        let (table, index) = (self.tensor("weight")?, self.tensor("indices")?);
        let shape = [index.shape.as_slice(), &table.shape[1..]].concat();
        let how = self.how();
        Ok(Tensor::from_fn(shape, |at| {
            let (row, column) = at.split_at(at.len() - 1);
            let cells = (0..table.shape[0]).map(|candidate| table.at(&[candidate, column[0]]));
            mix(
                how,
                &std::iter::once(index.at(row)).chain(cells).collect::<Vec<_>>(),
            )
        }))
    }
}
