//! The random number of a draw, as a function of where the draw is.

/// A number in [0, 1) for the token at `position` of answer `choice` under `seed`.
pub fn uniform(seed: u64, choice: u64, position: u64) -> f64 {
    unimplemented!()
}
