//! Prices of a step of so many rows: each device's phases for any share, and what messages take.

use shoal_core::plan::Span;

use super::Problem;
use super::weights::columns;
use crate::cost::link::cheapest;
use crate::cost::model::wire_row;

/// What a step of `rows` rows costs, by device and share. Seconds.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) rows: u32,
    /// `[kind of attention][device][Weights::at]`.
    pub(crate) attention: Vec<Vec<Vec<f64>>>,
    /// `[kind of feed-forward network][device][last block among them][blocks]`.
    pub(crate) feed_forward: Vec<Vec<[Vec<f64>; 2]>>,
    /// Distinct values of each kind of attention and of feed-forward network, rising.
    pub(crate) attention_values: Vec<Vec<f64>>,
    pub(crate) feed_forward_values: Vec<Vec<f64>>,
    /// `[from][to]`: a stage's hidden rows.
    pub(crate) hop: Vec<Vec<f64>>,
    /// `[device]`: a tile of the output head, without the overhead.
    pub(crate) tile: Vec<f64>,
    /// Bytes of the rows on their way to the next stage, and of a partial sum.
    pub(crate) hop_bytes: f64,
    pub(crate) sum_bytes: f64,
}

impl Step {
    pub(super) fn new(problem: &Problem<'_>, rows: u32) -> Self {
        let Problem { spec, model, weights, rates, .. } = problem;
        let b = f64::from(rows);
        let attention: Vec<Vec<Vec<f64>>> = weights
            .attentions
            .iter()
            .map(|&class| {
                let class = &model.classes[class];
                let of = |rates| {
                    weights.by_range(spec, |share| model.attention(class, rates, share, b, problem.context))
                };
                rates.iter().map(of).collect()
            })
            .collect();
        let feed_forward: Vec<Vec<[Vec<f64>; 2]>> = weights
            .feed_forwards
            .iter()
            .map(|&class| {
                let class = &model.classes[class];
                let table = |rates, last| {
                    let of = |n| model.feed_forward(class, rates, &columns(spec, n, last), b);
                    (0..=weights.blocks as u32).map(of).collect()
                };
                rates.iter().map(|rates| [table(rates, false), table(rates, true)]).collect()
            })
            .collect();
        let attention_values = attention.iter().map(|of| distinct(of.iter().flatten().copied())).collect();
        let feed_forward_values =
            feed_forward.iter().map(|of| distinct(of.iter().flatten().flatten().copied())).collect();
        let hop_bytes = b * wire_row(problem.wire.hop, model.d_model);
        let nodes = || problem.devices.iter().map(|device| device.node);
        let hop = nodes()
            .map(|from| nodes().map(|to| problem.cluster.links.get(from, to).time(hop_bytes)).collect());
        let one = Span::new(0, shoal_core::limits::VOCAB_TILE);
        Self {
            rows,
            attention,
            feed_forward,
            attention_values,
            feed_forward_values,
            hop: hop.collect(),
            tile: rates.iter().map(|rates| model.head(rates, one, b) - rates.overhead).collect(),
            hop_bytes,
            sum_bytes: b * wire_row(problem.wire.sum, model.d_model),
        }
    }

    /// The all-reduce of these devices, which rise.
    pub(crate) fn sum(&self, problem: &Problem<'_>, members: &[usize]) -> f64 {
        let nodes: Vec<_> = members.iter().map(|&device| problem.devices[device].node).collect();
        cheapest(&nodes, &problem.cluster.links, self.sum_bytes).1
    }
}

/// Rising, each once.
fn distinct(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut out: Vec<f64> = values.collect();
    out.sort_by(f64::total_cmp);
    out.dedup();
    out
}
