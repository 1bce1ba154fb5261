//! The report as CSV: one figure a line, so that any tool can pivot it.

use super::figures::Figures;
use super::report::Report;

const HEADER: &str = "strategy,figure,at,unit,measured,spread,predicted,error,reason";

impl Report<'_> {
    /// The figures as CSV with a header line.
    pub(crate) fn csv(&self) -> String {
        let mut out = format!("{HEADER}\n");
        for row in &self.strategies {
            let name = row.strategy.name();
            let all = [&row.measured, &row.spread, &row.predicted, &row.error].map(lines);
            if all[0].iter().all(|line| line.value.is_none()) {
                out.push_str(&format!(
                    "{name},,,,,,,,{}\n",
                    quoted(row.reason.as_deref().unwrap_or_default())
                ));
                continue;
            }
            for line in &all[0] {
                let same = |other: &&Line| (other.figure, other.at) == (line.figure, line.at);
                let value = |of: &[Line]| number(of.iter().find(same).and_then(|line| line.value));
                let fields = [
                    name.to_owned(),
                    line.figure.to_owned(),
                    line.at.map_or_else(String::new, |at| at.to_string()),
                    line.unit.to_owned(),
                    value(&all[0]),
                    value(&all[1]),
                    value(&all[2]),
                    value(&all[3]),
                    quoted(row.reason.as_deref().unwrap_or_default()),
                ];
                out.push_str(&fields.join(","));
                out.push('\n');
            }
        }
        out
    }
}

struct Line {
    figure: &'static str,
    /// Prompt tokens or streams.
    at: Option<u32>,
    unit: &'static str,
    value: Option<f64>,
}

fn lines(figures: &Figures) -> Vec<Line> {
    let line = |figure, unit, value| Line { figure, at: None, unit, value };
    let mut out = vec![
        line("decode", "tokens/s", figures.decode_tps),
        line("decode_p50", "ms", figures.decode_ms.p50),
        line("decode_p95", "ms", figures.decode_ms.p95),
    ];
    for entry in &figures.prefill {
        let at = Some(entry.tokens);
        out.push(Line { figure: "prefill", at, unit: "tokens/s", value: entry.tps });
        out.push(Line { figure: "ttft", at, unit: "ms", value: entry.ttft_ms });
    }
    for entry in &figures.aggregate {
        let at = Some(entry.streams);
        out.push(Line { figure: "aggregate", at, unit: "tokens/s", value: entry.tps });
        out.push(Line { figure: "efficiency", at, unit: "", value: entry.efficiency });
    }
    let traffic = &figures.bytes_per_token;
    out.push(line("hop_bytes", "bytes/token", traffic.hops));
    out.push(line("all_reduce_bytes", "bytes/token", traffic.all_reduce));
    out.push(line("head_bytes", "bytes/token", traffic.head));
    out.push(line("control_bytes", "bytes/token", traffic.control));
    out
}

/// Enough digits for any figure here; nothing for an unknown one.
fn number(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| format!("{value:.6}"))
}

/// A text as RFC 4180 has it: in quotes where it must be, quotes within doubled.
fn quoted(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_where_they_must_be() {
        assert_eq!(quoted("plain text"), "plain text");
        assert_eq!(quoted("a, b"), "\"a, b\"");
        assert_eq!(quoted("say \"no\"\nnow"), "\"say \"\"no\"\"\nnow\"");
        assert_eq!(number(Some(0.5)), "0.500000");
        assert_eq!(number(None), "");
    }

    #[test]
    fn every_line_has_the_fields_of_the_header() {
        let figures = Figures::default();
        let columns = HEADER.split(',').count();
        assert_eq!(columns, 9);
        assert_eq!(lines(&figures).len(), 7);
    }
}
