//! Text to ids and ids to bytes.

use std::fmt;
use std::sync::Arc;

use shoal_engine::gguf::Metadata;

use crate::bpe::Bpe;
use crate::partition::{Fragment, Partition};
use crate::plamo2::Plamo2;
use crate::rwkv::{self, Rwkv};
use crate::spm::Spm;
use crate::ugm::Ugm;
use crate::unicode::char_byte;
use crate::vocab::{Attr, Model, Vocab};
use crate::wpm::Wpm;
use crate::{StreamDecoder, TextError};

/// A tokenizer. Cloning is cheap; all clones share one vocabulary.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    vocab: Vocab,
    algorithm: Algorithm,
    partition: Partition,
}

/// The algorithm with what it has prepared.
#[derive(Debug)]
enum Algorithm {
    Bpe(Bpe),
    Spm(Spm),
    Wpm(Wpm),
    Ugm(Ugm),
    Rwkv(Rwkv),
    Plamo2(Plamo2),
    Test,
}

impl fmt::Debug for Tokenizer {
    /// Names the kind and size: a vocabulary would fill pages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vocab = &self.inner.vocab;
        f.debug_struct("Tokenizer")
            .field("model", &vocab.model)
            .field("tokens", &vocab.len())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// The tokenizer of a model file.
    ///
    /// # Errors
    /// [`TextError`]: unknown model or pre-tokenizer, or an unusable vocabulary.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, TextError> {
        let vocab = Vocab::from_metadata(metadata)?;
        let algorithm = match vocab.model {
            Model::Bpe | Model::HybridDna | Model::Whitespace => Algorithm::Bpe(Bpe::new(&vocab)?),
            Model::Spm => Algorithm::Spm(Spm::new(&vocab)),
            Model::Wpm => Algorithm::Wpm(Wpm::new(&vocab)),
            Model::Ugm => Algorithm::Ugm(Ugm::new(&vocab)),
            Model::Rwkv => Algorithm::Rwkv(Rwkv::new(&vocab)),
            Model::Plamo2 => Algorithm::Plamo2(Plamo2::new(&vocab)?),
            Model::Test => Algorithm::Test,
        };
        let partition = Partition::new(&vocab)?;
        Ok(Self { inner: Arc::new(Inner { vocab, algorithm, partition }) })
    }

    /// The ids of a text. `add_special` adds BOS, EOS and the like as the vocabulary wants them; with `parse_special`
    /// the text of a control token becomes that token (user-defined tokens always do).
    #[must_use]
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        let Inner { vocab, algorithm, partition } = &*self.inner;
        let (before, after) = if add_special { self.around() } else { (None, None) };
        let mut out: Vec<u32> = before.into_iter().collect();
        let mut after_special = true;
        for fragment in partition.cut(vocab, text, parse_special) {
            let text = match fragment {
                Fragment::Special(id) => {
                    out.push(id);
                    after_special = true;
                    continue;
                }
                Fragment::Text(text) => text,
            };
            match algorithm {
                Algorithm::Bpe(bpe) => bpe.encode(vocab, text, &mut out),
                Algorithm::Spm(spm) => {
                    let prefix = if vocab.flags.add_space_prefix && after_special { " " } else { "" };
                    spm.encode(vocab, &[prefix, text].concat().replace(' ', "\u{2581}"), &mut out);
                }
                Algorithm::Wpm(wpm) => wpm.encode(vocab, text, &mut out),
                Algorithm::Ugm(ugm) => ugm.encode(vocab, text, &mut out),
                Algorithm::Rwkv(rwkv) => rwkv.encode(vocab, text, &mut out),
                Algorithm::Plamo2(plamo2) => plamo2.encode(text, &mut out),
                Algorithm::Test => {
                    out.extend(text.as_bytes().chunks(5).map(|chunk| hashed(chunk, vocab.len())))
                }
            }
            after_special = false;
        }
        out.extend(after);
        out
    }

    /// What `add_special` adds before and after a text.
    fn around(&self) -> (Option<u32>, Option<u32>) {
        let Vocab { model, special, flags, .. } = &self.inner.vocab;
        match model {
            Model::Rwkv | Model::Plamo2 | Model::Test => (None, None),
            Model::Wpm => (special.bos, special.sep),
            _ => (special.bos.filter(|_| flags.add_bos), special.eos.filter(|_| flags.add_eos)),
        }
    }

    /// The bytes of a token; several tokens may share one character. Control and unknown tokens give nothing unless
    /// `special`, and so does an id outside the vocabulary.
    #[must_use]
    pub fn token_bytes(&self, id: u32, special: bool) -> Vec<u8> {
        let vocab = &self.inner.vocab;
        let Some(token) = vocab.tokens.get(id as usize) else { return Vec::new() };
        let marks = Attr::UNKNOWN.with(Attr::CONTROL);
        if token.attr.any(marks) && !special {
            return Vec::new();
        }
        let text = &token.text;
        match vocab.model {
            Model::Rwkv => rwkv::unescape(text),
            Model::Test => format!("{id:x}").into_bytes(),
            Model::Plamo2 => {
                byte_of(token.attr, text).map_or_else(|| text.clone().into_bytes(), |byte| vec![byte])
            }
            _ if token.attr.any(marks.with(Attr::USER_DEFINED)) => text.clone().into_bytes(),
            _ if token.attr.any(Attr::BYTE) => byte_of(token.attr, text).into_iter().collect(),
            _ if !token.attr.any(Attr::NORMAL) => Vec::new(),
            model if model.is_bpe() && !vocab.flags.escape_spaces => spelled_bytes(text),
            _ => text.replace('\u{2581}', " ").into_bytes(),
        }
    }

    /// The text of a whole sequence. The space that encoding puts before a text is taken away again; control tokens
    /// are left out unless `special`. Bytes that are no UTF-8 become U+FFFD.
    #[must_use]
    pub fn decode(&self, ids: &[u32], special: bool) -> String {
        let Vocab { special: named, flags, .. } = &self.inner.vocab;
        let mut ids = ids;
        let mut strip = flags.add_space_prefix;
        if let [first, rest @ ..] = ids
            && !special
            && flags.add_bos
            && named.bos == Some(*first)
        {
            ids = rest;
        }
        let mut bytes = Vec::new();
        for &id in ids {
            let piece = self.token_bytes(id, special);
            let from = usize::from(strip && piece.first() == Some(&b' '));
            bytes.extend_from_slice(&piece[from..]);
            strip = strip && piece.is_empty();
        }
        match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }
    }

    /// Decodes a generation token by token; with `special`, control tokens are shown.
    #[must_use]
    pub fn stream(&self, special: bool) -> StreamDecoder {
        StreamDecoder::new(self.clone(), special)
    }

    /// The vocabulary.
    #[must_use]
    pub fn vocab(&self) -> &Vocab {
        &self.inner.vocab
    }

    /// Number of tokens.
    #[must_use]
    pub fn n_vocab(&self) -> usize {
        self.inner.vocab.len()
    }

    /// A token as spelled in the file.
    #[must_use]
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.inner.vocab.tokens.get(id as usize).map(|token| token.text.as_str())
    }

    /// The id of a token as spelled in the file.
    #[must_use]
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.inner.vocab.id(text)
    }

    /// What a token is.
    #[must_use]
    pub fn token_attr(&self, id: u32) -> Option<Attr> {
        self.inner.vocab.tokens.get(id as usize).map(|token| token.attr)
    }

    /// Beginning of sequence.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.inner.vocab.special.bos
    }

    /// End of sequence.
    #[must_use]
    pub fn eos(&self) -> Option<u32> {
        self.inner.vocab.special.eos
    }

    /// End of turn.
    #[must_use]
    pub fn eot(&self) -> Option<u32> {
        self.inner.vocab.special.eot
    }

    /// Whether a generation ends with this token.
    #[must_use]
    pub fn is_eog(&self, id: u32) -> bool {
        self.inner.vocab.end_of_generation.contains(&id)
    }

    /// All tokens that end a generation, ascending.
    pub fn eog_ids(&self) -> impl Iterator<Item = u32> {
        self.inner.vocab.end_of_generation.iter().copied()
    }

    /// Whether `add_special` puts BOS before a text.
    #[must_use]
    pub fn add_bos(&self) -> bool {
        self.inner.vocab.flags.add_bos
    }

    /// Whether `add_special` puts EOS after a text.
    #[must_use]
    pub fn add_eos(&self) -> bool {
        self.inner.vocab.flags.add_eos
    }
}

/// The bytes that a token spells in the byte alphabet; a character outside it stands for itself.
fn spelled_bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for c in text.chars() {
        match char_byte(c) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out
}

/// The byte that `<0xXX>` stands for, if the token is one of bytes and so spelled.
fn byte_of(attr: Attr, text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if attr.any(Attr::BYTE) && hex { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The id of a group of bytes in a `test` vocabulary.
fn hashed(chunk: &[u8], tokens: usize) -> u32 {
    let hash = chunk.iter().fold(0u64, |hash, &byte| hash * 31 + u64::from(byte));
    // A vocabulary has at least one token and no more than there are 32-bit ids.
    u32::try_from(hash % tokens.max(1) as u64).unwrap_or(0)
}
