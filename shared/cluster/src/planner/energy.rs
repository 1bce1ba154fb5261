//! Plans that need little energy: of plans made for speed on fewer and fewer devices, the one that draws least.
//!
//! Nothing here is proven: no search has energy as its own objective.

use shoal_core::NodeId;
use shoal_core::plan::{Plan, Strategy};

use super::Options;
use super::heuristic;
use super::problem::{Family, Goal};
use super::strategies::{Attempt, Planner};
use crate::cost::model::Model;
use crate::cost::predict::{Pricing, mean_context, rates_of};
use crate::cost::{Cluster, Device, Links};

/// Numbers of devices that are tried at most, from one to all.
const SIZES: usize = 6;

impl Planner<'_> {
    /// The plan of this strategy that draws least, of those made for latency and for throughput on the devices that
    /// need least energy alone.
    pub(super) fn least_energy(&self, strategy: Strategy, use_all: bool) -> Attempt {
        let family = match strategy {
            Strategy::Single => Family::Single,
            Strategy::StaticLayer | Strategy::AdaptiveLayer => Family::Layers,
            Strategy::Head => Family::Heads,
            Strategy::Hybrid => Family::Mixed,
        };
        let n = self.cluster.devices.len();
        let mut order: Vec<(f64, &Device)> =
            self.cluster.devices.iter().map(|device| (self.alone(device.node), device)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.node.cmp(&b.1.node)));
        let mut out = Attempt { plan: None, bound: 0.0, proven: false, work: 0 };
        let mut least = f64::INFINITY;
        let mut sizes: Vec<usize> = (1..=SIZES).map(|part| (n * part).div_ceil(SIZES)).collect();
        sizes.dedup();
        if use_all || family == Family::Single {
            sizes = vec![n];
        }
        for size in sizes {
            let pinned = |device: &Device| self.pins.nodes().any(|node| node == device.node);
            let mut devices: Vec<Device> = order[..size].iter().map(|entry| entry.1.clone()).collect();
            devices.extend(order[size..].iter().filter(|entry| pinned(entry.1)).map(|entry| entry.1.clone()));
            devices.sort_by_key(|device| device.node);
            let cluster = Cluster { devices, links: self.cluster.links.clone() };
            let mut families = vec![family];
            if family == Family::Mixed && cluster.devices.len() < 3 {
                families = vec![Family::Layers, Family::Heads];
            }
            for (family, goal) in families.iter().flat_map(|&f| [(f, Goal::Latency), (f, Goal::Throughput)]) {
                let ask =
                    heuristic::Ask { cluster: &cluster, ..self.ask(family, strategy, use_all, goal, &[]) };
                let (found, work) = heuristic::find(&ask);
                out.work += work;
                let Some(found) = found else { continue };
                let joules = self.joules(&found.plan);
                if joules < least {
                    least = joules;
                    out.plan = Some(found.plan);
                }
            }
        }
        if family == Family::Single {
            // Each device by itself, since the fastest is not the thriftiest.
            for device in &self.cluster.devices {
                let cluster = self.only(device.clone());
                let ask = heuristic::Ask {
                    cluster: &cluster,
                    ..self.ask(family, strategy, false, Goal::Latency, &[])
                };
                let (found, work) = heuristic::find(&ask);
                out.work += work;
                let Some(found) = found.filter(|found| self.joules(&found.plan) < least) else { continue };
                least = self.joules(&found.plan);
                out.plan = Some(found.plan);
            }
        }
        out
    }

    fn joules(&self, plan: &Plan) -> f64 {
        let Ok(rates) = rates_of(plan, self.cluster) else { return f64::INFINITY };
        let model = Model::new(self.spec);
        let pricing = Pricing { model: &model, rates: &rates, links: &self.cluster.links };
        let context = mean_context(self.spec, self.workload);
        pricing.joules(plan, self.workload.streams.max(1), context).unwrap_or(f64::INFINITY)
    }

    /// A cluster of this device: of its links, it needs the one to the coordinator alone.
    fn only(&self, device: Device) -> Cluster {
        Cluster { devices: vec![device], links: Links::new(self.cluster.links.default) }
    }

    /// Energy of a token on this device as if it had memory for all of the model.
    fn alone(&self, node: NodeId) -> f64 {
        let Some(device) = self.cluster.device(node) else { return f64::INFINITY };
        let device = Device { usable: shoal_core::Bytes(u64::MAX >> 1), ..device.clone() };
        let cluster = self.only(device);
        let options = Options { pins: Vec::new(), ..self.options.clone() };
        let planner = Planner::new(self.spec, &cluster, self.workload, &options, Default::default());
        planner.static_layer().map_or(f64::INFINITY, |plan| planner.joules(&plan))
    }
}
