//! Where a step's time and memory go, for benches: a clock that is off unless a program asks for it. The trainer never does, so
//! no time of a phase, which may depend on records (rule G6), is anywhere but in a bench.

use crate::ffi;
use std::cell::RefCell;
use std::time::{Duration, Instant};

/// What passed since the last mark belongs to the phase that ends.
struct Clock {
    last: Instant,
    phases: Vec<(&'static str, Duration)>,
}

/// What this process held in a phase, in KiB, as the system counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// At most, since the phase before.
    pub peak_kib: u64,
    /// At its end, with what was freed and kept for later.
    pub end_kib: u64,
    /// In use at its end; of a phase with several ends, the most.
    pub used_kib: u64,
}

thread_local! {
    static CLOCK: RefCell<Option<Clock>> = const { RefCell::new(None) };
    static MEMORY: RefCell<Option<Vec<(&'static str, Held)>>> = const { RefCell::new(None) };
}

/// Watches this process's memory from here on. The system then forgets its peak at the end of every phase.
pub fn start_memory() {
    forget_peak();
    MEMORY.with_borrow_mut(|slot| *slot = Some(Vec::new()));
}

/// Stops it; the phases in the order in which they first ended, each with the most it ever held.
pub fn stop_memory() -> Vec<(&'static str, Held)> {
    MEMORY.with_borrow_mut(Option::take).unwrap_or_default()
}

fn end_memory(phase: &'static str) {
    MEMORY.with_borrow_mut(|slot| {
        let Some(phases) = slot else { return };
        let held = Held {
            peak_kib: status_kib("VmHWM:"),
            end_kib: status_kib("VmRSS:"),
            used_kib: ffi::allocated_bytes() / 1024,
        };
        forget_peak();
        match phases.iter_mut().find(|(name, _)| *name == phase) {
            Some((_, old)) => {
                old.peak_kib = old.peak_kib.max(held.peak_kib);
                (old.end_kib, old.used_kib) = (held.end_kib, held.used_kib.max(old.used_kib));
            }
            None => phases.push((phase, held)),
        }
    });
}

/// Zero where the system has no such number.
fn status_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// 5 is "reset the peak" (proc(5), clear_refs). Where it cannot be written a phase shows the peak of all before it.
fn forget_peak() {
    drop(std::fs::write("/proc/self/clear_refs", "5"));
}

/// Starts the clock of this thread.
pub fn start() {
    let clock = Clock {
        last: Instant::now(),
        phases: Vec::new(),
    };
    CLOCK.with_borrow_mut(|slot| *slot = Some(clock));
}

/// A phase ends here; without a clock nothing happens. Phases of one name are added up.
pub fn end(phase: &'static str) {
    end_memory(phase);
    CLOCK.with_borrow_mut(|slot| {
        let Some(clock) = slot else { return };
        let now = Instant::now();
        let taken = now - std::mem::replace(&mut clock.last, now);
        match clock.phases.iter_mut().find(|(name, _)| *name == phase) {
            Some((_, sum)) => *sum += taken,
            None => clock.phases.push((phase, taken)),
        }
    });
}

/// Stops the clock; the phases in the order in which they first ended.
pub fn stop() -> Vec<(&'static str, Duration)> {
    let clock = CLOCK.with_borrow_mut(Option::take);
    clock.map(|clock| clock.phases).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_of_one_name_are_added_up_and_a_stopped_clock_counts_nothing() {
        start();
        for name in ["norms", "sums", "norms"] {
            std::thread::sleep(Duration::from_millis(2));
            end(name);
        }
        let phases = stop();
        assert_eq!(
            phases.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            ["norms", "sums"]
        );
        assert!(phases[0].1 >= Duration::from_millis(4));
        end("norms");
        assert!(stop().is_empty());
    }
}
