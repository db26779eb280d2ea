//! How much memory a run's trainer will need, before anything is reserved, and the largest physical batch that fits.
//!
//! Pure arithmetic on the typed graph and public sizes, saturating: a shape too large to address is too large to fit.
//! The estimate follows what the engine holds at the worst moment of a step or of its self-test. It shall be no less
//! than what is measured and at most about three times it; python/tests/test_memory.py compares the two. What it
//! misses ends a run before it starts: the trainer's self-test runs the very batch under the very limit.

use crate::plan::elements;
use bastionai_graph::dtype::DType;
use bastionai_graph::typed::{Argument, Dependence, Extent, Tap, TypedGraph, TypedNode, Value, ValueId};
use bastionai_wire::{Compute, NoiseMode};

/// Bytes, by what takes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// libtorch, its threads' stacks, allocator slack.
    pub(crate) runtime: u64,
    /// Values, integer sums, optimizer state and the weights on their way out.
    pub(crate) parameters: u64,
    /// What a physical batch takes: values of the forward phase, gradients at the taps, copies in f64.
    pub(crate) batch: u64,
    /// All datasets' records at their declared sizes, and one dataset's column on its way in.
    pub(crate) records: u64,
}

impl Memory {
    pub(crate) fn total(&self) -> u64 {
        sum([self.runtime, self.parameters, self.batch, self.records])
    }
}

/// What memory depends on beside the physical batch.
#[derive(Clone, Copy)]
pub(crate) struct Needs<'a> {
    pub(crate) graph: &'a TypedGraph,
    pub(crate) declared_sizes: &'a [u64],
    /// Rows of a unit: their gradients are added up.
    pub(crate) records_per_unit: u32,
    pub(crate) compute: Compute,
    pub(crate) noise_mode: NoiseMode,
}

impl Needs<'_> {
    /// Of a run at this physical batch size.
    pub(crate) fn memory(self, physical_batch_size: u32) -> Memory {
        let batch = u64::from(physical_batch_size);
        Memory {
            runtime: RUNTIME_BYTES,
            parameters: parameter_bytes(self.graph),
            batch: sum([
                batch_bytes(self.graph, batch, self.noise_mode),
                lowered_bytes(self.graph, batch, self.compute),
                unit_bytes(self.graph, batch, self.records_per_unit),
            ]),
            records: record_bytes(self.graph, self.declared_sizes)
                .saturating_add(grouping_bytes(self.declared_sizes, self.records_per_unit)),
        }
    }

    /// The largest physical batch, up to `most`, whose run fits into `limit_bytes`; `None` if not even one record does.
    pub(crate) fn largest_batch(self, limit_bytes: u64, most: u32) -> Option<u32> {
        let fits = |size: u32| self.memory(size).total() <= limit_bytes;
        if !fits(1) {
            return None;
        }
        let (mut fitting, mut above) = (1, most.saturating_add(1));
        while fitting + 1 < above {
            let middle = fitting + (above - fitting) / 2;
            if fits(middle) {
                fitting = middle;
            } else {
                above = middle;
            }
        }
        Some(fitting)
    }
}

/// Values and constants as they are received, each gone when its tensor is made, so that the largest of them is there
/// twice. For what is trained an i64 sum, two moments and an average of the iterates, each once more while a
/// checkpoint is taken up, and two f64 copies of the largest while its sum is contracted.
fn parameter_bytes(graph: &TypedGraph) -> u64 {
    let held = |shape: &[u64], size: usize| elements(shape).saturating_mul(size as u64);
    let values = graph
        .parameters()
        .iter()
        .map(|each| held(&each.shape, each.dtype.size_bytes()));
    let constants = graph
        .constants()
        .iter()
        .map(|each| held(&each.shape, each.dtype.size_bytes()));
    let trained = || graph.parameters().iter().filter(|each| each.trainable);
    let state = trained().map(|each| {
        let float_bytes = each.dtype.size_bytes() as u64;
        elements(&each.shape).saturating_mul(8 + 6 * float_bytes)
    });
    let contracted = largest_trained(graph).saturating_mul(2 * 8);
    let largest = values.clone().chain(constants.clone()).max().unwrap_or(0);
    let fixed = [largest, contracted];
    sum(values.chain(constants).chain(state).chain(fixed))
}

fn largest_trained(graph: &TypedGraph) -> u64 {
    let trained = graph.parameters().iter().filter(|each| each.trainable);
    trained.map(|each| elements(&each.shape)).max().unwrap_or(0)
}

fn batch_bytes(graph: &TypedGraph, batch: u64, noise_mode: NoiseMode) -> u64 {
    let size = |id: ValueId| value_bytes(&graph.values()[id.0 as usize], batch);
    let (mut forward, mut taps, mut widest) = (0u64, 0u64, 0u64);
    for node in graph.nodes() {
        let outputs = sum(node.outputs.iter().map(|&id| size(id)));
        if !is_view(node) {
            forward = forward
                .saturating_add(outputs)
                .saturating_add(attention_bytes(node, graph, batch))
                .saturating_add(recurrent_bytes(node, graph, batch)[0]);
        }
        let operands = sum(operands(node).map(size));
        // Backward: the gradients of operands and outputs of one node; some kernels copy what is expanded.
        widest = widest.max(operands.saturating_add(outputs).saturating_mul(2));
        if node.tap.is_some() {
            // The output's gradient is kept to the step's end, beside two earlier ones in the self-test.
            taps = taps.saturating_add(outputs.saturating_mul(3));
            let [_, projections, largest] = recurrent_bytes(node, graph, batch);
            taps = taps.saturating_add(projections.saturating_mul(3));
            widest = widest.max(operands.saturating_add(largest).saturating_mul(6));
            // Norms and contractions: operands and gradients in f64, once as they are and once selected.
            widest = widest.max(
                operands
                    .saturating_mul(4)
                    .saturating_add(outputs.saturating_mul(6)),
            );
        }
    }
    let inputs = graph.inputs().iter().map(|input| {
        let record = elements(&input.shape).saturating_mul(input.dtype.size_bytes() as u64);
        // As gathered, as replaced in the self-test, and its reference.
        record.saturating_mul(batch).saturating_mul(3)
    });
    let one_gradient = largest_trained(graph).saturating_mul(8);
    let block = one_gradient
        .saturating_mul(batch)
        .min(BLOCK_BYTES)
        .max(one_gradient);
    let [kept, unfolded] = gradient_bytes(graph, batch, noise_mode);
    let pulled_back = pulled_back_bytes(graph, batch);
    // Rounding record by record reads a block as it lies in memory: one more copy of a permuted one.
    let blocks = block.saturating_mul(if noise_mode == NoiseMode::Hardened { 3 } else { 2 });
    sum(inputs.chain([forward, taps, widest, blocks, kept, unfolded, pulled_back]))
}

/// What units of several records take besides: what a tap holds once more as it is selected, a unit's gradients side by side
/// before they are added up.
fn unit_bytes(graph: &TypedGraph, batch: u64, records_per_unit: u32) -> u64 {
    if records_per_unit == 1 {
        return 0;
    }
    let size = |id: ValueId| value_bytes(&graph.values()[id.0 as usize], batch);
    let tapped = graph.nodes().iter().filter(|node| node.tap.is_some());
    let selected = tapped.map(|node| sum(operands(node).chain(node.outputs.iter().copied()).map(size)));
    let side_by_side = largest_trained(graph).saturating_mul(8 * 2 * u64::from(records_per_unit));
    sum(selected.chain([side_by_side]))
}

/// The number of each row's unit as it comes, its row beside it, sorted, and where each unit's begin.
fn grouping_bytes(declared_sizes: &[u64], records_per_unit: u32) -> u64 {
    if records_per_unit == 1 {
        return 0;
    }
    sum(declared_sizes.iter().copied()).saturating_mul(32)
}

/// Of products in bfloat16: every operand's copy, kept for the backward pass (a value that feeds three products is copied
/// three times), and of one product at a time the result and the gradients in bfloat16.
fn lowered_bytes(graph: &TypedGraph, batch: u64, compute: Compute) -> u64 {
    let bytes = |id: ValueId| half_bytes(&graph.values()[id.0 as usize], batch);
    let (mut kept, mut widest) = (0u64, 0u64);
    for node in graph.nodes() {
        let mut values = operands(node).chain(node.outputs.iter().copied());
        let is_f32 = |id: ValueId| graph.values()[id.0 as usize].value_type.dtype == DType::F32;
        if !compute.lowers(&node.operator) || !values.all(is_f32) {
            continue;
        }
        let copied = sum(operands(node).map(bytes));
        kept = kept.saturating_add(copied);
        widest = widest.max(copied.saturating_add(sum(node.outputs.iter().map(|&id| bytes(id)))));
    }
    kept.saturating_add(widest)
}

/// Of a value in bfloat16.
fn half_bytes(value: &Value, batch: u64) -> u64 {
    let extents = value.value_type.shape.iter().map(|extent| match *extent {
        Extent::Fixed(count) => count,
        Extent::Batch(inner) => inner.saturating_mul(batch),
    });
    extents.fold(2, u64::saturating_mul)
}

/// Gradients of parameters that enter as functions of them, for every record of the batch (rule G2): as they are made,
/// joined, and beside two earlier ones in the self-test.
fn pulled_back_bytes(graph: &TypedGraph, batch: u64) -> u64 {
    let functions = graph.tapped_functions();
    let parameters = functions.iter().flat_map(|function| function.parameters());
    let bytes = parameters.map(|id| {
        let parameter = &graph.parameters()[id.0 as usize];
        elements(&parameter.shape).saturating_mul(parameter.dtype.size_bytes() as u64)
    });
    sum(bytes).saturating_mul(batch).saturating_mul(4)
}

/// Attention weights, `length · key length` for every head: kept for the backward pass where they are not fused, as
/// scores, as weights and dropped.
fn attention_bytes(node: &TypedNode, graph: &TypedGraph, batch: u64) -> u64 {
    let operand = |name: &str| {
        let found = node.arguments.iter().find(|argument| argument.name == name)?;
        match found.value {
            Argument::Value(id) => Some(&graph.values()[id.0 as usize]),
            _ => None,
        }
    };
    let (true, Some(query), Some(key)) = (
        node.operator == "scaled_dot_product_attention",
        operand("query"),
        operand("key"),
    ) else {
        return 0;
    };
    let extent = |value: &Value, from_last: usize| {
        let shape = &value.value_type.shape;
        shape
            .len()
            .checked_sub(from_last)
            .map_or(1, |axis| match shape[axis] {
                Extent::Fixed(size) | Extent::Batch(size) => size.max(1),
            })
    };
    let rows = value_bytes(query, batch) / extent(query, 1);
    rows.saturating_mul(extent(key, 2)).saturating_mul(3)
}

/// Of a recurrent layer, `[rows, steps, ..]` of every cell: what its backward pass needs (gates, states, each step's
/// previous output, and a layer's outputs as the next one gets them); the gradients of its projections, of which GRU
/// has two; and the largest of these.
fn recurrent_bytes(node: &TypedNode, graph: &TypedGraph, batch: u64) -> [u64; 3] {
    let states = match node.operator.as_str() {
        "lstm" | "gru" => 5,
        "rnn_tanh" | "rnn_relu" => 4,
        _ => return [0; 3],
    };
    let named = |name: &str| node.arguments.iter().find(|argument| argument.name == name);
    let (Some(input), Some(parameters)) = (named("input"), named("params")) else {
        return [0; 3];
    };
    let matrix = |id: &ValueId| match graph.values()[id.0 as usize].value_type.shape[..] {
        [Extent::Fixed(rows), Extent::Fixed(width)] => Some((rows, width)),
        _ => None,
    };
    let ids = parameters.value.value_ids();
    let weights: Vec<(u64, u64)> = ids.iter().filter_map(matrix).collect();
    let input = input.value.value_ids();
    let (Some(input), Some((_, width))) = (input.first(), weights.first()) else {
        return [0; 3];
    };
    // A step's row of one element, at the input's precision.
    let row = value_bytes(&graph.values()[input.0 as usize], batch) / (*width).max(1);
    let (mut kept, mut projections, mut largest) = (0u64, 0u64, 0u64);
    for (gates, hidden) in weights.chunks(2).filter_map(|cell| cell.get(1)) {
        let gates_bytes = row.saturating_mul(*gates);
        kept = kept
            .saturating_add(gates_bytes.saturating_add(row.saturating_mul(*hidden).saturating_mul(states)));
        let times = if node.operator == "gru" { 2 } else { 1 };
        projections = projections.saturating_add(gates_bytes.saturating_mul(times));
        largest = largest.max(gates_bytes);
    }
    [kept, projections, largest]
}

/// Gradients of single records that are kept from norm to sum, and twice the largest convolution's unfolded input: of a
/// block of records, at least of one. Weights with one row a record and tables need neither, unless all gradients are
/// written out.
fn gradient_bytes(graph: &TypedGraph, batch: u64, noise_mode: NoiseMode) -> [u64; 2] {
    let (mut kept, mut unfolded) = (0u64, 0u64);
    for node in graph.nodes() {
        let Some(tap) = &node.tap else { continue };
        let Some(output) = node
            .outputs
            .first()
            .map(|id| &graph.values()[id.0 as usize].value_type)
        else {
            continue;
        };
        let width = output.dtype.size_bytes() as u64;
        let one_row = output.shape.len() == 2 && output.shape[0] == Extent::Batch(1);
        let by_rows = match tap {
            _ if noise_mode == NoiseMode::Hardened => false,
            Tap::Linear { .. } | Tap::MatMul { .. } => one_row,
            Tap::Embedding { .. } => true,
            _ => false,
        };
        let parameters = tap.parameters().into_iter().filter(|_| !by_rows);
        for parameter in parameters.flat_map(|tapped| tapped.parameters()) {
            let shape = &graph.parameters()[parameter.0 as usize].shape;
            kept = kept.saturating_add(elements(shape).saturating_mul(batch).saturating_mul(width));
        }
        if let Tap::Convolution { input, geometry, .. } = tap {
            let input = &graph.values()[input.0 as usize].value_type;
            let (unfolds, plain) = if geometry.transposed {
                (output, input)
            } else {
                (input, output)
            };
            let extent = |extent: &Extent| match extent {
                Extent::Fixed(size) | Extent::Batch(size) => *size,
            };
            let positions = plain.shape.iter().skip(2).map(extent);
            let channels = unfolds.shape.get(1).map(extent);
            let kernel = geometry.kernel.iter().copied();
            let record = channels
                .into_iter()
                .chain(positions)
                .chain(kernel)
                .fold(width, u64::saturating_mul);
            let block = record.saturating_mul(batch).min(UNFOLDED_ELEMENTS * width);
            unfolded = unfolded.max(record.max(block));
        }
    }
    [kept.min(KEPT_BYTES), unfolded.saturating_mul(2)]
}

/// `KEPT_ELEMENTS` of the trainer (taps/method.rs), in f64.
const KEPT_BYTES: u64 = 512 << 20;

/// `BLOCK_ELEMENTS` of the trainer.
const UNFOLDED_ELEMENTS: u64 = 1 << 24;

/// Every input's rows at their declared number, and one dataset's largest column as the frame it came in, with the
/// room a growing buffer takes and its copy.
fn record_bytes(graph: &TypedGraph, declared_sizes: &[u64]) -> u64 {
    let row = |input: &bastionai_graph::typed::Input| {
        elements(&input.shape).saturating_mul(input.dtype.size_bytes() as u64)
    };
    let all = declared_sizes.iter().copied().fold(1u64, u64::saturating_add);
    let held = sum(graph.inputs().iter().map(|input| row(input).saturating_mul(all)));
    let widest = graph.inputs().iter().map(row).max().unwrap_or(0);
    let longest = declared_sizes.iter().copied().max().unwrap_or(0);
    held.saturating_add(widest.saturating_mul(longest).saturating_mul(3))
}

/// For people: `1.5 GiB`.
pub(crate) fn in_words(bytes: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (bytes.max(1).ilog2() / 10) as usize;
    if unit == 0 {
        return format!("{bytes} bytes");
    }
    format!(
        "{:.1} {}",
        bytes as f64 / (1u64 << (10 * unit)) as f64,
        units[unit]
    )
}

fn value_bytes(value: &Value, batch: u64) -> u64 {
    let extent = |extent: &Extent| match *extent {
        Extent::Fixed(count) => count,
        Extent::Batch(inner) => inner.saturating_mul(batch),
    };
    if value.value_type.dependence == Dependence::Shared && !value.requires_grad {
        // Constants and frozen parameters are counted as such; functions of them are small beside a batch.
        return match value.origin {
            bastionai_graph::typed::Origin::Node { .. } => shape_bytes(value, extent),
            _ => 0,
        };
    }
    shape_bytes(value, extent)
}

fn shape_bytes(value: &Value, extent: impl Fn(&Extent) -> u64) -> u64 {
    let shape = value.value_type.shape.iter().map(extent);
    let count = shape.fold(1u64, u64::saturating_mul);
    count.saturating_mul(value.value_type.dtype.size_bytes() as u64)
}

fn operands(node: &TypedNode) -> impl Iterator<Item = ValueId> {
    node.arguments.iter().flat_map(|named| match &named.value {
        Argument::Value(id) => vec![*id],
        Argument::Values(ids) => ids.clone(),
        Argument::OptionalValues(ids) => ids.iter().flatten().copied().collect(),
        _ => Vec::new(),
    })
}

/// Whether the output shares its operand's memory. `reshape` may copy, so it counts.
pub(crate) fn is_view(node: &TypedNode) -> bool {
    VIEWS.contains(&&node.operator[..])
}

const VIEWS: &[&str] = &[
    "alias",
    "detach",
    "diagonal",
    "expand",
    "movedim",
    "narrow",
    "permute",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
    "t",
    "transpose",
    "unbind",
    "unflatten",
    "unfold",
    "unsqueeze",
    "view",
    "view_as",
    "_unsafe_view",
];

fn sum(parts: impl IntoIterator<Item = u64>) -> u64 {
    parts.into_iter().fold(0, u64::saturating_add)
}

/// Measured on libtorch 2.11 for x86-64: the smallest run has 127 MiB resident; more threads have more stacks.
const RUNTIME_BYTES: u64 = 224 << 20;
/// One block of instantiated gradients or Gram matrices (trainer's gradients.rs).
const BLOCK_BYTES: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::mlp;

    fn needs<'a>(graph: &'a TypedGraph, declared_sizes: &'a [u64]) -> Needs<'a> {
        Needs {
            graph,
            declared_sizes,
            records_per_unit: 1,
            compute: Compute::Float32,
            noise_mode: NoiseMode::Standard,
        }
    }

    #[test]
    fn gradients_that_are_written_out_need_their_memory() {
        let graph = mlp();
        let standard = needs(&graph, &[64]);
        let hardened = Needs {
            noise_mode: NoiseMode::Hardened,
            ..standard
        };
        let (standard, hardened) = (standard.memory(64), hardened.memory(64));
        // 4 → 8 → 2 with biases in f32, kept for 64 records, and one more block of the larger weight in f64.
        let gradients = 64 * 4 * (4 * 8 + 8 + 8 * 2 + 2);
        assert_eq!(hardened.batch - standard.batch, gradients + 64 * 8 * 32);
        assert_eq!(
            (hardened.parameters, hardened.records),
            (standard.parameters, standard.records)
        );
    }

    #[test]
    fn units_of_several_records_need_what_is_selected_and_added_up_besides() {
        let graph = mlp();
        let records = needs(&graph, &[64]);
        let units = Needs {
            records_per_unit: 8,
            ..records
        };
        let (one, eight) = (records.memory(64), units.memory(64));
        // 4 → 8 → 2 in f32: inputs, weights, biases and outputs of both layers; the larger weight eight times, twice, in f64.
        let selected = 4 * (64 * 4 + 8 * 4 + 8 + 64 * 8) + 4 * (64 * 8 + 2 * 8 + 2 + 64 * 2);
        assert_eq!(eight.batch - one.batch, selected + 8 * 32 * 8 * 2);
        assert_eq!(
            (eight.parameters, eight.records),
            (one.parameters, one.records + 64 * 32)
        );
    }

    #[test]
    fn products_in_bfloat16_need_their_operands_a_second_time_in_half_the_bytes() {
        let graph = mlp();
        let float32 = needs(&graph, &[64]);
        let lowered = Needs {
            compute: Compute::Bfloat16,
            ..float32
        };
        for rows in [1u64, 64, 4096] {
            // 4 → 8 → 2: input, weight and bias of both layers, then the widest of them with its output.
            let (first, second) = (rows * 4 + 8 * 4 + 8, rows * 8 + 2 * 8 + 2);
            let widest = (first + rows * 8).max(second + rows * 2);
            let (wide, narrow) = (float32.memory(rows as u32), lowered.memory(rows as u32));
            assert_eq!(narrow.batch - wide.batch, 2 * (first + second + widest), "{rows}");
            assert_eq!(
                (narrow.parameters, narrow.records),
                (wide.parameters, wide.records)
            );
        }
        let limit = float32.memory(100).total();
        assert_eq!(float32.largest_batch(limit, 1 << 20), Some(100));
        assert!(lowered.largest_batch(limit, 1 << 20) < Some(100));
    }

    #[test]
    fn memory_grows_with_the_batch_and_with_the_datasets_and_never_overflows() {
        let graph = mlp();
        let mut last = 0;
        for batch in [1, 2, 64, 4096, u32::MAX] {
            let total = needs(&graph, &[64]).memory(batch).total();
            assert!(total > last, "{batch}");
            last = total;
        }
        let small = needs(&graph, &[64]).memory(16);
        let large = needs(&graph, &[64, 1 << 40]).memory(16);
        assert!(large.records > small.records && large.batch == small.batch);
        assert_eq!(
            needs(&graph, &[u64::MAX, u64::MAX]).memory(u32::MAX).total(),
            u64::MAX
        );
    }

    #[test]
    fn sizes_are_told_in_the_unit_they_fit() {
        for (bytes, words) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1536, "1.5 KiB"),
            (16 << 30, "16.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(in_words(bytes), words);
        }
    }

    #[test]
    fn the_largest_batch_is_the_last_that_fits() {
        let graph = mlp();
        let of = |size| needs(&graph, &[64]).memory(size).total();
        for limit in [of(1), of(2), of(100) - 1, of(100), of(100_000) + 7] {
            let found = needs(&graph, &[64]).largest_batch(limit, 1 << 20).unwrap();
            assert!(
                of(found) <= limit && (of(found + 1) > limit || found == 1 << 20),
                "{limit}: {found}"
            );
        }
        assert_eq!(needs(&graph, &[64]).largest_batch(of(1) - 1, 1 << 20), None);
        assert_eq!(needs(&graph, &[64]).largest_batch(u64::MAX, 256), Some(256));
    }
}
