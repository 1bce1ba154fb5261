//! The step scheduler.

use std::collections::{BTreeSet, VecDeque};

use shoal_core::frame::Class;
use shoal_core::head::HeadRequest;
use shoal_core::limits::CONTROL_MESSAGE_BYTES;
use shoal_core::message::{HeadRow, Run, StepOrder};
use shoal_core::plan::KvBudget;
use shoal_core::{Epoch, Plan, SeqId, StepId};

use super::sequence::Sequence;
use super::{FinishReason, NewSequence};

/// Requests that wait for a place (design 14).
pub const QUEUE: usize = 1024;

/// A step takes on no further row once its order is this long: biases and penalties of one more row
/// still fit the control message.
const ORDER_BYTES: usize = CONTROL_MESSAGE_BYTES / 2;

/// Encoded size of a bias or a penalised token, at most.
const ENTRY_BYTES: usize = 10;

/// Forms steps from live sequences under one plan.
#[derive(Debug)]
pub struct Scheduler {
    epoch: Epoch,
    stages: usize,
    chunk_tokens: usize,
    max_rows: usize,
    kv: KvBudget,
    vocab: u32,
    live: Vec<Sequence>,
    waiting: VecDeque<NewSequence>,
    /// Sequences that ended since the last step and hold pages.
    release: Vec<SeqId>,
    in_flight: BTreeSet<StepId>,
    last_step: StepId,
}

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
    #[error("sequence {} is there already", .0.0)]
    Twice(SeqId),
    #[error("{0} requests are waiting already")]
    Full(usize),
}

impl Scheduler {
    /// Nothing to do yet, under this plan, for a model with this vocabulary.
    pub fn new(plan: &Plan, vocab: u32) -> Self {
        Self {
            epoch: plan.epoch,
            stages: plan.stages.len(),
            chunk_tokens: plan.chunk_tokens as usize,
            max_rows: plan.max_rows() as usize,
            kv: plan.kv,
            vocab,
            live: Vec::new(),
            waiting: VecDeque::new(),
            release: Vec::new(),
            in_flight: BTreeSet::new(),
            last_step: StepId(0),
        }
    }

    /// Takes a sequence on; it waits while the plan's KV budget is taken.
    ///
    /// # Errors
    /// Why it can never run, or that the queue is full.
    pub fn submit(&mut self, new: NewSequence) -> Result<(), SubmitError> {
        let (tokens, context) = (new.tokens.len(), self.kv.context);
        if tokens == 0 {
            return Err(SubmitError::Empty);
        }
        if tokens >= context as usize {
            return Err(SubmitError::TooLong { tokens, context });
        }
        if new.max_new == 0 {
            return Err(SubmitError::NoneWanted);
        }
        if let Some(&token) = new.tokens.iter().find(|&&token| token >= self.vocab) {
            return Err(SubmitError::Vocabulary { token, vocab: self.vocab });
        }
        if self.sequences().any(|seq| seq == new.seq) {
            return Err(SubmitError::Twice(new.seq));
        }
        if self.waiting.len() >= QUEUE {
            return Err(SubmitError::Full(QUEUE));
        }
        self.waiting.push_back(new);
        Ok(())
    }

    /// Forgets a sequence; its pages are released with the next step. `false` if it is not there.
    pub fn cancel(&mut self, seq: SeqId) -> bool {
        if let Some(at) = self.waiting.iter().position(|new| new.seq == seq) {
            self.waiting.remove(at);
            return true;
        }
        let at = self.live.iter().position(|sequence| sequence.seq == seq);
        if let Some(at) = at {
            self.end(at);
        }
        at.is_some()
    }

    /// The next step, if there is something to run and a stage free. `head` says what logits to ask for
    /// the token after a sequence's history.
    pub fn next_step(&mut self, mut head: impl FnMut(SeqId, &[u32]) -> HeadRequest) -> Option<StepOrder> {
        if self.in_flight.len() >= self.stages {
            return None;
        }
        self.admit();
        let mut forming = Forming { step: StepId(self.last_step.0 + 1), ..Forming::default() };
        for at in self.decoders() {
            if forming.is_full(self.max_rows) {
                break;
            }
            forming.add(&mut self.live[at], 1, &mut head);
        }
        let mut prompt_rows = 0;
        for sequence in self.live.iter_mut().filter(|sequence| sequence.in_prefill()) {
            let room = (self.chunk_tokens - prompt_rows).min(self.max_rows - forming.rows);
            if room == 0 || forming.is_full(self.max_rows) {
                break;
            }
            prompt_rows += forming.add(sequence, room, &mut head);
        }
        if forming.runs.is_empty() {
            return None;
        }
        self.last_step = forming.step;
        self.in_flight.insert(forming.step);
        Some(StepOrder {
            epoch: self.epoch,
            step: forming.step,
            class: if prompt_rows > 1 { Class::Prefill } else { Class::Decode },
            runs: forming.runs,
            head: forming.head,
            release: std::mem::take(&mut self.release),
        })
    }

    /// The step is through all stages.
    pub fn step_done(&mut self, step: StepId) {
        self.in_flight.remove(&step);
    }

    /// The token drawn for a sequence; says why the sequence ends, if it does. A sequence that is not
    /// there any more takes none.
    pub fn token(&mut self, seq: SeqId, token: u32) -> Option<FinishReason> {
        let at = self.live.iter().position(|sequence| sequence.seq == seq)?;
        let reason = self.live[at].push(token, self.kv.context as usize)?;
        self.end(at);
        Some(reason)
    }

    /// Whether a step's logits for this sequence are awaited.
    pub fn awaits(&self, seq: SeqId, step: StepId) -> bool {
        self.live.iter().any(|sequence| sequence.seq == seq && sequence.awaiting == Some(step))
    }

    /// Steps on their way.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// All sequences that did not end: live ones, then waiting ones.
    pub fn sequences(&self) -> impl Iterator<Item = SeqId> + '_ {
        self.live.iter().map(|live| live.seq).chain(self.waiting.iter().map(|new| new.seq))
    }

    /// Sequences that hold a place in the KV budget.
    pub fn live(&self) -> usize {
        self.live.len()
    }

    fn admit(&mut self) {
        while self.live.len() < self.kv.sequences as usize {
            let Some(new) = self.waiting.pop_front() else { break };
            self.live.push(Sequence::new(new));
        }
    }

    /// Indices of the sequences whose next token runs in the next step: those that waited longest, and
    /// no more than leaves some for the other stages.
    fn decoders(&self) -> Vec<usize> {
        let decoding = self.live.iter().filter(|sequence| !sequence.in_prefill()).count();
        let quota = decoding.div_ceil(self.stages);
        let mut ready: Vec<usize> =
            (0..self.live.len()).filter(|&at| self.live[at].ready_to_decode()).collect();
        ready.sort_by_key(|&at| (self.live[at].last_step, self.live[at].seq));
        ready.truncate(quota);
        ready
    }

    fn end(&mut self, at: usize) {
        let sequence = self.live.remove(at);
        if sequence.sent > 0 {
            self.release.push(sequence.seq);
        }
    }
}

/// A step while it is formed.
#[derive(Debug, Default)]
struct Forming {
    step: StepId,
    rows: usize,
    /// Bytes of the order, about.
    bytes: usize,
    runs: Vec<Run>,
    head: Vec<HeadRow>,
}

impl Forming {
    fn is_full(&self, max_rows: usize) -> bool {
        self.rows >= max_rows || self.bytes >= ORDER_BYTES
    }

    /// Adds up to `room` unsent tokens of a sequence, and asks for logits after its last one. Returns
    /// how many were added.
    fn add(
        &mut self,
        sequence: &mut Sequence,
        room: usize,
        head: &mut impl FnMut(SeqId, &[u32]) -> HeadRequest,
    ) -> usize {
        let count = sequence.unsent().min(room);
        let tokens = sequence.history[sequence.sent..sequence.sent + count].to_vec();
        self.bytes += 32 + tokens.len() * 5;
        self.runs.push(Run { seq: sequence.seq, first_position: sequence.sent as u32, tokens });
        self.rows += count;
        sequence.sent += count;
        sequence.last_step = self.step;
        if sequence.unsent() == 0 {
            let request = head(sequence.seq, &sequence.history);
            self.bytes += 64 + (request.bias.len() + request.penalties.counts.len()) * ENTRY_BYTES;
            self.head.push(HeadRow { row: self.rows as u32 - 1, request });
            sequence.awaiting = Some(self.step);
        }
        count
    }
}
