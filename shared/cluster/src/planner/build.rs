//! Plans from counts: how many layers, heads, blocks and tiles each rank takes.

use shoal_core::model::ModelSpec;
use shoal_core::plan::{HeadShare, KvBudget, Plan, PlanError, PlanParts, Span, Stage, Strategy, Sums, Wire};
use shoal_core::{Epoch, NodeId, limits};

/// One rank's counts in every layer of its stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankShare {
    pub node: NodeId,
    pub q_heads: u32,
    /// Blocks of [`ModelSpec::ffn_block`] columns; the last block of the model may be short.
    pub ffn_blocks: u32,
}

/// One stage's counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageShares {
    pub layers: u32,
    pub ranks: Vec<RankShare>,
    pub sums: Sums,
}

/// A plan by counts: what a test or a command line with fixed shares writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrangement {
    pub strategy: Strategy,
    pub stages: Vec<StageShares>,
    /// Nodes of the output head with how many tiles of [`limits::VOCAB_TILE`] rows each holds.
    pub head: Vec<(NodeId, u32)>,
    pub chunk_tokens: u32,
    pub wire: Wire,
    pub kv: KvBudget,
    pub epoch: Epoch,
}

/// The plan with these counts, laid out in the order given.
///
/// # Errors
/// Counts that do not add up to the model's.
pub fn plan_from_shares(spec: &ModelSpec, arrangement: &Arrangement) -> Result<Plan, PlanError> {
    let mut first_layer = 0;
    let mut stages = Vec::with_capacity(arrangement.stages.len());
    for stage in &arrangement.stages {
        let layers = Span::new(first_layer, first_layer.saturating_add(stage.layers));
        first_layer = layers.end;
        let q_heads = lay_out(stage.ranks.iter().map(|rank| rank.q_heads), 1, spec.n_heads);
        let ffn = lay_out(stage.ranks.iter().map(|rank| rank.ffn_blocks), spec.ffn_block(), spec.ffn);
        let nodes = stage.ranks.iter().map(|rank| rank.node);
        let ranks: Vec<_> = nodes.zip(q_heads).zip(ffn).map(|((node, q), ffn)| (node, q, ffn)).collect();
        stages.push(Stage { sums: stage.sums, ..Stage::from_spans(layers, &ranks, spec) });
    }
    let rows = lay_out(arrangement.head.iter().map(|head| head.1), limits::VOCAB_TILE, spec.vocab);
    let nodes = arrangement.head.iter().map(|head| head.0);
    let head = nodes.zip(rows).map(|(node, rows)| HeadShare { node, rows }).collect();
    let Arrangement { strategy, chunk_tokens, wire, kv, epoch, .. } = *arrangement;
    Plan::try_new(PlanParts { epoch, strategy, stages, head, chunk_tokens, wire, kv }, spec)
}

/// Neighbouring spans of these counts of blocks. The block that reaches beyond `total` is cut there;
/// blocks wholly beyond it keep their length, so that the plan's check finds them.
fn lay_out(counts: impl Iterator<Item = u32>, block: u32, total: u32) -> Vec<Span> {
    let cut = |end: u64| {
        let slack = u64::from(block);
        let total = u64::from(total);
        (if end > total && end < total + slack { total } else { end }).min(u64::from(u32::MAX)) as u32
    };
    let mut blocks = 0_u64;
    let spans = counts.map(|count| {
        let first = blocks * u64::from(block);
        blocks = blocks.saturating_add(u64::from(count));
        Span::new(cut(first), cut(blocks.saturating_mul(u64::from(block))))
    });
    spans.collect()
}
