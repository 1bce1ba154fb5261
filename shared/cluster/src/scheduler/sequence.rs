//! One sequence's tokens and where it stands.

use serde::Serialize;
use shoal_core::{SeqId, StepId};

/// A sequence to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSequence {
    pub seq: SeqId,
    /// Prompt, at least one token and fewer than the context.
    pub tokens: Vec<u32>,
    /// Most tokens to generate, from 1.
    pub max_new: u32,
    /// Tokens that end the text.
    pub stop_tokens: Vec<u32>,
}

/// Why a sequence ended as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FinishReason {
    /// A stop token was drawn.
    Stop,
    /// The limit of new tokens, or the context, is reached.
    Length,
    /// Its owner wanted no more.
    Cancelled,
}

/// A live sequence. Its history is the truth; KV caches are copies of it.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) seq: SeqId,
    /// Prompt and generated tokens.
    pub(super) history: Vec<u32>,
    pub(super) prompt_len: usize,
    pub(super) max_new: u32,
    pub(super) stop_tokens: Vec<u32>,
    /// Tokens of the history that were sent in steps.
    pub(super) sent: usize,
    /// The step whose logits give the next token, while it is on its way.
    pub(super) awaiting: Option<StepId>,
    /// The last step that carried a token of it.
    pub(super) last_step: StepId,
}

impl Sequence {
    pub(super) fn new(new: NewSequence) -> Self {
        Self {
            seq: new.seq,
            prompt_len: new.tokens.len(),
            history: new.tokens,
            max_new: new.max_new,
            stop_tokens: new.stop_tokens,
            sent: 0,
            awaiting: None,
            last_step: StepId(0),
        }
    }

    /// Tokens of the history that no step has carried yet.
    pub(super) fn unsent(&self) -> usize {
        self.history.len() - self.sent
    }

    /// Whether a decode row can go: only the last token, drawn and not yet sent, is left.
    pub(super) fn ready_to_decode(&self) -> bool {
        self.awaiting.is_none() && self.unsent() == 1 && self.history.len() > self.prompt_len
    }

    /// Whether part of the prompt is still to be sent.
    pub(super) fn in_prefill(&self) -> bool {
        self.sent < self.prompt_len
    }

    /// Takes the drawn token; says why the sequence ends, if it does.
    pub(super) fn push(&mut self, token: u32, context: usize) -> Option<FinishReason> {
        self.history.push(token);
        self.awaiting = None;
        let made = self.history.len() - self.prompt_len;
        if self.stop_tokens.contains(&token) {
            Some(FinishReason::Stop)
        } else if made >= self.max_new as usize || self.history.len() >= context {
            Some(FinishReason::Length)
        } else {
            None
        }
    }
}
