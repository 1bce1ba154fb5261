//! What one more board would change, and which addition would let a model fit.

use serde::Serialize;
use shoal_cluster::cost::Workload;
use shoal_cluster::planner::{Choice, NoPlan, Options, choose};
use shoal_core::plan::Strategy;
use shoal_core::{Bytes, ModelSpec};
use shoal_profiles::{Board, board, boards};

use super::ground::Ground;
use crate::exit::Outcome;

/// Boards of one kind that are tried together where one is not enough.
const MOST_ADDED: usize = 8;

/// Additions that are planned with at most; those with too little memory for what is missing are not planned with.
const MOST_TRIED: usize = 24;

/// Profiles that are offered as an addition: boards that can be had with what Shoal runs on them today.
const NOT_OFFERED: [&str; 1] = ["orin-nano-gpu"];

/// A board on paper and what it would change.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct WhatIf {
    pub(crate) profile: String,
    pub(crate) title: String,
    /// `None` where even with it nothing fits.
    pub(crate) before: Option<Figures>,
    pub(crate) after: Option<Figures>,
    /// Whether the plan with it gives it work.
    pub(crate) used: bool,
    /// Why there is no plan with it.
    pub(crate) reason: Option<String>,
}

/// What a plan is predicted to do, in short.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Figures {
    pub(crate) strategy: Strategy,
    /// By the objective, less is better.
    pub(crate) figure: f64,
    pub(crate) decode_ms: f64,
    pub(crate) decode_tps: f64,
    /// Over all streams.
    pub(crate) tps: f64,
    pub(crate) prefill_tps: f64,
    pub(crate) boards: usize,
}

impl Figures {
    pub(crate) fn of(choice: &Choice) -> Self {
        let prediction = &choice.chosen.prediction;
        Self {
            strategy: choice.strategy(),
            figure: choice.figure,
            decode_ms: prediction.decode_ms,
            decode_tps: prediction.decode_tps,
            tps: prediction.throughput(),
            prefill_tps: prediction.prefill_tps,
            boards: choice.chosen.plan.nodes().len(),
        }
    }
}

/// The smallest addition from the built-in profiles with which there is a plan.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Addition {
    pub(crate) profile: String,
    pub(crate) title: String,
    pub(crate) count: usize,
    /// Of one of them.
    pub(crate) usable_bytes: Bytes,
    pub(crate) after: Figures,
}

/// Plans with `board` added.
///
/// # Errors
/// There is no network to attach it by.
pub(crate) fn what_if(
    ground: &Ground,
    board: Board,
    spec: &ModelSpec,
    workload: &Workload,
    options: &Options,
    before: Option<Figures>,
) -> Outcome<WhatIf> {
    let (cluster, added) = ground.plus(std::slice::from_ref(&board))?;
    let (after, used, reason) = match choose(spec, &cluster, workload, options) {
        Ok(choice) => {
            let used = added.iter().all(|node| choice.chosen.plan.nodes().contains(node));
            (Some(Figures::of(&choice)), used, None)
        }
        Err(no_plan) => (None, false, Some(no_plan.to_string())),
    };
    Ok(WhatIf { profile: board.name, title: board.title, before, after, used, reason })
}

/// The addition with the least memory (of those with equal memory, of the fewest boards) that gives a plan. `None`
/// where memory is not what is missing, or none of the additions tried does.
///
/// # Errors
/// There is no network to attach boards by.
pub(crate) fn addition(
    ground: &Ground,
    no_plan: &NoPlan,
    spec: &ModelSpec,
    workload: &Workload,
    options: &Options,
) -> Outcome<Option<Addition>> {
    if no_plan.refused.is_some() {
        return Ok(None);
    }
    // What a board holds beside its own reserve is less what is asked to be kept free.
    let holds = |board: &Board| board.usable.saturating_sub(options.reserve).0;
    let offered = boards().iter().filter(|name| !NOT_OFFERED.contains(name));
    let known: Vec<Board> = offered.filter_map(|name| board(name).ok()).collect();
    let mut tries: Vec<(u64, usize, &Board)> = Vec::new();
    for board in &known {
        let counts = (1..=MOST_ADDED).map(|count| (count as u64 * holds(board), count, board));
        tries.extend(counts.filter(|(memory, ..)| *memory >= no_plan.missing.0.max(1)));
    }
    tries.sort_by_key(|(memory, count, _)| (*memory, *count));
    for (_, count, board) in tries.into_iter().take(MOST_TRIED) {
        let (cluster, _) = ground.plus(&vec![board.clone(); count])?;
        if let Ok(choice) = choose(spec, &cluster, workload, options) {
            return Ok(Some(Addition {
                profile: board.name.clone(),
                title: board.title.clone(),
                count,
                usable_bytes: board.usable,
                after: Figures::of(&choice),
            }));
        }
    }
    Ok(None)
}
