//! Every pre-tokenizer against ids that llama.cpp gave, with a vocabulary in which each cut shows.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use serde::Deserialize;
use shoal_engine::gguf::{Array, Metadata, Value};
use shoal_text::Tokenizer;

#[derive(Deserialize)]
struct Golden {
    texts: Vec<String>,
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    pre: Vec<String>,
    ids: Vec<Vec<u32>>,
}

#[test]
fn ids_follow_llama_cpp() {
    let golden: Golden = serde_json::from_str(include_str!("data/pretokenizers.json")).unwrap();
    let mut metadata = pairs_vocabulary(&golden.texts);
    let mut names = 0;
    for group in &golden.groups {
        assert_eq!(group.ids.len(), golden.texts.len());
        for pre in &group.pre {
            names += 1;
            metadata.set("tokenizer.ggml.pre", Value::String(pre.clone()));
            let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
            for (text, ids) in golden.texts.iter().zip(&group.ids) {
                assert_eq!(&tokenizer.encode(text, false, false), ids, "{pre}: {text:?}");
                assert_eq!(&tokenizer.decode(ids, false), text, "{pre}");
            }
        }
    }
    assert!(names > 80 && golden.groups.len() > 20, "{names} names in {} groups", golden.groups.len());
}

/// The vocabulary that the golden file describes.
fn pairs_vocabulary(texts: &[String]) -> Metadata {
    let bytes: Vec<char> = common::byte_alphabet();
    let mut pairs: Vec<(char, char)> = Vec::new();
    for text in texts {
        for pair in text.as_bytes().windows(2) {
            let pair = (bytes[usize::from(pair[0])], bytes[usize::from(pair[1])]);
            if !pairs.contains(&pair) {
                pairs.push(pair);
            }
        }
    }
    let tokens = bytes.iter().map(char::to_string).chain(pairs.iter().map(|(a, b)| format!("{a}{b}")));
    let mut metadata = Metadata::new();
    metadata.set("tokenizer.ggml.model", Value::String("gpt2".to_owned()));
    metadata.set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens.collect())));
    let merges = pairs.iter().map(|(a, b)| format!("{a} {b}")).collect();
    metadata.set("tokenizer.ggml.merges", Value::Array(Array::String(merges)));
    metadata.set("tokenizer.ggml.add_bos_token", Value::Bool(false));
    metadata
}
