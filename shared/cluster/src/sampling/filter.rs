//! From sorted candidates to a token: top-k, top-p, min-p, temperature, draw.

use shoal_core::head::Candidate;

use super::SamplingParams;

/// What the candidates at hand allow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Verdict {
    Token(Candidate),
    /// The filters may keep tokens beyond the candidates.
    More,
    /// There is no token at all.
    Nothing,
}

/// The best tokens of the whole vocabulary.
#[derive(Debug, Clone, Copy)]
pub(super) struct Best<'a> {
    /// Modified logits, falling, ties to the lower token; none is −∞.
    pub(super) sorted: &'a [Candidate],
    /// Whether these are all tokens that may be drawn.
    pub(super) complete: bool,
    /// Log-sum-exp of all modified logits, where it is known.
    pub(super) log_sum: Option<f64>,
}

/// Applies the filters and draws with the uniform number `u`.
pub(super) fn draw(best: Best<'_>, params: &SamplingParams, u: f64) -> Verdict {
    let Some(first) = best.sorted.first() else {
        return if best.complete { Verdict::Nothing } else { Verdict::More };
    };
    if params.is_greedy() {
        return Verdict::Token(*first);
    }
    match kept(best, params, f64::from(first.logit)) {
        Some(kept) => Verdict::Token(pick(&best.sorted[..kept], params.temperature, u)),
        None => Verdict::More,
    }
}

/// How many of the candidates pass the filters; `None` where that cannot be told from them.
fn kept(best: Best<'_>, params: &SamplingParams, max: f64) -> Option<usize> {
    let mut kept = best.sorted.len();
    // Whether tokens beyond the candidates may still be in.
    let mut open = !best.complete;
    if params.top_k > 0 {
        let k = params.top_k as usize;
        if kept < k && open {
            return None;
        }
        kept = kept.min(k);
        open = false;
    }
    if params.top_p < 1.0 {
        let weight = |candidate: &Candidate| libm::exp(f64::from(candidate.logit) - max);
        let total = match best.log_sum {
            Some(log_sum) if params.top_k == 0 => libm::exp(log_sum - max),
            _ if open => return None,
            _ => best.sorted[..kept].iter().map(weight).sum(),
        };
        let want = f64::from(params.top_p) * total;
        let mut sum = 0.0;
        let reached = best.sorted[..kept].iter().position(|candidate| {
            sum += weight(candidate);
            sum >= want
        });
        match reached {
            Some(at) => {
                kept = at + 1;
                open = false;
            }
            None if open => return None,
            None => {}
        }
    }
    if params.min_p > 0.0 {
        let least = max + libm::log(f64::from(params.min_p));
        let passed = best.sorted[..kept].iter().take_while(|c| f64::from(c.logit) >= least).count();
        if passed == kept && open {
            return None;
        }
        // The best one passes whatever rounding does.
        kept = passed.max(1);
        open = false;
    }
    if open { None } else { Some(kept) }
}

/// Draws among candidates in their order by weight `exp(logit ÷ temperature)`. There is at least one.
fn pick(candidates: &[Candidate], temperature: f32, u: f64) -> Candidate {
    let max = f64::from(candidates[0].logit);
    let weights = candidates.iter().map(|c| libm::exp((f64::from(c.logit) - max) / f64::from(temperature)));
    candidates[walk(weights, u)]
}

/// Index of the first weight whose running sum exceeds `u` × the sum of all; the last positive one if
/// rounding lets none do so.
pub(super) fn walk(weights: impl Iterator<Item = f64> + Clone, u: f64) -> usize {
    let target = u * weights.clone().sum::<f64>();
    let mut sum = 0.0;
    let mut last = 0;
    for (at, weight) in weights.enumerate() {
        if weight > 0.0 {
            last = at;
        }
        sum += weight;
        if sum > target {
            return at;
        }
    }
    last
}
