//! The kernel invariant (a row's result depends on nothing but its own row of weights and of activations), and that the
//! results are right.

mod bits;

use shoal_core::QuantType;
use shoal_engine::kernels::{Matrix, Product, Variant, matmul, matmuls_on};
use shoal_engine::pool::Pool;
use shoal_engine::quant::{Activations, dequantize_row};

/// Numbers in -1 to 1, the same each time.
fn noise(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Arbitrary blocks: every bit pattern of integers and block scales, with f16 scales that are small numbers.
fn weights(kind: QuantType, rows: usize, cols: usize) -> Vec<u8> {
    let len = rows * kind.row_bytes(cols as u64).unwrap() as usize;
    if kind.block_len() == 1 {
        let values = noise(rows * cols, 3);
        let bytes = values.iter().flat_map(|v| match kind {
            QuantType::F32 => v.to_le_bytes().to_vec(),
            QuantType::F16 => half::f16::from_f32(*v).to_le_bytes().to_vec(),
            _ => half::bf16::from_f32(*v).to_le_bytes().to_vec(),
        });
        return bytes.collect();
    }
    let mut bytes: Vec<u8> = noise(len, 9).iter().map(|v| (v * 1e4) as i32 as u8).collect();
    let scales: &[usize] = match kind {
        QuantType::Q4_1 | QuantType::Q5_1 | QuantType::Q4_K | QuantType::Q5_K => &[0, 2],
        QuantType::Q2_K => &[80, 82],
        QuantType::Q3_K => &[108],
        QuantType::Q6_K => &[208],
        _ => &[0],
    };
    for (i, block) in bytes.chunks_mut(kind.block_bytes() as usize).enumerate() {
        for at in scales {
            let scale = half::f16::from_f32(0.001 * (i % 7 + at % 3) as f32 - 0.002);
            block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    bytes
}

fn product(variant: Variant, pool: &Pool, w: Matrix<'_>, x: &[f32]) -> Vec<u32> {
    let rows = x.len() / w.cols();
    let mut activations = Activations::new();
    activations.load(pool, x, rows, w.cols());
    let mut y = vec![f32::NAN; rows * w.rows()];
    matmuls_on(variant, pool, &activations, &[Product::new(w, &mut y)]);
    y.iter().map(|y| y.to_bits()).collect()
}

fn shapes(kind: QuantType) -> &'static [(usize, usize)] {
    match kind.block_len() {
        256 => &[(13, 256), (7, 1280)],
        32 => &[(13, 256), (9, 96), (5, 1312)],
        _ => &[(13, 256), (9, 100), (5, 1301)],
    }
}

#[test]
fn variants_batches_threads_and_places_change_no_bit() {
    let pools = [1, 2, 3, 5].map(|threads| Pool::new(threads).unwrap());
    for kind in QuantType::ALL {
        for &(n, k) in shapes(kind) {
            let bytes = weights(kind, n, k);
            let w = Matrix::new(kind, n, k, &bytes);
            let x = noise(512 * k, 11);
            let alone: Vec<u32> =
                x.chunks(k).flat_map(|x| product(Variant::Portable, &pools[0], w, x)).collect();
            assert!(alone.iter().all(|&bits| f32::from_bits(bits).is_finite()));
            for &variant in Variant::ALL.iter().filter(|variant| variant.is_available()) {
                for b in [1, 2, 3, 4, 5, 6, 7, 8, 9, 64, 512] {
                    for pool in &pools {
                        let first = 512 - b;
                        let got = product(variant, pool, w, &x[first * k..]);
                        assert!(
                            got == alone[first * n..],
                            "{kind} {n} x {k}, {b} rows, {variant:?}, {pool:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn results_are_those_of_the_decoded_numbers() {
    let pool = Pool::new(2).unwrap();
    for kind in QuantType::ALL {
        for &(n, k) in shapes(kind) {
            let bytes = weights(kind, n, k);
            let w = Matrix::new(kind, n, k, &bytes);
            let x = noise(3 * k, 21);
            let got = product(Variant::best(), &pool, w, &x);
            let mut row = vec![0.0; k];
            for i in 0..n {
                dequantize_row(kind, w.row(i), &mut row);
                for r in 0..3 {
                    let terms = row.iter().zip(&x[r * k..]).map(|(&w, &x)| (f64::from(w) * f64::from(x), w));
                    let exact: f64 = terms.clone().map(|(product, _)| product).sum();
                    // Rounding an activation loses at most half a step of 1/127: errors of random signs.
                    let norm = terms.map(|(_, w)| f64::from(w).powi(2)).sum::<f64>().sqrt();
                    let tolerance = if kind.block_len() == 1 { 1e-6 } else { 0.015 } * norm;
                    let got = f64::from(f32::from_bits(got[r * n + i]));
                    assert!((got - exact).abs() <= tolerance, "{kind} {i} {r}: {got} {exact} {tolerance}");
                }
            }
        }
    }
}

#[test]
fn extreme_integers_do_not_saturate() {
    let pool = Pool::new(1).unwrap();
    let one = half::f16::from_f32(1.0).to_le_bytes();
    for q in [-128i8, -127, 127] {
        let block: Vec<u8> = one.iter().copied().chain([q as u8; 32]).collect();
        for x in [1.0f32, -1.0] {
            for &variant in Variant::ALL.iter().filter(|variant| variant.is_available()) {
                let got = product(variant, &pool, Matrix::new(QuantType::Q8_0, 1, 32, &block), &[x; 32]);
                let exact = f32::from(q) * x * 32.0;
                assert!((f32::from_bits(got[0]) - exact).abs() < 1e-3, "{q} {x} {variant:?}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_reaches_the_output() {
    let pool = Pool::new(1).unwrap();
    for kind in QuantType::ALL {
        let bytes = weights(kind, 2, 256);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = noise(512, 1);
            x[300] = bad;
            let got = product(Variant::best(), &pool, Matrix::new(kind, 2, 256, &bytes), &x);
            let finite = got.iter().map(|&bits| f32::from_bits(bits).is_finite());
            assert!(finite.eq([true, true, false, false]), "{kind} {bad}");
        }
    }
}

#[test]
fn zero_activations_add_nothing() {
    // A column cut that holds more blocks than it uses gives them zeros.
    let pool = Pool::new(1).unwrap();
    for kind in QuantType::ALL {
        let bytes = weights(kind, 3, 512);
        let x: Vec<f32> = noise(256, 5).into_iter().chain([0.0; 256]).collect();
        let row = kind.row_bytes(512).unwrap() as usize;
        let half: Vec<u8> = bytes.chunks(row).flat_map(|row| row[..row.len() / 2].to_vec()).collect();
        let whole = product(Variant::best(), &pool, Matrix::new(kind, 3, 512, &bytes), &x);
        assert_eq!(
            whole,
            product(Variant::best(), &pool, Matrix::new(kind, 3, 256, &half), &x[..256]),
            "{kind}"
        );
    }
}

#[test]
#[should_panic(expected = "columns of weights and activations")]
fn shapes_that_disagree_are_refused() {
    let pool = Pool::new(1).unwrap();
    let mut activations = Activations::new();
    activations.load(&pool, &[0.0; 64], 2, 32);
    matmul(&pool, &Matrix::new(QuantType::Q8_0, 1, 64, &[0; 68]), &activations, &mut [0.0; 2]);
}
