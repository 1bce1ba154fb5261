//! What text is drawn with: bars, columns, and colours where a terminal shows them.

use std::io::IsTerminal;

/// Colours, if the output is a terminal that shows them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ink {
    colour: bool,
}

/// From this part of a board's memory on its bar warns.
const NEARLY_FULL: f64 = 0.95;

impl Ink {
    /// For standard output; none where it is no terminal, or `NO_COLOR` is set.
    pub(super) fn stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: std::io::stdout().is_terminal() && !unwanted }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(super) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(super) fn accent(self, text: &str) -> String {
        self.paint("36", text)
    }

    /// Something that is `full` of what it can hold, from 0 to 1.
    pub(super) fn load(self, text: &str, full: f64) -> String {
        self.paint(if full >= NEARLY_FULL { "33" } else { "32" }, text)
    }
}

/// A bar of `width` characters, filled in eighths.
pub(super) fn bar(full: f64, width: usize) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let eighths = (full.clamp(0.0, 1.0) * width as f64 * 8.0).round() as usize;
    let mut out = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        out.push(EIGHTHS[eighths % 8]);
    }
    let drawn = out.chars().count();
    format!("▕{out}{}▏", " ".repeat(width.saturating_sub(drawn)))
}

/// A bar of `width` characters made of these parts of a whole, each with its own sign; rounded so that the whole is
/// always full.
pub(super) fn parts<const N: usize>(shares: &[f64; N], signs: [char; N], width: usize) -> String {
    let sum: f64 = shares.iter().sum();
    let mut out = String::new();
    let (mut so_far, mut drawn) = (0.0, 0);
    for (share, sign) in shares.iter().zip(signs) {
        so_far += share;
        let until = if sum > 0.0 { (so_far / sum * width as f64).round() as usize } else { 0 };
        out.extend(std::iter::repeat_n(sign, until.saturating_sub(drawn)));
        drawn = drawn.max(until);
    }
    out
}

/// The text in this many columns.
pub(super) fn pad(text: &str, width: usize, right: bool) -> String {
    let spaces = " ".repeat(width.saturating_sub(text.chars().count()));
    if right { format!("{spaces}{text}") } else { format!("{text}{spaces}") }
}

/// The text in lines of at most `width` columns, broken between words.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut columns = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if columns > 0 && columns + 1 + length > width {
            lines.push(String::new());
            columns = 0;
        }
        if let Some(line) = lines.last_mut() {
            if columns > 0 {
                line.push(' ');
                columns += 1;
            }
            line.push_str(word);
            columns += length;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_fill_and_never_overflow() {
        assert_eq!(bar(0.0, 4), "▕    ▏");
        assert_eq!(bar(0.5, 4), "▕██  ▏");
        assert_eq!(bar(1.7, 4), "▕████▏");
        assert_eq!(bar(0.28, 4), "▕█▏  ▏");
        assert!((0..=100).all(|part| bar(f64::from(part) / 100.0, 7).chars().count() == 9));
        assert_eq!(parts(&[0.5, 0.25, 0.25], ['a', 'b', 'c'], 8), "aaaabbcc");
        assert_eq!(parts(&[1.0, 1.0, 1.0], ['a', 'b', 'c'], 4).chars().count(), 4);
    }

    #[test]
    fn text_is_broken_between_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("immeasurable", 4), ["immeasurable"]);
        assert_eq!(pad("a", 3, true), "  a");
    }
}
