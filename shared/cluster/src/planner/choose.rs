//! The choice between strategies.

use std::collections::BTreeSet;

use shoal_core::model::ModelSpec;
use shoal_core::plan::Strategy;
use shoal_core::{Bytes, NodeId};

use super::pins::Pins;
use super::problem::{Family, Goal};
use super::strategies::Planner;
use super::{Choice, LeftOut, Missing, NoPlan, Options, Outcome, Priced, advice, bound, heuristic, lack};
use crate::cost::{Cluster, Device, Objective, Workload, lower_bound_ms};

/// Devices that are left out for which the best plan with them is priced; beyond, the reason is a general one.
const LEFT_OUT_PRICED: usize = 12;

/// Up to this many devices in all, the same.
const DEVICES_PRICED: usize = 128;

/// Memory of one device beyond which more is of no use to any model, and sums of many stay in range.
const MOST_USABLE: Bytes = Bytes(1 << 50);

/// Plans by all five strategies, and the one to take: the one asked for, or the best by the workload's
/// objective. `spec` must have passed [`ModelSpec::check`].
///
/// # Errors
/// No plan fits, with what is missing where; or what was asked for contradicts itself.
pub fn choose(
    spec: &ModelSpec,
    cluster: &Cluster,
    workload: &Workload,
    options: &Options,
) -> Result<Choice, Box<NoPlan>> {
    let (devices, mut left_out) = sift(cluster, options);
    let used = Cluster { devices, links: cluster.links.clone() };
    let refuse = |refused: String, left_out: &[LeftOut]| {
        Box::new(NoPlan {
            devices: used.devices.len(),
            refused: Some(refused),
            strategies: Vec::new(),
            left_out: left_out.to_vec(),
            missing: Bytes(0),
            boards: Vec::new(),
            addition: None,
        })
    };
    let pins = Pins::of(spec, &used.devices, options).map_err(|refused| refuse(refused, &left_out))?;
    if workload.objective() == Objective::Energy
        && let Some(device) = used.devices.iter().find(|device| device.power.is_none())
    {
        let refused = format!("what {} draws is not known, so energy cannot be planned for", device.name);
        return Err(refuse(refused, &left_out));
    }
    let planner = Planner::new(spec, &used, workload, options, pins);
    let outcomes: Vec<Outcome> = Strategy::ALL
        .into_iter()
        .map(|strategy| planner.outcome(strategy, options.use_all || options.strategy == Some(strategy)))
        .collect();
    let asked = |outcome: &&Outcome| options.strategy.is_none_or(|asked| asked == outcome.strategy);
    let Some(best) = best(&planner, outcomes.iter().filter(asked)) else {
        return Err(Box::new(no_plan(&planner, &outcomes, left_out)));
    };
    let (priced, of) = best;
    let chosen = priced.clone();
    let figure = planner.figure(&chosen);
    // `static-layer` is among the plans of `adaptive-layer`: its own search proves nothing about others.
    let searched = outcomes
        .iter()
        .filter(asked)
        .filter(|o| asked_for(options, o) || o.strategy != Strategy::StaticLayer);
    let goal = match workload.objective() {
        Objective::Latency => Goal::Latency,
        Objective::Throughput | Objective::Energy => Goal::Throughput,
    };
    let lower_bound_ms = lower_bound_ms(spec, &used, workload);
    let optimal = if options.strategy.is_some() { of.optimal } else { searched.clone().all(|o| o.optimal) };
    let bound = if optimal {
        figure
    } else {
        let least = searched.clone().filter(|o| !(o.optimal && o.result.is_err())).map(|o| o.bound);
        let general = match workload.objective() {
            Objective::Energy => 0.0,
            Objective::Latency | Objective::Throughput => 1e3 * bound::seconds(spec, &used, workload, goal),
        };
        least.fold(f64::INFINITY, f64::min).max(general).min(figure)
    };
    let expansions = outcomes.iter().map(|outcome| outcome.expansions).sum();
    let reason = advice::reason(&planner, &chosen, &outcomes);
    left_out.extend(idle(&planner, &chosen, goal));
    left_out.sort_by_key(|left| left.node);
    let limits = advice::limits(&planner, &chosen, optimal);
    Ok(Choice {
        objective: workload.objective(),
        outcomes,
        chosen,
        reason,
        left_out,
        limits,
        lower_bound_ms,
        figure,
        bound,
        optimal,
        gap: if optimal { 0.0 } else { (1.0 - bound / figure).clamp(0.0, 1.0) },
        expansions,
    })
}

fn asked_for(options: &Options, outcome: &Outcome) -> bool {
    options.strategy == Some(outcome.strategy)
}

/// Devices that may be used, by node id, each once and with what it may use beside the reserve, and the others with
/// the reason.
fn sift(cluster: &Cluster, options: &Options) -> (Vec<Device>, Vec<LeftOut>) {
    let mut devices: Vec<Device> = Vec::new();
    let mut left_out = Vec::new();
    let mut seen: BTreeSet<NodeId> = BTreeSet::new();
    for device in &cluster.devices {
        let usable = device.usable.min(MOST_USABLE).saturating_sub(options.reserve);
        let reason = if !seen.insert(device.node) {
            continue;
        } else if options.exclude.contains(&device.node) {
            "excluded".to_owned()
        } else if let Err(error) = device.profile.check() {
            error.to_string()
        } else if device.profile.rates.is_empty() {
            "its profile has no rates".to_owned()
        } else {
            devices.push(Device { usable, ..device.clone() });
            continue;
        };
        left_out.push(LeftOut { node: device.node, name: device.name.clone(), reason, cost: None });
    }
    devices.sort_by_key(|device| device.node);
    (devices, left_out)
}

/// The outcome with the least figure, of equals the earlier, simpler strategy.
fn best<'o>(
    planner: &Planner<'_>,
    outcomes: impl Iterator<Item = &'o Outcome>,
) -> Option<(&'o Priced, &'o Outcome)> {
    let mut best: Option<(&Priced, &Outcome)> = None;
    for outcome in outcomes {
        let Ok(priced) = &outcome.result else { continue };
        // Sums in another order differ in the last bits.
        if best.is_none_or(|best| planner.figure(priced) < planner.figure(best.0) * (1.0 - 1e-9)) {
            best = Some((priced, outcome));
        }
    }
    best
}

fn no_plan(planner: &Planner<'_>, outcomes: &[Outcome], left_out: Vec<LeftOut>) -> NoPlan {
    let asked = planner.options.strategy;
    let tried = outcomes.iter().filter(|o| asked.is_none_or(|asked| asked == o.strategy));
    let why = tried.filter_map(|outcome| Some((outcome.strategy, outcome.result.as_ref().err()?.clone())));
    let strategies: Vec<_> = why.collect();
    let total = |missing: &[Missing]| missing.iter().map(|m| m.bytes.0).fold(0, u64::saturating_add);
    // `single` lists what each board lacks by itself: the least of those is what is missing.
    let of = |(strategy, why): &(Strategy, super::Infeasible)| match strategy {
        Strategy::Single => {
            why.missing.iter().min_by_key(|m| m.bytes).map(|m| vec![m.clone()]).unwrap_or_default()
        }
        _ => why.missing.clone(),
    };
    let nearest = strategies.iter().map(of).filter(|missing| !missing.is_empty());
    let boards = nearest.min_by_key(|missing| total(missing)).unwrap_or_default();
    let missing = Bytes(total(&boards));
    let family = match asked {
        Some(Strategy::Single) => Family::Single,
        Some(Strategy::StaticLayer | Strategy::AdaptiveLayer) => Family::Layers,
        Some(Strategy::Head) => Family::Heads,
        Some(Strategy::Hybrid) | None => Family::Any,
    };
    let addition = lack::addition(planner, family, missing);
    let devices = planner.cluster.devices.len();
    NoPlan { devices, refused: None, strategies, left_out, missing, boards, addition }
}

/// Usable devices without work in the chosen plan, and what using each would cost.
fn idle(planner: &Planner<'_>, chosen: &Priced, goal: Goal) -> Vec<LeftOut> {
    let nodes = chosen.plan.nodes();
    let unused: Vec<&Device> =
        planner.cluster.devices.iter().filter(|device| !nodes.contains(&device.node)).collect();
    let price = unused.len() <= LEFT_OUT_PRICED && planner.cluster.devices.len() <= DEVICES_PRICED;
    let out = unused.into_iter().map(|device| {
        let with = if price { with(planner, chosen, device.node, goal) } else { None };
        let cost = with.as_ref().map(|with| planner.figure(with) - planner.figure(chosen));
        let reason = advice::left_out(planner, chosen, device, with.as_ref());
        LeftOut { node: device.node, name: device.name.clone(), reason, cost }
    });
    out.collect()
}

/// The best plan found that uses the node: of the strategy asked for, or of any.
fn with(planner: &Planner<'_>, chosen: &Priced, node: NodeId, goal: Goal) -> Option<Priced> {
    let family = match planner.options.strategy {
        Some(Strategy::Single) => Family::Single,
        Some(Strategy::StaticLayer | Strategy::AdaptiveLayer) => Family::Layers,
        Some(Strategy::Head) => Family::Heads,
        Some(Strategy::Hybrid) => Family::Mixed,
        None => Family::Any,
    };
    let ask = planner.ask(family, chosen.plan.strategy, false, goal, &[]);
    let found = heuristic::near(&ask, &chosen.plan, Some(node))?;
    planner.priced(found.plan).ok()
}
