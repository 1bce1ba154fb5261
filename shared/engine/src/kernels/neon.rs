//! AArch64, with and without the integer dot product instructions.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Isa, Job, LANES, Lanes, Stretch, blocks};
use crate::quant::{Format, Panel, f16_to_f32};

/// # Safety
/// As [`Job::run`].
pub(super) unsafe fn run(job: Job<'_>) {
    // SAFETY: the caller's promise; NEON is part of the target's baseline.
    unsafe { job.run_with::<Neon>() }
}

/// # Safety
/// As [`Job::run`], and the processor has the dot product instructions.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn run_dotprod(job: Job<'_>) {
    // SAFETY: the caller's promise.
    unsafe { job.run_with::<Dotprod>() }
}

struct Neon;
struct Dotprod;

impl Isa for Neon {
    #[inline(always)]
    unsafe fn half(bits: u16) -> f32 {
        f16_to_f32(bits)
    }

    #[inline(always)]
    unsafe fn halves(bytes: &[u8], out: &mut [f32]) {
        halves(bytes, out);
    }

    #[inline(always)]
    unsafe fn dot<const R: usize, const FINE: bool>(
        panel: &Panel,
        chunks: usize,
        x: &[Stretch<'_>; R],
        acc: &mut [Lanes; R],
    ) {
        // SAFETY: the caller's promise.
        unsafe { dot::<Self, R, FINE>(panel, chunks, x, acc) }
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

impl Isa for Dotprod {
    #[inline(always)]
    unsafe fn half(bits: u16) -> f32 {
        f16_to_f32(bits)
    }

    #[inline(always)]
    unsafe fn halves(bytes: &[u8], out: &mut [f32]) {
        halves(bytes, out);
    }

    #[inline(always)]
    unsafe fn dot<const R: usize, const FINE: bool>(
        panel: &Panel,
        chunks: usize,
        x: &[Stretch<'_>; R],
        acc: &mut [Lanes; R],
    ) {
        // SAFETY: the caller's promise.
        unsafe { dot::<Self, R, FINE>(panel, chunks, x, acc) }
    }

    #[inline(always)]
    unsafe fn add_mins(panel: &Panel, sums: &[f32; LANES], acc: &mut Lanes) {
        for ((lane, min), sum) in acc.0.iter_mut().zip(&panel.min).zip(sums) {
            *lane += min * sum;
        }
    }

    #[target_feature(enable = "neon,dotprod")]
    unsafe fn blocks<F: Format>(job: Job<'_>) {
        // SAFETY: the caller's promise.
        unsafe { blocks::rows::<Self, F>(job) }
    }
}

#[inline(always)]
fn halves(bytes: &[u8], out: &mut [f32]) {
    let (fours, rest) = out.as_chunks_mut::<4>();
    for (to, from) in fours.iter_mut().zip(bytes.as_chunks::<8>().0) {
        // SAFETY: widening halves is part of the target's baseline; both sides hold 4 numbers.
        unsafe {
            let wide: float32x4_t;
            asm!(
                "fcvtl {wide:v}.4s, {halves:v}.4h",
                wide = out(vreg) wide,
                halves = in(vreg) vld1_u8(from.as_ptr()),
                options(pure, nomem, nostack, preserves_flags),
            );
            vst1q_f32(to.as_mut_ptr(), wide);
        }
    }
    for (to, from) in rest.iter_mut().zip(bytes[8 * fours.len()..].as_chunks().0) {
        *to = f16_to_f32(u16::from_le_bytes(*from));
    }
}

/// Sums of four neighbouring products of bytes.
trait Fours {
    /// # Safety
    /// The processor has the instructions.
    unsafe fn fours(w: int8x16_t, x: int8x16_t) -> int32x4_t;
}

impl Fours for Neon {
    #[inline(always)]
    unsafe fn fours(w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: NEON is part of the target's baseline. A product of bytes fits 16 bits, and pairs are added in 32.
        unsafe {
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)));
            let high = vpaddlq_s16(vmull_s8(vget_high_s8(w), vget_high_s8(x)));
            vpaddq_s32(low, high)
        }
    }
}

impl Fours for Dotprod {
    #[inline(always)]
    unsafe fn fours(w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: the processor has the instruction, the caller says; it touches registers alone.
        unsafe {
            let mut sums = vdupq_n_s32(0);
            asm!(
                ".arch_extension dotprod",
                "sdot {sums:v}.4s, {w:v}.16b, {x:v}.16b",
                sums = inout(vreg) sums,
                w = in(vreg) w,
                x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags),
            );
            sums
        }
    }
}

#[inline(always)]
unsafe fn dot<S: Fours, const R: usize, const FINE: bool>(
    panel: &Panel,
    chunks: usize,
    x: &[Stretch<'_>; R],
    acc: &mut [Lanes; R],
) {
    // SAFETY: panel and stretches hold `chunks` chunks of 32 integers, 2 and 1 scales; lanes are 16 floats.
    unsafe {
        let mut sums: [[float32x4_t; 4]; R] =
            std::array::from_fn(|r| std::array::from_fn(|i| vld1q_f32(acc[r].0.as_ptr().add(4 * i))));
        for c in (0..chunks & !1).step_by(2) {
            chunk::<S, R, FINE, 0>(panel, c, x, &mut sums);
            chunk::<S, R, FINE, 2>(panel, c + 1, x, &mut sums);
        }
        if chunks & 1 == 1 {
            chunk::<S, R, FINE, 0>(panel, chunks - 1, x, &mut sums);
        }
        for (sums, acc) in sums.iter().zip(acc) {
            for (i, &sum) in sums.iter().enumerate() {
                vst1q_f32(acc.0.as_mut_ptr().add(4 * i), sum);
            }
        }
    }
}

/// Chunk `c`, whose sums are in registers `SET` and `SET + 1`.
#[inline(always)]
unsafe fn chunk<S: Fours, const R: usize, const FINE: bool, const SET: usize>(
    panel: &Panel,
    c: usize,
    x: &[Stretch<'_>; R],
    sums: &mut [[float32x4_t; 4]; R],
) {
    // SAFETY: the caller's promise: `c` is a chunk of the panel and of every stretch.
    unsafe {
        let w = panel.q.as_ptr().add(32 * c);
        let (low, high) = (vld1q_s8(w), vld1q_s8(w.add(16)));
        for r in 0..R {
            let q = x[r].q.as_ptr().add(32 * c);
            let scale = *x[r].scales.get_unchecked(c);
            let first = panel.scale[2 * c] * scale;
            let second = if FINE { panel.scale[2 * c + 1] * scale } else { first };
            let low = vmulq_n_f32(vcvtq_f32_s32(S::fours(low, vld1q_s8(q))), first);
            let high = vmulq_n_f32(vcvtq_f32_s32(S::fours(high, vld1q_s8(q.add(16)))), second);
            sums[r][SET] = vaddq_f32(sums[r][SET], low);
            sums[r][SET + 1] = vaddq_f32(sums[r][SET + 1], high);
        }
    }
}
