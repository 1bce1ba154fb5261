//! One row's draw, from request to token.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use shoal_core::head::{Candidate, HeadAnswer, HeadQuery, HeadRequest, Penalties};
use shoal_core::limits::VOCAB_TILE;
use shoal_core::plan::{HeadShare, Span};
use shoal_core::{NodeId, Plan};

use super::filter::{Best, Verdict, draw, walk};
use super::params::{PENALTY_WINDOW, SamplingParams};
use super::uniform;

/// Each further question for candidates asks for this many times as many.
const GROWTH: u32 = 8;

/// Most candidates asked of one rank at once: the answer, at 9 bytes each, must fit a control message.
/// Where they do not suffice, tiles are asked for.
const QUERY_CANDIDATES: u32 = 1 << 16;

/// Draws the tokens of one sequence, one row at a time.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    pending: Option<Pending>,
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

/// Answers that no honest head rank gives, or nothing to draw from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    #[error("head rank {rank} answered {what}")]
    Answer { rank: usize, what: &'static str },
    #[error("no token is left to draw: all are forbidden")]
    Nothing,
    #[error("an answer came that was not asked for")]
    Unasked,
}

/// The row that is being drawn.
#[derive(Debug, Clone)]
struct Pending {
    /// Position of the token to be drawn.
    position: u64,
    k: u32,
    want_tiles: bool,
    ranks: Vec<Rank>,
    /// Log-sum-exp of each tile, in id order, if wanted.
    tiles: Vec<f64>,
    asked: Vec<(NodeId, HeadQuery)>,
}

/// What is known of one head rank's rows.
#[derive(Debug, Clone)]
struct Rank {
    share: HeadShare,
    best: Vec<Candidate>,
    /// Whether `best` holds every token of the rank that may be drawn.
    complete: bool,
}

impl Sampler {
    /// A sampler with checked parameters ([`SamplingParams::check`]).
    pub fn new(params: SamplingParams) -> Self {
        Self { params, pending: None }
    }

    /// The parameters it draws by.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// What to ask the head ranks for the token after `history`. Begins a draw, in place of one that
    /// was not ended.
    pub fn request(&mut self, history: &[u32]) -> HeadRequest {
        let params = &self.params;
        let untruncated = self.untruncated();
        let want_tiles = !params.is_greedy() && params.top_k == 0 && (untruncated || params.top_p < 1.0);
        let k = if untruncated { 1 } else { params.first_k() };
        let (position, ranks, tiles, asked) = (history.len() as u64, Vec::new(), Vec::new(), Vec::new());
        self.pending = Some(Pending { position, k, want_tiles, ranks, tiles, asked });
        HeadRequest {
            k,
            temperature: if untruncated { params.temperature } else { 1.0 },
            penalties: penalties(params, history),
            bias: params.logit_bias.clone(),
            mask: None,
            want_tiles,
            want_raw: false,
        }
    }

    /// Takes the ranks' answers, one of each rank of `plan.head` that holds rows, in that order.
    ///
    /// # Errors
    /// Answers that do not fit the request, or nothing left to draw.
    pub fn merge(&mut self, answers: Vec<HeadAnswer>, plan: &Plan) -> Result<Outcome, MergeError> {
        let mut pending = self.pending.take().ok_or(MergeError::Unasked)?;
        let shares: Vec<HeadShare> = plan.head.iter().copied().filter(|h| !h.rows.is_empty()).collect();
        if answers.len() != shares.len() || !pending.ranks.is_empty() {
            return Err(MergeError::Unasked);
        }
        for (rank, (share, answer)) in shares.into_iter().zip(answers).enumerate() {
            let refuse = |what| MergeError::Answer { rank, what };
            check_best(&answer.top, share.rows, pending.k).map_err(refuse)?;
            if pending.want_tiles {
                let tiles = share.rows.len().div_ceil(VOCAB_TILE) as usize;
                let sound = |lse: &f64| lse.is_finite() || *lse == f64::NEG_INFINITY;
                if answer.tiles.len() != tiles || !answer.tiles.iter().all(sound) {
                    return Err(refuse("tiles that are not those of its rows"));
                }
                pending.tiles.extend(&answer.tiles);
            }
            pending.ranks.push(Rank::new(share, answer.top, pending.k));
        }
        self.decide(pending)
    }

    /// Takes the answers to what was needed.
    ///
    /// # Errors
    /// As [`Sampler::merge`].
    pub fn resume(&mut self, queried: Vec<Queried>) -> Result<Outcome, MergeError> {
        let mut pending = self.pending.take().ok_or(MergeError::Unasked)?;
        let asked = std::mem::take(&mut pending.asked);
        let same = |(a, q): (&(NodeId, HeadQuery), &Queried)| *a == (q.node, q.query);
        if asked.is_empty() || asked.len() != queried.len() || !asked.iter().zip(&queried).all(same) {
            return Err(MergeError::Unasked);
        }
        if self.untruncated() {
            return self.draw_in_tile(&pending, &queried);
        }
        let mut whole: BTreeMap<usize, Vec<Candidate>> = BTreeMap::new();
        for Queried { node, query, found } in queried {
            let rank = pending.ranks.iter().position(|r| r.share.node == node).ok_or(MergeError::Unasked)?;
            let share = pending.ranks[rank].share;
            let refuse = |what| MergeError::Answer { rank, what };
            match query {
                HeadQuery::Top(k) => {
                    check_best(&found, share.rows, k).map_err(refuse)?;
                    pending.ranks[rank] = Rank::new(share, found, k);
                }
                HeadQuery::Tile(tile) => {
                    check_tile(&found, share.rows, tile).map_err(refuse)?;
                    whole.entry(rank).or_default().extend(found);
                }
            }
        }
        for (rank, mut all) in whole {
            all.sort_by(falling);
            let share = pending.ranks[rank].share;
            pending.ranks[rank] = Rank::new(share, all, u32::MAX);
        }
        self.decide(pending)
    }

    /// Whether every token may be drawn.
    fn untruncated(&self) -> bool {
        let params = &self.params;
        !params.is_greedy() && params.top_k == 0 && params.top_p >= 1.0 && params.min_p <= 0.0
    }

    fn uniform(&self, position: u64) -> f64 {
        uniform(self.params.seed, self.params.choice, position)
    }

    /// Draws from what is known, or asks for more.
    fn decide(&mut self, pending: Pending) -> Result<Outcome, MergeError> {
        if self.untruncated() {
            return self.choose_tile(pending);
        }
        let complete = pending.ranks.iter().all(|rank| rank.complete);
        let mut sorted: Vec<Candidate> = pending.ranks.iter().flat_map(|rank| &rank.best).copied().collect();
        sorted.sort_by(falling);
        if !complete {
            // Behind the last candidate of a rank that holds back others, the order is not known.
            sorted.truncate(pending.known(&sorted));
        }
        let log_sum = pending.want_tiles.then(|| log_sum_exp(&pending.tiles));
        let best = Best { sorted: &sorted, complete, log_sum };
        match draw(best, &self.params, self.uniform(pending.position)) {
            Verdict::Token(Candidate { token, logit }) => Ok(Outcome::Token(Drawn { token, logit })),
            Verdict::Nothing => Err(MergeError::Nothing),
            Verdict::More => Ok(self.ask_more(pending)),
        }
    }

    fn ask_more(&mut self, mut pending: Pending) -> Outcome {
        let wanted = self.params.top_k.max(pending.k.saturating_mul(GROWTH));
        for rank in pending.ranks.iter().filter(|rank| !rank.complete) {
            let HeadShare { node, rows } = rank.share;
            // A question for all rows needs one answer more than there are, to know that it is all.
            if wanted <= QUERY_CANDIDATES || rows.len() < QUERY_CANDIDATES {
                let k = wanted.min(QUERY_CANDIDATES).min(rows.len() + 1);
                pending.asked.push((node, HeadQuery::Top(k)));
            } else {
                let tiles = rows.first / VOCAB_TILE..rows.end.div_ceil(VOCAB_TILE);
                pending.asked.extend(tiles.map(|tile| (node, HeadQuery::Tile(tile))));
            }
        }
        pending.k = wanted;
        let need = pending.asked.clone();
        self.pending = Some(pending);
        Outcome::Need(need)
    }

    /// Walks the tiles in id order by their sums and asks the owner of the one that is hit.
    fn choose_tile(&mut self, mut pending: Pending) -> Result<Outcome, MergeError> {
        let max = pending.tiles.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if max == f64::NEG_INFINITY {
            return Err(MergeError::Nothing);
        }
        let tile = walk(weights(&pending.tiles, max), self.uniform(pending.position)) as u32;
        let owner = pending.ranks.iter().find(|rank| rank.share.rows.contains(tile * VOCAB_TILE));
        let node = owner.ok_or(MergeError::Unasked)?.share.node;
        pending.asked = vec![(node, HeadQuery::Tile(tile))];
        let need = pending.asked.clone();
        self.pending = Some(pending);
        Ok(Outcome::Need(need))
    }

    /// Walks the ids of the tile that was hit by what is left of the uniform number.
    fn draw_in_tile(&self, pending: &Pending, queried: &[Queried]) -> Result<Outcome, MergeError> {
        let [Queried { node, query: HeadQuery::Tile(tile), found }] = queried else {
            return Err(MergeError::Unasked);
        };
        let rank = pending.ranks.iter().position(|r| r.share.node == *node).ok_or(MergeError::Unasked)?;
        let refuse = |what| MergeError::Answer { rank, what };
        check_tile(found, pending.ranks[rank].share.rows, *tile).map_err(refuse)?;
        let max = pending.tiles.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = weights(&pending.tiles, max).sum();
        let before: f64 = weights(&pending.tiles[..*tile as usize], max).sum();
        let own = libm::exp(pending.tiles[*tile as usize] - max);
        let rest = ((self.uniform(pending.position) * total - before) / own).clamp(0.0, 1.0);
        let temperature = f64::from(self.params.temperature);
        let scaled: Vec<f64> = found.iter().map(|c| f64::from(c.logit) / temperature).collect();
        let top = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if top == f64::NEG_INFINITY {
            return Err(refuse("a tile without the tokens its sum speaks of"));
        }
        let Candidate { token, logit } = found[walk(weights(&scaled, top), rest)];
        Ok(Outcome::Token(Drawn { token, logit }))
    }
}

impl Pending {
    /// How many of the merged candidates are the best of all: those not behind the last known
    /// candidate of any rank that holds others back.
    fn known(&self, sorted: &[Candidate]) -> usize {
        let borders = self.ranks.iter().filter(|rank| !rank.complete).filter_map(|rank| rank.best.last());
        let border = borders.min_by(|a, b| falling(a, b));
        border.map_or(sorted.len(), |border| {
            sorted.partition_point(|candidate| falling(candidate, border) != Ordering::Greater)
        })
    }
}

impl Rank {
    /// What an answer of at most `k` candidates tells: fewer than asked for are all there are.
    fn new(share: HeadShare, mut best: Vec<Candidate>, k: u32) -> Self {
        let possible = best.iter().position(|c| c.logit == f32::NEG_INFINITY);
        let complete =
            possible.is_some() || best.len() < k as usize || best.len() >= share.rows.len() as usize;
        best.truncate(possible.unwrap_or(best.len()));
        Self { share, best, complete }
    }
}

/// Better logits first, ties to the lower token; zeros of both signs are equal. Logits are numbers.
fn falling(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.token.cmp(&b.token))
}

fn weights(logs: &[f64], max: f64) -> impl Iterator<Item = f64> + Clone + '_ {
    logs.iter().map(move |log| libm::exp(log - max))
}

fn log_sum_exp(logs: &[f64]) -> f64 {
    let max = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY { max } else { max + libm::log(weights(logs, max).sum()) }
}

fn check_best(best: &[Candidate], rows: Span, k: u32) -> Result<(), &'static str> {
    if best.len() > k as usize {
        return Err("more candidates than were asked for");
    }
    if best.iter().any(|c| !rows.contains(c.token)) {
        return Err("a candidate that is not of its rows");
    }
    if best.iter().any(|c| c.logit.is_nan() || c.logit == f32::INFINITY) {
        return Err("a logit that is not finite");
    }
    if best.windows(2).any(|pair| falling(&pair[0], &pair[1]) != Ordering::Less) {
        return Err("candidates that do not fall");
    }
    Ok(())
}

fn check_tile(found: &[Candidate], rows: Span, tile: u32) -> Result<(), &'static str> {
    let first = tile.saturating_mul(VOCAB_TILE);
    let want = Span::new(first, first.saturating_add(VOCAB_TILE).min(rows.end));
    if found.len() != want.len() as usize || !want.iter().zip(found).all(|(id, c)| c.token == id) {
        return Err("a tile with other tokens than its own");
    }
    if found.iter().any(|c| c.logit.is_nan() || c.logit == f32::INFINITY) {
        return Err("a logit that is not finite");
    }
    Ok(())
}

fn penalties(params: &SamplingParams, history: &[u32]) -> Penalties {
    let (repeat, frequency, presence) =
        (params.repeat_penalty, params.frequency_penalty, params.presence_penalty);
    let neutral = repeat == 1.0 && frequency == 0.0 && presence == 0.0;
    let window = match params.repeat_last_n {
        _ if neutral => 0,
        n if n < 0 => PENALTY_WINDOW,
        n => (n as usize).min(PENALTY_WINDOW),
    };
    let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
    for &token in &history[history.len().saturating_sub(window)..] {
        *counts.entry(token).or_default() += 1;
    }
    Penalties { repeat, frequency, presence, counts: counts.into_iter().collect() }
}
