//! Drawing with the distributed head equals drawing from all logits at once.

use proptest::prelude::*;
use shoal_cluster::sampling::{MergeError, Outcome, Queried, Sampler, SamplingParams, uniform};
use shoal_core::head::{Candidate, HeadAnswer, HeadQuery, HeadRequest};
use shoal_core::limits::VOCAB_TILE;
use shoal_core::plan::Plan;

mod common;

/// All logits of one row after the request's penalties and biases.
fn modified(logits: &[f32], request: &HeadRequest) -> Vec<f32> {
    let mut out = logits.to_vec();
    let p = &request.penalties;
    for &(token, n) in &p.counts {
        let z = &mut out[token as usize];
        *z = if *z > 0.0 { *z / p.repeat } else { *z * p.repeat };
        *z -= n as f32 * p.frequency + p.presence;
    }
    for &(token, bias) in &request.bias {
        out[token as usize] += bias;
    }
    out
}

fn sorted(logits: impl Iterator<Item = (u32, f32)>) -> Vec<Candidate> {
    let mut all: Vec<_> = logits.map(|(token, logit)| Candidate { token, logit }).collect();
    all.sort_by(|a, b| b.logit.partial_cmp(&a.logit).unwrap().then(a.token.cmp(&b.token)));
    all
}

/// Plays the head ranks of `plan`.
struct Head<'a> {
    plan: &'a Plan,
    logits: Vec<f32>,
    request: HeadRequest,
    questions: usize,
}

impl Head<'_> {
    fn top(&self, index: usize, k: u32) -> Vec<Candidate> {
        let rows = self.plan.head[index].rows;
        let mut top = sorted(rows.iter().map(|row| (row, self.logits[row as usize])));
        top.truncate(k as usize);
        top
    }

    fn tile(&self, tile: u32) -> Vec<Candidate> {
        let end = ((tile + 1) * VOCAB_TILE).min(self.logits.len() as u32);
        (tile * VOCAB_TILE..end).map(|t| Candidate { token: t, logit: self.logits[t as usize] }).collect()
    }

    fn answer(&self, index: usize) -> HeadAnswer {
        let rows = self.plan.head[index].rows;
        let tiles = (rows.first / VOCAB_TILE)..rows.end.div_ceil(VOCAB_TILE);
        let lse = |tile: u32| {
            let scaled: Vec<f64> = self
                .tile(tile)
                .iter()
                .map(|c| f64::from(c.logit) / f64::from(self.request.temperature))
                .collect();
            let max = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            if max == f64::NEG_INFINITY {
                return max;
            }
            max + libm_log(scaled.iter().map(|z| (z - max).exp()).sum())
        };
        HeadAnswer {
            row: 0,
            top: self.top(index, self.request.k),
            tiles: if self.request.want_tiles { tiles.map(lse).collect() } else { Vec::new() },
            ..HeadAnswer::default()
        }
    }

    fn run(&mut self, sampler: &mut Sampler) -> Result<u32, MergeError> {
        let answers = (0..self.plan.head.len()).map(|index| self.answer(index)).collect();
        let mut outcome = sampler.merge(answers, self.plan)?;
        for _ in 0..20 {
            match outcome {
                Outcome::Token(drawn) => {
                    assert_eq!(drawn.logit, self.logits[drawn.token as usize]);
                    return Ok(drawn.token);
                }
                Outcome::Need(queries) => {
                    self.questions += queries.len();
                    let answers = queries.into_iter().map(|(node, query)| {
                        let index = self.plan.head.iter().position(|head| head.node == node).unwrap();
                        let found = match query {
                            HeadQuery::Top(k) => self.top(index, k),
                            HeadQuery::Tile(tile) => {
                                assert_eq!(self.plan.tile_owner(tile), Some(node));
                                self.tile(tile)
                            }
                        };
                        Queried { node, query, found }
                    });
                    outcome = sampler.resume(answers.collect())?;
                }
            }
        }
        panic!("it asks for ever");
    }
}

fn libm_log(x: f64) -> f64 {
    x.ln()
}

/// The straightforward sampler over all logits; also how near the draw came to a border.
fn reference(logits: &[f32], params: &SamplingParams, position: u64) -> Option<(u32, f64)> {
    let mut kept = sorted((0..).zip(logits.iter().copied()).filter(|(_, z)| *z > f32::NEG_INFINITY));
    let max = f64::from(kept.first()?.logit);
    if params.temperature == 0.0 {
        return Some((kept[0].token, 1.0));
    }
    let mut nearest = 1.0_f64;
    let truncated = params.top_k > 0 || params.top_p < 1.0 || params.min_p > 0.0;
    if params.top_k > 0 {
        kept.truncate(params.top_k as usize);
    }
    if params.top_p < 1.0 {
        let weights: Vec<f64> = kept.iter().map(|c| (f64::from(c.logit) - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let mut count = 0;
        for weight in weights {
            sum += weight;
            count += 1;
            nearest = nearest.min((sum / total - f64::from(params.top_p)).abs());
            if sum / total >= f64::from(params.top_p) {
                break;
            }
        }
        kept.truncate(count);
    }
    if params.min_p > 0.0 {
        let least = f64::from(params.min_p).ln() + max;
        nearest = kept.iter().map(|c| (f64::from(c.logit) - least).abs()).fold(nearest, f64::min);
        kept.retain(|c| f64::from(c.logit) >= least || f64::from(c.logit) == max);
    }
    if !truncated {
        kept.sort_by_key(|c| c.token);
    }
    let u = uniform(params.seed, params.choice, position);
    let weights: Vec<f64> =
        kept.iter().map(|c| ((f64::from(c.logit) - max) / f64::from(params.temperature)).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut sum = 0.0;
    let mut token = None;
    for (candidate, weight) in kept.iter().zip(weights) {
        sum += weight / total;
        nearest = nearest.min((sum - u).abs());
        if sum > u && token.is_none() {
            token = Some(candidate.token);
        }
    }
    Some((token.unwrap_or(kept.last()?.token), nearest))
}

prop_compose! {
    fn params()(
        temperature in prop_oneof![Just(0.0_f32), Just(1.0), 0.05_f32..3.0],
        top_k in prop_oneof![Just(0_u32), Just(1), 2_u32..60, Just(1500), Just(100_000)],
        top_p in prop_oneof![Just(1.0_f32), Just(0.0), 0.1_f32..0.999, Just(0.99999)],
        min_p in prop_oneof![Just(0.0_f32), 0.0001_f32..0.5, Just(1.0)],
        repeat_penalty in prop_oneof![Just(1.0_f32), 0.8_f32..1.5],
        frequency_penalty in prop_oneof![Just(0.0_f32), -1.0_f32..1.0],
        repeat_last_n in -1_i32..12,
        bias in proptest::collection::vec((0_u32..700, -5.0_f32..5.0), 0..4),
        seed in any::<u64>(),
    ) -> SamplingParams {
        SamplingParams {
            temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, frequency_penalty,
            presence_penalty: frequency_penalty / 2.0, logit_bias: bias, seed, choice: 3,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_draw_is_that_of_all_logits(
        params in params(),
        vocab in 700_u32..3000,
        ranks in 1_usize..6,
        spread in prop_oneof![Just(0.5_f32), Just(4.0), Just(20.0)],
        ties in any::<bool>(),
        seed in any::<u64>(),
        history in proptest::collection::vec(0_u32..700, 1..20),
    ) {
        let logits: Vec<f32> = (0..u64::from(vocab))
            .map(|at| (uniform(seed, 9, at) as f32 - 0.5) * 2.0 * spread)
            .map(|z| if ties { z.round() } else { z })
            .collect();
        prop_assert_eq!(params.check(vocab), Ok(()));
        let plan = common::head_plan(vocab, ranks, seed);
        let mut sampler = Sampler::new(params.clone());
        let request = sampler.request(&history);
        prop_assert_eq!(request.check(), Ok(()));
        let all = modified(&logits, &request);
        let (want, margin) = reference(&all, &params, history.len() as u64).unwrap();
        let mut head = Head { plan: &plan, logits: all, request, questions: 0 };
        let got = head.run(&mut sampler).unwrap();
        // Nearer than rounding of the sums, either is right; ties make whole borders of the distribution.
        prop_assert!(got == want || margin < 1e-9, "{} instead of {}, margin {}", got, want, margin);
        // And no split changes it at all.
        let one = common::head_plan(vocab, 1, 0);
        let mut sampler = Sampler::new(params);
        let request = sampler.request(&history);
        let mut head = Head { plan: &one, logits: head.logits, request, questions: 0 };
        prop_assert_eq!(head.run(&mut sampler).unwrap(), got);
    }
}

#[test]
fn defaults_never_ask_twice() {
    let plan = common::head_plan(3000, 3, 1);
    for seed in 0..50 {
        let logits = (0..3000).map(|at| uniform(seed, 0, at) as f32 * 10.0).collect();
        let mut sampler = Sampler::new(SamplingParams { seed, ..SamplingParams::default() });
        let request = sampler.request(&[1, 2, 3]);
        assert!(!request.want_tiles);
        let mut head = Head { plan: &plan, logits, request, questions: 0 };
        assert!(head.run(&mut sampler).is_ok());
        assert_eq!(head.questions, 0);
    }
}

#[test]
fn a_forbidden_token_is_never_drawn_and_all_forbidden_is_an_error() {
    let plan = common::head_plan(700, 2, 1);
    let forbid = |n: u32| (0..n).map(|token| (token, f32::NEG_INFINITY)).collect::<Vec<_>>();
    for (top_k, top_p, min_p, temperature) in [
        (0, 1.0, 0.0, 1.0),
        (40, 0.95, 0.05, 0.8),
        (0, 0.9, 0.0, 1.0),
        (0, 1.0, 0.1, 1.0),
        (0, 1.0, 0.0, 0.0),
    ] {
        for forbidden in [699, 700] {
            let params = SamplingParams {
                top_k,
                top_p,
                min_p,
                temperature,
                logit_bias: forbid(forbidden),
                ..SamplingParams::default()
            };
            let mut sampler = Sampler::new(params);
            let request = sampler.request(&[0]);
            let logits = modified(&[0.0; 700], &request);
            let mut head = Head { plan: &plan, logits, request, questions: 0 };
            let got = head.run(&mut sampler);
            assert_eq!(got, if forbidden == 700 { Err(MergeError::Nothing) } else { Ok(699) });
        }
    }
}

#[test]
fn drawn_tokens_follow_the_distribution() {
    let plan = common::head_plan(700, 2, 5);
    let mut logits = vec![f32::NEG_INFINITY; 700];
    let weights = [(3, 1.0_f32), (300, 2.0), (650, 5.0)];
    for (token, weight) in weights {
        logits[token] = weight.ln();
    }
    let params =
        SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplingParams::default() };
    let mut counts = [0_u32; 700];
    let mut sampler = Sampler::new(params);
    for position in 1..=4000 {
        let request = sampler.request(&vec![0; position]);
        let mut head = Head { plan: &plan, logits: logits.clone(), request, questions: 0 };
        counts[head.run(&mut sampler).unwrap() as usize] += 1;
    }
    for (token, weight) in weights {
        let want = weight / 8.0 * 4000.0;
        assert!((counts[token] as f32 - want).abs() < 130.0, "{token}: {}", counts[token]);
    }
}

#[test]
fn a_lying_rank_is_named() {
    let plan = common::head_plan(700, 2, 5);
    let honest = |sampler: &mut Sampler| {
        let request = sampler.request(&[1]);
        let head = Head { plan: &plan, logits: vec![0.5; 700], request, questions: 0 };
        vec![head.answer(0), head.answer(1)]
    };
    let mut sampler = Sampler::new(SamplingParams::default());
    let lie = |change: &dyn Fn(&mut HeadAnswer), sampler: &mut Sampler| {
        let mut answers = honest(sampler);
        change(&mut answers[1]);
        sampler.merge(answers, &plan).unwrap_err()
    };
    let lies: [&dyn Fn(&mut HeadAnswer); 4] = [
        &|answer| answer.top[0].token = 0,
        &|answer| answer.top[0].logit = f32::NAN,
        &|answer| answer.top.swap(0, 1),
        &|answer| answer.top.extend_from_within(..),
    ];
    for change in lies {
        assert!(matches!(lie(change, &mut sampler), MergeError::Answer { rank: 1, .. }));
    }
    assert_eq!(sampler.merge(Vec::new(), &plan), Err(MergeError::Unasked));
    assert_eq!(sampler.resume(Vec::new()), Err(MergeError::Unasked));
}

#[test]
fn parameters_out_of_range_are_named() {
    let ok = SamplingParams::default();
    assert_eq!(ok.check(10), Ok(()));
    let bad = [
        SamplingParams { temperature: -1.0, ..ok.clone() },
        SamplingParams { top_p: 1.1, ..ok.clone() },
        SamplingParams { min_p: f32::NAN, ..ok.clone() },
        SamplingParams { repeat_penalty: 0.0, ..ok.clone() },
        SamplingParams { repeat_last_n: -2, ..ok.clone() },
        SamplingParams { frequency_penalty: f32::INFINITY, ..ok.clone() },
        SamplingParams { logit_bias: vec![(10, 0.0)], ..ok.clone() },
        SamplingParams { logit_bias: vec![(1, f32::INFINITY)], ..ok.clone() },
        SamplingParams { logit_bias: vec![(1, 0.0); 2000], ..ok.clone() },
    ];
    let texts: Vec<String> = bad.iter().map(|p| p.check(10).unwrap_err().to_string()).collect();
    for (text, name) in texts.iter().zip([
        "temperature",
        "top_p",
        "min_p",
        "repeat_penalty",
        "repeat_last_n",
        "frequency_penalty",
        "logit_bias",
        "logit_bias",
        "logit_bias",
    ]) {
        assert!(text.contains(name), "{text}");
    }
}
