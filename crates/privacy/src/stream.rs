//! Keyed, seekable random bytes: ChaCha20 under a key that never leaves the trainer.
//!
//! One 32-byte run key serves sampling and noise: each purpose works under its own subkey, so no
//! two purposes ever read the same keystream. The 96-bit nonce is `step ‖ lane` (a dataset or a
//! tensor), so every (step, lane) has its own stream and any position of it can be reached at once.

use chacha20::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
use chacha20::{ChaCha20, Key, Nonce};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::vectors::KeystreamBlocks;

/// A ChaCha20 stream has 2^32 blocks of 64 bytes (RFC 8439 §2.3: 32-bit block counter); the last few
/// are left alone, as the cipher refuses to let its counter wrap.
pub(crate) const STREAM_BYTES: u64 = (1 << 38) - 1024;

/// Bytes of a block.
pub(crate) const BLOCK_BYTES: u64 = 64;

/// Why a subkey exists; the label is the nonce under which it is derived from the run key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Poisson sampling.
    Sampling,
    /// Random orders.
    Order,
    /// The 64-bit uniforms of the Gaussian noise.
    Noise,
    /// The next 64 bits of those uniforms, drawn only where the first do not settle the rounding.
    NoiseTail,
    /// The last 64 bits of them, drawn only where not even those do.
    NoiseEnd,
}

impl Purpose {
    fn label(self) -> &'static [u8; 12] {
        match self {
            Purpose::Sampling => b"bastion/smpl",
            Purpose::Order => b"bastion/ordr",
            Purpose::Noise => b"bastion/nois",
            Purpose::NoiseTail => b"bastion/tail",
            Purpose::NoiseEnd => b"bastion/last",
        }
    }
}

/// A key for one purpose. Wiped on drop; there is no `Debug`, `Clone` or serialisation of it.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct SubKey([u8; 32]);

impl SubKey {
    /// The first 32 bytes of ChaCha20(run key, nonce = label): a PRF of the label.
    pub(crate) fn derive(run_key: &[u8; 32], purpose: Purpose) -> Self {
        let mut subkey = [0_u8; 32];
        let mut cipher = ChaCha20::new(&Key::from(*run_key), &Nonce::from(*purpose.label()));
        cipher.write_keystream(&mut subkey);
        let derived = SubKey(subkey);
        subkey.zeroize();
        derived
    }

    /// The stream of (step, lane), standing at byte `position`, which must lie within [`STREAM_BYTES`].
    pub(crate) fn stream(&self, step: u64, lane: u32, position: u64) -> Keystream {
        Keystream(cipher(&self.0, step, lane, position))
    }

    /// The same stream from one of its blocks on, for [`crate::vectors::Vectors::keystream`].
    pub(crate) fn blocks(&self, step: u64, lane: u32, first: u32) -> KeystreamBlocks<'_> {
        KeystreamBlocks {
            key: &self.0,
            step,
            lane,
            first,
        }
    }
}

/// As any machine can.
pub(crate) fn fill(of: &KeystreamBlocks<'_>, out: &mut [u8]) {
    let position = u64::from(of.first) * BLOCK_BYTES;
    cipher(of.key, of.step, of.lane, position).write_keystream(out);
}

fn cipher(key: &[u8; 32], step: u64, lane: u32, position: u64) -> ChaCha20 {
    let mut nonce = [0_u8; 12];
    nonce[..8].copy_from_slice(&step.to_le_bytes());
    nonce[8..].copy_from_slice(&lane.to_le_bytes());
    let mut cipher = ChaCha20::new(&Key::from(*key), &Nonce::from(nonce));
    cipher.seek(position);
    cipher
}

/// A position in a stream; wiped on drop by the cipher itself.
pub(crate) struct Keystream(ChaCha20);

impl Keystream {
    /// The next bytes. Callers check against [`STREAM_BYTES`] first, so the stream never runs out.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        self.0.write_keystream(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_cipher_states_are_wiped_on_drop() {
        fn wiped<T: ZeroizeOnDrop>() {}
        wiped::<SubKey>();
        wiped::<chacha20::ChaChaCore<chacha20::R20, chacha20::variants::Ietf>>();
    }

    #[test]
    fn purposes_have_unrelated_subkeys() {
        let run_key = [7_u8; 32];
        let sampling = SubKey::derive(&run_key, Purpose::Sampling);
        let noise = SubKey::derive(&run_key, Purpose::Noise);
        let tail = SubKey::derive(&run_key, Purpose::NoiseTail);
        assert_ne!(sampling.0, noise.0);
        assert_ne!(noise.0, tail.0);
        let end = SubKey::derive(&run_key, Purpose::NoiseEnd);
        assert!(end.0 != noise.0 && end.0 != tail.0);
        assert_ne!(sampling.0, run_key);
    }

    #[test]
    fn a_stream_reads_the_same_from_any_position() {
        let key = SubKey::derive(&[1; 32], Purpose::Noise);
        let mut whole = [0_u8; 1000];
        key.stream(5, 9, 0).fill(&mut whole);
        for position in [0_usize, 1, 63, 64, 65, 500] {
            let mut part = [0_u8; 100];
            key.stream(5, 9, position as u64).fill(&mut part);
            assert_eq!(part, whole[position..position + 100]);
        }
    }

    #[test]
    fn the_last_bytes_of_a_stream_can_be_read() {
        let key = SubKey::derive(&[1; 32], Purpose::Noise);
        let mut last = [0_u8; 64];
        key.stream(0, 0, STREAM_BYTES - 64).fill(&mut last);
        assert_ne!(last, [0; 64]);
    }

    #[test]
    fn steps_and_lanes_do_not_collide() {
        let key = SubKey::derive(&[1; 32], Purpose::Noise);
        let read = |step, lane| {
            let mut bytes = [0_u8; 32];
            key.stream(step, lane, 0).fill(&mut bytes);
            bytes
        };
        assert_ne!(read(1, 0), read(0, 1));
        assert_ne!(read(1 << 32, 0), read(0, 1));
        assert_ne!(read(0, 0), read(1 << 63, 0));
    }
}
