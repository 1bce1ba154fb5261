//! Our block decoders against candle's, on rows that candle quantized and on arbitrary blocks.

use candle_core::quantized::QTensor;
use candle_core::{Device, Tensor};
use shoal_core::QuantType;
use shoal_engine::quant::{candle_type, dequantize_row};

/// Numbers in about -3 to 3, the same each time.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next() + next() + next()).collect()
}

#[test]
fn rows_decode_like_candle() {
    for kind in QuantType::ALL {
        let (rows, cols) = (7, 768);
        let source = Tensor::from_vec(noise(rows * cols, 5), (rows, cols), &Device::Cpu).unwrap();
        let tensor = QTensor::quantize(&source, candle_type(kind)).unwrap();
        let bytes = tensor.data().unwrap();
        let expected: Vec<Vec<f32>> = tensor.dequantize(&Device::Cpu).unwrap().to_vec2().unwrap();
        let row_bytes = kind.row_bytes(cols as u64).unwrap() as usize;
        for (row, expected) in expected.iter().enumerate() {
            let mut ours = vec![f32::NAN; cols];
            dequantize_row(kind, &bytes[row * row_bytes..][..row_bytes], &mut ours);
            for (i, (ours, theirs)) in ours.iter().zip(expected).enumerate() {
                assert!((ours - theirs).abs() <= 1e-6 * theirs.abs().max(0.1), "{kind} {i}: {ours} {theirs}");
            }
        }
    }
}

#[test]
fn a_short_row_is_whole_blocks_of_32() {
    let source = Tensor::from_vec(noise(96, 6), (1, 96), &Device::Cpu).unwrap();
    let tensor = QTensor::quantize(&source, candle_type(QuantType::Q5_1)).unwrap();
    let expected: Vec<f32> =
        tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let mut ours = vec![0.0; 96];
    dequantize_row(QuantType::Q5_1, &tensor.data().unwrap(), &mut ours);
    assert_eq!(ours, expected);
}

#[test]
#[should_panic(expected = "does not fit")]
fn a_row_of_the_wrong_length_is_refused() {
    dequantize_row(QuantType::Q4_0, &[0; 17], &mut [0.0; 32]);
}
