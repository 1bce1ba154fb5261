//! One row's draw, from request to token.

use shoal_core::head::{Candidate, HeadAnswer, HeadQuery, HeadRequest};
use shoal_core::{NodeId, Plan};

use super::SamplingParams;

/// Draws the tokens of one sequence, one row at a time.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
}

/// A drawn token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawn {
    pub token: u32,
    /// Its modified logit.
    pub logit: f32,
}

/// What came of the answers so far.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub enum Outcome {
    Token(Drawn),
    /// More must be asked; all answers go to [`Sampler::resume`] together, in this order.
    Need(Vec<(NodeId, HeadQuery)>),
}

/// One node's answer to a question of [`Outcome::Need`].
#[derive(Debug, Clone, PartialEq)]
pub struct Queried {
    pub node: NodeId,
    pub query: HeadQuery,
    pub found: Vec<Candidate>,
}

/// Answers that no honest head rank gives.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    #[error("head rank {rank} answered {what}")]
    Answer { rank: usize, what: &'static str },
    #[error("no token is left to draw: all are forbidden or not finite")]
    Nothing,
    #[error("an answer came that was not asked for")]
    Unasked,
}

impl Sampler {
    /// A sampler with checked parameters ([`SamplingParams::check`]).
    pub fn new(params: SamplingParams) -> Self {
        Self { params }
    }

    /// What to ask the head ranks for the token after `history`.
    pub fn request(&mut self, history: &[u32]) -> HeadRequest {
        unimplemented!()
    }

    /// Takes the ranks' answers, in the order of `plan.head`.
    ///
    /// # Errors
    /// Answers that do not fit the request, or nothing left to draw.
    pub fn merge(&mut self, answers: Vec<HeadAnswer>, plan: &Plan) -> Result<Outcome, MergeError> {
        unimplemented!()
    }

    /// Takes the answers to what was needed.
    ///
    /// # Errors
    /// As [`Sampler::merge`].
    pub fn resume(&mut self, queried: Vec<Queried>) -> Result<Outcome, MergeError> {
        unimplemented!()
    }
}
