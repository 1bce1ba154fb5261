//! The one function that all ways of summing a group's partials compute.
//!
//! Each contributing rank encodes its partial sum; the decoded partials are added in f32 in rank order;
//! the sum is encoded and decoded once. Who computes which part of it (each rank all of it, each rank a
//! slice, one rank for all) changes no bit, because every step works on parts of rows alike:
//!
//! - f32 values and q8 blocks of 32 depend on themselves only;
//! - an f16 row has one scale. A partial's is found from its whole row before it is cut, and travels with
//!   each cut. The sum's is derived from the partials' scales, never from the sum's values, which the
//!   rank of a slice does not have: with the largest exponent e of n partials it is e + ⌈log2 n⌉, enough
//!   for any sum of theirs. It costs up to ⌈log2 n⌉ of the 39 binary digits between a row's largest and
//!   its smallest values, and none of the 11 digits of each value.
//!
//! So rows may be cut anywhere, and columns on multiples of [`COLUMN_GRAIN`]: [`slices`] says how for
//! reduce-scatter. The worker's all-reduce over the network and [`super::LocalGroup`] both call this.

use std::ops::Range;

use shoal_core::frame::WireType;
use thiserror::Error;

use crate::quant::BLOCK;
use crate::wire::{self, WireError, encoded_len};

/// Columns are cut on multiples of this: the blocks of q8.
pub const COLUMN_GRAIN: usize = BLOCK;

/// Why partials could not be summed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReduceError {
    /// The own partial, or the sum, cannot be encoded.
    #[error("failed to sum partials: {0}")]
    Wire(#[from] WireError),
    /// A contributing rank's partial cannot be decoded.
    #[error("failed to sum partials: the one at place {place} of those that contribute: {source}")]
    Partial {
        /// Its place among the contributing ranks.
        place: usize,
        /// Why.
        #[source]
        source: WireError,
    },
}

/// Memory that sums are computed in, used again from call to call.
#[derive(Debug, Default)]
pub struct Scratch {
    /// [rows, cols]
    total: Vec<f32>,
    /// [rows, cols]
    partial: Vec<f32>,
    /// Scale of each row.
    exponents: Vec<i32>,
    encoded: Vec<u8>,
}

/// A part of a block of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Rows of the block.
    pub rows: Range<usize>,
    /// Columns of the block.
    pub cols: Range<usize>,
}

/// The part that each of `ranks` ranks sums in reduce-scatter: rows where there is one for each rank,
/// else columns. Parts may be empty.
pub fn slices(rows: usize, cols: usize, ranks: usize) -> Vec<Slice> {
    let cut = |items: usize, rank: usize| items * rank / ranks..items * (rank + 1) / ranks;
    let part = |rank: usize| {
        if rows >= ranks {
            return Slice { rows: cut(rows, rank), cols: 0..cols };
        }
        let grains = cut(cols.div_ceil(COLUMN_GRAIN), rank);
        let border = |grain: usize| (grain * COLUMN_GRAIN).min(cols);
        Slice { rows: 0..rows, cols: border(grains.start)..border(grains.end) }
    };
    (0..ranks).map(part).collect()
}

/// Appends the encoded partial sum `x`, `[rows, cols]`, to `out`.
///
/// # Errors
/// A row is not finite.
///
/// # Panics
/// When `x` has another length.
pub fn encode(
    dtype: WireType,
    x: &[f32],
    rows: usize,
    cols: usize,
    out: &mut Vec<u8>,
) -> Result<(), ReduceError> {
    Ok(wire::encode(dtype, rows, cols, x, out)?)
}

/// Appends the part `slice` of an encoded block of rows of `cols` values to `out`: again an encoded block.
///
/// # Panics
/// When the slice is not inside the block, or its columns are not on [`COLUMN_GRAIN`].
pub fn cut(dtype: WireType, block: &[u8], cols: usize, slice: &Slice, out: &mut Vec<u8>) {
    let Range { start, end } = slice.cols;
    assert!(start.is_multiple_of(COLUMN_GRAIN) && (end.is_multiple_of(COLUMN_GRAIN) || end == cols));
    if start == end {
        return;
    }
    // Bytes before a column, the row's own scale not counted.
    let scale = if dtype == WireType::F16 { wire::F16_SCALE_BYTES } else { 0 };
    let before = |col: usize| if col == 0 { 0 } else { encoded_len(dtype, 1, col) - scale };
    let row_bytes = encoded_len(dtype, 1, cols);
    for row in block.chunks_exact(row_bytes).skip(slice.rows.start).take(slice.rows.len()) {
        out.extend_from_slice(&row[..scale]);
        out.extend_from_slice(&row[scale + before(start)..scale + before(end)]);
    }
}

/// Appends the encoded sum of `partials` (encoded blocks, or equal slices of them, in rank order) to
/// `out`. None gives zeros.
///
/// # Errors
/// A partial cannot be decoded, or a row of the sum is not finite.
pub fn sum_encoded(
    dtype: WireType,
    partials: &[&[u8]],
    rows: usize,
    cols: usize,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> Result<(), ReduceError> {
    let Scratch { total, partial, exponents, .. } = scratch;
    total.clear();
    total.resize(rows * cols, 0.0);
    partial.resize(rows * cols, 0.0);
    exponents.clear();
    exponents.resize(rows, *wire::F16_EXPONENTS.start());
    for (place, bytes) in partials.iter().enumerate() {
        let into = if place == 0 { &mut *total } else { &mut *partial };
        wire::decode(dtype, bytes, rows, cols, into)
            .map_err(|source| ReduceError::Partial { place, source })?;
        if place > 0 {
            crate::kernels::add(total, partial);
        }
        if dtype == WireType::F16 && cols > 0 {
            for (largest, row) in exponents.iter_mut().zip(bytes.chunks_exact(encoded_len(dtype, 1, cols))) {
                *largest = wire::f16_exponent(row).max(*largest);
            }
        }
    }
    if dtype == WireType::F16 {
        let room = partials.len().max(1).next_power_of_two().trailing_zeros() as i32;
        exponents.iter_mut().for_each(|exponent| *exponent += room);
        wire::encode_f16_scaled(rows, cols, total, exponents, out)?;
    } else {
        wire::encode(dtype, rows, cols, total, out)?;
    }
    Ok(())
}

/// Decodes the encoded sum of `slice` into its place in `x`, a block of rows of `cols` values.
///
/// # Errors
/// The bytes are not those of the slice.
///
/// # Panics
/// When the slice is not inside `x`.
pub fn place(
    dtype: WireType,
    sum: &[u8],
    cols: usize,
    slice: &Slice,
    x: &mut [f32],
) -> Result<(), ReduceError> {
    if slice.cols == (0..cols) {
        let x = &mut x[slice.rows.start * cols..slice.rows.end * cols];
        return Ok(wire::decode(dtype, sum, slice.rows.len(), cols, x)?);
    }
    let width = slice.cols.len();
    let row_bytes = encoded_len(dtype, 1, width);
    let (expected, found) = (encoded_len(dtype, slice.rows.len(), width), sum.len());
    if width > 0 && found != expected {
        return Err(WireError::Length { found, expected, rows: slice.rows.len(), cols: width }.into());
    }
    for (row, bytes) in slice.rows.clone().zip(sum.chunks_exact(row_bytes.max(1))) {
        let x = &mut x[row * cols..][slice.cols.clone()];
        wire::decode(dtype, bytes, 1, width, x)?;
    }
    Ok(())
}

/// [`sum_encoded`], decoded into `x`: the whole function of a direct exchange.
///
/// # Errors
/// As [`sum_encoded`].
pub fn sum(
    dtype: WireType,
    partials: &[&[u8]],
    rows: usize,
    cols: usize,
    scratch: &mut Scratch,
    x: &mut [f32],
) -> Result<(), ReduceError> {
    let mut encoded = std::mem::take(&mut scratch.encoded);
    encoded.clear();
    let result = sum_encoded(dtype, partials, rows, cols, scratch, &mut encoded);
    let result = result.and_then(|()| Ok(wire::decode(dtype, &encoded, rows, cols, x)?));
    scratch.encoded = encoded;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPES: [WireType; 3] = [WireType::F32, WireType::F16, WireType::Q8];

    /// Partials whose rows differ by many powers of two, as those of real layers do; one row of zeros.
    fn partials(ranks: usize, rows: usize, cols: usize) -> Vec<Vec<f32>> {
        let mut state = 7_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let mut row = |rank: usize, row: usize| -> Vec<f32> {
            let size =
                if rank == 1 && row == 0 { 0.0 } else { 2f32.powi((rank * 7 + row * 3) as i32 % 40 - 20) };
            (0..cols).map(|_| next() * size).collect()
        };
        (0..ranks).map(|rank| (0..rows).flat_map(|index| row(rank, index)).collect()).collect()
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|value| value.to_bits()).collect()
    }

    fn encoded(dtype: WireType, partials: &[Vec<f32>], rows: usize, cols: usize) -> Vec<Vec<u8>> {
        let encode = |x: &Vec<f32>| {
            let mut out = Vec::new();
            encode(dtype, x, rows, cols, &mut out).unwrap();
            out
        };
        partials.iter().map(encode).collect()
    }

    fn views(blocks: &[Vec<u8>]) -> Vec<&[u8]> {
        blocks.iter().map(Vec::as_slice).collect()
    }

    #[test]
    fn direct_star_and_reduce_scatter_agree_bit_for_bit() {
        for dtype in TYPES {
            for ranks in 1..=6 {
                for (rows, cols) in [(1, 96), (1, 100), (2, 256), (5, 64), (8, 288), (7, 33)] {
                    let blocks = encoded(dtype, &partials(ranks, rows, cols), rows, cols);
                    let mut scratch = Scratch::default();
                    let mut direct = vec![f32::NAN; rows * cols];
                    sum(dtype, &views(&blocks), rows, cols, &mut scratch, &mut direct).unwrap();

                    let (mut star, mut bytes) = (vec![f32::NAN; rows * cols], Vec::new());
                    sum_encoded(dtype, &views(&blocks), rows, cols, &mut scratch, &mut bytes).unwrap();
                    let all = Slice { rows: 0..rows, cols: 0..cols };
                    place(dtype, &bytes, cols, &all, &mut star).unwrap();
                    assert_eq!(bits(&star), bits(&direct), "star {dtype:?} {ranks} {rows} {cols}");

                    let mut scattered = vec![f32::NAN; rows * cols];
                    for slice in slices(rows, cols, ranks) {
                        let parts: Vec<Vec<u8>> = blocks
                            .iter()
                            .map(|block| {
                                let mut part = Vec::new();
                                cut(dtype, block, cols, &slice, &mut part);
                                part
                            })
                            .collect();
                        let (n, width) = (slice.rows.len(), slice.cols.len());
                        bytes.clear();
                        sum_encoded(dtype, &views(&parts), n, width, &mut scratch, &mut bytes).unwrap();
                        place(dtype, &bytes, cols, &slice, &mut scattered).unwrap();
                    }
                    assert_eq!(bits(&scattered), bits(&direct), "scatter {dtype:?} {ranks} {rows} {cols}");
                }
            }
        }
    }

    #[test]
    fn the_sum_is_close_to_the_exact_one() {
        let (ranks, rows, cols) = (5, 6, 64);
        let partials = partials(ranks, rows, cols);
        for (dtype, relative) in [(WireType::F32, 1e-6), (WireType::F16, 2e-3), (WireType::Q8, 2e-2)] {
            let blocks = encoded(dtype, &partials, rows, cols);
            let mut x = vec![0.0; rows * cols];
            sum(dtype, &views(&blocks), rows, cols, &mut Scratch::default(), &mut x).unwrap();
            for row in 0..rows {
                let row = row * cols..(row + 1) * cols;
                let size = partials.iter().flat_map(|p| &p[row.clone()]).fold(0.0f32, |m, v| m.max(v.abs()));
                for at in row {
                    let exact: f64 = partials.iter().map(|partial| f64::from(partial[at])).sum();
                    let error = (f64::from(x[at]) - exact).abs();
                    assert!(error <= f64::from(size) * relative, "{dtype:?} {error} of {size}");
                }
            }
        }
    }

    #[test]
    fn rank_order_and_the_number_of_partials_are_what_counts() {
        for dtype in TYPES {
            let mut x = vec![f32::NAN; 64];
            sum(dtype, &[], 2, 32, &mut Scratch::default(), &mut x).unwrap();
            assert!(x.iter().all(|value| *value == 0.0));
            let short = [0_u8; 3];
            let blocks = encoded(dtype, &partials(1, 2, 32), 2, 32);
            let result = sum(dtype, &[&blocks[0], &short], 2, 32, &mut Scratch::default(), &mut x);
            assert!(matches!(result, Err(ReduceError::Partial { place: 1, .. })));
        }
        let mut out = Vec::new();
        assert!(encode(WireType::F16, &[1.0, f32::NAN], 1, 2, &mut out).is_err());
    }
}
