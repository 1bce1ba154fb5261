//! Time of a choice between strategies.

#[path = "../tests/common/mod.rs"]
mod common;

use criterion::{Criterion, criterion_group, criterion_main};
use shoal_cluster::planner::{Options, choose};
use shoal_core::Bytes;

fn choices(c: &mut Criterion) {
    let spec = common::large();
    for n in [1_u32, 3, 5, 10, 64] {
        let speeds: Vec<f64> = (0..n).map(|i| 2.0 + f64::from(i % 7)).collect();
        let cluster = common::cluster(&speeds, Bytes(8 << 30));
        let load = common::workload(4);
        c.bench_function(&format!("choose among {n} devices"), |b| {
            b.iter(|| choose(&spec, &cluster, &load, &Options::default()).is_ok());
        });
    }
}

criterion_group!(benches, choices);
criterion_main!(benches);
