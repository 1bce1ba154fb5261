//! What must hold after every event.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_core::head::{Candidate, HeadAnswer, HeadQuery, HeadRequest};
use shoal_core::limits::VOCAB_TILE;
use shoal_core::plan::Span;
use shoal_core::{Epoch, NodeId, Plan, SeqId};

use super::scenario::VOCAB;
use crate::coordinator::Request;
use crate::sampling::{Outcome, Queried, Sampler};
use crate::scheduler::FinishReason;

/// An invariant that was broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}, at {at:?}: {what}\n{log}")]
pub struct Violation {
    pub seed: u64,
    pub at: Duration,
    pub what: String,
    /// The last happenings.
    pub log: String,
}

/// Modified logits of all tokens after this history: a hash, so that every history has its own.
pub(super) fn logits(history: &[u32]) -> Vec<f32> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for &token in history {
        hash = (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3);
    }
    (0..VOCAB)
        .map(|token| {
            let mut mixed = hash ^ u64::from(token).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            ((mixed >> 40) as f32) / (1_u64 << 24) as f32 * 12.0
        })
        .collect()
}

/// The best `k` of these rows.
pub(super) fn top(logits: &[f32], rows: Span, k: u32) -> Vec<Candidate> {
    let mut all: Vec<Candidate> =
        rows.iter().map(|token| Candidate { token, logit: logits[token as usize] }).collect();
    all.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token)));
    all.truncate(k as usize);
    all
}

pub(super) fn tile(logits: &[f32], tile: u32) -> Vec<Candidate> {
    let end = ((tile + 1) * VOCAB_TILE).min(VOCAB);
    (tile * VOCAB_TILE..end).map(|token| Candidate { token, logit: logits[token as usize] }).collect()
}

/// A head rank's answer for one row.
pub(super) fn answer(logits: &[f32], rows: Span, row: u32, request: &HeadRequest) -> HeadAnswer {
    let sums = (rows.first / VOCAB_TILE..rows.end.div_ceil(VOCAB_TILE)).map(|index| {
        let scaled =
            tile(logits, index).into_iter().map(|c| f64::from(c.logit) / f64::from(request.temperature));
        libm::log(scaled.map(libm::exp).sum::<f64>())
    });
    HeadAnswer {
        row,
        top: top(logits, rows, request.k),
        tiles: if request.want_tiles { sums.collect() } else { Vec::new() },
        ..HeadAnswer::default()
    }
}

/// What the requests of one job must yield.
#[derive(Debug, Default)]
pub(super) struct Checker {
    requests: BTreeMap<SeqId, Expected>,
    /// Epoch in which tokens may come.
    pub(super) epoch: Option<Epoch>,
}

#[derive(Debug)]
struct Expected {
    request: Request,
    history: Vec<u32>,
    sampler: Sampler,
    ended: bool,
}

impl Checker {
    pub(super) fn submitted(&mut self, request: Request) {
        let (history, sampler) = (request.tokens.clone(), Sampler::new(request.params.clone()));
        self.requests.insert(request.seq, Expected { request, history, sampler, ended: false });
    }

    /// A token came: it must be the one that all logits give after the history so far. `whole`: a plan
    /// with the head on one node.
    pub(super) fn emitted(&mut self, seq: SeqId, token: u32, whole: &Plan) -> Result<(), String> {
        let expected = self.requests.get_mut(&seq).ok_or(format!("a token for unknown {seq:?}"))?;
        if expected.ended {
            return Err(format!("a token for {seq:?} after its end"));
        }
        let want = draw(&mut expected.sampler, &expected.history, whole)?;
        if token != want {
            let at = expected.history.len() - expected.request.tokens.len();
            return Err(format!("token {at} of {seq:?} is {token}, not {want}"));
        }
        expected.history.push(token);
        Ok(())
    }

    pub(super) fn finished(&mut self, seq: SeqId, reason: FinishReason) -> Result<(), String> {
        let expected = self.end(seq)?;
        let made = expected.history.len() - expected.request.tokens.len();
        let last = expected.history.last().copied().unwrap_or(0);
        let stopped = made > 0 && expected.request.stop_tokens.contains(&last);
        let full = expected.history.len() >= super::scenario::CONTEXT as usize;
        let right = match reason {
            FinishReason::Stop => stopped,
            FinishReason::Length => !stopped && (made == expected.request.max_new as usize || full),
            FinishReason::Cancelled => true,
        };
        if right { Ok(()) } else { Err(format!("{seq:?} ended by {reason:?} after {made} tokens")) }
    }

    pub(super) fn aborted(&mut self, seq: SeqId) -> Result<(), String> {
        self.end(seq).map(|_| ())
    }

    /// Requests that have not ended.
    pub(super) fn open(&self) -> Vec<SeqId> {
        self.requests.iter().filter(|(_, expected)| !expected.ended).map(|(&seq, _)| seq).collect()
    }

    fn end(&mut self, seq: SeqId) -> Result<&Expected, String> {
        let expected = self.requests.get_mut(&seq).ok_or(format!("unknown {seq:?} ended"))?;
        if std::mem::replace(&mut expected.ended, true) {
            return Err(format!("{seq:?} ended twice"));
        }
        Ok(expected)
    }
}

/// Draws from all logits at one place.
fn draw(sampler: &mut Sampler, history: &[u32], whole: &Plan) -> Result<u32, String> {
    let request = sampler.request(history);
    let logits = logits(history);
    let rows = Span::new(0, VOCAB);
    let answers = vec![answer(&logits, rows, 0, &request)];
    let mut outcome = sampler.merge(answers, whole).map_err(|error| error.to_string())?;
    loop {
        let queries = match outcome {
            Outcome::Token(drawn) => return Ok(drawn.token),
            Outcome::Need(queries) => queries,
        };
        let answer =
            |(node, query): (NodeId, HeadQuery)| Queried { node, query, found: found(&logits, rows, query) };
        let queried = queries.into_iter().map(answer).collect();
        outcome = sampler.resume(queried).map_err(|error| error.to_string())?;
    }
}

/// A head rank's answer to a question.
pub(super) fn found(logits: &[f32], rows: Span, query: HeadQuery) -> Vec<Candidate> {
    match query {
        HeadQuery::Top(k) => top(logits, rows, k),
        HeadQuery::Tile(index) => tile(logits, index),
    }
}
