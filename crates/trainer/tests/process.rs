//! The real binary over its pipes, as the server drives it.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use bastionai_graph::dtype::DType;
use bastionai_wire::trainer::{
    Band, ClassKey, Control, DatasetShape, EvaluationJob, Job, LossRelease, Report, TRAINER_ENVIRONMENT,
    TRAINER_PROTOCOL_VERSION, Task, read_frame, read_message, write_frame, write_message,
};
use bastionai_wire::units::Units;
use bastionai_wire::{Adam, Average, Clipping, Compute, NoiseMode, Optimizer, Schedule};
use std::io::{BufReader, Read};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use support::models::{self, Model};
use support::{bytes_of, distance};
use tch::{Device, Kind, Tensor};

const CAPACITY: u64 = 64;

struct Trainer {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Trainer {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_bastionai-trainer"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env_clear()
            .envs(TRAINER_ENVIRONMENT)
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self {
            input: child.stdin.take(),
            output,
            child,
        }
    }

    fn send_job(&mut self, job: &Job, model: &Model) {
        self.send_task(&Task::Train(job.clone()), model);
    }

    fn send_task(&mut self, task: &Task, model: &Model) {
        let input = self.input.as_mut().unwrap();
        write_message(input, task).unwrap();
        for tensor in model.parameters.iter().chain(&model.constants) {
            write_frame(input, &bytes_of(tensor)).unwrap();
        }
    }

    fn send_records(&mut self, datasets: &[Vec<Tensor>]) {
        let input = self.input.as_mut().unwrap();
        datasets
            .iter()
            .flatten()
            .for_each(|column| write_frame(input, &bytes_of(column)).unwrap());
    }

    fn report(&mut self) -> Report {
        read_message(&mut self.output, 1 << 20).unwrap()
    }

    /// Exit status and everything on standard error.
    fn end(mut self) -> (ExitStatus, String) {
        drop(self.input.take());
        let mut errors = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut errors)
            .unwrap();
        (self.child.wait().unwrap(), errors)
    }
}

fn model() -> Model {
    models::classifier(DType::F32, 1)
}

fn job(model: &Model) -> Job {
    Job {
        version: TRAINER_PROTOCOL_VERSION,
        graph: model.graph.to_bytes(),
        datasets: vec![
            DatasetShape {
                capacity: CAPACITY,
                rows: 50,
            },
            DatasetShape {
                capacity: CAPACITY,
                rows: 64,
            },
        ],
        units: Units::records(2),
        steps: 12,
        start_step: 0,
        checkpoint_ms: 500,
        sample_threshold: u64::MAX / 4,
        expected_batch_size: 32.0,
        physical_batch_size: 16,
        micro_batches: 4,
        max_grad_norm: 1.0,
        clipping: Clipping::Flat,
        compute: Compute::Float32,
        noise_mode: NoiseMode::Standard,
        noise_multiplier: 1.0,
        loss: Some(LossRelease {
            max_loss: 8.0,
            noise_multiplier: 1.0,
        }),
        optimizer: Optimizer::Sgd {
            lr: 0.5,
            momentum: 0.9,
            dampening: 0.0,
            weight_decay: 0.0,
            nesterov: false,
        },
        schedule: Schedule::default(),
        average: None,
        band: None,
        keep_steps: vec![],
        threads: 2,
    }
}

/// Four bands, of which each record has its turn once in four steps.
fn band() -> Band {
    Band {
        numerators: vec![2048, 1536, 1280],
        class_key: ClassKey([5; 32]),
    }
}

/// Records whose label is the largest of the first three features.
fn records() -> Vec<Vec<Tensor>> {
    let dataset = || {
        let x = Tensor::randn([CAPACITY as i64, 6], (Kind::Float, Device::Cpu));
        let y = x.narrow(1, 0, 3).argmax(1, false);
        vec![x, y]
    };
    vec![dataset(), dataset()]
}

/// Tensors of the state: parameters, then the optimizer's groups.
fn state_tensors(job: &Job, model: &Model) -> usize {
    let trained = model
        .graph
        .parameters()
        .iter()
        .filter(|each| each.trainable)
        .count();
    trained * job.state_groups()
}

/// A whole run: noisy losses and the trained parameters' bytes.
fn run(job: &Job, model: &Model, records: &[Vec<Tensor>]) -> (Vec<Option<f64>>, Vec<Vec<u8>>) {
    let (losses, mut state) = run_to_state(job, model, records);
    state.truncate(state.len() / job.state_groups());
    (losses, state)
}

/// The same, with the whole last state.
fn run_to_state(job: &Job, model: &Model, records: &[Vec<Tensor>]) -> (Vec<Option<f64>>, Vec<Vec<u8>>) {
    let mut trainer = Trainer::start();
    trainer.send_job(job, model);
    assert_eq!(trainer.report(), Report::Ready);
    trainer.send_records(records);
    let (losses, state) = follow(&mut trainer, job, model);
    let (status, errors) = trainer.end();
    assert!(status.success() && errors.is_empty(), "{status} {errors}");
    (losses, state)
}

/// Steps and checkpoints to the last: all losses, and the last state.
fn follow(trainer: &mut Trainer, job: &Job, model: &Model) -> (Vec<Option<f64>>, Vec<Vec<u8>>) {
    let (mut reached, mut all) = (job.start_step, Vec::new());
    loop {
        match trainer.report() {
            Report::Step { step } => {
                reached += 1;
                assert_eq!(step, reached);
            }
            Report::Checkpoint { step, losses } => {
                assert_eq!(step, reached);
                all.extend(losses);
                assert_eq!(all.len() as u64, reached - job.start_step, "a loss for each step");
                let state: Vec<_> = (0..state_tensors(job, model))
                    .map(|_| read_frame(&mut trainer.output, 1 << 20).unwrap())
                    .collect();
                if step == job.steps {
                    return (all, state);
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

fn floats(bytes: &[u8]) -> Vec<f64> {
    bytes
        .chunks_exact(4)
        .map(|each| f64::from(f32::from_le_bytes(each.try_into().unwrap())))
        .collect()
}

#[test]
fn a_run_learns_and_sends_the_trained_weights() {
    let model = model();
    let quiet = LossRelease {
        max_loss: 8.0,
        noise_multiplier: 0.01,
    };
    let job = Job {
        steps: 60,
        noise_multiplier: 0.01,
        loss: Some(quiet),
        ..job(&model)
    };
    let (losses, weights) = run(&job, &model, &records());
    let mean = |part: &[Option<f64>]| part.iter().flatten().sum::<f64>() / part.len() as f64;
    assert!(mean(&losses[50..]) < 0.5 * mean(&losses[..5]), "{losses:?}");
    let sizes: Vec<usize> = weights.iter().map(Vec::len).collect();
    assert_eq!(
        sizes,
        [30 * 4, 15 * 4, 3 * 4],
        "trained parameters only, in graph order"
    );
}

#[test]
fn two_runs_of_one_job_share_no_randomness() {
    let (model, records) = (model(), records());
    let job = Job {
        steps: 1,
        ..job(&model)
    };
    let (first, second) = (run(&job, &model, &records), run(&job, &model, &records));
    assert_ne!(first.0, second.0);
    assert_ne!(first.1, second.1);
}

#[test]
fn an_empty_sample_is_a_step_with_noise_of_the_charged_size() {
    let model = model();
    let optimizer = Optimizer::Sgd {
        lr: 1.0,
        momentum: 0.0,
        dampening: 0.0,
        weight_decay: 0.0,
        nesterov: false,
    };
    let steps = 25;
    let job = Job {
        steps,
        sample_threshold: 0,
        noise_multiplier: 3.0,
        max_grad_norm: 2.0,
        optimizer,
        ..job(&model)
    };
    let (losses, weights) = run(&job, &model, &records());
    let trained: Vec<&Tensor> = [0, 2, 3].map(|index| &model.parameters[index]).to_vec();
    let moved: Vec<f64> = weights
        .iter()
        .zip(trained)
        .flat_map(|(after, before)| {
            floats(after)
                .into_iter()
                .zip(floats(&bytes_of(before)))
                .map(|(a, b)| a - b)
                .collect::<Vec<_>>()
        })
        .collect();
    // Per coordinate: noise_multiplier·Δ/expected_batch_size per step, over 25 steps; 48 coordinates give it to ±10%.
    let expected = 3.0 * 2.0 / 32.0 * (steps as f64).sqrt();
    let measured = (moved.iter().map(|value| value * value).sum::<f64>() / moved.len() as f64).sqrt();
    assert!(
        measured > 0.6 * expected && measured < 1.45 * expected,
        "{measured} for {expected}"
    );
    // The loss of nobody is noise around zero: noise_multiplier·max_loss/expected_batch_size = 0.25.
    let losses: Vec<f64> = losses.into_iter().map(Option::unwrap).collect();
    let spread = (losses.iter().map(|loss| loss * loss).sum::<f64>() / losses.len() as f64).sqrt();
    assert!(spread > 0.1 && spread < 0.5, "{spread}");
}

#[test]
fn no_loss_is_reported_unless_it_is_released() {
    let model = model();
    let (losses, _) = run(
        &Job {
            loss: None,
            steps: 2,
            ..job(&model)
        },
        &model,
        &records(),
    );
    assert_eq!(losses, [None, None]);
}

/// Whatever the clock says: the steps to keep end with a checkpoint, whose last group is the average of all iterates.
#[test]
fn steps_to_keep_end_with_a_checkpoint_that_holds_the_average_of_the_iterates() {
    let (model, records) = (model(), records());
    let decay = 0.7;
    let job = Job {
        checkpoint_ms: 3_600_000,
        average: Some(Average::Exponential { decay }),
        keep_steps: vec![1, 2, 3, 4, 7],
        ..job(&model)
    };
    let mut trainer = Trainer::start();
    trainer.send_job(&job, &model);
    assert_eq!(trainer.report(), Report::Ready);
    trainer.send_records(&records);
    let (mut kept, mut iterates) = (Vec::new(), Vec::new());
    for step in 1..=job.steps {
        assert_eq!(trainer.report(), Report::Step { step });
        if !job.keep_steps.contains(&step) && step != job.steps {
            continue;
        }
        let Report::Checkpoint { step: at, losses } = trainer.report() else {
            panic!("no checkpoint at step {step}")
        };
        assert_eq!(
            (at, losses.len() as u64),
            (step, step - kept.last().unwrap_or(&0))
        );
        kept.push(step);
        let state: Vec<Vec<f64>> = (0..state_tensors(&job, &model))
            .map(|_| floats(&read_frame(&mut trainer.output, 1 << 20).unwrap()))
            .collect();
        assert_eq!(state.len(), 9, "parameters, momentum, average");
        iterates.push(state[0].clone());
        if step <= 4 {
            let weights: Vec<f64> = (1..=step).map(|s| decay.powi((step - s) as i32)).collect();
            let mass: f64 = weights.iter().sum();
            for (place, average) in state[6].iter().enumerate() {
                let sum: f64 = iterates
                    .iter()
                    .zip(&weights)
                    .map(|(each, weight)| each[place] * weight)
                    .sum();
                assert!(
                    (average - sum / mass).abs() < 1e-6,
                    "step {step}: {average} for {}",
                    sum / mass
                );
            }
        }
    }
    assert_eq!(kept, [1, 2, 3, 4, 7, 12]);
    assert!(trainer.end().0.success());
}

/// Without noise, and with everybody in every sample, a run that was cut in two is the run that was not.
#[test]
fn a_run_that_continues_from_its_state_ends_where_it_would_have() {
    let (model, records) = (model(), records());
    let optimizers = [
        Optimizer::Sgd {
            lr: 0.1,
            momentum: 0.9,
            dampening: 0.1,
            weight_decay: 0.01,
            nesterov: false,
        },
        Optimizer::AdamW(Adam {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.01,
        }),
    ];
    let ema = Average::Exponential { decay: 0.9 };
    let cases = [
        (optimizers[0], 1e-9, ema, None, NoiseMode::Standard),
        (optimizers[1], 1e-9, ema, None, NoiseMode::Standard),
        // Noise that is correlated has at least a unit of the grid; a record's turns go on as they were.
        (
            optimizers[0],
            1e-8,
            Average::Tail { share: 0.75 },
            Some(band()),
            NoiseMode::Standard,
        ),
        (optimizers[1], 1e-8, ema, Some(band()), NoiseMode::Hardened),
    ];
    for (optimizer, noise_multiplier, average, band, noise_mode) in cases {
        let whole = Job {
            optimizer,
            sample_threshold: u64::MAX,
            micro_batches: 8,
            noise_multiplier,
            average: Some(average),
            band,
            noise_mode,
            ..job(&model)
        };
        let (_, expected) = run_to_state(&whole, &model, &records);
        let mut trainer = Trainer::start();
        // Every step a checkpoint, so that one is certain to come early.
        trainer.send_job(
            &Job {
                checkpoint_ms: 0,
                ..whole.clone()
            },
            &model,
        );
        assert_eq!(trainer.report(), Report::Ready);
        trainer.send_records(&records);
        for step in 1..=5 {
            assert_eq!(trainer.report(), Report::Step { step });
            assert!(matches!(trainer.report(), Report::Checkpoint { .. }));
            let state: Vec<_> = (0..state_tensors(&whole, &model))
                .map(|_| read_frame(&mut trainer.output, 1 << 20).unwrap())
                .collect();
            if step < 5 {
                continue;
            }
            let rest = Job {
                start_step: step,
                ..whole.clone()
            };
            let mut second = Trainer::start();
            second.send_job(&rest, &model);
            let input = second.input.as_mut().unwrap();
            state
                .iter()
                .for_each(|tensor| write_frame(input, tensor).unwrap());
            assert_eq!(second.report(), Report::Ready);
            second.send_records(&records);
            let (losses, ended) = follow(&mut second, &rest, &model);
            assert_eq!(losses.len(), 7);
            assert_eq!(ended.len(), expected.len());
            for (one, other) in ended.iter().zip(&expected) {
                for (one, other) in floats(one).into_iter().zip(floats(other)) {
                    assert!(
                        (one - other).abs() < 1e-5,
                        "{one} for {other} under {optimizer:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_trainer_that_is_asked_to_stop_finishes_its_step_and_hands_over_its_state() {
    let model = model();
    let job = Job {
        steps: 1_000_000,
        checkpoint_ms: 3_600_000,
        ..job(&model)
    };
    let mut trainer = Trainer::start();
    trainer.send_job(&job, &model);
    assert_eq!(trainer.report(), Report::Ready);
    trainer.send_records(&records());
    assert_eq!(trainer.report(), Report::Step { step: 1 });
    write_message(trainer.input.as_mut().unwrap(), &Control::Stop).unwrap();
    let mut reached = 1;
    let losses = loop {
        match trainer.report() {
            Report::Step { step } => reached = step,
            Report::Checkpoint { step, losses } if step == reached => break losses,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(losses.len() as u64, reached);
    for _ in 0..state_tensors(&job, &model) {
        read_frame(&mut trainer.output, 1 << 20).unwrap();
    }
    assert_eq!(trainer.report(), Report::Stopped);
    let (status, errors) = trainer.end();
    assert!(status.success() && errors.is_empty(), "{status} {errors}");
}

fn refusal(job: &Job, model: &Model) -> String {
    let mut trainer = Trainer::start();
    trainer.send_job(job, model);
    let Report::Refused { reason } = trainer.report() else {
        panic!("not refused")
    };
    let (status, errors) = trainer.end();
    assert_eq!(
        (status.code(), errors.as_str()),
        (Some(2), "trainer: the job was refused\n")
    );
    reason
}

fn refusal_with_state(job: &Job, model: &Model) -> String {
    let mut trainer = Trainer::start();
    trainer.send_job(job, model);
    let input = trainer.input.as_mut().unwrap();
    let trained = model
        .graph
        .parameters()
        .iter()
        .zip(&model.parameters)
        .filter(|(each, _)| each.trainable);
    let group: Vec<_> = trained.map(|(_, tensor)| bytes_of(tensor)).collect();
    for tensor in group.iter().cycle().take(state_tensors(job, model)) {
        write_frame(input, tensor).unwrap();
    }
    let Report::Refused { reason } = trainer.report() else {
        panic!("not refused")
    };
    reason
}

/// Every record of both datasets is of one patient: together they move the weights by C over the divisor, not by C each;
/// patients of two names by twice that.
#[test]
fn the_records_of_a_unit_move_the_weights_as_one_over_joined_datasets() {
    let model = model();
    let mut records = records();
    // The same records in both, so that the two gradients are one.
    records[1] = records[0].iter().map(Tensor::shallow_clone).collect();
    let numbers = |rows: i64| {
        let padding = Tensor::full([CAPACITY as i64 - rows], -1, (Kind::Int, Device::Cpu));
        Tensor::cat(&[Tensor::zeros([rows], (Kind::Int, Device::Cpu)), padding], 0)
    };
    for (dataset, rows) in records.iter_mut().zip([50, 64]) {
        dataset.push(numbers(rows));
    }
    let standard = NoiseMode::Standard;
    let moved = |of_datasets: [u32; 2], groups: Vec<u64>, records_per_unit: u32, noise_mode, band| {
        let job = Job {
            units: Units {
                records_per_unit,
                of_datasets: of_datasets.map(Some).to_vec(),
                groups,
            },
            steps: 1,
            sample_threshold: u64::MAX,
            expected_batch_size: 1.0,
            physical_batch_size: 128,
            micro_batches: 1,
            max_grad_norm: 1e-3,
            noise_multiplier: 1e-4,
            noise_mode,
            band,
            loss: None,
            optimizer: Optimizer::Sgd {
                lr: 1.0,
                momentum: 0.0,
                dampening: 0.0,
                weight_decay: 0.0,
                nesterov: false,
            },
            ..job(&model)
        };
        let (_, weights) = run(&job, &model, &records);
        let trained = [0, 2, 3]
            .map(|index| floats(&bytes_of(&model.parameters[index])))
            .concat();
        distance(
            &weights.iter().flat_map(|each| floats(each)).collect::<Vec<f64>>(),
            &trained,
        ) / 1e-3
    };
    for noise_mode in [standard, NoiseMode::Hardened] {
        let joined = moved([0, 0], vec![16], 128, noise_mode, None);
        assert!((joined - 1.0).abs() < 0.02, "{joined}");
    }
    for records_per_unit in [64, 8, 1] {
        let joined = moved([0, 0], vec![16], records_per_unit, standard, None);
        assert!(
            (joined - 1.0).abs() < 0.02,
            "{records_per_unit} records: {joined}"
        );
    }
    // With fewer records of each, the two gradients may point anywhere.
    let apart = moved([0, 1], vec![16, 16], 64, standard, None);
    assert!(apart > 1.5 && apart < 2.02, "{apart}");
    // In one of the four classes, it has its turn in the first step or has not: wholly.
    let turns = (0..12).map(|key| {
        let band = Band {
            class_key: ClassKey([key; 32]),
            ..band()
        };
        let moved = moved([0, 0], vec![16], 64, standard, Some(band));
        assert!(moved < 0.02 || (moved - 1.0).abs() < 0.02, "{moved}");
        moved > 0.5
    });
    let turns = turns.filter(|has_turn| *has_turn).count();
    assert!((1..12).contains(&turns), "{turns} of 12 runs");
}

#[test]
fn a_job_that_cannot_be_run_is_refused_with_its_reason() {
    let model = model();
    let good = job(&model);
    let version = Job {
        version: 99,
        ..good.clone()
    };
    assert!(refusal(&version, &model).contains("different builds"));
    let silent = Job {
        noise_multiplier: 0.0,
        ..good.clone()
    };
    assert!(refusal(&silent, &model).contains("no gradient leaves without noise"));
    let clip = Job {
        max_grad_norm: f64::NAN,
        ..good.clone()
    };
    assert!(refusal(&clip, &model).contains("max_grad_norm"));
    let empty = Job {
        physical_batch_size: 0,
        ..good.clone()
    };
    assert!(refusal(&empty, &model).contains("physical_batch_size"));
    let torn = Job {
        units: Units {
            records_per_unit: 3,
            ..good.units.clone()
        },
        ..good.clone()
    };
    assert!(refusal(&torn, &model).contains("whole units"));
    // All records of one unit, three of which there may be, in the four classes of a band.
    let few = Job {
        units: Units {
            records_per_unit: 1,
            of_datasets: vec![Some(0), Some(0)],
            groups: vec![3],
        },
        band: Some(band()),
        ..good.clone()
    };
    assert!(refusal(&few, &model).contains("fewer units than bands"));
    let unknown = Job {
        units: Units {
            of_datasets: vec![Some(0), None],
            ..good.units.clone()
        },
        ..good.clone()
    };
    assert!(refusal(&unknown, &model).contains("group of units"));
    let done = Job {
        start_step: 12,
        steps: 12,
        ..good.clone()
    };
    assert!(refusal_with_state(&done, &model).contains("all its steps"));
    for keep_steps in [vec![0], vec![13], vec![3, 3], vec![4, 2]] {
        let keep = Job {
            keep_steps,
            ..good.clone()
        };
        assert!(refusal(&keep, &model).contains("keep_steps"));
    }
    let average = Job {
        average: Some(Average::Exponential { decay: 1.0 }),
        ..good.clone()
    };
    assert!(refusal(&average, &model).contains("ema_decay"));
    let steep = Job {
        band: Some(Band {
            numerators: vec![4097],
            ..band()
        }),
        ..good.clone()
    };
    assert!(refusal(&steep, &model).contains("coefficients"));
    let many = Job {
        band: Some(Band {
            numerators: vec![1; 2 * CAPACITY as usize],
            ..band()
        }),
        ..good.clone()
    };
    assert!(refusal(&many, &model).contains("fewer units than bands"));
    let mut graph = good.graph.clone();
    graph.truncate(graph.len() - 3);
    assert!(refusal(&Job { graph, ..good }, &model).contains("typed graph"));
}

#[test]
fn rows_that_influence_one_another_are_refused_before_a_record_arrives() {
    let leaky = models::leaky(16);
    assert!(refusal(&job(&leaky), &leaky).contains("influence one another"));
}

#[test]
fn a_run_that_breaks_off_says_nothing_about_the_records() {
    let (model, mut records) = (model(), records());
    let canary = 31_337.25;
    let _ = records[0][0].fill_(canary);
    // A column of the wrong size in the second dataset.
    records[1][0] = records[1][0].narrow(0, 0, 10).contiguous();
    let mut trainer = Trainer::start();
    trainer.send_job(&job(&model), &model);
    assert_eq!(trainer.report(), Report::Ready);
    trainer.send_records(&records);
    let (status, errors) = trainer.end();
    assert_eq!(status.code(), Some(1));
    assert_eq!(
        errors,
        "trainer: the connection to the server ended: invalid data\n"
    );
}

#[test]
fn a_trainer_whose_server_is_gone_ends() {
    let model = model();
    let mut silent = Trainer::start();
    silent.send_job(&job(&model), &model);
    assert_eq!(silent.report(), Report::Ready);
    let (status, errors) = silent.end();
    assert_eq!(
        (status.code(), errors.as_str()),
        (
            Some(1),
            "trainer: the connection to the server ended: unexpected end of file\n"
        )
    );

    let mut deaf = Trainer::start();
    deaf.send_job(
        &Job {
            steps: u64::MAX,
            ..job(&model)
        },
        &model,
    );
    assert_eq!(deaf.report(), Report::Ready);
    deaf.send_records(&records());
    assert_eq!(deaf.report(), Report::Step { step: 1 });
    let Trainer {
        mut child,
        input,
        output,
    } = deaf;
    drop(output);
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "still running");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(input);
}

#[test]
fn hostile_records_neither_stop_a_run_nor_show() {
    let (model, records) = (model(), records());
    for value in [f64::NAN, f64::INFINITY, 3e38] {
        let _ = records[0][0].get(3).fill_(value);
        let _ = records[1][1].get(7).fill_(12_345);
        let everyone = Job {
            sample_threshold: u64::MAX,
            micro_batches: 8,
            steps: 3,
            ..job(&model)
        };
        let (losses, weights) = run(&everyone, &model, &records);
        assert!(losses.iter().flatten().all(|loss| loss.is_finite()));
        assert!(weights.iter().flat_map(|bytes| floats(bytes)).all(f64::is_finite));
    }
}

#[test]
fn the_process_can_neither_dump_core_nor_gain_privileges_nor_keep_inherited_files() {
    let binary = env!("CARGO_BIN_EXE_bastionai-trainer");
    let mut child = Command::new("/bin/sh")
        .args(["-c", &format!("exec 7</dev/null; exec {binary}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null()) // a file could not grow: the limit on file sizes is 0
        .spawn()
        .unwrap();
    let of = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", child.id())).unwrap_or_default();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !of("status").contains("NoNewPrivs:\t1") {
        assert!(Instant::now() < deadline, "{}", of("status"));
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(50));
    let core = of("limits")
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .map(str::to_owned)
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    assert!(!std::path::Path::new(&format!("/proc/{}/fd/7", child.id())).exists());
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn the_trainer_proves_its_sandbox_on_this_kernel_and_names_what_is_in_force() {
    let output = Command::new(env!("CARGO_BIN_EXE_bastionai-trainer"))
        .arg("--sandbox")
        .env_clear()
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let protections = String::from_utf8(output.stdout).unwrap();
    let mut lines = protections.lines();
    assert_eq!(lines.next(), Some("seccomp"), "{protections}");
    let landlock = lines.next().and_then(|line| line.strip_prefix("landlock "));
    // SAFETY: with this flag the kernel only returns a number.
    #[allow(unsafe_code)]
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            1u32,
        )
    };
    let expected = u32::try_from(abi).ok().map(|abi| abi.to_string());
    assert_eq!(landlock.map(str::to_owned), expected, "{protections}");
}

#[test]
fn limits_on_files_and_processes_hold_from_the_start() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_bastionai-trainer"))
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null()) // a file could not grow: the limit on file sizes is 0
        .spawn()
        .unwrap();
    let of = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", child.id())).unwrap_or_default();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !of("status").contains("Seccomp:\t2") {
        assert!(Instant::now() < deadline, "{}", of("status"));
        std::thread::sleep(Duration::from_millis(10));
    }
    let limits = of("limits");
    for (name, most) in [
        ("Max core file size", "0"),
        ("Max file size", "0"),
        ("Max open files", "256"),
        ("Max processes", "8192"),
    ] {
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_default();
        let mut words = line.split_whitespace();
        assert_eq!(
            (words.next(), words.next()),
            (Some(most), Some(most)),
            "{name}: {limits}"
        );
    }
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

fn evaluation(model: &Model) -> EvaluationJob {
    let dataset = |rows| DatasetShape {
        capacity: CAPACITY,
        rows,
    };
    EvaluationJob {
        version: TRAINER_PROTOCOL_VERSION,
        graph: model.graph.to_bytes(),
        datasets: vec![dataset(50), dataset(64)],
        physical_batch_size: 48,
        classes: 3,
        has_confusion: true,
        score_bins: None,
        noise_multiplier: 0.05,
        threads: 2,
    }
}

/// In the confined process, over two datasets, the last batch partly empty; noise too small to change a count.
#[test]
fn an_evaluation_hands_over_histograms_in_place_of_a_state() {
    let model = models::scorer(3, 1);
    let records = records();
    let mut trainer = Trainer::start();
    trainer.send_task(&Task::Evaluate(evaluation(&model)), &model);
    assert_eq!(trainer.report(), Report::Ready);
    trainer.send_records(&records);
    assert_eq!(trainer.report(), Report::Step { step: 1 });
    let losses = vec![None];
    assert_eq!(trainer.report(), Report::Checkpoint { step: 1, losses });
    let bytes = read_frame(&mut trainer.output, 1 << 20).unwrap();
    let counts = bytes.as_chunks().0.iter().map(|&count| i64::from_le_bytes(count));
    let counts: Vec<i64> = counts.collect();
    let mut expected = vec![0; 12];
    for (dataset, rows) in records.iter().zip([50, 64]) {
        let predicted = (model.reference)(&model.parameters, dataset).argmax(1, false);
        for row in 0..rows {
            let at = |tensor: &Tensor| tensor.int64_value(&[row]) as usize;
            expected[at(&dataset[1]) * 4 + at(&predicted)] += 1;
        }
    }
    assert_eq!(counts, expected);
    let (status, errors) = trainer.end();
    assert!(status.success() && errors.is_empty(), "{status} {errors}");
}

/// Thousands of batches are to come when the order does.
#[test]
fn an_evaluation_that_is_asked_to_stop_ends_without_a_count() {
    let model = models::scorer(3, 1);
    let rows = 1 << 15;
    let job = EvaluationJob {
        datasets: vec![DatasetShape { capacity: rows, rows }],
        physical_batch_size: 1,
        ..evaluation(&model)
    };
    let mut trainer = Trainer::start();
    trainer.send_task(&Task::Evaluate(job), &model);
    assert_eq!(trainer.report(), Report::Ready);
    let x = Tensor::zeros([rows as i64, 6], (Kind::Float, Device::Cpu));
    let y = Tensor::zeros([rows as i64], (Kind::Int64, Device::Cpu));
    trainer.send_records(&[vec![x, y]]);
    write_message(trainer.input.as_mut().unwrap(), &Control::Stop).unwrap();
    assert_eq!(trainer.report(), Report::Stopped);
    let (status, errors) = trainer.end();
    assert!(status.success() && errors.is_empty(), "{status} {errors}");
}

#[test]
fn an_evaluation_that_cannot_be_done_is_refused_before_records_arrive() {
    let scorer = models::scorer(3, 1);
    let refused = |job: EvaluationJob, model: &Model| {
        let mut trainer = Trainer::start();
        trainer.send_task(&Task::Evaluate(job), model);
        match trainer.report() {
            Report::Refused { reason } => reason,
            other => panic!("{other:?}"),
        }
    };
    let good = evaluation(&scorer);
    let silent = EvaluationJob {
        noise_multiplier: 0.0,
        ..good.clone()
    };
    assert!(refused(silent, &scorer).contains("without noise"));
    let loss = model();
    let graph = loss.graph.to_bytes();
    assert!(
        refused(
            EvaluationJob {
                graph,
                ..good.clone()
            },
            &loss
        )
        .contains("returns a loss")
    );
    let version = TRAINER_PROTOCOL_VERSION + 1;
    assert!(refused(EvaluationJob { version, ..good }, &scorer).contains("different builds"));
}
