//! What travels between the coordinator's sampler and the ranks that hold the output head.
//!
//! A head rank never sends its logits. It answers with its best candidates and, per tile of
//! [`limits::VOCAB_TILE`] vocabulary rows, the log-sum-exp; the coordinator merges the answers of all
//! ranks in tile order, so that the result does not depend on how the rows are split.
//!
//! *Raw* logits are what the matrix gives. *Modified* logits are raw ones after penalties, biases and
//! the mask, in that order: for a token seen `n` times, `z > 0 ? z / repeat : z · repeat`, then
//! `− n · frequency − presence`, then `+ bias`; a token outside the mask becomes `−∞`.

use serde::{Deserialize, Serialize};

use crate::limits;

/// How the logits of one row are to be changed and what of them is wanted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeadRequest {
    /// Candidates wanted from each rank, 1 to [`limits::HEAD_CANDIDATES`].
    pub k: u32,
    /// Divisor of the modified logits in `tiles` (not in `top`); positive and finite.
    pub temperature: f32,
    pub penalties: Penalties,
    /// Added to the logit of a token.
    pub bias: Vec<(u32, f32)>,
    /// One bit a token, lowest first; tokens beyond the end are allowed. `None` allows all.
    pub mask: Option<Vec<u8>>,
    /// Whether `tiles` is wanted.
    pub want_tiles: bool,
    /// Whether `raw_top` and `raw_tiles` are wanted.
    pub want_raw: bool,
}

/// Penalties on tokens that were seen. Neutral values are 1, 0 and 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Penalties {
    pub repeat: f32,
    pub frequency: f32,
    pub presence: f32,
    /// Tokens of the window with how often each was seen.
    pub counts: Vec<(u32, u32)>,
}

impl Default for Penalties {
    fn default() -> Self {
        Self { repeat: 1.0, frequency: 0.0, presence: 0.0, counts: Vec::new() }
    }
}

impl HeadRequest {
    /// The best candidate alone, nothing changed.
    pub fn greedy() -> Self {
        Self {
            k: 1,
            temperature: 1.0,
            penalties: Penalties::default(),
            bias: Vec::new(),
            mask: None,
            want_tiles: false,
            want_raw: false,
        }
    }

    /// Whether its numbers are within bounds.
    ///
    /// # Errors
    /// Which one is not.
    pub fn check(&self) -> Result<(), &'static str> {
        let finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
        if self.k == 0 || self.k > limits::HEAD_CANDIDATES {
            return Err("the number of candidates is out of bounds");
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return Err("the temperature is not positive");
        }
        let Penalties { repeat, frequency, presence, .. } = self.penalties;
        if !finite(&[repeat, frequency, presence]) || repeat <= 0.0 {
            return Err("a penalty is not finite, or the repeat penalty is not positive");
        }
        if self.bias.iter().any(|(_, bias)| bias.is_nan()) {
            return Err("a bias is not a number");
        }
        Ok(())
    }
}

/// A token with its logit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    pub token: u32,
    pub logit: f32,
}

/// One rank's answer for one row of a step.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct HeadAnswer {
    /// The row within the step.
    pub row: u32,
    /// Best modified logits of this rank's rows: falling, ties to the lower token; at most `k`.
    pub top: Vec<Candidate>,
    /// Per owned tile: log-sum-exp of modified logit ÷ temperature; `−∞` where all are masked.
    pub tiles: Vec<f64>,
    /// Best raw logits, if wanted.
    pub raw_top: Vec<Candidate>,
    /// Per owned tile: log-sum-exp of the raw logits, if wanted.
    pub raw_tiles: Vec<f64>,
}

/// A later question about a row that was answered, while its step is not released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeadQuery {
    /// More candidates of the modified logits: this many of each rank (no limit but the rows).
    Top(u32),
    /// All modified logits of one tile, asked of its owner, in token order.
    Tile(u32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_out_of_bounds_is_refused() {
        assert_eq!(HeadRequest::greedy().check(), Ok(()));
        let mut request = HeadRequest { k: 0, ..HeadRequest::greedy() };
        assert!(request.check().is_err());
        request = HeadRequest { temperature: 0.0, ..HeadRequest::greedy() };
        assert!(request.check().is_err());
        request = HeadRequest { bias: vec![(1, f32::NAN)], ..HeadRequest::greedy() };
        assert!(request.check().is_err());
        request = HeadRequest::greedy();
        request.penalties.repeat = f32::INFINITY;
        assert!(request.check().is_err());
    }
}
