//! RWKV: the longest token that fits, again and again. Tokens are bytes, escaped in the file.

use crate::prefix::PrefixSet;
use crate::vocab::Vocab;

/// All tokens by prefix.
#[derive(Debug)]
pub(crate) struct Rwkv {
    tokens: PrefixSet,
}

impl Rwkv {
    pub(crate) fn new(vocab: &Vocab) -> Self {
        let all = (0u32..).zip(&vocab.tokens).map(|(id, token)| (unescape(&token.text), id));
        Self { tokens: PrefixSet::new(all) }
    }

    /// Appends the ids of `text`; a byte that begins no token becomes the unknown token, if there is one.
    pub(crate) fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let found = self.tokens.longest(rest);
            out.extend(found.map(|(_, id)| id).or(vocab.special.unk));
            rest = &rest[found.map_or(1, |(length, _)| length)..];
        }
    }
}

/// The bytes that a token stands for: `\t`, `\n`, `\r`, `\xHH`, and `\` before anything else for that itself.
pub(crate) fn unescape(text: &str) -> Vec<u8> {
    let digit = |byte: u8| byte.wrapping_sub(if byte >= b'a' { b'a' - 10 } else { b'0' });
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        match bytes.next() {
            Some(b't') => out.push(b'\t'),
            Some(b'n') => out.push(b'\n'),
            Some(b'r') => out.push(b'\r'),
            Some(b'x') => {
                if let (Some(high), Some(low)) = (bytes.next(), bytes.next()) {
                    out.push(digit(high).wrapping_shl(4).wrapping_add(digit(low)));
                }
            }
            Some(other) => out.push(other),
            None => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn escapes() {
        assert_eq!(unescape(r"a\n\t\r\\\'\x00\xe4"), b"a\n\t\r\\'\x00\xe4");
        assert_eq!(unescape(r"\x4"), b"");
        assert_eq!(unescape("\\"), b"");
    }
}
