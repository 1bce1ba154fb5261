//! Cutting special tokens out of a text.
//!
//! Longest token first, each over all text that is left, from the left; so a long token wins over a shorter one that
//! starts earlier. One pass over the text first finds which tokens occur at all: a vocabulary may have thousands.

use aho_corasick::{AhoCorasick, MatchKind};

use crate::TextError;
use crate::special::SPECIAL;
use crate::vocab::{Attr, Token, Vocab};

/// A stretch of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragment<'a> {
    /// Text without special tokens.
    Text(&'a str),
    /// A special token.
    Special(u32),
}

/// The special tokens of a vocabulary.
#[derive(Debug)]
pub(crate) struct Partition {
    /// Ids, longest text first.
    ids: Vec<u32>,
    /// Finds their texts, numbered as in `ids`.
    searcher: AhoCorasick,
}

impl Partition {
    /// Collects the special tokens.
    ///
    /// # Errors
    /// They are too many or too long for the search automaton.
    pub(crate) fn new(vocab: &Vocab) -> Result<Self, TextError> {
        let token = |id: u32| &vocab.tokens[id as usize];
        let all = (0u32..).zip(&vocab.tokens);
        let mut ids: Vec<u32> = all.filter(|(_, token)| token.attr.any(SPECIAL)).map(|(id, _)| id).collect();
        ids.sort_by_key(|&id| std::cmp::Reverse(token(id).text.len()));
        let searcher = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            .build(ids.iter().map(|&id| &token(id).text))
            .map_err(|error| TextError::Unusable {
                key: "tokenizer.ggml.tokens",
                problem: format!("holds special tokens that cannot be searched for: {error}"),
            })?;
        Ok(Self { ids, searcher })
    }

    /// Cuts `text`. Control and unknown tokens count as plain text unless `parse_special`.
    pub(crate) fn cut<'a>(&self, vocab: &Vocab, text: &'a str, parse_special: bool) -> Vec<Fragment<'a>> {
        let mut fragments = Vec::new();
        if !text.is_empty() {
            fragments.push(Fragment::Text(text));
        }
        let mut present = vec![false; self.ids.len()];
        for hit in self.searcher.find_overlapping_iter(text) {
            present[hit.pattern().as_usize()] = true;
        }
        let found = self.ids.iter().zip(present).filter(|(_, present)| *present);
        for (&id, _) in found {
            let token = &vocab.tokens[id as usize];
            if parse_special || !token.attr.any(Attr::CONTROL.with(Attr::UNKNOWN)) {
                fragments = cut_one(&fragments, id, token);
            }
        }
        fragments
    }
}

/// Cuts one token out of every fragment of text.
fn cut_one<'a>(fragments: &[Fragment<'a>], id: u32, token: &Token) -> Vec<Fragment<'a>> {
    /// White space as C's `isspace` has it.
    const SPACE: [char; 6] = [' ', '\t', '\n', '\x0b', '\x0c', '\r'];
    let mut out = Vec::with_capacity(fragments.len() + 2);
    for fragment in fragments {
        let Fragment::Text(mut rest) = *fragment else {
            out.push(*fragment);
            continue;
        };
        while let Some((mut left, mut right)) = rest.split_once(token.text.as_str()) {
            if token.attr.any(Attr::LSTRIP) {
                left = left.trim_end_matches(SPACE);
            }
            if token.attr.any(Attr::RSTRIP) {
                right = right.trim_start_matches(SPACE);
            }
            if !left.is_empty() {
                out.push(Fragment::Text(left));
            }
            out.push(Fragment::Special(id));
            rest = right;
        }
        if !rest.is_empty() {
            out.push(Fragment::Text(rest));
        }
    }
    out
}
