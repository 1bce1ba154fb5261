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
//! | `reach` | how far a stage of each group may reach, under each mode of the head |
//! | `pace` | what short memory adds |
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
mod pace;
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
use crate::cost::{Workload, predict};
use rules::Rules;
use search::{Found, Plane, Search};
use stages::Stages;

/// Most devices: sets of them are the search's states.
pub const DEVICES: usize = 10;

/// Units of work, each about a microsecond, after which a search stops with what it has.
pub const WORK: u64 = 1_000_000;

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
            let optimal = bound >= found.cost * (1.0 - pace::ROUNDING * 4.0);
            let stages = round.stages.get(&found.rows).ok_or(NoSolution::Unknown)?;
            let plan = finish::plan(stages, &found, chunk, query.strategy).ok_or(NoSolution::Unknown)?;
            // Better shares may have been found for a stage after the plan was.
            let cost = found.cost.min(priced(problem, query.goal, &plan).unwrap_or(f64::INFINITY));
            let work = work.done;
            return Ok(Solution { plan, cost, bound: bound.min(cost), optimal, work });
        }
        if bound.is_finite() {
            return Err(NoSolution::Unknown);
        }
    }
    Err(NoSolution::Infeasible)
}

/// What is made least, of a finished plan.
fn priced(problem: &Problem<'_>, goal: Goal, plan: &Plan) -> Option<f64> {
    let workload = Workload { streams: problem.kv.sequences, ..problem.workload };
    let prediction = predict(plan, problem.spec, problem.cluster, &workload).ok()?;
    Some(match goal {
        Goal::Latency => prediction.decode_ms / 1e3,
        Goal::Throughput => f64::from(problem.kv.sequences) / prediction.throughput(),
    })
}

/// Ratio of the best known cost to a bound at which caps on the busiest node are no longer tried out.
const CLOSE: f64 = 1.01;

/// Caps that are tried for one number of stages and one mode of the head.
const TRIALS: usize = 8;

/// How often a first cost is raised, and by what factor: to 18 times the least.
const CLIMBS: usize = 16;
const CLIMB: f64 = 1.2;

/// Part of the best cost by which plans must be better to be looked for at first; then all are.
const TOLERANCE: f64 = 0.005;

/// Parts of the work left that the shares of one stage may take, at first and then.
const PARTS: [u64; 2] = [256, 8];

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

impl<'a> Round<'a> {
    /// Looks for the best; returns what no plan that was given up is below.
    fn run(&mut self, work: &mut Work) -> f64 {
        let mut counts = self.counts();
        if !self.may_fit() {
            return f64::INFINITY;
        }
        let mut proven = Vec::with_capacity(counts.len());
        for (at, &(count, bound)) in counts.iter().enumerate() {
            // Half of what is left for each but the last, so that all have their turn.
            let most = work.most;
            if at + 1 < counts.len() {
                work.most = work.done + most.saturating_sub(work.done) / 2;
            }
            proven.push(self.count(count, bound, (TOLERANCE, PARTS[0]), work));
            work.most = most;
        }
        // What was given up may still be better by a little.
        for (known, (count, bound)) in proven.iter_mut().zip(counts.drain(..)) {
            if *known < self.cost() && work.done < work.most {
                *known = self.count(count, bound, (0.0, PARTS[1]), work).max(*known);
            }
        }
        proven.into_iter().fold(f64::INFINITY, f64::min)
    }

    /// Whether all memory together is enough for layers, head, and embedding table.
    fn may_fit(&self) -> bool {
        let problem = self.problem;
        let Some(stages) = self.stages.values().next() else { return true };
        let head = problem.weights.head_bytes(problem.spec, problem.kv, problem.spec.vocab);
        let needs = stages.pace.total() + problem.weights.embedding + head;
        problem.devices.iter().map(|device| device.usable.0).fold(0, u64::saturating_add) >= needs
    }

    fn cost(&self) -> f64 {
        self.best.as_ref().map_or(f64::INFINITY, |best| best.cost)
    }

    /// Numbers of stages to look at, the most promising first, with what plans of so many cost at least. One
    /// entry where their number decides nothing.
    fn counts(&mut self) -> Vec<(Option<usize>, f64)> {
        let (problem, family) = (self.problem, self.query.family);
        if self.query.goal == Goal::Latency {
            self.prepare(1);
            return vec![(None, 0.0)];
        }
        let n = problem.devices.len().min(problem.weights.class_of.len());
        let (least, most) = match family {
            Family::Single | Family::Heads => (1, 1),
            Family::Mixed => (2, n),
            Family::Layers | Family::Any => (1, n),
        };
        let mut busy: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
        let mut out = Vec::new();
        for count in least..=most {
            let (rows, steps) = problem.step_rows(Goal::Throughput, count);
            let of = busy.entry(rows).or_insert_with(|| {
                let stages = self.prepare(rows);
                stages.groups.busy(&problem.weights.class_of)
            });
            out.push((Some(count), f64::from(steps) * of[count]));
        }
        out.sort_by(|a, b| a.1.total_cmp(&b.1));
        out
    }

    /// Tables for steps of so many rows.
    fn prepare(&mut self, rows: u32) -> &mut Stages<'a> {
        let modes: &[HeadMode] = match self.query.family {
            Family::Single => &HeadMode::ALL[..1],
            _ if self.problem.devices.len() == 1 => &HeadMode::ALL[..1],
            _ => &HeadMode::ALL,
        };
        let (problem, rules, chunk) = (self.problem, self.rules, self.chunk);
        self.stages.entry(rows).or_insert_with(|| Stages::new(problem, rules, modes, rows, chunk))
    }

    /// Looks for the best plan of so many stages, or any number, which costs at least `bound`; returns what none
    /// that was given up is below.
    fn count(
        &mut self,
        count: Option<usize>,
        bound: f64,
        (tolerance, part): (f64, u64),
        work: &mut Work,
    ) -> f64 {
        if bound >= self.cost() {
            return f64::INFINITY;
        }
        let (rows, steps) = self.problem.step_rows(self.query.goal, count.unwrap_or(1));
        self.prepare(rows);
        let Some(stages) = self.stages.get_mut(&rows) else { return bound };
        stages.part = part;
        let modes = stages.modes.len();
        let any = stages.any.is_some();
        let mut search = Search::new(stages, count, steps.into(), work, &mut self.best);
        let cost = |search: &Search<'_, '_>| search.best.as_ref().map_or(f64::INFINITY, |best| best.cost);
        let mut low = bound;
        let mut prepare = |search: &mut Search<'_, '_>| -> Result<Vec<Plane>, Exhausted> {
            let mut planes = Vec::new();
            // Most numbers of stages are too many or too few whatever the mode.
            if count.is_some() && any && cost(search).is_finite() {
                let limit = cost(search);
                let plane = search.plane(modes, limit)?;
                let least = search.bound(&[plane]);
                if least >= limit {
                    low = f64::INFINITY;
                    return Ok(planes);
                }
                low = low.max(least);
            }
            for mode in 0..modes {
                if count.is_some() && cost(search).is_infinite() {
                    climb(search, mode, bound)?;
                }
                let limit = cost(search);
                let mut plane = [search.plane(mode, limit)?];
                let least = search.bound(&plane);
                if least >= limit {
                    continue;
                }
                search.dive(&plane)?;
                if count.is_some() {
                    caps(search, mode, least)?;
                    plane = [search.plane(mode, cost(search))?];
                }
                planes.extend(plane);
            }
            Ok(planes)
        };
        match prepare(&mut search) {
            Ok(planes) if planes.is_empty() => f64::INFINITY,
            Ok(planes) => {
                // A search that ends early says what it left.
                let _ended = search.run(&planes, tolerance);
                search.proven.max(low)
            }
            Err(Exhausted) => low,
        }
    }
}

/// Raises the cost that plans may have until one is found, from the least there can be.
fn climb(search: &mut Search<'_, '_>, mode: usize, bound: f64) -> Result<(), Exhausted> {
    let mut trial = bound;
    for _ in 0..CLIMBS {
        trial *= CLIMB;
        let plane = [search.plane(mode, trial)?];
        if search.bound(&plane) < trial {
            search.dive(&plane)?;
            if search.best.is_some() {
                break;
            }
        }
    }
    Ok(())
}

/// Tries out caps on how long a node is busy, between what is known to be possible and what is not.
fn caps(search: &mut Search<'_, '_>, mode: usize, least: f64) -> Result<(), Exhausted> {
    let mut low = least;
    for _ in 0..TRIALS {
        let high = search.best.as_ref().map_or(f64::INFINITY, |best| best.cost);
        if !high.is_finite() || high <= low * CLOSE {
            break;
        }
        let trial = (low * high).sqrt();
        let plane = [search.plane(mode, trial)?];
        let bound = search.bound(&plane);
        if bound >= trial {
            low = trial;
            continue;
        }
        low = low.max(bound);
        search.dive(&plane)?;
        if search.best.as_ref().is_some_and(|best| best.cost >= high) {
            break;
        }
    }
    Ok(())
}
