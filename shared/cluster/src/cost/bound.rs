//! A decode time that no plan can beat.

use shoal_core::NodeId;
use shoal_core::frame::WireType;
use shoal_core::model::ModelSpec;
use shoal_core::plan::Span;

use super::model::{Model, wire_row};
use super::predict::{control, mean_context};
use super::rates::Rates;
use super::{Cluster, Device, Link, Workload};

/// Sums are taken in other orders than in a prediction: so much less, relatively, is still a bound.
const ROUNDING: f64 = 1e-9;

/// A time no plan on these devices can beat for one token of one stream, whatever their memory.
///
/// A layer on `g` ranks takes at least what the `g` fastest take together of each phase, when each has the
/// part that suits it, the least overhead, and from two ranks on two all-reduces over the best link there
/// is, with the least bytes; the best `g` counts for each layer. The output head is on one device, or in a
/// group that is paid for, or on all. Hops are free.
pub fn lower_bound_ms(spec: &ModelSpec, cluster: &Cluster, workload: &Workload) -> f64 {
    let model = Model::new(spec);
    // Sums are taken in the order of ids, whatever the order given.
    let mut devices: Vec<&Device> = cluster.devices.iter().collect();
    devices.sort_by_key(|device| device.node);
    let rates: Vec<Rates> = devices.into_iter().filter_map(Rates::of).collect();
    if rates.is_empty() {
        return 0.0;
    }
    let context = mean_context(spec, workload);
    let whole = Model::whole_share(spec, NodeId::default());
    let nodes: Vec<NodeId> = cluster.devices.iter().map(|device| device.node).collect();
    let link = cluster.links.best(&nodes);
    // The smallest format on the wire.
    let row = wire_row(WireType::Q8, model.d_model);

    let head = Phase::new(&rates, |rates| model.head(rates, Span::new(0, spec.vocab), 1.0));
    let mut total = control(&cluster.links, 1, 1);
    for (at, class) in model.classes.iter().enumerate() {
        let count = model.class_of.iter().filter(|&&of| of == at).count();
        let attention = Phase::new(&rates, |rates| model.attention(class, rates, &whole, 1.0, context));
        let feed_forward = Phase::new(&rates, |rates| model.feed_forward(class, rates, &whole, 1.0));
        let alone = rates.iter().map(|rates| {
            model.attention(class, rates, &whole, 1.0, context)
                + model.feed_forward(class, rates, &whole, 1.0)
        });
        let alone = alone.fold(f64::INFINITY, f64::min);
        let groups: Vec<f64> = (2..=rates.len())
            .map(|ranks| {
                attention.among(ranks) + feed_forward.among(ranks) + 2.0 * least_sum(&link, ranks, row)
            })
            .collect();
        let layer = groups.iter().copied().fold(alone, f64::min);
        let last = model.class_of.last() == Some(&at);
        total += layer * (count - usize::from(last)) as f64;
        if last {
            // The last group's own rows of the head need no message, and it may have most of them.
            let apart = layer + head.alone.min(head.among(rates.len()));
            let within = groups.iter().zip(2..).map(|(group, ranks)| group + head.among(ranks));
            total += within.fold(apart, f64::min);
        }
    }
    1e3 * total * (1.0 - ROUNDING)
}

/// What one phase takes at least on so many ranks.
struct Phase {
    /// For `n` of the fastest devices, how many of this phase they do in a second together, overhead aside.
    together: Vec<f64>,
    overhead: f64,
    /// On the fastest device alone, with its overhead.
    alone: f64,
}

impl Phase {
    fn new(rates: &[Rates], time: impl Fn(&Rates) -> f64) -> Self {
        let times: Vec<f64> = rates.iter().map(&time).collect();
        let mut speeds: Vec<f64> = times.iter().zip(rates).map(|(t, r)| 1.0 / (t - r.overhead)).collect();
        speeds.sort_by(|a, b| b.total_cmp(a));
        let mut sum = 0.0;
        let together = speeds.iter().map(|speed| {
            sum += speed;
            sum
        });
        Self {
            together: together.collect(),
            overhead: rates.iter().map(|rates| rates.overhead).fold(f64::INFINITY, f64::min),
            alone: times.into_iter().fold(f64::INFINITY, f64::min),
        }
    }

    fn among(&self, ranks: usize) -> f64 {
        1.0 / self.together[ranks - 1] + self.overhead
    }
}

/// No all-reduce of `bytes` among so many is faster over links no better than this one.
fn least_sum(link: &Link, ranks: usize, bytes: f64) -> f64 {
    let exchange = |bytes: f64| link.time(bytes) + (ranks - 2) as f64 * link.occupied(bytes);
    exchange(bytes).min(2.0 * exchange(bytes / ranks as f64))
}
