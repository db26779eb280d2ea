//! Natural logarithms of integers in integer arithmetic: a budget that decides must be the same on every machine and
//! in every release, which a mathematical library's `log` does not promise.

/// Fractional bits of a [`ln`].
pub(super) const FRACTION_BITS: u32 = 62;

/// No [`ln`] is off by more, in its last bits: 62 halvings add 62 times the error of ln 2, a term of the series at most 2.
pub(super) const ERROR: i128 = 1 << 13;

/// ln(n) · 2^62, off by less than [`ERROR`].
///
/// n = 2^k·m with 1 ≤ m < 2, and ln m = 2·artanh((m−1)/(m+1)), a series whose terms fall by nine or more.
///
/// # Panics
/// For zero, which has none.
pub(super) fn ln(n: u64) -> i128 {
    assert!(n > 0, "zero has no logarithm");
    let halvings = n.ilog2();
    let one = 1_i128 << halvings;
    let (n, ln_2) = (i128::from(n), twice_artanh(1, 3));
    i128::from(halvings) * ln_2 + twice_artanh(n - one, n + one)
}

/// 2·artanh(p/q) · 2^62 for 0 ≤ p/q ≤ 1/3: the sum of 2·z^(2i+1)/(2i+1).
fn twice_artanh(p: i128, q: i128) -> i128 {
    let z = (p << FRACTION_BITS) / q;
    let square = (z * z) >> FRACTION_BITS;
    let (mut sum, mut power, mut divisor) = (0, z, 1);
    while power > 0 {
        sum += power / divisor;
        power = (power * square) >> FRACTION_BITS;
        divisor += 2;
    }
    2 * sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn logarithms_are_those_of_a_table() {
        // mpmath, 40 digits, times 2^62 and rounded down.
        for (n, exact) in [
            (1, 0),
            (2, LN_2),
            (3, LN_3),
            (10, LN_10),
            (1000, LN_1000),
            (999_999_999_999_999_999, LN_18_NINES),
        ] {
            assert!((ln(n) - exact).abs() < ERROR, "{n}: {} for {exact}", ln(n));
        }
    }

    proptest! {
        #[test]
        fn logarithms_agree_with_the_mathematical_library(n in 1_u64..) {
            let value = ln(n) as f64 / (1_u64 << FRACTION_BITS) as f64;
            prop_assert!((value - libm::log(n as f64)).abs() < 1e-13);
        }

        #[test]
        fn the_logarithm_of_a_product_is_the_sum(a in 1_u64..1 << 31, b in 1_u64..1 << 31) {
            prop_assert!((ln(a * b) - ln(a) - ln(b)).abs() < 3 * ERROR);
        }
    }

    const LN_2: i128 = 3_196_577_161_300_663_914;
    const LN_3: i128 = 5_066_454_931_323_234_909;
    const LN_10: i128 = 10_618_799_479_599_967_254;
    const LN_1000: i128 = 31_856_398_438_799_901_764;
    const LN_18_NINES: i128 = 191_138_390_632_799_410_583;
}
