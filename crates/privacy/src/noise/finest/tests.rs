//! Against Python: mpmath 1.3 at 900 bits.
#![allow(clippy::unwrap_used)]

use super::super::exact;
use super::*;

/// 48 bytes in hexadecimal.
fn parts(text: &str) -> Parts {
    let byte = |at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap();
    [0, 16, 32].map(|from| std::array::from_fn(|at| byte(from + at)))
}

/// A hexadecimal number of units of 2^−256.
fn fixed(text: &str) -> Fixed {
    let (whole, fraction) = text.split_at(text.len().saturating_sub(64));
    let digits = format!("{fraction:0>64}");
    let digits = digits
        .chars()
        .rev()
        .map(|digit| u64::from(digit.to_digit(16).unwrap()));
    let below_one = digits.fold(Fixed::ZERO, |sum, digit| sum.add(Fixed::integer(digit)).over(16));
    let whole = u64::from_str_radix(&format!("0{whole}"), 16).unwrap();
    below_one.add(Fixed::integer(whole))
}

/// Random bits; a radius' uniform of 2^−193, the least there is, and of 2^−130; one as near to 1, twice.
#[test]
fn values_are_those_of_mpmath_to_250_bits() {
    for (bits, odd, is_negative, magnitude) in VALUES {
        let value = Value::new(&parts(bits), odd);
        let (error, _) = value.magnitude.distance(fixed(magnitude));
        assert!(
            error < Fixed::from_f64(2.0_f64.powi(-250)),
            "{bits} {odd}: {error:?}"
        );
        assert_eq!(value.is_negative, is_negative, "{bits} {odd}");
    }
}

/// Values within 2^−105 of a boundary, which 106-bit arithmetic must not decide.
#[test]
fn what_is_next_to_a_boundary_is_rounded_as_mpmath_rounds_it_and_by_nothing_coarser() {
    for (bits, standard_deviation, less, rounded) in NEXT_TO_A_BOUNDARY {
        let (parts, standard_deviation) = (parts(bits), f64::from_bits(standard_deviation));
        let less = f64::from_bits(less);
        let coarser = exact::settled(&parts[0], &parts[1], false, standard_deviation, less);
        assert_eq!(coarser, None, "{bits}");
        let finest = Value::new(&parts, false).rounded(standard_deviation, less);
        assert_eq!(finest, rounded, "{bits}");
    }
}

#[test]
fn where_128_bits_are_enough_192_round_to_the_same() {
    let key = crate::stream::SubKey::derive(&[5; 32], crate::stream::Purpose::Noise);
    let mut stream = key.stream(0, 0, 0);
    for round in 0..400 {
        let mut parts = Parts::default();
        parts.iter_mut().for_each(|part| stream.fill(part));
        let odd = round % 2 == 1;
        let standard_deviation = [1.0, 1e3, 1.1e9, 2.0_f64.powi(44)][round / 2 % 4];
        let less = if round % 3 == 0 { 0.0 } else { round as f64 / 512.0 };
        let coarser = exact::settled(&parts[0], &parts[1], odd, standard_deviation, less);
        let finest = Value::new(&parts, odd).rounded(standard_deviation, less);
        assert_eq!(coarser, Some(finest), "{parts:?} at {standard_deviation}");
    }
}

#[test]
fn uniforms_too_near_0_or_1_for_106_bits_are_left_to_the_finest_path() {
    for word in [0, (1 << 32) - 1, u64::MAX - (1 << 32) + 1, u64::MAX] {
        let head = u128::from(word).to_le_bytes();
        assert_eq!(exact::settled(&head, &[7; 16], false, 1e9, 0.0), None, "{word}");
    }
}

const VALUES: [(&str, bool, bool, &str); 14] = [
    (
        "f5b165224a58b791df6af1d8303e61cdc4bb86c3d1c427103c344c4189eb2f1e7bd5d47e446fcec2a3d811736110e578",
        false,
        false,
        "57a71b98520cfda74e5960c99707aa8a486780ee692d4fa783bd44ca0a39a3b9",
    ),
    (
        "f5b165224a58b791df6af1d8303e61cdc4bb86c3d1c427103c344c4189eb2f1e7bd5d47e446fcec2a3d811736110e578",
        true,
        true,
        "101405694cdddc63343dd84d1f6421683531f3022f2094d4074cddfce52714e24",
    ),
    (
        "73a9bef499bbf4dc7bd2a4f2c8af5bd99f267a0ed3197217dd2bba1537436e5c2441e3d54410492b788768bcff2218cf",
        false,
        false,
        "50fadf6036bb7aaea4a09cef4b243852d3636e4d72e01a4e2557454289d9fc68",
    ),
    (
        "73a9bef499bbf4dc7bd2a4f2c8af5bd99f267a0ed3197217dd2bba1537436e5c2441e3d54410492b788768bcff2218cf",
        true,
        true,
        "70dcb64fc32ba2f593f0124ddf147a115bbc672b115c21a40a6a82396bc75f8d",
    ),
    (
        "fd3feb3c9250b7974a9b528b69636321a461b55ef55b7beafd809a9a9e925b79a6342fa0fdb8b294d97fc6103d92089b",
        false,
        false,
        "b2c00b28d3b945f79db4bdb0107059feb1a7c9d6dcb6561bb1633edcd512a9e3",
    ),
    (
        "fd3feb3c9250b7974a9b528b69636321a461b55ef55b7beafd809a9a9e925b79a6342fa0fdb8b294d97fc6103d92089b",
        true,
        false,
        "bf5da5433a31aeae6bf3a84f4e8b4da7d2038473cd92d06f86c62247f9c80be1",
    ),
    (
        "0000000000000000c716691acdaba1b800000000000000005a43ac2753cf1017000000000000000036abce666699a58c",
        false,
        true,
        "2f12bd7b1a256e98815218ef67bcf5e69306fb075b2dae5accee9286e6631b331",
    ),
    (
        "0000000000000000c716691acdaba1b800000000000000005a43ac2753cf1017000000000000000036abce666699a58c",
        true,
        true,
        "10172072c448473c14c4b31547cb0c8f997a55110aa63c98186e20b26c512db8df",
    ),
    (
        "000000000000000099c0e5bdbcfbc85b0000000000000000ea6b44f130436dd73737373737373737a07d1dec25b1b087",
        false,
        true,
        "877f0646e38a7ce9ec8191e11344147585e456ab420e192506f63026127727434",
    ),
    (
        "000000000000000099c0e5bdbcfbc85b0000000000000000ea6b44f130436dd73737373737373737a07d1dec25b1b087",
        true,
        false,
        "a6e3d26cab42b11d0e966bf479d338626ac7e16eb71e78e15332e86959ddea2a7",
    ),
    (
        "ffffffffffffffff96946bd26935a014ffffffffffffffff39a0f94237376d09ffffffffffffffff347aaea9cfd72396",
        false,
        false,
        "dfe44672af0666c2454bf549fc427ae0ac876652",
    ),
    (
        "ffffffffffffffff96946bd26935a014ffffffffffffffff39a0f94237376d09ffffffffffffffff347aaea9cfd72396",
        true,
        false,
        "7c21899ed522ec301abfa5c1e3cc36ebc6d4c929",
    ),
    (
        "ffffffffffffffff370d9e260e271365ffffffffffffffff332f8b1224083fd20101010101010101f8c99d5d5d983195",
        false,
        true,
        "11d4269cbf449c7d1e300cbe8c7a476dcfdc92d5325e407b4",
    ),
    (
        "ffffffffffffffff370d9e260e271365ffffffffffffffff332f8b1224083fd20101010101010101f8c99d5d5d983195",
        true,
        false,
        "ddc6eb840ce290beea89231d3dadbc9c6d6efb09eba1c603",
    ),
];

/// Bits, standard deviation and fraction as bits of f64, and what the value times one less the other rounds to.
const NEXT_TO_A_BOUNDARY: [(&str, u64, u64, i64); 8] = [
    (
        "47f9d2837fa0753f173f4b303c7afff1b488f2f3c4102ae592fea0a2ef4bdebb5314f496700fc3ab4fa5bff060b86376",
        0x3ff96fc8501ce824,
        0x3ca8d4a80c5844f9,
        2,
    ),
    (
        "bf929082ae438b36dcddd498308036dfee69634d18c2d7e8c48d16ee89052c12bf18d0ba0c45d65d8bd7d1c2915c5f38",
        0x4000677adbb89e99,
        0x3c8fe39aa1ef2fb6,
        3,
    ),
    (
        "2d00f19aa01e7da4ce981726b3604fed0491e1f166bfef640be382707aba1c9d29e5ce729021ca2e1f394da051f33fe0",
        0x4007b7258ec01d33,
        0x3c9b6a57bf1130de,
        3,
    ),
    (
        "c7f6b494afb8b080833c158a0ae13efb89c5c4e403890649ec49a7fbab51baafd40e75c6fafeecf0a6db9a6a621a268a",
        0x40012b63a213ebed,
        0x3ca3d95d0a4c4218,
        3,
    ),
    (
        "47a9949cdcc5ab7d74858c391c9a1d29082f34043efb990717b27259fb98b958b83b3a3b4240515123fdf2d0f58a7c23",
        0x400f7ab3bc49910e,
        0x3c81fac370791514,
        3,
    ),
    (
        "4d6aa98420134434c0a0e28c3ab1032b0080c43a12d7b1ed1ac343e629a8c0f2ab6f09a3729c1497eecedc7ac717c408",
        0x4006c6d390c9ba3d,
        0x3ca88bda9f5ff90a,
        3,
    ),
    (
        "c28b9a8a60fd0a9fe2ce0475e29d65e81bf395951f20432c12a9227ed7cc26dd20e1abe54a1d23cacb6ee7483a6f7e37",
        0x40087e8ed3bafa5e,
        0x3ca7bdccda5bbcfc,
        3,
    ),
    (
        "01406a41cacc1085e1baed9f82c9d42c98c0278ecf8db582c63b751f82e1ec87da9442ca6336bdd442e34558549eb5d4",
        0x400723f7b9d9939f,
        0x3c7a899fd2a6a8b8,
        2,
    ),
];
