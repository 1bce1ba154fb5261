//! The planner: a plan by each of the five strategies, priced side by side, and the one to take.
//!
//! A function of its arguments: the same model, cluster, workload and options give the same plans,
//! whatever the order of the devices. Memory is a hard constraint: every plan is weighed by
//! [`shoal_core::shard::footprint`], as the worker does. Where no plan fits, the answer says which bytes are missing on
//! which node. Nothing is measured and nobody is spoken to here.
//!
//! # What is exact
//! Up to [`exact::DEVICES`] devices, `single`, `adaptive-layer`, `head` and `hybrid` are each the best plan of their
//! kind by [`exact`]: of all ordered disjoint groups of devices, contiguous layers, query heads and blocks of
//! feed-forward columns by rank under joint memory, with the output head on the last group or on all devices. Best means
//! by the cost model's prediction, no more: what it leaves out (processor time beside kernels, other traffic, the
//! spread of what was measured) is left out here. Together the four kinds are all plans of that space, so the best of
//! the five strategies is the best plan, "do not distribute" included. [`Choice::optimal`] says whether the proof was
//! finished within [`Options::effort`]; if not, [`Choice::gap`] bounds what is missed.
//!
//! # What is not
//! - The exact search places the head's rows by three rules. A plan it proves best is then looked around by local
//!   search, which places them freely and prices far fewer plans; where that is better, it is taken.
//! - Beyond that many devices, and with an effort of 0, plans come from `heuristic`: no proof, and the gap is to a lower
//!   bound that few clusters can reach. `tests/heuristic.rs` holds it against the exact search on random clusters.
//! - The chunk of prefill is chosen for the plan that decodes best, and not traded against decoding: by the exact search
//!   the one with which a typical prompt is answered first, by the heuristic the largest that fits.
//! - Energy has no search of its own: the least of plans made for speed is taken (`energy`).
//! - `static-layer` is one plan: equal layers and equal parts of the head, by node id.
//!
//! | module | lives there |
//! |---|---|
//! | `choose` | the entry, the choice between strategies, who is left out |
//! | `strategies` | what each strategy asks of which search |
//! | `problem`, `shares`, [`exact`] | the exact search |
//! | `heuristic` | the search for any number of devices |
//! | `bound`, `lack`, `pins`, `energy` | what no plan beats, what is missing, what is given, what draws least |
//! | `advice` | why, and what limits, for people |
//! | `build`, `share` | plans from counts, counts from weights |

mod advice;
mod bound;
mod build;
mod choose;
mod energy;
pub mod exact;
mod heuristic;
mod lack;
mod pins;
pub mod problem;
mod share;
mod shares;
mod strategies;

use std::fmt;

use serde::Serialize;
#[cfg(doc)]
use shoal_core::limits;
use shoal_core::plan::{Span, Strategy, Wire};
use shoal_core::units::Bytes;
use shoal_core::{Epoch, NodeId, Plan};

pub use advice::{Limit, LimitKind};
pub use build::{Arrangement, RankShare, StageShares, plan_from_shares};
pub use choose::choose;

use crate::cost::{Objective, Prediction};

/// What the caller decides.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Take this strategy, whether it is best or not, and use all devices that can take part. Without
    /// one, devices are left out where the plan is better so.
    pub strategy: Option<Strategy>,
    /// Leave no device without work where a strategy can use it, whether or not one is asked for.
    pub use_all: bool,
    /// Number formats on the wire.
    pub wire: Wire,
    /// Nodes not to use.
    pub exclude: Vec<NodeId>,
    /// Epoch the plans carry.
    pub epoch: Epoch,
    /// What particular nodes must hold. A strategy that cannot keep them has no plan.
    pub pins: Vec<Pin>,
    /// Kept free on every device, beside what it keeps back itself.
    pub reserve: Bytes,
    /// Bound on the work of the whole choice, in steps of the exact search (about a microsecond each on a
    /// desktop processor); `None` for one that suits a person who waits. A search that meets it gives the best
    /// plan it has, with its gap.
    pub effort: Option<u64>,
    /// Most devices of a plan: [`limits::WORKERS`] for one that is to run. `None` for a plan on paper, with at
    /// most [`limits::PLANNED_WORKERS`].
    pub max_workers: Option<usize>,
}

/// What a node must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pin {
    /// The node's stage runs exactly these layers.
    Layers { node: NodeId, span: Span },
    /// The node has exactly these query heads of each of its layers.
    QHeads { node: NodeId, span: Span },
}

impl Pin {
    /// The node it is about.
    pub const fn node(&self) -> NodeId {
        match self {
            Self::Layers { node, .. } | Self::QHeads { node, .. } => *node,
        }
    }
}

/// A plan with what it is predicted to do.
#[derive(Debug, Clone)]
pub struct Priced {
    pub plan: Plan,
    pub prediction: Prediction,
}

/// Boards that an error names; the others are counted.
const NAMED: usize = 10;

/// Bytes a node would need beyond what it may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    pub node: NodeId,
    /// Name for people.
    pub name: String,
    pub bytes: Bytes,
}

/// Why a strategy has no plan here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Infeasible {
    /// For a person.
    pub reason: String,
    /// Of the attempt that came nearest; empty where memory is not the reason.
    pub missing: Vec<Missing>,
}

impl fmt::Display for Infeasible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        for (at, missing) in self.missing.iter().take(NAMED).enumerate() {
            let before = if at == 0 { ": " } else { ", " };
            write!(f, "{before}{} missing on {} ({})", missing.bytes, missing.name, missing.node.short())?;
        }
        match self.missing.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, ", and on {more} more"),
        }
    }
}

/// What one strategy gives.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub strategy: Strategy,
    pub result: Result<Priced, Infeasible>,
    /// Whether it is proven that no plan of the strategy is better, of the space the exact search covers, or that there
    /// is none.
    pub optimal: bool,
    /// How much better than the plan's figure the strategy's best could be at most, as a part of the figure: 0 when
    /// optimal.
    pub gap: f64,
    /// No plan of the strategy has a lower figure, in the unit of [`Choice::figure`]; 0 where nothing is known.
    pub bound: f64,
    /// Work done, as [`Options::effort`] counts.
    pub expansions: u64,
}

/// A node without work in the chosen plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LeftOut {
    pub node: NodeId,
    /// Name for people.
    pub name: String,
    pub reason: String,
    /// How much worse the best plan found that uses the node is, in the unit of [`Choice::figure`]; `None` where no
    /// such plan was priced.
    pub cost: Option<f64>,
}

/// The five strategies and the one to take.
#[derive(Debug, Clone)]
pub struct Choice {
    /// What was made best.
    pub objective: Objective,
    /// In the order of [`Strategy::ALL`].
    pub outcomes: Vec<Outcome>,
    /// The chosen one with its plan.
    pub chosen: Priced,
    /// Why that one, and what decides against the others.
    pub reason: String,
    pub left_out: Vec<LeftOut>,
    /// What limits the chosen plan, the heaviest first, and at the end how far the planner looked.
    pub limits: Vec<Limit>,
    /// No plan on these devices can decode one stream faster.
    pub lower_bound_ms: f64,
    /// The chosen plan by the objective, less is better: milliseconds per token of one stream (latency),
    /// milliseconds per token over all streams (throughput), joules per token (energy).
    pub figure: f64,
    /// No plan on these devices has a lower figure.
    pub bound: f64,
    /// Whether it is proven that no plan is better (of the strategy asked for, if one was), of the space the exact search
    /// covers.
    pub optimal: bool,
    /// How much lower than `figure` the best could be at most, as a part of it: 0 when optimal.
    pub gap: f64,
    /// Work done, as [`Options::effort`] counts.
    pub expansions: u64,
}

impl Choice {
    /// The strategy that was chosen.
    pub fn strategy(&self) -> Strategy {
        self.chosen.plan.strategy
    }
}

/// No plan fits, by the strategy asked for or by any; or what was asked for contradicts itself.
#[derive(Debug, Clone, PartialEq)]
pub struct NoPlan {
    /// Devices that were considered.
    pub devices: usize,
    /// What is wrong with what was asked for, whatever the memory: pins that contradict each other, a figure that the
    /// objective needs and a device lacks.
    pub refused: Option<String>,
    /// Why, for each strategy that was tried.
    pub strategies: Vec<(Strategy, Infeasible)>,
    /// Nodes that were not considered, with the reason.
    pub left_out: Vec<LeftOut>,
    /// Bytes that are missing on all boards together, however they are spread; zero where memory is not the reason.
    pub missing: Bytes,
    /// The same board by board, of the attempt that came nearest.
    pub boards: Vec<Missing>,
    /// With one more board that has this much usable memory (and is otherwise like the fastest one) there is a plan;
    /// `None` where that would not help.
    pub addition: Option<Bytes>,
}

impl std::error::Error for NoPlan {}

impl fmt::Display for NoPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(refused) = &self.refused {
            return write!(f, "failed to plan: {refused}");
        }
        write!(f, "failed to fit the model on {} device(s)", self.devices)?;
        if self.missing.0 > 0 {
            write!(f, ", which lack {} in all", self.missing)?;
        }
        for (at, (strategy, why)) in self.strategies.iter().enumerate() {
            let before = if at == 0 { ":" } else { ";" };
            write!(f, "{before} {}: {why}", strategy.name())?;
        }
        if let Some(addition) = self.addition {
            write!(f, "; one more board with {addition} of usable memory would do")?;
        }
        Ok(())
    }
}
