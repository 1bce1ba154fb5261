//! x86-64 with AVX2 and F16C.

use std::arch::x86_64::*;

use super::{Isa, Job, LANES, Lanes, Stretch, blocks};
use crate::quant::{Format, Panel};

/// # Safety
/// As [`Job::run`], and the processor has AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn run(job: Job<'_>) {
    // SAFETY: the caller's promise.
    unsafe { job.run_with::<Avx2>() }
}

struct Avx2;

impl Isa for Avx2 {
    #[inline(always)]
    unsafe fn half(bits: u16) -> f32 {
        // SAFETY: the processor has F16C, the caller says.
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
    }

    #[inline(always)]
    unsafe fn halves(bytes: &[u8], out: &mut [f32]) {
        let (eights, rest) = out.as_chunks_mut::<8>();
        for (to, from) in eights.iter_mut().zip(bytes.as_chunks::<16>().0) {
            // SAFETY: the processor has F16C, the caller says; both sides hold 8 numbers.
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())))
            };
        }
        for (to, from) in rest.iter_mut().zip(bytes[16 * eights.len()..].as_chunks().0) {
            // SAFETY: the processor has F16C, the caller says.
            *to = unsafe { Self::half(u16::from_le_bytes(*from)) };
        }
    }

    #[inline(always)]
    unsafe fn dot<const R: usize, const FINE: bool>(
        panel: &Panel,
        chunks: usize,
        x: &[Stretch<'_>; R],
        acc: &mut [Lanes; R],
    ) {
        // SAFETY: the processor has AVX2; panel and stretches hold `chunks` chunks of 32 integers, 2 and 1 scales; lanes are
        // 16 floats aligned to 64 bytes.
        unsafe {
            let mut sums: [[__m256; 2]; R] = std::array::from_fn(|r| {
                let lanes = acc[r].0.as_ptr();
                [_mm256_load_ps(lanes), _mm256_load_ps(lanes.add(8))]
            });
            for c in (0..chunks & !1).step_by(2) {
                chunk::<R, FINE, 0>(panel, c, x, &mut sums);
                chunk::<R, FINE, 1>(panel, c + 1, x, &mut sums);
            }
            if chunks & 1 == 1 {
                chunk::<R, FINE, 0>(panel, chunks - 1, x, &mut sums);
            }
            for (sums, acc) in sums.iter().zip(acc) {
                _mm256_store_ps(acc.0.as_mut_ptr(), sums[0]);
                _mm256_store_ps(acc.0.as_mut_ptr().add(8), sums[1]);
            }
        }
    }

    #[inline(always)]
    unsafe fn add_mins(panel: &Panel, sums: &[f32; LANES], acc: &mut Lanes) {
        // SAFETY: the processor has AVX2; all three are 16 floats.
        unsafe {
            for i in [0, 8] {
                let products = _mm256_mul_ps(_mm256_load_ps(&panel.min[i]), _mm256_loadu_ps(&sums[i]));
                let lanes = acc.0.as_mut_ptr().add(i);
                _mm256_store_ps(lanes, _mm256_add_ps(_mm256_load_ps(lanes), products));
            }
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    unsafe fn blocks<F: Format>(job: Job<'_>) {
        // SAFETY: the caller's promise.
        unsafe { blocks::rows::<Self, F>(job) }
    }
}

/// Chunk `c`, whose parity is `SET`.
#[inline(always)]
unsafe fn chunk<const R: usize, const FINE: bool, const SET: usize>(
    panel: &Panel,
    c: usize,
    x: &[Stretch<'_>; R],
    sums: &mut [[__m256; 2]; R],
) {
    // SAFETY: the caller's promise: AVX2, and `c` is a chunk of the panel and of every stretch.
    unsafe {
        let w = _mm256_load_si256(panel.q.as_ptr().add(32 * c).cast());
        let magnitudes = _mm256_abs_epi8(w);
        let scale = panel.scale.as_ptr().add(2 * c);
        let scale = if FINE {
            _mm256_set_m128(_mm_broadcast_ss(&*scale.add(1)), _mm_broadcast_ss(&*scale))
        } else {
            _mm256_broadcast_ss(&*scale)
        };
        for r in 0..R {
            let q = _mm256_loadu_si256(x[r].q.as_ptr().add(32 * c).cast());
            // |w| times q with w's sign. Pairs fit 16 bits: at most 2 x 128 x 127.
            let pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(q, w));
            let fours = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            let scale = _mm256_mul_ps(scale, _mm256_broadcast_ss(&*x[r].scales.as_ptr().add(c)));
            sums[r][SET] = _mm256_add_ps(sums[r][SET], _mm256_mul_ps(scale, fours));
        }
    }
}
