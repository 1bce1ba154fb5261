//! PLaMo-2: the tokenization with the greatest sum of scores, found from the end of the text backwards through a
//! table of suffixes, with bytes for what no token covers.
//!
//! Every suffix of every token has a run of rows: first each of its prefixes that is itself a suffix or token,
//! longest first, then a row that stands for one unknown character. `after` leads from a suffix's first row and the
//! character before it to the first row of the longer suffix.

use std::collections::HashMap;

use crate::TextError;
use crate::vocab::{Attr, Vocab};

/// Tokens longer than this are refused: the table grows with the square of a token's length.
const LONGEST_TOKEN: usize = 1024;
/// The score of a string that is no token.
const NO_TOKEN: i64 = -20_000_000;
/// The score of an unknown character.
const UNKNOWN: i64 = -10_000_000;
/// Scores are kept in this many parts of one.
const SCALE: f64 = 1e4;

/// One row of the table.
#[derive(Debug, Clone, Copy)]
struct Row {
    /// Characters that it covers.
    length: usize,
    /// Its token, if it is one.
    token: Option<u32>,
    score: i64,
    /// First row of the string that it covers.
    piece: u32,
}

/// The table of a vocabulary.
#[derive(Debug)]
pub(crate) struct Plamo2 {
    rows: Vec<Row>,
    after: HashMap<(char, u32), u32>,
    bytes: Vec<u32>,
}

impl Plamo2 {
    /// Builds the table.
    ///
    /// # Errors
    /// A byte has no token, or a token is too long.
    pub(crate) fn new(vocab: &Vocab) -> Result<Self, TextError> {
        let unusable = |problem: String| TextError::Unusable { key: "tokenizer.ggml.tokens", problem };
        if vocab.longest > LONGEST_TOKEN {
            return Err(unusable(format!("has a token of {} bytes, above {LONGEST_TOKEN}", vocab.longest)));
        }
        let byte = |byte: u8| {
            let id = vocab.byte_id(byte).filter(|&id| id != 0);
            id.filter(|&id| vocab.tokens[id as usize].attr.any(Attr::BYTE))
                .ok_or_else(|| unusable(format!("has no token for byte {byte:#04x}")))
        };
        let bytes = (0..=255).map(byte).collect::<Result<Vec<_>, _>>()?;

        // Scores of tokens; `None` for a suffix that is no token.
        let mut scores: HashMap<&str, Option<f32>> = HashMap::new();
        for token in vocab.tokens.iter().filter(|token| !token.attr.any(Attr::BYTE)) {
            scores.insert(&token.text, Some(token.score));
            for (at, _) in token.text.char_indices().skip(1) {
                scores.entry(&token.text[at..]).or_insert(None);
            }
        }
        let mut suffixes: Vec<&str> = scores.keys().copied().chain([""]).collect();
        suffixes.sort_by(|a, b| a.bytes().rev().cmp(b.bytes().rev()));

        let mut rows = Vec::new();
        let mut first: HashMap<&str, u32> = HashMap::new();
        let mut after = HashMap::new();
        for suffix in suffixes {
            let here = u32::try_from(rows.len()).map_err(|error| unusable(error.to_string()))?;
            first.insert(suffix, here);
            let mut characters = suffix.chars();
            if let Some(head) = characters.next() {
                let rest = first.get(characters.as_str()).copied().unwrap_or(0);
                after.insert((head, rest), here);
            }
            let ends = suffix.char_indices().enumerate().map(|(i, (at, c))| (i + 1, at + c.len_utf8()));
            for (length, end) in ends.collect::<Vec<_>>().into_iter().rev() {
                let piece = &suffix[..end];
                let Some(score) = scores.get(piece) else { continue };
                let score = score.filter(|score| score.is_finite());
                let score = score.map_or(NO_TOKEN, |score| (f64::from(score) * SCALE).round() as i64);
                // The piece's own rows may come later in the order: filled in below.
                rows.push((Row { length, token: vocab.id(piece), score, piece: 0 }, piece));
            }
            rows.push((Row { length: 1, token: None, score: UNKNOWN, piece: 0 }, ""));
        }
        let place = |(row, piece): (Row, &str)| Row {
            piece: if row.score == UNKNOWN { 0 } else { first.get(piece).copied().unwrap_or(0) },
            ..row
        };
        Ok(Self { rows: rows.into_iter().map(place).collect(), after, bytes })
    }

    /// Appends the ids of `text`.
    pub(crate) fn encode(&self, text: &str, out: &mut Vec<u32>) {
        let text: Vec<char> = text.strip_prefix('\u{feff}').unwrap_or(text).chars().collect();
        // Cost of the best tokenization from each character to the end, and its first step.
        let mut best: Vec<(i64, usize, Option<u32>)> = vec![(1 << 60, 1, None); text.len() + 1];
        best[text.len()].0 = 0;
        let mut suffix = 0u32;
        for (at, &c) in text.iter().enumerate().rev() {
            for row in &self.rows[suffix as usize..] {
                suffix = self.after.get(&(c, row.piece)).copied().unwrap_or(0);
                if suffix > 0 || row.score == UNKNOWN {
                    break;
                }
            }
            for row in &self.rows[suffix as usize..] {
                if row.score > NO_TOKEN
                    && let Some(&(cost, ..)) = best.get(at + row.length)
                    && cost - row.score < best[at].0
                {
                    best[at] = (cost - row.score, row.length, row.token);
                }
                if row.score == UNKNOWN {
                    break;
                }
            }
        }
        let mut at = 0;
        while let Some(c) = text.get(at) {
            let (_, length, token) = best[at];
            match token {
                Some(id) => out.push(id),
                None => {
                    let mut buffer = [0; 4];
                    out.extend(c.encode_utf8(&mut buffer).bytes().map(|byte| self.bytes[usize::from(byte)]));
                }
            }
            at += length;
        }
    }
}
