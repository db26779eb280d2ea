//! Parameters and constants: from frames to tensors, back to bytes, and their digests (rule T8).

use crate::device::{Device, beside, to_host};
use crate::error::{EngineError, Result};
use crate::ffi;
use crate::program::kind;
use crate::taps::Plan;
use bastionai_graph::dtype::DType;
use bastionai_graph::typed::TypedGraph;
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

/// All tensors of a graph that are not inputs, in graph order.
pub(crate) struct State {
    /// Where the run computes, as the constants.
    pub(crate) parameters: Vec<Tensor>,
    pub(crate) constants: Vec<Tensor>,
    /// Of a run on a device: the parameters in host memory, which the optimizer updates.
    masters: Option<Vec<Tensor>>,
}

impl State {
    /// From contiguous little-endian bytes, each tensor's taken and let go before the next is.
    pub(crate) fn new<B: AsRef<[u8]>>(
        graph: &TypedGraph,
        parameters: impl ExactSizeIterator<Item = B>,
        constants: impl ExactSizeIterator<Item = B>,
    ) -> Result<Self> {
        let described = |names: &[String]| names.first().cloned().unwrap_or_default();
        let of_parameters = graph
            .parameters()
            .iter()
            .map(|each| (described(&each.names), each.dtype, &each.shape[..]));
        let of_constants = graph
            .constants()
            .iter()
            .map(|each| (each.name.clone(), each.dtype, &each.shape[..]));
        Ok(Self {
            parameters: tensors("parameter", of_parameters, parameters)?,
            constants: tensors("constant", of_constants, constants)?,
            masters: None,
        })
    }

    /// Moves it to a device; the parameters stay in host memory besides.
    pub(crate) fn place(&mut self, device: Device) -> Result<()> {
        if device.is_cpu() {
            return Ok(());
        }
        let placed = |tensors: &[Tensor]| tensors.iter().map(|each| device.place(each)).collect();
        let (parameters, constants): (Result<Vec<_>>, Result<Vec<_>>) =
            (placed(&self.parameters), placed(&self.constants));
        self.constants = constants?;
        self.masters = Some(std::mem::replace(&mut self.parameters, parameters?));
        Ok(())
    }

    /// The parameters in host memory.
    pub(crate) fn on_host(&self) -> &[Tensor] {
        self.masters.as_deref().unwrap_or(&self.parameters)
    }

    /// The same, to be written. On a device [`Self::renew`] makes it see what was written.
    pub(crate) fn on_host_mut(&mut self) -> &mut [Tensor] {
        self.masters.as_deref_mut().unwrap_or(&mut self.parameters)
    }

    /// Copies a parameter to the device again, in tensors of their own: whoever holds the old one keeps its values.
    pub(crate) fn renew(&mut self, parameter: usize) -> Result<()> {
        if let Some(masters) = &self.masters {
            self.parameters[parameter] = beside(&masters[parameter], &self.parameters[parameter])?;
        }
        Ok(())
    }

    /// At least one parameter is trained, and those that are are finite floats.
    pub(crate) fn check_trainable(&self, plan: &Plan) -> Result<()> {
        if plan.parameters.is_empty() {
            return Err(EngineError::Job(
                "no parameter is trainable: set requires_grad on at least one".into(),
            ));
        }
        for each in &plan.parameters {
            let tensor = &self.on_host()[each.parameter];
            if !matches!(tensor.kind(), Kind::Float | Kind::Double) {
                return Err(EngineError::Job(
                    "a trainable parameter must be float32 or float64".into(),
                ));
            }
            if !bool::try_from(tensor.f_isfinite()?.f_all()?)? {
                return Err(EngineError::Job(
                    "a trainable parameter is not finite: initialise it again".into(),
                ));
            }
        }
        Ok(())
    }

    /// SHA-256 over everything.
    pub(crate) fn digest(&self) -> Result<[u8; 32]> {
        digest(self.parameters.iter().chain(&self.constants))
    }

    /// SHA-256 over what must not change in a whole run.
    pub(crate) fn frozen_digest(&self, graph: &TypedGraph) -> Result<[u8; 32]> {
        let frozen = self
            .parameters
            .iter()
            .zip(graph.parameters())
            .filter(|(_, each)| !each.trainable);
        digest(frozen.map(|(tensor, _)| tensor).chain(&self.constants))
    }
}

fn digest<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Result<[u8; 32]> {
    let mut digest = Sha256::new();
    for tensor in tensors {
        with_bytes(tensor, |bytes| digest.update(bytes))?;
    }
    Ok(digest.finalize().into())
}

/// Number of elements.
pub(crate) fn elements(shape: &[i64]) -> usize {
    shape.iter().product::<i64>() as usize
}

/// Bytes of a tensor, row-major; where they lie, if that is how they lie in host memory.
pub(crate) fn with_bytes<R>(tensor: &Tensor, body: impl FnOnce(&[u8]) -> R) -> Result<R> {
    let tensor = to_host(&tensor.f_detach()?)?.f_contiguous()?;
    ffi::read_bytes(&tensor, body)
        .ok_or_else(|| EngineError::Job("a parameter or constant is not a dense tensor".into()))
}

fn tensors<'a, B: AsRef<[u8]>>(
    what: &str,
    described: impl ExactSizeIterator<Item = (String, DType, &'a [u64])>,
    bytes: impl ExactSizeIterator<Item = B>,
) -> Result<Vec<Tensor>> {
    if described.len() != bytes.len() {
        return Err(EngineError::Job(format!(
            "{} {what} frames, but the graph has {}",
            bytes.len(),
            described.len()
        )));
    }
    described
        .zip(bytes)
        .map(|((name, dtype, shape), bytes)| {
            let bytes = bytes.as_ref();
            let shape: Vec<i64> = shape.iter().map(|&extent| extent as i64).collect();
            if bytes.len() != elements(&shape) * dtype.size_bytes() {
                return Err(EngineError::Job(format!(
                    "{what} {name} has {} bytes, not its shape's",
                    bytes.len()
                )));
            }
            Ok(Tensor::f_from_data_size(bytes, &shape, kind(dtype))?)
        })
        .collect()
}
