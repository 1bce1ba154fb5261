//! Pins: whether what was asked of particular nodes can be true together.
//!
//! [`super::choose`] checks them before any search, so that a contradiction is named instead of found as "no plan".

use shoal_core::NodeId;
use shoal_core::model::ModelSpec;
use shoal_core::plan::{Plan, Span};

use super::{Options, Pin};
use crate::cost::Device;

/// Pins of one planning that do not contradict each other, by node.
#[derive(Debug, Clone, Default)]
pub(super) struct Pins {
    /// Layers by node.
    pub(super) layers: Vec<(NodeId, Span)>,
    /// Query heads by node.
    pub(super) heads: Vec<(NodeId, Span)>,
}

impl Pins {
    /// The pins of these options, for these usable devices.
    ///
    /// # Errors
    /// The pin that cannot be kept, or the two that contradict each other, for a person.
    pub(super) fn of(spec: &ModelSpec, devices: &[Device], options: &Options) -> Result<Self, String> {
        let mut pins = Self::default();
        for pin in &options.pins {
            let node = pin.node();
            let say = |why: &str| Err(format!("{}: {why}", name(pin, devices)));
            if options.exclude.contains(&node) {
                return say("the node is excluded as well");
            }
            if !devices.iter().any(|device| device.node == node) {
                return say("the node is not among those that can take part");
            }
            let (span, total, what, list) = match *pin {
                Pin::Layers { span, .. } => (span, spec.n_layers, "layers", &mut pins.layers),
                Pin::QHeads { span, .. } => (span, spec.n_heads, "query heads", &mut pins.heads),
            };
            if span.end > total {
                return say(&format!("the model has {total} {what}"));
            }
            if span.is_empty() && matches!(pin, Pin::Layers { .. }) {
                return say("the range is empty; to leave a node out, exclude it");
            }
            if !list.contains(&(node, span)) {
                list.push((node, span));
            }
        }
        pins.layers.sort_unstable();
        pins.heads.sort_unstable();
        match pins.clash() {
            Some((a, b)) => {
                Err(format!("{} and {} contradict each other", name(&a, devices), name(&b, devices)))
            }
            None => Ok(pins),
        }
    }

    /// Two that cannot both be kept.
    fn clash(&self) -> Option<(Pin, Pin)> {
        let layers = |&(node, span): &(NodeId, Span)| Pin::Layers { node, span };
        let heads = |&(node, span): &(NodeId, Span)| Pin::QHeads { node, span };
        let overlap = |a: Span, b: Span| a.first.max(b.first) < a.end.min(b.end);
        for (at, a) in self.layers.iter().enumerate() {
            // Nodes of one stage run the same layers, those of two stages none in common.
            let clash = |b: &&(NodeId, Span)| a.1 != b.1 && (a.0 == b.0 || overlap(a.1, b.1));
            if let Some(b) = self.layers[at + 1..].iter().find(clash) {
                return Some((layers(a), layers(b)));
            }
        }
        for (at, a) in self.heads.iter().enumerate() {
            let together = |b: NodeId| self.span(a.0).is_some_and(|span| self.span(b) == Some(span));
            let clash = |b: &&(NodeId, Span)| {
                if a.0 == b.0 { a.1 != b.1 } else { together(b.0) && overlap(a.1, b.1) }
            };
            if let Some(b) = self.heads[at + 1..].iter().find(clash) {
                return Some((heads(a), heads(b)));
            }
        }
        None
    }

    /// Layers the node must run.
    pub(super) fn span(&self, node: NodeId) -> Option<Span> {
        self.layers.iter().find(|pin| pin.0 == node).map(|pin| pin.1)
    }

    /// Query heads the node must have.
    pub(super) fn heads(&self, node: NodeId) -> Option<Span> {
        self.heads.iter().find(|pin| pin.0 == node).map(|pin| pin.1)
    }

    /// Nodes that are pinned, some perhaps twice.
    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.layers.iter().chain(&self.heads).map(|pin| pin.0)
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.layers.is_empty() && self.heads.is_empty()
    }

    /// Whether the plan keeps all of them.
    pub(super) fn kept(&self, plan: &Plan) -> bool {
        self.layers.iter().all(|&(node, span)| {
            plan.place(node).is_some_and(|place| plan.stages[place.stage].layers == span)
        }) && self
            .heads
            .iter()
            .all(|&(node, span)| plan.share(node).is_some_and(|share| share.q_heads == span))
    }
}

/// As people count: both ends included.
fn counted(span: Span) -> String {
    if span.len() < 2 { span.first.to_string() } else { format!("{} to {}", span.first, span.end - 1) }
}

fn name(pin: &Pin, devices: &[Device]) -> String {
    let node = pin.node();
    let known = devices.iter().find(|device| device.node == node);
    let who = known.map_or_else(|| node.short(), |device| device.name.clone());
    match pin {
        Pin::Layers { span, .. } => format!("the pin of layers {} on {who}", counted(*span)),
        Pin::QHeads { span, .. } => format!("the pin of query heads {} on {who}", counted(*span)),
    }
}
