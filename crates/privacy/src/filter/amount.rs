//! Exact decimals for ε, δ and Rényi divergences: the only numbers a budget is ever added up in (rule D6).

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// An ε, in units of 1e-9.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epsilon(u64);

/// A δ, in units of 1e-18.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Delta(u64);

/// A Rényi divergence at some order, in units of 1e-12 nats. [`Rho::MAX`] stands for everything above it as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rho(u64);

/// An (ε, δ) pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Amount {
    /// ε.
    pub epsilon: Epsilon,
    /// δ.
    pub delta: Delta,
}

/// Why a number is not an amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AmountError {
    /// Not a decimal number.
    #[error("`{text}` is not a decimal number; write it like 6.0 or 1e-5")]
    Malformed {
        /// What was read.
        text: String,
    },
    /// More digits than the unit holds: rounding silently would change somebody's budget.
    #[error("`{text}` is finer than the ledger's unit of 1e-{decimals}; round it yourself, down for a limit")]
    TooFine {
        /// What was read.
        text: String,
        /// Decimals of the unit.
        decimals: u32,
    },
    /// Negative, NaN, infinite or above the largest representable amount.
    #[error("{text} is not a finite amount between 0 and {maximum}")]
    OutOfRange {
        /// What was given.
        text: String,
        /// The largest amount of this kind.
        maximum: String,
    },
}

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self {
        epsilon: Epsilon::ZERO,
        delta: Delta::ZERO,
    };

    /// From its parts.
    pub const fn new(epsilon: Epsilon, delta: Delta) -> Self {
        Self { epsilon, delta }
    }

    /// The sum of both parts (basic composition), or `None` when either overflows.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        Some(Self::new(
            self.epsilon.checked_add(other.epsilon)?,
            self.delta.checked_add(other.delta)?,
        ))
    }

    /// The difference of both parts, or `None` when either would be negative.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        Some(Self::new(
            self.epsilon.checked_sub(other.epsilon)?,
            self.delta.checked_sub(other.delta)?,
        ))
    }

    /// Whether both parts are at most `limit`'s.
    pub fn fits_within(self, limit: Self) -> bool {
        self.epsilon <= limit.epsilon && self.delta <= limit.delta
    }

    /// Whether both parts are zero.
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "(ε = {}, δ = {})", self.epsilon, self.delta)
    }
}

macro_rules! fixed_point {
    ($name:ident, $decimals:literal) => {
        impl $name {
            /// Nothing.
            pub const ZERO: Self = Self(0);
            /// The largest representable amount.
            pub const MAX: Self = Self(u64::MAX);
            /// Decimal places of the unit.
            pub const DECIMALS: u32 = $decimals;

            /// From a count of units.
            pub const fn from_units(units: u64) -> Self {
                Self(units)
            }

            /// The count of units.
            pub const fn units(self) -> u64 {
                self.0
            }

            /// The sum, or `None` on overflow.
            pub fn checked_add(self, other: Self) -> Option<Self> {
                self.0.checked_add(other.0).map(Self)
            }

            /// The difference, or `None` when it would be negative.
            pub fn checked_sub(self, other: Self) -> Option<Self> {
                self.0.checked_sub(other.0).map(Self)
            }

            /// A tenth, rounded down: the default δ of a run is a tenth of the lifetime's (rule D6).
            pub const fn tenth(self) -> Self {
                Self(self.0 / 10)
            }

            /// The smallest amount that is at least `value`: a cost is never under-counted.
            ///
            /// # Errors
            /// [`AmountError::OutOfRange`] unless `value` is finite, at least zero and representable.
            pub fn from_f64_round_up(value: f64) -> Result<Self, AmountError> {
                scaled_ceiling(value, $decimals)
                    .map(Self)
                    .ok_or_else(|| Self::out_of_range(value.to_string()))
            }

            /// The nearest float: for accountants and tables, never for adding up.
            pub fn to_f64(self) -> f64 {
                self.0 as f64 / 10f64.powi($decimals)
            }

            fn out_of_range(text: String) -> AmountError {
                AmountError::OutOfRange {
                    text,
                    maximum: Self::MAX.to_string(),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(&format_units(self.0, $decimals))
            }
        }

        impl FromStr for $name {
            type Err = AmountError;

            fn from_str(text: &str) -> Result<Self, AmountError> {
                match parse_units(text, $decimals) {
                    Ok(units) => Ok(Self(units)),
                    Err(ParseFault::Malformed) => Err(AmountError::Malformed {
                        text: shorten(text),
                    }),
                    Err(ParseFault::TooFine) => Err(AmountError::TooFine {
                        text: shorten(text),
                        decimals: $decimals,
                    }),
                    Err(ParseFault::TooLarge) => Err(Self::out_of_range(shorten(text))),
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_u64(self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    u64::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

fixed_point!(Epsilon, 9);
fixed_point!(Delta, 18);
fixed_point!(Rho, 12);

impl Rho {
    /// The smallest divergence that is at least `value`, or [`Rho::MAX`], which no budget covers.
    ///
    /// # Errors
    /// [`AmountError::OutOfRange`] for NaN and for what is negative: no divergence is.
    pub fn bounding(value: f64) -> Result<Self, AmountError> {
        if value.is_nan() || value < 0.0 {
            return Err(Self::out_of_range(value.to_string()));
        }
        Ok(Self::from_f64_round_up(value).unwrap_or(Self::MAX))
    }

    /// Whether this stands for a divergence without a bound.
    pub const fn is_unbounded(self) -> bool {
        self.0 == u64::MAX
    }
}

enum ParseFault {
    Malformed,
    TooFine,
    TooLarge,
}

/// Values below a thousandth are printed with an exponent: `1e-5` reads better than `0.00001`.
fn format_units(units: u64, decimals: u32) -> String {
    if units == 0 {
        return "0.0".to_owned();
    }
    let unit = 10u64.pow(decimals);
    if units >= unit / 1000 {
        let fraction = format!("{:0width$}", units % unit, width = decimals as usize);
        let fraction = fraction.trim_end_matches('0');
        return format!(
            "{}.{}",
            units / unit,
            if fraction.is_empty() { "0" } else { fraction }
        );
    }
    let digits = units.to_string();
    let exponent = decimals as usize + 1 - digits.len();
    let (head, tail) = digits.split_at(1);
    let tail = tail.trim_end_matches('0');
    if tail.is_empty() {
        format!("{head}e-{exponent}")
    } else {
        format!("{head}.{tail}e-{exponent}")
    }
}

fn parse_units(text: &str, decimals: u32) -> Result<u64, ParseFault> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, parse_exponent(exponent)?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [whole, fraction].concat();
    if digits.is_empty() || digits.len() > MAX_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ParseFault::Malformed);
    }
    let significant = digits.trim_start_matches('0').trim_end_matches('0');
    if significant.is_empty() {
        return Ok(0);
    }
    let trailing_zeros = digits.len() - digits.trim_end_matches('0').len();
    let scale = i64::from(decimals) + exponent - fraction.len() as i64 + trailing_zeros as i64;
    let scale = u32::try_from(scale).map_err(|_| ParseFault::TooFine)?;
    let value: u128 = significant.parse().map_err(|_| ParseFault::TooLarge)?;
    let power = 10u128.checked_pow(scale).ok_or(ParseFault::TooLarge)?;
    let units = value.checked_mul(power).ok_or(ParseFault::TooLarge)?;
    u64::try_from(units).map_err(|_| ParseFault::TooLarge)
}

fn parse_exponent(text: &str) -> Result<i64, ParseFault> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || digits.len() > 4 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ParseFault::Malformed);
    }
    text.parse().map_err(|_| ParseFault::Malformed)
}

/// `⌈value · 10^decimals⌉` without rounding error: a finite f64 is `mantissa · 2^exponent`, and
/// mantissa (53 bits) times 10^18 (60 bits) fits a u128.
fn scaled_ceiling(value: f64, decimals: u32) -> Option<u64> {
    if !value.is_finite() || value < 0.0 {
        return None;
    }
    let bits = value.to_bits();
    let biased = (bits >> 52) & 0x7ff;
    let fraction = bits & ((1 << 52) - 1);
    let (mantissa, exponent) = if biased == 0 {
        (fraction, -1074)
    } else {
        (fraction | 1 << 52, biased as i32 - 1075)
    };
    let scaled = u128::from(mantissa) * 10u128.pow(decimals);
    let units = if exponent >= 0 {
        let shift = exponent.unsigned_abs();
        if shift >= scaled.leading_zeros() && scaled != 0 {
            return None;
        }
        scaled.checked_shl(shift).unwrap_or(0)
    } else {
        let shift = exponent.unsigned_abs();
        match 1u128.checked_shl(shift) {
            Some(divisor) => scaled.div_ceil(divisor),
            None => u128::from(scaled != 0),
        }
    };
    u64::try_from(units).ok()
}

/// Errors quote what was typed, but not megabytes of it.
fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}

const MAX_DIGITS: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn epsilon(text: &str) -> Epsilon {
        text.parse().unwrap()
    }

    #[test]
    fn prints_exactly_and_shortly() {
        for (text, shown) in [
            ("6", "6.0"),
            ("6.0", "6.0"),
            ("2.50", "2.5"),
            ("0.001", "0.001"),
            ("1e-9", "1e-9"),
            ("0", "0.0"),
            ("1.5E-4", "1.5e-4"),
            ("12e2", "1200.0"),
            ("000.5", "0.5"),
            (".5", "0.5"),
            ("5.", "5.0"),
        ] {
            assert_eq!(epsilon(text).to_string(), shown, "{text}");
        }
        assert_eq!("0.00001".parse::<Delta>().unwrap().to_string(), "1e-5");
        assert_eq!(Delta::MAX.to_string(), "18.446744073709551615");
        assert_eq!(Delta::from_units(1).to_string(), "1e-18");
    }

    #[test]
    fn refuses_what_is_not_an_exact_amount() {
        for text in [
            "", ".", "-1", "+1", "1e", "1e+", "NaN", "inf", "1 ", " 1", "0x1", "1_000", "1e99999", "1.2.3",
            "٣",
        ] {
            assert!(
                matches!(text.parse::<Epsilon>(), Err(AmountError::Malformed { .. })),
                "{text}"
            );
        }
        assert!(matches!(
            "1e-10".parse::<Epsilon>(),
            Err(AmountError::TooFine { .. })
        ));
        assert!(matches!(
            "1.0000000001".parse::<Epsilon>(),
            Err(AmountError::TooFine { .. })
        ));
        assert!(matches!(
            "1e11".parse::<Epsilon>(),
            Err(AmountError::OutOfRange { .. })
        ));
        assert!(matches!(
            "1e300".parse::<Delta>(),
            Err(AmountError::OutOfRange { .. })
        ));
    }

    #[test]
    fn a_float_never_becomes_a_smaller_amount() {
        assert_eq!(Epsilon::from_f64_round_up(2.0).unwrap(), epsilon("2"));
        assert_eq!(
            Epsilon::from_f64_round_up(0.1).unwrap().units(),
            100_000_001,
            "0.1 is above a tenth as an f64"
        );
        assert_eq!(Epsilon::from_f64_round_up(f64::MIN_POSITIVE).unwrap().units(), 1);
        assert_eq!(Delta::from_f64_round_up(5e-324).unwrap().units(), 1);
        assert_eq!(Delta::from_f64_round_up(0.0).unwrap(), Delta::ZERO);
        for bad in [-1.0, f64::NAN, f64::INFINITY, 1e11, 1e300] {
            assert!(Epsilon::from_f64_round_up(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_divergence_without_a_bound_is_the_largest_and_a_number_that_is_none_is_refused() {
        assert_eq!(Rho::bounding(0.25).unwrap().to_string(), "0.25");
        assert_eq!(Rho::bounding(1e-300).unwrap().units(), 1);
        for large in [1.9e7, 1e300, f64::INFINITY] {
            assert!(Rho::bounding(large).unwrap().is_unbounded(), "{large}");
        }
        for bad in [-1e-300, f64::NAN, f64::NEG_INFINITY] {
            assert!(Rho::bounding(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn display_and_parse_are_inverse(units in any::<u64>()) {
            prop_assert_eq!(Epsilon(units).to_string().parse::<Epsilon>().unwrap(), Epsilon(units));
            prop_assert_eq!(Delta(units).to_string().parse::<Delta>().unwrap(), Delta(units));
        }

        #[test]
        fn rounding_up_is_tight(value in 0.0f64..1e9) {
            let units = Epsilon::from_f64_round_up(value).unwrap().units();
            prop_assert!(units as f64 >= value * 1e9 * (1.0 - 1e-15));
            prop_assert!(units as f64 <= value * 1e9 * (1.0 + 1e-15) + 1.0);
        }

        #[test]
        fn parsing_never_panics(text in "[0-9eE.+-]{0,30}") {
            let _ = text.parse::<Epsilon>();
            let _ = text.parse::<Delta>();
        }
    }
}
