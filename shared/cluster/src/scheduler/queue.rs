//! The step scheduler.

use shoal_core::head::HeadRequest;
use shoal_core::message::StepOrder;
use shoal_core::{Plan, SeqId, StepId};

use super::{FinishReason, NewSequence};

/// Forms steps from live sequences under one plan.
#[derive(Debug)]
pub struct Scheduler {}

/// A sequence that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("the prompt is empty")]
    Empty,
    #[error("the prompt has {tokens} tokens; the context of {context} leaves no room for an answer")]
    TooLong { tokens: usize, context: u32 },
    #[error("no token is wanted")]
    NoneWanted,
    #[error("token {token} is outside the vocabulary of {vocab}")]
    Vocabulary { token: u32, vocab: u32 },
    #[error("sequence {} was submitted before", .0.0)]
    Twice(SeqId),
    #[error("{0} requests are waiting already")]
    Full(usize),
}

impl Scheduler {
    /// Nothing to do yet, under this plan, for a model with this vocabulary.
    pub fn new(plan: &Plan, vocab: u32) -> Self {
        unimplemented!()
    }

    /// Takes a sequence on; it waits while the plan's KV budget is taken.
    ///
    /// # Errors
    /// Why it can never run, or that the queue is full.
    pub fn submit(&mut self, new: NewSequence) -> Result<(), SubmitError> {
        unimplemented!()
    }

    /// Forgets a sequence; its pages are released with the next step. `false` if it is not there.
    pub fn cancel(&mut self, seq: SeqId) -> bool {
        unimplemented!()
    }

    /// The next step, if there is something to run and a stage free. `head` says what logits to ask for
    /// the token after a sequence's history.
    pub fn next_step(&mut self, head: impl FnMut(SeqId, &[u32]) -> HeadRequest) -> Option<StepOrder> {
        unimplemented!()
    }

    /// The step is through all stages.
    pub fn step_done(&mut self, step: StepId) {
        unimplemented!()
    }

    /// The token drawn for a sequence; says why the sequence ends, if it does.
    pub fn token(&mut self, seq: SeqId, token: u32) -> Option<FinishReason> {
        unimplemented!()
    }
}
