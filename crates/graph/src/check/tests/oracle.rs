//! The second oracle: an interpreter of typed graphs on tiny shapes that shares no code with the rules.
//!
//! Every element carries the *set of samples* it depends on and a *trace*, a hash of the very computation
//! that made it. [`judge`] runs a graph on a batch, a permutation of it, with one sample removed, replaced,
//! alone, and with one more; the loss of a sample must depend on that sample only, and its trace must be the
//! same in all runs: so neither its place in the batch nor the batch size may matter.

mod products;
mod windows;

use crate::typed::{Argument, Extent, Origin, TypedGraph, TypedNode, ValueId};
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

/// Marks an element that depends on a random value drawn once for several samples.
const SHARED_RANDOM: u64 = 1 << 63;

/// One element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Cell {
    samples: u64,
    trace: u64,
    /// Known integers: `arange`.
    index: Option<usize>,
}

#[derive(Clone, Debug)]
struct Tensor {
    shape: Vec<usize>,
    cells: Vec<Cell>,
}

type Run<T> = Result<T, String>;

/// Fails with what was seen when some sample's loss depends on more than that sample.
pub(super) fn judge(graph: &TypedGraph) -> Result<(), String> {
    let mut traces: HashMap<u64, u64> = HashMap::new();
    let batches: [&[u64]; 6] = [&[1, 2, 3], &[3, 1, 2], &[1, 3], &[1, 9, 3], &[2], &[3, 2, 1, 4]];
    for batch in batches {
        let loss = run(graph, batch)?;
        if loss.shape != [batch.len()] {
            return Err(format!("the loss has shape {:?} at batch {batch:?}", loss.shape));
        }
        for (sample, cell) in batch.iter().zip(&loss.cells) {
            if cell.samples & !(1 << sample) != 0 {
                return Err(format!(
                    "the loss of sample {sample} depends on samples {:b} in {batch:?}",
                    cell.samples
                ));
            }
            if *traces.entry(*sample).or_insert(cell.trace) != cell.trace {
                return Err(format!(
                    "the loss of sample {sample} is computed otherwise in {batch:?}"
                ));
            }
        }
    }
    Ok(())
}

fn run(graph: &TypedGraph, batch: &[u64]) -> Run<Tensor> {
    let mut values: HashMap<ValueId, Tensor> = HashMap::new();
    for (id, value) in (0u32..).map(ValueId).zip(graph.values()) {
        let shape = concrete(&value.value_type.shape, batch.len());
        let tensor = match value.origin {
            Origin::Input(column) => Tensor::from_fn(shape, |at| Cell {
                samples: 1 << batch[at[0]],
                trace: hash(("input", column, batch[at[0]], &at[1..])),
                index: None,
            }),
            Origin::Parameter(parameter) => {
                Tensor::from_fn(shape, |at| constant(("parameter", parameter.0, at)))
            }
            Origin::Constant(index) => Tensor::from_fn(shape, |at| constant(("constant", index, at))),
            Origin::Node { .. } => continue,
        };
        values.insert(id, tensor);
    }
    for node in graph.nodes() {
        let results = Step {
            node,
            values: &values,
            batch: batch.len(),
        }
        .run()?;
        if results.len() != node.outputs.len() {
            return Err(format!("{}: {} results", node.operator, results.len()));
        }
        for (id, tensor) in node.outputs.iter().zip(results) {
            let typed = concrete(&graph.values()[id.0 as usize].value_type.shape, batch.len());
            if tensor.shape != typed {
                return Err(format!(
                    "{}.{}: shape {:?}, typed {typed:?}",
                    node.operator, node.overload, tensor.shape
                ));
            }
            values.insert(*id, tensor);
        }
    }
    Ok(values[&graph.results().values()[0]].clone())
}

fn concrete(shape: &[Extent], batch: usize) -> Vec<usize> {
    let size = |extent: &Extent| match extent {
        Extent::Fixed(size) => *size as usize,
        Extent::Batch(inner) => *inner as usize * batch,
    };
    shape.iter().map(size).collect()
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn constant(of: impl Hash) -> Cell {
    Cell {
        samples: 0,
        trace: hash(of),
        index: None,
    }
}

/// An element computed from others, in order.
fn mix(how: impl Hash, from: &[Cell]) -> Cell {
    let samples = from.iter().fold(0, |samples, cell| samples | cell.samples);
    let traces: Vec<u64> = from.iter().map(|cell| cell.trace).collect();
    Cell {
        samples,
        trace: hash((hash(how), traces)),
        index: None,
    }
}

impl Tensor {
    fn from_fn(shape: Vec<usize>, cell: impl Fn(&[usize]) -> Cell) -> Self {
        let cells = indices(&shape).iter().map(|at| cell(at)).collect();
        Self { shape, cells }
    }

    fn at(&self, at: &[usize]) -> Cell {
        let flat = at
            .iter()
            .zip(&self.shape)
            .fold(0, |flat, (index, extent)| flat * extent + index);
        self.cells[flat]
    }

    /// With right-aligned broadcasting.
    fn broadcast_at(&self, at: &[usize]) -> Cell {
        let own = &at[at.len() - self.shape.len()..];
        let own: Vec<usize> = own
            .iter()
            .zip(&self.shape)
            .map(|(index, extent)| if *extent == 1 { 0 } else { *index })
            .collect();
        self.at(&own)
    }
}

fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    shape.iter().fold(vec![Vec::new()], |all, extent| {
        all.into_iter()
            .flat_map(|prefix: Vec<usize>| {
                (0..*extent).map(move |index| [prefix.as_slice(), &[index]].concat())
            })
            .collect()
    })
}

fn broadcast_shape(shapes: &[&[usize]]) -> Run<Vec<usize>> {
    let rank = shapes.iter().map(|shape| shape.len()).max().unwrap_or(0);
    let mut result = vec![1; rank];
    for shape in shapes {
        for (slot, extent) in result[rank - shape.len()..].iter_mut().zip(shape.iter()) {
            if *slot == 1 {
                *slot = *extent;
            } else if *extent != 1 && *extent != *slot {
                return Err(format!("{shapes:?} do not broadcast"));
            }
        }
    }
    Ok(result)
}

struct Step<'s> {
    node: &'s TypedNode,
    values: &'s HashMap<ValueId, Tensor>,
    batch: usize,
}

impl Step<'_> {
    fn argument(&self, name: &str) -> &Argument {
        &self
            .node
            .arguments
            .iter()
            .find(|argument| argument.name == name)
            .expect("a schema argument")
            .value
    }

    fn tensor(&self, name: &str) -> Run<&Tensor> {
        self.optional(name)
            .ok_or_else(|| format!("{}: {name} is no tensor", self.node.operator))
    }

    fn optional(&self, name: &str) -> Option<&Tensor> {
        match self.argument(name) {
            Argument::Value(id) => Some(&self.values[id]),
            _ => None,
        }
    }

    fn list(&self, name: &str) -> Vec<&Tensor> {
        self.argument(name)
            .value_ids()
            .iter()
            .map(|id| &self.values[id])
            .collect()
    }

    fn int(&self, name: &str) -> Run<i64> {
        match self.argument(name) {
            Argument::Int(value) => Ok(*value),
            other => Err(format!("{}: {name} is {other:?}", self.node.operator)),
        }
    }

    fn bool(&self, name: &str) -> bool {
        *self.argument(name) == Argument::Bool(true)
    }

    fn ints(&self, name: &str) -> Option<Vec<i64>> {
        match self.argument(name) {
            Argument::Ints(values) => Some(values.clone()),
            _ => None,
        }
    }

    fn sizes(&self, name: &str) -> Run<Vec<usize>> {
        match self.argument(name) {
            Argument::Sizes(extents) => Ok(concrete(extents, self.batch)),
            Argument::Ints(values) => Ok(values.iter().map(|value| *value as usize).collect()),
            other => Err(format!("{}: {name} is {other:?}", self.node.operator)),
        }
    }

    fn axis(&self, name: &str, rank: usize) -> Run<usize> {
        Ok(axis(self.int(name)?, rank))
    }

    /// Axes of a dim list; none means all.
    fn axes(&self, name: &str, rank: usize) -> Run<Vec<usize>> {
        Ok(match self.argument(name) {
            Argument::Int(dim) => vec![axis(*dim, rank)],
            _ => match self.ints(name) {
                Some(dims) if !dims.is_empty() => dims.iter().map(|dim| axis(*dim, rank)).collect(),
                _ => (0..rank).collect(),
            },
        })
    }

    /// What is no tensor, with B as it is in this run: a scalar that mentions B changes the trace.
    fn how(&self) -> u64 {
        let plain = self
            .node
            .arguments
            .iter()
            .filter(|argument| argument.value.value_ids().is_empty());
        let text: Vec<String> = plain
            .map(|argument| match &argument.value {
                Argument::Sizes(extents) if !["size", "shape"].contains(&argument.name.as_str()) => {
                    format!("{:?}", concrete(extents, self.batch))
                }
                Argument::Sizes(_) => String::new(),
                other => format!("{other:?}"),
            })
            .collect();
        hash((&self.node.operator, &self.node.overload, text))
    }

    fn run(&self) -> Run<Vec<Tensor>> {
        let one = |tensor: Run<Tensor>| tensor.map(|tensor| vec![tensor]);
        match self.node.operator.as_str() {
            "linear" => one(self.contract("input", "weight", true, self.optional("bias"))),
            "addmm" => one(self.contract("mat1", "mat2", false, self.optional("self"))),
            "mm" | "bmm" => one(self.matmul("self", "mat2")),
            "matmul" => one(self.matmul("self", "other")),
            "baddbmm" => one(self.baddbmm()),
            "scaled_dot_product_attention" => one(self.attention()),
            "sum" | "mean" | "amax" | "amin" | "logsumexp" | "var" | "std" | "linalg_vector_norm" | "any"
            | "all" | "argmax" | "argmin" => one(self.reduce()),
            "cumsum" | "cumprod" | "argsort" => one(self.along_axis()),
            "sort" | "topk" => self.along_axis().map(|values| vec![values.clone(), values]),
            "max" | "min" => self.reduce().map(|values| vec![values.clone(), values]),
            "softmax" | "log_softmax" | "_softmax" | "_log_softmax" => {
                let value = self.tensor("self")?;
                one(Ok(self.within(value, &[self.axis("dim", value.shape.len())?])))
            }
            "layer_norm" | "rms_norm" => one(self.normalise_trailing()),
            "group_norm" => one(self.normalise_groups()),
            "instance_norm" | "batch_norm" => one(self.normalise_channels()),
            "prelu" => one(self.prelu()),
            "feature_dropout" => one(self.feature_dropout()),
            "constant_pad_nd" | "pad" => one(self.pad()),
            "pixel_shuffle" | "pixel_unshuffle" => one(self.pixel_shuffle()),
            name if name.starts_with("conv") => one(self.convolve()),
            name if name.contains("_pool") => self.pool(),
            name if name.starts_with("upsample") => one(self.upsample()),
            "view" | "reshape" | "_unsafe_view" => one(reshape(
                self.tensor("self")?,
                self.sizes(if self.node.operator == "reshape" {
                    "shape"
                } else {
                    "size"
                })?,
            )),
            "flatten" | "unsqueeze" | "squeeze" => one(self.rank_change()),
            "expand" => one(self.expand()),
            "t" | "transpose" | "permute" => one(self.permute()),
            "slice" | "select" => one(self.pick()),
            "split" | "split_with_sizes" | "unbind" => self.split(),
            "cat" | "stack" => one(self.join()),
            "gather" => one(self.gather()),
            "index" => one(self.index()),
            "one_hot" => one(self.one_hot()),
            "embedding" => one(self.embedding()),
            "zeros" | "ones" | "full" | "new_zeros" | "new_ones" | "new_full" => {
                let how = self.how();
                one(Ok(Tensor::from_fn(self.sizes("size")?, |_| constant(how))))
            }
            "zeros_like" | "ones_like" | "full_like" => {
                let how = self.how();
                one(Ok(Tensor::from_fn(self.tensor("self")?.shape.clone(), |_| {
                    constant(how)
                })))
            }
            "arange" => one(self.arange()),
            "tril" | "triu" => one(self.triangle()),
            "scalar_tensor" => one(Ok(Tensor {
                shape: Vec::new(),
                cells: vec![constant(self.how())],
            })),
            "dropout" => one(self.dropout()),
            "native_dropout" => self.dropout().map(|value| vec![value.clone(), value]),
            "cross_entropy_loss" | "nll_loss_nd" | "nll_loss" => one(self.class_loss()),
            "broadcast_tensors" => {
                let tensors = self.list("tensors");
                let shape = broadcast_shape(
                    &tensors
                        .iter()
                        .map(|tensor| tensor.shape.as_slice())
                        .collect::<Vec<_>>(),
                )?;
                Ok(tensors
                    .iter()
                    .map(|tensor| Tensor::from_fn(shape.clone(), |at| tensor.broadcast_at(at)))
                    .collect())
            }
            _ => one(self.element_wise()),
        }
    }

    fn element_wise(&self) -> Run<Tensor> {
        let operands: Vec<&Tensor> = self
            .node
            .arguments
            .iter()
            .flat_map(|argument| argument.value.value_ids())
            .map(|id| &self.values[&id])
            .collect();
        let shape = broadcast_shape(
            &operands
                .iter()
                .map(|tensor| tensor.shape.as_slice())
                .collect::<Vec<_>>(),
        )?;
        let how = self.how();
        let mixed = Tensor::from_fn(shape, |at| {
            mix(
                how,
                &operands
                    .iter()
                    .map(|tensor| tensor.broadcast_at(at))
                    .collect::<Vec<_>>(),
            )
        });
        let reduces = self
            .node
            .arguments
            .iter()
            .any(|argument| argument.name == "reduction" && argument.value != Argument::Int(0));
        Ok(if reduces {
            Tensor {
                shape: Vec::new(),
                cells: vec![mix(how, &mixed.cells)],
            }
        } else {
            mixed
        })
    }

    fn contract(&self, left: &str, right: &str, transposed: bool, added: Option<&Tensor>) -> Run<Tensor> {
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

    fn reduce(&self) -> Run<Tensor> {
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
    fn within(&self, value: &Tensor, axes: &[usize]) -> Tensor {
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

    fn normalise_trailing(&self) -> Run<Tensor> {
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

    fn normalise_groups(&self) -> Run<Tensor> {
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

    fn rank_change(&self) -> Run<Tensor> {
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

    fn expand(&self) -> Run<Tensor> {
        let (value, shape) = (self.tensor("self")?, self.sizes("size")?);
        if broadcast_shape(&[&value.shape, &shape])? != shape {
            return Err("expand shrinks".into());
        }
        Ok(Tensor::from_fn(shape, |at| value.broadcast_at(at)))
    }

    fn permute(&self) -> Run<Tensor> {
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

    fn pick(&self) -> Run<Tensor> {
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

    fn split(&self) -> Run<Vec<Tensor>> {
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

    fn join(&self) -> Run<Tensor> {
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

    fn gather(&self) -> Run<Tensor> {
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
    fn index(&self) -> Run<Tensor> {
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

    fn one_hot(&self) -> Run<Tensor> {
        let index = self.tensor("self")?;
        let classes =
            usize::try_from(self.int("num_classes")?).map_err(|_| "the shape depends on the labels")?;
        let shape = [index.shape.as_slice(), &[classes]].concat();
        let how = self.how();
        Ok(Tensor::from_fn(shape, |at| {
            mix((how, at[at.len() - 1]), &[index.at(&at[..at.len() - 1])])
        }))
    }

    fn embedding(&self) -> Run<Tensor> {
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

    fn arange(&self) -> Run<Tensor> {
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
    fn triangle(&self) -> Run<Tensor> {
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
    fn dropout(&self) -> Run<Tensor> {
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

    fn class_loss(&self) -> Run<Tensor> {
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

fn axis(dim: i64, rank: usize) -> usize {
    if dim < 0 {
        (dim + rank as i64) as usize
    } else {
        dim as usize
    }
}

fn reshape(value: &Tensor, shape: Vec<usize>) -> Run<Tensor> {
    if shape.iter().product::<usize>() != value.cells.len() {
        return Err(format!("cannot reshape {:?} to {shape:?}", value.shape));
    }
    Ok(Tensor {
        shape,
        cells: value.cells.clone(),
    })
}

fn take(value: &Tensor, axis: usize, positions: &[usize], drop_axis: bool) -> Tensor {
    let mut shape = value.shape.clone();
    if drop_axis {
        shape.remove(axis);
    } else {
        shape[axis] = positions.len();
    }
    Tensor::from_fn(shape, |at| {
        let mut source = at.to_vec();
        if drop_axis {
            source.insert(axis, positions[0]);
        } else {
            source[axis] = positions[at[axis]];
        }
        value.at(&source)
    })
}

#[test]
fn the_oracle_itself_sees_leaks_and_lets_sound_graphs_pass() {
    use super::build::{Build, i, ints, t};
    use crate::check::premise::{Premise, dropping};
    let mut sound = Build::classifier();
    sound.returns("loss");
    judge(&sound.check().unwrap()).unwrap();
    let mut leaky = Build::classifier();
    let sum = leaky.call("sum.dim_IntList", &[("self", t("x")), ("dim", ints(&[0]))]);
    let one = leaky.call("select.int", &[("self", t(&sum)), ("dim", i(0)), ("index", i(0))]);
    leaky.returns_loss_plus(&one);
    let graph = dropping(Premise::DimsExcludeBatch, || leaky.check()).unwrap();
    assert!(judge(&graph).unwrap_err().contains("depends on samples"));
}
