//! Byte pair encoding by a list of merges.
//!
//! A merge joins two strings; each string that occurs in the vocabulary or in a merge gets a piece id (tokens keep
//! theirs), so that merging compares integers. Merging is by a heap of candidates, O(n log n) in the word's length.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::TextError;
use crate::split::Splitter;
use crate::unicode::{byte_char, lower};
use crate::vocab::{DNA_MARKER, Model, Vocab};

/// A symbol that no merge and no token knows.
const NOTHING: u32 = u32::MAX;

/// The merges of a vocabulary.
#[derive(Debug)]
pub(crate) struct Bpe {
    splitter: Splitter,
    /// Rank and result for each pair of pieces.
    merges: HashMap<(u32, u32), (u32, u32)>,
    /// The piece of each byte, for byte-level vocabularies.
    bytes: Vec<u32>,
    /// Pieces of one character, for the others.
    characters: HashMap<char, u32>,
    /// What pieces that are no tokens become; the first is for piece `tokens`.
    fallback: Vec<Vec<u32>>,
    /// Number of tokens: smaller piece ids are token ids.
    tokens: u32,
    /// The token of each byte spelled `<0xXX>`.
    byte_tokens: Vec<Option<u32>>,
}

/// Part of a word while it is merged.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    piece: u32,
    /// Bytes of the word; a symbol that was merged into its left neighbour has none.
    start: usize,
    end: usize,
    prev: usize,
    next: usize,
}

/// No neighbour.
const END: usize = usize::MAX;

impl Bpe {
    /// Prepares the merges.
    ///
    /// # Errors
    /// There are more pieces than ids.
    pub(crate) fn new(vocab: &Vocab) -> Result<Self, TextError> {
        let unusable = |problem: String| TextError::Unusable { key: "tokenizer.ggml.merges", problem };
        let mut extra: HashMap<String, u32> = HashMap::new();
        let tokens = u32::try_from(vocab.len()).map_err(|e| unusable(e.to_string()))?;
        let mut merges = HashMap::with_capacity(vocab.merges.len());
        for (rank, merge) in (0u32..).zip(&vocab.merges) {
            // The space is looked for after the first byte: a piece may begin with one.
            let space = merge.bytes().skip(1).position(|byte| byte == b' ').map(|at| at + 1);
            let Some((left, right)) = space.and_then(|at| Some((merge.get(..at)?, merge.get(at + 1..)?)))
            else {
                continue;
            };
            let mut piece = |text: &str| {
                let next = tokens.saturating_add(u32::try_from(extra.len()).unwrap_or(NOTHING));
                vocab.id(text).unwrap_or_else(|| *extra.entry(text.to_owned()).or_insert(next))
            };
            let pair = (piece(left), piece(right));
            let joined = piece(&[left, right].concat());
            merges.entry(pair).or_insert((rank, joined));
        }
        if u64::from(tokens) + extra.len() as u64 >= u64::from(NOTHING) {
            return Err(unusable("name more strings than there are ids".to_owned()));
        }
        let byte_tokens: Vec<_> = (0..=255).map(|byte| vocab.byte_id(byte)).collect();
        let mut fallback = vec![Vec::new(); extra.len()];
        for (text, piece) in &extra {
            fallback[(piece - tokens) as usize] = if vocab.pre.byte_level {
                // One byte at a time as a string of its own: only ASCII characters are found.
                text.chars()
                    .filter(char::is_ascii)
                    .filter_map(|c| vocab.id(c.encode_utf8(&mut [0; 4])))
                    .collect()
            } else {
                text.bytes().filter_map(|byte| byte_tokens[usize::from(byte)]).collect()
            };
        }
        let find = |text: &str| vocab.id(text).or_else(|| extra.get(text).copied());
        let bytes = (0..=255).map(|byte| find(byte_char(byte).encode_utf8(&mut [0; 4])).unwrap_or(NOTHING));
        let single = |text: &str| {
            let mut characters = text.chars();
            characters.next().filter(|_| characters.next().is_none())
        };
        let all = vocab.ids.iter().chain(&extra);
        let characters = all.filter_map(|(text, &piece)| Some((single(text)?, piece)));
        let splitter = Splitter::new(vocab.pre.rules).map_err(|error| TextError::Unusable {
            key: "tokenizer.ggml.pre",
            problem: format!("has a rule that does not compile: {error}"),
        })?;
        let bytes = bytes.collect();
        let characters = characters.collect();
        Ok(Self { splitter, merges, bytes, characters, fallback, tokens, byte_tokens })
    }

    /// Appends the ids of `text`, which holds no special token.
    pub(crate) fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        match vocab.model {
            Model::HybridDna => self.encode_dna(vocab, text, out),
            Model::Whitespace => {
                for word in text.split(char::is_whitespace) {
                    let word: String = if vocab.flags.lowercase {
                        word.chars().map(lower).collect()
                    } else {
                        word.to_owned()
                    };
                    self.encode_text(vocab, &word, out);
                }
            }
            _ if vocab.flags.escape_spaces => self.encode_text(vocab, &text.replace(' ', "\u{2581}"), out),
            _ => self.encode_text(vocab, text, out),
        }
    }

    fn encode_text(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        let mut work = Work::default();
        let mut spelled = String::new();
        for range in self.splitter.split(text) {
            let word = &text[range];
            let whole = if vocab.pre.ignore_merges {
                spelled.clear();
                if vocab.pre.byte_level {
                    spelled.extend(word.bytes().map(byte_char));
                } else {
                    spelled.push_str(word);
                }
                vocab.id(&spelled)
            } else if vocab.pre.whole_line_feeds && word.bytes().all(|byte| byte == b'\n') {
                vocab.id(word)
            } else {
                None
            };
            match whole {
                Some(id) => out.push(id),
                None => self.encode_word(vocab.pre.byte_level, word, &mut work, out),
            }
        }
    }

    /// Merges one word.
    fn encode_word(&self, byte_level: bool, word: &str, work: &mut Work, out: &mut Vec<u32>) {
        work.symbols.clear();
        let mut add = |start: usize, end: usize, piece: u32| {
            let at = work.symbols.len();
            work.symbols.push(Symbol { piece, start, end, prev: at.wrapping_sub(1), next: at + 1 });
        };
        if byte_level {
            word.bytes().enumerate().for_each(|(at, byte)| add(at, at + 1, self.bytes[usize::from(byte)]));
        } else {
            for (at, c) in word.char_indices() {
                add(at, at + c.len_utf8(), self.characters.get(&c).copied().unwrap_or(NOTHING));
            }
        }
        if let Some(last) = work.symbols.last_mut() {
            last.next = END;
        }
        work.candidates.clear();
        for left in 1..work.symbols.len() {
            self.consider(work, left - 1, left);
        }
        while let Some(Reverse((rank, left, right))) = work.candidates.pop() {
            let (a, b) = (work.symbols[left], work.symbols[right]);
            // Stale when either side has changed since: then the pair has another rank, or none.
            let merge = (a.start < a.end && b.start < b.end && a.next == right)
                .then(|| self.merges.get(&(a.piece, b.piece)))
                .flatten();
            let Some(&(_, joined)) = merge.filter(|(current, _)| *current == rank) else { continue };
            work.symbols[left] = Symbol { piece: joined, end: b.end, next: b.next, ..a };
            work.symbols[right].start = b.end;
            if b.next != END {
                work.symbols[b.next].prev = left;
                self.consider(work, left, b.next);
            }
            if a.prev != END {
                self.consider(work, a.prev, left);
            }
        }
        for symbol in work.symbols.iter().filter(|symbol| symbol.start < symbol.end) {
            if symbol.piece < self.tokens {
                out.push(symbol.piece);
            } else if symbol.piece != NOTHING {
                out.extend_from_slice(&self.fallback[(symbol.piece - self.tokens) as usize]);
            } else if !byte_level {
                let bytes = word.as_bytes()[symbol.start..symbol.end].iter();
                out.extend(bytes.filter_map(|&byte| self.byte_tokens[usize::from(byte)]));
            }
        }
    }

    fn consider(&self, work: &mut Work, left: usize, right: usize) {
        if let Some(&(rank, _)) = self.merges.get(&(work.symbols[left].piece, work.symbols[right].piece)) {
            work.candidates.push(Reverse((rank, left, right)));
        }
    }

    /// Text with stretches of DNA between `<dna>` and `</dna>`.
    fn encode_dna(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        const OPEN: &str = "<dna>";
        const CLOSE: &str = "</dna>";
        let ids = (vocab.id(OPEN), vocab.id(CLOSE), vocab.id("<oov>"));
        let (Some(open), Some(close), Some(unknown)) = ids else {
            return self.encode_text(vocab, text, out);
        };
        let mut rest = text;
        while let Some((before, dna)) = rest.split_once(OPEN) {
            self.encode_text(vocab, before, out);
            out.push(open);
            let (dna, after) = dna.split_once(CLOSE).map_or((dna, None), |(dna, after)| (dna, Some(after)));
            // A group of fewer than six is filled up with A; one that is not all of A, C, G, T is unknown.
            for group in dna.to_ascii_uppercase().as_bytes().chunks(6) {
                let mut group = group.to_vec();
                group.resize(6, b'A');
                let text = String::from_utf8(group).map(|group| group + DNA_MARKER);
                out.push(text.ok().and_then(|text| vocab.id(&text)).unwrap_or(unknown));
            }
            let Some(after) = after else { return };
            out.push(close);
            rest = after;
        }
        self.encode_text(vocab, rest, out);
    }
}

/// Buffers kept from word to word.
#[derive(Debug, Default)]
struct Work {
    symbols: Vec<Symbol>,
    /// Rank, left and right symbol; lowest rank first, then leftmost.
    candidates: BinaryHeap<Reverse<(u32, usize, usize)>>,
}
