//! The vocabulary as the metadata tells it: tokens with their attributes, special ids and switches.
//!
//! Everything that can be wrong with a vocabulary is found here, so that encoding and decoding cannot fail. What the
//! file leaves out is filled in as llama.cpp does (`special` finds tokens by their text).

use std::collections::{BTreeSet, HashMap};

use shoal_engine::gguf::{Array, Metadata, Value};

use crate::TextError;
use crate::pretokenizers::{self, Pre};
use crate::special;

/// Which algorithm a vocabulary is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Model {
    /// `gpt2`, `gemma4`: byte pair encoding with a list of merges.
    Bpe,
    /// `hybriddna`: the same, with DNA between tags in groups of six.
    HybridDna,
    /// `whitespace`: the same, each word for itself and white space dropped.
    Whitespace,
    /// `llama`: SentencePiece pairs merged by score.
    Spm,
    /// `bert`: WordPiece.
    Wpm,
    /// `t5`: Unigram.
    Ugm,
    /// `rwkv`: longest match.
    Rwkv,
    /// `plamo2`: Unigram over suffixes.
    Plamo2,
    /// `test`: groups of five bytes hashed to ids; for tests of models that have no text.
    Test,
}

/// What a token is. A token has one kind in the file; some get a second one by their text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attr(u8);

impl Attr {
    /// Stands for what has no token.
    pub const UNKNOWN: Self = Self(1);
    /// Never used.
    pub const UNUSED: Self = Self(2);
    /// Text.
    pub const NORMAL: Self = Self(4);
    /// Speaks to the model: BOS, turn marks.
    pub const CONTROL: Self = Self(8);
    /// Text that is always one token.
    pub const USER_DEFINED: Self = Self(16);
    /// One byte, spelled `<0xXX>`.
    pub const BYTE: Self = Self(32);
    /// Takes the white space before it along.
    pub const LSTRIP: Self = Self(64);
    /// Takes the white space after it along.
    pub const RSTRIP: Self = Self(128);

    /// Whether any attribute of `other` is set.
    #[must_use]
    pub fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Both together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This without `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// From the number in `tokenizer.ggml.token_type`.
    fn from_type(kind: i64) -> Self {
        match kind {
            1 => Self::NORMAL,
            2 => Self::UNKNOWN,
            3 => Self::CONTROL,
            4 => Self::USER_DEFINED,
            5 => Self::UNUSED,
            6 => Self::BYTE,
            _ => Self::default(),
        }
    }
}

/// One token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// As spelled in the file.
    pub text: String,
    /// Score of `llama`, `t5` and `plamo2` vocabularies; 0 in others.
    pub score: f32,
    /// What it is.
    pub attr: Attr,
}

/// Tokens with a task; `None` where the vocabulary has none such.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the token of its name")]
pub struct SpecialIds {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    pub eom: Option<u32>,
    pub unk: Option<u32>,
    pub sep: Option<u32>,
    pub pad: Option<u32>,
    pub mask: Option<u32>,
    pub fim_pre: Option<u32>,
    pub fim_suf: Option<u32>,
    pub fim_mid: Option<u32>,
    pub fim_pad: Option<u32>,
    pub fim_rep: Option<u32>,
    pub fim_sep: Option<u32>,
}

/// Switches of a vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "the metadata holds these switches one by one")]
pub struct Flags {
    /// BOS before a text.
    pub add_bos: bool,
    /// EOS after a text.
    pub add_eos: bool,
    /// SEP between texts, for callers that join several; encoding one text adds none (WordPiece always does).
    pub add_sep: bool,
    /// A space before a text and after each special token.
    pub add_space_prefix: bool,
    /// Runs of spaces count as one.
    pub remove_extra_whitespaces: bool,
    /// Spaces are spelled `▁`.
    pub escape_spaces: bool,
    /// Text is made lower case.
    pub lowercase: bool,
    /// Accents are dropped.
    pub strip_accents: bool,
}

/// A vocabulary, checked.
#[derive(Debug, Clone)]
pub struct Vocab {
    /// The algorithm.
    pub(crate) model: Model,
    /// The pre-tokenizer, for BPE.
    pub(crate) pre: Pre,
    /// All tokens; an id is an index.
    pub(crate) tokens: Vec<Token>,
    /// Ids by text.
    pub(crate) ids: HashMap<String, u32>,
    /// `first second` in order of rank, for BPE.
    pub(crate) merges: Vec<String>,
    /// SentencePiece's normalizer, for Unigram.
    pub(crate) charsmap: Vec<u8>,
    /// Tokens with a task.
    pub(crate) special: SpecialIds,
    /// Ids that end a generation.
    pub(crate) end_of_generation: BTreeSet<u32>,
    /// Switches.
    pub(crate) flags: Flags,
    /// Length of the longest token in bytes.
    pub(crate) longest: usize,
}

/// Marks the DNA words of `hybriddna` vocabularies apart from equal text tokens.
pub(crate) const DNA_MARKER: &str = "\u{e000}";

impl Vocab {
    /// Reads a vocabulary.
    ///
    /// # Errors
    /// [`TextError`] says what is missing, unknown or contradictory.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TextError> {
        let name = metadata.require("tokenizer.ggml.model", Metadata::string)?;
        let model = model_of(name)?;
        let pre_name = metadata.string("tokenizer.ggml.pre")?.unwrap_or_default();
        let pre = if name == "gemma4" { pre_of("gemma4")? } else { pre_for(model, pre_name)? };
        let tokens = read_tokens(metadata)?;
        let ids = index(&tokens)?;
        let mut vocab = Self {
            model,
            pre,
            longest: tokens.iter().map(|token| token.text.len()).max().unwrap_or(0),
            tokens,
            ids,
            merges: read_merges(metadata, model, pre_name)?,
            charsmap: read_charsmap(metadata, model)?,
            special: default_special(name, model, &pre),
            end_of_generation: BTreeSet::new(),
            flags: default_flags(model, &pre),
        };
        vocab.unmark_dna();
        special::read_ids(&mut vocab, metadata)?;
        read_flags(&mut vocab, metadata)?;
        special::detect(&mut vocab);
        let title = metadata.get("general.name").and_then(|value| match value {
            Value::String(text) => Some(text.to_ascii_lowercase()),
            _ => None,
        });
        special::strip_rules(&mut vocab, pre_name, &title.unwrap_or_default());
        Ok(vocab)
    }

    /// The id of a token by its text.
    #[must_use]
    pub fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// The token `<0xXX>` for a byte.
    pub(crate) fn byte_id(&self, byte: u8) -> Option<u32> {
        self.id(&format!("<0x{byte:02X}>"))
    }

    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Never: a vocabulary without tokens is refused.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// DNA words after `<oov>` are shown without their marker; their ids are still found with it.
    fn unmark_dna(&mut self) {
        if self.model == Model::HybridDna
            && let Some(&oov) = self.ids.get("<oov>")
        {
            for token in self.tokens.iter_mut().skip(oov as usize + 1) {
                if let Some(bare) = token.text.strip_suffix(DNA_MARKER) {
                    token.text = bare.to_owned();
                }
            }
        }
    }
}

fn model_of(name: &str) -> Result<Model, TextError> {
    Ok(match name {
        "gpt2" | "gemma4" => Model::Bpe,
        "hybriddna" => Model::HybridDna,
        "whitespace" => Model::Whitespace,
        "llama" => Model::Spm,
        "bert" => Model::Wpm,
        "t5" => Model::Ugm,
        "rwkv" => Model::Rwkv,
        "plamo2" => Model::Plamo2,
        "test" => Model::Test,
        "none" | "no_vocab" => return Err(TextError::NoVocabulary),
        _ => return Err(TextError::UnknownModel { name: name.to_owned() }),
    })
}

impl Model {
    /// Whether merges and a pre-tokenizer belong to it.
    pub(crate) fn is_bpe(self) -> bool {
        matches!(self, Self::Bpe | Self::HybridDna | Self::Whitespace)
    }
}

fn pre_of(name: &str) -> Result<Pre, TextError> {
    pretokenizers::lookup(name).ok_or_else(|| TextError::UnknownPre { name: name.to_owned() })
}

/// Only BPE has pre-tokenizers; other models may name one, which means nothing.
fn pre_for(model: Model, name: &str) -> Result<Pre, TextError> {
    if !model.is_bpe() {
        return pre_of("default");
    }
    if name.is_empty() {
        tracing::warn!(
            "the model names no pre-tokenizer: using the default one, which may not be the right one"
        );
        return pre_of("default");
    }
    pre_of(name)
}

/// What llama.cpp assumes of tokens that the metadata does not name.
fn default_special(name: &str, model: Model, pre: &Pre) -> SpecialIds {
    let none = SpecialIds::default();
    match model {
        Model::Bpe if name == "gemma4" => none,
        Model::Bpe | Model::HybridDna | Model::Whitespace => {
            SpecialIds { bos: (!pre.no_default_bos).then_some(11), eos: Some(11), ..none }
        }
        Model::Spm => SpecialIds { bos: Some(1), eos: Some(2), unk: Some(0), ..none },
        Model::Wpm => SpecialIds {
            bos: Some(101),
            unk: Some(100),
            sep: Some(102),
            pad: Some(0),
            mask: Some(103),
            ..none
        },
        Model::Ugm => SpecialIds { eos: Some(1), unk: Some(2), pad: Some(0), ..none },
        Model::Plamo2 => SpecialIds { bos: Some(1), eos: Some(2), unk: Some(0), pad: Some(3), ..none },
        Model::Rwkv | Model::Test => none,
    }
}

fn default_flags(model: Model, pre: &Pre) -> Flags {
    let bpe = model.is_bpe();
    Flags {
        add_bos: if bpe { pre.add_bos } else { matches!(model, Model::Spm | Model::Wpm) },
        add_eos: model == Model::Ugm,
        add_sep: if bpe { pre.add_sep } else { model == Model::Wpm },
        add_space_prefix: model == Model::Spm,
        remove_extra_whitespaces: false,
        escape_spaces: if bpe { pre.escape_spaces } else { true },
        lowercase: true,
        strip_accents: true,
    }
}

fn read_flags(vocab: &mut Vocab, metadata: &Metadata) -> Result<(), TextError> {
    let flags = &mut vocab.flags;
    let read = |key: &str, default: bool| metadata.bool(key).map(|flag| flag.unwrap_or(default));
    flags.add_space_prefix = read("tokenizer.ggml.add_space_prefix", flags.add_space_prefix)?;
    flags.remove_extra_whitespaces =
        read("tokenizer.ggml.remove_extra_whitespaces", flags.remove_extra_whitespaces)?;
    flags.add_bos = read("tokenizer.ggml.add_bos_token", flags.add_bos)? || vocab.pre.force_bos;
    flags.add_eos = read("tokenizer.ggml.add_eos_token", flags.add_eos)?;
    flags.add_sep = read("tokenizer.ggml.add_sep_token", flags.add_sep)?;
    // The whitespace pre-tokenizer keeps capitals unless told otherwise.
    let keeps_case = vocab.pre.rules.len() == 1 && !vocab.pre.byte_level && !vocab.pre.escape_spaces;
    flags.lowercase = read("tokenizer.ggml.normalizer.lowercase", !keeps_case)?;
    flags.strip_accents = read("tokenizer.ggml.normalizer.strip_accents", flags.lowercase)?;
    Ok(())
}

fn read_tokens(metadata: &Metadata) -> Result<Vec<Token>, TextError> {
    let texts = metadata.require("tokenizer.ggml.tokens", Metadata::strings)?;
    if texts.is_empty() {
        return Err(TextError::NoVocabulary);
    }
    let scores: Option<Vec<f32>> = match metadata.get("tokenizer.ggml.scores") {
        Some(Value::Array(Array::I32(items))) => Some(items.iter().map(|&score| score as f32).collect()),
        _ => metadata.f32s("tokenizer.ggml.scores")?.map(<[f32]>::to_vec),
    };
    let types = metadata.i32s("tokenizer.ggml.token_type")?;
    let fits = |key, found: Option<usize>| match found {
        Some(found) if found < texts.len() => Err(TextError::Length { key, found, tokens: texts.len() }),
        _ => Ok(()),
    };
    fits("tokenizer.ggml.scores", scores.as_ref().map(Vec::len))?;
    fits("tokenizer.ggml.token_type", types.as_ref().map(Vec::len))?;
    let token = |(i, text): (usize, &String)| Token {
        text: if text.is_empty() { format!("[EMPTY_{i}]") } else { text.clone() },
        score: scores.as_ref().map_or(0.0, |scores| scores[i]),
        attr: types.as_ref().map_or(Attr::NORMAL, |types| Attr::from_type(i64::from(types[i]))),
    };
    Ok(texts.iter().enumerate().map(token).collect())
}

fn index(tokens: &[Token]) -> Result<HashMap<String, u32>, TextError> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, token) in (0u32..).zip(tokens) {
        if let Some(first) = ids.insert(token.text.clone(), id) {
            return Err(TextError::DuplicateToken { first, second: id, text: token.text.clone() });
        }
    }
    Ok(ids)
}

fn read_merges(metadata: &Metadata, model: Model, pre: &str) -> Result<Vec<String>, TextError> {
    const KEY: &str = "tokenizer.ggml.merges";
    if !model.is_bpe() {
        return Ok(Vec::new());
    }
    match metadata.strings(KEY)? {
        Some(merges) => Ok(merges.to_vec()),
        None if pre == "kimi-k2" => Ok(Vec::new()),
        None => Ok(metadata.require(KEY, Metadata::strings)?.to_vec()),
    }
}

fn read_charsmap(metadata: &Metadata, model: Model) -> Result<Vec<u8>, TextError> {
    const KEY: &str = "tokenizer.ggml.precompiled_charsmap";
    let unusable = |problem: &str| TextError::Unusable { key: KEY, problem: problem.to_owned() };
    let map: Vec<u8> = match metadata.get(KEY) {
        Some(Value::Array(Array::U8(bytes))) if model == Model::Ugm => bytes.clone(),
        Some(Value::Array(Array::I8(bytes))) if model == Model::Ugm => {
            bytes.iter().map(|&byte| byte.cast_unsigned()).collect()
        }
        Some(_) if model == Model::Ugm => return Err(unusable("is not an array of bytes")),
        _ => return Ok(Vec::new()),
    };
    let Some(length) = map.first_chunk::<4>() else {
        return Err(unusable("is too short for its length"));
    };
    if u32::from_le_bytes(*length) as usize >= map.len() - 4 {
        return Err(unusable("says that it is longer than it is"));
    }
    Ok(map)
}
