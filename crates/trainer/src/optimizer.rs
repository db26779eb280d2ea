//! Noise and optimizer in one parallel pass over all parameters: each chunk of the integer sum gets its noise, becomes a
//! gradient (divided by the public expected batch size) and updates weights and moments while it is in cache.
//!
//! The formulas are `torch.optim`'s, in the parameter's own precision.

use crate::engine::Sums;
use crate::error::{EngineError, Result};
use crate::ffi::{self, Element};
use crate::grid::in_parallel;
use crate::schedule::LearningRates;
use crate::vectors::{Pass, Vectors, Widest};
use bastionai_privacy::banded::BandedMatrix;
use bastionai_privacy::noise::{BandedNoise, NoisePlace, NoiseStream};
use bastionai_wire::{Adam, Optimizer};
use tch::{Kind, Tensor};

/// How sums become gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoisyMean {
    /// Noise standard deviation in grid units: `noise_multiplier · Δ / g`.
    pub standard_deviation: f64,
    /// Grid width over the public divisor.
    pub scale: f64,
}

/// An optimizer and its state.
pub struct OptimizerState {
    optimizer: Optimizer,
    rates: LearningRates,
    steps: u64,
    slots: Vec<Slots>,
    correlated: Option<Correlated>,
    /// What [`Optimizer::NoiseCorrected`] takes off: the noise's variance in a gradient's coordinate, averaged as squares are.
    noise_variance: f64,
}

/// Noise that earlier steps' is part of.
struct Correlated {
    noise: BandedNoise,
    /// Of a gradient's noise after so many steps, over that of one draw.
    variances: Vec<f64>,
    /// For each parameter the noise of earlier steps in grid units, chunk after chunk. Secret, so part of no state: it
    /// starts at zero with every start of the trainer.
    memory: Vec<Vec<i64>>,
    /// Steps taken by this trainer.
    taken: u64,
}

/// Momentum or moments of one parameter, in its own precision; empty where the optimizer has none.
enum Slots {
    F32 { first: Vec<f32>, second: Vec<f32> },
    F64 { first: Vec<f64>, second: Vec<f64> },
}

/// A part of one parameter.
struct Chunk<'c, T> {
    /// The parameter's place, and that of the chunk's first element in it.
    tensor: u32,
    index: u64,
    weights: &'c mut [T],
    sums: &'c mut [i64],
    first: &'c mut [T],
    second: &'c mut [T],
    /// Noise of earlier steps, if that matters.
    memory: &'c mut [i64],
}

/// A chunk in its parameter's precision.
enum Work<'c> {
    F32(Chunk<'c, f32>),
    F64(Chunk<'c, f64>),
}

/// What all chunks of a step share.
struct StepOf<'a> {
    stream: &'a NoiseStream,
    step: u64,
    mean: NoisyMean,
    rule: Rule,
    correlated: Option<&'a BandedNoise>,
}

impl OptimizerState {
    /// Zero state for these parameters.
    ///
    /// # Errors
    /// [`EngineError::Job`] for hyper-parameters that `torch.optim` refuses too.
    pub fn new(optimizer: Optimizer, rates: LearningRates, parameters: &[&Tensor]) -> Result<Self> {
        check(&optimizer)?;
        let (first, second) = match optimizer {
            Optimizer::Sgd { momentum, .. } => (momentum != 0.0, false),
            Optimizer::AdamW(_) | Optimizer::Adam(_) | Optimizer::NoiseCorrected { .. } => (true, true),
        };
        let length = |tensor: &Tensor, wanted: bool| if wanted { tensor.numel() } else { 0 };
        let slots = parameters
            .iter()
            .map(|tensor| match tensor.kind() {
                Kind::Double => Slots::F64 {
                    first: vec![0.0; length(tensor, first)],
                    second: vec![0.0; length(tensor, second)],
                },
                _ => Slots::F32 {
                    first: vec![0.0; length(tensor, first)],
                    second: vec![0.0; length(tensor, second)],
                },
            })
            .collect();
        Ok(Self {
            optimizer,
            rates,
            steps: 0,
            slots,
            correlated: None,
            noise_variance: 0.0,
        })
    }

    /// Correlates the noise of the steps to come. `standard_deviation`: of a step's own draw, in grid units, which
    /// [`Self::step`] is then to be given too.
    ///
    /// # Errors
    /// [`EngineError::Job`] for noise that is too large for the band, or values that cannot be counted.
    pub fn correlate(
        &mut self,
        matrix: &BandedMatrix,
        standard_deviation: f64,
        parameters: &[&Tensor],
    ) -> Result<()> {
        let noise = BandedNoise::new(matrix, standard_deviation)
            .map_err(|error| EngineError::Job(error.to_string()))?;
        let values = |tensor: &&Tensor| tensor.numel().checked_mul(noise.memory());
        let zeros = |values: Option<usize>| values.map(|values| vec![0; values]);
        let memory = parameters.iter().map(values).map(zeros).collect::<Option<_>>();
        self.correlated = Some(Correlated {
            noise,
            variances: matrix.variances(),
            memory: memory.ok_or_else(|| EngineError::Job("the bands of noise are too many".into()))?,
            taken: 0,
        });
        Ok(())
    }

    /// Adds noise to the sums and updates the parameters. The sums are gone then: no step begins with another's.
    ///
    /// # Errors
    /// [`EngineError::SumOutOfBound`] when sums and parameters do not fit together or the noise cannot be drawn.
    pub fn step(
        &mut self,
        parameters: &mut [&mut Tensor],
        mut sums: Sums,
        noise: &NoiseStream,
        step: u64,
        mean: NoisyMean,
        threads: usize,
    ) -> Result<()> {
        if parameters.len() != sums.0.len() || sums.0.len() != self.slots.len() {
            return Err(EngineError::SumOutOfBound);
        }
        let factor = self.rates.factor(self.steps);
        self.steps += 1;
        let correction = self.learn_variance(mean);
        let rule = Rule::new(&self.optimizer, factor, self.steps, correction);
        let (correlated, memory) = match &mut self.correlated {
            None => (None, &mut [][..]),
            Some(correlated) => (Some(&correlated.noise), &mut correlated.memory[..]),
        };
        let rows = correlated.map_or(0, BandedNoise::memory);
        let mut memory = memory.iter_mut();
        let mut work = Vec::new();
        let each = parameters.iter_mut().zip(&mut sums.0).zip(&mut self.slots);
        for (position, ((tensor, sums), slots)) in (0..).zip(each) {
            let memory = memory.next().map_or(&mut [][..], |memory| &mut memory[..]);
            match slots {
                Slots::F32 { first, second } => {
                    let slots = (&mut first[..], &mut second[..]);
                    let chunks = chunks(position, ffi::elements_mut(tensor), sums, slots, (rows, memory))?;
                    work.extend(chunks.map(Work::F32));
                }
                Slots::F64 { first, second } => {
                    let slots = (&mut first[..], &mut second[..]);
                    let chunks = chunks(position, ffi::elements_mut(tensor), sums, slots, (rows, memory))?;
                    work.extend(chunks.map(Work::F64));
                }
            }
        }
        let of_step = StepOf {
            stream: noise,
            step,
            mean,
            rule,
            correlated,
        };
        let done = in_parallel(work, threads, |work| match work {
            Work::F32(chunk) => of_step.update(chunk),
            Work::F64(chunk) => of_step.update(chunk),
        });
        done.into_iter().collect()
    }

    /// Takes in the variance of this step's noise, as Adam does its square; returns their average so far.
    fn learn_variance(&mut self, mean: NoisyMean) -> f64 {
        let Optimizer::NoiseCorrected { adam, .. } = self.optimizer else {
            return 0.0;
        };
        let share = match &mut self.correlated {
            None => 1.0,
            Some(correlated) => {
                correlated.taken += 1;
                let (last, taken) = (correlated.variances.len() - 1, correlated.taken - 1);
                correlated.variances[last.min(taken as usize)]
            }
        };
        let variance = share * (mean.standard_deviation * mean.scale).powi(2);
        self.noise_variance = adam.beta2 * self.noise_variance + (1.0 - adam.beta2) * variance;
        self.noise_variance / (1.0 - adam.beta2.powf(self.steps as f64))
    }
}

impl OptimizerState {
    /// Groups of tensors kept beside the parameters ([`Optimizer::moments`]).
    pub fn groups(&self) -> usize {
        self.optimizer.moments()
    }

    /// The tensors of one group as bytes, in parameter order.
    pub fn group(&self, group: usize) -> impl Iterator<Item = &[u8]> + '_ {
        self.slots.iter().map(move |slots| match (slots, group) {
            (Slots::F32 { first, .. }, 0) => ffi::as_bytes(first),
            (Slots::F32 { second, .. }, _) => ffi::as_bytes(second),
            (Slots::F64 { first, .. }, 0) => ffi::as_bytes(first),
            (Slots::F64 { second, .. }, _) => ffi::as_bytes(second),
        })
    }

    /// Continues after `steps` steps with the tensors of all groups, one group after the other. `mean`: of these steps'
    /// noise, whose variance an average of squares has in it. That of correlated noise is taken to have started at the
    /// first step; a start in between, of which nothing is stored, made the variance of a few steps smaller by a quarter.
    ///
    /// # Errors
    /// [`EngineError::Job`] unless they are exactly this optimizer's tensors.
    pub fn restore(&mut self, steps: u64, tensors: &[Vec<u8>], mean: NoisyMean) -> Result<()> {
        let fit = || EngineError::Job("the optimizer's state is not that of the run's parameters".into());
        if tensors.len() != self.groups() * self.slots.len() {
            return Err(fit());
        }
        for (group, tensors) in tensors.chunks(self.slots.len().max(1)).enumerate() {
            for (slots, bytes) in self.slots.iter_mut().zip(tensors) {
                let fits = match (slots, group) {
                    (Slots::F32 { first, .. }, 0) => fill(first, bytes, f32::from_le_bytes),
                    (Slots::F32 { second, .. }, _) => fill(second, bytes, f32::from_le_bytes),
                    (Slots::F64 { first, .. }, 0) => fill(first, bytes, f64::from_le_bytes),
                    (Slots::F64 { second, .. }, _) => fill(second, bytes, f64::from_le_bytes),
                };
                fits.ok_or_else(fit)?;
            }
        }
        for step in 1..=steps {
            self.steps = step;
            self.learn_variance(mean);
        }
        self.steps = steps;
        if let Some(correlated) = &mut self.correlated {
            correlated.taken = 0;
        }
        Ok(())
    }
}

/// `None` when the lengths differ.
fn fill<T, const N: usize>(values: &mut [T], bytes: &[u8], from_bytes: impl Fn([u8; N]) -> T) -> Option<()> {
    let (places, rest) = bytes.as_chunks::<N>();
    if !rest.is_empty() || places.len() != values.len() {
        return None;
    }
    for (value, &bytes) in values.iter_mut().zip(places) {
        *value = from_bytes(bytes);
    }
    Some(())
}

fn check(optimizer: &Optimizer) -> Result<()> {
    let refuse = |what: &str| Err(EngineError::Job(format!("optimizer: {what}")));
    let not_negative = |value: f64| value >= 0.0 && value.is_finite();
    match *optimizer {
        Optimizer::Sgd {
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
        } => {
            if ![lr, momentum, weight_decay].into_iter().all(not_negative) || !dampening.is_finite() {
                return refuse("lr, momentum and weight_decay must be finite and not negative");
            }
            if nesterov && (momentum <= 0.0 || dampening != 0.0) {
                return refuse("nesterov needs a momentum and zero dampening");
            }
        }
        Optimizer::AdamW(numbers)
        | Optimizer::Adam(numbers)
        | Optimizer::NoiseCorrected { adam: numbers, .. } => {
            let Adam {
                lr,
                beta1,
                beta2,
                eps,
                weight_decay,
            } = numbers;
            if let Optimizer::NoiseCorrected { floor, .. } = *optimizer
                && !(floor > 0.0 && floor.is_finite())
            {
                return refuse("noise_correction must be finite and above 0");
            }
            if ![lr, eps, weight_decay].into_iter().all(not_negative) {
                return refuse("lr, eps and weight_decay must be finite and not negative");
            }
            if ![beta1, beta2].into_iter().all(|beta| (0.0..1.0).contains(&beta)) {
                return refuse("beta1 and beta2 must be in [0, 1)");
            }
        }
    }
    Ok(())
}

/// Arithmetic in a parameter's own precision.
trait Real: Element + Send + Sync {
    fn from_f64(value: f64) -> Self;
    fn multiply_add(self, factor: Self, add: Self) -> Self;
    fn root(self) -> Self;
    fn over(self, divisor: Self) -> Self;
    fn at_least(self, floor: Self) -> Self;
}

macro_rules! real {
    ($type:ty) => {
        impl Real for $type {
            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $type
            }
            #[inline(always)]
            fn multiply_add(self, factor: Self, add: Self) -> Self {
                self * factor + add
            }
            #[inline(always)]
            fn root(self) -> Self {
                self.sqrt()
            }
            #[inline(always)]
            fn over(self, divisor: Self) -> Self {
                self / divisor
            }
            #[inline(always)]
            fn at_least(self, floor: Self) -> Self {
                self.max(floor)
            }
        }
    };
}
real!(f32);
real!(f64);

/// The optimizer's numbers at one step, rounded once to the parameter's precision where they are used.
enum Rule {
    Sgd {
        lr: f64,
        momentum: f64,
        gain: f64,
        weight_decay: f64,
        nesterov: bool,
    },
    /// Adam adds `penalty · weight` to the gradient, AdamW scales weights by `keep`.
    Adam {
        penalty: f64,
        keep: f64,
        beta1: f64,
        beta2: f64,
        rate: f64,
        root_correction: f64,
        eps: f64,
    },
    /// Adam's step over `√max(v·scale − variance, floor)`.
    NoiseCorrected {
        penalty: f64,
        keep: f64,
        beta1: f64,
        beta2: f64,
        rate: f64,
        scale: f64,
        variance: f64,
        floor: f64,
    },
}

impl Rule {
    /// `factor` of the learning rate at step `step`, from 1; `variance` of the noise in an average of squares.
    fn new(optimizer: &Optimizer, factor: f64, step: u64, variance: f64) -> Self {
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        match *optimizer {
            Optimizer::Sgd {
                lr,
                momentum,
                dampening,
                weight_decay,
                nesterov,
            } => {
                // The first momentum buffer is the gradient itself, undamped.
                let gain = if step == 1 { 1.0 } else { 1.0 - dampening };
                Self::Sgd {
                    lr: lr * factor,
                    momentum,
                    gain,
                    weight_decay,
                    nesterov,
                }
            }
            Optimizer::AdamW(numbers) => {
                let keep = 1.0 - numbers.lr * factor * numbers.weight_decay;
                Self::adam(numbers, 0.0, keep, factor, correction)
            }
            Optimizer::Adam(numbers) => Self::adam(numbers, numbers.weight_decay, 1.0, factor, correction),
            Optimizer::NoiseCorrected {
                adam,
                decoupled,
                floor,
            } => {
                let decay = if decoupled {
                    adam.lr * factor * adam.weight_decay
                } else {
                    0.0
                };
                Self::NoiseCorrected {
                    penalty: if decoupled { 0.0 } else { adam.weight_decay },
                    keep: 1.0 - decay,
                    beta1: adam.beta1,
                    beta2: adam.beta2,
                    rate: adam.lr * factor / correction(adam.beta1),
                    scale: 1.0 / correction(adam.beta2),
                    variance,
                    floor,
                }
            }
        }
    }

    fn adam(numbers: Adam, penalty: f64, keep: f64, factor: f64, correction: impl Fn(f64) -> f64) -> Self {
        let Adam {
            lr,
            beta1,
            beta2,
            eps,
            ..
        } = numbers;
        Self::Adam {
            penalty,
            keep,
            beta1,
            beta2,
            rate: lr * factor / correction(beta1),
            root_correction: correction(beta2).sqrt(),
            eps,
        }
    }

    #[inline(always)]
    fn update<T: Real>(&self, weights: &mut [T], gradients: &[T], first: &mut [T], second: &mut [T]) {
        let real = T::from_f64;
        match *self {
            Self::Sgd {
                lr,
                momentum,
                gain,
                weight_decay,
                nesterov,
            } => {
                let (rate, decay) = (real(-lr), real(weight_decay));
                if momentum == 0.0 {
                    for (weight, &gradient) in weights.iter_mut().zip(gradients) {
                        let gradient = weight.multiply_add(decay, gradient);
                        *weight = gradient.multiply_add(rate, *weight);
                    }
                    return;
                }
                let (momentum, gain, zero) = (real(momentum), real(gain), real(0.0));
                for ((weight, &gradient), buffer) in weights.iter_mut().zip(gradients).zip(first) {
                    let gradient = weight.multiply_add(decay, gradient);
                    *buffer = buffer.multiply_add(momentum, gradient.multiply_add(gain, zero));
                    let direction = if nesterov {
                        buffer.multiply_add(momentum, gradient)
                    } else {
                        *buffer
                    };
                    *weight = direction.multiply_add(rate, *weight);
                }
            }
            Self::Adam {
                penalty,
                keep,
                beta1,
                beta2,
                rate,
                root_correction,
                eps,
            } => {
                let (eps, root_correction) = (real(eps), real(root_correction));
                let numbers = Moments::new(penalty, keep, beta1, beta2, rate);
                numbers.update(weights, gradients, first, second, |square| {
                    square.root().over(root_correction).multiply_add(real(1.0), eps)
                });
            }
            Self::NoiseCorrected {
                penalty,
                keep,
                beta1,
                beta2,
                rate,
                scale,
                variance,
                floor,
            } => {
                let (scale, variance, floor) = (real(scale), real(-variance), real(floor));
                let numbers = Moments::new(penalty, keep, beta1, beta2, rate);
                numbers.update(weights, gradients, first, second, |square| {
                    square.multiply_add(scale, variance).at_least(floor).root()
                });
            }
        }
    }
}

/// What Adam's variants share: all but how a second moment becomes a step's size.
struct Moments<T> {
    penalty: T,
    keep: T,
    beta1: T,
    rest1: T,
    beta2: T,
    rest2: T,
    rate: T,
}

impl<T: Real> Moments<T> {
    #[inline(always)]
    fn new(penalty: f64, keep: f64, beta1: f64, beta2: f64, rate: f64) -> Self {
        let real = T::from_f64;
        Self {
            penalty: real(penalty),
            keep: real(keep),
            beta1: real(beta1),
            rest1: real(1.0 - beta1),
            beta2: real(beta2),
            rest2: real(1.0 - beta2),
            rate: real(-rate),
        }
    }

    #[inline(always)]
    fn update(
        &self,
        weights: &mut [T],
        gradients: &[T],
        first: &mut [T],
        second: &mut [T],
        size: impl Fn(T) -> T,
    ) {
        let zero = T::from_f64(0.0);
        for (((weight, &gradient), mean), square) in weights.iter_mut().zip(gradients).zip(first).zip(second)
        {
            let gradient = weight.multiply_add(self.penalty, gradient);
            *mean = mean.multiply_add(self.beta1, gradient.multiply_add(self.rest1, zero));
            let squared = gradient
                .multiply_add(gradient, zero)
                .multiply_add(self.rest2, zero);
            *square = square.multiply_add(self.beta2, squared);
            let decayed = weight.multiply_add(self.keep, zero);
            *weight = mean.over(size(*square)).multiply_add(self.rate, decayed);
        }
    }
}

/// The chunks of one parameter.
fn chunks<'c, T>(
    tensor: u32,
    weights: Option<&'c mut [T]>,
    sums: &'c mut [i64],
    (first, second): (&'c mut [T], &'c mut [T]),
    (rows, memory): (usize, &'c mut [i64]),
) -> Result<impl Iterator<Item = Chunk<'c, T>>> {
    let weights = weights.filter(|weights| weights.len() == sums.len());
    let weights = weights.ok_or(EngineError::SumOutOfBound)?;
    let (mut first, mut second) = (first.chunks_mut(CHUNK), second.chunks_mut(CHUNK));
    let mut memory = memory.chunks_mut(CHUNK * rows.max(1));
    let pieces = weights.chunks_mut(CHUNK).zip(sums.chunks_mut(CHUNK));
    Ok((0..).zip(pieces).map(move |(chunk, (weights, sums))| Chunk {
        tensor,
        index: chunk * CHUNK as u64,
        weights,
        sums,
        first: first.next().unwrap_or_default(),
        second: second.next().unwrap_or_default(),
        memory: memory.next().unwrap_or_default(),
    }))
}

impl StepOf<'_> {
    fn update<T: Real>(&self, chunk: Chunk<'_, T>) -> Result<()> {
        let deviation = self.mean.standard_deviation;
        let place = NoisePlace {
            step: self.step,
            tensor: chunk.tensor,
            first_index: chunk.index,
        };
        let added = match self.correlated {
            Some(noise) => noise.add_by(&Widest, self.stream, place, chunk.sums, chunk.memory),
            None => {
                let NoisePlace {
                    step,
                    tensor,
                    first_index,
                } = place;
                self.stream
                    .add_rounded_gaussian_by(&Widest, step, tensor, first_index, chunk.sums, deviation)
            }
        };
        added.map_err(|_| EngineError::SumOutOfBound)?;
        Widest.run(Update {
            rule: &self.rule,
            scale: self.mean.scale,
            sums: chunk.sums,
            weights: chunk.weights,
            first: chunk.first,
            second: chunk.second,
        });
        Ok(())
    }
}

/// The update of one chunk from its noisy sums.
struct Update<'a, T> {
    rule: &'a Rule,
    scale: f64,
    sums: &'a [i64],
    weights: &'a mut [T],
    first: &'a mut [T],
    second: &'a mut [T],
}

impl<T: Real> Pass for Update<'_, T> {
    type Output = ();

    /// In blocks, so that gradients stay in the nearest cache.
    #[inline(always)]
    fn run(self) {
        let mut gradients = [T::from_f64(0.0); BLOCK];
        let (mut first, mut second) = (self.first.chunks_mut(BLOCK), self.second.chunks_mut(BLOCK));
        for (weights, sums) in self.weights.chunks_mut(BLOCK).zip(self.sums.chunks(BLOCK)) {
            let gradients = &mut gradients[..sums.len()];
            for (gradient, units) in gradients.iter_mut().zip(sums) {
                *gradient = T::from_f64(*units as f64 * self.scale);
            }
            let (first, second) = (
                first.next().unwrap_or_default(),
                second.next().unwrap_or_default(),
            );
            self.rule.update(weights, gradients, first, second);
        }
    }
}

/// Elements whose gradients are made at once.
const BLOCK: usize = 1024;

/// Elements of a chunk: with weights and moments they stay in the second-level cache from noise to update, and a few
/// dozen chunks of a small model keep all threads at work to the end.
const CHUNK: usize = 1 << 13;

#[cfg(test)]
mod tests;
