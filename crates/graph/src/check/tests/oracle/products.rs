//! Products of data with data, attention, and what orders or accumulates along an axis.

use super::*;

impl Step<'_> {
    /// `left @ right` with broadcasting, by torch.matmul's rules.
    pub(super) fn matmul(&self, left: &str, right: &str) -> Run<Tensor> {
        let (left, right) = (self.tensor(left)?, self.tensor(right)?);
        let vectors = (left.shape.len() == 1, right.shape.len() == 1);
        let (mut left, mut right) = (left.clone(), right.clone());
        if vectors.0 {
            left.shape.insert(0, 1);
        }
        if vectors.1 {
            right.shape.push(1);
        }
        let (left_leading, [rows, inner]) = matrix(&left)?;
        let (right_leading, [other_inner, columns]) = matrix(&right)?;
        if inner != other_inner {
            return Err(format!("contracts {inner} with {other_inner}"));
        }
        let leading = broadcast_shape(&[left_leading, right_leading])?;
        let how = self.how();
        let full = [leading.as_slice(), &[rows, columns]].concat();
        let mut product = Tensor::from_fn(full, |at| {
            let (leading, place) = at.split_at(at.len() - 2);
            let pairs = (0..inner).flat_map(|index| {
                [
                    left.broadcast_at(&[leading, &[place[0], index]].concat()),
                    right.broadcast_at(&[leading, &[index, place[1]]].concat()),
                ]
            });
            mix(how, &pairs.collect::<Vec<_>>())
        });
        let rank = product.shape.len();
        if vectors.1 {
            product.shape.remove(rank - 1);
        }
        if vectors.0 {
            product.shape.remove(rank - 2);
        }
        Ok(product)
    }

    /// Each result from its whole line; `topk` keeps the first.
    pub(super) fn along_axis(&self) -> Run<Tensor> {
        let value = self.tensor("self")?;
        let axis = self.axis("dim", value.shape.len())?;
        let whole = self.within(value, &[axis]);
        if self.node.operator != "topk" {
            return Ok(whole);
        }
        let kept = usize::try_from(self.int("k")?).map_err(|_| "a negative k")?;
        if kept > value.shape[axis] {
            return Err("k is larger than the axis".into());
        }
        Ok(take(&whole, axis, &(0..kept).collect::<Vec<_>>(), false))
    }

    pub(super) fn baddbmm(&self) -> Run<Tensor> {
        let (product, added) = (self.matmul("batch1", "batch2")?, self.tensor("self")?);
        if broadcast_shape(&[&product.shape, &added.shape])? != product.shape {
            return Err("the added tensor is larger than the product".into());
        }
        Ok(Tensor::from_fn(product.shape.clone(), |at| {
            mix("add", &[product.at(at), added.broadcast_at(at)])
        }))
    }

    /// Weights of a query come from its row, all keys and its row of the mask; values follow them.
    pub(super) fn attention(&self) -> Run<Tensor> {
        let [query, key, value] = [self.tensor("query")?, self.tensor("key")?, self.tensor("value")?];
        let mask = self.optional("attn_mask");
        let (leading, [length, width]) = matrix(query)?;
        let (key_leading, [key_length, key_width]) = matrix(key)?;
        let (value_leading, [value_length, value_width]) = matrix(value)?;
        if leading != key_leading
            || leading != value_leading
            || width != key_width
            || key_length != value_length
        {
            return Err("query, key and value do not fit".into());
        }
        let weights = [leading, &[length, key_length]].concat();
        if mask.is_some_and(|mask| broadcast_shape(&[&mask.shape, &weights]).ok().as_ref() != Some(&weights))
        {
            return Err("the mask does not fit".into());
        }
        let drops = *self.argument("dropout_p") != Argument::Float(crate::typed::FloatBits::new(0.0));
        let how = self.how();
        // As for dropout: a constant of the batch's shape carries no sample, but its draws differ by row.
        let spans_batch = leading.iter().any(|extent| extent % self.batch == 0);
        let shape = [leading, &[length, value_width]].concat();
        Ok(Tensor::from_fn(shape, |at| {
            let (leading, place) = at.split_at(at.len() - 2);
            let mut from: Vec<Cell> = (0..width)
                .map(|column| query.at(&[leading, &[place[0], column]].concat()))
                .collect();
            for position in 0..key_length {
                from.extend((0..width).map(|column| key.at(&[leading, &[position, column]].concat())));
                from.push(value.at(&[leading, &[position, place[1]]].concat()));
                from.extend(mask.map(|mask| mask.broadcast_at(&[leading, &[place[0], position]].concat())));
            }
            let mut cell = mix((how, place[0]), &from);
            if drops && cell.samples == 0 && !spans_batch {
                cell.samples |= SHARED_RANDOM;
            }
            cell
        }))
    }
}

fn matrix(tensor: &Tensor) -> Run<(&[usize], [usize; 2])> {
    let rank = tensor.shape.len();
    let split = rank.checked_sub(2).ok_or("no matrix")?;
    Ok((
        &tensor.shape[..split],
        [tensor.shape[split], tensor.shape[split + 1]],
    ))
}
