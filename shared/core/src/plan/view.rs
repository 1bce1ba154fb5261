//! The plan as `--json` prints it (design 17).

use serde::Serialize;

use crate::ids::NodeId;

use super::{HeadShare, KvBudget, Plan, Span, Strategy, Sums, Wire};

/// The plan object. Fields may be added, never renamed.
#[derive(Debug, Serialize)]
pub struct PlanView<'a> {
    epoch: u32,
    term: u64,
    strategy: Strategy,
    stages: Vec<StageView>,
    head: &'a [HeadShare],
    chunk_tokens: u32,
    wire: Wire,
    kv: KvBudget,
}

#[derive(Debug, Serialize)]
struct StageView {
    layers: Span,
    ranks: Vec<RankView>,
    all_reduce: Sums,
}

#[derive(Debug, Serialize)]
struct RankView {
    node: NodeId,
    q_heads: Span,
    kv_heads: Span,
    kv_owned: Span,
    ffn: Span,
}

impl<'a> PlanView<'a> {
    pub(super) fn new(plan: &'a Plan) -> Self {
        let stages = plan.stages.iter().map(|stage| StageView {
            layers: stage.layers,
            ranks: stage.ranks.iter().map(RankView::new).collect(),
            all_reduce: stage.sums,
        });
        Self {
            epoch: plan.epoch.counter,
            term: plan.epoch.term.0,
            strategy: plan.strategy,
            stages: stages.collect(),
            head: &plan.head,
            chunk_tokens: plan.chunk_tokens,
            wire: plan.wire,
            kv: plan.kv,
        }
    }
}

impl RankView {
    fn new(share: &super::Share) -> Self {
        let super::Share { node, q_heads, kv_heads, kv_owned, ffn } = *share;
        Self { node, q_heads, kv_heads, kv_owned, ffn }
    }
}
