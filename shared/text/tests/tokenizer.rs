//! What must hold for any text and any vocabulary: round trips, valid UTF-8, errors instead of panics, no quadratic
//! time.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use shoal_engine::gguf::{Array, Metadata, Value};
use shoal_text::{TextError, Tokenizer};

static STORIES: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::from_gguf(&common::stories()).unwrap());
static SPM: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::from_gguf(&spm()).unwrap());

fn string(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn strings(items: impl IntoIterator<Item = impl Into<String>>) -> Value {
    Value::Array(Array::String(items.into_iter().map(Into::into).collect()))
}

/// A SentencePiece vocabulary: marks, bytes, a few words.
fn spm() -> Metadata {
    let words =
        ["▁", "▁a", "ab", "▁ab", "c", "▁c", "abc", "<|turn|>", "<tool>", "<|eot_id|>", "<reserved_unused>"];
    let bytes = (0..=255u8).map(|byte| format!("<0x{byte:02X}>"));
    let tokens: Vec<String> = ["<unk>", "<s>", "</s>"]
        .map(str::to_owned)
        .into_iter()
        .chain(bytes)
        .chain(words.map(str::to_owned))
        .collect();
    let mut types = vec![2, 3, 3];
    types.extend([6; 256]);
    types.extend([1, 1, 1, 1, 1, 1, 1, 3, 4, 1, 3]);
    let mut scores = vec![0.0; 259];
    scores.extend((0..words.len()).map(|i| -(i as f32)));
    let mut metadata = Metadata::new();
    metadata.set("tokenizer.ggml.model", string("llama"));
    metadata.set("tokenizer.ggml.tokens", strings(tokens));
    metadata.set("tokenizer.ggml.token_type", Value::Array(Array::I32(types)));
    metadata.set("tokenizer.ggml.scores", Value::Array(Array::F32(scores)));
    metadata
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_text_comes_back(text in "\\PC*|[\\x00-\\x7f\\u{80}-\\u{fff}\\u{1f300}-\\u{1f6ff}]{0,80}") {
        for tokenizer in [&*STORIES, &*SPM] {
            let ids = tokenizer.encode(&text, false, false);
            prop_assert_eq!(&tokenizer.decode(&ids, true), &text);
            let with_special = tokenizer.encode(&text, true, false);
            prop_assert_eq!(with_special[0], tokenizer.bos().unwrap());
            prop_assert_eq!(&with_special[1..], &ids[..]);
        }
        let mut stream = STORIES.stream(false);
        let ids = STORIES.encode(&text, false, false);
        let mut streamed: String = ids.into_iter().map(|id| stream.push(id)).collect();
        streamed.push_str(&stream.finish());
        prop_assert_eq!(streamed, text);
    }

    #[test]
    fn any_ids_stream_as_they_decode(ids in prop::collection::vec(0u32..2100, 0..60), special: bool) {
        for tokenizer in [&*STORIES, &*SPM] {
            let mut stream = tokenizer.stream(special);
            let mut streamed = String::new();
            let mut bytes = Vec::new();
            for &id in &ids {
                streamed.push_str(&stream.push(id));
                bytes.extend(tokenizer.token_bytes(id, special));
            }
            streamed.push_str(&stream.finish());
            prop_assert_eq!(streamed, String::from_utf8_lossy(&bytes).into_owned());
            prop_assert!(!stream.is_pending());
        }
    }

    #[test]
    fn any_vocabulary_is_taken_or_refused(
        model in prop::sample::select(vec!["gpt2", "llama", "bert", "t5", "rwkv", "plamo2", "gemma4", "hybriddna", "whitespace", "test"]),
        tokens in prop::collection::vec("[a-d▁ <>x0-9\\\\é]{0,4}", 0..40),
        merges in prop::collection::vec("[a-d▁ ]{0,4}", 0..20),
        types in prop::collection::vec(-1i32..9, 0..40),
        scores in prop::collection::vec(prop::num::f32::ANY, 0..40),
        charsmap in prop::collection::vec(any::<u8>(), 0..64),
        id: u32,
        text in "[a-d <>▁é\\n0-9x]{0,30}",
    ) {
        let mut metadata = Metadata::new();
        metadata.set("tokenizer.ggml.model", string(model));
        metadata.set("tokenizer.ggml.pre", string(if model == "whitespace" { model } else { "gpt-2" }));
        metadata.set("tokenizer.ggml.tokens", strings(tokens));
        metadata.set("tokenizer.ggml.merges", strings(merges));
        metadata.set("tokenizer.ggml.token_type", Value::Array(Array::I32(types)));
        metadata.set("tokenizer.ggml.scores", Value::Array(Array::F32(scores)));
        metadata.set("tokenizer.ggml.bos_token_id", Value::U32(id));
        if id % 2 == 0 {
            metadata.set("tokenizer.ggml.precompiled_charsmap", Value::Array(Array::U8(charsmap)));
        }
        if let Ok(tokenizer) = Tokenizer::from_gguf(&metadata) {
            for id in tokenizer.encode(&text, true, true) {
                prop_assert!((id as usize) < tokenizer.n_vocab());
                let _ = tokenizer.token_bytes(id, true);
            }
        }
    }
}

#[test]
fn special_tokens() {
    let tokenizer = &*SPM;
    let id = |text: &str| tokenizer.token_id(text).unwrap();
    // Control tokens only when asked for; user-defined ones always; a space is put after each.
    assert_eq!(tokenizer.encode("<|turn|>ab", false, true), [id("<|turn|>"), id("▁ab")]);
    assert!(!tokenizer.encode("<|turn|>ab", false, false).contains(&id("<|turn|>")));
    assert_eq!(tokenizer.encode("ab<tool>ab", false, false), [id("▁ab"), id("<tool>"), id("▁ab")]);
    assert_eq!(tokenizer.encode("", true, false), [1]);
    assert!(tokenizer.encode("", false, false).is_empty());
    // An end of turn is known by its text and becomes a control token by it.
    assert!(tokenizer.is_eog(id("<|eot_id|>")) && tokenizer.is_eog(2) && !tokenizer.is_eog(1));
    assert_eq!(tokenizer.eot(), Some(id("<|eot_id|>")));
    assert!(tokenizer.token_bytes(id("<|eot_id|>"), false).is_empty());
    assert_eq!(tokenizer.token_bytes(id("<|eot_id|>"), true), b"<|eot_id|>");
    assert_eq!(tokenizer.token_bytes(id("<tool>"), false), b"<tool>");
    assert_eq!(tokenizer.decode(&[1, id("▁ab"), id("▁c")], false), "ab c");
    assert!(tokenizer.token_bytes(u32::MAX, true).is_empty());
    assert!(tokenizer.add_bos() && !tokenizer.add_eos());
}

#[test]
fn metadata_overrides() {
    let mut metadata = spm();
    metadata.set("tokenizer.ggml.add_bos_token", Value::Bool(false));
    metadata.set("tokenizer.ggml.add_eos_token", Value::Bool(true));
    metadata.set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    let ab = tokenizer.token_id("ab").unwrap();
    assert_eq!(tokenizer.encode("ab", true, false), [ab, 2]);
    // Phi-3 tokens take the white space after them along.
    metadata.set("general.name", string("Phi-3 mini"));
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    let turn = tokenizer.token_id("<|turn|>").unwrap();
    assert_eq!(tokenizer.encode("<|turn|> \n ab", false, true), [turn, ab]);
}

#[test]
fn unusable_vocabularies_are_refused() {
    let with = |key: &str, value: Value| {
        let mut metadata = spm();
        metadata.set(key, value);
        Tokenizer::from_gguf(&metadata).unwrap_err()
    };
    let error = with("tokenizer.ggml.model", string("bird"));
    assert!(matches!(&error, TextError::UnknownModel { name } if name == "bird"), "{error}");
    assert!(matches!(with("tokenizer.ggml.model", string("none")), TextError::NoVocabulary));
    assert!(matches!(with("tokenizer.ggml.tokens", strings([""; 0])), TextError::NoVocabulary));
    let error = with("tokenizer.ggml.tokens", strings(["a", "b", "a"]));
    assert!(matches!(error, TextError::DuplicateToken { first: 0, second: 2, .. }), "{error}");
    assert!(matches!(
        with("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.0]))),
        TextError::Length { .. }
    ));
    assert!(matches!(
        with("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![1]))),
        TextError::Length { .. }
    ));
    assert!(matches!(with("tokenizer.ggml.tokens", Value::U32(1)), TextError::Metadata(_)));
    assert!(matches!(Tokenizer::from_gguf(&Metadata::new()), Err(TextError::Metadata(_))));

    let mut metadata = common::stories();
    metadata.set("tokenizer.ggml.model", string("plamo2"));
    assert!(
        matches!(Tokenizer::from_gguf(&metadata), Err(TextError::Unusable { .. })),
        "no token for each byte"
    );

    let mut metadata = common::stories();
    metadata.set("tokenizer.ggml.pre", string("unheard-of"));
    let error = Tokenizer::from_gguf(&metadata).unwrap_err();
    assert!(matches!(&error, TextError::UnknownPre { name } if name == "unheard-of"), "{error}");
    // A pre-tokenizer means nothing to other models; an architecture means nothing to any.
    let mut metadata = spm();
    metadata.set("tokenizer.ggml.pre", string("unheard-of"));
    metadata.set("general.architecture", string("unheard-of"));
    metadata.set("tokenizer.ggml.bos_token_id", Value::U32(u32::MAX));
    assert_eq!(Tokenizer::from_gguf(&metadata).unwrap().bos(), Some(1));
}

/// A merge may join strings that are no tokens: what is left over falls back to single characters.
#[test]
fn merges_of_unknown_strings() {
    let mut metadata = Metadata::new();
    metadata.set("tokenizer.ggml.model", string("gpt2"));
    metadata.set("tokenizer.ggml.pre", string("gpt-2"));
    metadata.set("tokenizer.ggml.tokens", strings(["a", "b", "c", "abc"]));
    metadata.set("tokenizer.ggml.merges", strings(["a b", "ab c", "x y", "nospace", "c c"]));
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    assert_eq!(tokenizer.encode("abc", false, false), [3]);
    assert_eq!(tokenizer.encode("ab", false, false), [0, 1]);
    assert_eq!(tokenizer.encode("cc", false, false), [2, 2]);
    assert!(tokenizer.encode("xyz", false, false).is_empty());
}

#[test]
fn long_texts_take_linear_time() {
    let shared = common::shared_dir().map(|dir| dir.join("vocab"));
    let real = shared.iter().flat_map(|dir| {
        ["llama-bpe", "llama-spm", "qwen2"]
            .map(|name| common::metadata(&dir.join(name).with_extension("gguf")))
    });
    for metadata in [common::stories(), spm()].into_iter().chain(real) {
        let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
        let prose = "Once upon a time, in 1984, there were 3 ducks — “ab abc c” they said.\n".repeat(14_000);
        for text in
            [prose, "ab".repeat(50_000), " ".repeat(200_000) + "x", "7".repeat(200_000), "é😀".repeat(30_000)]
        {
            let start = Instant::now();
            let ids = tokenizer.encode(&text, false, true);
            let took = start.elapsed();
            assert!(took < Duration::from_secs(10), "{} bytes took {took:?}", text.len());
            assert_eq!(tokenizer.decode(&ids, false), text);
        }
    }
}
