//! What `shoal plan --json` prints (design 17).

use serde::Serialize;
use shoal_cluster::cost::{Aggregate, Breakdown, NodePrediction, Objective, Traffic};
use shoal_cluster::planner::{Infeasible, LeftOut, Limit, Missing, Outcome as Priced};
use shoal_core::plan::{PlanView, Strategy};
use shoal_core::{Bytes, NodeId};

use super::Sheet;
use super::what_if::{Addition, WhatIf};

#[derive(Debug, Serialize)]
pub(super) struct PlanReport<'a> {
    model: &'a str,
    model_bytes: u64,
    cluster_name: &'a str,
    cluster: Vec<ClusterNode<'a>>,
    objective: Objective,
    streams: u32,
    context: u32,
    prompt_len: u32,
    strategies: Vec<StrategyView<'a>>,
    chosen: Option<Strategy>,
    reason: String,
    left_out: &'a [LeftOut],
    lower_bound_ms: Option<f64>,
    /// The chosen plan by the objective (ms per token of one stream, ms per token over all streams, joules per token).
    figure: Option<f64>,
    /// No plan has a lower figure.
    bound: Option<f64>,
    optimal: Option<bool>,
    gap: Option<f64>,
    limits: &'a [Limit],
    what_if: &'a [WhatIf],
    /// What is missing where no plan fits.
    missing_bytes: Option<u64>,
    missing: &'a [Missing],
    /// Usable memory of one more board with which there is a plan.
    addition_bytes: Option<Bytes>,
    /// Boards with which there is a plan.
    additions: &'a [Addition],
    notes: &'a [String],
}

#[derive(Debug, Serialize)]
struct ClusterNode<'a> {
    node: NodeId,
    name: &'a str,
    profile: Option<&'a str>,
    title: Option<&'a str>,
    /// As a part of the profile's.
    speed: Option<f64>,
    memory_bytes: Option<u64>,
    usable_bytes: u64,
}

/// One strategy. What is not known of one that does not fit is null.
#[derive(Debug, Serialize)]
struct StrategyView<'a> {
    strategy: Strategy,
    feasible: bool,
    reason: Option<String>,
    missing: &'a [Missing],
    decode_ms: Option<f64>,
    decode_tps: Option<f64>,
    aggregate: &'a [Aggregate],
    prefill_tps: Option<f64>,
    ttft_ms: Option<f64>,
    bytes_per_token: Option<Traffic>,
    efficiency: Option<f64>,
    efficiency_assumes_memory: Option<bool>,
    joules_per_token: Option<f64>,
    breakdown: Option<Breakdown>,
    stage_ms: &'a [f64],
    optimal: Option<bool>,
    gap: Option<f64>,
    nodes: Vec<NodeView<'a>>,
    plan: Option<PlanView<'a>>,
}

#[derive(Debug, Serialize)]
struct NodeView<'a> {
    node: NodeId,
    name: Option<&'a str>,
    memory_bytes: u64,
    usable_bytes: u64,
    weights_bytes: u64,
    kv_bytes: u64,
    buffer_bytes: u64,
    compute_ms: f64,
    all_reduce_ms: f64,
    hop_ms: f64,
    wait_ms: f64,
    idle_ms: f64,
}

impl<'a> PlanReport<'a> {
    pub(super) fn new(sheet: &'a Sheet<'a>) -> Self {
        let node = |device: &'a shoal_cluster::cost::Device| {
            let kind = sheet.ground.kinds.get(&device.node);
            ClusterNode {
                node: device.node,
                name: &device.name,
                profile: kind.and_then(|kind| kind.profile.as_deref()),
                title: kind.map(|kind| kind.title.as_str()),
                speed: kind.map(|kind| kind.speed),
                memory_bytes: kind.map(|kind| kind.memory.0),
                usable_bytes: device.usable.0,
            }
        };
        let choice = sheet.result.as_ref().ok();
        let no_plan = sheet.result.as_ref().err();
        let strategies = match &sheet.result {
            Ok(choice) => choice.outcomes.iter().map(|outcome| StrategyView::new(outcome, sheet)).collect(),
            Err(no_plan) => {
                let why = |strategy| no_plan.strategies.iter().find(|(known, _)| *known == strategy);
                let view = |strategy| StrategyView::infeasible(strategy, why(strategy).map(|(_, why)| why));
                Strategy::ALL.into_iter().map(view).collect()
            }
        };
        Self {
            model: &sheet.spec.name,
            model_bytes: sheet.spec.total_bytes().0,
            cluster_name: &sheet.ground.title,
            cluster: sheet.ground.cluster.devices.iter().map(node).collect(),
            objective: sheet.workload.objective(),
            streams: sheet.workload.streams,
            context: sheet.workload.context,
            prompt_len: sheet.workload.prompt_len,
            strategies,
            chosen: choice.map(|choice| choice.strategy()),
            reason: match &sheet.result {
                Ok(choice) => choice.reason.clone(),
                Err(no_plan) => no_plan.to_string(),
            },
            left_out: choice
                .map_or_else(|| no_plan.map_or(&[][..], |no| &no.left_out), |choice| &choice.left_out),
            lower_bound_ms: choice.map(|choice| choice.lower_bound_ms),
            figure: choice.map(|choice| choice.figure),
            bound: choice.map(|choice| choice.bound),
            optimal: choice.map(|choice| choice.optimal),
            gap: choice.map(|choice| choice.gap),
            limits: choice.map_or(&[][..], |choice| &choice.limits),
            what_if: &sheet.what_if,
            missing_bytes: no_plan.map(|no_plan| no_plan.missing.0),
            missing: no_plan.map_or(&[][..], |no_plan| &no_plan.boards),
            addition_bytes: no_plan.and_then(|no_plan| no_plan.addition),
            additions: &sheet.additions,
            notes: &sheet.ground.notes,
        }
    }
}

impl<'a> StrategyView<'a> {
    fn new(outcome: &'a Priced, sheet: &'a Sheet<'a>) -> Self {
        let priced = match &outcome.result {
            Ok(priced) => priced,
            Err(why) => return Self::infeasible(outcome.strategy, Some(why)),
        };
        let prediction = &priced.prediction;
        let node = |node: &NodePrediction| NodeView {
            node: node.node,
            name: sheet.ground.cluster.device(node.node).map(|device| device.name.as_str()),
            memory_bytes: node.memory.total().0,
            usable_bytes: node.usable.0,
            weights_bytes: (node.memory.weights + node.memory.mapped).0,
            kv_bytes: node.memory.kv.0,
            buffer_bytes: node.memory.buffers.0,
            compute_ms: node.compute_ms,
            all_reduce_ms: node.all_reduce_ms,
            hop_ms: node.hop_ms,
            wait_ms: node.wait_ms,
            idle_ms: node.idle_ms,
        };
        Self {
            strategy: outcome.strategy,
            feasible: true,
            reason: None,
            missing: &[],
            decode_ms: Some(prediction.decode_ms),
            decode_tps: Some(prediction.decode_tps),
            aggregate: &prediction.aggregate,
            prefill_tps: Some(prediction.prefill_tps),
            ttft_ms: Some(prediction.ttft_ms),
            bytes_per_token: Some(prediction.bytes_per_token),
            efficiency: Some(prediction.efficiency),
            efficiency_assumes_memory: Some(prediction.efficiency_assumes_memory),
            joules_per_token: prediction.joules_per_token,
            breakdown: Some(prediction.breakdown),
            stage_ms: &prediction.stage_ms,
            optimal: Some(outcome.optimal),
            gap: Some(outcome.gap),
            nodes: prediction.nodes.iter().map(node).collect(),
            plan: Some(priced.plan.view()),
        }
    }

    fn infeasible(strategy: Strategy, why: Option<&'a Infeasible>) -> Self {
        Self {
            strategy,
            feasible: false,
            reason: why.map(ToString::to_string),
            missing: why.map_or(&[][..], |why| &why.missing),
            decode_ms: None,
            decode_tps: None,
            aggregate: &[],
            prefill_tps: None,
            ttft_ms: None,
            bytes_per_token: None,
            efficiency: None,
            efficiency_assumes_memory: None,
            joules_per_token: None,
            breakdown: None,
            stage_ms: &[],
            optimal: None,
            gap: None,
            nodes: Vec::new(),
            plan: None,
        }
    }
}
