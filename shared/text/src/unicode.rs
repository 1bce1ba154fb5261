//! Characters: the byte alphabet of GPT-2, and the categories that WordPiece asks for.

use std::sync::LazyLock;

use fancy_regex::Regex;
use tokenizers::NormalizedString;

/// The character that stands for each byte in byte-level vocabularies: itself where it prints, else one from U+0100.
static BYTE_TO_CHAR: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut next = 256u32;
    std::array::from_fn(|byte| {
        let byte = byte as u32;
        let prints = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let point = if prints { byte } else { next };
        next += u32::from(!prints);
        char::from_u32(point).unwrap_or('\u{fffd}')
    })
});

/// The inverse, for characters below U+0144, the last one used.
static CHAR_TO_BYTE: LazyLock<[Option<u8>; 324]> = LazyLock::new(|| {
    let mut table = [None; 324];
    for (byte, &c) in (0u8..=255).zip(BYTE_TO_CHAR.iter()) {
        if let Some(slot) = table.get_mut(c as usize) {
            *slot = Some(byte);
        }
    }
    table
});

/// The character that stands for `byte`.
pub(crate) fn byte_char(byte: u8) -> char {
    BYTE_TO_CHAR[usize::from(byte)]
}

/// The byte that `c` stands for, where it stands for one.
pub(crate) fn char_byte(c: char) -> Option<u8> {
    CHAR_TO_BYTE.get(c as usize).copied().flatten()
}

/// What WordPiece does with a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// `\p{C}` without the unassigned.
    Control,
    /// `\p{M}`.
    Mark,
    /// `\p{P}`.
    Punctuation,
    /// `\p{S}`.
    Symbol,
    /// Anything else.
    Other,
}

/// The category of `c` in the Unicode version of the pre-tokenizers.
pub(crate) fn class(c: char) -> Class {
    static CLASSES: LazyLock<[(Class, Option<Regex>); 4]> = LazyLock::new(|| {
        let of = |category: &str| Regex::new(&format!(r"^[\p{{{category}}}&&\p{{age=15.1}}]")).ok();
        [
            (Class::Mark, of("M")),
            (Class::Punctuation, of("P")),
            (Class::Symbol, of("S")),
            (Class::Control, Regex::new(r"^[\p{Cc}\p{Cf}\p{Co}]").ok()),
        ]
    });
    if c.is_ascii_alphanumeric() || c == ' ' {
        return Class::Other;
    }
    let mut buffer = [0; 4];
    let text = &*c.encode_utf8(&mut buffer);
    let is = |regex: &Option<Regex>| regex.as_ref().is_some_and(|r| r.is_match(text).unwrap_or(false));
    CLASSES.iter().find(|(_, regex)| is(regex)).map_or(Class::Other, |(class, _)| *class)
}

/// The first character of the canonical decomposition of `c`.
pub(crate) fn decomposed(c: char) -> char {
    if c.is_ascii() {
        return c;
    }
    let mut text = NormalizedString::from(c.to_string());
    text.nfd();
    text.get().chars().next().unwrap_or(c)
}

/// The first character of the lower case of `c`; capitals newer than Unicode 15.1 have none.
pub(crate) fn lower(c: char) -> char {
    static KNOWN: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^\p{age=15.1}").ok());
    let small = c.to_lowercase().next().unwrap_or(c);
    if c.is_ascii() || small == c {
        return small;
    }
    let known = KNOWN.as_ref().is_some_and(|r| r.is_match(c.encode_utf8(&mut [0; 4])).unwrap_or(false));
    if known { small } else { c }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_alphabet_is_one_to_one() {
        for byte in 0..=255 {
            assert_eq!(char_byte(byte_char(byte)), Some(byte));
        }
        assert_eq!(byte_char(b' '), 'Ġ');
        assert_eq!(byte_char(b'\n'), 'Ċ');
        assert_eq!(char_byte(' '), None);
        assert_eq!(char_byte('\u{144}'), None);
    }

    #[test]
    fn classes_and_decomposition() {
        assert_eq!(class('\u{301}'), Class::Mark);
        assert_eq!(class('。'), Class::Punctuation);
        assert_eq!(class('$'), Class::Symbol);
        assert_eq!(class('\u{7}'), Class::Control);
        assert_eq!(class('é'), Class::Other);
        assert_eq!(decomposed('é'), 'e');
        assert_eq!(decomposed('각'), '\u{1100}');
        assert_eq!(lower('Ä'), 'ä');
    }
}
