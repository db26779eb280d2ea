//! Against mpmath at 400 bits.

use super::*;

/// bits, then ln((bits + ½)/2^128) as high and low part.
#[allow(clippy::approx_constant)]
const LOGARITHMS: [(u128, f64, f64); 14] = [
    (
        0x00000000000000000000000000000000,
        -89.41598629223294,
        -1.1041912479989603e-15,
    ),
    (
        0x00000000000000000000000000000001,
        -88.31737400356484,
        1.2475864338263687e-15,
    ),
    (
        0x00000000000000010000000000000000,
        -44.3614195558365,
        -1.4841628558073196e-15,
    ),
    (
        0x00000010000000000000000000003039,
        -19.408121055678468,
        -1.0934223177172877e-15,
    ),
    (
        0x80000000000000000000000000000000,
        -0.6931471805599453,
        -2.3190468138462996e-17,
    ),
    (
        0xffffffffffffffffffffffffffffffff,
        -1.4693679385278594e-39,
        -1.0795210693868056e-78,
    ),
    (
        0xffffffffffffffc00000000000000000,
        -3.469446951953614e-18,
        -6.017061708271584e-36,
    ),
    (
        0xb504f333f9de6484597d89b3754abe9f,
        -0.34657359027997264,
        -1.1595234069231498e-17,
    ),
    (
        0xcd613e30d8f16adf91b7584a2265b1f5,
        -0.2203162277127986,
        4.0185170093926864e-18,
    ),
    (
        0x1e2feb89414c343c1027c4d1c386bbc4,
        -2.137759856922527,
        8.064194685334859e-17,
    ),
    (
        0x78e510617311d8a3c2ce6f447ed4d57b,
        -0.7502568540513217,
        -2.77413795363244e-17,
    ),
    (
        0x35bf992dc9e9c616612e7696a6cecc1b,
        -1.5608629672197203,
        7.824412830655947e-18,
    ),
    (
        0xe4b06ce60741c7a87ce42c8218072e8c,
        -0.11281373565393915,
        -3.172449733570058e-18,
    ),
    (
        0x9b810e766ec9d28663ca828dd5f4b3b2,
        -0.49850517345559864,
        1.1072632207612155e-17,
    ),
];
/// x, then cos x and sin x as high and low parts.
const TURNS: [(f64, f64, f64, f64, f64); 6] = [
    (
        0.411779729458969,
        0.9164099539666706,
        2.859990548164327e-17,
        0.40024092278377116,
        -4.451060788021696e-18,
    ),
    (
        -0.7816934962387563,
        0.7097215181056372,
        5.445733933488805e-18,
        -0.7044823395499916,
        2.2501694108603825e-17,
    ),
    (
        -0.08574210533396176,
        0.9963263971188137,
        5.303185066572061e-17,
        -0.08563708544926037,
        -2.2942608498406452e-18,
    ),
    (
        0.3478178507750286,
        0.9401187298983509,
        5.8737971945725895e-18,
        0.340847141244153,
        -1.471355960111361e-17,
    ),
    (
        -0.4258433126053894,
        0.9106906937280497,
        -4.6284786347997545e-17,
        -0.41308892548351345,
        1.30306691963693e-17,
    ),
    (
        0.6990749920196581,
        0.7654377664866097,
        -1.968069448621674e-17,
        0.6435099266025276,
        1.1368547267364205e-19,
    ),
];
/// x, then e^x as high and low part.
const EXPONENTIALS: [(f64, f64, f64); 5] = [
    (-88.7, 3.006626321563833e-39, 2.86866069021096e-55),
    (-1.0, 0.36787944117144233, -1.2428753672788363e-17),
    (0.25, 1.2840254166877414, 8.968972781793724e-17),
    (3.0, 20.085536923187668, -1.8275625525512858e-16),
    (44.0, 1.2851600114359308e+19, -12.1907003678569),
];

fn distance(value: DoubleDouble, high: f64, low: f64) -> f64 {
    let difference = value.add(DoubleDouble::new(-high, -low));
    (difference.high + difference.low).abs()
}

#[test]
fn the_logarithm_is_right_to_98_bits() {
    for (bits, high, low) in LOGARITHMS {
        let error = distance(DoubleDouble::from_fraction(bits).ln(), high, low);
        assert!(error <= 2.0_f64.powi(-98), "{bits:x}: {error:e}");
    }
}

#[test]
fn cosine_and_sine_are_right_to_100_bits() {
    for (x, cos_high, cos_low, sin_high, sin_low) in TURNS {
        let (cosine, sine) = DoubleDouble::new(x, 0.0).cosine_and_sine();
        assert!(distance(cosine, cos_high, cos_low) < 2.0_f64.powi(-100), "{x}");
        assert!(distance(sine, sin_high, sin_low) < 2.0_f64.powi(-100), "{x}");
    }
}

#[test]
fn the_exponential_is_right_to_98_bits() {
    for (x, high, low) in EXPONENTIALS {
        assert!(
            distance(DoubleDouble::new(x, 0.0).exp(), high, low) < high * 2.0_f64.powi(-98),
            "{x}"
        );
    }
}

#[test]
fn squaring_a_root_and_multiplying_a_quotient_give_the_number_back() {
    let x = DoubleDouble::new(2.0, 1e-17);
    let root = x.square_root();
    assert!(distance(root.multiply(root), x.high, x.low) < 2.0_f64.powi(-102));
    assert!(distance(x.divide(3.0).scale(3.0), x.high, x.low) < 2.0_f64.powi(-102));
}

#[test]
fn rounding_sees_the_low_part() {
    assert_eq!(DoubleDouble::new(2.5, 1e-17).round(), 3);
    assert_eq!(DoubleDouble::new(2.5, -1e-17).round(), 2);
    assert_eq!(DoubleDouble::new(-2.5, 1e-17).round(), -2);
    assert_eq!(DoubleDouble::new(-2.5, -1e-17).round(), -3);
    assert_eq!(DoubleDouble::new(7.0, 0.0).round(), 7);
}
