//! Runs that wait for a trainer, served round-robin by principal: whoever queues many waits for their own.

use bastionai_ledger::{Principal, RunId};
use std::collections::VecDeque;

/// One lane for each principal that waits; the front lane is served next.
#[derive(Debug, Default)]
pub(crate) struct FairQueue {
    lanes: VecDeque<(Principal, VecDeque<RunId>)>,
}

impl FairQueue {
    /// Puts a run behind its principal's others.
    pub(crate) fn push(&mut self, principal: Principal, run: RunId) {
        match self.lanes.iter_mut().find(|(holder, _)| *holder == principal) {
            Some((_, lane)) => lane.push_back(run),
            None => self.lanes.push_back((principal, VecDeque::from([run]))),
        }
    }

    /// The next run; its principal goes to the back.
    pub(crate) fn pop(&mut self) -> Option<RunId> {
        let (principal, mut lane) = self.lanes.pop_front()?;
        let run = lane.pop_front();
        if !lane.is_empty() {
            self.lanes.push_back((principal, lane));
        }
        run
    }

    /// Takes a run out; false when it does not wait.
    pub(crate) fn remove(&mut self, run: &RunId) -> bool {
        let Some((lane, place)) = self.find(run) else {
            return false;
        };
        self.lanes[lane].1.remove(place);
        self.lanes.retain(|(_, lane)| !lane.is_empty());
        true
    }

    /// How many runs, this one included, are served before it is: 1 is next.
    pub(crate) fn position(&self, run: &RunId) -> Option<u32> {
        let (own, round) = self.find(run)?;
        let before = |(lane, (_, runs)): (usize, &(Principal, VecDeque<RunId>))| {
            // Every lane is served once a round; those in front of ours once more.
            runs.len().min(round) + usize::from(lane < own && runs.len() > round)
        };
        let before: usize = self.lanes.iter().enumerate().map(before).sum();
        u32::try_from(before + 1).ok()
    }

    fn find(&self, run: &RunId) -> Option<(usize, usize)> {
        let lanes = self.lanes.iter().enumerate();
        lanes
            .filter_map(|(lane, (_, runs))| Some((lane, runs.iter().position(|waiting| waiting == run)?)))
            .next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(n: u8) -> Principal {
        Principal::from_bytes([n; 32])
    }

    fn run(n: u8) -> RunId {
        RunId::from_bytes([n; 16])
    }

    fn order(mut queue: FairQueue) -> Vec<u8> {
        std::iter::from_fn(|| queue.pop())
            .map(|run| run.as_bytes()[0])
            .collect()
    }

    #[test]
    fn a_principal_with_one_run_does_not_wait_for_all_of_anothers() {
        let mut queue = FairQueue::default();
        [10, 11, 12, 13]
            .iter()
            .for_each(|&n| queue.push(principal(1), run(n)));
        queue.push(principal(2), run(20));
        [30, 31].iter().for_each(|&n| queue.push(principal(3), run(n)));
        assert_eq!(order(queue), [10, 20, 30, 11, 31, 12, 13]);
    }

    #[test]
    fn who_was_served_goes_behind_who_came_meanwhile() {
        let mut queue = FairQueue::default();
        [10, 11].iter().for_each(|&n| queue.push(principal(1), run(n)));
        assert_eq!(queue.pop(), Some(run(10)));
        queue.push(principal(2), run(20));
        assert_eq!(queue.pop(), Some(run(11)), "it was there first");
        queue.push(principal(1), run(12));
        assert_eq!(order(queue), [20, 12]);
    }

    #[test]
    fn a_run_that_is_taken_out_is_not_served() {
        let mut queue = FairQueue::default();
        queue.push(principal(1), run(10));
        queue.push(principal(2), run(20));
        assert!(queue.remove(&run(10)));
        assert!(!queue.remove(&run(10)));
        assert_eq!(queue.position(&run(10)), None);
        assert_eq!(order(queue), [20]);
    }

    #[test]
    fn the_position_is_when_a_run_is_served() {
        for seed in 0..200u64 {
            // xorshift64: any mixture of lanes will do.
            let mut random = seed * 0x9e37_79b9 + 1;
            let mut queue = FairQueue::default();
            let count = (seed % 40) as u8;
            for n in 0..count {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                queue.push(principal((random % 5) as u8), run(n));
            }
            for _ in 0..seed % 7 {
                queue.pop();
            }
            let positions: Vec<_> = (0..count).map(|n| queue.position(&run(n))).collect();
            for (place, n) in (1u32..).zip(order(queue)) {
                assert_eq!(positions[n as usize], Some(place), "seed {seed}");
            }
        }
    }
}
