//! `shoal simulate` as a person reads it.

use std::collections::BTreeMap;
use std::fmt::Write;

use comfy_table::Table;
use shoal_cluster::flow::{Beside, LinkUse, Run, Simulation, Spread};
use shoal_core::NodeId;
use shoal_core::units::Bytes;

use super::ink::{Ink, bar};
use super::tables::new_table;
use crate::commands::simulate::{Simulated, SimulationReport};

/// Boards and links that are shown: the busiest.
const SHOWN: usize = 12;

/// Columns of a bar.
const BAR: usize = 20;

/// The whole sheet.
pub(crate) fn simulation_sheet(report: &SimulationReport<'_>, names: &BTreeMap<NodeId, String>) -> String {
    let ink = Ink::stdout();
    let streams = match report.streams {
        1 => "one stream".to_owned(),
        n => format!("{n} streams"),
    };
    let chance = if report.jitter > 0.0 {
        format!("jitter {:.0} % (seed {})", report.jitter * 100.0, report.seed)
    } else {
        "no jitter".to_owned()
    };
    let mut out = format!(
        "{} on {}: {streams}, prompts of {}, {} tokens each, {chance}\n",
        ink.bold(report.model),
        ink.bold(report.cluster_name),
        report.prompt_len,
        report.decode_len,
    );
    for simulated in &report.strategies {
        let boards = simulated.simulation.one.nodes.len();
        let chosen = if simulated.strategy == report.chosen { ", chosen" } else { "" };
        let _ = writeln!(
            out,
            "\n{}: {boards} board{}{chosen}",
            ink.accent(simulated.strategy.name()),
            if boards == 1 { "" } else { "s" }
        );
        let _ = writeln!(out, "{}", figures(simulated, report.streams));
        let _ = write!(out, "{}", uses(&simulated.simulation, report.streams, names, ink));
    }
    out.truncate(out.trim_end().len());
    out
}

/// The figures beside the formula's.
fn figures(simulated: &Simulated<'_>, streams: u32) -> Table {
    let s = &simulated.simulation;
    let mut table = new_table(&["", "simulated", "95th percentile", "formula", "difference"], &[1, 2, 3, 4]);
    let mut row = |what: String, of: Beside, unit: &str, p95: Option<f64>| {
        let figure = |value: f64| format!("{} {unit}", digits(value));
        let p95 = p95.map_or_else(String::new, figure);
        let difference = format!("{:+.1} %", of.difference * 100.0);
        table.add_row([what, figure(of.simulated), p95, figure(of.predicted), difference]);
    };
    row("token of one stream".to_owned(), s.decode_ms, "ms", Some(s.decode_p95_ms));
    row(format!("rate of {}", counted(streams)), s.aggregate_tps, "tok/s", None);
    row("first token of one prompt".to_owned(), s.ttft_ms, "ms", None);
    if streams > 1 {
        let mut alone = |what: &str, of: Option<Spread>| {
            if let Some(of) = of {
                let figure = |value: f64| format!("{} ms", digits(value));
                table.add_row([
                    what.to_owned(),
                    figure(of.p50),
                    figure(of.p95),
                    String::new(),
                    String::new(),
                ]);
            }
        };
        alone("all asked at once: first token", Some(s.together.ttft_ms));
        alone("all asked at once: token", s.together.itl_ms);
    }
    table
}

fn counted(streams: u32) -> String {
    if streams == 1 { "one stream".to_owned() } else { format!("{streams} streams") }
}

/// Who and what was busy with the workload's streams.
fn uses(simulation: &Simulation, streams: u32, names: &BTreeMap<NodeId, String>, ink: Ink) -> String {
    let run: &Run = &simulation.many;
    let name = |node: Option<NodeId>| match node {
        Some(node) => names.get(&node).cloned().unwrap_or_else(|| node.short()),
        None => "coordinator".to_owned(),
    };
    let mut out = format!("With {}:\n", counted(streams));
    let mut nodes: Vec<_> = run.nodes.iter().collect();
    nodes.sort_by(|a, b| b.busy.total_cmp(&a.busy));
    let widest = nodes.iter().take(SHOWN).map(|used| name(Some(used.node)).chars().count()).max();
    let widest = widest.unwrap_or(0);
    for used in nodes.iter().take(SHOWN) {
        let _ = writeln!(
            out,
            "  {:<widest$} {} {:>3.0} % at work, {:.0} % waiting for its group, {:.0} % idle",
            name(Some(used.node)),
            ink.load(&bar(used.busy, BAR), 0.0),
            used.busy * 100.0,
            used.wait * 100.0,
            used.idle * 100.0
        );
    }
    if nodes.len() > SHOWN {
        let _ = writeln!(out, "  and {} boards that were at work less", nodes.len() - SHOWN);
    }
    let link = |link: &LinkUse| {
        let bytes = Bytes(link.bytes as u64);
        let ends = format!("{} to {}", name(link.from), name(link.to));
        format!("{ends} {:.1} % ({bytes})", link.utilisation * 100.0)
    };
    let links: Vec<String> = run.links.iter().take(3).map(link).collect();
    let _ = writeln!(out, "  busiest links: {}", links.join(", "));
    if let Some(medium) = run.medium {
        let _ = writeln!(out, "  the shared medium is taken {:.0} % of the time", medium * 100.0);
    }
    out
}

/// Three significant digits or so.
fn digits(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
