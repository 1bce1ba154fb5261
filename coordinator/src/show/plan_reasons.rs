//! `shoal plan` in words: why this plan, what limits it, what one more board would change, and why nothing fits.

use shoal_cluster::cost::Objective;
use shoal_cluster::planner::{Choice, LeftOut, LimitKind, NoPlan};

use super::ink::{Ink, pad, wrap};
use super::plan::{count, lack, number, time};
use crate::commands::plan::{Addition, Figures, Sheet, WhatIf};

/// Columns of the picture, and of wrapped text.
const WIDTH: usize = 108;

/// Where the text beside a label begins.
const LABEL: usize = 11;

/// Reasons for leaving boards out, and boards named for one of them.
const LEFT_OUT: (usize, usize) = (4, 6);

/// Things that limit a plan.
const LIMITS: usize = 5;

/// Why this plan, what it leaves out, what limits it, and what would change it.
pub(super) fn reasons(sheet: &Sheet<'_>, choice: &Choice, ink: Ink) -> String {
    let mut out = String::new();
    let mut say = |label: &str, text: &str| out.push_str(&labelled(label, text, ink));
    say("why", &choice.reason);
    for (at, line) in left_out(&choice.left_out).iter().enumerate() {
        say(if at == 0 { "left out" } else { "" }, line);
    }
    let (scope, limits): (Vec<_>, Vec<_>) =
        choice.limits.iter().partition(|limit| limit.kind == LimitKind::Scope);
    for (at, limit) in limits.iter().enumerate().take(LIMITS) {
        say(if at == 0 { "limits" } else { "" }, &limit.text);
    }
    let gap = match choice.gap {
        _ if choice.optimal => None,
        // A bound of nothing tells nothing.
        0.995.. => Some("not proven to be the best".to_owned()),
        gap => Some(format!(
            "not proven to be the best: another plan could be up to {:.1} % better",
            gap * 100.0
        )),
    };
    let bound =
        format!("no plan here decodes one stream faster than {} per token", time(choice.lower_bound_ms));
    let known = gap.into_iter().chain(scope.iter().map(|limit| limit.text.clone())).chain([bound]);
    say("optimal", &known.collect::<Vec<_>>().join("; "));
    if choice.outcomes.iter().any(|outcome| {
        outcome.result.as_ref().is_ok_and(|priced| priced.prediction.efficiency_assumes_memory)
    }) {
        say("effic. *", "compared with boards that could each hold the whole model, which some cannot");
    }
    for (at, what_if) in sheet.what_if.iter().enumerate() {
        say(if at == 0 { "what if" } else { "" }, &changed(what_if, sheet.workload.objective()));
    }
    out.trim_end().to_owned()
}

/// Boards by why they are left out.
fn left_out(left_out: &[LeftOut]) -> Vec<String> {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for left in left_out {
        match reasons.iter_mut().find(|(reason, _)| *reason == left.reason) {
            Some((_, names)) => names.push(&left.name),
            None => reasons.push((&left.reason, vec![&left.name])),
        }
    }
    let line = |(reason, names): &(&str, Vec<&str>)| {
        let more = names.len().saturating_sub(LEFT_OUT.1);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{}{more}: {reason}", names[..names.len().min(LEFT_OUT.1)].join(", "))
    };
    let mut lines: Vec<String> = reasons.iter().take(LEFT_OUT.0).map(line).collect();
    let rest: usize = reasons.iter().skip(LEFT_OUT.0).map(|(_, names)| names.len()).sum();
    lines.extend((rest > 0).then(|| format!("and {} more", count(rest, "board"))));
    lines
}

/// A label and its text, wrapped beside it.
fn labelled(label: &str, text: &str, ink: Ink) -> String {
    let mut out = String::new();
    for (at, line) in wrap(text, WIDTH - LABEL).iter().enumerate() {
        let label = pad(if at == 0 { label } else { "" }, LABEL, false);
        out.push_str(&format!("{}{line}\n", ink.dim(&label)));
    }
    out
}

/// What one more board would change, in a line.
fn changed(what_if: &WhatIf, objective: Objective) -> String {
    let board = match what_if.count {
        1 => format!("+ {} ({})", what_if.title, what_if.profile),
        count => format!("+ {count} × {} ({})", what_if.title, what_if.profile),
    };
    let Some(after) = &what_if.after else {
        let reason = what_if.reason.as_deref().unwrap_or("no plan fits");
        return format!("{board}: {reason}");
    };
    let Some(before) = &what_if.before else {
        return format!("{board}: then it fits, {}", figure(after, objective));
    };
    if what_if.used_count == 0 {
        let which = if what_if.count == 1 { "it" } else { "they" };
        return format!("{board}: nothing; {which} would be left out");
    }
    let (what, ratio) = match objective {
        Objective::Latency => ("time per token", after.decode_ms / before.decode_ms),
        Objective::Throughput => ("tokens per second", after.tps / before.tps),
        Objective::Energy => ("energy per token", after.figure / before.figure),
    };
    let change = 100.0 * (ratio - 1.0);
    let sign = if change < 0.0 { '−' } else { '+' };
    let (from, to) = (figure(before, objective), figure(after, objective));
    let idle = match what_if.count - what_if.used_count {
        0 => String::new(),
        idle => format!(", {idle} of the {} left out", what_if.count),
    };
    let by = format!("{} on {}{idle}", after.strategy.name(), count(after.boards, "board"));
    format!("{board}: {from} → {to}, {sign}{:.0} % {what}, {by}", change.abs())
}

fn figure(figures: &Figures, objective: Objective) -> String {
    match objective {
        Objective::Latency => format!("{}/token", time(figures.decode_ms)),
        Objective::Throughput => format!("{} tok/s", number(figures.tps)),
        Objective::Energy => format!("{} J/token", number(figures.figure)),
    }
}

/// Why nothing fits: what is missing, and what would do. It follows `error: `.
pub(super) fn misfit(sheet: &Sheet<'_>, no_plan: &NoPlan) -> String {
    let (spec, ground) = (sheet.spec, sheet.ground);
    if no_plan.devices == 0 {
        let mut out = format!("failed to plan {}: no board of {} can take part", spec.name, ground.title);
        for line in left_out(&no_plan.left_out) {
            out.push_str(&format!("\n  left out        {line}"));
        }
        return out;
    }
    let boards = ground.cluster.devices.len();
    let mut out = format!(
        "failed to fit {} ({}) on {}, {} with {} for models",
        spec.name,
        spec.total_bytes(),
        ground.title,
        count(boards, "board"),
        ground.usable()
    );
    if no_plan.missing.0 > 0 {
        out.push_str(&format!(": {} ({} bytes) are missing", no_plan.missing, no_plan.missing.0));
    }
    for (strategy, why) in &no_plan.strategies {
        out.push_str(&format!("\n  {:<15} {}", strategy.name(), lack(why).trim_start_matches("— ")));
    }
    for line in left_out(&no_plan.left_out) {
        out.push_str(&format!("\n  left out        {line}"));
    }
    if let Some(addition) = no_plan.addition.filter(|_| sheet.additions.is_empty()) {
        out.push_str(&format!("\n  it would fit    with one more board that has {addition} for models"));
    }
    for (at, addition) in sheet.additions.iter().enumerate() {
        let label = if at == 0 { "it would fit" } else { "or" };
        let Addition { count, title, kind, after, .. } = addition;
        let times = if *count == 1 { "one".to_owned() } else { count.to_string() };
        let (strategy, took) = (after.strategy.name(), time(after.decode_ms));
        out.push_str(&format!(
            "\n  {label:<15} with {times} more {title} ({kind}; --what-if {}): {strategy} at {took} per token",
            addition.argument()
        ));
    }
    for what_if in &sheet.what_if {
        let text = changed(what_if, sheet.workload.objective());
        out.push_str(&format!("\n  what if         {}", text.lines().next().unwrap_or_default()));
    }
    out
}
