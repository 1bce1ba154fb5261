//! The choice between strategies.

use std::collections::BTreeSet;

use shoal_core::model::ModelSpec;
use shoal_core::plan::Strategy;
use shoal_core::{Bytes, NodeId};

use super::search::Search;
use super::{Choice, LeftOut, Limit, LimitKind, NoPlan, Options, Outcome, Priced};
use crate::cost::{Cluster, Device, Objective, Workload, lower_bound_ms};

/// What this planner does not look at.
const LIMITS: &str = "shares follow measured speed and memory; all groupings are tried for up to 5 devices, \
                      neighbours in speed beyond; processor time per message and energy are not priced";

/// Plans by all five strategies, and the one to take: the one asked for, or the best by the workload's
/// objective. `spec` must have passed [`ModelSpec::check`].
///
/// # Errors
/// No plan fits, with what is missing where.
pub fn choose(
    spec: &ModelSpec,
    cluster: &Cluster,
    workload: &Workload,
    options: &Options,
) -> Result<Choice, Box<NoPlan>> {
    let (devices, mut left_out) = sift(cluster, options);
    let count = devices.len();
    let used = Cluster { devices, links: cluster.links.clone() };
    let search = Search::new(spec, &used, workload, options.wire, options.epoch);
    let outcomes: Vec<Outcome> = Strategy::ALL
        .into_iter()
        .map(|strategy| search.outcome(strategy, options.strategy == Some(strategy)))
        .collect();
    let Some(chosen) = best(&outcomes, options.strategy, workload) else {
        let tried = outcomes.into_iter().filter(|o| options.strategy.is_none_or(|asked| asked == o.strategy));
        let why = tried.filter_map(|outcome| Some((outcome.strategy, outcome.result.err()?)));
        return Err(Box::new(NoPlan {
            devices: count,
            refused: None,
            strategies: why.collect(),
            left_out,
            missing: Bytes(0),
            boards: Vec::new(),
            addition: None,
        }));
    };
    let chosen = chosen.clone();
    let reason = reason(&chosen, &outcomes, options.strategy, workload);
    left_out.extend(idle(&search, &chosen, options.strategy.is_some()));
    left_out.sort_by_key(|left| left.node);
    let scope = Limit { kind: LimitKind::Scope, node: None, to: None, share: 0.0, text: LIMITS.to_owned() };
    let lower_bound_ms = lower_bound_ms(spec, &used, workload);
    let objective = workload.objective();
    let figure = chosen.prediction.decode_ms;
    Ok(Choice {
        objective,
        outcomes,
        chosen,
        reason,
        left_out,
        limits: vec![scope],
        lower_bound_ms,
        figure,
        bound: lower_bound_ms,
        optimal: false,
        gap: 1.0 - lower_bound_ms / figure,
        expansions: 0,
    })
}

/// Devices that may be used, by node id, each once, and the others with the reason.
fn sift(cluster: &Cluster, options: &Options) -> (Vec<Device>, Vec<LeftOut>) {
    let mut devices: Vec<Device> = Vec::new();
    let mut left_out = Vec::new();
    let mut seen: BTreeSet<NodeId> = BTreeSet::new();
    for device in &cluster.devices {
        let reason = if !seen.insert(device.node) {
            continue;
        } else if options.exclude.contains(&device.node) {
            "excluded".to_owned()
        } else if let Err(error) = device.profile.check() {
            error.to_string()
        } else if device.profile.rates.is_empty() {
            "its profile has no rates".to_owned()
        } else {
            devices.push(device.clone());
            continue;
        };
        left_out.push(LeftOut { node: device.node, name: device.name.clone(), reason, cost: None });
    }
    devices.sort_by_key(|device| device.node);
    (devices, left_out)
}

/// Less is better.
fn figure(priced: &Priced, workload: &Workload) -> f64 {
    match workload.objective() {
        Objective::Latency => priced.prediction.decode_ms,
        Objective::Throughput | Objective::Energy => -priced.prediction.throughput(),
    }
}

fn best<'a>(outcomes: &'a [Outcome], asked: Option<Strategy>, workload: &Workload) -> Option<&'a Priced> {
    let mut best: Option<&Priced> = None;
    for outcome in outcomes.iter().filter(|o| asked.is_none_or(|asked| asked == o.strategy)) {
        let Ok(priced) = &outcome.result else { continue };
        // Of equals the earlier, simpler strategy.
        if best.is_none_or(|best| figure(priced, workload) < figure(best, workload)) {
            best = Some(priced);
        }
    }
    best
}

fn reason(chosen: &Priced, outcomes: &[Outcome], asked: Option<Strategy>, workload: &Workload) -> String {
    let strategy = chosen.plan.strategy;
    let say = |priced: &Priced| match workload.objective() {
        Objective::Latency => format!("{:.2} ms per token", priced.prediction.decode_ms),
        Objective::Throughput | Objective::Energy => {
            format!("{:.1} tokens/s over {} streams", priced.prediction.throughput(), workload.streams)
        }
    };
    if asked.is_some() {
        return format!("{} was asked for; predicted {}", strategy.name(), say(chosen));
    }
    let others: Vec<Outcome> = outcomes.iter().filter(|o| o.strategy != strategy).cloned().collect();
    let next = best(&others, None, workload);
    let alone = if strategy == Strategy::Single { "one device alone is fastest: " } else { "" };
    match next {
        Some(next) => format!(
            "{alone}{} is predicted to give {}, the next best, {}, {}",
            strategy.name(),
            say(chosen),
            next.plan.strategy.name(),
            say(next)
        ),
        None => format!("{alone}{} is the only one that fits; predicted {}", strategy.name(), say(chosen)),
    }
}

/// Usable devices without work in the chosen plan.
fn idle(search: &Search<'_>, chosen: &Priced, asked: bool) -> Vec<LeftOut> {
    let strategy = chosen.plan.strategy;
    let why = match strategy {
        Strategy::Single => "one device alone does it",
        Strategy::StaticLayer | Strategy::AdaptiveLayer
            if search.devices.len() > search.spec.n_layers as usize =>
        {
            "there are more devices than layers"
        }
        _ if asked => "no plan with it fits",
        _ => "the plan is better without it",
    };
    let nodes = chosen.plan.nodes();
    let unused = search.devices.iter().filter(|device| !nodes.contains(&device.node));
    unused
        .map(|device| LeftOut {
            node: device.node,
            name: device.name.clone(),
            reason: why.to_owned(),
            cost: None,
        })
        .collect()
}
