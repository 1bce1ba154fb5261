//! WordPiece: words are made plain, then covered by the longest tokens from the left, or given up as unknown.

use crate::prefix::PrefixSet;
use crate::unicode::{Class, class, decomposed, lower};
use crate::vocab::Vocab;

/// All tokens by prefix.
#[derive(Debug)]
pub(crate) struct Wpm {
    tokens: PrefixSet,
}

impl Wpm {
    pub(crate) fn new(vocab: &Vocab) -> Self {
        let all = vocab.ids.iter().map(|(text, &id)| (text.clone().into_bytes(), id));
        Self { tokens: PrefixSet::new(all) }
    }

    /// Appends the ids of `text`.
    pub(crate) fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        for word in words(text, vocab.flags.lowercase, vocab.flags.strip_accents) {
            let start = out.len();
            // Tokens that begin a word are spelled with a mark before it.
            let word = format!("\u{2581}{word}");
            let mut rest = word.as_bytes();
            while let Some((length, id)) = self.tokens.longest(rest) {
                out.push(id);
                rest = &rest[length..];
            }
            if !rest.is_empty() {
                out.truncate(start);
                out.extend(vocab.special.unk);
            }
        }
    }
}

/// The words of a text: split at white space, and every punctuation mark and Chinese character for itself.
fn words(text: &str, lowercase: bool, strip_accents: bool) -> Vec<String> {
    let mut words = vec![String::new()];
    let open = |words: &mut Vec<String>| {
        if words.last().is_some_and(|word| !word.is_empty()) {
            words.push(String::new());
        }
    };
    for c in text.chars() {
        let c = if strip_accents { decomposed(c) } else { c };
        if c.is_whitespace() {
            open(&mut words);
            continue;
        }
        let class = class(c);
        if matches!(c, '\0' | '\u{fffd}') || class == Class::Control {
            continue;
        }
        if strip_accents && class == Class::Mark {
            continue;
        }
        let spelled = if lowercase { lower(c) } else { c };
        let alone = class == Class::Punctuation
            || (c < '\u{7f}' && class == Class::Symbol)
            || is_chinese(u32::from(c));
        if alone {
            open(&mut words);
        }
        if let Some(word) = words.last_mut() {
            word.push(spelled);
        }
        if alone {
            open(&mut words);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Characters that stand for themselves (the fifth range begins 256 later than the block does, as everywhere).
fn is_chinese(point: u32) -> bool {
    matches!(point,
        0x4e00..=0x9fff | 0x3400..=0x4dbf | 0x20000..=0x2a6df | 0x2a700..=0x2b73f | 0x2b740..=0x2b81f
        | 0x2b920..=0x2ceaf | 0xf900..=0xfaff | 0x2f800..=0x2fa1f)
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn words_are_plain() {
        assert_eq!(words("Hällo,  Wörld\u{0}!", true, true), ["hallo", ",", "world", "!"]);
        assert_eq!(words("Hällo €5 $5 中文", false, false), ["Hällo", "€5", "$", "5", "中", "文"]);
        assert!(words(" \t\u{a0}", true, true).is_empty());
    }
}
