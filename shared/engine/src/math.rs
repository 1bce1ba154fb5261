//! Elementary functions that give the same bits on every processor: plain IEEE operations in a fixed order, no call into
//! the platform's mathematics library.

/// e to the power `x`, within 2 units in the last place; 0 below -104, infinity above 88.73, NaN for NaN. Loops over it
/// vectorize.
#[inline(always)]
#[must_use]
pub fn exp_f32(x: f32) -> f32 {
    /// Adding this leaves the sum's low bits as the nearest integer to the other addend.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; the first has so few bits that its product with the integer below is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Within this, the two powers of two below are normal numbers.
    let clamped = if x < -110.0 { -110.0 } else { x };
    let clamped = if clamped > 90.0 { 90.0 } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    // Taylor's series: |r| is at most 0.347, where its next term is under 6e-9.
    let mut sum = 1.0 / 5040.0;
    for term in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + term;
    }
    // 2^n in two steps, so that results below the normal range come out too.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let first = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    sum * power(first) * power(n.wrapping_sub(first))
}

/// e to the power `x`, in f64.
#[must_use]
pub fn exp_f64(x: f64) -> f64 {
    libm::exp(x)
}

/// e to the power `x`.
#[must_use]
pub fn exp(x: f64) -> f64 {
    libm::exp(x)
}

/// Natural logarithm.
#[must_use]
pub fn ln(x: f64) -> f64 {
    libm::log(x)
}

/// `base` to the power `exponent`.
#[must_use]
pub fn pow(base: f64, exponent: f64) -> f64 {
    libm::pow(base, exponent)
}

/// Sine of an angle in radians.
#[must_use]
pub fn sin(angle: f64) -> f64 {
    libm::sin(angle)
}

/// Cosine of an angle in radians.
#[must_use]
pub fn cos(angle: f64) -> f64 {
    libm::cos(angle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_near_and_its_ends_are_right() {
        let mut x = -87.0f32;
        while x < 88.7 {
            let (ours, exact) = (f64::from(exp_f32(x)), f64::from(x).exp());
            assert!((ours / exact - 1.0).abs() < 2.4e-7, "{x}: {ours} {exact}");
            x += 0.000_97;
        }
        assert_eq!((exp_f32(0.0), exp_f32(-200.0), exp_f32(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert_eq!((exp_f32(89.0), exp_f32(f32::INFINITY)), (f32::INFINITY, f32::INFINITY));
        assert!(exp_f32(f32::NAN).is_nan());
        assert!((f64::from(exp_f32(-100.0)) / (-100f64).exp() - 1.0).abs() < 0.03);
    }

    #[test]
    fn exp_has_these_bits_everywhere() {
        let bits = [-20.5f32, -1.0, -0.1, 0.3, 1.0, 10.25].map(|x| exp_f32(x).to_bits());
        let expected = [0x30ab_d1d8, 0x3ebc_5ab2, 0x3f67_a36d, 0x3fac_c82c, 0x402d_f854, 0x46dc_f516];
        assert_eq!(bits, expected, "{bits:#010x?}");
    }
}
