//! What one more board would change, and which addition would let a model fit.

use serde::Serialize;
use shoal_cluster::cost::Workload;
use shoal_cluster::planner::{Choice, NoPlan, Options, choose};
use shoal_core::plan::Strategy;
use shoal_core::{Bytes, ModelSpec};
use shoal_profiles::{Board, board, boards};

use super::ground::Ground;
use crate::exit::{Failure, Outcome};
use crate::paper;

/// Boards of one kind that are tried together where one is not enough.
const MOST_ADDED: usize = 8;

/// Additions that are planned with at most, from the smallest in memory and from the fewest boards; those with too
/// little memory for what is missing are not planned with.
const MOST_TRIED: usize = 12;

/// Work of the exact searches for one addition, as [`Options::effort`] counts: whether it fits is asked, and a plan in
/// half a second serves as an example.
const TRY_EFFORT: u64 = 500_000;

/// Profiles that are offered as an addition: boards that can be had with what Shoal runs on them today.
const NOT_OFFERED: [&str; 1] = ["orin-nano-gpu"];

/// A board on paper and what it would change.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct WhatIf {
    pub(crate) profile: String,
    pub(crate) title: String,
    /// How many of it.
    pub(crate) count: usize,
    /// `None` where even with it nothing fits.
    pub(crate) before: Option<Figures>,
    pub(crate) after: Option<Figures>,
    /// Whether the plan with them gives each of them work.
    pub(crate) used: bool,
    /// How many of them have work.
    pub(crate) used_count: usize,
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

/// Boards of one built-in profile with which there is a plan.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Addition {
    /// In what it is the smallest.
    pub(crate) kind: Least,
    pub(crate) profile: String,
    pub(crate) title: String,
    pub(crate) count: usize,
    /// Of one of them.
    pub(crate) usable_bytes: Bytes,
    pub(crate) after: Figures,
}

/// What an addition is the smallest in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Least {
    Memory,
    Boards,
}

impl std::fmt::Display for Least {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Memory => "the least memory",
            Self::Boards => "the fewest boards",
        })
    }
}

impl Addition {
    /// As `--what-if` takes it.
    pub(crate) fn argument(&self) -> String {
        match self.count {
            1 => self.profile.clone(),
            count => format!("{count}x{}", self.profile),
        }
    }
}

/// A board and how many of it, from `pi5-8gb` or `2xpi5-8gb`.
///
/// # Errors
/// There is no such board, or the number is none.
pub(crate) fn boards_of(text: &str) -> Outcome<(Board, usize)> {
    let counted = text.split_once('x').and_then(|(count, name)| Some((count.parse::<usize>().ok()?, name)));
    let (count, name) = counted.unwrap_or((1, text));
    if !(1..=MOST_ADDED).contains(&count) {
        return Err(Failure::Usage(format!("--what-if {text}: 1 to {MOST_ADDED} boards can be added")));
    }
    Ok((board(name).map_err(paper::refused)?, count))
}

/// Plans with `count` of `board` added.
///
/// # Errors
/// There is no network to attach it by.
pub(crate) fn what_if(
    ground: &Ground,
    (board, count): (Board, usize),
    spec: &ModelSpec,
    workload: &Workload,
    options: &Options,
    before: Option<Figures>,
) -> Outcome<WhatIf> {
    let (cluster, added) = ground.plus(&vec![board.clone(); count])?;
    let (after, used_count, reason) = match choose(spec, &cluster, workload, options) {
        Ok(choice) => {
            let after = Figures::of(&choice);
            match before.filter(|before| options.strategy.is_none() && before.figure <= after.figure) {
                // The plan without them is one of those with them, whether a search comes upon it or not.
                Some(before) => (Some(before), 0, None),
                None => {
                    let nodes = choice.chosen.plan.nodes();
                    (Some(after), added.iter().filter(|node| nodes.contains(node)).count(), None)
                }
            }
        }
        Err(no_plan) => (None, 0, Some(no_plan.to_string())),
    };
    let (used, Board { name: profile, title, .. }) = (used_count == count, board);
    Ok(WhatIf { profile, title, count, before, after, used, used_count, reason })
}

/// Additions that give a plan: the one with the least memory, and the one of the fewest boards where that is another.
/// None where nothing is planned on or what was asked for contradicts itself, or none of those tried does.
///
/// # Errors
/// There is no network to attach boards by.
pub(crate) fn additions(
    ground: &Ground,
    no_plan: &NoPlan,
    spec: &ModelSpec,
    workload: &Workload,
    options: &Options,
) -> Outcome<Vec<Addition>> {
    if no_plan.refused.is_some() || no_plan.devices == 0 {
        return Ok(Vec::new());
    }
    let options = &Options { effort: options.effort.or(Some(TRY_EFFORT)), ..options.clone() };
    // What is asked to be kept free on every board is not added.
    let holds = |board: &Board| board.usable.saturating_sub(options.reserve).0;
    let offered = boards().iter().filter(|name| !NOT_OFFERED.contains(name));
    let known: Vec<Board> = offered.filter_map(|name| board(name).ok()).collect();
    let mut tries: Vec<(u64, usize, &Board)> = Vec::new();
    for board in &known {
        let counts = (1..=MOST_ADDED).map(|count| (count as u64 * holds(board), count, board));
        tries.extend(counts.filter(|(memory, ..)| *memory >= no_plan.missing.0.max(1)));
    }
    let mut out: Vec<Addition> = Vec::new();
    let mut failed: Vec<(usize, &str)> = Vec::new();
    for kind in [Least::Memory, Least::Boards] {
        tries.sort_by_key(|(memory, count, _)| match kind {
            Least::Memory => (*memory, *count as u64),
            Least::Boards => (*count as u64, *memory),
        });
        for &(_, count, board) in tries.iter().take(MOST_TRIED) {
            if failed.contains(&(count, &board.name)) {
                continue;
            }
            let (cluster, _) = ground.plus(&vec![board.clone(); count])?;
            let Ok(choice) = choose(spec, &cluster, workload, options) else {
                failed.push((count, &board.name));
                continue;
            };
            if out.iter().all(|other| other.profile != board.name || other.count != count) {
                out.push(Addition {
                    kind,
                    profile: board.name.clone(),
                    title: board.title.clone(),
                    count,
                    usable_bytes: board.usable,
                    after: Figures::of(&choice),
                });
            }
            break;
        }
    }
    Ok(out)
}
