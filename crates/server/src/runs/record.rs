//! The durable side of a run: its ledger entries, checkpoints and released values, each durable before anyone sees it.

use super::LiveRun;
use super::supervise::{BoxError, Checkpoint, Frames, Recorder};
use crate::log::{Event, Hex};
use crate::state::Server;
use bastionai_ledger::{StartedRun, WeightTensor};
use bastionai_vault::{KeptSet, ReleasedValue, Weights};
use zeroize::Zeroizing;

/// What a run keeps of its checkpoints, to be released with it.
pub(crate) struct Keeping {
    /// Steps whose weights are kept, rising.
    pub(crate) steps: Vec<u64>,
    /// Whether the last tensors of a checkpoint are the average of the iterates; kept at these steps and at the last.
    pub(crate) average: bool,
    pub(crate) last_step: u64,
    /// One set of weights.
    pub(crate) weights: Vec<WeightTensor>,
}

impl Keeping {
    /// The sets to keep of a checkpoint, whose tensors were checked against the run's.
    fn sets(&self, checkpoint: &Checkpoint) -> Vec<KeptSet> {
        let (step, state, count) = (checkpoint.step, &checkpoint.state, self.weights.len());
        let set = |ema: bool, tensors: &[Zeroizing<Vec<u8>>]| KeptSet {
            step,
            ema,
            weights: Weights {
                tensors: self.weights.clone(),
                data: Zeroizing::new(
                    tensors
                        .iter()
                        .map(|bytes| &bytes[..])
                        .collect::<Vec<_>>()
                        .concat(),
                ),
            },
        };
        let kept = self.steps.binary_search(&step).is_ok();
        let iterate = kept.then(|| set(false, &state[..count]));
        let averaged = self.average && (kept || step == self.last_step);
        let average = averaged.then(|| set(true, &state[state.len() - count..]));
        iterate.into_iter().chain(average).collect()
    }
}

/// Writes a run's entries.
pub(crate) struct Record<'a> {
    server: &'a Server,
    live: &'a LiveRun,
    /// Opened before the start, handed to the trainer after it.
    frames: Option<Frames>,
    started: Option<StartedRun>,
    released: u64,
    keeping: Keeping,
}

/// A run that is not where its ledger says: a fault of ours.
#[derive(Debug, thiserror::Error)]
#[error("the run is not {0} in the ledger")]
struct NotInState(&'static str);

impl<'a> Record<'a> {
    /// `released`: steps released before, from whose state the trainer goes on.
    pub(crate) fn new(
        server: &'a Server,
        live: &'a LiveRun,
        frames: Frames,
        released: u64,
        keeping: Keeping,
    ) -> Self {
        Self {
            server,
            live,
            frames: Some(frames),
            started: None,
            released,
            keeping,
        }
    }
}

impl Recorder for Record<'_> {
    fn start(&mut self) -> Result<Frames, BoxError> {
        let (reservation, started) = self
            .server
            .vault
            .read(|ledger| (ledger.reservation(&self.live.id), ledger.started(&self.live.id)));
        let run = Hex(self.live.id.as_bytes());
        self.started = Some(match started {
            Some(started) => {
                Event::RunResumed {
                    run,
                    step: self.released,
                }
                .emit();
                started
            }
            None => {
                let reservation = reservation.ok_or(NotInState("reserved"))?;
                let started = self
                    .server
                    .vault
                    .start_run(reservation, self.server.now_unix_ms())?;
                Event::RunStarted { run }.emit();
                started
            }
        });
        self.live.announce();
        Ok(self.frames.take().ok_or(NotInState("about to start"))?)
    }

    fn release(&mut self, checkpoint: &Checkpoint) -> Result<(), BoxError> {
        let started = self.started.as_ref().ok_or(NotInState("started"))?;
        let step = checkpoint.step;
        let steps = self.released + 1..=step;
        let values = steps
            .zip(&checkpoint.losses)
            .map(|(step, &noisy_loss)| ReleasedValue { step, noisy_loss });
        let values: Vec<_> = values.collect();
        let parts: Vec<&[u8]> = checkpoint.state.iter().map(|tensor| &tensor[..]).collect();
        let state = bastionai_vault::Checkpoint { step, parts: &parts };
        self.server.vault.advance_run_keeping(
            started,
            state,
            &values,
            &self.keeping.sets(checkpoint),
            self.server.now_unix_ms(),
        )?;
        self.released = step;
        Event::RunAdvanced {
            run: Hex(self.live.id.as_bytes()),
            step,
        }
        .emit();
        self.live.announce();
        Ok(())
    }
}
