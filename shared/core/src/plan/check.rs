//! The rules a plan keeps.

use crate::ids::NodeId;
use crate::limits;
use crate::model::ModelSpec;

use super::{PlanParts, Share, Span, Stage, Sums};

/// Why parts are not a plan for a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error("the plan has no stage, or a stage has no rank")]
    Empty,
    #[error("the plan names {0} workers; the limit is {max}", max = limits::PLANNED_WORKERS)]
    Workers(usize),
    #[error("{what} do not cover the model: {at} should start at {want}, not at {got}")]
    Gap { what: &'static str, at: String, want: u32, got: u32 },
    #[error("{what} do not cover the model: they end at {got} of {want}")]
    Short { what: &'static str, want: u32, got: u32 },
    #[error("node {0} is named twice")]
    Twice(NodeId),
    #[error("{what} of {at} end at {got}, which is no multiple of {block}")]
    Border { what: &'static str, at: String, got: u32, block: u32 },
    #[error("the KV heads of {at} are not those its query heads read")]
    KvHeads { at: String },
    #[error("{what} is {got}; it must be from 1 to {most}")]
    Limit { what: &'static str, got: u32, most: u32 },
}

pub(super) fn check(parts: &PlanParts, spec: &ModelSpec) -> Result<(), PlanError> {
    if parts.stages.is_empty() || parts.head.is_empty() || parts.stages.iter().any(|s| s.ranks.is_empty()) {
        return Err(PlanError::Empty);
    }
    check_numbers(parts, spec)?;
    check_nodes(parts)?;
    cover(
        "the layers",
        spec.n_layers,
        parts.stages.iter().enumerate().map(|(i, s)| (stage_name(i), s.layers)),
    )?;
    if let Some(index) = parts.stages.iter().position(|stage| stage.layers.is_empty()) {
        return Err(PlanError::Gap { what: "the layers", at: stage_name(index), want: 1, got: 0 });
    }
    for (index, stage) in parts.stages.iter().enumerate() {
        check_stage(index, stage, spec)?;
    }
    let rows = parts.head.iter().map(|head| (format!("node {}", head.node), head.rows));
    cover("the vocabulary rows", spec.vocab, rows.clone())?;
    on_borders("the vocabulary rows", limits::VOCAB_TILE, spec.vocab, rows)
}

fn check_numbers(parts: &PlanParts, spec: &ModelSpec) -> Result<(), PlanError> {
    let within = |what, got: u32, most: u32| {
        if got == 0 || got > most { Err(PlanError::Limit { what, got, most }) } else { Ok(()) }
    };
    within("the chunk of prefill", parts.chunk_tokens, limits::CHUNK_TOKENS)?;
    within("the context", parts.kv.context, spec.context.max(1))?;
    within("the number of sequences", parts.kv.sequences, limits::SEQUENCES as u32)
}

fn check_nodes(parts: &PlanParts) -> Result<(), PlanError> {
    let once = |nodes: &mut Vec<NodeId>| {
        nodes.sort_unstable();
        nodes.windows(2).find(|pair| pair[0] == pair[1]).map_or(Ok(()), |pair| Err(PlanError::Twice(pair[0])))
    };
    let mut ranks: Vec<NodeId> = parts.stages.iter().flat_map(|s| &s.ranks).map(|share| share.node).collect();
    let mut heads: Vec<NodeId> = parts.head.iter().map(|head| head.node).collect();
    once(&mut ranks)?;
    once(&mut heads)?;
    ranks.extend(heads);
    ranks.sort_unstable();
    ranks.dedup();
    if ranks.len() > limits::PLANNED_WORKERS { Err(PlanError::Workers(ranks.len())) } else { Ok(()) }
}

fn check_stage(index: usize, stage: &Stage, spec: &ModelSpec) -> Result<(), PlanError> {
    let name = |rank: usize| format!("rank {rank} of stage {index}");
    let spans = |of: fn(&Share) -> Span| {
        stage.ranks.iter().enumerate().map(move |(rank, share)| (name(rank), of(share)))
    };
    cover("the query heads", spec.n_heads, spans(|share| share.q_heads))?;
    cover("the feed-forward columns", spec.ffn, spans(|share| share.ffn))?;
    on_borders("the feed-forward columns", spec.ffn_block(), spec.ffn, spans(|share| share.ffn))?;
    let mut owned = 0;
    for (rank, share) in stage.ranks.iter().enumerate() {
        let (kv_heads, kv_owned) = kv_spans(share.q_heads, owned, spec);
        if share.kv_heads != kv_heads || share.kv_owned != kv_owned {
            return Err(PlanError::KvHeads { at: name(rank) });
        }
        owned = owned.max(kv_owned.end);
    }
    Ok(())
}

/// The KV heads a range of query heads reads, and those among them from `owned` on, which no earlier
/// rank owns.
pub(super) fn kv_spans(q_heads: Span, owned: u32, spec: &ModelSpec) -> (Span, Span) {
    if q_heads.is_empty() {
        return (Span::new(owned, owned), Span::new(owned, owned));
    }
    let group = spec.group_size();
    let all = Span::new(q_heads.first / group, q_heads.end.div_ceil(group));
    (all, Span::new(all.first.max(owned), all.end.max(owned)))
}

fn cover(
    what: &'static str,
    total: u32,
    spans: impl Iterator<Item = (String, Span)>,
) -> Result<(), PlanError> {
    let mut next = 0;
    for (at, span) in spans {
        if span.first != next || span.end < span.first {
            return Err(PlanError::Gap { what, at, want: next, got: span.first });
        }
        next = span.end;
    }
    if next == total { Ok(()) } else { Err(PlanError::Short { what, want: total, got: next }) }
}

fn on_borders(
    what: &'static str,
    block: u32,
    total: u32,
    mut spans: impl Iterator<Item = (String, Span)>,
) -> Result<(), PlanError> {
    let off = spans.find(|(_, span)| span.end != total && span.end % block != 0);
    off.map_or(Ok(()), |(at, span)| Err(PlanError::Border { what, at, got: span.end, block }))
}

impl Stage {
    /// A stage whose ranks hold these query heads and feed-forward columns (one pair a rank, in
    /// order); KV heads follow from the query heads, each owned by the first rank that reads it.
    pub fn from_spans(layers: Span, ranks: &[(NodeId, Span, Span)], spec: &ModelSpec) -> Self {
        let mut owned = 0;
        let shares = ranks.iter().map(|&(node, q_heads, ffn)| {
            let (kv_heads, kv_owned) = kv_spans(q_heads, owned, spec);
            owned = owned.max(kv_owned.end);
            Share { node, q_heads, kv_heads, kv_owned, ffn }
        });
        Self { layers, ranks: shares.collect(), sums: Sums::default() }
    }
}

fn stage_name(index: usize) -> String {
    format!("stage {index}")
}

#[cfg(test)]
mod tests {
    use super::super::{HeadShare, KvBudget, Plan, Strategy, Wire};
    use super::*;
    use crate::ids::Epoch;
    use crate::model::shapes::{FileType, Shape};

    fn node(id: u8) -> NodeId {
        NodeId([id; 16])
    }

    fn spec() -> ModelSpec {
        Shape::from_name("stories").unwrap().spec(FileType::from_name("Q8_0").unwrap())
    }

    /// Two ranks in stage 0, one in stage 1, head on two nodes.
    fn parts() -> PlanParts {
        let spec = spec();
        let ranks =
            [(node(1), Span::new(0, 3), Span::new(0, 32)), (node(2), Span::new(3, 8), Span::new(32, 768))];
        let whole = [(node(3), Span::new(0, 8), Span::new(0, 768))];
        PlanParts {
            epoch: Epoch::default(),
            strategy: Strategy::Hybrid,
            stages: vec![
                Stage::from_spans(Span::new(0, 4), &ranks, &spec),
                Stage::from_spans(Span::new(4, 6), &whole, &spec),
            ],
            head: vec![
                HeadShare { node: node(3), rows: Span::new(0, 1024) },
                HeadShare { node: node(1), rows: Span::new(1024, 2048) },
            ],
            chunk_tokens: 64,
            wire: Wire::default(),
            kv: KvBudget { context: 512, sequences: 4 },
        }
    }

    fn refused(change: impl FnOnce(&mut PlanParts)) -> PlanError {
        let mut parts = parts();
        change(&mut parts);
        Plan::try_new(parts, &spec()).unwrap_err()
    }

    #[test]
    fn shares_that_do_not_cover_the_model_are_refused() {
        assert!(matches!(refused(|p| p.stages[1].layers.end = 5), PlanError::Short { want: 6, got: 5, .. }));
        assert!(matches!(refused(|p| p.stages[1].layers.first = 3), PlanError::Gap { want: 4, got: 3, .. }));
        assert!(matches!(refused(|p| p.stages[0].ranks[1].q_heads.first = 4), PlanError::Gap { .. }));
        assert!(matches!(refused(|p| p.stages[0].ranks[1].kv_heads.first = 2), PlanError::KvHeads { .. }));
        assert!(matches!(refused(|p| p.head[1].rows.end = 2047), PlanError::Short { .. }));
        assert!(matches!(refused(|p| p.stages.clear()), PlanError::Empty));
        assert!(matches!(refused(|p| p.stages[1].ranks.clear()), PlanError::Empty));
    }

    #[test]
    fn borders_inside_a_block_or_tile_are_refused() {
        let move_ffn = |p: &mut PlanParts| {
            p.stages[0].ranks[0].ffn.end = 33;
            p.stages[0].ranks[1].ffn.first = 33;
        };
        assert!(matches!(refused(move_ffn), PlanError::Border { got: 33, block: 32, .. }));
        let move_rows = |p: &mut PlanParts| {
            p.head[0].rows.end = 1000;
            p.head[1].rows.first = 1000;
        };
        assert!(matches!(refused(move_rows), PlanError::Border { got: 1000, block: 256, .. }));
    }

    #[test]
    fn a_node_has_one_place() {
        assert_eq!(refused(|p| p.stages[1].ranks[0].node = node(1)), PlanError::Twice(node(1)));
        assert_eq!(refused(|p| p.head[1].node = node(3)), PlanError::Twice(node(3)));
    }

    #[test]
    fn numbers_beyond_the_limits_are_refused() {
        assert!(matches!(refused(|p| p.kv.context = 513), PlanError::Limit { got: 513, .. }));
        assert!(matches!(refused(|p| p.kv.sequences = 0), PlanError::Limit { .. }));
        assert!(matches!(refused(|p| p.chunk_tokens = 513), PlanError::Limit { .. }));
    }

    #[test]
    fn hidden_states_reach_every_rank_that_needs_them() {
        let plan = Plan::try_new(parts(), &spec()).unwrap();
        assert_eq!(plan.hop_source(0, 0), None);
        assert_eq!(plan.hop_source(1, 0), Some(node(1)));
        let place = |id| plan.place(node(id)).unwrap();
        assert_eq!(plan.hop_targets(place(1)).collect::<Vec<_>>(), [node(3)]);
        assert_eq!(plan.hop_targets(place(2)).count(), 0);
        assert_eq!(plan.head_targets(place(3)).collect::<Vec<_>>(), [node(1)]);
        assert_eq!(plan.head_source(0), node(3));
        assert_eq!(plan.tile_owner(4), Some(node(1)));
        assert_eq!(plan.tile_owner(8), None);
        assert_eq!(plan.nodes(), [node(1), node(2), node(3)]);
    }
}
