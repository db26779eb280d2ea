//! Uniformly random orders under a secret key: which records of too large a sample are left out, and where in its batches
//! the others stand.
//!
//! Thing i of an order gets the i-th 128-bit word of the stream ChaCha20(order key, nonce = step ‖ lane) as its rank. The
//! words being independent and uniform (under the assumption that ChaCha20 is a PRF), all orders are equally likely but
//! for ties: with n things an event of probability below n²/2^129.

use zeroize::Zeroizing;

use crate::stream::{Purpose, STREAM_BYTES, SubKey};

/// Draws the orders of a run. The key is wiped on drop and never shown.
pub struct RandomOrder {
    key: SubKey,
}

impl RandomOrder {
    /// Orders of one run. `key` is fresh at every start of a trainer (soundness.md D1).
    pub fn new(key: [u8; 32]) -> Self {
        let key = Zeroizing::new(key);
        Self {
            key: SubKey::derive(&key, Purpose::Order),
        }
    }

    /// Where thing `thing` comes in the order of any set of things: lower ranks first. `None` from [`MOST_THINGS`] on.
    pub fn rank(&self, step: u64, lane: u32, thing: u64) -> Option<u128> {
        if thing >= MOST_THINGS {
            return None;
        }
        let mut rank = Zeroizing::new([0; RANK_BYTES]);
        let position = thing * RANK_BYTES as u64;
        self.key.stream(step, lane, position).fill(&mut rank[..]);
        Some(u128::from_le_bytes(*rank))
    }

    /// `0..count` in random order; `None` above [`MOST_THINGS`].
    ///
    /// A function of (key, step, lane, `count`); steps and lanes are independent.
    pub fn of(&self, step: u64, lane: u32, count: usize) -> Option<Vec<usize>> {
        if count as u64 > MOST_THINGS {
            return None;
        }
        let mut bytes = Zeroizing::new(vec![0; count * RANK_BYTES]);
        self.key.stream(step, lane, 0).fill(&mut bytes);
        let ranks = bytes.as_chunks::<RANK_BYTES>().0;
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_unstable_by_key(|&thing| (u128::from_le_bytes(ranks[thing]), thing));
        Some(order)
    }
}

/// Things that one stream can rank: 2^34 less some.
pub const MOST_THINGS: u64 = STREAM_BYTES / RANK_BYTES as u64;
const RANK_BYTES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_of_four_things_is_equally_likely() {
        let orders = RandomOrder::new([7; 32]);
        let mut counts = std::collections::BTreeMap::new();
        for step in 0..24_000 {
            *counts.entry(orders.of(step, 0, 4).unwrap()).or_insert(0_i32) += 1;
        }
        assert_eq!(counts.len(), 24);
        // 1000 each; 23 degrees of freedom, 5 standard deviations.
        let chi_squared: f64 = counts
            .values()
            .map(|&count| f64::from(count - 1000).powi(2) / 1000.0)
            .sum();
        assert!(chi_squared < 23.0 + 5.0 * 46.0_f64.sqrt(), "{chi_squared}");
    }

    #[test]
    fn every_place_of_a_long_order_is_equally_likely_for_every_thing() {
        let (orders, things, steps) = (RandomOrder::new([8; 32]), 32, 20_000);
        let mut counts = vec![0_u32; things * things];
        for step in 0..steps {
            for (place, thing) in orders.of(step, 3, things).unwrap().into_iter().enumerate() {
                counts[thing * things + place] += 1;
            }
        }
        let expected = steps as f64 / things as f64;
        let chi_squared: f64 = counts
            .iter()
            .map(|&count| (f64::from(count) - expected).powi(2) / expected)
            .sum();
        let freedom = (things - 1).pow(2) as f64;
        assert!(
            (chi_squared - freedom).abs() < 5.0 * (2.0 * freedom).sqrt(),
            "{chi_squared}"
        );
    }

    #[test]
    fn an_order_is_a_function_of_key_step_and_lane() {
        let order = |key, step, lane| RandomOrder::new([key; 32]).of(step, lane, 100).unwrap();
        assert_eq!(order(1, 2, 3), order(1, 2, 3));
        for other in [order(2, 2, 3), order(1, 3, 3), order(1, 2, 4)] {
            assert_ne!(order(1, 2, 3), other);
        }
    }

    #[test]
    fn an_order_is_that_of_the_ranks() {
        let orders = RandomOrder::new([9; 32]);
        let ranks = orders.of(5, 6, 50).unwrap().into_iter();
        let ranks: Vec<u128> = ranks
            .map(|thing| orders.rank(5, 6, thing as u64).unwrap())
            .collect();
        assert!(ranks.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(orders.rank(5, 6, MOST_THINGS), None);
    }

    #[test]
    fn nothing_has_an_order_and_too_much_has_none() {
        let orders = RandomOrder::new([1; 32]);
        assert_eq!(orders.of(0, 0, 0), Some(vec![]));
        assert_eq!(orders.of(0, 0, MOST_THINGS as usize + 1), None);
    }
}
