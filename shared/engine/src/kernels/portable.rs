//! The reference variant: plain code, no instruction named.

use super::{Isa, Job, LANES, Lanes, Stretch, blocks};
use crate::quant::{BLOCK, Format, Panel, f16_to_f32};

/// # Safety
/// As [`Job::run`].
pub(super) unsafe fn run(job: Job<'_>) {
    // SAFETY: the caller's promise.
    unsafe { job.run_with::<Portable>() }
}

struct Portable;

impl Isa for Portable {
    #[inline(always)]
    unsafe fn half(bits: u16) -> f32 {
        f16_to_f32(bits)
    }

    #[inline(always)]
    unsafe fn halves(bytes: &[u8], out: &mut [f32]) {
        out.iter_mut()
            .zip(bytes.as_chunks().0)
            .for_each(|(to, &from)| *to = f16_to_f32(u16::from_le_bytes(from)));
    }

    #[inline(always)]
    unsafe fn dot<const R: usize, const FINE: bool>(
        panel: &Panel,
        chunks: usize,
        x: &[Stretch<'_>; R],
        acc: &mut [Lanes; R],
    ) {
        for (x, acc) in x.iter().zip(acc) {
            let weights = panel.q.as_chunks::<BLOCK>().0.iter().zip(panel.scale.as_chunks::<2>().0);
            let inputs = x.q.as_chunks::<BLOCK>().0.iter().zip(x.scales);
            for (c, ((w, scales), (q, scale))) in weights.zip(inputs).take(chunks).enumerate() {
                let lanes = &mut acc.0.as_chunks_mut::<8>().0[c & 1];
                for (l, (w, q)) in w.as_chunks::<4>().0.iter().zip(q.as_chunks::<4>().0).enumerate() {
                    let sum: i32 = w.iter().zip(q).map(|(&w, &q)| i32::from(w) * i32::from(q)).sum();
                    let weight_scale = if FINE { scales[l / 4] } else { scales[0] };
                    lanes[l] += (weight_scale * scale) * sum as f32;
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn add_mins(panel: &Panel, sums: &[f32; LANES], acc: &mut Lanes) {
        for ((lane, min), sum) in acc.0.iter_mut().zip(&panel.min).zip(sums) {
            *lane += min * sum;
        }
    }

    unsafe fn blocks<F: Format>(job: Job<'_>) {
        // SAFETY: the caller's promise.
        unsafe { blocks::rows::<Self, F>(job) }
    }
}
