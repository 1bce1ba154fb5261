//! `shoal plan` as a person reads it: the strategies in a table, the chosen plan as a picture, and the reasons.

use shoal_cluster::cost::{NodePrediction, Objective, Prediction};
use shoal_cluster::planner::{Choice, Infeasible, LimitKind, Missing, NoPlan};
use shoal_core::plan::{Plan, Span};
use shoal_core::units::Bytes;
use shoal_core::{ModelSpec, NodeId};

use super::ink::{Ink, bar, pad, parts, wrap};
use super::tables::span;
use crate::commands::plan::{Addition, Figures, Sheet, WhatIf};

/// Columns of the picture, and of wrapped text.
const WIDTH: usize = 108;

/// Where the text beside a label begins.
const LABEL: usize = 11;

/// Boards of one stage, and left-out boards, that are shown; of more the number is said.
const BOARDS: usize = 12;

/// Stages that are shown.
const STAGES: usize = 12;

/// Kinds of boards that are named.
const KINDS: usize = 5;

/// Boards whose missing bytes are said for one strategy.
const LACKS: usize = 2;

/// The whole sheet; for a model that does not fit, what is missing and what would do.
pub(crate) fn plan_sheet(sheet: &Sheet<'_>) -> String {
    match &sheet.result {
        Ok(choice) => {
            let ink = Ink::stdout();
            let parts = [
                header(sheet, ink),
                table(sheet, choice, ink),
                picture(sheet, choice, ink),
                reasons(sheet, choice, ink),
            ];
            parts.join("\n")
        }
        Err(no_plan) => misfit(sheet, no_plan),
    }
}

fn header(sheet: &Sheet<'_>, ink: Ink) -> String {
    let (spec, workload, ground) = (sheet.spec, sheet.workload, sheet.ground);
    let streams = match workload.streams {
        1 => "one stream".to_owned(),
        n => format!("{n} streams"),
    };
    let objective = match workload.objective() {
        Objective::Latency => "for the least time per token",
        Objective::Throughput => "for the most tokens per second",
        Objective::Energy => "for the least energy per token",
    };
    let first = format!(
        "{}, {}: {streams} of {} positions, prompts of {}, {objective}",
        ink.bold(&spec.name),
        spec.total_bytes(),
        workload.context,
        workload.prompt_len
    );
    let boards = ground.cluster.devices.len();
    let second = format!(
        "{}: {}{} with {} for models",
        ground.title,
        count(boards, "board"),
        kinds(sheet).map_or_else(String::new, |kinds| format!(" ({kinds})")),
        ground.usable()
    );
    let mut out = format!("{first}\n{second}\n");
    for note in &ground.notes {
        out.push_str(&format!("{}\n", ink.dim(note)));
    }
    out
}

/// The profiles of the boards, if all have one and a line holds them.
fn kinds(sheet: &Sheet<'_>) -> Option<String> {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for device in &sheet.ground.cluster.devices {
        let profile = sheet.ground.kinds.get(&device.node)?.profile.as_deref()?;
        match counts.iter_mut().find(|(known, _)| *known == profile) {
            Some((_, count)) => *count += 1,
            None => counts.push((profile, 1)),
        }
    }
    let one = |&(profile, count): &(&str, usize)| match count {
        1 => profile.to_owned(),
        count => format!("{count} × {profile}"),
    };
    (counts.len() <= KINDS).then(|| counts.iter().map(one).collect::<Vec<_>>().join(", "))
}

fn table(sheet: &Sheet<'_>, choice: &Choice, ink: Ink) -> String {
    let streams = sheet.workload.streams;
    let energy = sheet.workload.objective() == Objective::Energy;
    let mut header = vec!["  strategy".to_owned(), "ms/token".to_owned(), "tok/s".to_owned()];
    if streams > 1 {
        header.push(format!("× {streams}"));
    }
    header.extend(["prefill", "1st token", "sent/token", "effic."].map(str::to_owned));
    if energy {
        header.push("J/token".to_owned());
    }
    header.push("GB per board".to_owned());
    let mut rows: Vec<(Vec<String>, bool)> = vec![(header, false)];
    for outcome in &choice.outcomes {
        let chosen = outcome.strategy == choice.strategy();
        let name = format!("{} {}", if chosen { "→" } else { " " }, outcome.strategy.name());
        let mut row = vec![name];
        match &outcome.result {
            Ok(priced) => row.extend(figures(&priced.prediction, streams, energy)),
            Err(why) => row.push(lack(why)),
        }
        rows.push((row, chosen));
    }
    let columns = rows[0].0.len();
    let width = |at: usize| {
        let full = rows.iter().filter(|(row, _)| row.len() == columns || at == 0);
        full.map(|(row, _)| row[at].chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (index, (row, chosen)) in rows.iter().enumerate() {
        let mut line = pad(&row[0], widths[0], false);
        if row.len() == columns {
            for (at, cell) in row.iter().enumerate().skip(1) {
                // Memory stands on the left: its numbers are a list.
                line.push_str("   ");
                line.push_str(&pad(cell, widths[at], at + 1 < columns));
            }
        } else {
            line.push_str(&format!("   {}", row[1]));
        }
        let line = line.trim_end();
        let line = match (index, *chosen, row.len() == columns) {
            (0, ..) => ink.dim(line),
            (_, true, _) => ink.bold(line),
            (_, _, false) => ink.dim(line),
            _ => line.to_owned(),
        };
        out.push_str(&format!("{line}\n"));
    }
    out
}

/// The cells of a strategy that fits.
fn figures(prediction: &Prediction, streams: u32, energy: bool) -> Vec<String> {
    let traffic = &prediction.bytes_per_token;
    let sent = traffic.hops + traffic.all_reduce + traffic.head + traffic.control;
    let mut cells = vec![number(prediction.decode_ms), number(prediction.decode_tps)];
    if streams > 1 {
        cells.push(number(prediction.throughput()));
    }
    cells.push(number(prediction.prefill_tps));
    cells.push(time(prediction.ttft_ms));
    cells.push(Bytes(sent as u64).to_string());
    // A board that cannot hold the model alone is taken as if it could.
    let mark = if prediction.efficiency_assumes_memory { "*" } else { "" };
    cells.push(format!("{:.0} %{mark}", prediction.efficiency * 100.0));
    if energy {
        cells.push(prediction.joules_per_token.map_or_else(|| "?".to_owned(), number));
    }
    cells.push(memory(&prediction.nodes));
    cells
}

/// Memory of each board, or the range of many.
fn memory(nodes: &[NodePrediction]) -> String {
    let gigabytes = |node: &NodePrediction| short_bytes(node.memory.total());
    if nodes.len() <= 4 {
        return nodes.iter().map(gigabytes).collect::<Vec<_>>().join(" ");
    }
    let by = |node: &&NodePrediction| node.memory.total();
    match (nodes.iter().min_by_key(by), nodes.iter().max_by_key(by)) {
        (Some(least), Some(most)) => {
            format!("{} × {}–{}", nodes.len(), gigabytes(least), gigabytes(most))
        }
        _ => String::new(),
    }
}

/// In gigabytes, with as many digits as tell boards apart.
fn short_bytes(bytes: Bytes) -> String {
    let gigabytes = bytes.0 as f64 / 1e9;
    if gigabytes < 0.1 { format!("{gigabytes:.3}") } else { format!("{gigabytes:.2}") }
}

/// Why a strategy has no plan, in a line.
fn lack(why: &Infeasible) -> String {
    match lacks(&why.missing) {
        Some(lacks) => format!("— {}: {lacks}", why.reason),
        None => format!("— {}", why.reason),
    }
}

fn lacks(missing: &[Missing]) -> Option<String> {
    let one = |missing: &Missing| format!("{} missing on {}", missing.bytes, missing.name);
    let shown: Vec<String> = missing.iter().take(LACKS).map(one).collect();
    let more = missing.len().saturating_sub(LACKS);
    let more = if more > 0 { format!(" and on {more} more") } else { String::new() };
    (!shown.is_empty()).then(|| format!("{}{more}", shown.join(", ")))
}

fn picture(sheet: &Sheet<'_>, choice: &Choice, ink: Ink) -> String {
    let (plan, prediction) = (&choice.chosen.plan, &choice.chosen.prediction);
    let boards = count(plan.nodes().len(), "board");
    let stages = count(plan.stages.len(), "stage");
    let mut out = format!(
        "{}: {stages} on {boards}, {} per token of one stream {}\n",
        ink.bold(choice.strategy().name()),
        time(prediction.decode_ms),
        ink.dim("(█ computing ▒ sending ░ waiting for ranks · idle)")
    );
    let rows = Rows::new(sheet, choice);
    for (index, stage) in plan.stages.iter().enumerate().take(STAGES) {
        let sums = match stage.ranks.len() {
            1 => String::new(),
            _ => format!(", sums {}", all_reduce(stage.sums.decode)),
        };
        let took = prediction.stage_ms.get(index).map_or_else(String::new, |ms| format!(", {}", time(*ms)));
        let layers = count(stage.layers.len() as usize, "layer");
        let what = format!("stage {index} · layers {} ({layers}){took}{sums}", span(stage.layers));
        out.push_str(&format!("  {}\n", ink.accent(&what)));
        for share in stage.ranks.iter().take(BOARDS) {
            out.push_str(&rows.line(share.node, ink));
        }
        out.push_str(&more(stage.ranks.len(), BOARDS, "board"));
    }
    out.push_str(&more(plan.stages.len(), STAGES, "stage"));
    let apart: Vec<NodeId> =
        plan.head.iter().map(|head| head.node).filter(|node| plan.place(*node).is_none()).collect();
    if !apart.is_empty() {
        out.push_str(&format!("  {}\n", ink.accent("output head alone")));
        for &node in apart.iter().take(BOARDS) {
            out.push_str(&rows.line(node, ink));
        }
        out.push_str(&more(apart.len(), BOARDS, "board"));
    }
    out
}

/// What the lines of boards share: the widths of their columns.
struct Rows<'a> {
    sheet: &'a Sheet<'a>,
    plan: &'a Plan,
    prediction: &'a Prediction,
    name: usize,
    /// Of each piece of a board's work.
    pieces: [usize; 4],
}

impl<'a> Rows<'a> {
    fn new(sheet: &'a Sheet<'a>, choice: &'a Choice) -> Self {
        let (plan, prediction) = (&choice.chosen.plan, &choice.chosen.prediction);
        let mut rows = Self { sheet, plan, prediction, name: 0, pieces: [0; 4] };
        rows.name = plan.nodes().iter().map(|node| rows.name(*node).chars().count()).max().unwrap_or(0);
        for &node in plan.nodes() {
            for (at, piece) in work(plan, sheet.spec, node).iter().enumerate() {
                rows.pieces[at] = rows.pieces[at].max(piece.chars().count());
            }
        }
        rows
    }

    fn name(&self, node: NodeId) -> String {
        let known = self.sheet.ground.cluster.device(node);
        known.map_or_else(|| node.short(), |device| device.name.chars().take(24).collect())
    }

    /// Heads, columns and vocabulary of a board, each below the other boards'.
    fn work(&self, node: NodeId) -> String {
        let pieces = work(self.plan, self.sheet.spec, node);
        let used = pieces.iter().zip(self.pieces).filter(|(_, width)| *width > 0);
        let cells = used.map(|(piece, width)| pad(piece, width, false));
        cells.collect::<Vec<_>>().join("  ")
    }

    fn line(&self, node: NodeId, ink: Ink) -> String {
        let Some(figures) = self.prediction.nodes.iter().find(|figures| figures.node == node) else {
            return String::new();
        };
        let (used, usable) = (figures.memory.total(), figures.usable);
        let full = used.0 as f64 / usable.0.max(1) as f64;
        let held = format!("{} of {} GB", short_bytes(used), short_bytes(usable));
        let token = self.prediction.decode_ms.max(f64::MIN_POSITIVE);
        let sending = figures.all_reduce_ms + figures.hop_ms;
        let shares = [figures.compute_ms, sending, figures.wait_ms, figures.idle_ms].map(|ms| ms / token);
        format!(
            "    {}  {}  {} {}  {} {}\n",
            pad(&self.name(node), self.name, false),
            self.work(node),
            ink.load(&bar(full, 10), full),
            pad(&held, 16, false),
            parts(&shares, ['█', '▒', '░', '·'], 12),
            ink.dim(&format!("{:.0}·{:.0}·{:.0} %", shares[0] * 100.0, shares[1] * 100.0, shares[2] * 100.0)),
        )
    }
}

/// What a board does in a plan: its heads, KV heads, part of the feed-forward network and part of the output head; empty
/// where it has none.
pub(super) fn work(plan: &Plan, spec: &ModelSpec, node: NodeId) -> [String; 4] {
    let mut out = <[String; 4]>::default();
    if let Some(share) = plan.share(node) {
        let all = share.q_heads.len() == spec.n_heads;
        out[0] = if all { "all heads".to_owned() } else { format!("heads {}", span(share.q_heads)) };
        out[1] = if all { "all KV".to_owned() } else { format!("KV {}", span(share.kv_heads)) };
        out[2] = format!("FFN {}", percent(share.ffn, spec.ffn));
    }
    if let Some((_, rows)) = plan.head_share(node).filter(|(_, rows)| !rows.is_empty()) {
        out[3] = format!("head {}", percent(rows, spec.vocab));
    }
    out
}

fn percent(part: Span, whole: u32) -> String {
    format!("{:.0} %", 100.0 * f64::from(part.len()) / f64::from(whole.max(1)))
}

fn all_reduce(how: shoal_core::plan::AllReduce) -> &'static str {
    match how {
        shoal_core::plan::AllReduce::Direct => "sent from each to all",
        shoal_core::plan::AllReduce::ReduceScatter => "scattered and gathered",
        shoal_core::plan::AllReduce::Star => "gathered on the first",
    }
}

fn reasons(sheet: &Sheet<'_>, choice: &Choice, ink: Ink) -> String {
    let mut out = String::new();
    let mut say = |label: &str, text: &str| out.push_str(&labelled(label, text, ink));
    say("why", &choice.reason);
    for left in choice.left_out.iter().take(BOARDS) {
        say("left out", &format!("{}: {}", left.name, left.reason));
    }
    if choice.left_out.len() > BOARDS {
        say("", &format!("and {} more", choice.left_out.len() - BOARDS));
    }
    let (scope, limits): (Vec<_>, Vec<_>) =
        choice.limits.iter().partition(|limit| limit.kind == LimitKind::Scope);
    for (at, limit) in limits.iter().enumerate() {
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
    if !what_if.used {
        return format!(
            "{board}: nothing; {} would be left out",
            if what_if.count == 1 { "it" } else { "one or more" }
        );
    }
    let (what, ratio) = match objective {
        Objective::Latency => ("time per token", after.decode_ms / before.decode_ms),
        Objective::Throughput => ("tokens per second", after.tps / before.tps),
        Objective::Energy => ("energy per token", after.figure / before.figure),
    };
    let change = 100.0 * (ratio - 1.0);
    let sign = if change < 0.0 { '−' } else { '+' };
    let (from, to) = (figure(before, objective), figure(after, objective));
    let by = format!("{} on {}", after.strategy.name(), count(after.boards, "board"));
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
fn misfit(sheet: &Sheet<'_>, no_plan: &NoPlan) -> String {
    let (spec, ground) = (sheet.spec, sheet.ground);
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
    for left in no_plan.left_out.iter().take(BOARDS) {
        out.push_str(&format!("\n  left out        {}: {}", left.name, left.reason));
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

fn more(all: usize, shown: usize, what: &str) -> String {
    match all.saturating_sub(shown) {
        0 => String::new(),
        more => format!("    … and {} more\n", count(more, what)),
    }
}

/// `1 board`, `3 boards`.
pub(super) fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Three digits that count.
pub(super) fn number(value: f64) -> String {
    let magnitude = if value.is_finite() && value != 0.0 { value.abs().log10().floor() } else { 0.0 };
    let digits = (2.0 - magnitude).clamp(0.0, 6.0) as usize;
    format!("{value:.digits$}")
}

/// Milliseconds, or seconds from ten on.
pub(super) fn time(ms: f64) -> String {
    if ms < 10_000.0 { format!("{} ms", number(ms)) } else { format!("{} s", number(ms / 1e3)) }
}
