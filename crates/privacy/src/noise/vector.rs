//! The fast path: a block of Box–Muller pairs in f64, without branches, written so that the compiler
//! vectorises it. No fused multiply-adds: every machine gives the same bits.

use crate::vectors::Pass;
use std::f64::consts::PI;

/// Values made at once: 64 pairs, two words each.
pub(super) const BLOCK_VALUES: usize = 128;

/// A block of rounded values and whether each is proven to be the rounding of the exact one.
pub(super) struct RoundedBlock {
    pub(super) values: [i64; BLOCK_VALUES],
    /// 1 where the value is certain, else 0.
    pub(super) settled: [u64; BLOCK_VALUES],
    pub(super) standard_deviation: f64,
}

impl RoundedBlock {
    pub(super) fn new(standard_deviation: f64) -> Self {
        Self {
            values: [0; BLOCK_VALUES],
            settled: [1; BLOCK_VALUES],
            standard_deviation,
        }
    }
}

/// Fills a block from the words of its pairs; true when every value of it is settled.
pub(super) struct Round<'a> {
    pub(super) words: &'a [u8; BLOCK_VALUES * 8],
    pub(super) block: &'a mut RoundedBlock,
}

impl Pass for Round<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        round_block::<false>(self.words, &[0.0; BLOCK_VALUES], self.block)
    }
}

/// The same, each value less a fraction in [0, 1).
pub(super) struct RoundLess<'a> {
    pub(super) words: &'a [u8; BLOCK_VALUES * 8],
    pub(super) less: &'a [f64; BLOCK_VALUES],
    pub(super) block: &'a mut RoundedBlock,
}

impl Pass for RoundLess<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        round_block::<true>(self.words, self.less, self.block)
    }
}

#[inline(always)]
fn round_block<const LESS: bool>(
    words: &[u8; BLOCK_VALUES * 8],
    less: &[f64; BLOCK_VALUES],
    block: &mut RoundedBlock,
) -> bool {
    let RoundedBlock {
        values,
        settled,
        standard_deviation,
    } = block;
    let standard_deviation = *standard_deviation;
    let mut radius_words = [0_u64; BLOCK_VALUES / 2];
    let mut angle_words = [0_u64; BLOCK_VALUES / 2];
    for (pair, bytes) in words.as_chunks::<16>().0.iter().enumerate() {
        let both = u128::from_le_bytes(*bytes);
        radius_words[pair] = both as u64;
        angle_words[pair] = (both >> 64) as u64;
    }
    let mut cosines = [0.0; BLOCK_VALUES / 2];
    let mut sines = [0.0; BLOCK_VALUES / 2];
    for pair in 0..BLOCK_VALUES / 2 {
        let radius = radius(radius_words[pair]);
        let (cosine, sine) = cosine_and_sine(angle_words[pair]);
        cosines[pair] = radius * cosine;
        sines[pair] = radius * sine;
    }
    let margin = 0.5 - standard_deviation * ERROR_BOUND;
    for pair in 0..BLOCK_VALUES / 2 {
        let (mut even, mut odd) = (
            cosines[pair] * standard_deviation,
            sines[pair] * standard_deviation,
        );
        if LESS {
            even -= less[2 * pair];
            odd -= less[2 * pair + 1];
        }
        let (even, even_settled) = round_one(even, margin);
        let (odd, odd_settled) = round_one(odd, margin);
        values[2 * pair] = even;
        values[2 * pair + 1] = odd;
        settled[2 * pair] = even_settled;
        settled[2 * pair + 1] = odd_settled;
    }
    settled.iter().fold(1, |all, settled| all & settled) == 1
}

/// The nearest integer, and 1 if no number within the error bound rounds to another. NaN is unsettled.
#[inline(always)]
fn round_one(value: f64, margin: f64) -> (i64, u64) {
    // Adding 1.5·2^52 leaves the integer in the low bits of the mantissa; |value| < 2^48.
    let shifted = value + ROUNDING_SHIFT;
    let integer = shifted.to_bits().wrapping_sub(ROUNDING_SHIFT.to_bits()) as i64;
    let settled = (value - (shifted - ROUNDING_SHIFT)).abs() <= margin;
    (integer, u64::from(settled))
}

/// √(−2 ln U), U = (word + ½)/2^64; NaN where 64 bits or f64 are too coarse for the error bound.
#[inline(always)]
fn radius(word: u64) -> f64 {
    let square = -2.0 * ln_word(word);
    // Below 2^48 the next 64 bits of U matter, and at the smallest radii.
    let certain = word >= SMALLEST_WORD && square >= SMALLEST_SQUARE;
    let radius = square.sqrt();
    if certain { radius } else { f64::NAN }
}

/// ln U, relative error below 2^−51.5 but for the rounding of U below √½, 2^−53 (fdlibm `e_log.c`, without its branches).
#[inline(always)]
fn ln_word(word: u64) -> f64 {
    let x = word as f64 * TWO_TO_MINUS_64;
    let shifted = x.to_bits().wrapping_add(ONE_BITS - SQRT_HALF_BITS);
    // The biased exponent is small, so or-ing it into 2^52 and subtracting 2^52 converts it exactly.
    let exponent = f64::from_bits((shifted >> 52) | TWO_TO_52_BITS) - (TWO_TO_52 + 1023.0);
    let mantissa = f64::from_bits((shifted & MANTISSA_MASK) + SQRT_HALF_BITS);
    // Above √½ the exponent is 0 and U itself would lose what makes it differ from 1: 1 − U keeps it.
    let below_one = ((!word) as f64 + 0.5) * TWO_TO_MINUS_64;
    let f = if word >= SQRT_HALF_WORD {
        -below_one
    } else {
        mantissa - 1.0
    };
    let s = f / (2.0 + f);
    let z = s * s;
    let w = z * z;
    let even = w * (LG2 + w * (LG4 + w * LG6));
    let odd = z * (LG1 + w * (LG3 + w * (LG5 + w * LG7)));
    let half_square = 0.5 * f * f;
    s * (half_square + (even + odd)) + exponent * LN2_LOW - half_square + f + exponent * LN2_HIGH
}

/// cos and sin of word/2^64 turns, absolute error below 2^−51.
#[inline(always)]
fn cosine_and_sine(word: u64) -> (f64, f64) {
    let shifted = word.wrapping_add(EIGHTH_TURN);
    let quarter = shifted >> 62;
    let eighths = (shifted & QUARTER_MASK) as f64 - EIGHTH_TURN as f64;
    let angle = eighths * (2.0 * PI * TWO_TO_MINUS_64);
    let z = angle * angle;
    let sine = angle + angle * z * (S1 + z * (S2 + z * (S3 + z * (S4 + z * (S5 + z * S6)))));
    let cosine = 1.0 - (0.5 * z - z * z * (C1 + z * (C2 + z * (C3 + z * (C4 + z * (C5 + z * C6))))));
    // Turn by `quarter` right angles: swap on odd ones, then set signs.
    let swap = (quarter & 1).wrapping_neg();
    let difference = (sine.to_bits() ^ cosine.to_bits()) & swap;
    let turned_cosine = cosine.to_bits() ^ difference ^ ((quarter.wrapping_add(1) & 2) << 62);
    let turned_sine = sine.to_bits() ^ difference ^ ((quarter & 2) << 62);
    (f64::from_bits(turned_cosine), f64::from_bits(turned_sine))
}

/// Bound on |computed − exact| of a value, in standard deviations, for every pair not refused by
/// [`radius`], whose radius r is at most 4.8. In units of 2^−52: rounding U to f64 below √½, where r ≥ 0.83, 0.6; the
/// logarithm 2^−51.5·r/2, 3.4; cutting U to 64 bits, 2^−64/(U·r) below √½, 3.4 (U ≥ 2^−16, where r = 4.7; above √½ it is 2^−65, r ≥ 2^−14); the root 2.4; angle
/// and kernels 4.8·2^−51, 9.6; products 4.8·2^−52, 4.8. In sum 24.2 < 32. Taking a fraction off rounds once more: half an ulp of at
/// most 4.8·s + 1, in these units 2.9 for s ≥ 1, the least there is for it; 27.1.
pub(super) const ERROR_BOUND: f64 = 1.0 / (1_u64 << 47) as f64;
const SMALLEST_WORD: u64 = 1 << 48;
const SMALLEST_SQUARE: f64 = 1.0 / (1_u64 << 28) as f64;
/// The least word whose U is not below what [`SQRT_HALF_BITS`] are: their exponent is 0.
const SQRT_HALF_WORD: u64 = 0xb504_f000_0000_0000;
const ROUNDING_SHIFT: f64 = 6_755_399_441_055_744.0;
const TWO_TO_52: f64 = 4_503_599_627_370_496.0;
const TWO_TO_52_BITS: u64 = 0x4330_0000_0000_0000;
const TWO_TO_MINUS_64: f64 = 1.0 / 18_446_744_073_709_551_616.0;
const ONE_BITS: u64 = 0x3ff0_0000_0000_0000;
const SQRT_HALF_BITS: u64 = 0x3fe6_a09e_0000_0000;
const MANTISSA_MASK: u64 = 0x000f_ffff_ffff_ffff;
const EIGHTH_TURN: u64 = 1 << 61;
const QUARTER_MASK: u64 = (1 << 62) - 1;

// Coefficients of fdlibm 5.3: e_log.c, k_sin.c, k_cos.c (Sun Microsystems, 1993).
const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
const LG1: f64 = 6.666_666_666_666_735e-1;
const LG2: f64 = 3.999_999_999_940_942e-1;
const LG3: f64 = 2.857_142_874_366_239e-1;
const LG4: f64 = 2.222_219_843_214_978_4e-1;
const LG5: f64 = 1.818_357_216_161_805e-1;
const LG6: f64 = 1.531_383_769_920_937_3e-1;
const LG7: f64 = 1.479_819_860_511_658_6e-1;
const S1: f64 = -1.666_666_666_666_663_2e-1;
const S2: f64 = 8.333_333_333_322_49e-3;
const S3: f64 = -1.984_126_982_985_795e-4;
const S4: f64 = 2.755_731_370_707_006_8e-6;
const S5: f64 = -2.505_076_025_340_686_3e-8;
const S6: f64 = 1.589_690_995_211_55e-10;
const C1: f64 = 4.166_666_666_666_66e-2;
const C2: f64 = -1.388_888_888_887_411e-3;
const C3: f64 = 2.480_158_728_947_673e-5;
const C4: f64 = -2.755_731_435_139_066_3e-7;
const C5: f64 = 2.087_572_321_298_175e-9;
const C6: f64 = -1.135_964_755_778_819_5e-11;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_agrees_with_libm() {
        let spread = (1_u64..).step_by(0x0003_1415_9265_3589).take(10_000);
        let around_half = (SQRT_HALF_WORD - 10_000..=SQRT_HALF_WORD + 10_000).step_by(500);
        for word in spread.chain(around_half) {
            // libm has ln of U and, near 1, of 1 − (1 − U) from the small number itself.
            let reference = if word >= 1 << 63 {
                libm::log1p(-((!word) as f64 + 0.5) * TWO_TO_MINUS_64)
            } else {
                libm::log(word as f64 * TWO_TO_MINUS_64)
            };
            let ours = ln_word(word);
            assert!(
                (ours - reference).abs() <= reference.abs() * 2.0 * f64::EPSILON,
                "{word}"
            );
        }
    }

    #[test]
    fn the_logarithm_keeps_its_precision_next_to_one() {
        for shift in 1..64 {
            let word = u64::MAX - ((1_u64 << shift) - 1);
            let reference = libm::log1p(-(((1_u64 << shift) - 1) as f64 + 0.5) * TWO_TO_MINUS_64);
            let ours = ln_word(word);
            assert!(
                (ours - reference).abs() <= reference.abs() * 2.0 * f64::EPSILON,
                "{shift}"
            );
        }
    }

    #[test]
    fn cosine_and_sine_agree_with_libm_in_every_octant() {
        for word in (0_u64..).step_by(0x0003_1415_9265_3589).take(10_000) {
            let angle = word as f64 * TWO_TO_MINUS_64 * 2.0 * PI;
            let (cosine, sine) = cosine_and_sine(word);
            // The reference angle itself is off by up to 2π·2^−53.
            assert!((cosine - libm::cos(angle)).abs() < 3e-15 && (sine - libm::sin(angle)).abs() < 3e-15);
        }
    }

    #[test]
    fn words_too_coarse_for_the_bound_are_never_settled() {
        for word in [0, 1, SMALLEST_WORD - 1, u64::MAX, u64::MAX - (1 << 34)] {
            assert!(radius(word).is_nan(), "{word}");
        }
        assert_eq!(round_one(f64::NAN, 0.5).1, 0);
        assert!(radius(SMALLEST_WORD) > 4.7 && radius(SMALLEST_WORD) < 4.8);
        assert!(radius(u64::MAX - (1 << 36)) < 1e-4);
    }
}
