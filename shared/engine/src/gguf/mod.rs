//! GGUF files, versions 2 and 3, little-endian: header, metadata and the table of tensors.
//!
//! Reading is safe Rust and takes nothing on trust: every count and length is held against the file's length and the
//! limits below before memory is allocated for it. Tensor data is not touched; [`TensorInfo`] says where it lies. What
//! the metadata means for a model is `model`'s business, and what it means for text is the text crate's.
//!
//! Called by `model` (loading), the text crate (tokenizer and templates) and, for writing, by `shoal synth` and tests.

mod error;
mod metadata;
mod read;
mod write;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

pub use error::GgufError;
pub use metadata::{Array, Metadata, MetadataError, Value};
use shoal_core::QuantType;
pub use write::GgufWriter;

/// Bytes before the data section. Vocabularies of 256k tokens with merges take about 20 MiB.
pub const MAX_METADATA_BYTES: u64 = 256 << 20;
/// Bytes of one string. Chat templates, the longest in practice, stay under 64 KiB.
pub const MAX_STRING_BYTES: u64 = 16 << 20;
/// Elements of one array. The longest in practice are merges, under 1 M.
pub const MAX_ARRAY_ENTRIES: u64 = 16 << 20;
/// Metadata entries. Real files have under 100; this bounds the index built over them.
pub const MAX_KEYS: u64 = 65_536;
/// Tensors. The largest dense models have under 2,000.
pub const MAX_TENSORS: u64 = 65_536;
/// Dimensions of a tensor, the format's own limit.
pub const MAX_DIMS: usize = 4;
/// Arrays within arrays. No real file nests more than two.
pub const MAX_ARRAY_DEPTH: usize = 4;
/// Greatest `general.alignment`: beyond a huge page it would only waste space.
pub const MAX_ALIGNMENT: u64 = 2 << 20;
/// Alignment of tensor data where the metadata does not say otherwise.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// Memory that parsing holds at most, per byte of header that was really there (plus a small constant). Reached by
/// arrays of empty strings: 24 bytes of `String` for 8 bytes of file; the rest is the index.
pub const MAX_ALLOCATION_PER_BYTE: u64 = 16;

/// A parsed file: everything but the tensor data.
#[derive(Debug, Clone)]
pub struct Gguf {
    /// 2 or 3.
    pub version: u32,
    /// Keys and values.
    pub metadata: Metadata,
    /// Alignment of tensor data in bytes, a power of two.
    pub alignment: u64,
    /// Where the data section starts, in bytes from the start of the file.
    pub data_offset: u64,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
}

/// Where one tensor lies and how to read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Unique in the file.
    pub name: String,
    /// 1 to 4 dimensions, none zero, the fastest first: `dims[0]` is the row length (a matrix's input columns).
    pub dims: Vec<u64>,
    /// How elements are stored.
    pub kind: QuantType,
    /// Where the data starts, in bytes from the start of the file.
    pub offset: u64,
    /// Length of the data in bytes.
    pub bytes: u64,
}

impl Gguf {
    /// Reads the header, metadata and tensor table from `source`, the start of a file of `file_len` bytes.
    ///
    /// `source` need hold no more than the bytes before the data section; it is read in small pieces, so give it a
    /// buffer (`&[u8]` has one by nature).
    ///
    /// # Errors
    /// See [`GgufError`]; nothing is allocated for lengths that the file or the limits cannot hold.
    pub fn parse(source: impl Read, file_len: u64) -> Result<Self, GgufError> {
        read::file(source, file_len)
    }

    /// Reads only the metadata: for tokenizers, which serve files whose tensors the engine cannot read.
    ///
    /// # Errors
    /// See [`GgufError`].
    pub fn parse_metadata(source: impl Read, file_len: u64) -> Result<Metadata, GgufError> {
        read::metadata_only(source, file_len)
    }

    /// [`Gguf::parse`] of a file on disk.
    ///
    /// # Errors
    /// See [`GgufError`].
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let (source, len) = open(path)?;
        Self::parse(source, len)
    }

    /// [`Gguf::parse_metadata`] of a file on disk.
    ///
    /// # Errors
    /// See [`GgufError`].
    pub fn open_metadata(path: &Path) -> Result<Metadata, GgufError> {
        let (source, len) = open(path)?;
        Self::parse_metadata(source, len)
    }

    /// The tensors, in file order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&i| &self.tensors[i])
    }
}

impl TensorInfo {
    /// Elements in a row.
    #[must_use]
    pub fn row_len(&self) -> u64 {
        self.dims[0]
    }

    /// Number of rows: the product of all dimensions but the first.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.dims[1..].iter().product()
    }

    /// Bytes of one row.
    #[must_use]
    pub fn row_bytes(&self) -> u64 {
        self.bytes / self.rows()
    }
}

fn open(path: &Path) -> Result<(BufReader<File>, u64), GgufError> {
    let open = || {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok((BufReader::new(file), len))
    };
    open().map_err(|source| GgufError::Read { what: path.display().to_string(), at: 0, source })
}
