//! The durable side of a run: its ledger entries, checkpoints and released values, each durable before anyone sees it.

use super::LiveRun;
use super::supervise::{BoxError, Checkpoint, Frames, Recorder};
use crate::log::{Event, Hex};
use crate::state::Server;
use bastionai_ledger::StartedRun;
use bastionai_vault::ReleasedValue;

/// Writes a run's entries.
pub(crate) struct Record<'a> {
    server: &'a Server,
    live: &'a LiveRun,
    /// Opened before the start, handed to the trainer after it.
    frames: Option<Frames>,
    started: Option<StartedRun>,
    released: u64,
}

/// A run that is not where its ledger says: a fault of ours.
#[derive(Debug, thiserror::Error)]
#[error("the run is not {0} in the ledger")]
struct NotInState(&'static str);

impl<'a> Record<'a> {
    /// `released`: steps released before, from whose state the trainer goes on.
    pub(crate) fn new(server: &'a Server, live: &'a LiveRun, frames: Frames, released: u64) -> Self {
        Self {
            server,
            live,
            frames: Some(frames),
            started: None,
            released,
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
        self.server
            .vault
            .advance_run(started, state, &values, self.server.now_unix_ms())?;
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
