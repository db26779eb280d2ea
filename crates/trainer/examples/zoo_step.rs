//! Private gradients of an exported model on given batches, in full: the engine's side of `python/tests/test_zoo.py`.
//!
//! Arguments: a `.pt2` archive; its contract (JSON); the contract's columns in the order of the graph's inputs, joined
//! by commas; max_grad_norm; a safetensors file of batches; the safetensors file to write; how to clip, if not flat; and
//! `hardened` for the other noise mode.
//!
//! In: for each batch `NAME/COLUMN`, `[rows, column shape]`, and `NAME/present`, `[rows]` bool; all of one row count,
//! which is the run's physical batch size. Out, in f64: `NAME/losses`, `NAME/norm_bounds` and `NAME/counted`, `[rows]`;
//! for each name of each trainable parameter `NAME/sums/PARAMETER`, of its shape, and `NAME/gradients/PARAMETER`, `[rows, its shape]`.
#![allow(clippy::print_stdout)]

use anyhow::Context as _;
use bastionai_graph::archive::{Archive, Limits};
use bastionai_graph::contract::DataContract;
use bastionai_trainer::{Engine, Settings, selftest};
use bastionai_wire::{Clipping, Compute, NoiseMode};
use std::collections::{BTreeMap, BTreeSet};
use tch::{Kind, Tensor};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [
        archive,
        contract,
        columns,
        max_grad_norm,
        batches,
        results,
        clipping @ ..,
    ] = &arguments[..]
    else {
        anyhow::bail!(
            "usage: zoo_step MODEL.pt2 CONTRACT.json COLUMN,COLUMN 1.0 BATCHES.safetensors RESULTS.safetensors [per_layer [hardened]]"
        );
    };
    selftest::prepare_process(1)?;
    let columns: Vec<String> = columns.split(',').map(str::to_owned).collect();
    let given: BTreeMap<String, Tensor> = Tensor::read_safetensors(batches)?.into_iter().collect();
    let names: BTreeSet<&str> = given
        .keys()
        .filter_map(|key| key.strip_suffix("/present"))
        .collect();
    let rows = names
        .first()
        .and_then(|name| given[&format!("{name}/present")].size().first().copied())
        .context("no batch: nothing is called NAME/present")?;
    let settings = Settings {
        physical_batch_size: rows.try_into()?,
        records_per_unit: 1,
        micro_batches: 1,
        max_grad_norm: max_grad_norm.parse()?,
        clipping: clipping_named(clipping.first().map_or("flat", String::as_str))?,
        compute: Compute::Float32,
        noise_mode: match clipping.get(1).map(String::as_str) {
            None => NoiseMode::Standard,
            Some("hardened") => NoiseMode::Hardened,
            Some(other) => anyhow::bail!("no noise mode is called {other}"),
        },
        threads: 1,
    };
    let contract = DataContract::parse_json(&std::fs::read(contract)?)?;
    let mut engine = engine(&std::fs::read(archive)?, &contract, &columns, settings)?;
    selftest::self_test(&mut engine)?;
    let mut out = Vec::new();
    for name in names {
        let tensor = |key: &str| {
            let key = format!("{name}/{key}");
            given.get(&key).map(Tensor::shallow_clone).context(key)
        };
        let inputs = columns
            .iter()
            .map(|column| tensor(column))
            .collect::<anyhow::Result<Vec<_>>>()?;
        run(&engine, name, inputs, tensor("present")?, &mut out)?;
    }
    Tensor::write_safetensors(&out, results)?;
    println!("l2_sensitivity={}", engine.l2_sensitivity());
    Ok(())
}

fn clipping_named(name: &str) -> anyhow::Result<Clipping> {
    let all = [Clipping::Flat, Clipping::PerLayer, Clipping::Automatic];
    let found = all.into_iter().find(|clipping| clipping.name() == name);
    found.with_context(|| format!("no clipping is called {name}"))
}

fn engine(
    bytes: &[u8],
    contract: &DataContract,
    columns: &[String],
    settings: Settings,
) -> anyhow::Result<Engine> {
    let archive = Archive::read(bytes, &Limits::default())?;
    let graph = bastionai_graph::check(&archive, &contract.inputs(columns)?)?;
    let owned = |index: usize, of: Option<&[u8]>| {
        of.map(<[u8]>::to_vec)
            .with_context(|| format!("tensor {index} is not in the archive"))
    };
    let parameters = (0..graph.parameters().len())
        .map(|index| owned(index, archive.parameter_bytes(index)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let constants = (0..graph.constants().len())
        .map(|index| owned(index, archive.constant_bytes(index)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Engine::new(graph, &parameters, &constants, settings)?)
}

fn run(
    engine: &Engine,
    name: &str,
    inputs: Vec<Tensor>,
    present: Tensor,
    out: &mut Vec<(String, Tensor)>,
) -> anyhow::Result<()> {
    let batch = engine.batch(inputs, present)?;
    let gradients = engine.per_sample_gradients(&batch)?;
    let (sums, results) = engine.clipped_sums(&batch)?;
    let mut put = |key: &str, value: Tensor| out.push((format!("{name}/{key}"), value.contiguous()));
    put("losses", Tensor::from_slice(&results.losses));
    put("norm_bounds", Tensor::from_slice(&results.norm_bounds));
    put("counted", Tensor::from_slice(&results.counted));
    let trained = engine.graph().parameters().iter().filter(|each| each.trainable);
    for ((parameter, gradient), sum) in trained.zip(gradients).zip(sums) {
        let shape: Vec<i64> = parameter.shape.iter().map(|&extent| extent as i64).collect();
        let sum = Tensor::from_slice(&sum).f_reshape(&shape[..])?;
        for each in &parameter.names {
            put(&format!("sums/{each}"), sum.shallow_clone());
            put(&format!("gradients/{each}"), gradient.f_to_kind(Kind::Double)?);
        }
    }
    Ok(())
}
