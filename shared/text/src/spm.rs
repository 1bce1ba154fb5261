//! SentencePiece vocabularies of type BPE: neighbours are merged while their join is a token, best score first.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::vocab::Vocab;

/// Part of a text while it is merged.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: usize,
    /// Bytes; 0 once merged into its left neighbour.
    length: usize,
    prev: usize,
    next: usize,
}

/// No neighbour.
const END: usize = usize::MAX;

/// Two neighbours whose join is a token.
#[derive(Debug)]
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of the join: another number means that a side has changed since.
    length: usize,
}

impl Ord for Candidate {
    /// The best score is greatest, then the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = self.score.partial_cmp(&other.score).unwrap_or(Ordering::Equal);
        by_score.then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// The token of each byte.
#[derive(Debug)]
pub(crate) struct Spm {
    bytes: Vec<Option<u32>>,
}

impl Spm {
    pub(crate) fn new(vocab: &Vocab) -> Self {
        let token = |byte: u8| {
            let alone = || vocab.id(char::from(byte).encode_utf8(&mut [0; 4])).filter(|_| byte.is_ascii());
            vocab.byte_id(byte).or_else(alone).or(vocab.special.unk)
        };
        Self { bytes: (0..=255).map(token).collect() }
    }

    /// Appends the ids of `text`, in which spaces are already `▁`.
    pub(crate) fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        for (start, c) in text.char_indices() {
            let at = symbols.len();
            symbols.push(Symbol { start, length: c.len_utf8(), prev: at.wrapping_sub(1), next: at + 1 });
        }
        if let Some(last) = symbols.last_mut() {
            last.next = END;
        }
        let mut candidates = BinaryHeap::with_capacity(symbols.len());
        let consider = |symbols: &[Symbol], candidates: &mut BinaryHeap<_>, left: usize, right: usize| {
            let length = symbols[left].length + symbols[right].length;
            if length > vocab.longest {
                return;
            }
            let start = symbols[left].start;
            if let Some(id) = vocab.id(&text[start..start + length]) {
                let score = vocab.tokens[id as usize].score;
                candidates.push(Candidate { score, left, right, length });
            }
        };
        for right in 1..symbols.len() {
            consider(&symbols, &mut candidates, right - 1, right);
        }
        while let Some(Candidate { left, right, length, .. }) = candidates.pop() {
            let (a, b) = (symbols[left], symbols[right]);
            if a.length == 0 || b.length == 0 || a.length + b.length != length {
                continue;
            }
            symbols[left] = Symbol { length, next: b.next, ..a };
            symbols[right].length = 0;
            if b.next != END {
                symbols[b.next].prev = left;
            }
            if a.prev != END {
                consider(&symbols, &mut candidates, a.prev, left);
            }
            if b.next != END {
                consider(&symbols, &mut candidates, left, b.next);
            }
        }
        for symbol in symbols.iter().filter(|symbol| symbol.length > 0) {
            let piece = &text[symbol.start..symbol.start + symbol.length];
            match vocab.id(piece) {
                Some(id) => out.push(id),
                None => out.extend(piece.bytes().filter_map(|byte| self.bytes[usize::from(byte)])),
            }
        }
    }
}
