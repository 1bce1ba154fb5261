//! Random-weight models of real shapes, for speed and memory: `shoal synth` and benches.
//!
//! The text such a model writes is noise; its file, its memory and its arithmetic are those of the real
//! one. Rows are drawn from a small pool of quantized rows for each tensor, so that a model of many
//! gigabytes is written at the speed of the disk.

use std::io::Write;

use candle_core::quantized::QTensor;
use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use shoal_core::QuantType;
use shoal_core::model::shapes::{FileType, Shape};
use shoal_core::model::{LayerRole, Role, TensorSpec};

use crate::gguf::{Array, GgufError, GgufWriter, TensorInfo, Value};
use crate::quant::candle_type;

/// Distinct rows a tensor is drawn from: enough that no two neighbouring rows repeat a pattern, few
/// enough that quantizing them takes milliseconds.
const POOL_ROWS: u64 = 61;

/// Tokens of the synthetic vocabulary that mean something: one for each byte, then start and end.
const BYTE_TOKENS: u32 = 256;

/// Why a synthetic model was not written.
#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    #[error("failed to write the model: {0}")]
    Gguf(#[from] GgufError),
    #[error("failed to quantize random rows to {kind}: {source}")]
    Quantize { kind: QuantType, source: candle_core::Error },
    #[error("a shape with {0} tokens has no room for the 256 bytes and two special tokens")]
    Vocabulary(u32),
}

/// Writes a model of `shape` in `file` format with weights drawn from `seed`; returns its length in bytes.
/// `progress` hears the bytes of tensor data that are written, of all.
///
/// # Errors
/// The shape has too small a vocabulary, or writing failed.
pub fn write(
    shape: &Shape,
    file: FileType,
    seed: u64,
    out: impl Write,
    progress: impl FnMut(u64, u64),
) -> Result<u64, SynthError> {
    let mut failed = None;
    let written = write_tensors(shape, file, out, progress, |tensor, info, out| {
        // The file's place in the stream of random numbers depends on the tensor alone.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(info.offset);
        match pool(tensor, &mut rng) {
            Ok(pool) => write_rows(tensor, info, &pool, &mut rng, out),
            Err(source) => {
                failed = Some(SynthError::Quantize { kind: tensor.kind, source });
                Err(std::io::Error::other("quantizing failed"))
            }
        }
    });
    failed.map_or(written, Err)
}

/// Writes a model of `shape` whose weights are all zero bytes, for workers that hold no weights: through a
/// writer that leaves holes for zeros it takes no space. Otherwise as [`write()`].
///
/// # Errors
/// The shape has too small a vocabulary, or writing failed.
pub fn write_hollow(
    shape: &Shape,
    file: FileType,
    out: impl Write,
    progress: impl FnMut(u64, u64),
) -> Result<u64, SynthError> {
    let zeros = vec![0; HOLLOW_CHUNK];
    write_tensors(shape, file, out, progress, |_, info, out| {
        let mut left = info.bytes;
        while left > 0 {
            let chunk = left.min(HOLLOW_CHUNK as u64);
            out.write_all(&zeros[..chunk as usize])?;
            left -= chunk;
        }
        Ok(())
    })
}

/// Zeros written at once: many blocks of any file system.
const HOLLOW_CHUNK: usize = 4 << 20;

fn write_tensors(
    shape: &Shape,
    file: FileType,
    out: impl Write,
    mut progress: impl FnMut(u64, u64),
    mut fill: impl FnMut(&TensorSpec, &TensorInfo, &mut dyn Write) -> std::io::Result<()>,
) -> Result<u64, SynthError> {
    let spec = shape.spec(file);
    let mut writer = GgufWriter::new();
    metadata(&mut writer, shape, file)?;
    for tensor in &spec.tensors {
        let matrix = [tensor.cols, tensor.rows];
        let dims = if tensor.rows == 1 { &matrix[..1] } else { &matrix[..] };
        writer.tensor(&tensor.role.tensor_name(), dims, tensor.kind)?;
    }
    let total = spec.total_bytes().0;
    let mut tensors = spec.tensors.iter();
    let mut done = 0;
    let written = writer.write(out, |info, out| {
        let Some(tensor) = tensors.next() else { return Ok(()) };
        fill(tensor, info, out)?;
        done += info.bytes;
        progress(done, total);
        Ok(())
    })?;
    Ok(written)
}

fn write_rows(
    tensor: &TensorSpec,
    info: &TensorInfo,
    pool: &[u8],
    rng: &mut ChaCha8Rng,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let row = info.row_bytes() as usize;
    let rows = (pool.len() / row) as u32;
    (0..tensor.rows).try_for_each(|_| {
        let at = (rng.next_u32() % rows) as usize * row;
        out.write_all(&pool[at..at + row])
    })
}

/// Quantized rows of normally distributed weights, scaled so that hidden states keep their size.
fn pool(tensor: &TensorSpec, rng: &mut ChaCha8Rng) -> Result<Vec<u8>, candle_core::Error> {
    let rows = POOL_ROWS.min(tensor.rows);
    let (mean, deviation) = match tensor.role {
        Role::OutputNorm | Role::RopeFactors => (1.0, 0.0),
        Role::Layer(_, LayerRole::AttnNorm | LayerRole::FfnNorm | LayerRole::QNorm | LayerRole::KNorm) => {
            (1.0, 0.05)
        }
        _ if tensor.rows == 1 => (0.0, 0.05),
        _ => (0.0, 1.0 / (tensor.cols as f32).sqrt()),
    };
    let values: Vec<f32> = (0..rows * tensor.cols).map(|_| mean + deviation * normal(rng)).collect();
    let shape = (rows as usize, tensor.cols as usize);
    let tensor_f32 = Tensor::from_vec(values, shape, &Device::Cpu)?;
    Ok(QTensor::quantize(&tensor_f32, candle_type(tensor.kind))?.data()?.into_owned())
}

/// Nearly normal: the sum of twelve uniform numbers less its mean (Irwin and Hall), the same on every processor.
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    (0..12).map(|_| (rng.next_u32() >> 8) as f32 / (1 << 24) as f32).sum::<f32>() - 6.0
}

fn metadata(writer: &mut GgufWriter, shape: &Shape, file: FileType) -> Result<(), SynthError> {
    let arch = shape.arch.name();
    let mut set = |key: &str, value| writer.metadata.set(key.replace('@', arch), value);
    set("general.architecture", Value::String(arch.to_owned()));
    set("general.name", Value::String(format!("{} with random weights", shape.name)));
    set("general.file_type", Value::U32(file.ggml_file_type()));
    set("general.quantization_version", Value::U32(2));
    set("@.block_count", Value::U32(shape.n_layers));
    set("@.context_length", Value::U32(shape.context));
    set("@.embedding_length", Value::U32(shape.d_model));
    set("@.feed_forward_length", Value::U32(shape.ffn));
    set("@.attention.head_count", Value::U32(shape.n_heads));
    set("@.attention.head_count_kv", Value::U32(shape.n_kv_heads));
    set("@.attention.key_length", Value::U32(shape.head_dim));
    set("@.attention.value_length", Value::U32(shape.head_dim));
    set("@.attention.layer_norm_rms_epsilon", Value::F32(shape.norm_eps));
    set("@.rope.freq_base", Value::F32(shape.rope_base));
    set("@.rope.dimension_count", Value::U32(shape.head_dim));
    set("@.vocab_size", Value::U32(shape.vocab));
    if shape.vocab < BYTE_TOKENS + 2 {
        return Err(SynthError::Vocabulary(shape.vocab));
    }
    let (start, end) = (BYTE_TOKENS, BYTE_TOKENS + 1);
    let bytes = (0..=255).map(|byte| byte_char(byte).to_string());
    let special = ["<|start|>".to_owned(), "<|end|>".to_owned()];
    let filler = (end + 1..shape.vocab).map(|id| format!("<{id}>"));
    // Token types of the format: 1 normal, 3 control.
    let kinds = (0..shape.vocab).map(|id| if id == start || id == end { 3 } else { 1 });
    set("tokenizer.ggml.model", Value::String("gpt2".to_owned()));
    set("tokenizer.ggml.pre", Value::String("gpt-2".to_owned()));
    set("tokenizer.ggml.tokens", Value::Array(Array::String(bytes.chain(special).chain(filler).collect())));
    set("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds.collect())));
    set("tokenizer.ggml.merges", Value::Array(Array::String(Vec::new())));
    set("tokenizer.ggml.bos_token_id", Value::U32(start));
    set("tokenizer.ggml.eos_token_id", Value::U32(end));
    set("tokenizer.ggml.add_bos_token", Value::Bool(true));
    Ok(())
}

/// The character that stands for a byte in a byte-level vocabulary (GPT-2): printable ones stand for
/// themselves, the others for characters from U+0100 on, in order.
fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or('\u{fffd}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Gguf;

    #[test]
    fn a_synthetic_file_reads_back_with_the_shape_it_was_made_for() {
        let shape = Shape::from_name("stories").unwrap();
        for name in ["Q4_K_M", "Q8_0", "F16"] {
            let file = FileType::from_name(name).unwrap();
            let mut bytes = Vec::new();
            let written = write(shape, file, 7, &mut bytes, |_, _| {}).unwrap();
            assert_eq!(written, bytes.len() as u64);
            let gguf = Gguf::parse(bytes.as_slice(), written).unwrap();
            for tensor in shape.spec(file).tensors {
                let info = gguf.tensor(&tensor.role.tensor_name()).unwrap();
                assert_eq!((info.kind, info.bytes), (tensor.kind, tensor.bytes().0));
            }
        }
    }

    #[test]
    fn a_hollow_file_has_the_same_header_and_no_weights() {
        let shape = Shape::from_name("stories").unwrap();
        let file = FileType::Uniform(QuantType::Q4_0);
        let (mut full, mut hollow) = (Vec::new(), Vec::new());
        write(shape, file, 7, &mut full, |_, _| {}).unwrap();
        let mut heard = 0;
        write_hollow(shape, file, &mut hollow, |done, _| heard = done).unwrap();
        assert_eq!(full.len(), hollow.len());
        assert_eq!(heard, shape.spec(file).total_bytes().0);
        let gguf = Gguf::parse(hollow.as_slice(), hollow.len() as u64).unwrap();
        let first = gguf.tensors().iter().map(|info| info.offset).min().unwrap() as usize;
        assert!(full[..first] == hollow[..first], "the headers differ");
        assert!(hollow[first..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_seed_makes_one_file() {
        let shape = Shape::from_name("stories").unwrap();
        let file = FileType::Uniform(QuantType::Q4_0);
        let make = |seed| {
            let mut bytes = Vec::new();
            write(shape, file, seed, &mut bytes, |_, _| {}).unwrap();
            bytes
        };
        assert!(make(1) == make(1));
        assert!(make(1) != make(2));
    }

    #[test]
    fn byte_characters_are_the_known_ones() {
        assert_eq!([b' ', b'\n', b'a', 0xad, 0].map(byte_char), ['Ġ', 'Ċ', 'a', 'Ń', 'Ā']);
    }
}
