//! A cost that no plan can beat, whatever its kind and the devices' memory.

use shoal_core::NodeId;
use shoal_core::model::ModelSpec;
use shoal_core::plan::Span;

use super::problem::Goal;
use crate::cost::model::Model;
use crate::cost::predict::mean_context;
use crate::cost::rates::Rates;
use crate::cost::{Cluster, Device, Workload, lower_bound_ms};

/// Sums are taken in other orders than in a prediction: so much less, relatively, is still a bound.
const ROUNDING: f64 = 1e-9;

/// Seconds per token of one stream (latency) or over all streams (throughput) that no plan on these devices beats.
///
/// For throughput: with `s` stages a step has `⌈streams ÷ s⌉` rows, and all steps take at least as many times the
/// longest that a device is busy with one. That is at least the time in which all devices together do all products of a
/// step, each device as fast as at what it does best compared with some one device. The least over `s` is the bound.
pub(super) fn seconds(spec: &ModelSpec, cluster: &Cluster, workload: &Workload, goal: Goal) -> f64 {
    let one = lower_bound_ms(spec, cluster, workload) / 1e3;
    if goal == Goal::Latency || cluster.devices.is_empty() {
        return one;
    }
    let model = Model::new(spec);
    let mut devices: Vec<&Device> = cluster.devices.iter().collect();
    devices.sort_by_key(|device| device.node);
    let rates: Vec<Rates> = devices.into_iter().filter_map(Rates::of).collect();
    let streams = workload.streams.max(1);
    let stages = (rates.len() as u32).min(spec.n_layers).max(1);
    let mut least = f64::INFINITY;
    let mut before = 0;
    for stages in 1..=stages {
        let rows = streams.div_ceil(stages);
        if rows == before {
            continue;
        }
        before = rows;
        let steps = f64::from(streams.div_ceil(rows));
        let together = together(spec, &model, &rates, f64::from(rows), mean_context(spec, workload));
        least = least.min(steps * together / f64::from(streams));
    }
    // Nor does a step serve more streams than there are, or take less than one row alone.
    least.max(one / f64::from(streams)) * (1.0 - ROUNDING)
}

/// Seconds in which these devices could do all products of a step of `rows` rows together.
fn together(spec: &ModelSpec, model: &Model, rates: &[Rates], rows: f64, context: f64) -> f64 {
    let whole = Model::whole_share(spec, NodeId::default());
    // Seconds of each kind of work on each device.
    let work = |rates: &Rates| -> Vec<f64> {
        let mut out = vec![
            model.head(rates, Span::new(0, spec.vocab), rows) - rates.overhead,
            model.class_of.len() as f64 * model.attention_cache(rates, &whole, rows, context),
        ];
        for (at, class) in model.classes.iter().enumerate() {
            let count = model.class_of.iter().filter(|&&of| of == at).count() as f64;
            for times in model.products(class, rates, rows) {
                out.push(count * times);
            }
        }
        out
    };
    let all: Vec<Vec<f64>> = rates.iter().map(work).collect();
    let Some(reference) = all.first() else { return 0.0 };
    let best = |own: &Vec<f64>| {
        let ratios = own.iter().zip(reference).filter(|(own, _)| **own > 0.0).map(|(own, other)| other / own);
        ratios.fold(0.0, f64::max)
    };
    let sum: f64 = reference.iter().sum();
    sum / all.iter().map(best).sum::<f64>()
}
