//! The slow path: one value of a Box–Muller pair from 128 bits of each uniform, where they are enough.

use super::double_double::{DoubleDouble, PI};

/// The integer nearest to `standard_deviation` × the value of a pair, less a fraction; none where a number within
/// [`ERROR_BOUND`] rounds to another, or where the radius' uniform is too near 0 or 1 for that bound.
pub(super) fn settled(
    head: &[u8; 16],
    tail: &[u8; 16],
    odd: bool,
    standard_deviation: f64,
    less: f64,
) -> Option<i64> {
    let radius = u128::from_le_bytes(*head) as u64;
    if !(SMALLEST_WORD..=u64::MAX - SMALLEST_WORD).contains(&radius) {
        return None;
    }
    let scaled = scaled(value(head, tail, odd), standard_deviation, less);
    // Exact next to a boundary, but for the last addition: rounded relative to what it is compared with.
    let rest = scaled.high - scaled.high.round();
    let to_boundary = (0.5 - rest.abs()) - scaled.low * rest.signum();
    (to_boundary > standard_deviation * ERROR_BOUND).then(|| scaled.round())
}

fn scaled(value: DoubleDouble, standard_deviation: f64, less: f64) -> DoubleDouble {
    value.scale(standard_deviation).add(DoubleDouble::new(-less, 0.0))
}

/// The cosine (or, if `odd`, sine) value of a pair in standard deviations. Its error is below 2^−82, and mostly below
/// 2^−96: 128 bits of the radius' uniform U leave 2^−129/(U·r), at U ≥ 2^−32 2^−99; a logarithm exact to 2^−98 leaves
/// 2^−98/r, at 1 − U ≥ 2^−32 2^−82.5.
///
/// `head` holds the first 64 bits of the radius' and the angle's uniform, `tail` the next 64 of each.
fn value(head: &[u8; 16], tail: &[u8; 16], odd: bool) -> DoubleDouble {
    let (head, tail) = (u128::from_le_bytes(*head), u128::from_le_bytes(*tail));
    let radius_bits = (head << 64) | (tail & u128::from(u64::MAX));
    let angle_bits = ((head >> 64) << 64) | (tail >> 64);
    let square = DoubleDouble::from_fraction(radius_bits).ln().scale(-2.0);
    // 0 only when all 128 bits are ones; the value is then 0 as well.
    if square.high <= 0.0 {
        return DoubleDouble::new(0.0, 0.0);
    }
    let (cosine, sine) = turned(angle_bits);
    square.square_root().multiply(if odd { sine } else { cosine })
}

/// (cos, sin) of `bits`/2^128 turns.
fn turned(bits: u128) -> (DoubleDouble, DoubleDouble) {
    let shifted = bits.wrapping_add(1 << 125);
    let within_quarter = DoubleDouble::from_fraction(shifted & ((1 << 126) - 1));
    let angle = within_quarter
        .add(DoubleDouble::new(-0.125, 0.0))
        .multiply(PI)
        .scale(2.0);
    let (cosine, sine) = angle.cosine_and_sine();
    match shifted >> 126 {
        0 => (cosine, sine),
        1 => (sine.negate(), cosine),
        2 => (cosine.negate(), sine.negate()),
        _ => (sine, cosine.negate()),
    }
}

/// In standard deviations: 2^−76, the error of a value and of scaling it, with a factor of 64 to spare.
const ERROR_BOUND: f64 = 1.0 / (1_u128 << 76) as f64;
const SMALLEST_WORD: u64 = 1 << 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::vector::{self, BLOCK_VALUES, Round, RoundLess, RoundedBlock};
    use crate::stream::{Purpose, SubKey};
    use crate::vectors::Pass;

    /// The error bound of the fast path, measured with a factor to spare: at a standard deviation where
    /// the bound is a sizeable part of a grid unit, settled values must be the exact ones, and so must
    /// they be under the most extreme of tails (all zeros, all ones).
    #[test]
    fn what_the_fast_path_settles_is_the_exact_rounding() {
        let key = SubKey::derive(&[11; 32], Purpose::Noise);
        let mut stream = key.stream(0, 0, 0);
        let mut words = [0_u8; BLOCK_VALUES * 8];
        for standard_deviation in [1.0, 1e3, 2.0_f64.powi(30), 2.0_f64.powi(42), 2.0_f64.powi(44)] {
            let mut block = RoundedBlock::new(standard_deviation);
            let mut settled = 0;
            for round in 0..100 {
                stream.fill(&mut words);
                let block = &mut block;
                // Half of them less a fraction, as correlated noise has it.
                let mut less = [0.0; BLOCK_VALUES];
                if round % 2 == 0 {
                    Round { words: &words, block }.run();
                } else {
                    let fraction = |position: usize| (position * 37 % 4096) as f64 / 4096.0;
                    less = std::array::from_fn(fraction);
                    RoundLess {
                        words: &words,
                        less: &less,
                        block,
                    }
                    .run();
                }
                #[allow(clippy::needless_range_loop, reason = "positions of several arrays")]
                for position in 0..BLOCK_VALUES {
                    if block.settled[position] == 1 {
                        settled += 1;
                        let head = words.as_chunks::<16>().0[position / 2];
                        for tail in [[0; 16], [0xff; 16]] {
                            let exact = value(&head, &tail, position % 2 == 1);
                            let exact = scaled(exact, standard_deviation, less[position]).round();
                            assert_eq!(block.values[position], exact, "sd {standard_deviation}");
                        }
                    }
                }
            }
            let expected = 12_800.0 * (1.0 - 2.0 * standard_deviation * vector::ERROR_BOUND);
            assert!(
                f64::from(settled) > expected - 600.0,
                "{settled} settled at sd {standard_deviation}"
            );
        }
    }

    #[test]
    fn extreme_words_give_finite_values() {
        for head in [[0; 16], [0xff; 16], [0x80; 16]] {
            for tail in [[0; 16], [0xff; 16]] {
                for odd in [false, true] {
                    let value = value(&head, &tail, odd);
                    assert!(value.high.is_finite() && value.high.abs() < 13.5);
                }
            }
        }
    }
}
