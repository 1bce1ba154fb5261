//! The report as charts.

use super::figures::Figures;
use super::report::{Report, StrategyRow};
use crate::chart::{Bar, Figure, Group, Paint, Panel, Scene};

/// Bars of the measured, the predicted, what is computed and what is waited for.
const MEASURED: Paint = Paint::Series(0);
const PREDICTED: Paint = Paint::Pale(0);
const COMPUTE: Paint = Paint::Series(2);
const WAIT: Paint = Paint::Pale(1);

impl Report<'_> {
    /// Rates, latency, efficiency and each rank's time in one picture.
    pub(crate) fn picture(&self) -> Scene {
        let mut panels = vec![
            self.panel("One stream, latency", "ms between tokens, median (less is better)", &|f| {
                f.decode_ms.p50
            }),
            self.panel("One stream, rate", "tokens per second", &|f| f.decode_tps),
        ];
        let mut counts: Vec<u32> = Vec::new();
        for entry in self.strategies.iter().flat_map(|row| &row.predicted.aggregate) {
            if entry.streams > 1 && !counts.contains(&entry.streams) {
                counts.push(entry.streams);
            }
        }
        for &count in &counts {
            let unit = "tokens per second in all";
            panels.push(self.panel(&format!("{count} streams"), unit, &|f| f.tps_at(count)));
        }
        let most = counts.last().copied().unwrap_or(1);
        let title = if most == 1 {
            "Efficiency, one stream".to_owned()
        } else {
            format!("Efficiency, {most} streams")
        };
        let unit = "% of the used devices' rates, each alone";
        panels.push(self.panel(&title, unit, &|f| f.efficiency.map(|efficiency| efficiency * 100.0)));
        let longest = self.strategies.iter().filter_map(|row| row.predicted.prefill.last()).next();
        if let Some(prompt) = longest {
            let title = format!("Prompt of {} tokens", prompt.tokens);
            let ttft = |f: &Figures| f.prefill.last().and_then(|entry| entry.ttft_ms);
            panels.push(self.panel(&title, "ms until the first token (less is better)", &ttft));
        }
        panels.push(self.boards());
        let boards: Vec<&str> = self.devices.iter().map(|device| device.name.as_str()).collect();
        let rounds = format!(
            "medians of {} rounds, {} tokens decoded; lines from least to most",
            self.rounds, self.decode
        );
        let legend = [
            ("measured", MEASURED),
            ("predicted", PREDICTED),
            ("computing", COMPUTE),
            ("communicating and waiting", WAIT),
        ];
        let figure = Figure {
            title: format!("{} on {}", self.model, boards.join(", ")),
            subtitle: vec![self.grade(), rounds],
            legend: legend.map(|(label, paint)| (label.to_owned(), paint)).to_vec(),
            panels,
        };
        figure.scene()
    }

    fn panel(&self, title: &str, unit: &str, of: &dyn Fn(&Figures) -> Option<f64>) -> Panel {
        let group = |row: &StrategyRow<'_>| {
            let mut bars = Vec::new();
            if let Some(value) = of(&row.measured) {
                let range = of(&row.range.0).zip(of(&row.range.1)).filter(|_| self.rounds > 1);
                bars.push(Bar { range, ..Bar::plain(value, MEASURED) });
            }
            if let Some(value) = of(&row.predicted) {
                bars.push(Bar::plain(value, PREDICTED));
            }
            Group { label: row.strategy.name().to_owned(), bars, note: Some(note(row)) }
        };
        Panel {
            title: title.to_owned(),
            unit: unit.to_owned(),
            groups: self.strategies.iter().map(group).collect(),
            wide: false,
        }
    }

    fn boards(&self) -> Panel {
        let group = |row: &StrategyRow<'_>| {
            let bar = |rank: &super::report::RankRow| {
                let segments = vec![(rank.compute_ms?, COMPUTE), (rank.wait_ms?, WAIT)];
                Some(Bar { segments, range: None })
            };
            let bars = row.ranks.iter().filter_map(bar).collect();
            Group { label: row.strategy.name().to_owned(), bars, note: Some(note(row)) }
        };
        Panel {
            title: "Each board's time while one stream is decoded".to_owned(),
            unit: "ms a token; boards in the order of their ids".to_owned(),
            groups: self.strategies.iter().map(group).collect(),
            wide: true,
        }
    }
}

/// What stands where a strategy has no bars.
fn note(row: &StrategyRow<'_>) -> String {
    if row.feasible { "—" } else { "does not fit" }.to_owned()
}
