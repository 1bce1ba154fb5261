//! The prediction of a whole plan.

use std::collections::BTreeMap;

use shoal_core::model::ModelSpec;
use shoal_core::plan::{AllReduce, Stage};
use shoal_core::{NodeId, Plan};

use super::bound::lower_bound_ms;
use super::link::all_reduce;
use super::model::{Model, wire_row};
use super::parts::{ANSWER_BYTES, ORDER_BYTES};
use super::rates::Rates;
use super::{Aggregate, Breakdown, Cluster, Link, Links, Objective, Prediction, Prefill, Workload};

/// A plan that cannot be priced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CostError {
    #[error("failed to price the plan: node {0} is not in the cluster")]
    Unknown(NodeId),
    #[error("failed to price the plan: the profile of node {0} has no rates")]
    NoRates(NodeId),
}

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
    let (model, rates) = (Model::new(spec), rates_of(plan, cluster)?);
    let pricing = Pricing { model: &model, rates: &rates, links: &cluster.links };
    Ok(pricing.predict(plan, spec, cluster, workload))
}

/// What a prompt of `tokens` is predicted to take under this plan, by itself.
///
/// # Errors
/// A node of the plan that the cluster does not have, or has no rates of.
pub fn prefill(plan: &Plan, spec: &ModelSpec, cluster: &Cluster, tokens: u32) -> Result<Prefill, CostError> {
    let (model, rates) = (Model::new(spec), rates_of(plan, cluster)?);
    let pricing = Pricing { model: &model, rates: &rates, links: &cluster.links };
    Ok(pricing.prefill(plan, tokens))
}

/// Rates of the plan's nodes.
pub(crate) fn rates_of(plan: &Plan, cluster: &Cluster) -> Result<BTreeMap<NodeId, Rates>, CostError> {
    let mut rates = BTreeMap::new();
    for &node in plan.nodes() {
        let device = cluster.device(node).ok_or(CostError::Unknown(node))?;
        rates.insert(node, Rates::of(device).ok_or(CostError::NoRates(node))?);
    }
    Ok(rates)
}

/// The context at which a decoded token is priced: the prompt and half of what is generated after it.
pub(crate) fn mean_context(spec: &ModelSpec, workload: &Workload) -> f64 {
    let middle = f64::from(workload.prompt_len) + f64::from(workload.decode_len) / 2.0;
    middle.clamp(1.0, f64::from(workload.context.min(spec.context)).max(1.0))
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

/// Time of order and answers of a token, seconds: the first stage's orders leave the coordinator one after
/// another, and so do the answers of the head come in.
pub(crate) fn control(links: &Links, first_ranks: usize, head_ranks: usize) -> f64 {
    let one = |bytes: f64, messages: usize| {
        links.default.time(bytes) + messages.saturating_sub(1) as f64 * links.default.occupied(bytes)
    };
    one(ORDER_BYTES, first_ranks) + one(ANSWER_BYTES, head_ranks)
}

/// Time until a head rank outside the last group has its rows: `remote` such ranks share the group's
/// senders evenly, and each sender's messages leave one after another. Priced from the group's leader.
pub(crate) fn head_move(link: Link, remote: usize, group: usize, bytes: f64) -> f64 {
    link.time(bytes) + remote.div_ceil(group).saturating_sub(1) as f64 * link.occupied(bytes)
}

/// One step through a plan.
#[derive(Debug, Clone)]
pub(super) struct StepTimes {
    /// From order to answer, seconds.
    pub(super) latency: f64,
    /// Each stage with the hop into it.
    pub(super) stages: Vec<f64>,
    /// The longest that any node is busy with the step: what bounds the rate of steps.
    pub(super) bottleneck: f64,
    /// Latency by what it is spent on.
    pub(super) breakdown: Breakdown,
}

impl Pricing<'_> {
    fn predict(&self, plan: &Plan, spec: &ModelSpec, cluster: &Cluster, workload: &Workload) -> Prediction {
        let context = mean_context(spec, workload);
        let one = self.step(plan, 1.0, context, 1.0);
        let streams = workload.streams.max(1);
        let mut counts: Vec<u32> = (0..32).map(|shift| 1 << shift).take_while(|&n| n < streams).collect();
        counts.push(streams);
        let rate = |n: u32| Aggregate { streams: n, tps: self.throughput(plan, n, context) };
        let aggregate: Vec<Aggregate> = counts.into_iter().map(rate).collect();
        let throughput = aggregate.last().map_or(0.0, |last| last.tps);
        let prefill = self.prefill(plan, workload.prompt_len);
        let chunk = self.step(plan, f64::from(plan.chunk_tokens.max(1)), context, 1.0);
        let (alone, assumes_memory) = self.alone(plan, spec, cluster, streams, context);
        Prediction {
            decode_ms: one.latency * 1e3,
            decode_tps: 1.0 / one.latency,
            aggregate,
            prefill_tps: prefill.tps,
            ttft_ms: prefill.ttft_ms,
            bytes_per_token: self.traffic(plan),
            efficiency: throughput / alone,
            efficiency_assumes_memory: assumes_memory,
            joules_per_token: self.joules(plan, streams, context),
            lower_bound_ms: lower_bound_ms(spec, cluster, workload),
            stage_ms: one.stages.iter().map(|seconds| seconds * 1e3).collect(),
            chunk_ms: chunk.latency * 1e3,
            breakdown: one.breakdown,
            nodes: self.nodes(plan, spec, cluster, context, one.latency),
        }
    }

    /// A prompt of `tokens` by itself. As many of its chunks as there are stages are on their way, each as far
    /// behind the other as the slowest node takes; the last row of the last one alone wants logits.
    fn prefill(&self, plan: &Plan, tokens: u32) -> Prefill {
        let prompt = f64::from(tokens.max(1));
        let chunk = f64::from(plan.chunk_tokens).min(prompt);
        let last = self.step(plan, chunk, prompt - chunk / 2.0, 1.0).latency;
        let step = self.step(plan, chunk, (prompt - chunk) / 2.0, 0.0);
        let (before, stages) = (prompt / chunk - 1.0, plan.stages.len() as f64);
        let rounds = (before / stages).floor();
        let ttft = rounds * step.latency.max(stages * step.bottleneck)
            + (before - rounds * stages) * step.bottleneck
            + last;
        Prefill { tokens: tokens.max(1), tps: prompt / ttft, ttft_ms: ttft * 1e3 }
    }

    /// What plans of one strategy are compared by; less is better. With latency as objective, `balance` ×
    /// the slowest stage's time counts as well.
    pub(crate) fn score(&self, plan: &Plan, workload: &Workload, context: f64, balance: f64) -> f64 {
        match workload.objective() {
            Objective::Latency => {
                let step = self.step(plan, 1.0, context, 1.0);
                step.latency + balance * step.bottleneck
            }
            Objective::Throughput => 1.0 / self.throughput(plan, workload.streams.max(1), context),
            // Plans on devices whose power is not known come after all others.
            Objective::Energy => self.joules(plan, workload.streams.max(1), context).unwrap_or(f64::INFINITY),
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
        attention + feed_forward + self.sums_of_layer(stage, how, sum_bytes)
    }

    /// One step of `b` rows at context `s`, of which `head_rows` want logits.
    pub(super) fn step(&self, plan: &Plan, b: f64, s: f64, head_rows: f64) -> StepTimes {
        let sum_bytes = b * wire_row(plan.wire.sum, self.model.d_model);
        let hop_row = wire_row(plan.wire.hop, self.model.d_model);
        let mut busy: BTreeMap<NodeId, f64> = BTreeMap::new();
        let mut stages = Vec::with_capacity(plan.stages.len());
        let (mut all_reduces, mut hops) = (0.0, 0.0);
        for (index, stage) in plan.stages.iter().enumerate() {
            let how = stage.sums.of(b as usize, plan.kv.sequences);
            let by_class: Vec<f64> = (0..self.model.classes.len())
                .map(|class| self.layer(class, stage, how, sum_bytes, b, s))
                .collect();
            let layers = stage.layers.iter();
            let compute: f64 = layers.map(|layer| by_class[self.model.class_of[layer as usize]]).sum();
            for share in &stage.ranks {
                busy.insert(share.node, compute);
            }
            let hop = self.hop_into(plan, index, b * hop_row);
            hops += hop;
            all_reduces += f64::from(stage.layers.len()) * self.sums_of_layer(stage, how, sum_bytes);
            stages.push(compute + hop);
        }
        let mut head = 0.0_f64;
        let last = &plan.stages[plan.last_stage()];
        let elsewhere = |node| !last.ranks.iter().any(|rank| rank.node == node);
        let remote = plan.head.iter().filter(|share| elsewhere(share.node)).count();
        for share in plan.head.iter().filter(|_| head_rows > 0.0) {
            let link = || self.links.get(leader(last), share.node);
            let moved = if elsewhere(share.node) {
                head_move(link(), remote, last.ranks.len(), head_rows * hop_row)
            } else {
                0.0
            };
            let compute = self.model.head(&self.rates[&share.node], share.rows, head_rows);
            *busy.entry(share.node).or_default() += compute;
            head = head.max(moved + compute);
        }
        let control = control(self.links, plan.stages[0].ranks.len(), plan.head.len());
        let in_stages: f64 = stages.iter().sum();
        let breakdown = Breakdown {
            compute_ms: (in_stages - hops - all_reduces) * 1e3,
            all_reduce_ms: all_reduces * 1e3,
            hops_ms: hops * 1e3,
            head_ms: head * 1e3,
            control_ms: control * 1e3,
        };
        let bottleneck = busy.values().copied().fold(0.0, f64::max);
        StepTimes { latency: in_stages + head + control, stages, bottleneck, breakdown }
    }

    /// The two all-reduces of one layer of this stage.
    pub(super) fn sums_of_layer(&self, stage: &Stage, how: AllReduce, sum_bytes: f64) -> f64 {
        let nodes: Vec<NodeId> = stage.ranks.iter().map(|share| share.node).collect();
        2.0 * all_reduce(how, &nodes, self.links, sum_bytes).0
    }

    /// Time until a stage has the hidden state of the stage before: priced from leader to leader, since
    /// ranks receive from ranks side by side ([`Plan::hop_source`]).
    pub(super) fn hop_into(&self, plan: &Plan, stage: usize, bytes: f64) -> f64 {
        let Some(before) = stage.checked_sub(1) else { return 0.0 };
        self.links.get(leader(&plan.stages[before]), leader(&plan.stages[stage])).time(bytes)
    }

    /// Tokens per second over `n` streams: their rows are spread over as many steps as there are stages.
    pub(super) fn throughput(&self, plan: &Plan, n: u32, context: f64) -> f64 {
        let rows = n.div_ceil(plan.stages.len() as u32);
        let steps = f64::from(n.div_ceil(rows));
        let step = self.step(plan, f64::from(rows), context, f64::from(rows));
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
        let control = control(self.links, 1, 1);
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
}
