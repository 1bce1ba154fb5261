//! `shoal plan`: the five strategies priced side by side.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;
use shoal_cluster::cost::{Aggregate, Objective, Traffic};
use shoal_cluster::planner::{Choice, LeftOut, Limit, NoPlan, Outcome as Priced};
use shoal_core::NodeId;
use shoal_core::plan::{PlanView, Strategy};

use super::attach::{Attached, attach, job, keep_profiles, open};
use super::options::{ClusterArgs, ModelArg, PlanOptions};
use crate::cli::HomeArgs;
use crate::config::Config;
use crate::driver::{Driver, Planned, plan};
use crate::exit::{Failure, Outcome};
use crate::show::{Show, choice_tables};
use crate::{out, runtime};

const EXAMPLES: &str = "\
Examples:
  shoal plan model.gguf
  shoal plan model.gguf --local-workers 3 --json
  shoal plan model.gguf --context 8192 --exclude kitchen-pi";

/// Price the five strategies for a model, and say which one is chosen and why.
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{}", crate::exit::HELP))]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) model: ModelArg,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) plan: PlanOptions,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[command(flatten)]
    pub(crate) home: HomeArgs,
}

/// Tokens of a prompt when none is at hand: what TTFT is predicted for.
const TYPICAL_PROMPT: usize = 128;

/// What `--json` prints (design 17).
#[derive(Debug, Serialize)]
struct PlanReport<'a> {
    model: &'a str,
    cluster: Vec<ClusterNode>,
    objective: Objective,
    strategies: Vec<StrategyView<'a>>,
    chosen: Option<Strategy>,
    reason: String,
    left_out: &'a [LeftOut],
    lower_bound_ms: Option<f64>,
    limits: &'a [Limit],
}

#[derive(Debug, Serialize)]
struct ClusterNode {
    node: NodeId,
    name: String,
    usable_bytes: u64,
}

/// One strategy. What is not known of one that does not fit is null.
#[derive(Debug, Serialize)]
struct StrategyView<'a> {
    strategy: Strategy,
    feasible: bool,
    reason: Option<String>,
    decode_ms: Option<f64>,
    decode_tps: Option<f64>,
    aggregate: &'a [Aggregate],
    prefill_tps: Option<f64>,
    ttft_ms: Option<f64>,
    bytes_per_token: Option<Traffic>,
    efficiency: Option<f64>,
    nodes: Vec<NodeView>,
    plan: Option<PlanView<'a>>,
}

#[derive(Debug, Serialize)]
struct NodeView {
    node: NodeId,
    memory_bytes: u64,
    usable_bytes: u64,
}

pub(crate) fn run(args: &PlanArgs, config: &Config, verbose: u8) -> Outcome {
    let mut show = Show::new(verbose > 0, !args.json);
    let model = open(&args.model.model, config, &mut show)?;
    runtime::block_on(async {
        let reserve = args.plan.reserve(config);
        let Attached { local, mut driver } =
            attach(&args.cluster, reserve, config, model.folder(), verbose, &show).await?;
        let options = job(&args.plan, config, &model, &driver, local.as_ref(), TYPICAL_PROMPT)?;
        let cluster = cluster(&driver);
        let name = &model.spec.name;
        let result = plan(&mut driver, &model, &options, &show).await?;
        let outcome = match &result {
            Ok(planned @ Planned { choice: Some(choice), names, .. }) => {
                keep_profiles(config, &model, &driver, planned, local.is_some());
                if args.json {
                    out::json(&PlanReport::chosen(name, cluster, choice))
                } else {
                    out::line(&choice_tables(choice, &model.spec, names))
                }
            }
            Ok(Planned { choice: None, .. }) => {
                Err(Failure::Lost("the planner chose without a choice".to_owned()))
            }
            Err(no_plan) => {
                if args.json {
                    out::json(&PlanReport::none(name, cluster, no_plan))?;
                }
                Err(Failure::NoPlan(no_plan.to_string()))
            }
        };
        driver.close().await;
        drop(local);
        outcome
    })
}

fn cluster(driver: &Driver) -> Vec<ClusterNode> {
    let nodes = driver.connected().values().map(|worker| ClusterNode {
        node: worker.info.node,
        name: worker.info.name.clone(),
        usable_bytes: worker.info.usable.0,
    });
    nodes.collect()
}

impl<'a> PlanReport<'a> {
    fn chosen(model: &'a str, cluster: Vec<ClusterNode>, choice: &'a Choice) -> Self {
        Self {
            model,
            cluster,
            objective: Objective::Latency,
            strategies: choice.outcomes.iter().map(StrategyView::new).collect(),
            chosen: Some(choice.strategy()),
            reason: choice.reason.clone(),
            left_out: &choice.left_out,
            lower_bound_ms: Some(choice.lower_bound_ms),
            limits: &choice.limits,
        }
    }

    fn none(model: &'a str, cluster: Vec<ClusterNode>, no_plan: &'a NoPlan) -> Self {
        let reasons: BTreeMap<&str, String> =
            no_plan.strategies.iter().map(|(strategy, why)| (strategy.name(), why.to_string())).collect();
        let view =
            |strategy: Strategy| StrategyView::infeasible(strategy, reasons.get(strategy.name()).cloned());
        Self {
            model,
            cluster,
            objective: Objective::Latency,
            strategies: Strategy::ALL.into_iter().map(view).collect(),
            chosen: None,
            reason: no_plan.to_string(),
            left_out: &no_plan.left_out,
            lower_bound_ms: None,
            limits: &[],
        }
    }
}

impl<'a> StrategyView<'a> {
    fn new(outcome: &'a Priced) -> Self {
        let priced = match &outcome.result {
            Ok(priced) => priced,
            Err(why) => return Self::infeasible(outcome.strategy, Some(why.to_string())),
        };
        let prediction = &priced.prediction;
        let node = |node: &shoal_cluster::cost::NodePrediction| NodeView {
            node: node.node,
            memory_bytes: node.memory.total().0,
            usable_bytes: node.usable.0,
        };
        Self {
            strategy: outcome.strategy,
            feasible: true,
            reason: None,
            decode_ms: Some(prediction.decode_ms),
            decode_tps: Some(prediction.decode_tps),
            aggregate: &prediction.aggregate,
            prefill_tps: Some(prediction.prefill_tps),
            ttft_ms: Some(prediction.ttft_ms),
            bytes_per_token: Some(prediction.bytes_per_token),
            efficiency: Some(prediction.efficiency),
            nodes: prediction.nodes.iter().map(node).collect(),
            plan: Some(priced.plan.view()),
        }
    }

    fn infeasible(strategy: Strategy, reason: Option<String>) -> Self {
        Self {
            strategy,
            feasible: false,
            reason,
            decode_ms: None,
            decode_tps: None,
            aggregate: &[],
            prefill_tps: None,
            ttft_ms: None,
            bytes_per_token: None,
            efficiency: None,
            nodes: Vec::new(),
            plan: None,
        }
    }
}
