//! Contractions with a weight, reductions and normalisations.

use super::*;

impl Step<'_> {
    pub(super) fn contract(
        &self,
        left: &str,
        right: &str,
        transposed: bool,
        added: Option<&Tensor>,
    ) -> Run<Tensor> {
        let (left, right) = (self.tensor(left)?, self.tensor(right)?);
        let right_at = |inner: usize, out: usize| match (right.shape.len(), transposed) {
            (1, _) => right.at(&[inner]),
            (_, true) => right.at(&[out, inner]),
            (_, false) => right.at(&[inner, out]),
        };
        let (inner, out) = match (right.shape.as_slice(), transposed) {
            ([inner], _) => (*inner, None),
            ([out, inner], true) | ([inner, out], false) => (*inner, Some(*out)),
            _ => return Err("the right operand is no matrix".into()),
        };
        let (last, rows) = left.shape.split_last().ok_or("a scalar operand")?;
        if *last != inner {
            return Err(format!("contracts {last} with {inner}"));
        }
        let shape: Vec<usize> = rows.iter().copied().chain(out).collect();
        let how = self.how();
        let product = Tensor::from_fn(shape.clone(), |at| {
            let row = &at[..rows.len()];
            let pairs = (0..inner).flat_map(|index| {
                let left_at = [row, &[index]].concat();
                [
                    left.at(&left_at),
                    right_at(index, at.get(rows.len()).copied().unwrap_or(0)),
                ]
            });
            mix(how, &pairs.collect::<Vec<_>>())
        });
        let Some(added) = added else { return Ok(product) };
        broadcast_shape(&[&shape, &added.shape])?;
        Ok(Tensor::from_fn(shape, |at| {
            mix("add", &[product.at(at), added.broadcast_at(at)])
        }))
    }

    pub(super) fn reduce(&self) -> Run<Tensor> {
        let value = self.tensor("self")?;
        let rank = value.shape.len();
        let has = |name: &str| self.node.arguments.iter().any(|argument| argument.name == name);
        let axes = if has("dim") {
            self.axes("dim", rank)?
        } else {
            (0..rank).collect()
        };
        let keep = has("keepdim") && self.bool("keepdim");
        let mut groups: HashMap<Vec<usize>, Vec<Cell>> = HashMap::new();
        let key = |at: &[usize]| -> Vec<usize> {
            at.iter()
                .enumerate()
                .filter_map(|(axis, index)| match (axes.contains(&axis), keep) {
                    (false, _) => Some(*index),
                    (true, true) => Some(0),
                    (true, false) => None,
                })
                .collect()
        };
        for at in indices(&value.shape) {
            groups.entry(key(&at)).or_default().push(value.at(&at));
        }
        let shape: Vec<usize> = value
            .shape
            .iter()
            .enumerate()
            .filter_map(|(axis, extent)| match (axes.contains(&axis), keep) {
                (false, _) => Some(*extent),
                (true, true) => Some(1),
                (true, false) => None,
            })
            .collect();
        let how = self.how();
        Ok(Tensor::from_fn(shape, |at| mix(how, &groups[at])))
    }

    /// Each element from itself and all elements that agree with it on the other axes.
    pub(super) fn within(&self, value: &Tensor, axes: &[usize]) -> Tensor {
        let how = self.how();
        let all = indices(&value.shape);
        Tensor::from_fn(value.shape.clone(), |at| {
            let same = |other: &&Vec<usize>| {
                (0..at.len()).all(|axis| axes.contains(&axis) || other[axis] == at[axis])
            };
            let group = all.iter().filter(same).map(|other| value.at(other));
            let own: Vec<usize> = axes.iter().map(|axis| at[*axis]).collect();
            mix(
                (how, own),
                &std::iter::once(value.at(at)).chain(group).collect::<Vec<_>>(),
            )
        })
    }

    pub(super) fn normalise_trailing(&self) -> Run<Tensor> {
        let input = self.tensor("input")?;
        let sizes = self.sizes("normalized_shape")?;
        let first = input.shape.len() - sizes.len();
        if input.shape[first..] != sizes {
            return Err("normalized_shape is not the trailing shape".into());
        }
        let mut result = self.within(input, &(first..input.shape.len()).collect::<Vec<_>>());
        let has_bias = self.node.operator == "layer_norm";
        for scale in [
            self.optional("weight"),
            has_bias.then(|| self.optional("bias")).flatten(),
        ]
        .into_iter()
        .flatten()
        {
            if scale.shape != sizes {
                return Err("the scale has another shape".into());
            }
            result = Tensor::from_fn(result.shape.clone(), |at| {
                mix("scale", &[result.at(at), scale.at(&at[first..])])
            });
        }
        Ok(result)
    }

    pub(super) fn normalise_groups(&self) -> Run<Tensor> {
        let input = self.tensor("input")?;
        let per_group = input.shape[1] / self.int("num_groups")? as usize;
        let how = self.how();
        let all = indices(&input.shape);
        Ok(Tensor::from_fn(input.shape.clone(), |at| {
            let same = |other: &&Vec<usize>| other[0] == at[0] && other[1] / per_group == at[1] / per_group;
            let group = all.iter().filter(same).map(|other| input.at(other));
            mix(
                (how, &at[1..]),
                &std::iter::once(input.at(at)).chain(group).collect::<Vec<_>>(),
            )
        }))
    }
}
