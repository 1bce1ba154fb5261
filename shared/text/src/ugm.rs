//! Unigram: SentencePiece's normalizer, then the tokenization with the greatest sum of scores (Viterbi).

use crate::prefix::PrefixSet;
use crate::vocab::{Attr, Vocab};

/// How much worse than the worst token an unknown character is.
const UNKNOWN_PENALTY: f32 = 10.0;

/// Tokens by prefix, and the normalizer.
#[derive(Debug)]
pub(crate) struct Ugm {
    tokens: PrefixSet,
    user_defined: PrefixSet,
    unknown_score: f32,
    charsmap: Charsmap,
}

/// The best way to tokenize up to some byte.
#[derive(Debug, Clone, Copy)]
struct Best {
    /// The last token; `None` for an unknown character.
    token: Option<u32>,
    /// Where that token starts.
    start: usize,
    score: f64,
}

impl Ugm {
    pub(crate) fn new(vocab: &Vocab) -> Self {
        let with = |attr: Attr| {
            let all = (0u32..).zip(&vocab.tokens).filter(move |(_, token)| token.attr.any(attr));
            PrefixSet::new(all.map(|(id, token)| (token.text.clone().into_bytes(), id)))
        };
        let normal = vocab.tokens.iter().filter(|token| token.attr.any(Attr::NORMAL));
        Self {
            tokens: with(Attr::NORMAL.with(Attr::USER_DEFINED).with(Attr::UNUSED)),
            user_defined: with(Attr::USER_DEFINED),
            unknown_score: normal.map(|token| token.score).fold(f32::MAX, f32::min) - UNKNOWN_PENALTY,
            charsmap: Charsmap::new(&vocab.charsmap),
        }
    }

    /// Appends the ids of `text`.
    pub(crate) fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        let text = self.normalize(vocab, text.as_bytes());
        if text.is_empty() {
            return;
        }
        let mut best = vec![Best { token: None, start: 0, score: f64::MIN }; text.len() + 1];
        best[0].score = 0.0;
        let mut at = 0;
        while at < text.len() {
            let from = best[at].score;
            let character = utf8_length(text[at]).min(text.len() - at);
            let mut alone = false;
            let mut offer = |token: Option<u32>, length: usize, score: f64| {
                let champion = &mut best[at + length];
                if from + score > champion.score {
                    *champion = Best { token, start: at, score: from + score };
                }
            };
            self.tokens.walk(&text[at..], |length, id| {
                alone |= length == character;
                let token = &vocab.tokens[id as usize];
                // Scores are negative, so a user-defined token wins over normal ones.
                let score = if token.attr.any(Attr::USER_DEFINED) { 0.0 } else { f64::from(token.score) };
                offer(Some(id), length, score);
            });
            if !alone {
                offer(None, character, f64::from(self.unknown_score));
            }
            at += character;
        }
        // From the end back; a run of unknown characters is one unknown token.
        let start = out.len();
        let mut after_unknown = false;
        let mut at = text.len();
        while at > 0 {
            let Best { token, start, .. } = best[at];
            let token = token.or(vocab.special.unk);
            let unknown = token == vocab.special.unk;
            if !(after_unknown && unknown) {
                out.extend(token);
            }
            after_unknown = unknown;
            at = start.min(at - 1);
        }
        out[start..].reverse();
    }

    /// Replaces characters by the map, and spaces as the switches say. The result may be no valid UTF-8, where a
    /// user-defined token starts like a character of the text.
    fn normalize(&self, vocab: &Vocab, text: &[u8]) -> Vec<u8> {
        let space: &[u8] = if vocab.flags.escape_spaces { "\u{2581}".as_bytes() } else { b" " };
        let (prefix, merge) = (vocab.flags.add_space_prefix, vocab.flags.remove_extra_whitespaces);
        let mut out = Vec::with_capacity(text.len() + text.len() / 2);
        let (mut prefixed, mut in_word) = (false, false);
        let mut rest = text;
        while !rest.is_empty() {
            let (normal, consumed) = self.normalize_one(rest);
            for &byte in normal {
                if byte == b' ' {
                    in_word = false;
                    if !merge {
                        out.extend_from_slice(space);
                    }
                    continue;
                }
                if !in_word {
                    in_word = true;
                    if (prefix && !prefixed) || merge {
                        out.extend_from_slice(space);
                        prefixed = true;
                    }
                }
                out.push(byte);
            }
            rest = &rest[consumed..];
        }
        out
    }

    /// What the text begins with, normalized, and how many bytes that covers (at least one).
    fn normalize_one<'a>(&'a self, text: &'a [u8]) -> (&'a [u8], usize) {
        // As far as the text goes along with some user-defined token, even if not to its end.
        let shared = self.user_defined.walk(text, |_, _| {});
        if shared > 0 {
            return (&text[..shared], shared);
        }
        if let Some(found) = self.charsmap.longest(text) {
            return found;
        }
        let length = utf8_length(text[0]);
        match text.get(..length) {
            Some(character) if std::str::from_utf8(character).is_ok() => (character, length),
            _ => ("\u{fffd}".as_bytes(), 1),
        }
    }
}

/// Bytes of the character that starts with `byte`, by its high bits alone.
fn utf8_length(byte: u8) -> usize {
    match byte {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    }
}

/// SentencePiece's map of characters: a double array of 32-bit units (10 bits and more of offset, a label in the low
/// byte, bit 8 for "a value follows"), then zero-terminated replacements.
#[derive(Debug)]
struct Charsmap {
    units: Vec<u32>,
    replacements: Vec<u8>,
}

impl Charsmap {
    /// `bytes` begins with the array's length in bytes, which the vocabulary has checked.
    fn new(bytes: &[u8]) -> Self {
        let parts = bytes
            .split_first_chunk::<4>()
            .and_then(|(length, rest)| rest.split_at_checked(u32::from_le_bytes(*length) as usize));
        let (array, replacements) = parts.unwrap_or_default();
        let unit = |chunk: &[u8]| chunk.try_into().map(u32::from_le_bytes).unwrap_or_default();
        Self { units: array.chunks_exact(4).map(unit).collect(), replacements: replacements.to_vec() }
    }

    /// The replacement of the longest prefix of `text` that has one, and that prefix's length. A map that points
    /// outside itself has none.
    fn longest(&self, text: &[u8]) -> Option<(&[u8], usize)> {
        let unit = |index: u32| self.units.get(index as usize).copied();
        let offset = |unit: u32| (unit >> 10) << ((unit & (1 << 9)) >> 6);
        let mut node = offset(unit(0)?);
        let mut best = None;
        for (at, &byte) in text.iter().enumerate() {
            node ^= u32::from(byte);
            let Some(here) =
                unit(node).filter(|here| byte != 0 && here & (1 << 31 | 0xff) == u32::from(byte))
            else {
                break;
            };
            node ^= offset(here);
            if here >> 8 & 1 == 1 {
                best = Some((unit(node)? & !(1 << 31), at + 1));
            }
        }
        let (start, length) = best?;
        let rest = self.replacements.get(start as usize..)?;
        let end = rest.iter().position(|&byte| byte == 0)?;
        Some((&rest[..end], length))
    }
}
