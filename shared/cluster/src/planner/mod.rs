//! The planner: a plan by each of the five strategies, priced side by side, and the one to take.
//!
//! A function of its arguments: the same model, cluster, workload and options give the same plans,
//! whatever the order of the devices. Memory is a hard constraint. Where no plan fits, the answer says
//! which bytes are missing on which node. Nothing is measured and nobody is spoken to here.

mod build;
mod choose;
mod groups;
mod layers;
mod search;
mod share;
mod strategies;

use std::fmt;

use serde::Serialize;
use shoal_core::plan::{Strategy, Wire};
use shoal_core::units::Bytes;
use shoal_core::{Epoch, NodeId, Plan};

pub use build::{Arrangement, RankShare, StageShares, plan_from_shares};
pub use choose::choose;

use crate::cost::Prediction;

/// What the caller decides.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Take this strategy, whether it is best or not, and use all devices that can take part. Without
    /// one, devices are left out where the plan is clearly better so.
    pub strategy: Option<Strategy>,
    /// Number formats on the wire.
    pub wire: Wire,
    /// Nodes not to use.
    pub exclude: Vec<NodeId>,
    /// Epoch the plans carry.
    pub epoch: Epoch,
}

/// A plan with what it is predicted to do.
#[derive(Debug, Clone)]
pub struct Priced {
    pub plan: Plan,
    pub prediction: Prediction,
}

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
        for (at, missing) in self.missing.iter().enumerate() {
            let before = if at == 0 { ": " } else { ", " };
            write!(f, "{before}{} missing on {} ({})", missing.bytes, missing.name, missing.node.short())?;
        }
        Ok(())
    }
}

/// What one strategy gives.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub strategy: Strategy,
    pub result: Result<Priced, Infeasible>,
}

/// A node without work in the chosen plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    pub node: NodeId,
    /// Name for people.
    pub name: String,
    pub reason: String,
}

/// The five strategies and the one to take.
#[derive(Debug, Clone)]
pub struct Choice {
    /// In the order of [`Strategy::ALL`].
    pub outcomes: Vec<Outcome>,
    /// The chosen one with its plan.
    pub chosen: Priced,
    /// Why that one.
    pub reason: String,
    pub left_out: Vec<LeftOut>,
    /// What this planner does not look at.
    pub limits: String,
    /// No plan on these devices can decode one stream faster.
    pub lower_bound_ms: f64,
}

impl Choice {
    /// The strategy that was chosen.
    pub fn strategy(&self) -> Strategy {
        self.chosen.plan.strategy
    }
}

/// No plan fits, by the strategy asked for or by any.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to fit the model on {devices} device(s): {}", list(.strategies))]
pub struct NoPlan {
    /// Devices that were considered.
    pub devices: usize,
    /// Why, for each strategy that was tried.
    pub strategies: Vec<(Strategy, Infeasible)>,
    pub left_out: Vec<LeftOut>,
}

fn list(strategies: &[(Strategy, Infeasible)]) -> String {
    let lines = strategies.iter().map(|(strategy, why)| format!("{}: {why}", strategy.name()));
    lines.collect::<Vec<_>>().join("; ")
}
