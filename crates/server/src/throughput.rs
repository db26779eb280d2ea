//! How fast this machine is, as the trainer measures it at boot on made-up numbers, and how long a run would take:
//! an estimate from public numbers alone (graph, plan, machine), never from data.
//!
//! A step runs every micro-batch at its full physical size (rule T2), so its work is known beforehand. A private
//! step costs one forward, one backward and one extra contraction (Bu et al. 2023, arXiv 2210.00038): four times
//! the forward's multiplications, the second backward half and the norms included; of a frozen layer the forward and
//! the gradient of its input. What that leaves out, and how far off the estimate was on real runs, is in
//! docs/design.md, "Expected minutes".

use crate::config::DeviceKind;
use crate::memory::is_view;
use crate::plan;
use crate::program::arguments;
use bastionai_graph::typed::{Argument, Extent, TypedGraph, TypedNode, ValueId};
use bastionai_wire::NoiseMode;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a second holds, and what a start costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Throughput {
    matmul_flops: f64,
    bytes: f64,
    operators: f64,
    noise_values: f64,
    threads: f64,
    start_seconds: f64,
}

impl Throughput {
    /// Lets the trainer measure. `None` when it does not answer in time: then prices come without an estimate.
    pub(crate) fn measure(program: &Path, device: DeviceKind, threads: u32) -> Option<Self> {
        let since = Instant::now();
        let mut trainer = Command::new(program)
            .args(arguments(device))
            .args(["--probe", &threads.to_string()])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        loop {
            match trainer.try_wait() {
                Ok(Some(status)) if status.success() => break,
                Ok(None) if since.elapsed() < PATIENCE => std::thread::sleep(LOOK_AGAIN),
                _ => {
                    // Gone already, or to be: there is nothing to learn from either outcome.
                    let _ = trainer.kill();
                    let _ = trainer.wait();
                    return None;
                }
            }
        }
        let output = trainer.wait_with_output().ok()?;
        let elapsed = since.elapsed().as_secs_f64();
        Self::parse(&String::from_utf8(output.stdout).ok()?, threads, elapsed)
    }

    fn parse(lines: &str, threads: u32, elapsed_seconds: f64) -> Option<Self> {
        let number = |name: &str| {
            let line = lines.lines().find_map(|line| line.strip_prefix(name))?;
            let value: f64 = line.trim().parse().ok()?;
            (value.is_finite() && value > 0.0).then_some(value)
        };
        Some(Self {
            matmul_flops: number("matmul_flops ")?,
            bytes: number("bytes ")?,
            operators: number("operators ")?,
            noise_values: number("noise_values ")?,
            threads: f64::from(threads.max(1)),
            start_seconds: (elapsed_seconds - PROBE_SECONDS).max(0.0),
        })
    }

    /// Seconds of a run that has its slot for itself, its wait in the queue aside.
    pub(crate) fn expected_seconds(
        &self,
        graph: &TypedGraph,
        noise_mode: NoiseMode,
        physical_batch_size: u32,
        micro_batches: u32,
        steps: u64,
    ) -> f64 {
        let batch = u64::from(physical_batch_size);
        let multiplied: f64 = graph
            .nodes()
            .iter()
            .map(|node| forwards_of_a_step(node) * forward_flops(graph, node, batch))
            .sum();
        // Parameters are read by the products; views move nothing.
        let moved: f64 = graph
            .nodes()
            .iter()
            .filter(|node| !is_view(node))
            .flat_map(|node| &node.outputs)
            .map(|id| {
                let value = &graph.values()[id.0 as usize].value_type;
                elements(&value.shape, batch) * value.dtype.size_bytes() as f64
            })
            .sum();
        let micro_batch = multiplied / self.matmul_flops
            + PASSES_OVER_VALUES * moved / self.bytes
            + OPERATORS_OF_A_NODE * graph.nodes().len() as f64 / self.operators;
        let parameters = plan::trainable_parameters(graph) as f64;
        // Gradients of single records are made twice where they are too many to keep.
        let written_out = match noise_mode {
            NoiseMode::Standard => 0.0,
            NoiseMode::Hardened => {
                parameters * f64::from(physical_batch_size) * WRITTEN_OUT_BYTES / self.bytes
            }
        };
        let update = parameters / (self.noise_values * self.threads) + parameters * UPDATE_BYTES / self.bytes;
        let step = (micro_batch + written_out) * f64::from(micro_batches) + update;
        // The self-test runs the graph a dozen times before the first step.
        self.start_seconds + step * (steps as f64 + SELF_TEST_STEPS)
    }
}

/// What a node's multiplications in a step are to those of its forward.
fn forwards_of_a_step(node: &TypedNode) -> f64 {
    match (&node.tap, node.operator.as_str()) {
        (Some(_), _) => TRAINED,
        (None, "linear" | "addmm") => FROZEN,
        (None, _) => OF_DATA,
    }
}

/// Multiplications and additions of one node's forward; 0 for everything but contractions.
fn forward_flops(graph: &TypedGraph, node: &TypedNode, batch: u64) -> f64 {
    let output = node
        .outputs
        .first()
        .map_or(0.0, |id| value_elements(graph, *id, batch));
    let shape = |name: &str| {
        let argument = node.arguments.iter().find(|argument| argument.name == name)?;
        match argument.value {
            Argument::Value(id) => Some(&graph.values()[id.0 as usize].value_type.shape),
            _ => None,
        }
    };
    let last = |name: &str| {
        shape(name)
            .and_then(|shape| shape.last())
            .map_or(0.0, |extent| size(*extent, batch))
    };
    let operator = node.operator.as_str();
    match operator {
        "linear" => 2.0 * output * last("input"),
        "mm" | "matmul" | "bmm" => 2.0 * output * last("self"),
        "addmm" => 2.0 * output * last("mat1"),
        "baddbmm" => 2.0 * output * last("batch1"),
        "scaled_dot_product_attention" => {
            let keys = shape("key").and_then(|shape| shape.iter().rev().nth(1));
            let query = shape("query").map_or(0.0, |shape| elements(shape, batch));
            4.0 * query * keys.map_or(0.0, |extent| size(*extent, batch))
        }
        "lstm" | "gru" | "rnn_tanh" | "rnn_relu" => {
            let named = |name: &str| node.arguments.iter().find(|argument| argument.name == name);
            let ids = named("params").map_or_else(Vec::new, |argument| argument.value.value_ids());
            let shapes = ids
                .iter()
                .map(|id| &graph.values()[id.0 as usize].value_type.shape);
            let weights: f64 = shapes
                .filter(|shape| shape.len() == 2)
                .map(|shape| elements(shape, batch))
                .sum();
            let steps = shape("input").map_or(0.0, |shape| elements(shape, batch)) / last("input").max(1.0);
            2.0 * steps * weights
        }
        _ if operator.contains("conv") => {
            let Some(weight) = shape("weight") else { return 0.0 };
            let per_channel =
                elements(weight, batch) / weight.first().map_or(1.0, |extent| size(*extent, batch));
            let rows = if operator.contains("transpose") {
                shape("input").map_or(0.0, |shape| elements(shape, batch))
            } else {
                output
            };
            2.0 * rows * per_channel
        }
        _ => 0.0,
    }
}

fn value_elements(graph: &TypedGraph, id: ValueId, batch: u64) -> f64 {
    elements(&graph.values()[id.0 as usize].value_type.shape, batch)
}

fn elements(shape: &[Extent], batch: u64) -> f64 {
    shape.iter().map(|extent| size(*extent, batch)).product()
}

fn size(extent: Extent, batch: u64) -> f64 {
    match extent {
        Extent::Fixed(count) => count as f64,
        Extent::Batch(inner) => inner as f64 * batch as f64,
    }
}

/// Forward, backward to the taps, norms, and the weighted contraction.
const TRAINED: f64 = 4.0;
/// Forward, and the gradient of the input.
const FROZEN: f64 = 2.0;
/// Forward, and the gradients of both operands.
const OF_DATA: f64 = 3.0;
/// Written and read in the forward, again as gradients, once more for norms.
const PASSES_OVER_VALUES: f64 = 6.0;
/// A node's own operator with its backward, guards, shape checks, taps.
const OPERATORS_OF_A_NODE: f64 = 6.0;
/// Clipped sum in f64, its conversion, optimizer state and weight, read and written.
const UPDATE_BYTES: f64 = 64.0;
/// An element of a record's gradient in f32: written, read for its norm, and both again; read for what it costs in squares,
/// read as it is added.
const WRITTEN_OUT_BYTES: f64 = 24.0;
const SELF_TEST_STEPS: f64 = 12.0;
/// What `--probe` spends measuring; the rest of its time is the start.
const PROBE_SECONDS: f64 = 0.65;
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::mlp;

    const LINES: &str = "matmul_flops 1e11\nbytes 1e10\noperators 2e5\nnoise_values 5e7\n";

    #[test]
    fn the_probes_lines_are_read_and_others_refused() {
        let found = Throughput::parse(LINES, 2, PROBE_SECONDS + 0.5).unwrap();
        assert_eq!((found.matmul_flops, found.threads), (1e11, 2.0));
        assert!((found.start_seconds - 0.5).abs() < 1e-9, "{found:?}");
        for broken in [
            "",
            "matmul_flops 1e11",
            &LINES.replace("2e5", "fast"),
            &LINES.replace("2e5", "0"),
            &LINES.replace("2e5", "inf"),
        ] {
            assert_eq!(Throughput::parse(broken, 2, 1.0), None, "{broken}");
        }
    }

    #[test]
    fn a_linear_layer_multiplies_and_adds_once_a_weight_and_row() {
        let graph = mlp();
        let counted = |batch| -> f64 {
            let nodes = graph.nodes().iter();
            nodes.map(|node| forward_flops(&graph, node, batch)).sum()
        };
        assert_eq!(counted(1), f64::from(2 * (4 * 8 + 8 * 2)));
        assert_eq!(counted(100), 100.0 * counted(1));
    }

    #[test]
    fn a_frozen_layer_costs_half_a_trained_one() {
        let graph = mlp();
        let trained = graph
            .nodes()
            .iter()
            .find(|node| node.operator == "linear")
            .unwrap();
        assert!(trained.tap.is_some());
        let frozen = TypedNode {
            tap: None,
            ..trained.clone()
        };
        assert_eq!(forwards_of_a_step(trained), 2.0 * forwards_of_a_step(&frozen));
    }

    #[test]
    fn a_run_takes_as_long_as_its_steps_and_batches_on_this_machine() {
        let graph = mlp();
        let machine = Throughput::parse(LINES, 1, PROBE_SECONDS).unwrap();
        let of = |machine: Throughput, batch, micro, steps| {
            machine.expected_seconds(&graph, NoiseMode::Standard, batch, micro, steps)
        };
        let once = of(machine, 64, 1, 1000);
        assert!(once > 0.0 && once.is_finite());
        let self_test = of(machine, 64, 1, 0);
        let twice = of(machine, 64, 1, 2000);
        assert!(((twice - self_test) / (once - self_test) - 2.0).abs() < 1e-9);
        assert!(of(machine, 128, 1, 1000) > once && of(machine, 64, 4, 1000) > once);
        let hardened = machine.expected_seconds(&graph, NoiseMode::Hardened, 64, 1, 1000);
        assert!(hardened > once, "gradients of records are written and read");
        let faster = Throughput {
            matmul_flops: 2.0 * machine.matmul_flops,
            bytes: 2.0 * machine.bytes,
            operators: 2.0 * machine.operators,
            noise_values: 2.0 * machine.noise_values,
            ..machine
        };
        assert!((of(faster, 64, 1, 1000) / once - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_program_that_cannot_measure_gives_no_estimate() {
        for program in ["/bin/false", "/nowhere/trainer"] {
            assert_eq!(Throughput::measure(Path::new(program), DeviceKind::Cpu, 1), None);
        }
    }
}
