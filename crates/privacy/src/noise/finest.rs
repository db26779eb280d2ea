//! The finest path: one value of a Box–Muller pair from 192 bits of each uniform, in fixed point of 320 bits. It
//! decides what 106-bit arithmetic cannot, so that no run has enough values for the difference to matter.

use super::fixed::Fixed;

/// The bits of a pair's uniforms, 64 of the radius' and 64 of the angle's in each part, the highest first.
pub(super) type Parts = [[u8; 16]; 3];

/// A value in standard deviations: magnitude and sign.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value {
    pub(super) magnitude: Fixed,
    pub(super) is_negative: bool,
}

impl Value {
    /// The cosine (or, if `odd`, sine) value of a pair, exact for the given bits to 2^−300 relative to the radius.
    pub(super) fn new(parts: &Parts, odd: bool) -> Self {
        let words = parts.map(u128::from_le_bytes);
        let radius = Fixed::from_fraction([words[2] as u64, words[1] as u64, words[0] as u64]);
        let (cosine, sine) = turned(words.map(|word| (word >> 64) as u64));
        let Self {
            magnitude,
            is_negative,
        } = if odd { sine } else { cosine };
        Self {
            magnitude: minus_ln(radius).times(2).square_root().multiply(magnitude),
            is_negative,
        }
    }

    /// The integer nearest to `standard_deviation` × the value, less a fraction in [0, 1).
    pub(super) fn rounded(self, standard_deviation: f64, less: f64) -> i64 {
        let scaled = self.magnitude.multiply(Fixed::from_f64(standard_deviation));
        let less = Fixed::from_f64(less);
        let (magnitude, is_negative) = match self.is_negative {
            true => (scaled.add(less), true),
            false => scaled.distance(less),
        };
        let nearest = magnitude.add(Fixed::from_f64(0.5)).floor() as i64;
        if is_negative { -nearest } else { nearest }
    }
}

/// −ln of a number in (0, 1).
fn minus_ln(number: Fixed) -> Fixed {
    let (halvings, number) = number.normalised();
    let one = Fixed::integer(1);
    let ratio = one.subtract(number).divide(one.add(number));
    let of_number = inverse_hyperbolic_tangent(ratio).times(2);
    of_number.add(ln_2().times(halvings))
}

/// (cos, sin) of a 192-bit fraction of a turn, the highest word first.
fn turned([high, middle, low]: [u64; 3]) -> (Value, Value) {
    let shifted = high.wrapping_add(1 << 61);
    let within_quarter = Fixed::from_fraction([low, middle, shifted & ((1 << 62) - 1)]);
    let (turns, is_negative) = within_quarter.distance(Fixed::from_f64(0.125));
    let (cosine, sine) = cosine_and_sine(turns.times(2).multiply(pi()));
    let cosine = |flip| Value {
        magnitude: cosine,
        is_negative: flip,
    };
    let sine = |flip: bool| Value {
        magnitude: sine,
        is_negative: is_negative != flip,
    };
    match shifted >> 62 {
        0 => (cosine(false), sine(false)),
        1 => (sine(true), cosine(false)),
        2 => (cosine(true), sine(true)),
        _ => (sine(false), cosine(true)),
    }
}

/// (cos, sin) of an angle of at most π/4, by their Taylor series.
fn cosine_and_sine(angle: Fixed) -> (Fixed, Fixed) {
    let square = angle.multiply(angle);
    let series = |first: Fixed, from: u64| {
        let (mut term, mut n) = (first, from);
        alternating(|| {
            let now = term;
            term = term.multiply(square).over(n * (n + 1));
            n += 2;
            now
        })
    };
    let difference = |(added, taken): (Fixed, Fixed)| added.subtract(taken);
    (
        difference(series(Fixed::integer(1), 1)),
        difference(series(angle, 2)),
    )
}

fn inverse_hyperbolic_tangent(ratio: Fixed) -> Fixed {
    let (one, other) = odd_powers(ratio);
    one.add(other)
}

fn inverse_tangent(ratio: Fixed) -> Fixed {
    let (added, taken) = odd_powers(ratio);
    added.subtract(taken)
}

/// Σ x^n/n over n = 1, 5, 9, … and over n = 3, 7, 11, …
fn odd_powers(x: Fixed) -> (Fixed, Fixed) {
    let (square, mut power, mut n) = (x.multiply(x), x, 1);
    alternating(|| {
        let now = power.over(n);
        power = power.multiply(square);
        n += 2;
        now
    })
}

/// Sums of every second term, until one is 0.
fn alternating(mut next: impl FnMut() -> Fixed) -> (Fixed, Fixed) {
    let (mut one, mut other) = (Fixed::ZERO, Fixed::ZERO);
    loop {
        let term = next();
        if term.is_zero() {
            return (one, other);
        }
        (one, other) = (other, one.add(term));
        let last = next();
        (one, other) = (other, one.add(last));
    }
}

fn ln_2() -> Fixed {
    inverse_hyperbolic_tangent(Fixed::integer(1).over(3)).times(2)
}

/// Machin 1706.
fn pi() -> Fixed {
    let part = |divisor, times| inverse_tangent(Fixed::integer(1).over(divisor)).times(times);
    part(5, 16).subtract(part(239, 4))
}

#[cfg(test)]
mod tests;
