//! Number formats of activations between workers: f32, f16 with a power-of-two scale per row, and 8 bits in blocks.
//!
//! Rows are encoded one after another, each from its own values alone, so a block of rows can be cut between any two rows
//! and the parts decoded separately. All multi-byte numbers are little-endian.
//!
//! | format | a row of `cols` values | loss |
//! |---|---|---|
//! | `F32` | 4 bytes each | none |
//! | `F16` | i16 exponent `e`, then 2 bytes each: an IEEE half, times `2^e` | 2^-11 relative, or 2^-39 of the row's largest |
//! | `Q8` | blocks of 32 (the last may be short): f32 scale, 1 byte each | 1/254 of the block's largest |
//!
//! Encoding and decoding are plain integer and IEEE operations: the same bytes and numbers on every processor. Values that
//! are not finite are refused on both sides, naming the row. Headers and lengths of frames are shoal-core's business.

use shoal_core::frame::WireType;
use thiserror::Error;

use crate::quant::{BLOCK, f16_to_f32, quantize_block};

/// Why rows could not be encoded or decoded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// A value is infinite or not a number.
    #[error("failed to pass on activations: row {row} is not finite")]
    NonFinite {
        /// The row, counted from the first of the call.
        row: usize,
    },
    /// The bytes are not those of the shape.
    #[error("failed to decode activations: {found} bytes for {rows} x {cols}, expected {expected}")]
    Length {
        /// Bytes given.
        found: usize,
        /// Bytes of the shape.
        expected: usize,
        /// Rows asked for.
        rows: usize,
        /// Values in a row.
        cols: usize,
    },
    /// A scale that no encoder writes.
    #[error("failed to decode activations: row {row} has an impossible scale")]
    Scale {
        /// The row, counted from the first of the call.
        row: usize,
    },
}

/// Bytes of `rows` rows of `cols` values.
#[must_use]
pub const fn encoded_len(dtype: WireType, rows: usize, cols: usize) -> usize {
    rows * match dtype {
        WireType::F32 => 4 * cols,
        WireType::F16 => 2 + 2 * cols,
        WireType::Q8 => 4 * cols.div_ceil(BLOCK) + cols,
    }
}

/// Appends the rows of `x`, `[rows, cols]`, to `out`. After an error `out` is as it was.
///
/// # Errors
/// [`WireError::NonFinite`] naming the first row with such a value.
///
/// # Panics
/// When `x` has another length.
pub fn encode(
    dtype: WireType,
    rows: usize,
    cols: usize,
    x: &[f32],
    out: &mut Vec<u8>,
) -> Result<(), WireError> {
    assert_eq!(x.len(), rows * cols, "activations of {rows} x {cols}");
    if cols == 0 {
        return Ok(());
    }
    if let Some(row) = x.chunks_exact(cols).position(|row| !is_finite(row)) {
        return Err(WireError::NonFinite { row });
    }
    let start = out.len();
    out.resize(start + encoded_len(dtype, rows, cols), 0);
    let bytes = out[start..].chunks_exact_mut(encoded_len(dtype, 1, cols));
    for (x, bytes) in x.chunks_exact(cols).zip(bytes) {
        match dtype {
            WireType::F32 => {
                bytes.as_chunks_mut().0.iter_mut().zip(x).for_each(|(bytes, x)| *bytes = x.to_le_bytes());
            }
            WireType::F16 => encode_f16(x, bytes),
            WireType::Q8 => encode_q8(x, bytes),
        }
    }
    Ok(())
}

/// Decodes into `out`, `[rows, cols]`. After an error `out` holds anything.
///
/// # Errors
/// The bytes have another length, a row has a value that is not finite, or a scale is out of range.
///
/// # Panics
/// When `out` has another length.
pub fn decode(
    dtype: WireType,
    bytes: &[u8],
    rows: usize,
    cols: usize,
    out: &mut [f32],
) -> Result<(), WireError> {
    assert_eq!(out.len(), rows * cols, "activations of {rows} x {cols}");
    let expected = if cols == 0 { 0 } else { encoded_len(dtype, rows, cols) };
    if bytes.len() != expected {
        return Err(WireError::Length { found: bytes.len(), expected, rows, cols });
    }
    if cols == 0 {
        return Ok(());
    }
    let parts = bytes.chunks_exact(encoded_len(dtype, 1, cols)).zip(out.chunks_exact_mut(cols));
    for (row, (bytes, out)) in parts.enumerate() {
        match dtype {
            WireType::F32 => {
                out.iter_mut()
                    .zip(bytes.as_chunks().0)
                    .for_each(|(out, bytes)| *out = f32::from_le_bytes(*bytes));
            }
            WireType::F16 => decode_f16(bytes, out).ok_or(WireError::Scale { row })?,
            WireType::Q8 => decode_q8(bytes, out).ok_or(WireError::Scale { row })?,
        }
        if !is_finite(out) {
            return Err(WireError::NonFinite { row });
        }
    }
    Ok(())
}

/// Exponents of row scales: both `2^e` and `2^-e` are normal numbers.
pub(crate) const F16_EXPONENTS: std::ops::RangeInclusive<i32> = -126..=113;

/// Bytes before the halves of an `F16` row.
pub(crate) const F16_SCALE_BYTES: usize = 2;

/// The row's largest value comes out in [2^14, 2^15), well inside the halves' range.
const TOP_EXPONENT: i32 = 14;

/// The largest half below 2^15. What would round up to 2^15 becomes this, within the stated loss: at the top of f32's range
/// 2^15 would decode to infinity.
const TOP_HALF: u16 = 0x77ff;

fn encode_f16(x: &[f32], bytes: &mut [u8]) {
    let largest = largest_bits(x);
    let exponent = (largest >> 23) as i32 - 127 - TOP_EXPONENT;
    // A row of zeros gets the least exponent, so that it never raises that of a sum.
    let exponent = exponent.clamp(*F16_EXPONENTS.start(), *F16_EXPONENTS.end());
    encode_f16_at(x, exponent, bytes);
}

fn encode_f16_at(x: &[f32], exponent: i32, bytes: &mut [u8]) {
    let (head, halves) = bytes.split_at_mut(F16_SCALE_BYTES);
    head.copy_from_slice(&(exponent as i16).to_le_bytes());
    let scale = power_of_two(-exponent);
    for (half, x) in halves.as_chunks_mut().0.iter_mut().zip(x) {
        let bits = to_half(x * scale);
        *half = (bits & 0x8000 | (bits & 0x7fff).min(TOP_HALF)).to_le_bytes();
    }
}

/// The exponent of an encoded `F16` row's scale.
pub(crate) fn f16_exponent(row: &[u8]) -> i32 {
    i32::from(i16::from_le_bytes([row[0], row[1]]))
}

/// Appends rows as `F16` with the scales given instead of each row's own: no value may be above
/// `2^15` times its scale. Sums of slices use it (`model::reduce`).
pub(crate) fn encode_f16_scaled(
    rows: usize,
    cols: usize,
    x: &[f32],
    exponents: &[i32],
    out: &mut Vec<u8>,
) -> Result<(), WireError> {
    if cols == 0 {
        return Ok(());
    }
    if let Some(row) = x.chunks_exact(cols).position(|row| !is_finite(row)) {
        return Err(WireError::NonFinite { row });
    }
    let start = out.len();
    out.resize(start + encoded_len(WireType::F16, rows, cols), 0);
    let bytes = out[start..].chunks_exact_mut(encoded_len(WireType::F16, 1, cols));
    for ((x, exponent), bytes) in x.chunks_exact(cols).zip(exponents).zip(bytes) {
        encode_f16_at(x, (*exponent).clamp(*F16_EXPONENTS.start(), *F16_EXPONENTS.end()), bytes);
    }
    Ok(())
}

fn decode_f16(bytes: &[u8], out: &mut [f32]) -> Option<()> {
    let (head, halves) = bytes.split_at(F16_SCALE_BYTES);
    let exponent = f16_exponent(head);
    if !F16_EXPONENTS.contains(&exponent) {
        return None;
    }
    let scale = power_of_two(exponent);
    for (out, half) in out.iter_mut().zip(halves.as_chunks().0) {
        *out = f16_to_f32(u16::from_le_bytes(*half)) * scale;
    }
    Some(())
}

fn encode_q8(x: &[f32], bytes: &mut [u8]) {
    for (x, bytes) in x.chunks(BLOCK).zip(bytes.chunks_mut(4 + BLOCK)) {
        let (mut padded, mut q) = ([0.0; BLOCK], [0; BLOCK]);
        padded[..x.len()].copy_from_slice(x);
        let mut scale = quantize_block(&padded, &mut q);
        if (scale * 127.0).is_infinite() {
            scale = scale.next_down();
        }
        let (head, integers) = bytes.split_at_mut(4);
        head.copy_from_slice(&scale.to_le_bytes());
        integers.iter_mut().zip(q).for_each(|(byte, q)| *byte = q as u8);
    }
}

fn decode_q8(bytes: &[u8], out: &mut [f32]) -> Option<()> {
    for (bytes, out) in bytes.chunks(4 + BLOCK).zip(out.chunks_mut(BLOCK)) {
        let (head, integers) = bytes.split_at(4);
        let scale = f32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        if !(0.0..=f32::MAX).contains(&scale) {
            return None;
        }
        for (out, &byte) in out.iter_mut().zip(integers) {
            *out = scale * f32::from(byte as i8);
        }
    }
    Some(())
}

/// The bits of the largest magnitude: on magnitudes, integer order is float order.
fn largest_bits(x: &[f32]) -> u32 {
    x.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff))
}

fn is_finite(x: &[f32]) -> bool {
    largest_bits(x) < f32::INFINITY.to_bits()
}

fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// The half nearest to `x`, ties to even, for magnitudes of at most 2^15.
#[inline(always)]
fn to_half(x: f32) -> u16 {
    let sign = x.to_bits() >> 16 & 0x8000;
    let magnitude = x.to_bits() & 0x7fff_ffff;
    // Exponent rebiased by 112; adding just under half a unit, plus the last kept bit, rounds to even.
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + (magnitude >> 13 & 1)) >> 13;
    // Below 2^-14, a unit is 2^-24: adding 0.5, whose own unit that is, rounds.
    let tiny = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    (sign | if magnitude < 113 << 23 { tiny } else { normal }) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TYPES: [WireType; 3] = [WireType::F32, WireType::F16, WireType::Q8];

    fn round_trip(dtype: WireType, rows: usize, cols: usize, x: &[f32]) -> Vec<f32> {
        let mut bytes = vec![9];
        encode(dtype, rows, cols, x, &mut bytes).unwrap();
        assert_eq!(bytes.len(), 1 + encoded_len(dtype, rows, cols));
        let mut out = vec![f32::NAN; x.len()];
        decode(dtype, &bytes[1..], rows, cols, &mut out).unwrap();
        out
    }

    #[test]
    fn halves_round_like_the_half_crate() {
        for bits in (0..=0x4700_0000u32).step_by(997).chain((0x3300_0000..0x3880_0000).step_by(4099)) {
            let x = f32::from_bits(bits);
            assert_eq!(to_half(x), half::f16::from_f32(x).to_bits(), "{x}");
            assert_eq!(to_half(-x), half::f16::from_f32(-x).to_bits(), "-{x}");
        }
    }

    #[test]
    fn no_finite_value_becomes_infinite_or_lost() {
        for x in [f32::MAX, f32::MIN, 65_520.0, 1.0, 1e-30, f32::MIN_POSITIVE, 1e-40, 0.0, -0.0] {
            let out = round_trip(WireType::F16, 1, 2, &[x, x / 2.0]);
            let unit = f32::MIN_POSITIVE * 2f32.powi(-12);
            assert!((out[0] / 2.0 - x / 2.0).abs() <= (x / 4096.0).abs().max(unit), "{x} {}", out[0]);
            let out = round_trip(WireType::Q8, 1, 2, &[x, x / 2.0]);
            assert!(out[0].is_finite() && (out[0] / 2.0 - x / 2.0).abs() <= (x / 254.0).abs().max(1e-35));
        }
    }

    #[test]
    fn values_that_are_not_finite_name_their_row() {
        for dtype in TYPES {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = [1.0f32; 120];
                x[2 * 40 + 39] = bad;
                let mut out = vec![1];
                assert_eq!(encode(dtype, 3, 40, &x, &mut out), Err(WireError::NonFinite { row: 2 }));
                assert_eq!(out, [1]);
            }
        }
        let mut out = [0.0; 4];
        let infinite = [1.0f32, 2.0, 3.0, f32::INFINITY].map(f32::to_le_bytes).concat();
        assert_eq!(decode(WireType::F32, &infinite, 2, 2, &mut out), Err(WireError::NonFinite { row: 1 }));
        let infinite = [0, 0, 0, 0x7c, 0, 0];
        assert_eq!(
            decode(WireType::F16, &infinite, 1, 2, &mut out[..2]),
            Err(WireError::NonFinite { row: 0 })
        );
        let exponent = [0, 1, 0, 0, 0, 0];
        assert_eq!(decode(WireType::F16, &exponent, 1, 2, &mut out[..2]), Err(WireError::Scale { row: 0 }));
        let negative = [(-1.0f32).to_le_bytes(), [1, 1, 1, 1]].concat();
        assert_eq!(decode(WireType::Q8, &negative, 1, 4, &mut out), Err(WireError::Scale { row: 0 }));
    }

    #[test]
    fn lengths_are_checked_and_empty_shapes_work() {
        for dtype in TYPES {
            let mut out = [0.0; 33];
            let len = encoded_len(dtype, 1, 33);
            for found in [0, len - 1, len + 1] {
                let error = decode(dtype, &vec![0; found], 1, 33, &mut out).unwrap_err();
                assert_eq!(error, WireError::Length { found, expected: len, rows: 1, cols: 33 });
            }
            assert_eq!(round_trip(dtype, 0, 7, &[]), [0.0f32; 0]);
        }
        let mut bytes = Vec::new();
        encode(WireType::F16, 3, 0, &[], &mut bytes).unwrap();
        decode(WireType::F16, &bytes, 3, 0, &mut []).unwrap();
    }

    fn any_finite() -> impl Strategy<Value = f32> {
        any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |x| x.is_finite())
    }

    proptest! {
        #[test]
        fn rows_are_independent_and_close(x in prop::collection::vec(any_finite(), 5 * 70)) {
            for dtype in TYPES {
                let all = round_trip(dtype, 5, 70, &x);
                for (row, (x, got)) in x.chunks(70).zip(all.chunks(70)).enumerate() {
                    let alone = round_trip(dtype, 1, 70, x);
                    prop_assert!(alone.iter().zip(got).all(|(a, b)| a.to_bits() == b.to_bits()), "row {}", row);
                    for (x, block, got) in x.iter().enumerate().map(|(i, v)| (v, &x[i / 32 * 32..70.min(i / 32 * 32 + 32)], got[i])) {
                        let of = |values: &[f32]| values.iter().fold(0.0f64, |most, v| most.max(f64::from(v.abs())));
                        let error = (f64::from(got) - f64::from(*x)).abs();
                        let limit = match dtype {
                            WireType::F32 => 0.0,
                            WireType::F16 => (f64::from(x.abs()) * 2f64.powi(-11)).max(of(alone.as_slice()) * 2f64.powi(-38)).max(1e-42),
                            WireType::Q8 => (of(block) / 253.0).max(1e-35),
                        };
                        prop_assert!(error <= limit, "{:?} {} {} {}", dtype, x, got, limit);
                    }
                }
            }
        }

        #[test]
        fn a_second_trip_changes_nothing(x in prop::collection::vec(any_finite(), 64)) {
            // What a rank decodes of its own sum is what the others decode after it was passed on.
            for dtype in [WireType::F32, WireType::F16] {
                let once = round_trip(dtype, 1, 64, &x);
                let twice = round_trip(dtype, 1, 64, &once);
                prop_assert!(once.iter().zip(&twice).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }

        #[test]
        fn arbitrary_bytes_decode_to_finite_numbers_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            for dtype in TYPES {
                for cols in [1, 33, 64] {
                    let rows = bytes.len() / encoded_len(dtype, 1, cols);
                    let mut out = vec![0.0; rows * cols];
                    let bytes = &bytes[..encoded_len(dtype, rows, cols)];
                    if decode(dtype, bytes, rows, cols, &mut out).is_ok() {
                        prop_assert!(out.iter().all(|x| x.is_finite()));
                    }
                }
            }
        }
    }
}
