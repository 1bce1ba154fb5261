//! Digests of what the kernels compute, held as constants: every processor and every instruction set must give these bits.
//! That is what `kernel_set_id` promises the other workers of a plan. `scripts/arm test` runs this file as AArch64 code.
//!
//! When a change of the arithmetic is meant, the constants change together with `kernel_set_id`.

use shoal_core::QuantType;
use shoal_core::frame::WireType;
use shoal_engine::kernels::{
    self, Matrix, Variant, add, add_scaled, add_scaled_f16, dot, dot_f16, exp_sum, max, rmsnorm,
    rmsnorm_in_place, scale, silu_mul, softmax,
};
use shoal_engine::pool::Pool;
use shoal_engine::quant::dequantize_row;
use shoal_engine::{math, wire};

use crate::{noise, product, shapes, weights};

/// Of all shapes of a kind, by one activation row and by five.
const PRODUCTS: [(QuantType, u64); 13] = [
    (QuantType::F32, 0x4c38_087b_3cfe_a053),
    (QuantType::F16, 0x88b5_bf39_06c0_7680),
    (QuantType::BF16, 0xba30_8b3f_9e03_2de1),
    (QuantType::Q8_0, 0x1cac_c5cb_9dea_9a50),
    (QuantType::Q4_0, 0x597b_3b5d_cedb_386b),
    (QuantType::Q4_1, 0x507f_6c77_0c1b_96ec),
    (QuantType::Q5_0, 0x17df_9a19_b35c_b69a),
    (QuantType::Q5_1, 0x9ab8_003a_3683_0774),
    (QuantType::Q2_K, 0x43c3_c724_5efd_090c),
    (QuantType::Q3_K, 0xc28c_5fc6_e7f8_bc2f),
    (QuantType::Q4_K, 0xf2a0_d06a_454b_7ed7),
    (QuantType::Q5_K, 0x007b_6e29_5903_ff68),
    (QuantType::Q6_K, 0xcdff_08b6_66ce_3deb),
];

/// Of the same matrices' rows as numbers.
const WEIGHTS: u64 = 0x2cde_210f_1780_7de0;

/// Of each operation on vectors.
const VECTORS: [(&str, u64); 14] = [
    ("dot", 0xc73a_ff12_6c8f_06d8),
    ("dot_f16", 0x5457_dd62_d162_6b65),
    ("add", 0x0b6a_1b6b_42b7_d381),
    ("scale", 0xf790_9591_20cf_b2a2),
    ("add_scaled", 0x4266_67ae_6b9f_4139),
    ("add_scaled_f16", 0x2260_3ab0_8956_5c6a),
    ("rmsnorm", 0xab14_768c_b241_0291),
    ("rmsnorm_in_place", 0xea61_1542_fb06_41bc),
    ("silu_mul", 0xa940_843e_0361_64d5),
    ("max", 0x252a_34ab_ca7b_7990),
    ("exp_sum", 0x69e6_4074_b60b_6816),
    ("softmax", 0xee30_0cad_9b65_b2c4),
    ("exp_f32", 0xb2d3_4123_3b3a_1437),
    ("libm", 0x07e5_137e_f8c3_a691),
];

/// Of rows encoded for the wire, and of what is decoded from that.
const WIRE: [(WireType, u64, u64); 3] = [
    (WireType::F32, 0xeeea_b666_ecc8_3a39, 0xeeea_b666_ecc8_3a39),
    (WireType::F16, 0xd96e_d33a_edca_4737, 0x08db_11cf_f904_70cf),
    (WireType::Q8, 0x770b_a849_d484_3f34, 0x0f78_11f3_94f8_8959),
];

#[test]
fn products_have_these_bits_everywhere() {
    let pools = [1, 3].map(|threads| Pool::new(threads).unwrap());
    let variants: Vec<Variant> = Variant::ALL.iter().copied().filter(|v| v.is_available()).collect();
    // Of very different sizes, so that the order of additions shows.
    let x = |len: usize| spread(noise(len, 31), 8.0);
    for &variant in &variants {
        let got = PRODUCTS.map(|(kind, _)| {
            let mut digest = Digest::new();
            for &(n, k) in shapes(kind) {
                let bytes = weights(kind, n, k);
                for (b, pool) in [1, 5].into_iter().zip(&pools) {
                    let w = Matrix::new(kind, n, k, &bytes);
                    product(variant, pool, w, &x(b * k)).into_iter().for_each(|bits| digest.word(bits));
                }
            }
            (kind, digest.0)
        });
        assert_eq!(got, PRODUCTS, "{variant:?} of {variants:?}: {got:#018x?}");
    }
}

#[test]
fn decoded_weights_have_these_bits_everywhere() {
    let mut digest = Digest::new();
    for kind in QuantType::ALL {
        for &(n, k) in shapes(kind) {
            let bytes = weights(kind, n, k);
            let mut row = vec![0.0; k];
            for i in 0..n {
                dequantize_row(kind, Matrix::new(kind, n, k, &bytes).row(i), &mut row);
                digest.floats(&row);
            }
        }
    }
    assert_eq!(digest.0, WEIGHTS, "{:#018x}", digest.0);
}

#[test]
fn vector_operations_have_these_bits_everywhere() {
    let pool = Pool::new(2).unwrap();
    let got = VECTORS.map(|(name, _)| {
        let mut digest = Digest::new();
        for len in [1, 15, 16, 64, 333, 5000] {
            let mut a: Vec<f32> = noise(len, 5).into_iter().map(|x| x * 20.0).collect();
            let b = noise(len, 6);
            let halves: Vec<u16> = b.iter().map(|&b| half::f16::from_f32(b).to_bits()).collect();
            match name {
                "dot" => a[0] = dot(&a, &b),
                "dot_f16" => a[0] = dot_f16(&a, &halves),
                "add" => add(&mut a, &b),
                "scale" => scale(&mut a, b[0]),
                "add_scaled" => add_scaled(&mut a, 0.37, &b),
                "add_scaled_f16" => add_scaled_f16(&mut a, 0.37, &halves),
                "rmsnorm" => rmsnorm(&a.clone(), &b, 1e-5, &mut a),
                "rmsnorm_in_place" => rmsnorm_in_place(&mut a, &b, 1e-6),
                "silu_mul" => silu_mul(&pool, &mut a, &b),
                "max" => a[0] = max(&a),
                "exp_sum" => a[0] = exp_sum(&mut a, 7.5),
                "softmax" => softmax(&mut a),
                "exp_f32" => a.iter_mut().for_each(|a| *a = math::exp_f32(*a * 5.0)),
                _ => {
                    for &x in &a {
                        let x = f64::from(x);
                        let results = [
                            math::exp_f64(x),
                            math::exp(x * 10.0),
                            math::ln(x.abs() + 1e-9),
                            math::pow(1e4, x / 20.0),
                            math::sin(x * 1e3),
                            math::cos(x * 1e3),
                        ];
                        results.into_iter().for_each(|result| digest.bytes(&result.to_bits().to_le_bytes()));
                    }
                }
            }
            digest.floats(&a);
        }
        (name, digest.0)
    });
    assert_eq!(got, VECTORS, "{got:#018x?}");
}

#[test]
fn wire_formats_have_these_bytes_everywhere() {
    let (rows, cols) = (9, 77);
    let mut x = spread(noise(rows * cols, 8), 6.0);
    for (row, x) in x.chunks_mut(cols).enumerate() {
        x.iter_mut().for_each(|x| *x *= power_of_two(14 * row as i32 - 56));
    }
    let got = WIRE.map(|(dtype, _, _)| {
        let (mut encoded, mut bytes, mut decoded) = (Digest::new(), Vec::new(), vec![0.0; rows * cols]);
        wire::encode(dtype, rows, cols, &x, &mut bytes).unwrap();
        encoded.bytes(&bytes);
        wire::decode(dtype, &bytes, rows, cols, &mut decoded).unwrap();
        let mut values = Digest::new();
        values.floats(&decoded);
        (dtype, encoded.0, values.0)
    });
    assert_eq!(got, WIRE, "{got:#018x?}");
}

#[test]
fn the_digests_belong_to_this_arithmetic() {
    assert_eq!(
        kernels::kernel_set_id(),
        "shoal-1",
        "new arithmetic needs new digests, and the other way round"
    );
}

/// Each value times a power of two from `2^-range` to `2^range`, the same each time.
fn spread(mut x: Vec<f32>, range: f32) -> Vec<f32> {
    let exponents = noise(x.len(), 77);
    x.iter_mut().zip(exponents).for_each(|(x, e)| *x *= power_of_two((e * range) as i32));
    x
}

/// Without the platform's mathematics library.
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// FNV-1a, 64 bits.
struct Digest(u64);

impl Digest {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn word(&mut self, bits: u32) {
        self.bytes(&bits.to_le_bytes());
    }

    fn floats(&mut self, values: &[f32]) {
        values.iter().for_each(|value| self.word(value.to_bits()));
    }
}
