//! Speed of the products on one thread: bytes of weights per second for one activation row (weights out of cache), and
//! multiply-accumulates per second for 64 rows.
//!
//! Run with `cargo bench -p shoal-engine --bench kernels`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use shoal_core::QuantType;
use shoal_engine::kernels::{Matrix, matmul};
use shoal_engine::pool::Pool;
use shoal_engine::quant::Activations;

const COLS: usize = 2048;
/// More than any cache here holds: decode streams weights from memory.
const STREAMED_BYTES: usize = 96 << 20;
const BATCH: usize = 64;

fn products(c: &mut Criterion) {
    let pool = Pool::new(1).unwrap();
    let mut activations = Activations::new();
    for kind in QuantType::ALL {
        let row_bytes = kind.row_bytes(COLS as u64).unwrap() as usize;
        let rows = STREAMED_BYTES / row_bytes;
        // Small bytes: as f16 or f32 they are small numbers, never NaN or subnormal products.
        let bytes: Vec<u8> = (0..rows * row_bytes).map(|i| (i * 37 % 60) as u8).collect();
        let x: Vec<f32> = (0..BATCH * COLS).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect();

        let mut group = c.benchmark_group("decode");
        group.sample_size(10).throughput(Throughput::Bytes(bytes.len() as u64));
        activations.load(&pool, &x[..COLS], 1, COLS);
        let mut y = vec![0.0; rows];
        let w = Matrix::new(kind, rows, COLS, &bytes);
        group.bench_function(kind.name(), |b| b.iter(|| matmul(&pool, &w, black_box(&activations), &mut y)));
        group.finish();

        let mut group = c.benchmark_group("prefill");
        let rows = 512;
        let w = Matrix::new(kind, rows, COLS, &bytes[..rows * row_bytes]);
        group.sample_size(10).throughput(Throughput::Elements((rows * COLS * BATCH) as u64));
        activations.load(&pool, &x, BATCH, COLS);
        let mut y = vec![0.0; rows * BATCH];
        group.bench_function(kind.name(), |b| b.iter(|| matmul(&pool, &w, black_box(&activations), &mut y)));
        group.finish();
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
