//! Runs from reservation to their last ledger entry: a fair bounded queue, a pool of trainers, watchers.
//!
//! [`Runs::launch`] → ([`queue`]) → [`execute`](mod@execute) → [`supervise`] (one trainer) with [`record`] (its
//! durable side). What a run is and costs is in the ledger, what it needs in the vault ([`order`]); this module only
//! holds what is alive. A run pauses when an owner suspends it or the server drains, and goes on from its last
//! checkpoint when that is over ([`resume`], the next boot).

mod death;
mod execute;
mod order;
mod queue;
mod record;
pub(crate) mod resume;
mod stop;
mod supervise;
#[cfg(test)]
mod traces;

pub(crate) use execute::{Finish, settle};
pub(crate) use order::RunOrder;

use crate::config::Limits;
use crate::errors::{Failure, Reason};
use crate::places::{NoPlace, Place, Places};
use crate::state::Server;
use bastionai_ledger::{Principal, RunId};
use execute::End;
use queue::FairQueue;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use stop::{Stop, StopWhy};
use tokio::sync::watch;

/// What is alive.
pub(crate) struct Runs {
    state: Mutex<State>,
    /// Queued, running and paused together.
    places: Places,
    /// Trainers at once.
    trainers: u32,
    changing: Mutex<()>,
    /// How many run, for the drain.
    running: watch::Sender<u32>,
}

#[derive(Default)]
struct State {
    open: HashMap<RunId, OpenRun>,
    queue: FairQueue,
    running: u32,
    draining: bool,
}

/// A run that has not ended.
struct OpenRun {
    live: Arc<LiveRun>,
    phase: Phase,
    /// A paused run keeps its place: what it stores stays stored.
    _place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waits for a trainer.
    Queued,
    /// Has one.
    Running,
    /// Suspended, or stopped by the drain.
    Paused,
}

/// What the threads of an open run share.
pub(crate) struct LiveRun {
    pub(crate) id: RunId,
    scientist: Principal,
    pub(crate) stop: Stop,
    changed: watch::Sender<()>,
}

impl LiveRun {
    /// Tells watchers to look again: something became durable.
    pub(crate) fn announce(&self) {
        self.changed.send_replace(());
    }
}

/// What a cancellation found.
pub(crate) enum Cancelling {
    /// It runs: its trainer is being stopped.
    Stopping,
    /// It does not run (any more): whoever asked ends it in the ledger, if it is open there.
    Idle,
}

impl Runs {
    pub(crate) fn new(limits: &Limits) -> Self {
        let total = limits.concurrent_runs.saturating_add(limits.queued_runs);
        Self {
            state: Mutex::default(),
            places: Places::new(total, limits.runs_per_principal),
            trainers: limits.concurrent_runs,
            changing: Mutex::default(),
            running: watch::Sender::new(0),
        }
    }

    /// A place in the queue, held until the run ends.
    pub(crate) fn place(&self, scientist: Principal) -> Result<Place, Failure> {
        self.places.take(scientist).map_err(|none| {
            let message = match none {
                NoPlace::Full => "the queue of runs is full; nothing was charged; try again later",
                NoPlace::Yours => {
                    "you have as many runs queued, running and suspended as one may; nothing was charged; let one end first, or cancel it"
                }
            };
            Failure::new(Reason::QueueFull, message)
        })
    }

    /// One start, suspension, resumption or cancellation at a time: the same quote started twice at once is one run, and
    /// nobody ends a run that another just put into the queue.
    pub(crate) fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a reserved run. From here on it ends in a ledger entry, whoever watches, in this boot or a later one.
    pub(crate) fn launch(&self, server: &Arc<Server>, run: RunId, scientist: Principal, place: Place) {
        self.admit(run, scientist, Phase::Queued, place);
        self.dispatch(server);
    }

    /// Takes up a run that an earlier boot admitted, which needs no free place; a suspended one waits paused.
    fn take_up(&self, server: &Arc<Server>, run: RunId, scientist: Principal, suspended: bool) {
        let phase = if suspended { Phase::Paused } else { Phase::Queued };
        self.admit(run, scientist, phase, self.places.add(scientist));
        self.dispatch(server);
    }

    fn admit(&self, run: RunId, scientist: Principal, phase: Phase, place: Place) {
        let mut state = self.state();
        if phase == Phase::Queued {
            state.queue.push(scientist, run);
        }
        let live = Arc::new(LiveRun {
            id: run,
            scientist,
            stop: Stop::default(),
            changed: watch::Sender::new(()),
        });
        let open = OpenRun {
            live,
            phase,
            _place: place,
        };
        state.open.insert(run, open);
    }

    /// Gives free trainers to the runs whose turn it is.
    fn dispatch(&self, server: &Arc<Server>) {
        while let Some(live) = self.next() {
            let server = Arc::clone(server);
            tokio::spawn(async move {
                let end = {
                    let (server, live) = (Arc::clone(&server), Arc::clone(&live));
                    tokio::task::spawn_blocking(move || execute::execute(&server, &live)).await
                };
                let end = end.unwrap_or_else(|_| {
                    execute::after_panic(&server, &live);
                    End::Ended
                });
                server.runs.finish(&server, &live, end);
            });
        }
    }

    fn next(&self) -> Option<Arc<LiveRun>> {
        let mut state = self.state();
        if state.draining || state.running >= self.trainers {
            return None;
        }
        let run = state.queue.pop()?;
        state.running += 1;
        self.running.send_replace(state.running);
        // Those behind it have moved up.
        let waiting = state.open.values().filter(|open| open.phase == Phase::Queued);
        waiting.for_each(|open| open.live.announce());
        let open = state.open.get_mut(&run).expect("what is queued is open");
        open.phase = Phase::Running;
        Some(Arc::clone(&open.live))
    }

    fn finish(&self, server: &Arc<Server>, live: &LiveRun, end: End) {
        {
            let mut state = self.state();
            let ended = match (end, state.open.get_mut(&live.id)) {
                (End::Paused, Some(open)) => {
                    open.phase = Phase::Paused;
                    None
                }
                _ => state.open.remove(&live.id),
            };
            state.running -= 1;
            self.running.send_replace(state.running);
            drop(state);
            // Its place is free before anyone hears of its end.
            drop(ended);
        }
        live.announce();
        self.dispatch(server);
    }

    /// Notices of an open run; `None` once it has ended.
    pub(crate) fn watch(&self, run: &RunId) -> Option<watch::Receiver<()>> {
        self.state()
            .open
            .get(run)
            .map(|open| open.live.changed.subscribe())
    }

    /// Runs that are served before this one is, itself included; `None` unless it is queued.
    pub(crate) fn position(&self, run: &RunId) -> Option<u32> {
        self.state().queue.position(run)
    }

    /// Whether a trainer works on it.
    pub(crate) fn is_running(&self, run: &RunId) -> bool {
        self.state()
            .open
            .get(run)
            .is_some_and(|open| open.phase == Phase::Running)
    }

    /// Whether a run is open, but will not go on in this boot.
    pub(crate) fn is_left_to_the_next_boot(&self, run: &RunId) -> bool {
        let state = self.state();
        state.draining
            && state
                .open
                .get(run)
                .is_some_and(|open| open.phase != Phase::Running)
    }

    /// Stops a run that its owner has suspended in the ledger.
    pub(crate) fn suspend(&self, run: &RunId) {
        let mut state = self.state();
        state.queue.remove(run);
        if let Some(open) = state.open.get_mut(run) {
            match open.phase {
                Phase::Running => open.live.stop.stop(StopWhy::Suspend),
                Phase::Queued | Phase::Paused => open.phase = Phase::Paused,
            }
            open.live.announce();
        }
    }

    /// Puts a run that is not suspended any more back into the queue.
    pub(crate) fn unsuspend(&self, server: &Arc<Server>, run: &RunId) {
        {
            let mut state = self.state();
            let Some(open) = state.open.get_mut(run).filter(|open| open.phase == Phase::Paused) else {
                return;
            };
            // Nothing of the reason is left.
            open.live.stop.reset();
            open.phase = Phase::Queued;
            let scientist = open.live.scientist;
            state.queue.push(scientist, *run);
        }
        self.dispatch(server);
    }

    /// Stops a run for good. Under [`Runs::changing`]: between this and the entry nobody queues it again.
    pub(crate) fn cancel(&self, run: &RunId) -> Cancelling {
        let mut state = self.state();
        state.queue.remove(run);
        match state.open.get_mut(run) {
            Some(open) if open.phase == Phase::Running => {
                open.live.stop.stop(StopWhy::Cancel);
                Cancelling::Stopping
            }
            Some(open) => {
                open.phase = Phase::Paused;
                Cancelling::Idle
            }
            None => Cancelling::Idle,
        }
    }

    /// Forgets a run that has ended in the ledger without a trainer.
    pub(crate) fn forget(&self, run: &RunId) {
        let ended = self.state().open.remove(run);
        ended.into_iter().for_each(|open| open.live.announce());
    }

    /// Asks running trainers for a last checkpoint and waits until they have stopped. What is queued stays queued: the
    /// next boot goes on with all of it.
    pub(crate) async fn drain(&self) {
        {
            let mut state = self.state();
            state.draining = true;
            for open in state.open.values() {
                if open.phase == Phase::Running {
                    open.live.stop.stop(StopWhy::Drain);
                }
                open.live.announce();
            }
        }
        let mut running = self.running.subscribe();
        // The sender lives as long as `self`, so this cannot fail.
        let _ = running.wait_for(|running| *running == 0).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
