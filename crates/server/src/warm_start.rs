//! Warm start: initial values from weights that the server holds already, those of another archive of the same
//! scientist or of an earlier run whose weights the scientist may receive. Such weights were paid for by their run,
//! so that starting from them is post-processing and costs nothing more.

use crate::errors::{Failure, Reason};
use crate::governance;
use crate::state::Server;
use crate::terms::{read_archive, tensors};
use bastionai_graph::archive::Archive;
use bastionai_graph::typed::{Parameter, TypedGraph};
use bastionai_ledger::{Digest32, Principal, RunId, WeightTensor};
use bastionai_vault::{Weights, WeightsAt};
use bastionai_wire::v1;
use bastionai_wire::v1::weights_source::Source;

/// Where initial values come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WeightsSource {
    /// The parameters of an uploaded archive.
    Model(Digest32),
    /// The weights that a run trained.
    Run {
        run: RunId,
        /// A kept step; 0: the last.
        step: u64,
        /// The average of the iterates instead.
        ema: bool,
    },
}

impl WeightsSource {
    /// Reads a source from the wire.
    pub(crate) fn parse(wire: &v1::WeightsSource) -> Result<Self, Failure> {
        let invalid = |message: &str| Failure::new(Reason::RunSpecInvalid, message);
        match &wire.source {
            Some(Source::ModelId(id)) => {
                let id = Digest32::try_from(&id[..]);
                let id = id.map_err(|_| {
                    invalid("initial_weights: model_id must be the 32 bytes that UploadModel returned")
                });
                id.map(Self::Model)
            }
            Some(Source::Run(run)) => {
                let id = RunId::try_from(&run.run_id[..]);
                let id = id.map_err(|_| invalid("initial_weights: a run id has 16 bytes"))?;
                Ok(Self::Run {
                    run: id,
                    step: run.step,
                    ema: run.ema,
                })
            }
            None => Err(invalid(
                "initial_weights names no source: set model_id or run, or leave it out for the archive's own weights",
            )),
        }
    }

    pub(crate) fn to_wire(self) -> v1::WeightsSource {
        let source = match self {
            Self::Model(id) => Source::ModelId(id.as_bytes().to_vec()),
            Self::Run { run, step, ema } => Source::Run(v1::RunWeights {
                run_id: run.as_bytes().to_vec(),
                step,
                ema,
            }),
        };
        v1::WeightsSource { source: Some(source) }
    }

    /// The weights, if this scientist may have them. Nothing leaves the server: no release is entered.
    fn load(self, server: &Server, scientist: Principal) -> Result<Weights, Failure> {
        match self {
            Self::Model(id) => {
                let model = server.models.held(scientist, id.as_bytes())?;
                Ok(parameters(&read_archive(
                    &model.archive,
                    server.config.limits.model_bytes,
                )?))
            }
            Self::Run { run: id, step, ema } => {
                let at = WeightsAt { step, ema };
                let receipt = server.vault.read(|ledger| {
                    let run = governance::visible_run(ledger, id.as_bytes(), &scientist)?;
                    governance::may_fetch(ledger, run, &scientist)?;
                    governance::has_weights(run, at)?;
                    let not_yet = || Failure::new(Reason::NotReleasable, "the run is not committed");
                    ledger.budget_receipt(&id).ok_or_else(not_yet)
                })?;
                Ok(server.vault.entitled_weights_at(&receipt, at, scientist)?)
            }
        }
    }
}

/// The values that a run begins with: the graph's parameters, then its constants, in graph order.
pub(crate) fn initial_tensors(
    archive: &Archive,
    graph: &TypedGraph,
    initial: Option<&Weights>,
) -> Result<Vec<Vec<u8>>, Failure> {
    let mut tensors = tensors(archive, graph)?;
    if let Some(initial) = initial {
        replace(initial, graph, &mut tensors)?;
    }
    Ok(tensors)
}

/// The weights that a request names, if it names any. Only who may receive weights may evaluate them: a graph of scores
/// can be made to show its parameters in the histograms of a dataset that costs nothing.
pub(crate) fn load(
    server: &Server,
    source: Option<WeightsSource>,
    scientist: Principal,
) -> Result<Option<Weights>, Failure> {
    source.map(|source| source.load(server, scientist)).transpose()
}

/// Puts each tensor of `weights` in the place of the parameter of the same name; parameters that `weights` does not
/// name keep their values. `tensors` are the graph's parameters, then its constants, as bytes.
///
/// # Errors
/// Lists every tensor that has no place of its dtype and shape; nothing is changed then.
fn replace(weights: &Weights, graph: &TypedGraph, tensors: &mut [Vec<u8>]) -> Result<(), Failure> {
    let mut places = Vec::with_capacity(weights.tensors.len());
    let mut mismatches = Vec::new();
    for tensor in &weights.tensors {
        match place(tensor, graph.parameters()) {
            Ok(place) if places.contains(&place) => mismatches.push(format!(
                "`{}` shares its place with another tensor: they are tied in this model and not there",
                tensor.names[0]
            )),
            Ok(place) => places.push(place),
            Err(mismatch) => mismatches.push(mismatch),
        }
    }
    if !mismatches.is_empty() || places.is_empty() {
        return Err(not_matching(&mismatches, weights.tensors.len()));
    }
    let mut rest = &weights.data[..];
    for (tensor, place) in weights.tensors.iter().zip(places) {
        let (bytes, tail) = rest.split_at(tensor.size_bytes as usize);
        rest = tail;
        tensors[place] = bytes.to_vec();
    }
    Ok(())
}

/// The parameters of an archive.
fn parameters(archive: &Archive) -> Weights {
    let (mut tensors, mut data) = (Vec::new(), Vec::new());
    for (index, parameter) in archive.program().parameters().iter().enumerate() {
        let bytes = archive.parameter_bytes(index).unwrap_or_default();
        data.extend_from_slice(bytes);
        tensors.push(WeightTensor {
            names: parameter.names.clone(),
            dtype: parameter.dtype.torch_name().to_owned(),
            shape: parameter.shape.clone(),
            size_bytes: bytes.len() as u64,
        });
    }
    Weights {
        tensors,
        data: data.into(),
    }
}

/// Which parameter a tensor belongs to.
fn place(tensor: &WeightTensor, parameters: &[Parameter]) -> Result<usize, String> {
    let name = tensor.names.first().map_or("", String::as_str);
    let shares_a_name =
        |parameter: &Parameter| parameter.names.iter().any(|name| tensor.names.contains(name));
    let found = parameters.iter().position(shares_a_name);
    let place = found.ok_or_else(|| format!("`{name}` is no parameter of this model"))?;
    let parameter = &parameters[place];
    if (parameter.dtype.torch_name(), &parameter.shape) != (tensor.dtype.as_str(), &tensor.shape) {
        return Err(format!(
            "`{name}` is {}{:?} there and {}{:?} in this model",
            tensor.dtype,
            tensor.shape,
            parameter.dtype.torch_name(),
            parameter.shape
        ));
    }
    Ok(place)
}

fn not_matching(mismatches: &[String], tensors: usize) -> Failure {
    let shown = mismatches.iter().take(MOST_SHOWN).cloned().collect::<Vec<_>>();
    let more = mismatches.len().saturating_sub(MOST_SHOWN);
    let more = if more > 0 {
        format!("; and {more} more")
    } else {
        String::new()
    };
    let message = format!(
        "initial_weights do not fit: {} of {tensors} tensors have no place in this model: {}{more}. \
         Start from a model with the same names, shapes and dtypes",
        mismatches.len(),
        shown.join("; ")
    );
    Failure::new(Reason::WeightsMismatch, message)
}

/// Mismatches told in one message.
const MOST_SHOWN: usize = 20;
