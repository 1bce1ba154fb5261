//! Time of a choice between strategies: the exact search for few devices, the heuristic for many.
//!
//! Targets on one core: 10 devices and 80 layers under a second, 100 devices under two, 500 under twenty.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use shoal_cluster::cost::{Cluster, Link};
use shoal_cluster::planner::{Options, choose};
use shoal_core::{Bytes, ModelSpec, QuantType};

/// The shape of a model of seventy billion weights.
fn largest() -> ModelSpec {
    common::llama(80, 8192, (64, 8), 28672, 128_256, QuantType::Q4_0)
}

/// Boards of eight kinds in islands of sixteen on better links, together with about twice the model's memory where
/// they are few.
fn boards(n: usize, spec: &ModelSpec) -> Cluster {
    let speeds: Vec<f64> = (0..n).map(|index| 6.0 + 5.0 * ((index * 5) % 8) as f64).collect();
    let each = Bytes((spec.total_bytes().0 * 2 / n as u64).max(3 << 30));
    let mut cluster = common::cluster(&speeds, each);
    for (index, device) in cluster.devices.iter_mut().enumerate() {
        device.usable = Bytes(each.0 * (3 + (index as u64 * 3) % 5) / 5);
    }
    let better = Link::new(80e-6, 280e6);
    for a in 0..n {
        for b in (0..n).filter(|&b| b != a && b / 16 == a / 16 && a / 16 % 2 == 0) {
            cluster.links.set(common::node(a), common::node(b), better);
        }
    }
    cluster
}

fn choices(c: &mut Criterion) {
    let spec = largest();
    for (n, samples) in [(5, 10), (10, 10), (100, 10), (500, 10)] {
        let cluster = boards(n, &spec);
        let mut group = c.benchmark_group(format!("{n} devices"));
        group
            .sample_size(samples)
            .warm_up_time(Duration::from_millis(1))
            .measurement_time(Duration::from_secs(1));
        for (name, streams) in [("one stream", 1), ("eight streams", 8)] {
            let load = common::workload(streams);
            group.bench_function(name, |b| {
                b.iter(|| choose(&spec, &cluster, &load, &Options::default()).is_ok());
            });
        }
        group.finish();
    }
}

criterion_group!(benches, choices);
criterion_main!(benches);
