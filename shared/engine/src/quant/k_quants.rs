//! Blocks of 256 weights with scales of their own quantized: `Q2_K` to `Q6_K`.
//!
//! In all of them the bits of a weight are spread over planes so that 32 neighbouring weights come from 32 neighbouring
//! bytes; the loops below follow the planes.

use shoal_core::QuantType;

use super::legacy::{at, u16_at};
use super::{Format, Panel};

/// Bytes: 16 x (scale, min: 4 bits each), 64 x 4 weights of 2 bits, scale of scales, scale of mins (f16).
pub(crate) struct Q2K;
/// Bytes: 32 x 8 third bits, 64 x 4 weights' low 2 bits, 12 with 16 scales of 6 bits, scale of scales (f16).
pub(crate) struct Q3K;
/// Bytes: scale of scales, scale of mins (f16), 12 with 8 scales and 8 mins of 6 bits, 128 x 2 weights of 4 bits.
pub(crate) struct Q4K;
/// Like [`Q4K`], with 32 x 8 fifth bits before the weights' low four.
pub(crate) struct Q5K;
/// Bytes: 128 x 2 weights' low 4 bits, 64 x 4 high 2 bits, 16 scales (i8), scale of scales (f16).
pub(crate) struct Q6K;

impl Format for Q2K {
    const KIND: QuantType = QuantType::Q2_K;
    const HAS_MIN: bool = true;
    const FINE_SCALES: bool = true;

    #[inline(always)]
    fn decode(blocks: &[u8], panel: &mut Panel, half: impl Fn(u16) -> f32 + Copy) {
        let block: &[u8; 84] = at(blocks, 0);
        let (d, dmin) = (half(u16_at(block, 80)), half(u16_at(block, 82)));
        for (i, &byte) in block[..16].iter().enumerate() {
            panel.scale[i] = d * f32::from(byte & 15);
            panel.min[i] = dmin * f32::from(byte >> 4);
        }
        for (i, q) in panel.q.as_chunks_mut().0.iter_mut().enumerate() {
            two_bits(q, at(block, 16 + 32 * i));
        }
    }
}

impl Format for Q3K {
    const KIND: QuantType = QuantType::Q3_K;
    const HAS_MIN: bool = false;
    const FINE_SCALES: bool = true;

    #[inline(always)]
    fn decode(blocks: &[u8], panel: &mut Panel, half: impl Fn(u16) -> f32 + Copy) {
        let block: &[u8; 110] = at(blocks, 0);
        let d = half(u16_at(block, 108));
        // The scales' low nibbles are in the first 8 bytes, low halves first; their high 2 bits are in the last 4.
        let word = |i: usize| u32::from_le_bytes(*at(block, 96 + 4 * i));
        let (a, b, c) = (word(0), word(1), word(2));
        let scales = [(a, c), (b, c >> 2), (a >> 4, c >> 4), (b >> 4, c >> 6)];
        for (scale, (low, high)) in panel.scale.as_chunks_mut::<4>().0.iter_mut().zip(scales) {
            let bytes = (low & 0x0f0f_0f0f | (high & 0x0303_0303) << 4).to_le_bytes();
            for i in 0..4 {
                scale[i] = d * f32::from(bytes[i] as i8 - 32);
            }
        }
        let third: &[u8; 32] = at(block, 0);
        for (i, q) in panel.q.as_chunks_mut::<128>().0.iter_mut().enumerate() {
            two_bits(q, at(block, 32 + 32 * i));
            for (j, &bits) in third.iter().enumerate() {
                let bits = bits >> (4 * i);
                q[j] = (q[j] | (bits << 2 & 4) as i8) - 4;
                q[j + 32] = (q[j + 32] | (bits << 1 & 4) as i8) - 4;
                q[j + 64] = (q[j + 64] | (bits & 4) as i8) - 4;
                q[j + 96] = (q[j + 96] | (bits >> 1 & 4) as i8) - 4;
            }
        }
    }
}

impl Format for Q4K {
    const KIND: QuantType = QuantType::Q4_K;
    const HAS_MIN: bool = true;
    const FINE_SCALES: bool = false;

    #[inline(always)]
    fn decode(blocks: &[u8], panel: &mut Panel, half: impl Fn(u16) -> f32 + Copy) {
        let block: &[u8; 144] = at(blocks, 0);
        scales_and_mins(panel, at(block, 0), half);
        for (i, q) in panel.q.as_chunks_mut::<64>().0.iter_mut().enumerate() {
            nibbles(q, at(block, 16 + 32 * i));
        }
    }
}

impl Format for Q5K {
    const KIND: QuantType = QuantType::Q5_K;
    const HAS_MIN: bool = true;
    const FINE_SCALES: bool = false;

    #[inline(always)]
    fn decode(blocks: &[u8], panel: &mut Panel, half: impl Fn(u16) -> f32 + Copy) {
        let block: &[u8; 176] = at(blocks, 0);
        scales_and_mins(panel, at(block, 0), half);
        let fifth: &[u8; 32] = at(block, 16);
        for (i, q) in panel.q.as_chunks_mut::<64>().0.iter_mut().enumerate() {
            nibbles(q, at(block, 48 + 32 * i));
            for (j, &bits) in fifth.iter().enumerate() {
                let bits = bits >> (2 * i);
                q[j] |= ((bits & 1) << 4) as i8;
                q[j + 32] |= ((bits & 2) << 3) as i8;
            }
        }
    }
}

impl Format for Q6K {
    const KIND: QuantType = QuantType::Q6_K;
    const HAS_MIN: bool = false;
    const FINE_SCALES: bool = true;

    #[inline(always)]
    fn decode(blocks: &[u8], panel: &mut Panel, half: impl Fn(u16) -> f32 + Copy) {
        let block: &[u8; 210] = at(blocks, 0);
        let d = half(u16_at(block, 208));
        for (scale, &byte) in panel.scale.iter_mut().zip(&block[192..208]) {
            *scale = d * f32::from(byte as i8);
        }
        for (i, q) in panel.q.as_chunks_mut::<128>().0.iter_mut().enumerate() {
            let (low, high): (&[u8; 64], &[u8; 32]) = (at(block, 64 * i), at(block, 128 + 32 * i));
            for j in 0..32 {
                q[j] = (low[j] & 15 | high[j] << 4 & 0x30) as i8 - 32;
                q[j + 32] = (low[j + 32] & 15 | high[j] << 2 & 0x30) as i8 - 32;
                q[j + 64] = (low[j] >> 4 | high[j] & 0x30) as i8 - 32;
                q[j + 96] = (low[j + 32] >> 4 | high[j] >> 2 & 0x30) as i8 - 32;
            }
        }
    }
}

/// Weights of 2 bits: 32 bytes hold 4 planes of 32 weights, half a block.
#[inline(always)]
fn two_bits(q: &mut [i8; 128], bytes: &[u8; 32]) {
    for (j, &byte) in bytes.iter().enumerate() {
        q[j] = (byte & 3) as i8;
        q[j + 32] = (byte >> 2 & 3) as i8;
        q[j + 64] = (byte >> 4 & 3) as i8;
        q[j + 96] = (byte >> 6) as i8;
    }
}

/// Weights of 4 bits: 32 bytes hold the low nibbles of 32 weights, then the high ones.
#[inline(always)]
fn nibbles(q: &mut [i8; 64], bytes: &[u8; 32]) {
    for (j, &byte) in bytes.iter().enumerate() {
        q[j] = (byte & 15) as i8;
        q[j + 32] = (byte >> 4) as i8;
    }
}

/// The head of `Q4_K` and `Q5_K`: two f16, then 8 scales and 8 mins of 6 bits in 12 bytes. The first four of each have
/// bytes of their own; the others' low nibbles share the last four bytes, their high bits lie atop the first eight.
#[inline(always)]
fn scales_and_mins(panel: &mut Panel, head: &[u8; 16], half: impl Fn(u16) -> f32 + Copy) {
    let (d, dmin) = (half(u16_at(head, 0)), half(u16_at(head, 2)));
    let word = |i: usize| u32::from_le_bytes(*at(head, 4 + 4 * i));
    let (a, b, c) = (word(0), word(1), word(2));
    let scales = join(a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | a >> 2 & 0x3030_3030);
    let mins = join(b & 0x3f3f_3f3f, c >> 4 & 0x0f0f_0f0f | b >> 2 & 0x3030_3030);
    for i in 0..8 {
        let (scale, min) = (d * f32::from(scales[i]), dmin * f32::from(mins[i]));
        (panel.scale[2 * i], panel.scale[2 * i + 1]) = (scale, scale);
        (panel.min[2 * i], panel.min[2 * i + 1]) = (min, min);
    }
}

#[inline(always)]
fn join(low: u32, high: u32) -> [u8; 8] {
    (u64::from(low) | u64::from(high) << 32).to_le_bytes()
}
