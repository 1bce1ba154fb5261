//! Ids of real vocabularies against vectors made by llama.cpp.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fs;

use shoal_text::Tokenizer;

#[test]
fn stories_vectors() {
    let tokenizer = Tokenizer::from_gguf(&common::stories()).unwrap();
    let path = common::test_models_dir().join("reference/tokenizer.json");
    let file: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let cases = file["cases"].as_array().unwrap();
    assert!(cases.len() > 10);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text, false, false), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false), text);
        let mut with_bos = ids;
        with_bos.insert(0, 0);
        assert_eq!(tokenizer.encode(text, true, false), with_bos, "{text:?}");
    }
    assert!(tokenizer.is_eog(0));
}

#[test]
fn shared_vectors() {
    let Some(dir) = common::shared_dir() else { return };
    for name in ["llama-bpe", "llama-spm", "qwen2"] {
        let file = |ending: &str| dir.join("vocab").join(format!("{name}.{ending}"));
        let tokenizer = Tokenizer::from_gguf(&common::metadata(&file("gguf"))).unwrap();
        let texts = fs::read_to_string(file("inp")).unwrap();
        let vectors = fs::read_to_string(file("out")).unwrap();
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let vectors: Vec<&str> = vectors.lines().collect();
        assert!(vectors.len() > 40, "{name}");
        // After the last separator there is nothing.
        assert_eq!(texts.len(), vectors.len() + 1, "{name}");
        for (text, vector) in texts.iter().zip(vectors) {
            let ids: Vec<u32> = vector.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(tokenizer.encode(text, false, false), ids, "{name}: {text:?}");
            assert_eq!(&tokenizer.decode(&ids, false), text, "{name}");
        }
    }
}
