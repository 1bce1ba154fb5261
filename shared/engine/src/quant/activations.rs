//! Activations as the kernels read them: floats, and 8-bit integers in blocks of 32.

use crate::pool::Pool;
use crate::quant::GROUP;

/// Activations that share a scale.
pub const BLOCK: usize = 32;

/// A block whose largest magnitude is below this is taken as zero: the reciprocal of its scale would overflow.
const SMALLEST_MAXIMUM: f32 = 1e-35;

/// A batch of activation rows, `[rows, cols]`, in both forms that weights are multiplied with. Reused from step to step
/// without allocation once it has seen the largest shape.
///
/// Each block of 32 has the scale `max|x| / 127` and integers `x / scale` rounded half to even. A row's content depends on
/// that row alone. A NaN or infinity gives its block a scale that is not finite, so that every product with it is not
/// finite either.
#[derive(Debug, Default, Clone)]
pub struct Activations {
    rows: usize,
    cols: usize,
    /// `[rows, cols]`
    values: Vec<f32>,
    /// `[rows, cols]`; empty when `cols` is not whole blocks.
    q: Vec<i8>,
    /// `[rows, cols / 32]`
    scales: Vec<f32>,
    /// `[rows, cols / 16]`: scale times the sum of 16 integers, for weights with minimums.
    sums: Vec<f32>,
}

impl Activations {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty batch with room for `rows` rows of `cols`.
    #[must_use]
    pub fn with_capacity(rows: usize, cols: usize) -> Self {
        let (values, blocks) = (rows * cols, rows * cols.div_ceil(BLOCK));
        Self {
            values: Vec::with_capacity(values),
            q: Vec::with_capacity(values),
            scales: Vec::with_capacity(blocks),
            sums: Vec::with_capacity(blocks * 2),
            ..Self::default()
        }
    }

    /// Bytes held, as allocated.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let floats = self.values.capacity() + self.scales.capacity() + self.sums.capacity();
        floats * size_of::<f32>() + self.q.capacity()
    }

    /// Takes over `x`, `[rows, cols]`.
    ///
    /// # Panics
    /// When `x.len()` is not `rows * cols`.
    pub fn load(&mut self, pool: &Pool, x: &[f32], rows: usize, cols: usize) {
        assert_eq!(x.len(), rows * cols, "activations of {rows} x {cols}");
        (self.rows, self.cols) = (rows, cols);
        self.values.clear();
        self.values.extend_from_slice(x);
        let blocks = if cols.is_multiple_of(BLOCK) { x.len() / BLOCK } else { 0 };
        self.q.resize(blocks * BLOCK, 0);
        self.scales.resize(blocks, 0.0);
        self.sums.resize(blocks * 2, 0.0);
        let (q, scales, sums) = (&mut self.q[..], &mut self.scales[..], &mut self.sums[..]);
        pool.for_slices(
            blocks,
            BLOCKS_PER_JOB,
            (q, BLOCK),
            (scales, 1),
            (sums, 2),
            |first, q, scales, sums| {
                quantize(&x[first * BLOCK..][..q.len()], q, scales, sums);
            },
        );
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The rows as they were loaded, `[rows, cols]`.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Whether the rows are whole blocks, so that quantized weights can be multiplied with them.
    #[must_use]
    pub fn is_quantized(&self) -> bool {
        self.cols.is_multiple_of(BLOCK)
    }

    /// Integers, scales and sums of a row.
    pub(crate) fn row(&self, row: usize) -> (&[i8], &[f32], &[f32]) {
        let blocks = self.cols / BLOCK;
        (
            &self.q[row * self.cols..][..self.cols],
            &self.scales[row * blocks..][..blocks],
            &self.sums[row * blocks * 2..][..blocks * 2],
        )
    }
}

/// Below this a job is not worth waking a thread for: 16 kB of floats, about 4 µs.
const BLOCKS_PER_JOB: usize = 128;

fn quantize(x: &[f32], q: &mut [i8], scales: &mut [f32], sums: &mut [f32]) {
    let blocks = x.as_chunks::<BLOCK>().0.iter().zip(q.as_chunks_mut::<BLOCK>().0);
    for ((x, q), (scale, sums)) in blocks.zip(scales.iter_mut().zip(sums.as_chunks_mut::<2>().0)) {
        *scale = quantize_block(x, q);
        for (sum, group) in sums.iter_mut().zip(q.as_chunks::<GROUP>().0) {
            // At most 16 x 127: exact as f32.
            *sum = *scale * group.iter().map(|&q| i32::from(q)).sum::<i32>() as f32;
        }
    }
}

/// Returns the scale.
pub(crate) fn quantize_block(x: &[f32; BLOCK], q: &mut [i8; BLOCK]) -> f32 {
    /// Adding this leaves the sum's low bits as the integer nearest to the other addend, half to even.
    const ROUND: f32 = 12_582_912.0;
    // On magnitudes, integer order is float order, and NaN is above infinity.
    let largest = f32::from_bits(x.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7fff_ffff)));
    if !(SMALLEST_MAXIMUM..f32::INFINITY).contains(&largest) {
        q.fill(0);
        return if largest < SMALLEST_MAXIMUM { 0.0 } else { f32::NAN };
    }
    let inverse = 127.0 / largest;
    for (q, x) in q.iter_mut().zip(x) {
        *q = (x * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i8;
    }
    largest / 127.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_scales_and_sums_are_as_described() {
        let mut x = [0.0f32; 96];
        (x[0], x[1], x[2], x[3], x[31]) = (127.0, 0.5, 1.5, -2.5, -126.6);
        (x[64], x[70]) = (1e-36, -1e-37);
        let mut activations = Activations::new();
        activations.load(&Pool::new(1).unwrap(), &x, 1, 96);
        let (q, scales, sums) = activations.row(0);
        assert_eq!(scales, [1.0, 0.0, 0.0]);
        assert_eq!((q[0], q[1], q[2], q[3], q[31]), (127, 0, 2, -2, -127));
        assert_eq!(sums, [127.0, -127.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0f32; 64];
            x[40] = bad;
            let mut activations = Activations::new();
            activations.load(&Pool::new(1).unwrap(), &x, 1, 64);
            let (_, scales, _) = activations.row(0);
            assert!(scales[0].is_finite() && !scales[1].is_finite());
        }
    }

    #[test]
    fn threads_and_neighbours_change_nothing() {
        let x: Vec<f32> = (0..70 * 160).map(|i| ((i * 2_654_435_761_usize) as i32) as f32 * 1e-7).collect();
        let (one, three) = (Pool::new(1).unwrap(), Pool::new(3).unwrap());
        let (mut all, mut alone) = (Activations::new(), Activations::new());
        all.load(&three, &x, 70, 160);
        for row in 0..70 {
            alone.load(&one, &x[row * 160..][..160], 1, 160);
            assert_eq!(alone.row(0), all.row(row));
        }
    }
}
