//! Reading and writing GGUF files: real files, every documented refusal, and arbitrary damage.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

use proptest::prelude::*;
use shoal_core::QuantType;
use shoal_engine::gguf::{Array, Gguf, GgufError, GgufWriter, MAX_ALLOCATION_PER_BYTE, Metadata, Value};

/// Counts what this thread has allocated, to hold the reader to its bound.
struct Counting;

thread_local! {
    static LIVE: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

fn count(change: i64) {
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

#[expect(unsafe_code, reason = "an allocator that counts can only be written so")]
// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that was allocated at one time while `work` ran.
fn peak_bytes<T>(work: impl FnOnce() -> T) -> (T, i64) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = work();
    (result, PEAK.get() - before)
}

/// Room for one read piece, messages and the first slots of small vectors.
const CONSTANT_BYTES: i64 = 256 << 10;

fn small_file() -> Vec<u8> {
    let mut writer = GgufWriter::new();
    let metadata = &mut writer.metadata;
    metadata.set("general.architecture", Value::String("llama".into()));
    metadata.set("general.alignment", Value::U32(64));
    metadata.set("llama.block_count", Value::U16(1));
    metadata.set("llama.rope.freq_base", Value::F32(10_000.0));
    metadata.set("flag", Value::Bool(true));
    metadata.set("signed", Value::I64(-3));
    metadata.set("double", Value::F64(0.5));
    let tokens = ["<s>", "a", "", "b\u{e9}"].map(String::from).to_vec();
    metadata.set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
    metadata.set("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.0, -1.0, 2.5])));
    let nested = Array::Array(vec![Array::U8(vec![1, 2]), Array::Array(vec![Array::Bool(vec![true])])]);
    metadata.set("nested", Value::Array(nested));
    writer.tensor("a.weight", &[64, 3], QuantType::Q8_0).unwrap();
    writer.tensor("b.weight", &[256, 2], QuantType::Q4_K).unwrap();
    writer.tensor("norm", &[5], QuantType::F32).unwrap();
    let mut file = Vec::new();
    let len = writer.write(&mut file, |info, out| out.write_all(&vec![7; info.bytes as usize])).unwrap();
    assert_eq!(len, file.len() as u64);
    file
}

fn parse(file: &[u8]) -> Result<Gguf, GgufError> {
    Gguf::parse(file, file.len() as u64)
}

#[test]
fn what_is_written_reads_back() {
    let file = small_file();
    let gguf = parse(&file).unwrap();
    assert_eq!((gguf.version, gguf.alignment), (3, 64));
    assert_eq!(gguf.metadata.require("general.architecture", Metadata::string).unwrap(), "llama");
    assert_eq!(gguf.metadata.u32("llama.block_count").unwrap(), Some(1));
    assert_eq!(gguf.metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap()[3], "bé");
    assert_eq!(gguf.metadata.f32s("tokenizer.ggml.scores").unwrap().unwrap(), [0.0, -1.0, 2.5]);
    assert_eq!(gguf.metadata.keys().nth(4), Some("flag"));
    let a = gguf.tensor("a.weight").unwrap();
    assert_eq!((a.row_len(), a.rows(), a.row_bytes(), a.bytes), (64, 3, 68, 204));
    assert!(gguf.tensors().iter().all(|t| t.offset % 64 == 0 && t.offset >= gguf.data_offset));
    assert!(
        gguf.tensors().iter().all(|t| file[t.offset as usize..][..t.bytes as usize].iter().all(|&b| b == 7))
    );
    let mut again = GgufWriter::new();
    again.metadata = gguf.metadata.clone();
    for t in gguf.tensors() {
        again.tensor(&t.name, &t.dims, t.kind).unwrap();
    }
    let mut copy = Vec::new();
    again
        .write(&mut copy, |info, out| out.write_all(&file[info.offset as usize..][..info.bytes as usize]))
        .unwrap();
    assert_eq!(copy, file);
    let metadata = Gguf::parse_metadata(file.as_slice(), file.len() as u64).unwrap();
    assert_eq!(metadata.len(), gguf.metadata.len());
}

#[test]
fn a_prefix_up_to_the_data_is_enough() {
    let file = small_file();
    let start = parse(&file).unwrap().data_offset as usize;
    let header = &file[..start];
    assert_eq!(Gguf::parse(header, file.len() as u64).unwrap().tensors().len(), 3);
}

#[test]
fn the_test_models_parse_like_candle_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models");
    for name in ["stories-Q8_0.gguf", "stories-Q4_0.gguf", "stories-Q4_K_M.gguf"] {
        let path = folder.join(name);
        let ours = Gguf::open(&path).unwrap();
        let mut file = std::fs::File::open(&path).unwrap();
        let theirs = candle_core::quantized::gguf_file::Content::read(&mut file).unwrap();
        assert_eq!(ours.data_offset, theirs.tensor_data_offset);
        assert_eq!(ours.metadata.len(), theirs.metadata.len());
        assert_eq!(ours.tensors().len(), theirs.tensor_infos.len());
        for tensor in ours.tensors() {
            let other = &theirs.tensor_infos[&tensor.name];
            assert_eq!(tensor.offset, other.offset + theirs.tensor_data_offset);
            assert_eq!(tensor.kind.name().replace('_', "").to_lowercase(), dtype(other.ggml_dtype));
            let dims: Vec<u64> = other.shape.dims().iter().rev().map(|&dim| dim as u64).collect();
            assert_eq!(tensor.dims, dims);
        }
        let (result, peak) = peak_bytes(|| Gguf::open(&path).unwrap());
        let header = result.data_offset as i64;
        assert!(peak <= MAX_ALLOCATION_PER_BYTE as i64 * header + CONSTANT_BYTES, "{peak} for {header}");
    }
}

fn dtype(dtype: candle_core::quantized::GgmlDType) -> String {
    format!("{dtype:?}").replace('_', "").to_lowercase()
}

/// A file assembled by hand, to put wrong things into it.
struct Raw(Vec<u8>);

impl Raw {
    fn new(tensors: u64, keys: u64) -> Self {
        let mut raw = Self(b"GGUF".to_vec());
        raw.0.extend(3u32.to_le_bytes());
        raw.0.extend(tensors.to_le_bytes());
        raw.0.extend(keys.to_le_bytes());
        raw
    }

    fn text(mut self, text: &str) -> Self {
        self.0.extend((text.len() as u64).to_le_bytes());
        self.0.extend(text.as_bytes());
        self
    }

    fn u32(mut self, n: u32) -> Self {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn u64(mut self, n: u64) -> Self {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn tensor(self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        let raw = dims.iter().fold(self.text(name).u32(dims.len() as u32), |raw, &dim| raw.u64(dim));
        raw.u32(kind).u64(offset)
    }

    fn refused(mut self, tail: usize) -> String {
        let padded = self.0.len().next_multiple_of(32);
        self.0.resize(padded + tail, 0);
        parse(&self.0).unwrap_err().to_string()
    }
}

#[track_caller]
fn refused_with(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
}

#[test]
fn each_refusal_says_what_and_where() {
    let replace = |at: usize, bytes: &[u8]| {
        let mut file = small_file();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        parse(&file).unwrap_err().to_string()
    };
    refused_with(&replace(0, b"GGML"), &["wrong magic"]);
    refused_with(&replace(4, &3u32.to_be_bytes()), &["big-endian"]);
    refused_with(&replace(4, &9u32.to_le_bytes()), &["version 9"]);
    refused_with(&parse(&small_file()[..100]).unwrap_err().to_string(), &["ends before", "100 bytes"]);
    refused_with(&Raw::new(1 << 40, 0).refused(0), &["number of tensors", "65536"]);
    refused_with(&Raw::new(0, 1 << 40).refused(0), &["metadata keys", "65536"]);
    let twice = Raw::new(0, 2).text("key").u32(4).u32(1).text("key").u32(4).u32(1);
    refused_with(&twice.refused(0), &["\"key\" appears twice"]);
    refused_with(&Raw::new(0, 1).text("key").u32(13).refused(0), &["\"key\"", "type 13"]);
    refused_with(&Raw::new(0, 1).text("key").u32(7).u32(2).refused(0), &["\"key\"", "boolean"]);
    refused_with(
        &Raw::new(0, 1).text("key").u32(8).u64(1 << 30).refused(0),
        &["string length", "1073741824"],
    );
    refused_with(&Raw::new(0, 1).text("key").u32(9).u32(0).u64(1 << 30).refused(0), &["array length"]);
    refused_with(&Raw::new(0, 1).text("key").u32(9).u32(10).u64(1 << 20).refused(0), &["ends before"]);
    let deep = (0..5).fold(Raw::new(0, 1).text("key").u32(9), |raw, _| raw.u32(9).u64(1));
    refused_with(&deep.refused(64), &["array depth", "limit of 4"]);
    let alignment = |n| Raw::new(0, 1).text("general.alignment").u32(4).u32(n).refused(64);
    refused_with(&alignment(48), &["alignment 48"]);
    refused_with(&alignment(0), &["alignment 0"]);
    refused_with(&Raw::new(1, 0).tensor("t", &[33], 8, 0).refused(128), &["\"t\"", "33", "Q8_0"]);
    refused_with(&Raw::new(1, 0).tensor("t", &[32], 23, 0).refused(128), &["\"t\"", "IQ4_XS"]);
    refused_with(&Raw::new(1, 0).tensor("t", &[32], 77, 0).refused(128), &["\"t\"", "77"]);
    refused_with(&Raw::new(1, 0).tensor("t", &[32, 0], 0, 0).refused(128), &["\"t\"", "shape"]);
    refused_with(&Raw::new(1, 0).tensor("t", &[1; 5], 0, 0).refused(128), &["\"t\"", "dimensions"]);
    refused_with(&Raw::new(1, 0).tensor("t", &[], 0, 0).refused(128), &["\"t\"", "dimensions"]);
    refused_with(
        &Raw::new(1, 0).tensor("t", &[1 << 32, 1 << 32], 0, 0).refused(128),
        &["\"t\"", "overflows"],
    );
    refused_with(&Raw::new(1, 0).tensor("t", &[1 << 62], 0, 0).refused(128), &["\"t\"", "overflows"]);
    refused_with(&Raw::new(1, 0).tensor("t", &[8], 0, 8).refused(128), &["\"t\"", "alignment 32"]);
    refused_with(&Raw::new(1, 0).tensor("t", &[33], 0, 0).refused(128), &["\"t\"", "outside"]);
    refused_with(&Raw::new(1, 0).tensor("t", &[8], 0, u64::MAX - 31).refused(128), &["\"t\"", "outside"]);
    let same = Raw::new(2, 0).tensor("t", &[8], 0, 0).tensor("t", &[8], 0, 32);
    refused_with(&same.refused(128), &["\"t\"", "twice"]);
    let over = Raw::new(2, 0).tensor("t", &[16], 0, 0).tensor("u", &[8], 0, 32);
    refused_with(&over.refused(128), &["\"u\"", "overlaps", "\"t\""]);
}

#[test]
fn the_writer_refuses_short_data_and_bad_shapes() {
    let mut writer = GgufWriter::new();
    assert!(writer.tensor("t", &[33], QuantType::Q4_0).is_err());
    assert!(writer.tensor("t", &[], QuantType::F32).is_err());
    writer.tensor("t", &[4], QuantType::F32).unwrap();
    assert!(writer.tensor("t", &[4], QuantType::F32).is_err());
    let error = writer.write(Vec::new(), |_, out| out.write_all(&[0; 15])).unwrap_err();
    refused_with(&error.to_string(), &["\"t\"", "15", "16"]);
}

#[test]
fn claimed_lengths_cost_nothing() {
    // The file is said to be huge, but its bytes are not there.
    let array = Raw::new(0, 1).text("key").u32(9).u32(10).u64(16 << 20).0;
    let text = Raw::new(0, 1).text("key").u32(8).u64(16 << 20).0;
    for bytes in [array, text] {
        let (result, peak) = peak_bytes(|| Gguf::parse(bytes.as_slice(), 1 << 40));
        assert!(matches!(result, Err(GgufError::Truncated { .. })));
        assert!(peak < CONSTANT_BYTES, "{peak}");
    }
}

fn survives(bytes: &[u8]) {
    let (_, peak) = peak_bytes(|| {
        let _ = parse(bytes);
        let _ = Gguf::parse(bytes, u64::MAX);
    });
    assert!(peak <= MAX_ALLOCATION_PER_BYTE as i64 * bytes.len() as i64 + CONSTANT_BYTES, "{peak}");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..600), head in any::<bool>()) {
        let mut file = if head { small_file()[..24].to_vec() } else { Vec::new() };
        file.extend(body);
        survives(&file);
    }

    #[test]
    fn flipped_bits_never_panic(flips in prop::collection::vec((0usize..900, 0u8..8), 1..6)) {
        let mut file = small_file();
        for (at, bit) in flips {
            let at = at % file.len();
            file[at] ^= 1 << bit;
        }
        survives(&file);
    }

    #[test]
    fn truncations_are_refused(cut in 0usize..1000) {
        let file = small_file();
        let gguf = parse(&file).unwrap();
        let last = gguf.tensors().iter().map(|t| t.offset + t.bytes).max().unwrap();
        let short = &file[..cut % last as usize];
        prop_assert!(parse(short).is_err());
        survives(short);
    }
}
