//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864), with linear and YaRN stretching and
//! per-frequency divisors.
//!
//! Angles and their sines are computed in 64 bits by portable code, so that every processor rotates by
//! the same bits; they are computed once per step and shared by all layers.

use shoal_core::model::{Arch, RopeScaling, RopeSpec};

use crate::math;

/// Which values of a head make a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pairs {
    /// Values 2i and 2i + 1: files of the llama family are stored for that.
    Neighbours,
    /// Values i and i + dims/2.
    Halves,
}

/// The rotation of a model.
#[derive(Debug, Clone)]
pub(super) struct Rope {
    pairs: Pairs,
    /// Angle of a pair per position: dims/2.
    frequencies: Vec<f64>,
    /// Multiplier of rotated values (YaRN's attention temperature).
    magnitude: f64,
}

impl Rope {
    /// `factors` are the divisors of the file, dims/2 of them, if it has any.
    pub(super) fn new(arch: Arch, rope: &RopeSpec, factors: Option<&[f32]>) -> Self {
        let pairs = match arch {
            Arch::Llama => Pairs::Neighbours,
            Arch::Qwen2 | Arch::Qwen3 => Pairs::Halves,
        };
        let half = rope.dims / 2;
        let frequencies = (0..half).map(|i| {
            let own = math::pow(f64::from(rope.base), -2.0 * f64::from(i) / f64::from(rope.dims));
            let divisor = factors.and_then(|all| all.get(i as usize)).map_or(1.0, |&f| f64::from(f));
            stretched(own / divisor, i, rope)
        });
        Self { pairs, frequencies: frequencies.collect(), magnitude: magnitude(&rope.scaling) }
    }

    /// Values of a head that are rotated.
    pub(super) fn dims(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Cosine and sine of each pair at `position`: `out` is dims values, alternating.
    pub(super) fn angles(&self, position: u32, out: &mut [f32]) {
        for (pair, frequency) in out.chunks_exact_mut(2).zip(&self.frequencies) {
            let angle = f64::from(position) * frequency;
            pair[0] = (math::cos(angle) * self.magnitude) as f32;
            pair[1] = (math::sin(angle) * self.magnitude) as f32;
        }
    }

    /// Rotates one head in place by [`Rope::angles`].
    pub(super) fn rotate(&self, head: &mut [f32], angles: &[f32]) {
        let turn = |a: f32, b: f32, cos: f32, sin: f32| (a * cos - b * sin, a * sin + b * cos);
        match self.pairs {
            Pairs::Neighbours => {
                for (pair, angle) in head.chunks_exact_mut(2).zip(angles.chunks_exact(2)) {
                    (pair[0], pair[1]) = turn(pair[0], pair[1], angle[0], angle[1]);
                }
            }
            Pairs::Halves => {
                let (first, rest) = head.split_at_mut(self.frequencies.len());
                for ((a, b), angle) in first.iter_mut().zip(rest).zip(angles.chunks_exact(2)) {
                    (*a, *b) = turn(*a, *b, angle[0], angle[1]);
                }
            }
        }
    }
}

/// Frequency of pair `i` after stretching.
fn stretched(frequency: f64, i: u32, rope: &RopeSpec) -> f64 {
    match rope.scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / f64::from(factor),
        RopeScaling::Yarn { factor, original_context, ext_factor, beta_fast, beta_slow, .. } => {
            let border = |beta: f32| correction_dim(rope, original_context, beta);
            let low = border(beta_fast).floor().max(0.0);
            let high = border(beta_slow).ceil().min(f64::from(rope.dims) - 1.0);
            // 1 keeps a pair as it is, 0 stretches it fully; the border's least width avoids a zero division.
            let ramp = ((f64::from(i) - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
            let keep = (1.0 - ramp) * f64::from(ext_factor);
            frequency / f64::from(factor) * (1.0 - keep) + frequency * keep
        }
    }
}

/// The pair (as a real number) that turns `rotations` times over the first training's context.
fn correction_dim(rope: &RopeSpec, original_context: u32, rotations: f32) -> f64 {
    let turns = f64::from(original_context) / (f64::from(rotations) * std::f64::consts::TAU);
    f64::from(rope.dims) * math::ln(turns) / (2.0 * math::ln(f64::from(rope.base)))
}

fn magnitude(scaling: &RopeScaling) -> f64 {
    match *scaling {
        RopeScaling::None | RopeScaling::Linear { .. } => 1.0,
        RopeScaling::Yarn { factor, ext_factor, attn_factor, .. } => {
            let temperature = if ext_factor == 0.0 { 1.0 } else { 1.0 + 0.1 * math::ln(f64::from(factor)) };
            f64::from(attn_factor) * temperature
        }
    }
}
