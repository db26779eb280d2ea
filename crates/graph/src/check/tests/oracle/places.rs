//! Shapes and places: each element of the result is one of the source.

use super::*;

impl Step<'_> {
    pub(super) fn rank_change(&self) -> Run<Tensor> {
        let value = self.tensor("self")?;
        let mut shape = value.shape.clone();
        match (self.node.operator.as_str(), self.node.overload.as_str()) {
            ("unsqueeze", _) => shape.insert(self.axis("dim", shape.len() + 1)?, 1),
            ("flatten", _) if shape.is_empty() => shape = vec![1],
            ("flatten", _) => {
                let (start, end) = (
                    self.axis("start_dim", shape.len())?,
                    self.axis("end_dim", shape.len())?,
                );
                let merged = shape[start..=end].iter().product();
                shape.splice(start..=end, [merged]);
            }
            (_, "default") => shape.retain(|extent| *extent != 1),
            _ => {
                let axes = self.axes("dim", shape.len())?;
                let kept = shape
                    .iter()
                    .enumerate()
                    .filter(|(axis, extent)| !axes.contains(axis) || **extent != 1);
                shape = kept.map(|(_, extent)| *extent).collect();
            }
        }
        reshape(value, shape)
    }

    pub(super) fn expand(&self) -> Run<Tensor> {
        let (value, shape) = (self.tensor("self")?, self.sizes("size")?);
        if broadcast_shape(&[&value.shape, &shape])? != shape {
            return Err("expand shrinks".into());
        }
        Ok(Tensor::from_fn(shape, |at| value.broadcast_at(at)))
    }

    pub(super) fn permute(&self) -> Run<Tensor> {
        let value = self.tensor("self")?;
        let rank = value.shape.len();
        let mut permutation: Vec<usize> = (0..rank).collect();
        match self.node.operator.as_str() {
            "t" => permutation.reverse(),
            "transpose" => permutation.swap(self.axis("dim0", rank)?, self.axis("dim1", rank)?),
            _ => permutation = self.axes("dims", rank)?,
        }
        let shape = permutation.iter().map(|axis| value.shape[*axis]).collect();
        Ok(Tensor::from_fn(shape, |at| {
            let mut source = vec![0; rank];
            permutation
                .iter()
                .zip(at)
                .for_each(|(axis, index)| source[*axis] = *index);
            value.at(&source)
        }))
    }

    pub(super) fn pick(&self) -> Run<Tensor> {
        let value = self.tensor("self")?;
        let axis = self.axis("dim", value.shape.len())?;
        let size = value.shape[axis] as i64;
        if self.node.operator == "select" {
            let index = self.int("index")?;
            let index = if index < 0 { index + size } else { index };
            if index < 0 || index >= size {
                return Err("select outside".into());
            }
            return Ok(take(value, axis, &[index as usize], true));
        }
        let clamp = |bound: i64| (if bound < 0 { bound + size } else { bound }).clamp(0, size);
        let start = clamp(self.int("start").unwrap_or(0));
        let end = clamp(self.int("end").unwrap_or(i64::MAX));
        let taken: Vec<usize> = (start..end)
            .step_by(self.int("step")? as usize)
            .map(|index| index as usize)
            .collect();
        Ok(take(value, axis, &taken, false))
    }

    pub(super) fn split(&self) -> Run<Vec<Tensor>> {
        let value = self.tensor("self")?;
        let axis = self.axis("dim", value.shape.len())?;
        let size = value.shape[axis];
        let parts: Vec<usize> = match self.node.operator.as_str() {
            "unbind" => return Ok((0..size).map(|index| take(value, axis, &[index], true)).collect()),
            "split" => {
                let part = self.int("split_size")? as usize;
                (0..size.div_ceil(part))
                    .map(|index| part.min(size - index * part))
                    .collect()
            }
            _ => self.sizes("split_sizes")?,
        };
        if parts.iter().sum::<usize>() != size {
            return Err("parts do not sum up".into());
        }
        let mut start = 0;
        Ok(parts
            .iter()
            .map(|part| {
                start += part;
                take(value, axis, &(start - part..start).collect::<Vec<_>>(), false)
            })
            .collect())
    }

    pub(super) fn join(&self) -> Run<Tensor> {
        let mut tensors: Vec<Tensor> = self.list("tensors").into_iter().cloned().collect();
        let stacks = self.node.operator == "stack";
        let rank = tensors[0].shape.len() + usize::from(stacks);
        let axis = self.axis("dim", rank)?;
        if stacks {
            tensors.iter_mut().for_each(|tensor| tensor.shape.insert(axis, 1));
        }
        let mut shape = tensors[0].shape.clone();
        shape[axis] = tensors.iter().map(|tensor| tensor.shape[axis]).sum();
        let fits = |tensor: &Tensor| {
            tensor
                .shape
                .iter()
                .enumerate()
                .all(|(other, extent)| other == axis || *extent == shape[other])
        };
        if !tensors.iter().all(fits) {
            return Err("joined shapes differ".into());
        }
        Ok(Tensor::from_fn(shape, |at| {
            let mut at = at.to_vec();
            for tensor in &tensors {
                if at[axis] < tensor.shape[axis] {
                    return tensor.at(&at);
                }
                at[axis] -= tensor.shape[axis];
            }
            unreachable!("the joined extent is the sum")
        }))
    }
}

/// Places of the source that a place of the result reads.
impl Step<'_> {
    pub(super) fn repeat(&self) -> Run<Tensor> {
        let (value, repeats) = (self.tensor("self")?, self.sizes("repeats")?);
        let added = repeats.len() - value.shape.len();
        let old = |axis: usize| axis.checked_sub(added).map_or(1, |axis| value.shape[axis]);
        let shape = (0..repeats.len()).map(|axis| old(axis) * repeats[axis]).collect();
        Ok(Tensor::from_fn(shape, |at| {
            let source: Vec<usize> = (added..at.len()).map(|axis| at[axis] % old(axis)).collect();
            value.at(&source)
        }))
    }

    pub(super) fn repeat_interleave(&self) -> Run<Tensor> {
        let value = self.tensor("self")?;
        let (axis, times) = (
            self.axis("dim", value.shape.len())?,
            self.int("repeats")? as usize,
        );
        let mut shape = value.shape.clone();
        shape[axis] *= times;
        Ok(Tensor::from_fn(shape, |at| {
            let mut source = at.to_vec();
            source[axis] /= times;
            value.at(&source)
        }))
    }

    /// `roll` without dims is one of the flat tensor.
    pub(super) fn turned(&self) -> Run<Tensor> {
        let value = self.tensor("self")?;
        let dims = self.ints("dims").unwrap_or_default();
        let back =
            |index: usize, shift: i64, size: usize| (index as i64 - shift).rem_euclid(size as i64) as usize;
        if self.node.operator == "flip" {
            let axes: Vec<usize> = dims.iter().map(|dim| axis(*dim, value.shape.len())).collect();
            return Ok(Tensor::from_fn(value.shape.clone(), |at| {
                let mut source = at.to_vec();
                axes.iter()
                    .for_each(|axis| source[*axis] = value.shape[*axis] - 1 - at[*axis]);
                value.at(&source)
            }));
        }
        let shifts = self.ints("shifts").unwrap_or_default();
        if dims.is_empty() {
            let count = value.cells.len();
            let cells = (0..count).map(|flat| value.cells[back(flat, shifts[0], count)]);
            return Ok(Tensor {
                shape: value.shape.clone(),
                cells: cells.collect(),
            });
        }
        Ok(Tensor::from_fn(value.shape.clone(), |at| {
            let mut source = at.to_vec();
            for (dim, shift) in dims.iter().zip(&shifts) {
                let axis = axis(*dim, value.shape.len());
                source[axis] = back(source[axis], *shift, value.shape[axis]);
            }
            value.at(&source)
        }))
    }
}
