//! Operations on vectors between the products: norms, activation functions, softmax, and attention's products with f16
//! keys and values. Plain IEEE operations in one order; sums run in 16 lanes and a fixed tree, as in the products.
//!
//! Each function is compiled a second time for AVX2 where the processor may have it: same code, wider instructions, same
//! bits.

use super::floats::add_products;
use super::{LANES, Lanes};
use crate::math;
use crate::pool::Pool;
use crate::quant::f16_to_f32;

/// Defines functions that run their body compiled for the best instruction set at hand.
macro_rules! vectorized {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? $body:block)*) => {$(
        $(#[$doc])*
        #[inline]
        $vis fn $name($($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,f16c")]
                fn avx2($($arg: $type),*) $(-> $result)? { body($($arg),*) }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
                    // SAFETY: just detected.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    )*};
}

vectorized! {
    /// The sum of `a[i] * b[i]` over the shorter length.
    #[must_use]
    pub fn dot(a: &[f32], b: &[f32]) -> f32 {
        let len = a.len().min(b.len());
        let mut lanes = Lanes::ZERO;
        add_products(&a[..len], &b[..len], &mut lanes);
        lanes.sum()
    }

    /// The sum of `a[i] * b[i]` where `b` holds f16 bits, over the shorter length.
    #[must_use]
    pub fn dot_f16(a: &[f32], b: &[u16]) -> f32 {
        let len = a.len().min(b.len());
        let ((a, a_rest), (b, b_rest)) = (a[..len].as_chunks::<LANES>(), b[..len].as_chunks::<LANES>());
        let mut lanes = [0.0f32; LANES];
        for (a, b) in a.iter().zip(b) {
            for l in 0..LANES {
                lanes[l] += a[l] * f16_to_f32(b[l]);
            }
        }
        for (lane, (a, &b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
            *lane += a * f16_to_f32(b);
        }
        Lanes(lanes).sum()
    }

    /// `y[i] += factor * x[i]` where `x` holds f16 bits.
    pub fn add_scaled_f16(y: &mut [f32], factor: f32, x: &[u16]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y += factor * f16_to_f32(x);
        }
    }

    /// `y[i] += x[i]`.
    pub fn add(y: &mut [f32], x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }

    /// `x[i] *= factor`.
    pub fn scale(x: &mut [f32], factor: f32) {
        for x in x {
            *x *= factor;
        }
    }

    /// `y[i] += factor * x[i]`.
    pub fn add_scaled(y: &mut [f32], factor: f32, x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += factor * x;
        }
    }

    /// `out = x / sqrt(mean(x^2) + eps) * weight`, one row.
    pub fn rmsnorm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let factor = norm_factor(x, eps);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * factor * weight;
        }
    }

    /// [`rmsnorm`] onto its own input.
    pub fn rmsnorm_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
        let factor = norm_factor(x, eps);
        for (x, weight) in x.iter_mut().zip(weight) {
            *x = *x * factor * weight;
        }
    }

    /// `gate[i] = silu(gate[i]) * up[i]`, with `silu(x) = x / (1 + e^-x)`.
    fn silu_mul_part(gate: &mut [f32], up: &[f32]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = *gate / (1.0 + math::exp_f32(-*gate)) * up;
        }
    }

    /// The largest element; negative infinity when there is none. NaN counts only when it comes first.
    #[must_use]
    pub fn max(x: &[f32]) -> f32 {
        let (chunks, rest) = x.as_chunks::<LANES>();
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane = if x > *lane { x } else { *lane };
            }
        }
        let larger = |most: f32, &x: &f32| if x > most { x } else { most };
        rest.iter().fold(lanes.iter().fold(f32::NEG_INFINITY, larger), larger)
    }

    /// `x[i] = e^(x[i] - shift)`; returns the sum of the results.
    pub fn exp_sum(x: &mut [f32], shift: f32) -> f32 {
        let (chunks, rest) = x.as_chunks_mut::<LANES>();
        let mut lanes = Lanes::ZERO;
        for chunk in chunks {
            for (lane, x) in lanes.0.iter_mut().zip(chunk) {
                *x = math::exp_f32(*x - shift);
                *lane += *x;
            }
        }
        for (lane, x) in lanes.0.iter_mut().zip(rest) {
            *x = math::exp_f32(*x - shift);
            *lane += *x;
        }
        lanes.sum()
    }

    /// Weights that sum to one, in proportion to `e^x[i]`.
    pub fn softmax(x: &mut [f32]) {
        let most = max(x);
        let sum = exp_sum(x, most);
        scale(x, 1.0 / sum);
    }
}

/// [`rmsnorm`] of each row: `x` and `out` are `[rows, weight.len()]`.
///
/// # Panics
/// When `x` and `out` differ in length or are not whole rows.
pub fn rmsnorm_rows(pool: &Pool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let cols = weight.len();
    assert!(x.len() == out.len() && x.len().is_multiple_of(cols), "whole rows of {cols}");
    let grain = ELEMENTS_PER_JOB.div_ceil(cols);
    pool.for_slices(
        x.len() / cols,
        grain,
        (out, cols),
        (&mut [(); 0], 0),
        (&mut [(); 0], 0),
        |first, out, _, _| {
            for (x, out) in x[first * cols..].chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
                rmsnorm(x, weight, eps, out);
            }
        },
    );
}

/// `gate[i] = silu(gate[i]) * up[i]`, with `silu(x) = x / (1 + e^-x)`.
///
/// # Panics
/// When the lengths differ.
pub fn silu_mul(pool: &Pool, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up");
    let none = (&mut [(); 0][..], 0);
    pool.for_slices(up.len(), ELEMENTS_PER_JOB, (gate, 1), none, (&mut [(); 0], 0), |first, gate, _, _| {
        silu_mul_part(gate, &up[first..][..gate.len()]);
    });
}

/// Below this a thread is not worth waking: about 4 µs of work.
const ELEMENTS_PER_JOB: usize = 4096;

#[inline(always)]
fn norm_factor(x: &[f32], eps: f32) -> f32 {
    let mut lanes = Lanes::ZERO;
    add_products(x, x, &mut lanes);
    1.0 / (lanes.sum() / x.len() as f32 + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<f32> {
        (0..len as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0)
            .collect()
    }

    #[test]
    fn dots_of_any_length_agree_with_f64() {
        for len in [0, 1, 15, 16, 17, 64, 333] {
            let (a, b) = (noise(len), noise(len + 5)[5..].to_vec());
            let halves: Vec<u16> = b.iter().map(|&b| half::f16::from_f32(b).to_bits()).collect();
            let exact: f64 = a.iter().zip(&b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            assert!((f64::from(dot(&a, &b)) - exact).abs() < 1e-4);
            assert!((f64::from(dot_f16(&a, &halves)) - exact).abs() < 2e-2);
            let widened: Vec<f32> = halves.iter().map(|&b| half::f16::from_bits(b).to_f32()).collect();
            assert_eq!(dot_f16(&a, &halves).to_bits(), dot(&a, &widened).to_bits());
        }
    }

    #[test]
    fn norm_silu_and_softmax_are_what_their_formulas_say() {
        let (x, weight) = (noise(100), noise(107)[7..].to_vec());
        let mut out = vec![0.0; 100];
        rmsnorm(&x, &weight, 1e-5, &mut out);
        let mean: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 100.0;
        for i in 0..100 {
            let exact = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(weight[i]);
            assert!((f64::from(out[i]) - exact).abs() < 1e-6);
        }
        let mut gate = x.clone();
        silu_mul(&Pool::new(2).unwrap(), &mut gate, &weight);
        for i in 0..100 {
            let exact = f64::from(x[i]) / (1.0 + (-f64::from(x[i])).exp()) * f64::from(weight[i]);
            assert!((f64::from(gate[i]) - exact).abs() < 1e-6);
        }
        let mut weights: Vec<f32> = x.iter().map(|x| x * 30.0).collect();
        softmax(&mut weights);
        let total: f64 = x.iter().map(|&x| (f64::from(x) * 30.0).exp()).sum();
        for i in 0..100 {
            assert!((f64::from(weights[i]) - (f64::from(x[i]) * 30.0).exp() / total).abs() < 1e-6);
        }
        assert_eq!(max(&[-3.0, -1.0, -2.0]), -1.0);
        assert_eq!(max(&[]), f32::NEG_INFINITY);
    }

    #[test]
    fn a_norm_has_these_bits_everywhere() {
        let (x, weight) = (noise(77), noise(77));
        let mut out = vec![0.0; 77];
        rmsnorm(&x, &weight, 1e-5, &mut out);
        softmax(&mut out);
        let digest = out.iter().fold(0u32, |sum, x| sum.rotate_left(5) ^ x.to_bits());
        assert_eq!(digest, 0xc2d5_e72f, "{digest:#010x}");
    }
}
