//! Forward, one autograd pass to the taps, norms, clip factors, and one weighted contraction per parameter:
//! a step's clipped sum on the integer grid (Bu et al. 2023, Book-Keeping, <https://arxiv.org/abs/2210.00038>).

use crate::clipping::Factors;
use crate::device::{Device, beside, to_host};
use crate::error::{EngineError, Result};
use crate::executor::{self, Randomness};
use crate::ffi;
use crate::ffi::products::{Contraction, Lanes, contract, contract_fresh};
use crate::gradients::exact::Allowances;
use crate::gradients::gram::in_f32;
use crate::gradients::instantiated::weighted_sum;
use crate::gradients::units::Units;
use crate::gradients::{self, Instantiated, Norms, TapValues, pulled};
use crate::grid::{Grid, MAX_PHYSICAL_BATCH_SIZE};
use crate::guards;
use crate::kernels::{Product, TrueF32};
use crate::phases;
use crate::precision::{Chosen, Precision, Products, precision};
use crate::program::{Program, kind};
use crate::state::{State, elements};
use crate::table;
use crate::taps::{Method, ParameterPlan, Plan, Role, TapKind, TapPlan, Use, ViewBack};
use bastionai_graph::typed::{TypedGraph, ValueId};
use bastionai_privacy::sensitivity::{ClipRule, charged_sensitivity};
use bastionai_wire::{Clipping, Compute, NoiseMode};
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

/// Of `max_grad_norm`: within it no clipped sum in f32 overflows (rule G4) and none is lost to underflow.
const SMALLEST_NORM: f64 = 1.0 / (1u64 << 60) as f64;
const LARGEST_NORM: f64 = (1u64 << 60) as f64;

/// Sizes and bounds that stay the same for a whole run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Rows of every micro-batch (rule T2), whole units.
    pub physical_batch_size: u32,
    /// Rows of a unit, k: its records, or padding behind them. They stand together.
    pub records_per_unit: u32,
    /// Micro-batches of every step (rule D8).
    pub micro_batches: u32,
    /// Clipping norm C over all trainable parameters.
    pub max_grad_norm: f64,
    /// How gradients are held to it.
    pub clipping: Clipping,
    /// Precision of the graph's products.
    pub compute: Compute,
    /// How clipped gradients become an integer sum.
    pub noise_mode: NoiseMode,
    /// Threads of libtorch and of the engine's own passes.
    pub threads: u32,
}

/// The engine of one run: a typed graph at one batch size, its parameters, and how their gradients are clipped.
pub struct Engine {
    graph: TypedGraph,
    program: Program,
    plan: Plan,
    state: State,
    rule: ClipRule,
    precision: Precision,
    grid: Grid,
    sensitivity: f64,
    settings: Settings,
}

/// One micro-batch: exactly B rows, padding included.
pub struct Batch {
    inputs: Vec<Tensor>,
    present: Tensor,
}

/// Clipped sums in grid units, one vector for each trainable parameter, in graph order. One that is empty is all zeros:
/// it takes no memory before something is added to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums(pub Vec<Vec<i64>>);

/// What one micro-batch told about its records. Private: stays in the engine (tests excepted).
#[derive(Clone, Debug, PartialEq)]
pub struct RecordResults {
    /// Losses of records; meaningless where `present` is false.
    pub losses: Vec<f64>,
    /// Records that are there and in range.
    pub present: Vec<bool>,
    /// Units with such a record, all of them finite.
    pub counted: Vec<bool>,
    /// Upper bounds of the norms of units' gradients before clipping.
    pub norm_bounds: Vec<f64>,
}

/// Forward and backward done; clipping not yet.
struct Gradients {
    losses: Tensor,
    /// `[B]`, bool: records that count.
    present: Tensor,
    taps: Vec<TapValues>,
    norms: Norms,
    /// What each record may still add, in noise mode `hardened`.
    allowances: Option<Allowances>,
    /// For each tap the position of the last parameter whose sum needs it.
    last_sums: Vec<usize>,
}

impl Engine {
    /// Builds the engine. `parameters` and `constants` are contiguous little-endian bytes in graph order.
    ///
    /// # Errors
    /// [`EngineError`] when a size, a hyper-parameter or a node is not one that the engine can run soundly.
    pub fn new(
        graph: TypedGraph,
        parameters: &[Vec<u8>],
        constants: &[Vec<u8>],
        settings: Settings,
    ) -> Result<Self> {
        Self::with(graph, parameters.iter(), constants.iter(), settings)
    }

    /// The same of bytes that are freed one tensor after the other: no model is held twice.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn consuming(
        graph: TypedGraph,
        parameters: Vec<Vec<u8>>,
        constants: Vec<Vec<u8>>,
        settings: Settings,
    ) -> Result<Self> {
        Self::with(graph, parameters.into_iter(), constants.into_iter(), settings)
    }

    fn with<B: AsRef<[u8]>>(
        graph: TypedGraph,
        parameters: impl ExactSizeIterator<Item = B>,
        constants: impl ExactSizeIterator<Item = B>,
        settings: Settings,
    ) -> Result<Self> {
        if settings.physical_batch_size == 0 || settings.micro_batches == 0 || settings.threads == 0 {
            return Err(EngineError::Job(
                "physical_batch_size, micro_batches and threads must be at least 1".into(),
            ));
        }
        if settings.records_per_unit == 0
            || !settings
                .physical_batch_size
                .is_multiple_of(settings.records_per_unit)
        {
            return Err(EngineError::Job(
                "physical_batch_size must hold whole units of at least one record".into(),
            ));
        }
        if settings.physical_batch_size > MAX_PHYSICAL_BATCH_SIZE {
            return Err(EngineError::Job(format!(
                "physical_batch_size = {} is above {MAX_PHYSICAL_BATCH_SIZE}: sums would leave the exact integer grid",
                settings.physical_batch_size
            )));
        }
        if !(SMALLEST_NORM..=LARGEST_NORM).contains(&settings.max_grad_norm) {
            return Err(EngineError::Job(format!(
                "max_grad_norm = {:e} is outside of 2^-60 … 2^60: sums in f32 could leave its range",
                settings.max_grad_norm
            )));
        }
        if graph.loss().is_none() {
            let text = "the graph returns scores and a label: it can be evaluated, not trained";
            return Err(EngineError::Job(text.into()));
        }
        let mut program = Program::new(&graph, settings.physical_batch_size)?;
        if settings.compute == Compute::Bfloat16 {
            program.lower_products(&graph);
        }
        let mut plan = Plan::new(&graph, &program, settings.records_per_unit)?;
        if settings.noise_mode == NoiseMode::Hardened {
            plan.write_out(&graph, settings.records_per_unit)?;
        }
        let state = State::new(&graph, parameters, constants)?;
        state.check_trainable(&plan)?;
        let grid = Grid::new(settings.max_grad_norm, settings.physical_batch_size);
        let (precision, rule, sensitivity) = rounding(&plan, &settings, &grid, program.device)?;
        Ok(Self {
            graph,
            program,
            plan,
            state,
            rule,
            precision,
            grid,
            sensitivity,
            settings,
        })
    }

    /// Moves the run to a device: before its self-test, and for good.
    ///
    /// # Errors
    /// [`EngineError::Torch`] when the device is not there or its memory is short.
    pub fn run_on(&mut self, device: Device) -> Result<()> {
        self.state.place(device)?;
        self.program.device = device;
        self.choose_precision()
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.program.device
    }

    /// The graph.
    pub fn graph(&self) -> &TypedGraph {
        &self.graph
    }

    /// The sizes and bounds.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The grid of [`Sums`].
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// L2 sensitivity of a step's sum (in the gradient's unit, not in grid units): C and every rounding error; in noise
    /// mode `hardened` there is none.
    pub fn l2_sensitivity(&self) -> f64 {
        self.sensitivity
    }

    /// Zero sums, which take no memory yet.
    pub fn zero_sums(&self) -> Sums {
        Sums(vec![Vec::new(); self.plan.parameters.len()])
    }

    /// The trainable parameters in host memory, in graph order.
    pub fn trainable(&self) -> Vec<&Tensor> {
        self.plan
            .parameters
            .iter()
            .map(|each| &self.state.on_host()[each.parameter])
            .collect()
    }

    /// The trainable parameters in host memory, for the optimizer; what was written counts from [`Self::renew`] on.
    pub fn trainable_mut(&mut self) -> Vec<&mut Tensor> {
        let plan = &self.plan;
        let is_trained = |index: usize| plan.parameters.iter().any(|each| each.parameter == index);
        self.state
            .on_host_mut()
            .iter_mut()
            .enumerate()
            .filter(|(index, _)| is_trained(*index))
            .map(|(_, tensor)| tensor)
            .collect()
    }

    /// Lets the run see what was written to [`Self::trainable_mut`].
    ///
    /// # Errors
    /// [`EngineError::Torch`].
    pub fn renew(&mut self) -> Result<()> {
        let state = &mut self.state;
        self.plan
            .parameters
            .iter()
            .try_for_each(|each| state.renew(each.parameter))
    }

    /// A batch of exactly B rows: one tensor for each input, and `[B]` bool, false for padding.
    ///
    /// # Errors
    /// [`EngineError::Job`] when a shape or dtype is not the graph's.
    pub fn batch(&self, inputs: Vec<Tensor>, present: Tensor) -> Result<Batch> {
        let wrong = || EngineError::Job("a batch does not have the graph's inputs".into());
        if inputs.len() != self.graph.inputs().len() || present.kind() != Kind::Bool {
            return Err(wrong());
        }
        for (tensor, input) in inputs.iter().zip(self.graph.inputs()) {
            let mut shape = vec![self.program.batch_size];
            shape.extend(input.shape.iter().map(|&extent| extent as i64));
            if tensor.size() != shape || tensor.kind() != kind(input.dtype) {
                return Err(wrong());
            }
        }
        if present.size() != [self.program.batch_size] {
            return Err(wrong());
        }
        let place = |tensor: &Tensor| self.program.device.place(tensor);
        Ok(Batch {
            inputs: inputs.iter().map(place).collect::<Result<_>>()?,
            present: place(&present)?,
        })
    }

    /// Adds the clipped gradients of one micro-batch to `sums`.
    ///
    /// # Guarantee
    /// Over a step of at most `physical_batch_size × micro_batches` rows, adding or removing one unit, all its records at
    /// once, moves the total by at most [`Self::l2_sensitivity`] in L2. Padding, records out of range and units with a
    /// non-finite or enormous row add exactly zero.
    /// # Errors
    /// [`EngineError`]; none of its causes is a value of a record.
    pub fn add_clipped(&self, batch: &Batch, sums: &mut Sums) -> Result<RecordResults> {
        self.add(batch, Randomness::Drawn, sums)
    }

    /// SHA-256 of the sums of one batch when nothing random is drawn, and which records are in them: the self-test's view.
    /// Each parameter's sum is gone before the next is made.
    pub(crate) fn frozen_sums(&self, batch: &Batch) -> Result<([u8; 32], Vec<bool>)> {
        let mut gradients = self.gradients(batch, Randomness::Frozen)?;
        let factors = self.factors(&gradients.norms)?;
        let mut digest = Sha256::new();
        for position in 0..self.plan.parameters.len() {
            let mut sums = Vec::new();
            self.add_parameter(position, &mut gradients, &factors, &mut sums)?;
            digest.update(ffi::as_bytes(&sums));
        }
        let results = self.results(&gradients)?;
        let length = self.settings.records_per_unit as usize;
        let units = results
            .counted
            .iter()
            .flat_map(|&counted| std::iter::repeat_n(counted, length));
        let added = units
            .zip(&results.present)
            .map(|(unit, &present)| unit && present);
        Ok((digest.finalize().into(), added.collect()))
    }

    /// Adds the sum of one parameter after the other, and frees what is needed for no later one: a tap's input and output
    /// gradient stay from the backward pass to here, since no clip factor is known before the last norm.
    fn add(&self, batch: &Batch, randomness: Randomness, sums: &mut Sums) -> Result<RecordResults> {
        let mut gradients = self.gradients(batch, randomness)?;
        let factors = self.factors(&gradients.norms)?;
        if sums.0.len() != self.plan.parameters.len() {
            return Err(EngineError::SumOutOfBound);
        }
        for (position, sums) in sums.0.iter_mut().enumerate() {
            self.add_parameter(position, &mut gradients, &factors, sums)?;
        }
        self.results(&gradients)
    }

    /// For every parameter once, in order.
    fn add_parameter(
        &self,
        position: usize,
        gradients: &mut Gradients,
        factors: &Factors,
        sums: &mut Vec<i64>,
    ) -> Result<()> {
        let _no_graph = tch::no_grad_guard();
        let parameter = &self.plan.parameters[position];
        let factors = factors.of(position);
        match gradients.norms.instantiated[position].take() {
            Some(found) => {
                let sums = allocated(sums, parameter);
                let allowances = gradients.allowances.as_mut();
                self.add_instantiated(parameter, found, &gradients.taps, &factors.list, allowances, sums)?
            }
            None => self.add_by_rows(parameter, gradients, &factors.tensor, sums)?,
        }
        for each in &parameter.uses {
            if gradients.last_sums[each.tap] == position {
                gradients.taps[each.tap].free();
            }
        }
        phases::end(parameter.method.sums());
        Ok(())
    }

    /// The clipped sum of one batch, in the gradient's unit.
    ///
    /// # Errors
    /// As [`Self::add_clipped`].
    pub fn clipped_sums(&self, batch: &Batch) -> Result<(Vec<Vec<f64>>, RecordResults)> {
        let mut sums = self.zero_sums();
        let results = self.add_clipped(batch, &mut sums)?;
        let in_units = |sum: &Vec<i64>| {
            sum.iter()
                .map(|&units| units as f64 * self.grid.width())
                .collect()
        };
        Ok((sums.0.iter().map(in_units).collect(), results))
    }

    /// Units' gradients before clipping, `[B/k, parameter shape]` in f64, for each trainable parameter.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn per_sample_gradients(&self, batch: &Batch) -> Result<Vec<Tensor>> {
        let gradients = self.gradients(batch, Randomness::Frozen)?;
        self.plan
            .parameters
            .iter()
            .map(|each| {
                let (taps, threads) = (&gradients.taps, self.threads());
                let all = gradients::instantiate(each, &self.plan, taps, 0, self.plan.units, threads)?;
                Ok(to_host(&all)?.f_to_kind(Kind::Double)?)
            })
            .collect()
    }

    /// Values that are guarded before the node of this name runs (rule G4).
    pub fn guards(&self, node: &str) -> Vec<ValueId> {
        let calls = self.program.calls.iter().filter(|call| call.name == node);
        calls
            .flat_map(|call| guards::guarded_values(call, &self.program.expected))
            .collect()
    }

    /// SHA-256 over all parameters and constants (rule T8).
    ///
    /// # Errors
    /// [`EngineError::Torch`].
    pub fn state_digest(&self) -> Result<[u8; 32]> {
        self.state.digest()
    }

    /// SHA-256 over the constants and the frozen parameters: what must not change in a whole run.
    ///
    /// # Errors
    /// [`EngineError::Torch`].
    pub fn frozen_digest(&self) -> Result<[u8; 32]> {
        self.state.frozen_digest(&self.graph)
    }

    /// Everything about a unit that must not depend on the other units of its batch: the self-test's view.
    pub(crate) fn per_record_values(&self, batch: &Batch) -> Result<Vec<Tensor>> {
        let gradients = self.gradients(batch, Randomness::Frozen)?;
        let mut out = vec![
            gradients.losses.f_reshape([self.plan.units, -1])?,
            gradients.norms.norm_squared,
            gradients.norms.magnitude_squared,
        ];
        for (plan, tap) in self.plan.taps.iter().zip(&gradients.taps) {
            if let Some(reduced) = &tap.reduced {
                out.extend([&reduced.scale, &reduced.sum].map(Tensor::shallow_clone));
                continue;
            }
            let records = if !matches!(plan.kind, TapKind::Rows { .. } | TapKind::Embedding { .. })
                && !plan.as_rows
                && tap.gradient.size() == plan.output_shape
            {
                tap.gradient.f_movedim_int(plan.batch.axis, 0)?
            } else {
                tap.gradient.shallow_clone()
            };
            out.push(records.f_reshape([self.plan.units, -1])?);
        }
        out.iter().map(to_host).collect()
    }

    /// The matrix products of the run's linear layers, frozen ones included, each once.
    pub(crate) fn products(&self) -> Vec<Product> {
        let mut products: Vec<Product> = self
            .plan
            .taps
            .iter()
            .filter_map(|tap| self.product(tap))
            .chain(self.frozen_products())
            .collect();
        products.sort_unstable();
        products.dedup();
        products
    }

    /// Multiplications of the largest forward product, convolutions included.
    pub(crate) fn largest_product(&self) -> i64 {
        let of = |tap: &TapPlan| match &tap.kind {
            TapKind::Rows {
                input_width,
                output_width,
            } => tap
                .rows_per_record
                .saturating_mul(input_width.saturating_mul(*output_width)),
            TapKind::Convolution(plan) => plan.unfolded_elements().saturating_mul(plan.plain_width()),
            _ => 0,
        };
        let tapped = self.plan.taps.iter().map(of).max().unwrap_or(0);
        let frozen = self.frozen_products().map(|product| product.multiplications());
        frozen
            .max()
            .unwrap_or(0)
            .max(tapped.saturating_mul(self.plan.units))
    }

    /// Of layers that are not trained: most of a step beside adapters.
    fn frozen_products(&self) -> impl Iterator<Item = Product> {
        let calls = self.program.calls.iter().zip(self.graph.nodes());
        calls
            .filter(|(call, _)| call.tap.is_none())
            .filter_map(|(call, node)| self.program.product(call, node))
            .map(|(rows, [input_width, output_width])| Product {
                records: self.program.batch_size,
                rows_per_record: rows / self.program.batch_size,
                input_width,
                output_width,
                contracted_rows: 0,
            })
    }

    /// Gradients kept from norm to sum take at most this many elements; others are computed twice. Costs time or
    /// memory, never privacy.
    ///
    /// # Errors
    /// [`EngineError::Job`] as in [`Self::new`].
    pub fn keep_gradients(&mut self, elements: i64) -> Result<()> {
        self.plan
            .choose_methods(i64::from(self.settings.records_per_unit), elements);
        self.choose_precision()
    }

    /// For the plan and the device at hand, with the clip rule and the sensitivity that belong to it.
    fn choose_precision(&mut self) -> Result<()> {
        let (settings, grid, device) = (&self.settings, &self.grid, self.program.device);
        (self.precision, self.rule, self.sensitivity) = rounding(&self.plan, settings, grid, device)?;
        Ok(())
    }

    fn product(&self, tap: &TapPlan) -> Option<Product> {
        let TapKind::Rows {
            input_width,
            output_width,
        } = tap.kind
        else {
            return None;
        };
        let method = if tap.rows_per_record == 1 {
            Method::Rows
        } else {
            Method::Ghost
        };
        Some(Product {
            records: self.plan.units,
            rows_per_record: tap.rows_per_record,
            input_width,
            output_width,
            contracted_rows: self.precision.contraction(method, tap).rows,
        })
    }

    /// For models too small to share out. The number of threads then stays fixed for the run (rule T2).
    pub(crate) fn use_one_thread(&mut self) {
        self.settings.threads = 1;
        tch::set_num_threads(1);
    }

    fn threads(&self) -> usize {
        self.settings.threads as usize
    }

    fn gradients(&self, batch: &Batch, randomness: Randomness) -> Result<Gradients> {
        let versions = self.versions()?;
        let mut forward = executor::forward(
            &self.graph,
            &self.program,
            &self.state.parameters,
            &self.state.constants,
            &batch.inputs,
            &batch.present,
            randomness,
        )?;
        phases::end("forward");
        let at_taps = executor::gradients_at_taps(&forward)?;
        phases::end("backward");
        if self.versions()? != versions {
            return Err(EngineError::Mutated);
        }
        let _no_graph = tch::no_grad_guard();
        let units = Units {
            length: i64::from(self.settings.records_per_unit),
            counted: forward.counted.shallow_clone(),
        };
        // Each tap's input and output gradient go as soon as what is needed of them is made.
        let mut taps = at_taps
            .into_iter()
            .zip(&self.plan.taps)
            .zip(std::mem::take(&mut forward.taps))
            .map(|((gradient, plan), tap)| {
                gradients::tap_values(plan, gradient, &tap.saved, &units, self.threads())
            })
            .collect::<Result<Vec<_>>>()?;
        let (batch_size, threads) = (self.plan.units, self.threads());
        let pulled = pulled::pull_back(&self.plan, &forward.functions, &taps, batch_size, threads)?;
        taps.extend(pulled);
        phases::end("rows of taps");
        let mut norms = gradients::norms(&self.plan, &taps, &self.precision, threads)?;
        norms.usable = norms.usable.f_logical_and(&units.any()?)?;
        let hardened = self.settings.noise_mode == NoiseMode::Hardened;
        let allowances = hardened.then(|| Allowances::new(norms.norm_squared.numel()));
        Ok(Gradients {
            losses: to_host(&forward.results[0].f_detach()?)?.f_to_kind(Kind::Double)?,
            present: to_host(&forward.counted)?,
            taps,
            norms,
            allowances,
            last_sums: self.last_sums(),
        })
    }

    fn last_sums(&self) -> Vec<usize> {
        let mut last = vec![0; self.plan.taps.len()];
        for (position, parameter) in self.plan.parameters.iter().enumerate() {
            parameter.uses.iter().for_each(|each| last[each.tap] = position);
        }
        last
    }

    /// How often each parameter and constant was written in place: must not change in a forward phase (T8).
    fn versions(&self) -> Result<Vec<u64>> {
        self.state
            .parameters
            .iter()
            .chain(&self.state.constants)
            .map(|tensor| {
                ffi::version(tensor).map_err(|_| EngineError::Torch {
                    detail: ffi::last_error(),
                })
            })
            .collect()
    }

    fn factors(&self, norms: &Norms) -> Result<Factors> {
        match self.settings.clipping {
            Clipping::Flat | Clipping::Automatic => Factors::of_records(&self.rule, norms),
            Clipping::PerLayer => Factors::of_parameters(&self.rule, norms),
        }
    }

    fn results(&self, gradients: &Gradients) -> Result<RecordResults> {
        let norms = Vec::<f64>::try_from(&gradients.norms.norm_squared)?;
        let magnitudes = Vec::<f64>::try_from(&gradients.norms.magnitude_squared)?;
        let bound = |(&norm, &magnitude): (&f64, &f64)| self.rule.norm_bound(norm, magnitude.sqrt());
        Ok(RecordResults {
            losses: Vec::<f64>::try_from(&gradients.losses)?,
            present: Vec::<bool>::try_from(&gradients.present)?,
            counted: Vec::<bool>::try_from(&gradients.norms.usable)?,
            norm_bounds: norms.iter().zip(&magnitudes).map(bound).collect(),
        })
    }

    /// Sums from the rows of each use.
    fn add_by_rows(
        &self,
        parameter: &ParameterPlan,
        gradients: &Gradients,
        factors: &Tensor,
        sums: &mut Vec<i64>,
    ) -> Result<()> {
        for each in &parameter.uses {
            match each.role {
                Role::Table => {
                    self.add_table(each, gradients, factors, allocated(sums, parameter))?;
                }
                _ => self.add_contraction(each, parameter, gradients, factors, sums)?,
            }
        }
        // Of a parameter without a use.
        allocated(sums, parameter);
        Ok(())
    }

    /// `Σ_i c_i Σ_t g_t` into the rows that the tokens name.
    fn add_table(&self, each: &Use, gradients: &Gradients, factors: &Tensor, sums: &mut [i64]) -> Result<()> {
        let tap = &gradients.taps[each.tap];
        let ids = tap.input.as_ref().ok_or(EngineError::SumOutOfBound)?;
        let threads = self.settings.threads as usize;
        table::add_clipped(ids, &tap.gradient, factors, &self.grid, sums, threads)
    }

    /// `Σ_i c_i G_i` from instantiated gradients, block by block: in f64, or where there are allowances in integers.
    ///
    /// What was not kept is computed again, by the same calls on the same blocks. Should a library round it otherwise
    /// the second time, it is held to the norm of the first: no record moves the sum by more than its clipped norm.
    fn add_instantiated(
        &self,
        parameter: &ParameterPlan,
        found: Instantiated,
        taps: &[TapValues],
        factors: &[f64],
        mut allowances: Option<&mut Allowances>,
        sums: &mut [i64],
    ) -> Result<()> {
        let threads = self.threads();
        for (block, (first, count)) in self.precision.blocks(parameter).into_iter().enumerate() {
            let records = first as usize..(first + count) as usize;
            let factors = &factors[records.clone()];
            let (gradients, factors) = match found.kept.get(block) {
                Some(gradients) => (gradients.shallow_clone(), factors.to_vec()),
                None => {
                    let (again, norms) =
                        gradients::measured(parameter, &self.plan, taps, first, count, threads)?;
                    let held = factors.iter().zip(&found.squared[records]).zip(norms);
                    let held = held.map(|((&factor, &first), again)| hold(factor, first, again));
                    (again, held.collect())
                }
            };
            match &mut allowances {
                Some(left) => {
                    let (units, _) = self.grid.units();
                    left.add(
                        &to_host(&gradients)?,
                        first as usize,
                        &factors,
                        units,
                        sums,
                        threads,
                    )?;
                }
                None => {
                    let sum = weighted_sum(&gradients, &factors, threads)?;
                    self.grid.add(&sum, sums, threads)?;
                }
            }
        }
        Ok(())
    }

    /// `Σ_i c_i Σ_t g_t x_tᵀ` as matrix products over blocks of rows, the narrower rows scaled by `c_i`.
    ///
    /// Rows of a record that does not count are selected out and never multiplied by zero (rule G3). They are selected
    /// whether there is such a record or not: products then read memory of their own, aligned and laid out alike
    /// whatever the records hold, and round the others' rows alike.
    fn add_contraction(
        &self,
        only: &Use,
        parameter: &ParameterPlan,
        gradients: &Gradients,
        factors: &Tensor,
        sums: &mut Vec<i64>,
    ) -> Result<()> {
        let (plan, tap) = (&self.plan.taps[only.tap], &gradients.taps[only.tap]);
        let chosen = self.precision.contraction(parameter.method, plan);
        if self.precision.is_own(chosen) {
            return self.add_own_contraction(only, parameter, chosen, gradients, factors, sums);
        }
        let sums = allocated(sums, parameter);
        let _true_f32 = TrueF32::enter()?;
        let input = tap.input.as_ref().ok_or(EngineError::SumOutOfBound)?;
        let factors = &beside(factors, input)?;
        let keep = factors.f_gt(0)?.f_reshape([-1, 1, 1])?;
        let finite = |rows: &Tensor| rows.f_contiguous()?.f_where_scalarother(&keep, 0.0);
        let (inputs, outputs) = (flat(&finite(input)?)?, flat(&finite(&tap.gradient)?)?);
        let transposed = matches!(only.role, Role::Weight { transposed: true });
        let scale_inputs = inputs.size()[1] < outputs.size()[1];
        let (left, right) = if transposed {
            (inputs, outputs)
        } else {
            (outputs, inputs)
        };
        let scale_left = scale_inputs == transposed;
        let row_factors = factors
            .f_reshape([-1, 1])?
            .f_expand([-1, plan.rows_per_record], false)?
            .f_reshape([-1, 1])?
            .f_to_kind(chosen.kind)?;
        let shape: Vec<i64> = std::iter::once(1)
            .chain(only.value_shape.iter().copied())
            .collect();
        for group in self.precision.groups(chosen, plan) {
            let mut total: Option<Tensor> = None;
            for (first, count) in group {
                let block = |rows: &Tensor, scale: bool| -> Result<Tensor> {
                    let rows = rows.f_narrow(0, first, count)?.f_to_kind(chosen.kind)?;
                    if scale {
                        Ok(rows.f_mul(&row_factors.f_narrow(0, first, count)?)?)
                    } else {
                        Ok(rows)
                    }
                };
                let product = block(&left, scale_left)?
                    .f_tr()?
                    .f_mm(&block(&right, !scale_left)?)?;
                total = Some(match total {
                    None => product,
                    Some(mut sum) => sum.f_add_(&product)?,
                });
            }
            let total = total.ok_or(EngineError::SumOutOfBound)?;
            let own = gradients::undo_views(&to_host(&total)?.f_reshape(&shape[..])?, &only.back)?;
            self.grid.add(&own, sums, self.settings.threads as usize)?;
        }
        Ok(())
    }
}

impl Engine {
    /// The same on the engine's own kernels, which select, scale and round to the grid on the way: rows are read where
    /// they lie, and the first sum of a parameter is written without zeros before it.
    fn add_own_contraction(
        &self,
        only: &Use,
        parameter: &ParameterPlan,
        chosen: Chosen,
        gradients: &Gradients,
        factors: &Tensor,
        sums: &mut Vec<i64>,
    ) -> Result<()> {
        let (plan, tap) = (&self.plan.taps[only.tap], &gradients.taps[only.tap]);
        let input = in_f32(tap.input.as_ref().ok_or(EngineError::SumOutOfBound)?)?;
        let output = in_f32(&tap.gradient)?;
        let (left, right) = if matches!(only.role, Role::Weight { transposed: true }) {
            (&input, &output)
        } else {
            (&output, &input)
        };
        let groups = self.precision.groups(chosen, plan);
        let blocks: Vec<[i64; 2]> = groups
            .iter()
            .flatten()
            .map(|&(first, count)| [first, count])
            .collect();
        let (units, limit) = self.grid.units();
        let contraction = Contraction {
            left,
            right,
            factors,
            blocks: &blocks,
            units,
            limit,
        };
        let count = (left.size()[2] * right.size()[2]) as usize;
        let fresh = || {
            let made = contract_fresh(&contraction, count, Lanes::Widest).map_err(EngineError::shim)?;
            made.ok_or(EngineError::SumOutOfBound)
        };
        // A reshape changes no element's place in memory.
        if only.back.iter().all(|view| matches!(view, ViewBack::Reshape(_))) {
            if !sums.is_empty() {
                return match contract(&contraction, sums, Lanes::Widest) {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(EngineError::SumOutOfBound),
                    Err(failed) => Err(EngineError::shim(failed)),
                };
            }
            if count != elements(&parameter.shape) {
                return Err(EngineError::SumOutOfBound);
            }
            *sums = fresh()?;
            return Ok(());
        }
        // What enters its node as another view is summed as it enters; on the grid that is exact.
        let shape: Vec<i64> = std::iter::once(1)
            .chain(only.value_shape.iter().copied())
            .collect();
        let own = {
            let own = Tensor::f_from_slice(&fresh()?)?.f_reshape(&shape[..])?;
            gradients::undo_views(&own, &only.back)?.f_contiguous()?
        };
        let sums = allocated(sums, parameter);
        let added = ffi::read(&own, |own: &[i64]| {
            let fits = own.len() == sums.len();
            for (sum, units) in sums.iter_mut().zip(own) {
                *sum = sum.wrapping_add(*units);
            }
            fits
        });
        if added == Some(true) {
            Ok(())
        } else {
            Err(EngineError::SumOutOfBound)
        }
    }
}

/// The precision of a plan on a device, with the clip rule and the L2 sensitivity that belong to it.
fn rounding(
    plan: &Plan,
    settings: &Settings,
    grid: &Grid,
    device: Device,
) -> Result<(Precision, ClipRule, f64)> {
    let products = if device == Device::Cpu {
        Products::Own
    } else {
        Products::Libtorch
    };
    let precision = precision(plan, products)?;
    let rule = precision.clip_rule(settings, plan.parameters.len())?;
    let sensitivity = match settings.noise_mode {
        NoiseMode::Standard => charged_sensitivity(&precision.sum_error(plan, settings, grid.width())),
        // Counted in integers: `gradients::exact`.
        NoiseMode::Hardened => settings.max_grad_norm,
    };
    Ok((precision, rule, sensitivity))
}

/// The sums of a parameter, zeros where there were none yet.
fn allocated<'s>(sums: &'s mut Vec<i64>, parameter: &ParameterPlan) -> &'s mut [i64] {
    if sums.is_empty() {
        *sums = vec![0; elements(&parameter.shape)];
    }
    sums
}

/// The factor that keeps a gradient whose norm² came out as `again` to what one of `first` would add.
fn hold(factor: f64, first: f64, again: f64) -> f64 {
    if again <= first {
        factor
    } else if again.is_finite() {
        factor * (first / again).sqrt()
    } else {
        0.0
    }
}

/// `[B, T, width]` as `[B·T, width]`.
fn flat(rows: &Tensor) -> Result<Tensor> {
    Ok(rows.f_flatten(0, 1)?)
}
