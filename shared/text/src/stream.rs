//! A stream of tokens as a stream of valid UTF-8.

use crate::Tokenizer;

/// Turns tokens into text as they come. A character that several tokens spell is held back until it is whole; bytes
/// that can be no character become U+FFFD. All pieces joined, with the one of [`finish`](Self::finish) last, are what
/// decoding all bytes at once would give.
///
/// A leading space is kept: what is generated goes on where the prompt ends.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    special: bool,
    /// The start of a character: at most three bytes.
    pending: Vec<u8>,
}

impl StreamDecoder {
    pub(crate) fn new(tokenizer: Tokenizer, special: bool) -> Self {
        Self { tokenizer, special, pending: Vec::new() }
    }

    /// The text that is whole after one more token; often empty.
    pub fn push(&mut self, id: u32) -> String {
        let bytes = self.tokenizer.token_bytes(id, self.special);
        if bytes.is_empty() {
            return String::new();
        }
        self.pending.extend_from_slice(&bytes);
        self.drain()
    }

    /// What is left at the end: U+FFFD for a character that never became whole.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// Whether part of a character is held back.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    fn drain(&mut self) -> String {
        let mut text = String::new();
        let mut used = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            used += chunk.valid().len();
            let invalid = chunk.invalid();
            let last = used + invalid.len() == self.pending.len();
            if invalid.is_empty() || (last && may_grow(invalid)) {
                break;
            }
            text.push('\u{fffd}');
            used += invalid.len();
        }
        self.pending.drain(..used);
        text
    }
}

/// Whether bytes at the end of the input are the beginning of a character rather than an error.
fn may_grow(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
