//! Errors of reading and writing GGUF files. Each names what was wrong and where it was found.

use thiserror::Error;

/// Why a GGUF file could not be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The first four bytes are not `GGUF`.
    #[error("failed to read the header: wrong magic {found:02x?}, expected \"GGUF\"")]
    Magic {
        /// The four bytes that were there.
        found: [u8; 4],
    },
    /// The version field is byte-swapped: the file was written for big-endian machines.
    #[error(
        "failed to read the header: this is a big-endian file (version {version}), only little-endian is supported"
    )]
    BigEndian {
        /// The version after swapping its bytes.
        version: u32,
    },
    /// The version is neither 2 nor 3.
    #[error("failed to read the header: unsupported GGUF version {version}, expected 2 or 3")]
    Version {
        /// The version found.
        version: u32,
    },
    /// The file (or what is present of it) ends inside an item.
    #[error("failed to read {what} at byte {at}: the file ends before it does ({len} bytes long)")]
    Truncated {
        /// The item being read.
        what: String,
        /// Where it starts.
        at: u64,
        /// The file's length in bytes.
        len: u64,
    },
    /// The bytes could not be read.
    #[error("failed to read {what} at byte {at}: {source}")]
    Read {
        /// The item being read.
        what: String,
        /// Where it starts.
        at: u64,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A count or length is above its limit.
    #[error("failed to read {what} at byte {at}: {found} is above the limit of {limit}")]
    Limit {
        /// What is counted.
        what: String,
        /// Where it was found.
        at: u64,
        /// The figure in the file.
        found: u64,
        /// The greatest accepted.
        limit: u64,
    },
    /// A key or tensor name is not UTF-8.
    #[error("failed to read {what} at byte {at}: not UTF-8")]
    Utf8 {
        /// The item being read.
        what: String,
        /// Where it starts.
        at: u64,
    },
    /// A metadata value has a type number that GGUF does not define.
    #[error("failed to read metadata key {key:?} at byte {at}: unknown value type {found}")]
    ValueType {
        /// The key.
        key: String,
        /// Where the number was found.
        at: u64,
        /// The number.
        found: u32,
    },
    /// A boolean is neither 0 nor 1.
    #[error("failed to read metadata key {key:?} at byte {at}: {found} is not a boolean")]
    Bool {
        /// The key.
        key: String,
        /// Where it was found.
        at: u64,
        /// The byte.
        found: u8,
    },
    /// Two metadata entries share a key.
    #[error("failed to read the metadata: key {key:?} appears twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// `general.alignment` is unusable.
    #[error(
        "failed to read the metadata: general.alignment {found} is not a power of two of at most {limit}"
    )]
    Alignment {
        /// The alignment in the file.
        found: u64,
        /// The greatest accepted.
        limit: u64,
    },
    /// A metadata entry that the reader itself needs is unusable.
    #[error(transparent)]
    Metadata(#[from] super::MetadataError),
    /// Two tensors share a name.
    #[error("failed to read tensor {name:?}: the name appears twice")]
    DuplicateTensor {
        /// The name.
        name: String,
    },
    /// A tensor has no dimensions, too many, or one that is zero.
    #[error("failed to read tensor {name:?}: unusable shape {dims:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its dimensions, fastest first.
        dims: Vec<u64>,
    },
    /// The number of elements or bytes does not fit 64 bits.
    #[error("failed to read tensor {name:?}: the size of shape {dims:?} overflows")]
    Overflow {
        /// The tensor.
        name: String,
        /// Its dimensions, fastest first.
        dims: Vec<u64>,
    },
    /// The quantization is none of those that the engine reads.
    #[error("failed to read tensor {name:?}: quantization {kind} is not supported")]
    Quantization {
        /// The tensor.
        name: String,
        /// The quantization's ggml name (where known) and number.
        kind: String,
    },
    /// A row is not a whole number of blocks.
    #[error(
        "failed to read tensor {name:?}: rows of {row} elements are not a multiple of the {block} of {kind}"
    )]
    Blocks {
        /// The tensor.
        name: String,
        /// Elements in a row.
        row: u64,
        /// Elements in a block.
        block: u64,
        /// The quantization's name.
        kind: &'static str,
    },
    /// The tensor's data does not start on the file's alignment.
    #[error("failed to read tensor {name:?}: offset {offset} is not a multiple of the alignment {alignment}")]
    Misaligned {
        /// The tensor.
        name: String,
        /// Its offset in the data section.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// The tensor's data is not inside the file.
    #[error(
        "failed to read tensor {name:?}: its {bytes} bytes at byte {offset} lie outside the file of {len} bytes"
    )]
    Outside {
        /// The tensor.
        name: String,
        /// Its offset in the file.
        offset: u64,
        /// Its length.
        bytes: u64,
        /// The file's length.
        len: u64,
    },
    /// Two tensors share bytes.
    #[error("failed to read tensor {name:?}: its data overlaps that of {other:?}")]
    Overlap {
        /// The tensor that starts later.
        name: String,
        /// The one that starts earlier.
        other: String,
    },
    /// Writing failed.
    #[error("failed to write {what}: {source}")]
    Write {
        /// The item being written.
        what: String,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The caller wrote another number of bytes than the tensor has.
    #[error("failed to write tensor {name:?}: {written} bytes were given, its shape needs {expected}")]
    WrittenLength {
        /// The tensor.
        name: String,
        /// Bytes given.
        written: u64,
        /// Bytes needed.
        expected: u64,
    },
}
