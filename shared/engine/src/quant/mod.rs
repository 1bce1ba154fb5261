//! Number formats of weights and activations: blocks of bytes to integers with scales, rows to floats, and the one
//! format that activations are quantized to. No threads and no products here: those are `kernels`.

mod activations;
mod candle;
mod half;
mod k_quants;
mod legacy;

pub(crate) use activations::quantize_block;
pub use activations::{Activations, BLOCK};
pub use candle::candle_type;
pub(crate) use half::{bf16_to_f32, f16_to_f32};
use shoal_core::QuantType;

pub(crate) use self::k_quants::{Q2K, Q3K, Q4K, Q5K, Q6K};
pub(crate) use self::legacy::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};

/// Weights of a panel: the unit in which rows are decoded, one K-quant block or up to eight blocks of 32.
pub(crate) const PANEL: usize = 256;
/// Weights that share a scale at the finest.
pub(crate) const GROUP: usize = 16;

/// Up to [`PANEL`] decoded weights: weight `i` is `scale[i / 16] * q[i] - min[i / 16]`.
#[repr(C, align(64))]
pub(crate) struct Panel {
    pub(crate) q: [i8; PANEL],
    pub(crate) scale: [f32; PANEL / GROUP],
    pub(crate) min: [f32; PANEL / GROUP],
}

impl Panel {
    pub(crate) const fn new() -> Self {
        Self { q: [0; PANEL], scale: [0.0; PANEL / GROUP], min: [0.0; PANEL / GROUP] }
    }
}

/// A quantization in blocks.
pub(crate) trait Format {
    const KIND: QuantType;
    /// Whether `min` is used; otherwise it is left alone.
    const HAS_MIN: bool;
    /// Whether the two groups of a chunk of 32 may have different scales.
    const FINE_SCALES: bool;

    /// Decodes consecutive blocks, at most a panel of them. `half` widens an f16.
    fn decode(blocks: &[u8], panel: &mut Panel, half: impl Fn(u16) -> f32 + Copy);
}

/// Writes the values of one row of `kind`.
///
/// # Panics
/// When `bytes` is not exactly the row of `out.len()` weights: sizes are checked where a matrix is made.
pub fn dequantize_row(kind: QuantType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(kind.row_bytes(out.len() as u64), Some(bytes.len() as u64), "row of {kind} does not fit");
    match kind {
        QuantType::F32 => {
            out.iter_mut().zip(bytes.as_chunks().0).for_each(|(to, &from)| *to = f32::from_le_bytes(from));
        }
        QuantType::F16 => out
            .iter_mut()
            .zip(bytes.as_chunks().0)
            .for_each(|(to, &from)| *to = f16_to_f32(u16::from_le_bytes(from))),
        QuantType::BF16 => out
            .iter_mut()
            .zip(bytes.as_chunks().0)
            .for_each(|(to, &from)| *to = bf16_to_f32(u16::from_le_bytes(from))),
        QuantType::Q8_0 => dequantize::<Q8_0>(bytes, out),
        QuantType::Q4_0 => dequantize::<Q4_0>(bytes, out),
        QuantType::Q4_1 => dequantize::<Q4_1>(bytes, out),
        QuantType::Q5_0 => dequantize::<Q5_0>(bytes, out),
        QuantType::Q5_1 => dequantize::<Q5_1>(bytes, out),
        QuantType::Q2_K => dequantize::<Q2K>(bytes, out),
        QuantType::Q3_K => dequantize::<Q3K>(bytes, out),
        QuantType::Q4_K => dequantize::<Q4K>(bytes, out),
        QuantType::Q5_K => dequantize::<Q5K>(bytes, out),
        QuantType::Q6_K => dequantize::<Q6K>(bytes, out),
    }
}

fn dequantize<F: Format>(bytes: &[u8], out: &mut [f32]) {
    let panel_bytes = panel_bytes::<F>();
    let mut panel = Panel::new();
    for (blocks, values) in bytes.chunks(panel_bytes).zip(out.chunks_mut(PANEL)) {
        F::decode(blocks, &mut panel, f16_to_f32);
        for (i, value) in values.iter_mut().enumerate() {
            let scaled = panel.scale[i / GROUP] * f32::from(panel.q[i]);
            *value = if F::HAS_MIN { scaled - panel.min[i / GROUP] } else { scaled };
        }
    }
}

/// Bytes of a whole panel.
pub(crate) const fn panel_bytes<F: Format>() -> usize {
    PANEL / F::KIND.block_len() as usize * F::KIND.block_bytes() as usize
}
