//! Products with quantized weights: rows of weights by panels by rows of activations.
//!
//! A few weight rows are decoded panel by panel into a buffer that stays in the first-level cache, and each decoded panel
//! meets every activation row of a tile. One activation row takes the same path with a tile of one.

use super::{Isa, Job, Lanes, Stretch};
use crate::quant::{Activations, BLOCK, Format, PANEL, Panel, panel_bytes};

/// Weight rows decoded together when there are several activation rows, so that those are fetched less often.
const WEIGHT_ROWS: usize = super::ROW_GRAIN;
/// Activation rows per pass: their panels (8 kB) and partial sums (16 kB) stay in a first-level cache of 32 kB.
const TILE_ROWS: usize = 32;
/// Activation rows whose partial sums are in registers at a time.
const REGISTER_ROWS: usize = 4;

const CHUNKS: usize = PANEL / BLOCK;

/// # Safety
/// As [`Job::run`], and the processor has `I`'s instruction set.
#[inline(always)]
pub(super) unsafe fn rows<I: Isa, F: Format>(job: Job<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        if job.x.rows() == 1 {
            tiles::<I, F, 1, 1>(job);
        } else {
            tiles::<I, F, WEIGHT_ROWS, TILE_ROWS>(job);
        }
    }
}

#[inline(always)]
unsafe fn tiles<I: Isa, F: Format, const N: usize, const T: usize>(job: Job<'_>) {
    let Job { w, x, y, first, end } = job;
    let chunks = w.cols() / BLOCK;
    let mut panels = [const { Panel::new() }; N];
    let mut dots = [[Lanes::ZERO; T]; N];
    let mut mins = [[Lanes::ZERO; T]; N];
    for row in (first..end).step_by(N) {
        let n = N.min(end - row);
        for tile in (0..x.rows()).step_by(T) {
            let t = T.min(x.rows() - tile);
            for i in 0..n {
                dots[i][..t].fill(Lanes::ZERO);
                mins[i][..t].fill(Lanes::ZERO);
            }
            for (p, chunk) in (0..chunks).step_by(CHUNKS).enumerate() {
                let len = CHUNKS.min(chunks - chunk);
                for (i, panel) in panels[..n].iter_mut().enumerate() {
                    let from = p * panel_bytes::<F>();
                    let blocks = &w.row(row + i)[from..];
                    let blocks = &blocks[..blocks.len().min(panel_bytes::<F>())];
                    // SAFETY: the processor has the instruction set.
                    F::decode(blocks, panel, |bits| unsafe { I::half(bits) });
                }
                // SAFETY: the processor has the instruction set.
                unsafe {
                    panel_products::<I, F, T>(x, tile, t, chunk, len, &panels[..n], &mut dots, &mut mins)
                };
            }
            for i in 0..n {
                for r in 0..t {
                    let dot = dots[i][r].sum();
                    let value = if F::HAS_MIN { dot - mins[i][r].sum() } else { dot };
                    // SAFETY: row + i < end and tile + r < x.rows(): in bounds, and ours alone.
                    unsafe { *y.add((tile + r) * w.rows() + row + i) = value };
                }
            }
        }
    }
}

/// Each of the decoded panels with each activation row of the tile.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the innermost step of five nested loops, inlined")]
unsafe fn panel_products<I: Isa, F: Format, const T: usize>(
    x: &Activations,
    tile: usize,
    t: usize,
    chunk: usize,
    len: usize,
    panels: &[Panel],
    dots: &mut [[Lanes; T]],
    mins: &mut [[Lanes; T]],
) {
    let mut r = 0;
    while T >= REGISTER_ROWS && r + REGISTER_ROWS <= t {
        let stretches: [Stretch<'_>; REGISTER_ROWS] =
            std::array::from_fn(|i| stretch(x, tile + r + i, chunk, len));
        for (i, panel) in panels.iter().enumerate() {
            let dots = &mut dots[i][r..].as_chunks_mut().0[0];
            // SAFETY: the processor has the instruction set; stretches and panel hold `len` chunks.
            unsafe { dot::<I, F, REGISTER_ROWS>(panel, len, &stretches, dots) };
        }
        r += REGISTER_ROWS;
    }
    while r < t {
        let stretches = [stretch(x, tile + r, chunk, len)];
        for (i, panel) in panels.iter().enumerate() {
            let dots = &mut dots[i][r..].as_chunks_mut().0[0];
            // SAFETY: as above.
            unsafe { dot::<I, F, 1>(panel, len, &stretches, dots) };
        }
        r += 1;
    }
    if F::HAS_MIN {
        for (panel, mins) in panels.iter().zip(mins) {
            for (r, mins) in mins[..t].iter_mut().enumerate() {
                // SAFETY: the processor has the instruction set.
                unsafe { add_mins::<I>(panel, stretch(x, tile + r, chunk, len), mins) };
            }
        }
    }
}

#[inline(always)]
unsafe fn dot<I: Isa, F: Format, const R: usize>(
    panel: &Panel,
    len: usize,
    x: &[Stretch<'_>; R],
    dots: &mut [Lanes; R],
) {
    // SAFETY: the caller's promise.
    unsafe {
        if F::FINE_SCALES {
            I::dot::<R, true>(panel, len, x, dots);
        } else {
            I::dot::<R, false>(panel, len, x, dots);
        }
    }
}

/// A panel's minimums times the activations' sums. Apart from the dot products, because sums of both kinds that lie a
/// multiple of 4 kB apart would stall each other.
#[inline(always)]
unsafe fn add_mins<I: Isa>(panel: &Panel, x: Stretch<'_>, mins: &mut Lanes) {
    if let Ok(sums) = x.sums.try_into() {
        // SAFETY: the caller's promise.
        unsafe { I::add_mins(panel, sums, mins) };
    } else {
        for (i, sum) in x.sums.iter().enumerate() {
            mins.0[i] += panel.min[i] * sum;
        }
    }
}

#[inline(always)]
fn stretch(x: &Activations, row: usize, chunk: usize, len: usize) -> Stretch<'_> {
    let (q, scales, sums) = x.row(row);
    Stretch {
        q: &q[chunk * BLOCK..][..len * BLOCK],
        scales: &scales[chunk..][..len],
        sums: &sums[chunk * 2..][..len * 2],
    }
}
