//! What a plan's time is made of and what limits it, as data for people.
//!
//! Called by [`super::choose`] with the chosen plan and its rivals; prices nothing that the cost model does not.

use serde::Serialize;
use shoal_core::NodeId;
use shoal_core::plan::Plan;

use crate::cost::link::all_reduce;
use crate::cost::model::wire_row;
use crate::cost::predict::leader;
use crate::cost::{Links, Prediction};

/// The parts of one token's time, one stream, in milliseconds. Their sum is [`Prediction::decode_ms`].
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Account {
    /// Attention and feed-forward networks, the slowest rank of each group.
    pub compute_ms: f64,
    /// Adding up partial sums within groups.
    pub all_reduce_ms: f64,
    /// Hidden states from stage to stage.
    pub hops_ms: f64,
    /// The output head, moving the hidden state there included.
    pub head_ms: f64,
    /// The order and the answer.
    pub control_ms: f64,
}

/// What kind of thing limits a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitKind {
    /// A board's memory is nearly full, so that it cannot take what its speed would allow.
    Memory,
    /// A board's compute: the others wait for it.
    Compute,
    /// The sums of a group.
    AllReduce,
    /// A link between stages.
    Link,
    /// The output head.
    Head,
    /// How far the planner looked.
    Scope,
}

/// One thing that limits the chosen plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Limit {
    pub kind: LimitKind,
    /// The board, or the sending end of the link.
    pub node: Option<NodeId>,
    /// The receiving end of the link.
    pub to: Option<NodeId>,
    /// The part of the token's time it takes, or of the board's memory that is used; 0 for the planner's own limits.
    pub share: f64,
    /// For a person.
    pub text: String,
}

impl Account {
    /// The parts of this prediction.
    pub(super) fn of(plan: &Plan, prediction: &Prediction, d_model: u32, links: &Links) -> Self {
        let (sum, hop) = (wire_row(plan.wire.sum, d_model.into()), wire_row(plan.wire.hop, d_model.into()));
        let sums = plan.stages.iter().map(|stage| {
            let nodes: Vec<NodeId> = stage.ranks.iter().map(|share| share.node).collect();
            2e3 * f64::from(stage.layers.len())
                * all_reduce(stage.sums.of(1, plan.kv.sequences), &nodes, links, sum).0
        });
        let all_reduce_ms: f64 = sums.sum();
        let hops = plan.stages.windows(2).map(|pair| links.get(leader(&pair[0]), leader(&pair[1])).time(hop));
        let hops_ms = 1e3 * hops.sum::<f64>();
        let stages: f64 = prediction.stage_ms.iter().sum();
        let control_ms = 2e3 * links.default.latency();
        Self {
            compute_ms: (stages - all_reduce_ms - hops_ms).max(0.0),
            all_reduce_ms,
            hops_ms,
            head_ms: (prediction.decode_ms - stages - control_ms).max(0.0),
            control_ms,
        }
    }
}
