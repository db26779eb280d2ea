//! ChaCha20 (RFC 8439) sixteen blocks at once, one 32-bit lane each, for machines with AVX-512: the noise is half key
//! stream, and the portable cipher works on four blocks.
#![allow(unsafe_code)]

use bastionai_privacy::vectors::KeystreamBlocks;
use std::arch::x86_64::*;
use zeroize::Zeroizing;

/// Bytes of a block.
const BLOCK: usize = 64;
/// Blocks made at once.
const LANES: usize = 16;

/// Key stream from block `first` on. `out` ends with any byte of a block.
#[target_feature(enable = "avx512f")]
pub(crate) fn fill(of: &KeystreamBlocks<'_>, out: &mut [u8]) {
    let start = state(of);
    let (whole, rest) = out.as_chunks_mut::<{ LANES * BLOCK }>();
    let mut counter = of.first;
    for blocks in whole {
        sixteen(&start, counter, blocks);
        counter = counter.wrapping_add(LANES as u32);
    }
    if !rest.is_empty() {
        let mut blocks = Zeroizing::new([0; LANES * BLOCK]);
        sixteen(&start, counter, &mut blocks);
        rest.copy_from_slice(&blocks[..rest.len()]);
    }
}

/// Constants, key and nonce; the counter is each lane's own.
fn state(of: &KeystreamBlocks<'_>) -> Zeroizing<[u32; 16]> {
    let mut state = Zeroizing::new([0; 16]);
    for (place, word) in state.iter_mut().zip(b"expand 32-byte k".as_chunks::<4>().0) {
        *place = u32::from_le_bytes(*word);
    }
    for (place, word) in state[4..].iter_mut().zip(of.key.as_chunks::<4>().0) {
        *place = u32::from_le_bytes(*word);
    }
    state[13] = of.step as u32;
    state[14] = (of.step >> 32) as u32;
    state[15] = of.lane;
    state
}

macro_rules! quarter_round {
    ($s:ident, $a:literal, $b:literal, $c:literal, $d:literal) => {
        $s[$a] = _mm512_add_epi32($s[$a], $s[$b]);
        $s[$d] = _mm512_rol_epi32::<16>(_mm512_xor_si512($s[$d], $s[$a]));
        $s[$c] = _mm512_add_epi32($s[$c], $s[$d]);
        $s[$b] = _mm512_rol_epi32::<12>(_mm512_xor_si512($s[$b], $s[$c]));
        $s[$a] = _mm512_add_epi32($s[$a], $s[$b]);
        $s[$d] = _mm512_rol_epi32::<8>(_mm512_xor_si512($s[$d], $s[$a]));
        $s[$c] = _mm512_add_epi32($s[$c], $s[$d]);
        $s[$b] = _mm512_rol_epi32::<7>(_mm512_xor_si512($s[$b], $s[$c]));
    };
}

#[inline]
#[target_feature(enable = "avx512f")]
fn sixteen(start: &[u32; 16], counter: u32, out: &mut [u8; LANES * BLOCK]) {
    let mut first = [_mm512_setzero_si512(); 16];
    for (word, &value) in first.iter_mut().zip(start) {
        *word = _mm512_set1_epi32(value as i32);
    }
    let lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    first[12] = _mm512_add_epi32(_mm512_set1_epi32(counter as i32), lanes);
    let mut s = first;
    for _ in 0..10 {
        quarter_round!(s, 0, 4, 8, 12);
        quarter_round!(s, 1, 5, 9, 13);
        quarter_round!(s, 2, 6, 10, 14);
        quarter_round!(s, 3, 7, 11, 15);
        quarter_round!(s, 0, 5, 10, 15);
        quarter_round!(s, 1, 6, 11, 12);
        quarter_round!(s, 2, 7, 8, 13);
        quarter_round!(s, 3, 4, 9, 14);
    }
    for (word, first) in s.iter_mut().zip(first) {
        *word = _mm512_add_epi32(*word, first);
    }
    let (blocks, _) = out.as_chunks_mut::<BLOCK>();
    for (block, words) in blocks.iter_mut().zip(transposed(s)) {
        // SAFETY: a block has room for 64 bytes, and the store needs no alignment.
        unsafe { _mm512_storeu_si512(block.as_mut_ptr().cast(), words) }
    }
}

/// From word `i` of every block in vector `i` to block `i` in vector `i`.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(words: [__m512i; 16]) -> [__m512i; 16] {
    let zero = [_mm512_setzero_si512(); 16];
    // Within each quarter of a vector, quarter q: words 4w..4w+4 of block 4q + i in `fours[4w + i]`.
    let mut fours = zero;
    for w in 0..4 {
        let [a, b, c, d] = [words[4 * w], words[4 * w + 1], words[4 * w + 2], words[4 * w + 3]];
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        fours[4 * w] = _mm512_unpacklo_epi64(ab, cd);
        fours[4 * w + 1] = _mm512_unpackhi_epi64(ab, cd);
        fours[4 * w + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
        fours[4 * w + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
    let mut blocks = zero;
    for i in 0..4 {
        let [a, b, c, d] = [fours[i], fours[4 + i], fours[8 + i], fours[12 + i]];
        // Quarters 0 and 1 of each, then 2 and 3.
        let (ab, cd) = (
            _mm512_shuffle_i32x4::<0x44>(a, b),
            _mm512_shuffle_i32x4::<0x44>(c, d),
        );
        let (ab_high, cd_high) = (
            _mm512_shuffle_i32x4::<0xEE>(a, b),
            _mm512_shuffle_i32x4::<0xEE>(c, d),
        );
        blocks[i] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        blocks[4 + i] = _mm512_shuffle_i32x4::<0xDD>(ab, cd);
        blocks[8 + i] = _mm512_shuffle_i32x4::<0x88>(ab_high, cd_high);
        blocks[12 + i] = _mm512_shuffle_i32x4::<0xDD>(ab_high, cd_high);
    }
    blocks
}
