//! What a prediction says beside times of the whole: traffic, energy, and each node's part.

use shoal_core::model::ModelSpec;
use shoal_core::plan::Stage;
use shoal_core::{NodeId, Plan, shard};

use super::link::all_reduce;
use super::model::wire_row;
use super::predict::{Pricing, head_move, leader};
use super::{Cluster, NodePrediction, Traffic};

/// Bytes of a candidate or a tile's sum in an answer of the head, and of a step order without rows.
const CANDIDATE_BYTES: f64 = 8.0;
pub(crate) const ORDER_BYTES: f64 = 64.0;
/// Candidates of the default sampling parameters.
const CANDIDATES: f64 = 40.0;

/// Bytes of one head rank's answer for one row.
pub(crate) const ANSWER_BYTES: f64 = CANDIDATES * CANDIDATE_BYTES + ORDER_BYTES;

impl Pricing<'_> {
    /// Bytes sent for one decoded token.
    pub(super) fn traffic(&self, plan: &Plan) -> Traffic {
        let d = self.model.d_model;
        let hop = wire_row(plan.wire.hop, d);
        let hops: usize = plan.stages.iter().skip(1).map(|stage| stage.ranks.len()).sum();
        let sum = wire_row(plan.wire.sum, d);
        let stage_sums = |stage: &Stage| {
            let nodes: Vec<NodeId> = stage.ranks.iter().map(|share| share.node).collect();
            2.0 * f64::from(stage.layers.len()) * all_reduce(stage.sums.decode, &nodes, self.links, sum).1
        };
        let moved =
            plan.head.iter().enumerate().filter(|(at, head)| plan.head_source(*at) != head.node).count();
        Traffic {
            hops: hops as f64 * hop,
            all_reduce: plan.stages.iter().map(stage_sums).sum(),
            head: moved as f64 * hop + plan.head.len() as f64 * ANSWER_BYTES,
            control: plan.nodes().len() as f64 * 2.0 * ORDER_BYTES,
        }
    }

    /// Joules per token at `n` streams: what each used device draws idle for as long as a token takes, and
    /// beyond that what it draws at work for as long as its kernels run. `None` where one of them has no
    /// power figures.
    pub(crate) fn joules(&self, plan: &Plan, n: u32, context: f64) -> Option<f64> {
        let rows = f64::from(n.max(1).div_ceil(plan.stages.len() as u32));
        let token = 1.0 / self.throughput(plan, n.max(1), context);
        plan.nodes().iter().try_fold(0.0, |sum, &node| {
            let power = self.rates[&node].power?;
            let compute = self.compute(plan, node, rows, context) / rows;
            Some(sum + power.idle.0 * token + (power.busy.0 - power.idle.0) * compute)
        })
    }

    /// Seconds this node's kernels run in a step of `b` rows at context `s`, all of which want logits.
    fn compute(&self, plan: &Plan, node: NodeId, b: f64, s: f64) -> f64 {
        let rates = &self.rates[&node];
        let mut sum = plan.head_share(node).map_or(0.0, |(_, rows)| self.model.head(rates, rows, b));
        if let (Some(place), Some(share)) = (plan.place(node), plan.share(node)) {
            for layer in plan.stages[place.stage].layers.iter() {
                let class = &self.model.classes[self.model.class_of[layer as usize]];
                sum += self.model.attention(class, rates, share, b, s);
                sum += self.model.feed_forward(class, rates, share, b);
            }
        }
        sum
    }

    /// Each node's part of one token of one stream, which takes `latency` seconds.
    pub(super) fn nodes(
        &self,
        plan: &Plan,
        spec: &ModelSpec,
        cluster: &Cluster,
        context: f64,
        latency: f64,
    ) -> Vec<NodePrediction> {
        let hop_row = wire_row(plan.wire.hop, self.model.d_model);
        let sum_row = wire_row(plan.wire.sum, self.model.d_model);
        let last = &plan.stages[plan.last_stage()];
        let elsewhere = |node| !last.ranks.iter().any(|rank| rank.node == node);
        let remote = plan.head.iter().filter(|share| elsewhere(share.node)).count();
        // Each stage's time without hops and sums: what its slowest ranks compute.
        let stage_compute = |stage: &Stage, sums: f64| {
            let how = stage.sums.decode;
            let layer = |layer: u32| {
                let class = self.model.class_of[layer as usize];
                self.layer(class, stage, how, sum_row, 1.0, context)
            };
            stage.layers.iter().map(layer).sum::<f64>() - sums
        };
        let stages: Vec<(f64, f64)> = plan
            .stages
            .iter()
            .map(|stage| {
                let sums =
                    f64::from(stage.layers.len()) * self.sums_of_layer(stage, stage.sums.decode, sum_row);
                (sums, stage_compute(stage, sums))
            })
            .collect();
        let one = |&node: &NodeId| {
            let compute = self.compute(plan, node, 1.0, context);
            let head =
                plan.head_share(node).map_or(0.0, |(_, rows)| self.model.head(&self.rates[&node], rows, 1.0));
            let (mut all_reduce, mut hop, mut wait) = (0.0, 0.0, 0.0);
            if let Some(place) = plan.place(node) {
                let (sums, slowest) = stages[place.stage];
                all_reduce = sums;
                hop = self.hop_into(plan, place.stage, hop_row);
                wait = (slowest - (compute - head)).max(0.0);
            }
            if plan.head_share(node).is_some() && elsewhere(node) {
                hop += head_move(self.links.get(leader(last), node), remote, last.ranks.len(), hop_row);
            }
            NodePrediction {
                node,
                memory: shard::footprint(plan, spec, node),
                usable: cluster.device(node).map_or_else(Default::default, |device| device.usable),
                compute_ms: compute * 1e3,
                all_reduce_ms: all_reduce * 1e3,
                hop_ms: hop * 1e3,
                wait_ms: wait * 1e3,
                idle_ms: (latency - compute - all_reduce - hop - wait).max(0.0) * 1e3,
            }
        };
        plan.nodes().iter().map(one).collect()
    }
}
