//! Where a step's time goes, for benches: a clock that is off unless a program asks for it. The trainer never does, so
//! no time of a phase, which may depend on records (rule G6), is anywhere but in a bench.

use std::cell::RefCell;
use std::time::{Duration, Instant};

/// What passed since the last mark belongs to the phase that ends.
struct Clock {
    last: Instant,
    phases: Vec<(&'static str, Duration)>,
}

thread_local! {
    static CLOCK: RefCell<Option<Clock>> = const { RefCell::new(None) };
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
pub(crate) fn end(phase: &'static str) {
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
