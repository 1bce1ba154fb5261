//! Tokens with a task: read from the metadata, or found by their text as llama.cpp does.
//!
//! Where several texts qualify for one task, llama.cpp takes whichever its hash table shows first; here the order of
//! the lists decides. All of them end a generation in any case.

use shoal_engine::gguf::Metadata;

use crate::TextError;
use crate::vocab::{Attr, SpecialIds, Vocab};

/// Reads one special id.
type Slot = fn(&mut SpecialIds) -> &mut Option<u32>;

/// Metadata keys of special ids; the last three are the older names of three above.
const KEYS: &[(&str, Slot)] = &[
    ("tokenizer.ggml.bos_token_id", |ids| &mut ids.bos),
    ("tokenizer.ggml.eos_token_id", |ids| &mut ids.eos),
    ("tokenizer.ggml.eot_token_id", |ids| &mut ids.eot),
    ("tokenizer.ggml.eom_token_id", |ids| &mut ids.eom),
    ("tokenizer.ggml.unknown_token_id", |ids| &mut ids.unk),
    ("tokenizer.ggml.seperator_token_id", |ids| &mut ids.sep),
    ("tokenizer.ggml.padding_token_id", |ids| &mut ids.pad),
    ("tokenizer.ggml.mask_token_id", |ids| &mut ids.mask),
    ("tokenizer.ggml.fim_pre_token_id", |ids| &mut ids.fim_pre),
    ("tokenizer.ggml.fim_suf_token_id", |ids| &mut ids.fim_suf),
    ("tokenizer.ggml.fim_mid_token_id", |ids| &mut ids.fim_mid),
    ("tokenizer.ggml.fim_pad_token_id", |ids| &mut ids.fim_pad),
    ("tokenizer.ggml.fim_rep_token_id", |ids| &mut ids.fim_rep),
    ("tokenizer.ggml.fim_sep_token_id", |ids| &mut ids.fim_sep),
    ("tokenizer.ggml.prefix_token_id", |ids| &mut ids.fim_pre),
    ("tokenizer.ggml.suffix_token_id", |ids| &mut ids.fim_suf),
    ("tokenizer.ggml.middle_token_id", |ids| &mut ids.fim_mid),
];

/// Texts that are the token for a task when the metadata names none.
const BY_TEXT: &[(Slot, &[&str])] = &[
    (
        |ids| &mut ids.eot,
        &[
            "<|eot_id|>",
            "<|im_end|>",
            "<|end|>",
            "<end_of_turn>",
            "<|endoftext|>",
            "<|end_of_text|>",
            "<EOT>",
            "_<EOT>",
            "[EOT]",
            "<｜end▁of▁sentence｜>",
            "<end_of_utterance>",
        ],
    ),
    (|ids| &mut ids.eom, &["<|eom_id|>"]),
    (
        |ids| &mut ids.fim_pre,
        &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
    ),
    (
        |ids| &mut ids.fim_suf,
        &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
    ),
    (
        |ids| &mut ids.fim_mid,
        &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
    ),
    (|ids| &mut ids.fim_pad, &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"]),
    (|ids| &mut ids.fim_rep, &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"]),
    (|ids| &mut ids.fim_sep, &["<|file_sep|>"]),
];

/// Texts that end a generation.
const END_OF_GENERATION: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Marks of one dialect that are shown as text.
const SHOWN: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Takes special ids from the metadata. One outside the vocabulary is passed over, with a warning.
///
/// # Errors
/// A key holds something other than an integer.
pub(crate) fn read_ids(vocab: &mut Vocab, metadata: &Metadata) -> Result<(), TextError> {
    let in_range = |id: u32| (id as usize) < vocab.tokens.len();
    for &(key, slot) in KEYS {
        let slot = slot(&mut vocab.special);
        *slot = slot.filter(|&id| in_range(id));
        match metadata.u32(key)? {
            Some(id) if in_range(id) => *slot = Some(id),
            Some(id) => tracing::warn!("{key} is {id}, which is no token: ignored"),
            None => {}
        }
    }
    Ok(())
}

/// Finds special tokens by their text, and the tokens that end a generation.
pub(crate) fn detect(vocab: &mut Vocab) {
    for &(slot, texts) in BY_TEXT {
        if slot(&mut vocab.special).is_none()
            && let Some(id) = texts.iter().find_map(|text| vocab.id(text))
        {
            *slot(&mut vocab.special) = Some(id);
            add(vocab, id, Attr::CONTROL);
        }
    }
    for token in &mut vocab.tokens {
        if token.attr.any(Attr::CONTROL) && token.text.contains("unused") {
            token.attr = token.attr.with(Attr::UNUSED);
        }
    }
    for text in END_OF_GENERATION {
        if let Some(id) = vocab.id(text) {
            vocab.end_of_generation.insert(id);
            add(vocab, id, Attr::CONTROL);
        }
    }
    for text in SHOWN {
        if let Some(id) = vocab.id(text) {
            set(vocab, id, Attr::USER_DEFINED);
        }
    }
    let ids = &vocab.special;
    let ends = [ids.fim_pad, ids.fim_rep, ids.fim_sep, ids.eos, ids.eot, ids.eom];
    vocab.end_of_generation.extend(ends.into_iter().flatten());
    exceptions(vocab);
}

/// Two dialects use a mark that elsewhere ends a generation within one.
fn exceptions(vocab: &mut Vocab) {
    let ends = |vocab: &Vocab, text: &str| vocab.id(text).filter(|id| vocab.end_of_generation.contains(id));
    let call = ends(vocab, "<|call|>").or(ends(vocab, "<|calls|>")).is_some();
    let other = ends(vocab, "<|return|>").or(ends(vocab, "<|flush|>")).is_some();
    if call
        && other
        && let Some(id) = ends(vocab, "<|end|>")
    {
        vocab.end_of_generation.remove(&id);
        set(vocab, id, Attr::USER_DEFINED);
    }
    let own = ends(vocab, "<|tool_response>").or(ends(vocab, "<|plamo:eos|>")).is_some();
    if own && let Some(id) = ends(vocab, "</s>") {
        vocab.end_of_generation.remove(&id);
        set(vocab, id, Attr::NORMAL);
    }
}

/// Sets which special tokens take white space along: the file does not say, so known models are listed.
/// `title` is `general.name` in lower case.
pub(crate) fn strip_rules(vocab: &mut Vocab, pre: &str, title: &str) {
    let any = |text: &str, parts: &[&str]| parts.iter().any(|part| text.contains(part));
    if any(pre, &["jina-v2-de", "jina-v2-es", "jina-v2-code"]) {
        if let Some(id) = vocab.id("<mask>") {
            add(vocab, id, Attr::LSTRIP);
        }
    } else if any(title, &["phi-3", "phi3"]) {
        let keeps = ["<unk>", "<s>", "<|endoftext|>"].map(|text| vocab.id(text));
        let takes = vocab.id("</s>");
        for (id, token) in (0u32..).zip(&mut vocab.tokens) {
            if (token.attr.any(SPECIAL) || takes == Some(id)) && !keeps.contains(&Some(id)) {
                token.attr = token.attr.with(Attr::RSTRIP);
            }
        }
    } else if any(title, &["modern-bert"])
        && let Some(id) = vocab.id("[MASK]")
    {
        add(vocab, id, Attr::LSTRIP);
    }
}

/// Tokens that are cut out of a text before anything else.
pub(crate) const SPECIAL: Attr = Attr::CONTROL.with(Attr::USER_DEFINED).with(Attr::UNKNOWN);

fn add(vocab: &mut Vocab, id: u32, attr: Attr) {
    if let Some(token) = vocab.tokens.get_mut(id as usize) {
        token.attr = token.attr.with(attr);
    }
}

fn set(vocab: &mut Vocab, id: u32, attr: Attr) {
    if let Some(token) = vocab.tokens.get_mut(id as usize) {
        token.attr = attr;
    }
}
