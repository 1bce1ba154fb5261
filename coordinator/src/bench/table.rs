//! The report as tables for people.

use comfy_table::{CellAlignment, Table, presets};
use shoal_core::Bytes;

use super::report::{NeighbourRows, Report, StrategyRow};

impl Report<'_> {
    /// Strategies side by side, measured beside predicted, then each rank's time and the neighbours.
    pub(crate) fn tables(&self) -> String {
        let mut out = format!("{} — {}\n", self.model, self.grade());
        out.push_str(&format!(
            "medians of {} round{}; {} tokens decoded; figures as measured (prediction, its error)\n",
            self.rounds,
            if self.rounds == 1 { "" } else { "s" },
            self.decode
        ));
        out.push_str(&self.decoding());
        if self.strategies.iter().any(|row| row.measured.aggregate.iter().any(|entry| entry.streams > 1)) {
            out.push_str(&format!("\n\nSeveral streams, tokens/s in all\n{}", self.streams()));
        }
        if self.strategies.iter().any(|row| !row.measured.prefill.is_empty()) {
            out.push_str(&format!("\n\nPrompts\n{}", self.prompts()));
        }
        out.push_str(&format!("\n\nEach worker while one stream is decoded, a token\n{}", self.ranks()));
        for row in &self.strategies {
            if let Some(reason) = &row.reason {
                out.push_str(&format!("\n{}: {reason}", row.strategy.name()));
            }
        }
        if let Some(neighbours) = &self.neighbours {
            out.push_str(&format!("\n\n{}", neighbours.table()));
        }
        if let (Some(median), Some(worst)) = (self.prediction.median, self.prediction.worst) {
            out.push_str(&format!(
                "\nPredictions of times and rates are off by {:.1} % (median of {}), {:.1} % at worst.",
                median * 100.0,
                self.prediction.figures,
                worst * 100.0
            ));
        }
        out
    }

    fn decoding(&self) -> String {
        let header = ["one stream", "ms/token", "p95", "tok/s", "efficiency", "sent/token"];
        let mut table = new_table(&header, 1);
        for row in &self.strategies {
            let (measured, predicted, error) = (&row.measured, &row.predicted, &row.error);
            let traffic = &measured.bytes_per_token;
            let parts = [traffic.hops, traffic.all_reduce, traffic.head, traffic.control];
            let sent: Option<f64> = parts.into_iter().sum();
            table.add_row([
                row.strategy.name().to_owned(),
                beside(measured.decode_ms.p50, predicted.decode_ms.p50, error.decode_ms.p50),
                plain(measured.decode_ms.p95),
                beside(measured.decode_tps, predicted.decode_tps, error.decode_tps),
                percent(measured.aggregate.iter().find(|e| e.streams == 1).and_then(|e| e.efficiency)),
                sent.map_or_else(none, |bytes| Bytes(bytes as u64).to_string()),
            ]);
        }
        table.to_string()
    }

    fn streams(&self) -> String {
        let mut counts: Vec<u32> = Vec::new();
        for entry in self.strategies.iter().flat_map(|row| &row.measured.aggregate) {
            if entry.streams > 1 && !counts.contains(&entry.streams) {
                counts.push(entry.streams);
            }
        }
        let header = counts.iter().flat_map(|n| [format!("{n} streams"), "efficiency".to_owned()]);
        let header: Vec<String> = [String::new()].into_iter().chain(header).collect();
        let mut table = new_table(&header, 1);
        for row in &self.strategies {
            let mut cells = vec![row.strategy.name().to_owned()];
            for &count in &counts {
                let efficiency = row.measured.aggregate.iter().find(|entry| entry.streams == count);
                let error = row.error.tps_at(count);
                cells.push(beside(row.measured.tps_at(count), row.predicted.tps_at(count), error));
                cells.push(percent(efficiency.and_then(|entry| entry.efficiency)) + row.mark());
            }
            table.add_row(cells);
        }
        let note = if self.strategies.iter().any(|row| !row.mark().is_empty()) {
            "\n* against devices alone as predicted, not all measured"
        } else {
            ""
        };
        format!("{table}{note}")
    }

    fn prompts(&self) -> String {
        let first = self.strategies.iter().find(|row| !row.measured.prefill.is_empty());
        let lengths: Vec<u32> =
            first.iter().flat_map(|row| row.measured.prefill.iter().map(|entry| entry.tokens)).collect();
        let header = lengths.iter().flat_map(|n| [format!("{n}: first token, ms"), "tok/s".to_owned()]);
        let header: Vec<String> = [String::new()].into_iter().chain(header).collect();
        let mut table = new_table(&header, 1);
        for row in &self.strategies {
            let mut cells = vec![row.strategy.name().to_owned()];
            for (at, _) in lengths.iter().enumerate() {
                let of = |figures: &super::figures::Figures| figures.prefill.get(at).copied();
                let ms = |figures| of(figures).and_then(|entry| entry.ttft_ms);
                cells.push(beside(ms(&row.measured), ms(&row.predicted), ms(&row.error)));
                cells.push(plain(of(&row.measured).and_then(|entry| entry.tps)));
            }
            table.add_row(cells);
        }
        table.to_string()
    }

    fn ranks(&self) -> String {
        let mut table = new_table(&["", "worker", "compute ms", "wait ms"], 2);
        for row in &self.strategies {
            for (at, rank) in row.ranks.iter().enumerate() {
                let name = if at == 0 { row.strategy.name() } else { "" };
                table.add_row([
                    name.to_owned(),
                    rank.name.clone(),
                    plain(rank.compute_ms),
                    plain(rank.wait_ms),
                ]);
            }
        }
        table.to_string()
    }
}

impl StrategyRow<'_> {
    /// Stands behind an efficiency that is not against measured rates alone.
    fn mark(&self) -> &'static str {
        match self.efficiency_basis {
            Some("predicted" | "mixed") => "*",
            _ => "",
        }
    }
}

impl NeighbourRows {
    fn table(&self) -> String {
        let unit = if self.figure == "tps" { "tok/s" } else { "ms/token" };
        let mut table = new_table(&["plans beside the chosen one", unit, "predicted"], 1);
        let chosen = format!("chosen ({})", self.strategy.name());
        table.add_row([chosen, plain(self.chosen), plain(self.chosen_predicted)]);
        for other in &self.others {
            let what = match &other.reason {
                Some(reason) => format!("{} — {reason}", other.what),
                None => other.what.clone(),
            };
            table.add_row([what, plain(other.measured), plain(other.predicted)]);
        }
        let gap = self.gap.map_or_else(String::new, |gap| match gap {
            0.0 => "\nThe chosen plan is the best of those measured.".to_owned(),
            gap => {
                format!("\nThe best of those measured is {:.1} % better than the chosen plan.", gap * 100.0)
            }
        });
        format!("{table}{gap}")
    }
}

fn new_table<T: Into<comfy_table::Cell> + Clone>(header: &[T], right_from: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header.to_vec());
    for at in right_from..header.len() {
        if let Some(column) = table.column_mut(at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn none() -> String {
    "—".to_owned()
}

/// Three digits that mean something.
fn plain(value: Option<f64>) -> String {
    value.map_or_else(none, |value| match value.abs() {
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    })
}

fn percent(value: Option<f64>) -> String {
    value.map_or_else(none, |value| format!("{:.0} %", value * 100.0))
}

/// A figure with its prediction and the prediction's error.
fn beside(measured: Option<f64>, predicted: Option<f64>, error: Option<f64>) -> String {
    match (measured, predicted, error) {
        (Some(_), Some(_), Some(error)) => {
            format!("{} ({}, {:+.0} %)", plain(measured), plain(predicted), error * 100.0)
        }
        _ => plain(measured),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_beside_their_predictions() {
        assert_eq!(beside(Some(12.34), Some(11.0), Some(-0.11)), "12.3 (11.0, -11 %)");
        assert_eq!(beside(Some(0.5), None, None), "0.50");
        assert_eq!(beside(None, Some(1.0), None), "—");
        assert_eq!(percent(Some(0.923)), "92 %");
    }
}
