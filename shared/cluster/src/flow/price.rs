//! What a step's pieces take on each node of a plan, by the cost model's own functions.

use shoal_core::plan::{Share, Span};
use shoal_core::{NodeId, Plan};

use crate::cost::model::Model;
use crate::cost::rates::Rates;

/// One node's work, to be priced for any step.
#[derive(Debug)]
pub(super) struct NodeWork {
    rates: Rates,
    share: Option<Share>,
    layers: Span,
    head: Span,
}

impl NodeWork {
    pub(super) fn new(plan: &Plan, node: NodeId, rates: Rates) -> Self {
        Self {
            rates,
            share: plan.share(node).cloned(),
            layers: plan.place(node).map_or(Span::default(), |place| plan.stages[place.stage].layers),
            head: plan.head_share(node).map_or(Span::default(), |(_, rows)| rows),
        }
    }

    /// Layers of the node's stage.
    pub(super) fn layers(&self) -> u32 {
        self.layers.len()
    }

    /// What each phase takes in a step with a row at each of these positions: by class of layer, attention and
    /// feed-forward network, seconds.
    pub(super) fn phases(&self, model: &Model, positions: &[u32]) -> Vec<[f64; 2]> {
        let Some(share) = &self.share else { return Vec::new() };
        let b = positions.len() as f64;
        let contexts = positions.iter().map(|&position| f64::from(position) + 1.0);
        let cache: f64 =
            contexts.map(|context| model.attention_cache(&self.rates, share, 1.0, context)).sum();
        let class = |class| {
            let attention = if share.q_heads.is_empty() {
                0.0
            } else {
                model.attention_weights(class, &self.rates, share, b) + cache + self.rates.overhead
            };
            [attention, model.feed_forward(class, &self.rates, share, b)]
        };
        model.classes.iter().map(class).collect()
    }

    /// The class of the node's `layer`-th layer.
    pub(super) fn class(&self, model: &Model, layer: u32) -> usize {
        model.class_of[(self.layers.first + layer) as usize]
    }

    /// The node's part of the head, for so many rows.
    pub(super) fn head(&self, model: &Model, rows: usize) -> f64 {
        if rows > 0 { model.head(&self.rates, self.head, rows as f64) } else { 0.0 }
    }
}
