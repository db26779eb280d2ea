//! Runs from reservation to their last ledger entry: a bounded queue, a pool of trainers, watchers.
//!
//! [`Runs::launch`] → (queue) → [`execute`](mod@execute) → [`supervise`] (one trainer) with [`record`] (its
//! durable side). What a run is and costs is in the ledger; this module only holds what is alive.

mod death;
mod execute;
mod record;
mod stop;
mod supervise;

pub(crate) use execute::is_queued;
pub(crate) use stop::StopWhy;

use crate::config::Limits;
use crate::errors::{Failure, Reason};
use crate::models::Model;
use crate::places::{NoPlace, Place, Places};
use crate::priced::Priced;
use crate::state::Server;
use bastionai_ledger::{Principal, RunId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stop::Stop;
use tokio::sync::{Notify, Semaphore, watch};

/// What is alive.
pub(crate) struct Runs {
    live: Mutex<HashMap<RunId, Arc<LiveRun>>>,
    /// Queued and running together.
    places: Places,
    /// Trainers at once.
    slots: Arc<Semaphore>,
    starting: Mutex<()>,
    count: watch::Sender<usize>,
}

/// A run that has not ended.
pub(crate) struct LiveRun {
    pub(crate) id: RunId,
    pub(crate) stop: Stop,
    stopped: Notify,
    changed: watch::Sender<()>,
}

impl LiveRun {
    /// Tells watchers to look again: something became durable.
    pub(crate) fn announce(&self) {
        self.changed.send_replace(());
    }

    fn stop(&self, why: StopWhy) {
        self.stop.stop(why);
        self.stopped.notify_one();
    }
}

impl Runs {
    pub(crate) fn new(limits: &Limits) -> Self {
        let total = limits.concurrent_runs.saturating_add(limits.queued_runs);
        Self {
            live: Mutex::default(),
            places: Places::new(total, limits.runs_per_principal),
            slots: Arc::new(Semaphore::new(limits.concurrent_runs as usize)),
            starting: Mutex::default(),
            count: watch::Sender::new(0),
        }
    }

    /// A place in the queue, held until the run ends.
    pub(crate) fn place(&self, scientist: Principal) -> Result<Place, Failure> {
        self.places.take(scientist).map_err(|none| {
            let message = match none {
                NoPlace::Full => "the queue of runs is full; nothing was charged; try again later",
                NoPlace::Yours => {
                    "you have as many runs queued and running as one may; nothing was charged; let one end first"
                }
            };
            Failure::new(Reason::QueueFull, message)
        })
    }

    /// One start at a time, so that the same quote started twice at once is one run.
    pub(crate) fn starting(&self) -> MutexGuard<'_, ()> {
        self.starting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a reserved run. From here on it ends in a ledger entry, whoever watches.
    pub(crate) fn launch(
        &self,
        server: Arc<Server>,
        run: RunId,
        priced: Arc<Priced>,
        model: Arc<Model>,
        place: Place,
    ) {
        let live = Arc::new(LiveRun {
            id: run,
            stop: Stop::default(),
            stopped: Notify::new(),
            changed: watch::Sender::new(()),
        });
        self.with_live(|runs| runs.insert(run, Arc::clone(&live)));
        let slots = Arc::clone(&self.slots);
        tokio::spawn(async move {
            let slot = tokio::select! {
                biased;
                () = live.stopped.notified() => None,
                slot = slots.acquire_owned() => slot.ok(),
            };
            if slot.is_none() {
                // The pool is closed (or this was cancelled already, which then stays the reason).
                live.stop(StopWhy::Drain);
            }
            let ended = {
                let (server, live) = (Arc::clone(&server), Arc::clone(&live));
                let work = move || execute::execute(&server, &live, &priced, &model);
                tokio::task::spawn_blocking(work).await
            };
            if ended.is_err() {
                execute::after_panic(&server, &live);
            }
            server.runs.with_live(|runs| runs.remove(&run));
            live.announce();
            drop((slot, place));
        });
    }

    /// Notices of a live run; `None` once it has ended.
    pub(crate) fn watch(&self, run: &RunId) -> Option<watch::Receiver<()>> {
        self.with_live(|runs| runs.get(run).map(|live| live.changed.subscribe()))
    }

    /// Stops a run; false when it is not alive.
    pub(crate) fn stop(&self, run: &RunId, why: StopWhy) -> bool {
        let live = self.with_live(|runs| runs.get(run).cloned());
        live.inspect(|live| live.stop(why)).is_some()
    }

    /// Lets running runs finish for `patience`, then stops them; returns when none is alive. Queued runs are
    /// stopped at once: they have cost nothing yet.
    pub(crate) async fn drain(&self, queued: impl Fn(&RunId) -> bool, patience: Duration) {
        self.slots.close();
        self.cancel_all(queued);
        if tokio::time::timeout(patience, self.idle()).await.is_err() {
            self.cancel_all(|_| true);
            self.idle().await;
        }
    }

    async fn idle(&self) {
        let mut count = self.count.subscribe();
        // The sender lives as long as `self`, so this cannot fail.
        let _ = count.wait_for(|count| *count == 0).await;
    }

    fn cancel_all(&self, which: impl Fn(&RunId) -> bool) {
        let runs: Vec<_> = self.with_live(|runs| runs.values().cloned().collect());
        runs.iter()
            .filter(|live| which(&live.id))
            .for_each(|live| live.stop(StopWhy::Drain));
    }

    fn with_live<T>(&self, change: impl FnOnce(&mut HashMap<RunId, Arc<LiveRun>>) -> T) -> T {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut live);
        let count = live.len();
        drop(live);
        self.count
            .send_if_modified(|known| std::mem::replace(known, count) != count);
        result
    }
}
