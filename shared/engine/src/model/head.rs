//! The output head over this node's vocabulary rows: norm, logits, penalties, candidates and tile sums.
//!
//! What is asked and answered, and in which order logits are changed, is [`shoal_core::head`]'s to say.
//! Sums over tiles are taken in 64 bits, tile by tile and row by row, so that they do not depend on how
//! rows are split over nodes.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use shoal_core::head::{Candidate, HeadAnswer, HeadQuery, HeadRequest};
use shoal_core::ids::StepId;
use shoal_core::limits::VOCAB_TILE;
use shoal_core::message::HeadRow;
use shoal_core::plan::Span;
use thiserror::Error;

use super::block::none;
use super::weights::HeadWeights;
use crate::kernels;
use crate::math;
use crate::pool::Pool;
use crate::quant::Activations;

const TILE: usize = VOCAB_TILE as usize;

/// Rows whose logits are kept for questions, for each live sequence: a step that is being sampled, and
/// the next one that has already run.
const KEPT_PER_SEQUENCE: usize = 2;

/// Why the head did not answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HeadError {
    /// The plan gives this node no part of the output head.
    #[error("failed to run the output head: this node holds no rows of it")]
    NotHere,
    /// Hidden rows and requests differ in number, or rows do not rise.
    #[error("failed to run the output head: {rows} rows for {requests} requests, whose rows must rise")]
    Rows {
        /// Hidden rows handed in.
        rows: usize,
        /// Requests.
        requests: usize,
    },
    /// A request beyond its bounds.
    #[error("failed to run the output head for row {row}: {why}")]
    Request {
        /// The row.
        row: u32,
        /// What is wrong.
        why: &'static str,
    },
    /// More rows than the plan has room for.
    #[error("failed to run the output head: {wanted} more rows, {kept} of {most} are kept unsettled")]
    Room {
        /// Rows of this step.
        wanted: usize,
        /// Rows kept for questions.
        kept: usize,
        /// Rows that may be kept.
        most: usize,
    },
    /// The step has been answered before.
    #[error("failed to run the output head: step {} was answered before", .0.0)]
    Again(StepId),
    /// Hidden values or logits that are no numbers.
    #[error("failed to run the output head for row {row}: the {what} are not finite")]
    NonFinite {
        /// The row.
        row: u32,
        /// Which values.
        what: &'static str,
    },
    /// A question about a row that is not kept (any more).
    #[error("failed to answer a question: row {row} of step {} is not kept", .step.0)]
    Unknown {
        /// The step.
        step: StepId,
        /// The row.
        row: u32,
    },
    /// A question about a tile that another node owns.
    #[error("failed to answer a question: tile {0} is not held here")]
    Tile(u32),
}

/// Spread of logits without weights: that of a real model's best few.
const NOISE: f32 = 16.0;

/// The head of one node.
pub(super) struct Head {
    weights: Option<HeadWeights>,
    /// Without weights: logits by chance instead of none.
    dry: bool,
    /// Vocabulary rows held: tile borders.
    rows: Span,
    d_model: usize,
    eps: f32,
    /// Most requests of one step.
    sequences: usize,
    kept: BTreeMap<StepId, Vec<Kept>>,
    /// Logit rows to be used again.
    spare: Vec<Vec<f32>>,
    /// [requests, d_model]
    normed: Vec<f32>,
    activations: Activations,
    /// [requests, held rows]
    raw: Vec<f32>,
}

/// Modified logits of one row of a step.
struct Kept {
    row: u32,
    logits: Vec<f32>,
}

impl Head {
    pub(super) fn new(
        weights: Option<HeadWeights>,
        rows: Span,
        d_model: usize,
        eps: f32,
        sequences: usize,
    ) -> Self {
        Self {
            weights,
            dry: false,
            rows,
            d_model,
            eps,
            sequences,
            kept: BTreeMap::new(),
            spare: Vec::new(),
            normed: Vec::with_capacity(sequences * d_model),
            activations: Activations::with_capacity(sequences, d_model),
            raw: Vec::with_capacity(sequences * rows.len() as usize),
        }
    }

    /// A head without weights, whose logits mean nothing: a function of step, row and token alone, so that
    /// they do not depend on how rows are split over nodes.
    pub(super) fn dry(rows: Span, d_model: usize, sequences: usize) -> Self {
        Self { dry: true, ..Self::new(None, rows, d_model, 0.0, sequences) }
    }

    /// Bytes of the buffers, as allocated.
    pub(super) fn buffer_bytes(&self) -> usize {
        let kept = self.kept.values().flatten().map(|kept| kept.logits.capacity());
        let spare = self.spare.iter().map(Vec::capacity);
        let floats = kept.chain(spare).sum::<usize>() + self.normed.capacity() + self.raw.capacity();
        floats * size_of::<f32>() + self.activations.bytes()
    }

    /// Answers a step's requests; `hidden` is [requests, d_model].
    pub(super) fn run(
        &mut self,
        pool: &Pool,
        step: StepId,
        hidden: &[f32],
        requests: &[HeadRow],
    ) -> Result<Vec<HeadAnswer>, HeadError> {
        self.check(step, hidden, requests)?;
        let n = requests.len();
        let held = self.rows.len() as usize;
        self.raw.clear();
        self.raw.resize(n * held, 0.0);
        if let Some(weights) = &self.weights {
            self.normed.resize(n * self.d_model, 0.0);
            kernels::rmsnorm_rows(pool, hidden, &weights.norm, self.eps, &mut self.normed);
            self.activations.load(pool, &self.normed, n, self.d_model);
            kernels::matmul(pool, &weights.output.matrix(), &self.activations, &mut self.raw);
        }
        if self.dry {
            for (HeadRow { row, .. }, raw) in requests.iter().zip(self.raw.chunks_exact_mut(held.max(1))) {
                noise(step, *row, self.rows.first, raw);
            }
        }
        let mut answers = Vec::with_capacity(n);
        let mut kept = Vec::with_capacity(n);
        for (index, HeadRow { row, request }) in requests.iter().enumerate() {
            let raw = &self.raw[index * held..(index + 1) * held];
            if !raw.iter().all(|logit| logit.is_finite()) {
                return Err(HeadError::NonFinite { row: *row, what: "logits" });
            }
            let mut logits = self.spare.pop().unwrap_or_default();
            logits.clear();
            logits.extend_from_slice(raw);
            modify(&mut logits, self.rows, request);
            answers.push(self.answer(pool, *row, request, raw, &logits));
            kept.push(Kept { row: *row, logits });
        }
        self.kept.insert(step, kept);
        Ok(answers)
    }

    fn check(&self, step: StepId, hidden: &[f32], requests: &[HeadRow]) -> Result<(), HeadError> {
        let rows = hidden.len() / self.d_model;
        let rising = requests.windows(2).all(|pair| pair[0].row < pair[1].row);
        if hidden.len() != requests.len() * self.d_model || !rising {
            return Err(HeadError::Rows { rows, requests: requests.len() });
        }
        if self.kept.contains_key(&step) {
            return Err(HeadError::Again(step));
        }
        let kept = self.kept.values().map(Vec::len).sum::<usize>();
        let (wanted, most) = (requests.len(), self.sequences * KEPT_PER_SEQUENCE);
        if wanted > self.sequences || kept + wanted > most {
            return Err(HeadError::Room { wanted, kept, most });
        }
        for (HeadRow { row, request }, x) in requests.iter().zip(hidden.chunks_exact(self.d_model)) {
            request.check().map_err(|why| HeadError::Request { row: *row, why })?;
            if !x.iter().all(|value| value.is_finite()) {
                return Err(HeadError::NonFinite { row: *row, what: "hidden values" });
            }
        }
        Ok(())
    }

    fn answer(
        &self,
        pool: &Pool,
        row: u32,
        request: &HeadRequest,
        raw: &[f32],
        logits: &[f32],
    ) -> HeadAnswer {
        let k = request.k as usize;
        let sums = |wanted: bool, logits: &[f32], temperature: f32| {
            if wanted { tile_sums(pool, logits, temperature) } else { Vec::new() }
        };
        HeadAnswer {
            row,
            top: top(logits, self.rows.first, k),
            tiles: sums(request.want_tiles, logits, request.temperature),
            raw_top: if request.want_raw { top(raw, self.rows.first, k) } else { Vec::new() },
            raw_tiles: sums(request.want_raw, raw, 1.0),
        }
    }

    /// Answers a question about a row that was answered and not settled.
    pub(super) fn query(
        &self,
        step: StepId,
        row: u32,
        query: HeadQuery,
    ) -> Result<Vec<Candidate>, HeadError> {
        let rows = self.kept.get(&step);
        let kept = rows.and_then(|rows| rows.iter().find(|kept| kept.row == row));
        let logits = &kept.ok_or(HeadError::Unknown { step, row })?.logits;
        match query {
            HeadQuery::Top(k) => Ok(top(logits, self.rows.first, k as usize)),
            HeadQuery::Tile(tile) => {
                let first = tile.checked_mul(VOCAB_TILE).filter(|&first| self.rows.contains(first));
                let first = first.ok_or(HeadError::Tile(tile))?;
                let start = (first - self.rows.first) as usize;
                let logits = &logits[start..logits.len().min(start + TILE)];
                Ok((first..).zip(logits).map(|(token, &logit)| Candidate { token, logit }).collect())
            }
        }
    }

    /// Forgets the logits of all steps up to `step`.
    pub(super) fn settle(&mut self, step: StepId) {
        while let Some(entry) = self.kept.first_entry().filter(|entry| *entry.key() <= step) {
            self.spare.extend(entry.remove().into_iter().map(|kept| kept.logits));
        }
    }
}

/// Logits by chance for the tokens from `first` on, evenly from 0 to [`NOISE`]. The mixing is that of
/// MurmurHash3's last step.
fn noise(step: StepId, row: u32, first: u32, logits: &mut [f32]) {
    let seed = (step.0 as u32).wrapping_mul(0x9e37_79b9) ^ row.wrapping_mul(0x85eb_ca6b);
    for (token, logit) in (first..).zip(logits) {
        let mut hash = seed ^ token.wrapping_mul(0xcc9e_2d51);
        hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
        hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
        hash ^= hash >> 16;
        *logit = (hash >> 8) as f32 * (NOISE / 16_777_216.0);
    }
}

/// Penalties, biases and the mask, in that order, on the logits of tokens `rows`.
fn modify(logits: &mut [f32], rows: Span, request: &HeadRequest) {
    let place = |token: u32| rows.contains(token).then(|| (token - rows.first) as usize);
    let penalties = &request.penalties;
    for &(token, count) in penalties.counts.iter().filter(|(_, count)| *count > 0) {
        let Some(logit) = place(token).and_then(|at| logits.get_mut(at)) else { continue };
        let repeated = if *logit > 0.0 { *logit / penalties.repeat } else { *logit * penalties.repeat };
        *logit = repeated - count as f32 * penalties.frequency - penalties.presence;
    }
    for &(token, bias) in &request.bias {
        if let Some(logit) = place(token).and_then(|at| logits.get_mut(at)) {
            *logit += bias;
        }
    }
    if let Some(mask) = &request.mask {
        for (token, logit) in rows.iter().zip(logits) {
            let byte = mask.get(token as usize / 8);
            if byte.is_some_and(|byte| byte >> (token % 8) & 1 == 0) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// The `k` best logits, falling, ties to the lower token; tokens at −∞ are never candidates.
fn top(logits: &[f32], first: u32, k: usize) -> Vec<Candidate> {
    let better = |a: &Candidate, b: &Candidate| -> Ordering {
        b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
    };
    let all = (first..).zip(logits).map(|(token, &logit)| Candidate { token, logit: logit + 0.0 });
    let allowed = all.filter(|candidate| candidate.logit != f32::NEG_INFINITY);
    if k <= 1 {
        return allowed.min_by(better).filter(|_| k == 1).into_iter().collect();
    }
    // The best k so far, cut back whenever twice as many have come together.
    let mut best: Vec<Candidate> = Vec::with_capacity(2 * k.min(logits.len()));
    for candidate in allowed {
        best.push(candidate);
        if best.len() == 2 * k {
            best.select_nth_unstable_by(k - 1, better);
            best.truncate(k);
        }
    }
    best.sort_unstable_by(better);
    best.truncate(k);
    best
}

/// Log-sum-exp of `logit ÷ temperature` for each tile.
fn tile_sums(pool: &Pool, logits: &[f32], temperature: f32) -> Vec<f64> {
    let mut sums = vec![0.0; logits.len().div_ceil(TILE)];
    let temperature = f64::from(temperature);
    pool.for_slices(sums.len(), 1, (&mut sums[..], 1), none(), none(), |first, sums, _, _| {
        for (sum, tile) in sums.iter_mut().zip(logits[first * TILE..].chunks(TILE)) {
            *sum = log_sum_exp(tile, temperature);
        }
    });
    sums
}

fn log_sum_exp(logits: &[f32], temperature: f64) -> f64 {
    let max = logits.iter().fold(f64::NEG_INFINITY, |max, &logit| max.max(f64::from(logit) / temperature));
    if max.is_infinite() {
        return max;
    }
    let sum: f64 = logits.iter().map(|&logit| math::exp_f64(f64::from(logit) / temperature - max)).sum();
    max + math::ln(sum)
}
