//! Text in and out of a model: tokenizers and chat templates, both from GGUF metadata alone.
//!
//! What lives here: reading a vocabulary ([`Vocab`]), text to ids and ids to bytes ([`Tokenizer`]), bytes to a stream
//! of valid UTF-8 ([`StreamDecoder`]), and rendering of chat templates ([`ChatTemplate`]). What does not: anything
//! about tensors or the model's architecture. A vocabulary-only GGUF is enough, and `general.architecture` is never
//! read. The coordinator calls this crate; a worker needs none of it.
//!
//! Ids follow llama.cpp for every `tokenizer.ggml.model` and `tokenizer.ggml.pre` it knows. The algorithms are our
//! own rather than those of the `tokenizers` crate, because llama.cpp's differ from it in ways that show in ids:
//! - BPE merges join strings, not ids: a merge may pass through a string that is no token, and what remains without
//!   an id falls back byte by byte or vanishes (`tokenizers` refuses such a vocabulary);
//! - SentencePiece vocabularies of type BPE are merged by score, without a merge list;
//! - special tokens are cut out longest first over the whole text, and user-defined ones always;
//! - Unigram works on the normalizer's raw double array with llama.cpp's own treatment of user-defined tokens;
//! - WordPiece gives up on a whole word by other rules, RWKV and PLaMo-2 are not there at all.
//!
//! `tokenizers` normalizes for WordPiece. One thing of llama.cpp's is left out: it tidies spaces before punctuation
//! when it decodes some vocabularies, which would keep a text from coming back as it was.

mod bpe;
mod error;
mod partition;
mod plamo2;
mod prefix;
mod pretokenizers;
mod rwkv;
mod special;
mod split;
mod spm;
mod stream;
pub mod template;
mod tokenizer;
mod ugm;
mod unicode;
mod vocab;
mod wpm;

pub use error::TextError;
pub use stream::StreamDecoder;
pub use template::{ChatTemplate, PLAIN_TEMPLATE, RenderInput, TemplateError};
pub use tokenizer::Tokenizer;
pub use vocab::{Attr, Flags, Model, SpecialIds, Token, Vocab};
