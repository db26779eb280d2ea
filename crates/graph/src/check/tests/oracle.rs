//! The second oracle: an interpreter of typed graphs on tiny shapes that shares no code with the rules.
//!
//! Every element carries the *set of samples* it depends on and a *trace*, a hash of the very computation
//! that made it. [`judge`] runs a graph on a batch, a permutation of it, with one sample removed, replaced,
//! alone, and with one more; the loss of a sample must depend on that sample only, and its trace must be the
//! same in all runs: so neither its place in the batch nor the batch size may matter.

mod draws;
mod lookup;
mod made;
mod places;
mod products;
mod recurrent;
mod reductions;
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
            "repeat" => one(self.repeat()),
            "repeat_interleave" => one(self.repeat_interleave()),
            "flip" | "roll" => one(self.turned()),
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
            "lstm" | "gru" | "rnn_tanh" | "rnn_relu" => self.recurrent(),
            "rand" | "randn" => one(Ok(self.draw(self.sizes("size")?))),
            "rand_like" | "randn_like" => one(Ok(self.draw(self.tensor("self")?.shape.clone()))),
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
