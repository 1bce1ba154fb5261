//! Each device by itself: what efficiency is measured against.

use shoal_cluster::cost::{Cluster, Device, predict};
use shoal_cluster::planner::{Arrangement, RankShare, StageShares, plan_from_shares};
use shoal_core::limits::VOCAB_TILE;
use shoal_core::plan::{KvBudget, Strategy, Sums, Wire};
use shoal_core::{Epoch, ModelSpec, NodeId, Plan, shard};

use super::figures::Figures;
use super::work::Work;

/// Rows of a step of such a plan, beside its streams: prompts of the trials are short, and small buffers leave room for
/// the model.
const CHUNK: u32 = 32;

/// One device with the whole model.
#[derive(Debug, Clone)]
pub(super) struct Alone {
    pub(super) node: NodeId,
    pub(super) name: String,
    /// Whether its memory holds the model and its caches.
    pub(super) fits: bool,
    pub(super) plan: Plan,
    /// The trial that measures it, if one does.
    pub(super) trial: Option<usize>,
    /// As if its memory had no limit.
    pub(super) predicted: Figures,
}

impl Alone {
    /// This device by itself; `None` for a model that cannot be planned for at all.
    pub(super) fn new(device: &Device, spec: &ModelSpec, work: &Work, cluster: &Cluster) -> Option<Self> {
        let kv = KvBudget { context: work.context, sequences: work.most_streams() };
        let rank = RankShare {
            node: device.node,
            q_heads: spec.n_heads,
            ffn_blocks: spec.ffn.div_ceil(spec.ffn_block()),
        };
        let arrangement = Arrangement {
            strategy: Strategy::Single,
            stages: vec![StageShares { layers: spec.n_layers, ranks: vec![rank], sums: Sums::default() }],
            head: vec![(device.node, spec.vocab.div_ceil(VOCAB_TILE))],
            chunk_tokens: CHUNK,
            wire: Wire::default(),
            kv,
            epoch: Epoch::default(),
        };
        let plan = plan_from_shares(spec, &arrangement).ok()?;
        let fits = shard::footprint(&plan, spec, device.node).total() <= device.usable;
        let predicted = predicted(&plan, spec, cluster, work, &work.streams);
        Some(Self { node: device.node, name: device.name.clone(), fits, plan, trial: None, predicted })
    }
}

/// What this plan is predicted to give in this work, at these numbers of streams.
pub(super) fn predicted(
    plan: &Plan,
    spec: &ModelSpec,
    cluster: &Cluster,
    work: &Work,
    streams: &[u32],
) -> Figures {
    use super::figures::{AggregateFigure, Percentiles, PrefillFigure, TrafficFigure};
    let at = |streams: u32| predict(plan, spec, cluster, &work.decoding(streams)).ok();
    let Some(one) = at(1) else { return Figures::default() };
    let prefill = work.prefill.iter().map(|&tokens| {
        let prompt = shoal_cluster::cost::prefill(plan, spec, cluster, tokens).ok();
        PrefillFigure { tokens, tps: prompt.map(|p| p.tps), ttft_ms: prompt.map(|p| p.ttft_ms) }
    });
    let aggregate = streams.iter().map(|&streams| {
        let tps = if streams == 1 { Some(one.decode_tps) } else { at(streams).map(|p| p.throughput()) };
        AggregateFigure { streams, tps, efficiency: None }
    });
    let traffic = one.bytes_per_token;
    Figures {
        decode_tps: Some(one.decode_tps),
        decode_ms: Percentiles { p50: Some(one.decode_ms), p95: None },
        prefill: prefill.collect(),
        aggregate: aggregate.collect(),
        efficiency: None,
        bytes_per_token: TrafficFigure {
            hops: Some(traffic.hops),
            all_reduce: Some(traffic.all_reduce),
            head: Some(traffic.head),
            control: Some(traffic.control),
        },
    }
}
