//! Blocks of 32 weights with one scale: `Q8_0`, `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1`.
//!
//! A block is a scale (f16), for the `_1` kinds a minimum (f16), for the fives 32 fifth bits, then the low four bits of
//! the first 16 weights and, in the high nibbles, of the last 16.

use shoal_core::QuantType;

use super::{Format, Panel};

pub(crate) struct Q8_0;
pub(crate) struct Q4_0;
pub(crate) struct Q4_1;
pub(crate) struct Q5_0;
pub(crate) struct Q5_1;

impl Format for Q8_0 {
    const KIND: QuantType = QuantType::Q8_0;
    const HAS_MIN: bool = false;
    const FINE_SCALES: bool = false;

    #[inline(always)]
    fn decode(blocks: &[u8], panel: &mut Panel, half: impl Fn(u16) -> f32 + Copy) {
        for (i, block) in blocks.as_chunks::<34>().0.iter().enumerate() {
            let (q, scale, _) = part(panel, i);
            *scale = [half(u16_at(block, 0)); 2];
            for (q, &byte) in q.iter_mut().zip(&block[2..]) {
                *q = byte as i8;
            }
        }
    }
}

impl Format for Q4_0 {
    const KIND: QuantType = QuantType::Q4_0;
    const HAS_MIN: bool = false;
    const FINE_SCALES: bool = false;

    #[inline(always)]
    fn decode(blocks: &[u8], panel: &mut Panel, half: impl Fn(u16) -> f32 + Copy) {
        for (i, block) in blocks.as_chunks::<18>().0.iter().enumerate() {
            let (q, scale, _) = part(panel, i);
            *scale = [half(u16_at(block, 0)); 2];
            nibbles(q, at(block, 2), 8);
        }
    }
}

impl Format for Q4_1 {
    const KIND: QuantType = QuantType::Q4_1;
    const HAS_MIN: bool = true;
    const FINE_SCALES: bool = false;

    #[inline(always)]
    fn decode(blocks: &[u8], panel: &mut Panel, half: impl Fn(u16) -> f32 + Copy) {
        for (i, block) in blocks.as_chunks::<20>().0.iter().enumerate() {
            let (q, scale, min) = part(panel, i);
            *scale = [half(u16_at(block, 0)); 2];
            *min = [-half(u16_at(block, 2)); 2];
            nibbles(q, at(block, 4), 0);
        }
    }
}

impl Format for Q5_0 {
    const KIND: QuantType = QuantType::Q5_0;
    const HAS_MIN: bool = false;
    const FINE_SCALES: bool = false;

    #[inline(always)]
    fn decode(blocks: &[u8], panel: &mut Panel, half: impl Fn(u16) -> f32 + Copy) {
        for (i, block) in blocks.as_chunks::<22>().0.iter().enumerate() {
            let (q, scale, _) = part(panel, i);
            *scale = [half(u16_at(block, 0)); 2];
            five_bits(q, at(block, 2), at(block, 6), 16);
        }
    }
}

impl Format for Q5_1 {
    const KIND: QuantType = QuantType::Q5_1;
    const HAS_MIN: bool = true;
    const FINE_SCALES: bool = false;

    #[inline(always)]
    fn decode(blocks: &[u8], panel: &mut Panel, half: impl Fn(u16) -> f32 + Copy) {
        for (i, block) in blocks.as_chunks::<24>().0.iter().enumerate() {
            let (q, scale, min) = part(panel, i);
            *scale = [half(u16_at(block, 0)); 2];
            *min = [-half(u16_at(block, 2)); 2];
            five_bits(q, at(block, 4), at(block, 8), 0);
        }
    }
}

/// Block `i` of the panel: integers, scales, minimums.
#[inline(always)]
fn part(panel: &mut Panel, i: usize) -> (&mut [i8; 32], &mut [f32; 2], &mut [f32; 2]) {
    let q = &mut panel.q.as_chunks_mut().0[i];
    (q, &mut panel.scale.as_chunks_mut().0[i], &mut panel.min.as_chunks_mut().0[i])
}

#[inline(always)]
fn nibbles(q: &mut [i8; 32], bytes: &[u8; 16], offset: i8) {
    for (j, &byte) in bytes.iter().enumerate() {
        q[j] = (byte & 15) as i8 - offset;
        q[j + 16] = (byte >> 4) as i8 - offset;
    }
}

/// Low nibbles and fifth bits: bit `j` is 16 in weight `j`.
#[inline(always)]
fn five_bits(q: &mut [i8; 32], bits: &[u8; 4], low: &[u8; 16], offset: i8) {
    // Bit `j mod 8` in byte `j`: a comparison of whole vectors, where shifts would go weight by weight.
    const BITS: [[u8; 8]; 4] = [[1, 2, 4, 8, 16, 32, 64, 128]; 4];
    nibbles(q, low, 0);
    let bytes = bits.map(|byte| [byte; 8]);
    for ((q, byte), bit) in q.iter_mut().zip(bytes.as_flattened()).zip(BITS.as_flattened()) {
        let fifth = if byte & bit == 0 { 0 } else { 16 };
        *q = (*q | fifth).wrapping_sub(offset);
    }
}

#[inline(always)]
pub(super) fn u16_at(block: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([block[offset], block[offset + 1]])
}

/// `N` bytes from `offset` on.
#[inline(always)]
pub(super) fn at<const N: usize>(block: &[u8], offset: usize) -> &[u8; N] {
    &block[offset..].as_chunks().0[0]
}
