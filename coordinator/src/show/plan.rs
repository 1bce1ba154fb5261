//! `shoal plan` as a person reads it: the strategies in a table, the chosen plan as a picture, and the reasons.

use shoal_cluster::cost::{NodePrediction, Objective, Prediction};
use shoal_cluster::planner::{Choice, Infeasible, Missing};
use shoal_core::plan::{Plan, Span};
use shoal_core::units::Bytes;
use shoal_core::{ModelSpec, NodeId};

use super::ink::{Ink, bar, pad, parts};
use super::plan_reasons::{misfit, reasons};
use super::tables::span;
use crate::commands::plan::Sheet;

/// Boards that have a line of their own; of a plan with more, stages have.
const BOARDS: usize = 20;

/// Stages that are shown; of more the number is said.
const STAGES: usize = 20;

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
    let mut counts: Vec<(String, usize)> = Vec::new();
    for device in &sheet.ground.cluster.devices {
        let kind = sheet.ground.kinds.get(&device.node)?;
        let mut profile = kind.profile.clone()?;
        if kind.speed != 1.0 {
            profile.push_str(&format!(" at {} of its speed", kind.speed));
        }
        match counts.iter_mut().find(|(known, _)| *known == profile) {
            Some((_, count)) => *count += 1,
            None => counts.push((profile, 1)),
        }
    }
    let one = |(profile, count): &(String, usize)| match count {
        1 => profile.clone(),
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
pub(super) fn lack(why: &Infeasible) -> String {
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
    let each = plan.nodes().len() <= BOARDS;
    for (index, stage) in plan.stages.iter().enumerate().take(STAGES) {
        let sums = match stage.ranks.len() {
            1 => String::new(),
            _ => format!(", sums {}", all_reduce(stage.sums.decode)),
        };
        let took = prediction.stage_ms.get(index).map_or_else(String::new, |ms| format!(", {}", time(*ms)));
        let layers = match stage.layers.len() {
            1 => format!("layer {}", stage.layers.first),
            n => format!("layers {} ({n} layers)", span(stage.layers)),
        };
        let nodes: Vec<NodeId> = stage.ranks.iter().map(|share| share.node).collect();
        let title = format!("stage {index} · {layers}{took}{sums}");
        if each {
            out.push_str(&format!("  {}\n", ink.accent(&title)));
            out.extend(nodes.iter().map(|node| rows.line(*node, ink)));
        } else {
            // One board stands beside its stage.
            let between = if nodes.len() == 1 { " · " } else { "\n    " };
            out.push_str(&format!("  {}{between}{}\n", ink.accent(&title), rows.together(&nodes)));
        }
    }
    out.push_str(&more(plan.stages.len(), STAGES, "stage"));
    let apart: Vec<NodeId> =
        plan.head.iter().map(|head| head.node).filter(|node| plan.place(*node).is_none()).collect();
    if !apart.is_empty() {
        out.push_str(&format!("  {}\n", ink.accent("output head alone")));
        if each {
            out.extend(apart.iter().map(|node| rows.line(*node, ink)));
        } else {
            out.push_str(&format!("    {}\n", rows.together(&apart)));
        }
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

    /// Several boards in one line.
    fn together(&self, nodes: &[NodeId]) -> String {
        let names = match nodes {
            [] => String::new(),
            [one] => self.name(*one),
            [first, .., last] => {
                format!("{}: {} … {}", count(nodes.len(), "board"), self.name(*first), self.name(*last))
            }
        };
        let of = |node: &NodeId| self.prediction.nodes.iter().find(|figures| figures.node == *node);
        let figures: Vec<&NodePrediction> = nodes.iter().filter_map(of).collect();
        let full = figures
            .iter()
            .map(|figures| 100.0 * figures.memory.total().0 as f64 / figures.usable.0.max(1) as f64);
        let (least, most) =
            full.fold((f64::INFINITY, 0.0_f64), |(least, most), part| (least.min(part), most.max(part)));
        let busiest = figures.iter().map(|figures| figures.compute_ms).fold(0.0, f64::max);
        let busiest = 100.0 * busiest / self.prediction.decode_ms.max(f64::MIN_POSITIVE);
        let range = match (least.round(), most.round()) {
            (least, most) if least >= most => format!("{most}"),
            (least, most) => format!("{least} to {most}"),
        };
        format!("{names}, memory {range} % full, computing {busiest:.0} % of the time at most")
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

fn more(all: usize, shown: usize, what: &str) -> String {
    match all.saturating_sub(shown) {
        0 => String::new(),
        more => format!("    … and {}\n", count(more, &format!("more {what}"))),
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
