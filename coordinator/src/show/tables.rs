//! Tables for people. Machines read the JSON of design 17.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};
use shoal_cluster::planner::{Choice, Infeasible};
use shoal_core::plan::{Plan, Span};
use shoal_core::units::Bytes;
use shoal_core::{ModelSpec, NodeId, shard};

use crate::commands::devices::DeviceView;
use crate::session::{RunReport, Traffic};

/// The plan: a row for each rank, and for each node that holds rows of the output head alone.
pub(crate) fn plan_table(plan: &Plan, spec: &ModelSpec, names: &BTreeMap<NodeId, String>) -> String {
    let header = [
        "stage",
        "layers",
        "rank",
        "worker",
        "query heads",
        "KV heads",
        "FFN columns",
        "vocabulary",
        "memory",
    ];
    let mut table = new_table(&header, &[2, 4, 5, 6, 7, 8]);
    let memory = |node| shard::footprint(plan, spec, node).total().to_string();
    let rows = |node| plan.head_share(node).map_or(Span::default(), |(_, rows)| rows);
    for (index, stage) in plan.stages.iter().enumerate() {
        for (rank, share) in stage.ranks.iter().enumerate() {
            table.add_row([
                index.to_string(),
                span(stage.layers),
                rank.to_string(),
                name(names, share.node),
                span(share.q_heads),
                span(share.kv_heads),
                span(share.ffn),
                span(rows(share.node)),
                memory(share.node),
            ]);
        }
    }
    for head in plan.head.iter().filter(|head| plan.place(head.node).is_none()) {
        let none = String::new;
        let row = [none(), none(), none(), name(names, head.node), none(), none(), none()];
        table.add_row(row.into_iter().chain([span(head.rows), memory(head.node)]));
    }
    table.to_string()
}

/// The five strategies side by side, then who has what in the chosen one.
pub(crate) fn choice_tables(choice: &Choice, spec: &ModelSpec, names: &BTreeMap<NodeId, String>) -> String {
    let header = [
        "",
        "strategy",
        "ms/token",
        "tok/s",
        "prefill tok/s",
        "first token",
        "sent/token",
        "efficiency",
        "most memory",
    ];
    let mut table = new_table(&header, &[2, 3, 4, 5, 6, 7, 8]);
    let mut reasons = Vec::new();
    for outcome in &choice.outcomes {
        let chosen = if outcome.strategy == choice.strategy() { "→" } else { "" };
        let mut row = vec![chosen.to_owned(), outcome.strategy.name().to_owned()];
        match &outcome.result {
            Ok(priced) => {
                let prediction = &priced.prediction;
                let traffic = &prediction.bytes_per_token;
                let sent = traffic.hops + traffic.all_reduce + traffic.head + traffic.control;
                let most = prediction.nodes.iter().map(|node| node.memory.total()).max().unwrap_or_default();
                row.extend([
                    format!("{:.2}", prediction.decode_ms),
                    format!("{:.1}", prediction.decode_tps),
                    format!("{:.0}", prediction.prefill_tps),
                    format!("{:.0} ms", prediction.ttft_ms),
                    Bytes(sent as u64).to_string(),
                    format!("{:.0} %", prediction.efficiency * 100.0),
                    most.to_string(),
                ]);
            }
            Err(infeasible) => {
                row.extend(["—"; 7].map(str::to_owned));
                reasons.push(format!("{}: {}", outcome.strategy.name(), explain(infeasible)));
            }
        }
        table.add_row(row);
    }
    let mut out = format!("{table}\n");
    for reason in reasons {
        out.push_str(&format!("{reason}\n"));
    }
    out.push_str(&format!("\nChosen: {} — {}\n", choice.strategy().name(), choice.reason));
    for left in &choice.left_out {
        out.push_str(&format!("Left out: {} — {}\n", left.name, left.reason));
    }
    out.push_str(&format!("\n{}\n", plan_table(&choice.chosen.plan, spec, names)));
    out.push_str(&format!(
        "No plan here decodes one stream faster than {:.2} ms/token.",
        choice.lower_bound_ms
    ));
    for limit in &choice.limits {
        out.push_str(&format!("\nLimit: {}", limit.text));
    }
    out
}

/// Who is there.
pub(crate) fn devices_table(devices: &[DeviceView]) -> String {
    let header = ["node", "name", "address", "state", "memory", "usable", "accounted", "planned", "resident"];
    let mut table = new_table(&header, &[4, 5, 6, 7, 8]);
    let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "—".to_owned(), |bytes| Bytes(bytes).to_string());
    for device in devices {
        table.add_row([
            device.node.short(),
            device.name.clone().unwrap_or_else(|| "?".to_owned()),
            device.address.clone().unwrap_or_default(),
            device.state.to_owned(),
            bytes(device.memory_bytes),
            bytes(device.usable_bytes),
            bytes(device.accounted_bytes),
            bytes(device.planned_bytes),
            bytes(device.resident_bytes),
        ]);
    }
    table.to_string()
}

/// What each worker measured of itself.
pub(crate) fn profiles_table(devices: &[DeviceView]) -> String {
    let header =
        ["worker", "format", "weights streamed", "batched", "attention", "overhead", "threads", "spread"];
    let mut table = new_table(&header, &[2, 3, 4, 5, 6, 7]);
    for device in devices {
        let Some(profile) = &device.profile else { continue };
        for rate in &profile.rates {
            table.add_row([
                device.name.clone().unwrap_or_else(|| device.node.short()),
                rate.kind.to_string(),
                format!("{:.2} GB/s", rate.stream.median.0 / 1e9),
                format!("{:.2} GMAC/s", rate.batched.last().map_or(0.0, |entry| entry.rate.median.0) / 1e9),
                format!("{:.2} GB/s", profile.attention.last().map_or(0.0, |entry| entry.rate.median.0) / 1e9),
                format!("{:.1} µs", profile.phase_overhead.median.0 * 1e6),
                profile.threads.to_string(),
                format!("{:.0} %", rate.stream.spread * 100.0),
            ]);
        }
    }
    table.to_string()
}

/// The figures after a text.
pub(crate) fn summary(report: &RunReport<'_>) -> String {
    let ms = |value: Option<f64>| value.map_or_else(|| "—".to_owned(), |value| format!("{value:.1} ms"));
    let tps = |value: Option<f64>| value.map_or_else(|| "—".to_owned(), |value| format!("{value:.1} tok/s"));
    let Traffic { hops, all_reduce, head, control } = report.bytes_per_token;
    let sent = [("hops", hops), ("all-reduce", all_reduce), ("head", head), ("control", control)];
    let sent: Vec<String> =
        sent.iter().map(|(what, bytes)| format!("{what} {}", Bytes(*bytes as u64))).collect();
    format!(
        "{} tokens ({}) by {} worker{}, {}\n\
         first token {} · decode {} · between tokens {} (p50), {} (p95) · prompt {}\n\
         sent per token: {}",
        report.token_ids.len(),
        report.finish_reason,
        report.workers,
        if report.workers == 1 { "" } else { "s" },
        report.strategy.name(),
        ms(report.ttft_ms),
        tps(report.decode_tps),
        ms(report.itl_ms.p50),
        ms(report.itl_ms.p95),
        tps(report.prefill_tps),
        sent.join(" · ")
    )
}

fn explain(infeasible: &Infeasible) -> String {
    infeasible.to_string()
}

fn new_table(header: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header);
    for &index in right {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn name(names: &BTreeMap<NodeId, String>, node: NodeId) -> String {
    names.get(&node).map_or_else(|| node.short(), |name| format!("{name} ({})", node.short()))
}

/// As people count: both ends included, one number where there is only one.
fn span(span: Span) -> String {
    match span.len() {
        0 => "—".to_owned(),
        1 => span.first.to_string(),
        _ => format!("{}–{}", span.first, span.end - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_shown_as_people_count() {
        assert_eq!(span(Span::new(0, 6)), "0–5");
        assert_eq!(span(Span::new(3, 4)), "3");
        assert_eq!(span(Span::new(3, 3)), "—");
    }
}
