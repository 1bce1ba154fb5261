//! The prediction of a whole plan.

use std::collections::BTreeMap;

use shoal_core::model::ModelSpec;
use shoal_core::plan::{AllReduce, Stage};
use shoal_core::{NodeId, Plan, shard};

use super::link::all_reduce;
use super::model::{Model, wire_row};
use super::rates::Rates;
use super::{Aggregate, Cluster, Device, Links, NodePrediction, Objective, Prediction, Traffic, Workload};

/// A plan that cannot be priced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CostError {
    #[error("failed to price the plan: node {0} is not in the cluster")]
    Unknown(NodeId),
    #[error("failed to price the plan: the profile of node {0} has no rates")]
    NoRates(NodeId),
}

/// Bytes of a candidate or a tile's sum in an answer of the head, and of a step order without rows.
const CANDIDATE_BYTES: f64 = 8.0;
const ORDER_BYTES: f64 = 64.0;
/// Candidates of the default sampling parameters.
const CANDIDATES: f64 = 40.0;

/// What this plan is predicted to do.
///
/// # Errors
/// A node of the plan that the cluster does not have, or has no rates of.
pub fn predict(
    plan: &Plan,
    spec: &ModelSpec,
    cluster: &Cluster,
    workload: &Workload,
) -> Result<Prediction, CostError> {
    let model = Model::new(spec);
    let mut rates = BTreeMap::new();
    for &node in plan.nodes() {
        let device = cluster.device(node).ok_or(CostError::Unknown(node))?;
        rates.insert(node, Rates::of(device).ok_or(CostError::NoRates(node))?);
    }
    let pricing = Pricing { model: &model, rates: &rates, links: &cluster.links };
    Ok(pricing.predict(plan, spec, cluster, workload))
}

/// A time no plan on these devices can beat for one token of one stream: all matrices spread over all
/// devices in proportion to what each does best, nothing sent, the least overhead.
pub fn lower_bound_ms(spec: &ModelSpec, cluster: &Cluster, workload: &Workload) -> f64 {
    let model = Model::new(spec);
    // Sums are taken in the order of ids, whatever the order given.
    let mut devices: Vec<&Device> = cluster.devices.iter().collect();
    devices.sort_by_key(|device| device.node);
    let rates: Vec<Rates> = devices.into_iter().filter_map(Rates::of).collect();
    let Some(reference) = rates.first() else { return 0.0 };
    let phases = 2.0 * f64::from(spec.n_layers) + 1.0;
    let whole = Model::whole_share(spec, NodeId::default());
    let alone = model.alone(reference, &whole, spec.vocab, 1.0, mean_context(spec, workload));
    let context = mean_context(spec, workload);
    let ratios: f64 = rates.iter().map(|rates| best_ratio(&model, rates, reference, context)).sum();
    let least_overhead = rates.iter().map(|rates| rates.overhead).fold(f64::INFINITY, f64::min);
    1e3 * ((alone - phases * reference.overhead) / ratios + phases * least_overhead)
}

/// How much faster than `other` this device is at what it does best of this model, for one row.
fn best_ratio(model: &Model, rates: &Rates, other: &Rates, context: f64) -> f64 {
    let products = model.kinds().map(|kind| other.least(kind) / rates.least(kind));
    products.fold(rates.attention(context) / other.attention(context), f64::max)
}

/// The context at which a decoded token is priced: half of what a sequence may reach.
pub(crate) fn mean_context(spec: &ModelSpec, workload: &Workload) -> f64 {
    f64::from(workload.context.min(spec.context)) / 2.0
}

/// What prices are made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pricing<'a> {
    pub(crate) model: &'a Model,
    /// Of every node that may be priced.
    pub(crate) rates: &'a BTreeMap<NodeId, Rates>,
    pub(crate) links: &'a Links,
}

/// The node a group's hops are priced by: that with the lowest id.
pub(crate) fn leader(stage: &Stage) -> NodeId {
    stage.ranks.iter().map(|share| share.node).min().unwrap_or_default()
}

/// One step through a plan.
#[derive(Debug, Clone)]
struct StepTimes {
    /// From order to answer, seconds.
    latency: f64,
    /// Each stage with the hop into it.
    stages: Vec<f64>,
    /// The longest that any node is busy with the step: what bounds the rate of steps.
    bottleneck: f64,
}

impl Pricing<'_> {
    fn predict(&self, plan: &Plan, spec: &ModelSpec, cluster: &Cluster, workload: &Workload) -> Prediction {
        let context = mean_context(spec, workload);
        let one = self.step(plan, 1.0, context);
        let streams = workload.streams.max(1);
        let mut counts: Vec<u32> = (0..32).map(|shift| 1 << shift).take_while(|&n| n < streams).collect();
        counts.push(streams);
        let rate = |n: u32| Aggregate { streams: n, tps: self.throughput(plan, n, context) };
        let aggregate: Vec<Aggregate> = counts.into_iter().map(rate).collect();
        let throughput = aggregate.last().map_or(0.0, |last| last.tps);

        let prompt = f64::from(workload.prompt_len.max(1));
        let chunk = f64::from(plan.chunk_tokens).min(prompt);
        let chunk_step = self.step(plan, chunk, prompt / 2.0);
        let ttft = chunk_step.latency + (prompt / chunk - 1.0) * chunk_step.bottleneck;

        let (alone, assumes_memory) = self.alone(plan, spec, cluster, streams, context);
        Prediction {
            decode_ms: one.latency * 1e3,
            decode_tps: 1.0 / one.latency,
            aggregate,
            prefill_tps: prompt / ttft,
            ttft_ms: ttft * 1e3,
            bytes_per_token: self.traffic(plan),
            efficiency: throughput / alone,
            efficiency_assumes_memory: assumes_memory,
            lower_bound_ms: lower_bound_ms(spec, cluster, workload),
            stage_ms: one.stages.iter().map(|seconds| seconds * 1e3).collect(),
            chunk_ms: chunk_step.latency * 1e3,
            nodes: self.nodes(plan, spec, cluster, context),
        }
    }

    /// What plans of one strategy are compared by; less is better. With latency as objective, `balance` ×
    /// the slowest stage's time counts as well.
    pub(crate) fn score(&self, plan: &Plan, workload: &Workload, context: f64, balance: f64) -> f64 {
        match workload.objective() {
            Objective::Latency => {
                let step = self.step(plan, 1.0, context);
                step.latency + balance * step.bottleneck
            }
            Objective::Throughput | Objective::Energy => {
                1.0 / self.throughput(plan, workload.streams.max(1), context)
            }
        }
    }

    /// One layer of a stage: slowest attention, all-reduce, slowest feed-forward network, all-reduce.
    pub(crate) fn layer(
        &self,
        class: usize,
        stage: &Stage,
        how: AllReduce,
        sum_bytes: f64,
        b: f64,
        s: f64,
    ) -> f64 {
        let class = &self.model.classes[class];
        let slowest = |of: &dyn Fn(&shoal_core::plan::Share, &Rates) -> f64| {
            stage.ranks.iter().map(|share| of(share, &self.rates[&share.node])).fold(0.0, f64::max)
        };
        let attention = slowest(&|share, rates| self.model.attention(class, rates, share, b, s));
        let feed_forward = slowest(&|share, rates| self.model.feed_forward(class, rates, share, b));
        let nodes: Vec<NodeId> = stage.ranks.iter().map(|share| share.node).collect();
        attention + feed_forward + 2.0 * all_reduce(how, &nodes, self.links, sum_bytes).0
    }

    fn step(&self, plan: &Plan, b: f64, s: f64) -> StepTimes {
        let sum_bytes = b * wire_row(plan.wire.sum, self.model.d_model);
        let hop_bytes = b * wire_row(plan.wire.hop, self.model.d_model);
        let mut busy: BTreeMap<NodeId, f64> = BTreeMap::new();
        let mut stages = Vec::with_capacity(plan.stages.len());
        for (index, stage) in plan.stages.iter().enumerate() {
            let by_class: Vec<f64> = (0..self.model.classes.len())
                .map(|class| {
                    self.layer(class, stage, stage.sums.of(b as usize, plan.kv.sequences), sum_bytes, b, s)
                })
                .collect();
            let layers = stage.layers.iter();
            let compute: f64 = layers.map(|layer| by_class[self.model.class_of[layer as usize]]).sum();
            for share in &stage.ranks {
                busy.insert(share.node, compute);
            }
            stages.push(compute + self.hop_into(plan, index, hop_bytes));
        }
        // A prefill chunk wants logits of its last row at most; decode rows all do.
        let rows = b.min(f64::from(plan.kv.sequences));
        let mut head = 0.0_f64;
        let last = &plan.stages[plan.stages.len() - 1];
        for share in &plan.head {
            let moved = if last.ranks.iter().any(|rank| rank.node == share.node) {
                0.0
            } else {
                self.links.get(leader(last), share.node).time(rows * hop_bytes / b)
            };
            let compute = self.model.head(&self.rates[&share.node], share.rows, rows);
            *busy.entry(share.node).or_default() += compute;
            head = head.max(moved + compute);
        }
        // The order comes from the coordinator and the answer goes there.
        let control = 2.0 * self.links.default.latency();
        let latency = stages.iter().sum::<f64>() + head + control;
        StepTimes { latency, stages, bottleneck: busy.values().copied().fold(0.0, f64::max) }
    }

    /// Time until a stage has the hidden state of the stage before: priced from leader to leader, since
    /// ranks receive from ranks side by side ([`Plan::hop_source`]).
    fn hop_into(&self, plan: &Plan, stage: usize, bytes: f64) -> f64 {
        let Some(before) = stage.checked_sub(1) else { return 0.0 };
        self.links.get(leader(&plan.stages[before]), leader(&plan.stages[stage])).time(bytes)
    }

    /// Tokens per second over `n` streams: their rows are spread over as many steps as there are stages.
    fn throughput(&self, plan: &Plan, n: u32, context: f64) -> f64 {
        let rows = n.div_ceil(plan.stages.len() as u32);
        let steps = f64::from(n.div_ceil(rows));
        let step = self.step(plan, f64::from(rows), context);
        f64::from(n) / step.latency.max(steps * step.bottleneck)
    }

    /// Sum of the rates of the plan's devices each alone, and whether one of them lacks the memory.
    fn alone(
        &self,
        plan: &Plan,
        spec: &ModelSpec,
        cluster: &Cluster,
        streams: u32,
        context: f64,
    ) -> (f64, bool) {
        let whole = Model::whole_share(spec, NodeId::default());
        let control = 2.0 * self.links.default.latency();
        let mut assumes_memory = false;
        let mut sum = 0.0;
        for &node in plan.nodes() {
            let rows = f64::from(streams);
            let time = self.model.alone(&self.rates[&node], &whole, spec.vocab, rows, context);
            sum += rows / (time + control);
            let usable = cluster.device(node).map_or(0, |device| device.usable.0);
            assumes_memory |= usable < spec.total_bytes().0;
        }
        (sum, assumes_memory)
    }

    fn traffic(&self, plan: &Plan) -> Traffic {
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
        let answers = plan.head.len() as f64 * (CANDIDATES * CANDIDATE_BYTES + ORDER_BYTES);
        Traffic {
            hops: hops as f64 * hop,
            all_reduce: plan.stages.iter().map(stage_sums).sum(),
            head: moved as f64 * hop + answers,
            control: plan.nodes().len() as f64 * 2.0 * ORDER_BYTES,
        }
    }

    fn nodes(&self, plan: &Plan, spec: &ModelSpec, cluster: &Cluster, context: f64) -> Vec<NodePrediction> {
        let one = |&node: &NodeId| {
            let rates = &self.rates[&node];
            let mut compute =
                plan.head_share(node).map_or(0.0, |(_, rows)| self.model.head(rates, rows, 1.0));
            if let (Some(place), Some(share)) = (plan.place(node), plan.share(node)) {
                for layer in plan.stages[place.stage].layers.iter() {
                    let class = &self.model.classes[self.model.class_of[layer as usize]];
                    compute += self.model.attention(class, rates, share, 1.0, context)
                        + self.model.feed_forward(class, rates, share, 1.0);
                }
            }
            NodePrediction {
                node,
                memory: shard::footprint(plan, spec, node),
                usable: cluster.device(node).map_or_else(Default::default, |device| device.usable),
                compute_ms: compute * 1e3,
            }
        };
        plan.nodes().iter().map(one).collect()
    }
}
