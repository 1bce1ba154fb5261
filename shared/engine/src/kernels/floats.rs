//! Products with float weights: `F32`, `F16`, `BF16`.
//!
//! Plain code save for widening f16: compiled inside a function for an instruction set, the loops over 16 lanes become its
//! vector instructions.

use super::{Isa, Job, LANES, Lanes};
use crate::quant::bf16_to_f32;

/// Weights widened at a time.
const PANEL: usize = 256;
/// Activation rows per pass over a weight row.
const TILE_ROWS: usize = 32;
/// Activation rows whose partial sums are in registers at a time.
const REGISTER_ROWS: usize = 4;

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct BF16;

/// A float format.
pub(super) trait Widen {
    const BYTES: usize;
    /// Widens as many weights as the panel holds.
    ///
    /// # Safety
    /// The processor has `I`'s instruction set.
    unsafe fn panel<I: Isa>(bytes: &[u8], panel: &mut [f32]);
}

impl Widen for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn panel<I: Isa>(bytes: &[u8], panel: &mut [f32]) {
        panel.iter_mut().zip(bytes.as_chunks().0).for_each(|(to, from)| *to = f32::from_le_bytes(*from));
    }
}

impl Widen for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn panel<I: Isa>(bytes: &[u8], panel: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { I::halves(bytes, panel) };
    }
}

impl Widen for BF16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn panel<I: Isa>(bytes: &[u8], panel: &mut [f32]) {
        panel
            .iter_mut()
            .zip(bytes.as_chunks().0)
            .for_each(|(to, from)| *to = bf16_to_f32(u16::from_le_bytes(*from)));
    }
}

/// # Safety
/// As [`Job::run`], and the processor has `I`'s instruction set.
#[inline(always)]
pub(super) unsafe fn rows<I: Isa, W: Widen>(job: Job<'_>) {
    let Job { w, x, y, first, end } = job;
    let cols = w.cols();
    let mut panel = [0.0f32; PANEL];
    let mut sums = [Lanes::ZERO; TILE_ROWS];
    for row in first..end {
        let bytes = w.row(row);
        for tile in (0..x.rows()).step_by(TILE_ROWS) {
            let t = TILE_ROWS.min(x.rows() - tile);
            sums[..t].fill(Lanes::ZERO);
            for start in (0..cols).step_by(PANEL) {
                let len = PANEL.min(cols - start);
                let panel = &mut panel[..len];
                // SAFETY: the processor has the instruction set.
                unsafe { W::panel::<I>(&bytes[start * W::BYTES..], panel) };
                let stretch = |r: usize| &x.values()[(tile + r) * cols + start..][..len];
                let (fours, rest) = sums[..t].as_chunks_mut::<REGISTER_ROWS>();
                for (i, sums) in fours.iter_mut().enumerate() {
                    add_many(panel, std::array::from_fn(|r| stretch(i * REGISTER_ROWS + r)), sums);
                }
                for (i, sums) in rest.iter_mut().enumerate() {
                    add_products(panel, stretch(fours.len() * REGISTER_ROWS + i), sums);
                }
            }
            for (r, sums) in sums[..t].iter().enumerate() {
                // SAFETY: row < end and tile + r < x.rows(): in bounds, and ours alone.
                unsafe { *y.add((tile + r) * w.rows() + row) = sums.sum() };
            }
        }
    }
}

/// [`add_products`] of one stretch of weights with several of activations: more independent sums at a time.
#[inline(always)]
fn add_many<const R: usize>(w: &[f32], x: [&[f32]; R], sums: &mut [Lanes; R]) {
    let whole = w.len() / LANES * LANES;
    let mut lanes = sums.map(|sums| sums.0);
    let parts = x.map(|x| x[..whole].as_chunks::<LANES>().0);
    for (i, w) in w[..whole].as_chunks::<LANES>().0.iter().enumerate() {
        for r in 0..R {
            for l in 0..LANES {
                lanes[r][l] += w[l] * parts[r][i][l];
            }
        }
    }
    for r in 0..R {
        sums[r].0 = lanes[r];
        add_products(&w[whole..], &x[r][whole..], &mut sums[r]);
    }
}

/// Adds `w[i] * x[i]` to lane `i mod 16`.
#[inline(always)]
pub(super) fn add_products(w: &[f32], x: &[f32], sums: &mut Lanes) {
    let mut lanes = sums.0;
    let ((w, w_rest), (x, x_rest)) = (w.as_chunks::<LANES>(), x.as_chunks::<LANES>());
    for (w, x) in w.iter().zip(x) {
        for l in 0..LANES {
            lanes[l] += w[l] * x[l];
        }
    }
    for (lane, (w, x)) in lanes.iter_mut().zip(w_rest.iter().zip(x_rest)) {
        *lane += w * x;
    }
    sums.0 = lanes;
}
