//! 106-bit arithmetic on unevaluated sums of two f64 (Dekker 1971; Hida, Li and Bailey 2001), just
//! what the exact noise path needs. Slow and branchy: it runs for one pair in thousands.

/// high + low with |low| ≤ half an ulp of high.
#[derive(Clone, Copy, Debug)]
pub(super) struct DoubleDouble {
    pub(super) high: f64,
    pub(super) low: f64,
}

impl DoubleDouble {
    pub(super) const fn new(high: f64, low: f64) -> Self {
        Self { high, low }
    }

    /// `bits`/2^128 plus half a unit, rounded to 106 bits.
    pub(super) fn from_fraction(bits: u128) -> Self {
        let part =
            |shift: u32| ((bits >> shift) as u64 & ((1 << 43) - 1)) as f64 * 2.0_f64.powi(shift as i32 - 128);
        let top = (bits >> 86) as u64 as f64 * 2.0_f64.powi(86 - 128);
        let upper = two_sum(top, part(43));
        upper.add(Self::new(part(0) + 2.0_f64.powi(-129), 0.0))
    }

    pub(super) fn add(self, other: Self) -> Self {
        let high = two_sum(self.high, other.high);
        let low = two_sum(self.low, other.low);
        let carried = quick_two_sum(high.high, high.low + low.high);
        quick_two_sum(carried.high, carried.low + low.low)
    }

    pub(super) fn negate(self) -> Self {
        Self::new(-self.high, -self.low)
    }

    pub(super) fn multiply(self, other: Self) -> Self {
        let product = two_product(self.high, other.high);
        quick_two_sum(
            product.high,
            product.low + (self.high * other.low + self.low * other.high),
        )
    }

    pub(super) fn scale(self, factor: f64) -> Self {
        self.multiply(Self::new(factor, 0.0))
    }

    pub(super) fn divide(self, divisor: f64) -> Self {
        let first = self.high / divisor;
        let remainder = self.add(two_product(first, divisor).negate());
        let second = remainder.high / divisor;
        let third = remainder.add(two_product(second, divisor).negate()).high / divisor;
        quick_two_sum(first, second).add(Self::new(third, 0.0))
    }

    /// √self by one Newton step from f64; self > 0.
    pub(super) fn square_root(self) -> Self {
        let first = self.high.sqrt();
        let residue = self.add(two_product(first, first).negate());
        let correction = residue.divide(2.0 * first);
        Self::new(first, 0.0).add(correction)
    }

    /// e^self for |self| < 100: a power of two times a Taylor series on |x| ≤ ln 2 / 2.
    pub(super) fn exp(self) -> Self {
        let power = (self.high * std::f64::consts::LOG2_E).round();
        let rest = self.add(LN_2.scale(power).negate());
        let series = taylor(rest, Self::new(1.0, 0.0), 1, 1);
        let scale = 2.0_f64.powi(power as i32);
        Self::new(series.high * scale, series.low * scale)
    }

    /// ln self for 0 < self ≤ 1, absolute error below 2^−98: Newton on exp from the f64 logarithm.
    pub(super) fn ln(self) -> Self {
        let guess = Self::new(libm::log(self.high), 0.0);
        let residue = self.multiply(guess.negate().exp()).add(Self::new(-1.0, 0.0));
        // ln(1+r) = r − r²/2 + …, |r| ≲ 2^−46 at the largest |guess|, so r³ is below 2^−138.
        let square = residue.multiply(residue).scale(-0.5);
        guess.add(residue).add(square)
    }

    /// (cos, sin) of |self| ≤ π/4 by Taylor series.
    pub(super) fn cosine_and_sine(self) -> (Self, Self) {
        let square = self.multiply(self).negate();
        let cosine = taylor(square, Self::new(1.0, 0.0), 1, 2);
        let sine = taylor(square, self, 2, 2);
        (cosine, sine)
    }

    /// The nearest integer; |self| < 2^52.
    pub(super) fn round(self) -> i64 {
        let nearest = self.high.round();
        // Half an ulp of `low` cannot carry `high` over a boundary, only decide a tie.
        let rest = self.high - nearest;
        let correction = if rest == 0.5 && self.low > 0.0 {
            1
        } else if rest == -0.5 && self.low < 0.0 {
            -1
        } else {
            0
        };
        nearest as i64 + correction
    }
}

/// first·(1 + x/n₁ + x²/(n₁n₂) + …), the divisor of each term being the product of the `stride`
/// integers from `start` on: exp (start 1, stride 1), cos of −x (1, 2), sin (2, 2).
fn taylor(x: DoubleDouble, first: DoubleDouble, start: u32, stride: u32) -> DoubleDouble {
    let (mut term, mut sum, mut n) = (first, first, start);
    for _ in 0..MAX_TERMS {
        let divisor: f64 = (n..n + stride).map(f64::from).product();
        term = term.multiply(x).divide(divisor);
        sum = sum.add(term);
        n += stride;
        if term.high.abs() < TERM_CUT {
            break;
        }
    }
    sum
}

fn two_sum(a: f64, b: f64) -> DoubleDouble {
    let sum = a + b;
    let virtual_b = sum - a;
    DoubleDouble::new(sum, (a - (sum - virtual_b)) + (b - virtual_b))
}

/// As [`two_sum`] where |a| ≥ |b| or a = 0.
fn quick_two_sum(a: f64, b: f64) -> DoubleDouble {
    let sum = a + b;
    DoubleDouble::new(sum, b - (sum - a))
}

/// Dekker's product: exact without a fused multiply-add, which not every machine has.
fn two_product(a: f64, b: f64) -> DoubleDouble {
    let product = a * b;
    let ((a1, a2), (b1, b2)) = (split(a), split(b));
    DoubleDouble::new(product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2)
}

fn split(a: f64) -> (f64, f64) {
    let scaled = 134_217_729.0 * a; // 2^27 + 1
    let high = scaled - (scaled - a);
    (high, a - high)
}

/// ln 2 to 106 bits.
const LN_2: DoubleDouble = DoubleDouble::new(std::f64::consts::LN_2, 2.319_046_813_846_299_6e-17);
/// π to 106 bits.
pub(super) const PI: DoubleDouble = DoubleDouble::new(std::f64::consts::PI, 1.224_646_799_147_353_2e-16);
const MAX_TERMS: usize = 40;
/// 2^−112: below it a term changes nothing.
const TERM_CUT: f64 = 1.925_929_944_387_236e-34;

#[cfg(test)]
mod tests;
