//! Tables for people. Machines read the JSON of design 17.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};
use shoal_core::plan::{Plan, Span};
use shoal_core::units::Bytes;
use shoal_core::{ModelSpec, NodeId, shard};

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

pub(super) fn new_table<T: AsRef<str>>(header: &[T], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header.iter().map(AsRef::as_ref));
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
pub(super) fn span(span: Span) -> String {
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
