//! The best plan of a [`Problem`] of up to [`DEVICES`] devices, by search with admissible bounds.
//!
//! A plan is ordered disjoint groups of devices, each with a contiguous range of layers, with query heads and
//! feed-forward blocks for each rank under its memory, and one of three ways to place the output head
//! ([`super::problem::HeadMode`]). What it costs is exactly what [`crate::cost::predict`] says of it.
//!
//! | file | what it does |
//! |---|---|
//! | `rules` | what a query allows |
//! | `groups` | what a layer costs each group at least, memory aside |
//! | `reach` | how far a stage of each group may reach, and what short memory adds |
//! | `table` | what the rest of a plan takes at least, from any layer with any devices used |
//! | `stages` | what a stage really takes |
//! | `search` | best-first search |
//! | `finish` | the plan |
//!
//! For throughput the number of stages is fixed in turn, since it decides how many rows a step has; a plan that
//! serves all streams in less than some time has no node busier than that time divided by the steps, which bounds
//! every stage.

mod finish;
mod groups;
mod reach;
mod rules;
mod search;
mod stages;
mod table;

use std::collections::BTreeMap;

use shoal_core::Plan;
use shoal_core::plan::Strategy;

use super::Pin;
use super::problem::{Family, Goal, HeadMode, Problem};
use super::shares::{Exhausted, Work};
use rules::Rules;
use search::{Found, Search};
use stages::Stages;

/// Most devices: sets of them are the search's states.
pub const DEVICES: usize = 10;

/// Units of work (bounds and stages looked at) after which a search stops with what it has.
pub const WORK: u64 = 40_000_000;

/// What is asked of the search.
#[derive(Debug, Clone, Copy)]
pub struct Query<'q> {
    pub goal: Goal,
    pub family: Family,
    /// Every device of the problem must run a part of some layer.
    pub use_all: bool,
    pub pins: &'q [Pin],
    /// What the plan is called.
    pub strategy: Strategy,
    /// Most units of work: [`WORK`] unless there is a reason.
    pub work: u64,
}

/// A plan with what is known of it.
#[derive(Debug, Clone)]
pub struct Solution {
    pub plan: Plan,
    /// Seconds of what is made small: of one token, or of one token of each stream.
    pub cost: f64,
    /// No plan of the space costs less than this.
    pub bound: f64,
    /// Whether no plan of the space is better.
    pub optimal: bool,
    /// Units of work that were spent.
    pub work: u64,
}

impl Solution {
    /// How much better than this plan another may be at most, as a part of its cost.
    pub fn gap(&self) -> f64 {
        ((self.cost - self.bound) / self.cost).max(0.0)
    }
}

/// Why there is no plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoSolution {
    /// None fits the memory, or the pins.
    #[error("no plan of this kind fits")]
    Infeasible,
    /// More devices, heads or blocks than are searched exactly.
    #[error("the problem is too large for an exact search")]
    TooLarge,
    /// The work ended before any plan was found.
    #[error("no plan was found within the work allowed")]
    Unknown,
}

/// Most layers, heads and blocks: they are indices of tables.
const LAYERS: usize = 255;
const HEADS: usize = 256;
const BLOCKS: usize = 4096;

/// The best plan.
///
/// # Errors
/// Nothing fits, the problem is too large, or the work ended before anything was found.
pub fn solve(problem: &Problem<'_>, query: &Query<'_>) -> Result<Solution, NoSolution> {
    let weights = &problem.weights;
    if problem.devices.is_empty() {
        return Err(NoSolution::Infeasible);
    }
    let layers = weights.class_of.len();
    if problem.devices.len() > DEVICES || layers > LAYERS || weights.heads > HEADS || weights.blocks > BLOCKS
    {
        return Err(NoSolution::TooLarge);
    }
    let rules = Rules::new(problem, query).ok_or(NoSolution::Infeasible)?;
    let mut work = Work { done: 0, most: query.work };
    let mut tried = None;
    for chunk in finish::SEARCHED.into_iter().filter(|&chunk| finish::legal(problem, chunk)) {
        // Buffers are for at least a row of every sequence.
        let rows = chunk.max(problem.kv.sequences);
        if tried.replace(rows) == Some(rows) {
            continue;
        }
        let mut round = Round { problem, query, rules: &rules, chunk, stages: BTreeMap::new(), best: None };
        let bound = round.run(&mut work);
        if let Some(found) = round.best {
            let optimal = bound >= found.cost;
            let stages = round.stages.get(&found.rows).ok_or(NoSolution::Unknown)?;
            let plan = finish::plan(stages, &found, chunk, query.strategy).ok_or(NoSolution::Unknown)?;
            let (cost, work) = (found.cost, work.done);
            return Ok(Solution { plan, cost, bound: bound.min(cost), optimal, work });
        }
        if bound.is_finite() {
            return Err(NoSolution::Unknown);
        }
    }
    Err(NoSolution::Infeasible)
}

/// Ratio of the best known cost to a bound at which caps on the busiest node are no longer tried out.
const CLOSE: f64 = 1.01;

/// Caps that are tried for one number of stages.
const TRIALS: usize = 10;

/// A search with the buffers of one chunk.
struct Round<'a> {
    problem: &'a Problem<'a>,
    query: &'a Query<'a>,
    rules: &'a Rules,
    chunk: u32,
    /// By rows of a step.
    stages: BTreeMap<u32, Stages<'a>>,
    best: Option<Found>,
}

impl Round<'_> {
    /// Looks for the best; returns what no plan is below, where the work ended before that was the best found,
    /// and infinity where it did not.
    fn run(&mut self, work: &mut Work) -> f64 {
        let n = self.problem.devices.len().min(self.problem.weights.class_of.len());
        let counts: Vec<Option<usize>> = match (self.query.goal, self.query.family) {
            (Goal::Latency, _) => vec![None],
            (Goal::Throughput, Family::Single | Family::Heads) => vec![Some(1)],
            (Goal::Throughput, family) => {
                // One stage and as many as can be first: they are quick, and often good.
                let least = if family == Family::Mixed { 2 } else { 1 };
                let mut counts: Vec<usize> = (least..=n).rev().collect();
                if least == 1 && n > 1 {
                    counts.pop();
                    counts.insert(0, 1);
                }
                counts.into_iter().map(Some).collect()
            }
        };
        let mut bound = f64::INFINITY;
        for count in counts {
            bound = bound.min(self.count(count, work));
        }
        bound
    }

    /// The same for plans of so many stages, or any number.
    fn count(&mut self, count: Option<usize>, work: &mut Work) -> f64 {
        let (rows, steps) = self.problem.step_rows(self.query.goal, count.unwrap_or(1));
        let modes: &[HeadMode] = match self.query.family {
            Family::Single => &HeadMode::ALL[..1],
            _ if self.problem.devices.len() == 1 => &HeadMode::ALL[..1],
            _ => &HeadMode::ALL,
        };
        let (problem, rules, chunk) = (self.problem, self.rules, self.chunk);
        let stages =
            self.stages.entry(rows).or_insert_with(|| Stages::new(problem, rules, modes, rows, chunk));
        let cost = |best: &Option<Found>| best.as_ref().map_or(f64::INFINITY, |best| best.cost);
        let mut search = Search::new(stages, count, steps.into(), work, &mut self.best);
        let limit = cost(search.best);
        let mut planes = search.planes(limit);
        let mut low = search.bound(&planes);
        if low >= limit {
            return f64::INFINITY;
        }
        let mut dive = |search: &mut Search<'_, '_>| -> Result<(), Exhausted> {
            search.dive(&planes, f64::INFINITY)?;
            for _ in 0..TRIALS {
                let high = cost(search.best);
                if count.is_none() || !high.is_finite() || high <= low * CLOSE {
                    break;
                }
                let trial = (low * high).sqrt();
                planes = search.planes(trial);
                let bound = search.bound(&planes);
                if bound >= trial {
                    low = trial;
                    continue;
                }
                low = low.max(bound);
                search.dive(&planes, f64::INFINITY)?;
                if cost(search.best) >= high {
                    break;
                }
            }
            Ok(())
        };
        if dive(&mut search).is_err() {
            return low;
        }
        if count.is_some() {
            planes = search.planes(cost(search.best));
        }
        search.run(&planes).err().map_or(f64::INFINITY, |bound| bound.max(low))
    }
}
