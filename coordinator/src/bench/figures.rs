//! The figures of one plan, and what is made of several of them: medians, spreads, errors.

use std::collections::BTreeMap;

use serde::Serialize;

/// What is measured of a plan, and predicted of it, and how far apart these are: always in the same shape. Times in
/// milliseconds, rates in tokens per second; a figure that is not known is null.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub(crate) struct Figures {
    /// One stream, from its first token to its last.
    pub(crate) decode_tps: Option<f64>,
    pub(crate) decode_ms: Percentiles,
    pub(crate) prefill: Vec<PrefillFigure>,
    pub(crate) aggregate: Vec<AggregateFigure>,
    /// Rate at the most streams ÷ sum of the rates of the used devices, each running alone at as many streams.
    pub(crate) efficiency: Option<f64>,
    pub(crate) bytes_per_token: TrafficFigure,
}

/// Times between two tokens of one stream.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: Option<f64>,
    pub(crate) p95: Option<f64>,
}

/// A prompt by itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct PrefillFigure {
    pub(crate) tokens: u32,
    pub(crate) tps: Option<f64>,
    pub(crate) ttft_ms: Option<f64>,
}

/// Several streams at once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct AggregateFigure {
    pub(crate) streams: u32,
    pub(crate) tps: Option<f64>,
    pub(crate) efficiency: Option<f64>,
}

/// Bytes sent over all links for one decoded token.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub(crate) struct TrafficFigure {
    pub(crate) hops: Option<f64>,
    pub(crate) all_reduce: Option<f64>,
    pub(crate) head: Option<f64>,
    pub(crate) control: Option<f64>,
}

impl Figures {
    /// Rate at so many streams.
    pub(crate) fn tps_at(&self, streams: u32) -> Option<f64> {
        self.aggregate.iter().find(|entry| entry.streams == streams)?.tps
    }

    /// These figures with another value in each place: what `value` makes of those of `others` in the same place, in
    /// order; none where one of them lacks it.
    fn combine(&self, others: &[&Self], value: impl Fn(&[f64]) -> Option<f64>) -> Self {
        let all: Vec<BTreeMap<Place, f64>> = others.iter().map(|figures| figures.leaves()).collect();
        let mut out = self.clone();
        out.each(&mut |place, leaf| {
            let values: Option<Vec<f64>> = all.iter().map(|leaves| leaves.get(&place).copied()).collect();
            *leaf = values.filter(|values| !values.is_empty()).and_then(|values| value(&values));
        });
        out
    }

    /// Medians of rounds, which all have the shape of the first.
    pub(crate) fn median(rounds: &[&Self]) -> Self {
        rounds.first().map_or_else(Self::default, |first| first.combine(rounds, median))
    }

    /// How far rounds lay apart: (largest − smallest) ÷ median.
    pub(crate) fn spread(rounds: &[&Self]) -> Self {
        rounds.first().map_or_else(Self::default, |first| first.combine(rounds, spread))
    }

    /// The least of rounds in each place.
    pub(crate) fn least(rounds: &[&Self]) -> Self {
        let least = |values: &[f64]| values.iter().copied().reduce(f64::min);
        rounds.first().map_or_else(Self::default, |first| first.combine(rounds, least))
    }

    /// The most of rounds in each place.
    pub(crate) fn most(rounds: &[&Self]) -> Self {
        let most = |values: &[f64]| values.iter().copied().reduce(f64::max);
        rounds.first().map_or_else(Self::default, |first| first.combine(rounds, most))
    }

    /// Relative errors of a prediction: predicted ÷ measured − 1.
    pub(crate) fn error(measured: &Self, predicted: &Self) -> Self {
        measured.combine(&[measured, predicted], |both| match *both {
            [measured, predicted] => relative(measured, predicted),
            _ => None,
        })
    }

    fn leaves(&self) -> BTreeMap<Place, f64> {
        let mut out = BTreeMap::new();
        self.clone().each(&mut |place, leaf| out.extend(leaf.map(|value| (place, value))));
        out
    }

    fn each(&mut self, f: &mut impl FnMut(Place, &mut Option<f64>)) {
        f(("decode", 0), &mut self.decode_tps);
        f(("p50", 0), &mut self.decode_ms.p50);
        f(("p95", 0), &mut self.decode_ms.p95);
        for entry in &mut self.prefill {
            f(("prefill", entry.tokens), &mut entry.tps);
            f(("ttft", entry.tokens), &mut entry.ttft_ms);
        }
        for entry in &mut self.aggregate {
            f(("aggregate", entry.streams), &mut entry.tps);
            f(("efficiency of", entry.streams), &mut entry.efficiency);
        }
        f(("efficiency", 0), &mut self.efficiency);
        let TrafficFigure { hops, all_reduce, head, control } = &mut self.bytes_per_token;
        for (name, leaf) in [("hops", hops), ("sums", all_reduce), ("head", head), ("control", control)] {
            f((name, 0), leaf);
        }
    }
}

/// Which figure: its name, and the prompt's tokens or the streams where there are several of it.
type Place = (&'static str, u32);

/// The middle value, or the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// (largest − smallest) ÷ median; none for values whose median is zero.
pub(crate) fn spread(values: &[f64]) -> Option<f64> {
    let middle = median(values).filter(|middle| *middle != 0.0)?;
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Some((most - least) / middle)
}

/// predicted ÷ measured − 1. Two zeros agree; nothing can be said of a prediction of something beside a zero.
pub(crate) fn relative(measured: f64, predicted: f64) -> Option<f64> {
    if measured == 0.0 {
        return (predicted == 0.0).then_some(0.0);
    }
    Some(predicted / measured - 1.0)
}

/// The value below which `percent` of the sorted values lie (nearest rank).
pub(crate) fn percentile(values: &[f64], percent: usize) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len() * percent).div_ceil(100).checked_sub(1)?;
    sorted.get(index).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(tps: f64, hops: Option<f64>) -> Figures {
        Figures {
            decode_tps: Some(tps),
            prefill: vec![PrefillFigure { tokens: 8, tps: Some(2.0 * tps), ttft_ms: None }],
            aggregate: vec![AggregateFigure { streams: 4, tps: Some(3.0 * tps), efficiency: None }],
            bytes_per_token: TrafficFigure { hops, ..TrafficFigure::default() },
            ..Figures::default()
        }
    }

    #[test]
    fn medians_are_of_the_sorted_values() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(spread(&[2.0, 1.0, 4.0]), Some(1.5));
        assert_eq!(spread(&[0.0, 0.0]), None);
        let gaps: Vec<f64> = (1..=20).rev().map(f64::from).collect();
        assert_eq!((percentile(&gaps, 50), percentile(&gaps, 95)), (Some(10.0), Some(19.0)));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn rounds_become_medians_place_by_place() {
        let rounds = [figures(1.0, Some(0.0)), figures(3.0, None), figures(2.0, Some(0.0))];
        let rounds: Vec<&Figures> = rounds.iter().collect();
        let middle = Figures::median(&rounds);
        assert_eq!(middle.decode_tps, Some(2.0));
        assert_eq!(middle.prefill[0], PrefillFigure { tokens: 8, tps: Some(4.0), ttft_ms: None });
        assert_eq!(middle.tps_at(4), Some(6.0));
        assert_eq!(middle.bytes_per_token.hops, None, "a round lacks it");
        assert_eq!(Figures::spread(&rounds).decode_tps, Some(1.0));
        let ends = (Figures::least(&rounds).decode_tps, Figures::most(&rounds).decode_tps);
        assert_eq!(ends, (Some(1.0), Some(3.0)));
        assert_eq!(Figures::median(&[]), Figures::default());
    }

    #[test]
    fn errors_are_signed_and_relative_to_what_was_measured() {
        let error = Figures::error(&figures(2.0, Some(0.0)), &figures(3.0, Some(0.0)));
        assert_eq!(error.decode_tps, Some(0.5));
        assert_eq!(error.aggregate[0].tps, Some(0.5));
        assert_eq!(error.bytes_per_token.hops, Some(0.0));
        assert_eq!(error.decode_ms.p50, None);
        assert_eq!(relative(0.0, 1.0), None);
        // A prediction of more than could be measured.
        let mut more = figures(3.0, Some(0.0));
        more.prefill.insert(0, PrefillFigure { tokens: 4, tps: Some(77.0), ttft_ms: None });
        more.aggregate.insert(0, AggregateFigure { streams: 1, tps: Some(77.0), efficiency: None });
        assert_eq!(Figures::error(&figures(2.0, Some(0.0)), &more), error);
        assert_eq!(relative(4.0, 3.0), Some(-0.25));
    }
}
