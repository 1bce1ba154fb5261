//! Why a vocabulary cannot be used. Text itself never fails to encode.

use shoal_engine::gguf::MetadataError;
use thiserror::Error;

/// Why a tokenizer could not be made from metadata.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TextError {
    /// `tokenizer.ggml.model` names no tokenizer we know.
    #[error("failed to read the tokenizer: unknown tokenizer model {name:?}")]
    UnknownModel {
        /// The name in the file.
        name: String,
    },
    /// `tokenizer.ggml.pre` names no pre-tokenizer we know.
    #[error("failed to read the tokenizer: unknown pre-tokenizer {name:?}")]
    UnknownPre {
        /// The name in the file.
        name: String,
    },
    /// The file says that it carries no vocabulary, or the vocabulary is empty.
    #[error("failed to read the tokenizer: the model has no vocabulary")]
    NoVocabulary,
    /// A metadata entry is missing or has the wrong type.
    #[error("failed to read the tokenizer: {0}")]
    Metadata(#[from] MetadataError),
    /// A metadata entry that holds one item per token has too few.
    #[error("failed to read the tokenizer: {key:?} has {found} entries for {tokens} tokens")]
    Length {
        /// The key.
        key: &'static str,
        /// Its number of entries.
        found: usize,
        /// The number of tokens.
        tokens: usize,
    },
    /// Two ids have the same text, so the text has no one id.
    #[error("failed to read the tokenizer: tokens {first} and {second} are both {text:?}")]
    DuplicateToken {
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
        /// Their text.
        text: String,
    },
    /// A metadata entry has a value that the tokenizer cannot work with.
    #[error("failed to read the tokenizer: {key:?} {problem}")]
    Unusable {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}
