//! Loops compiled for the widest vectors of the machine they run on.
//!
//! The build is for any x86-64, whose vectors hold two f64; most machines have four or eight, and conversions between
//! integers and f64 besides. The bits do not depend on it: nothing is fused or reordered.
#![allow(unsafe_code)]

use bastionai_privacy::vectors::{Baseline, KeystreamBlocks};
pub use bastionai_privacy::vectors::{Pass, Vectors};

/// Runs loops on the widest vectors there are.
#[derive(Clone, Copy, Debug)]
pub struct Widest;

impl Vectors for Widest {
    fn run<P: Pass>(&self, pass: P) -> P::Output {
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl");
            if has_avx512 {
                // SAFETY: the processor has all of these features, and the system saves their registers.
                return unsafe { with_avx512(pass) };
            }
            if is_x86_feature_detected!("avx2") {
                // SAFETY: as above.
                return unsafe { with_avx2(pass) };
            }
        }
        pass.run()
    }

    fn keystream(&self, of: &KeystreamBlocks<'_>, out: &mut [u8]) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: as above.
            return unsafe { crate::keystream::fill(of, out) };
        }
        Baseline.keystream(of, out);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl")]
fn with_avx512<P: Pass>(pass: P) -> P::Output {
    pass.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2<P: Pass>(pass: P) -> P::Output {
    pass.run()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bastionai_privacy::noise::NoiseStream;

    /// Also at the standard deviations where many values take the slow path.
    #[test]
    fn noise_is_the_same_on_all_vectors() {
        for standard_deviation in [1.5, 1.1 * f64::from(1 << 30), 2f64.powi(44)] {
            let draw = |vectors: &dyn Fn(&NoiseStream, &mut [i64])| {
                let mut values = vec![0; 100_003];
                vectors(&NoiseStream::new([7; 32]), &mut values);
                values
            };
            let widest = draw(&|stream, values| {
                stream
                    .add_rounded_gaussian_by(&Widest, 3, 4, 5, values, standard_deviation)
                    .unwrap();
            });
            let baseline = draw(&|stream, values| {
                stream
                    .add_rounded_gaussian_by(&Baseline, 3, 4, 5, values, standard_deviation)
                    .unwrap();
            });
            assert_eq!(widest, baseline);
        }
    }

    #[test]
    fn the_key_stream_is_the_ciphers_from_any_block_and_of_any_length() {
        let key = std::array::from_fn(|place| place as u8);
        for (step, first) in [(0, 0), (1 << 40, 1), (u64::MAX, 77), (9, u32::MAX - 40)] {
            let of = KeystreamBlocks {
                key: &key,
                step,
                lane: 0x0a0b_0c0d,
                first,
            };
            for length in [0, 1, 16, 63, 64, 65, 1008, 1024, 1025, 2500] {
                let (mut own, mut portable) = (vec![1; length], vec![2; length]);
                Widest.keystream(&of, &mut own);
                Baseline.keystream(&of, &mut portable);
                assert_eq!(own, portable, "{length} bytes from block {first}");
            }
        }
    }

    /// RFC 8439, section 2.3.2.
    #[test]
    fn the_key_stream_is_that_of_the_standard() {
        let key = std::array::from_fn(|place| place as u8);
        let step = u64::from_le_bytes([0, 0, 0, 9, 0, 0, 0, 0x4a]);
        let mut block = [0; 8];
        Widest.keystream(
            &KeystreamBlocks {
                key: &key,
                step,
                lane: 0,
                first: 1,
            },
            &mut block,
        );
        assert_eq!(block, [0x10, 0xf1, 0xe7, 0xe4, 0xd1, 0x3b, 0x59, 0x15]);
    }

    struct Sum<'a>(&'a [f64]);
    impl Pass for Sum<'_> {
        type Output = f64;
        #[inline(always)]
        fn run(self) -> f64 {
            self.0.iter().map(|value| value * value + 0.1).sum()
        }
    }

    #[test]
    fn sums_are_not_reordered_and_products_not_fused() {
        let values: Vec<f64> = (0..1000).map(|value| f64::from(value).sqrt()).collect();
        assert_eq!(Widest.run(Sum(&values)).to_bits(), Sum(&values).run().to_bits());
    }
}
