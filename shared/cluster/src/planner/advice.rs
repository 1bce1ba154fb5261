//! Why a plan was chosen and what limits it, as data and words for people.
//!
//! Called by [`super::choose`] with the chosen plan and its rivals. Every figure comes from a prediction.

use serde::Serialize;
use shoal_core::NodeId;
use shoal_core::plan::Strategy;

use super::strategies::Planner;
use super::{Outcome, Priced};
use crate::cost::model::wire_row;
use crate::cost::predict::leader;
use crate::cost::{Breakdown, Device, Objective};

/// What kind of thing limits a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitKind {
    /// A board's memory is nearly full, so that it cannot take what its speed would allow.
    Memory,
    /// A board's compute: the others wait for it.
    Compute,
    /// The sums of a group.
    AllReduce,
    /// A link between stages.
    Link,
    /// The output head.
    Head,
    /// How far the planner looked.
    Scope,
}

/// One thing that limits the chosen plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Limit {
    pub kind: LimitKind,
    /// The board, or the sending end of the link.
    pub node: Option<NodeId>,
    /// The receiving end of the link.
    pub to: Option<NodeId>,
    /// The part of one stream's token it takes, or of the board's memory that is used; 0 for the planner's own limits.
    pub share: f64,
    /// For a person.
    pub text: String,
}

/// A board whose memory is used to this part is full: less than a layer of most models would still fit.
const FULL: f64 = 0.93;

/// What takes less than this part of a token's time does not limit it.
const NOTABLE: f64 = 0.05;

/// What limits the plan, the heaviest first, then how far the planner looked.
pub(super) fn limits(planner: &Planner<'_>, chosen: &Priced, optimal: bool) -> Vec<Limit> {
    let mut out = Vec::new();
    let name = |node: NodeId| planner.cluster.device(node).map_or_else(|| node.short(), |d| d.name.clone());
    let (plan, prediction) = (&chosen.plan, &chosen.prediction);
    let whole = prediction.decode_ms;
    let part = |ms: f64| ms / whole;
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    for (stage, group) in plan.stages.iter().enumerate() {
        let ranks = group.ranks.iter().filter_map(|s| prediction.nodes.iter().find(|n| n.node == s.node));
        let Some(slowest) =
            ranks.max_by(|a, b| a.compute_ms.total_cmp(&b.compute_ms).then(b.node.cmp(&a.node)))
        else {
            continue;
        };
        let share = part(slowest.compute_ms);
        let text = format!(
            "computing on {} takes {} of a token's time{}",
            name(slowest.node),
            percent(share),
            if plan.stages.len() > 1 { format!(" (stage {stage})") } else { String::new() }
        );
        out.push(Limit { kind: LimitKind::Compute, node: Some(slowest.node), to: None, share, text });
    }
    let sums = part(prediction.breakdown.all_reduce_ms);
    let text = format!("adding up partial sums within groups takes {} of a token's time", percent(sums));
    out.push(Limit { kind: LimitKind::AllReduce, node: None, to: None, share: sums, text });
    let hop = wire_row(plan.wire.hop, planner.spec.d_model.into());
    for pair in plan.stages.windows(2) {
        let (from, to) = (leader(&pair[0]), leader(&pair[1]));
        let share = part(1e3 * planner.cluster.links.get(from, to).time(hop));
        let text = format!(
            "the link from {} to {} takes {} of a token's time",
            name(from),
            name(to),
            percent(share)
        );
        out.push(Limit { kind: LimitKind::Link, node: Some(from), to: Some(to), share, text });
    }
    let share = part(prediction.breakdown.head_ms);
    let text = format!("the output head takes {} of a token's time", percent(share));
    out.push(Limit { kind: LimitKind::Head, node: None, to: None, share, text });
    for node in &prediction.nodes {
        let share = node.memory.total().0 as f64 / (node.usable.0.max(1)) as f64;
        if share >= FULL {
            let (used, usable) = (node.memory.total(), node.usable);
            let text = format!("the memory of {} is full: {used} of {usable}", name(node.node));
            out.push(Limit { kind: LimitKind::Memory, node: Some(node.node), to: None, share, text });
        }
    }
    out.retain(|limit| limit.share >= NOTABLE);
    out.sort_by(|a, b| b.share.total_cmp(&a.share));
    out.extend(scope(planner, optimal));
    out
}

/// How far the planner looked.
fn scope(planner: &Planner<'_>, optimal: bool) -> Vec<Limit> {
    let say = |text: &str| Limit {
        kind: LimitKind::Scope,
        node: None,
        to: None,
        share: 0.0,
        text: text.to_owned(),
    };
    let devices = planner.cluster.devices.len();
    let mut out = Vec::new();
    if planner.workload.objective() == Objective::Energy {
        out.push(say(
            "no search has energy as its own objective: the least energy among plans made for latency and throughput on \
             the thriftiest devices",
        ));
    } else if planner.options.strategy == Some(Strategy::StaticLayer) {
        out.push(say("static-layer is one plan, whatever the devices are: nothing was searched for"));
    } else if optimal {
        let of = planner.options.strategy.map_or_else(String::new, |asked| format!(" of {}", asked.name()));
        out.push(say(&format!(
            "proven the best{of} by these predictions over ordered disjoint groups, contiguous layers, whole heads and \
             blocks, and the output head on the last group or on all devices"
        )));
    } else if planner.exact() {
        out.push(say("the exact search ended at its bound on work: the gap says how much better a plan could be at most"));
    } else {
        out.push(say(&format!(
            "found by a heuristic among plans for {devices} devices: the gap to the lower bound is not all to be had"
        )));
    }
    out
}

/// Why the chosen plan: its figure, and for each other strategy what decides.
pub(super) fn reason(planner: &Planner<'_>, chosen: &Priced, outcomes: &[Outcome]) -> String {
    let strategy = chosen.plan.strategy;
    let say = |priced: &Priced| figure(planner, priced);
    if planner.options.strategy.is_some() {
        return format!("{} was asked for; predicted {}", strategy.name(), say(chosen));
    }
    let alone = match (strategy, planner.workload.objective()) {
        (Strategy::Single, Objective::Energy) => "one device alone needs least: ",
        (Strategy::Single, _) => "one device alone is fastest: ",
        _ => "",
    };
    let fits = outcomes.iter().filter(|o| o.strategy != strategy).filter_map(|o| o.result.as_ref().ok());
    let same =
        |other: &&Priced| other.plan.stages == chosen.plan.stages && other.plan.head == chosen.plan.head;
    let (equal, mut others): (Vec<&Priced>, Vec<&Priced>) = fits.partition(same);
    others.sort_by(|a, b| planner.figure(a).total_cmp(&planner.figure(b)));
    let Some(next) = others.first() else {
        if !equal.is_empty() {
            return format!(
                "{alone}{} is predicted to give {}, and no other strategy has another plan",
                strategy.name(),
                say(chosen)
            );
        }
        return format!("{alone}{} is the only one that fits; predicted {}", strategy.name(), say(chosen));
    };
    let mut out = format!(
        "{alone}{} is predicted to give {}, the next best, {}, {}",
        strategy.name(),
        say(chosen),
        next.plan.strategy.name(),
        say(next)
    );
    let own = &chosen.prediction.breakdown;
    out.push_str(&format!(". One token of one stream: {}", parts(own)));
    for other in others {
        let (name, differs) = (other.plan.strategy.name(), differences(own, &other.prediction.breakdown));
        match differs.is_empty() {
            true => out.push_str(&format!("; {name} takes as long in each part")),
            false => out.push_str(&format!("; {name}: {differs}")),
        }
    }
    out
}

/// The plan by the objective.
fn figure(planner: &Planner<'_>, priced: &Priced) -> String {
    match planner.workload.objective() {
        Objective::Latency => format!("{:.2} ms per token", priced.prediction.decode_ms),
        Objective::Throughput => {
            format!(
                "{:.1} tokens/s over {} streams",
                priced.prediction.throughput(),
                planner.workload.streams
            )
        }
        Objective::Energy => {
            format!("{:.2} J per token", priced.prediction.joules_per_token.unwrap_or(f64::INFINITY))
        }
    }
}

fn entries(breakdown: &Breakdown) -> [(&'static str, f64); 5] {
    let Breakdown { compute_ms, all_reduce_ms, hops_ms, head_ms, control_ms } = *breakdown;
    [
        ("compute", compute_ms),
        ("sums", all_reduce_ms),
        ("hops", hops_ms),
        ("head", head_ms),
        ("control", control_ms),
    ]
}

fn parts(breakdown: &Breakdown) -> String {
    let parts = entries(breakdown).into_iter().filter(|(_, ms)| *ms > 0.0);
    parts.map(|(what, ms)| format!("{what} {ms:.2} ms")).collect::<Vec<_>>().join(", ")
}

/// The parts in which the other differs by a hundredth of a token or more.
fn differences(own: &Breakdown, other: &Breakdown) -> String {
    let whole: f64 = entries(own).iter().map(|entry| entry.1).sum();
    let both = entries(own).into_iter().zip(entries(other));
    let differs =
        both.map(|((what, own), (_, other))| (what, other - own)).filter(|(_, ms)| ms.abs() >= whole / 100.0);
    differs.map(|(what, ms)| format!("{what} {ms:+.2} ms")).collect::<Vec<_>>().join(", ")
}

/// Why a usable device has no work. `with`: the best plan found that uses it.
pub(super) fn left_out(
    planner: &Planner<'_>,
    chosen: &Priced,
    device: &Device,
    with: Option<&Priced>,
) -> String {
    let devices = planner.cluster.devices.len();
    let layers = planner.spec.n_layers as usize;
    let strategy = chosen.plan.strategy;
    if matches!(strategy, Strategy::StaticLayer | Strategy::AdaptiveLayer)
        && devices > layers
        && planner.options.strategy.is_some()
    {
        return format!("there are more devices than the model's {layers} layers");
    }
    if chosen.plan.nodes().len() >= planner.most() {
        return format!("a plan has at most {} devices", planner.most());
    }
    let Some(with) = with else {
        return match strategy {
            Strategy::Single => "one device alone does it".to_owned(),
            _ => "no plan with it was found that is better or fits".to_owned(),
        };
    };
    let more = planner.figure(with) - planner.figure(chosen);
    let unit = match planner.workload.objective() {
        Objective::Latency => "ms per token",
        Objective::Throughput => "ms per token over all streams",
        Objective::Energy => "J per token",
    };
    let because = {
        let (own, other) = (&chosen.prediction.breakdown, &with.prediction.breakdown);
        let worse =
            entries(own).into_iter().zip(entries(other)).map(|((what, own), (_, other))| (what, other - own));
        let worst = worse.max_by(|a, b| a.1.total_cmp(&b.1)).filter(|worst| worst.1 > 0.0);
        worst.map_or_else(String::new, |(what, ms)| {
            format!(", most of it {what} ({ms:+.2} ms for one stream)")
        })
    };
    match more {
        more if more < 0.0 => format!(
            "the search did not reach the plan with {} that is better by {:.3} {unit}",
            device.name, -more
        ),
        more if more < 0.005 => "using it would gain nothing".to_owned(),
        more => format!("using it would cost {more:.2} {unit}{because}"),
    }
}
