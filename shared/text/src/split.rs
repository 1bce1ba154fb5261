//! Cutting text into the words that BPE merges within.
//!
//! A pre-tokenizer is a list of rules; each cuts every piece that the one before left, looking at nothing outside the
//! piece. What a regex matches becomes a piece, and so does each gap between matches.
//!
//! llama.cpp runs some of its regexes by hand-written loops and the others by `std::regex` over text in which every
//! character outside ASCII is replaced by a letter for its category. Both come to this: `\p{Lu}` and its kin are
//! `\p{L}`, `\s` is the Unicode property `White_Space`, digits of `\d` are ASCII, and categories are those of Unicode
//! 15.1 (its tables). White space outside ASCII is hidden from regexes that name ranges and no category.

use std::ops::Range;

use fancy_regex::Regex;

/// One step of a pre-tokenizer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rule {
    /// Matches and gaps of a regex in which `\p{L}`, `\p{M}`, `\p{N}`, `\p{P}`, `\p{S}` mean Unicode 15.1.
    Regex(&'static str),
    /// The same, and a match of only white space gives its last character back when text follows, as `\s+(?!\S)`
    /// would; save when it holds a line break and `breaks` says that those matches end as they are.
    /// (A look-ahead would take the regex out of linear time.)
    Spaces {
        /// The regex, with `\s+` where the look-ahead was.
        regex: &'static str,
        /// Whether a run with a line break in it stays whole.
        breaks: bool,
    },
    /// Numbers in groups of three counted from the end; text before a number joins its first group.
    GroupedNumbers,
    /// Cuts before every ASCII digit that has a multiple of three digits from itself to the end of its run.
    Thousands,
    /// Runs of line feeds, runs of anything else.
    LineFeeds,
}

/// A rule made ready.
#[derive(Debug)]
enum Step {
    Regex(Regex),
    Spaces(Regex, bool),
    GroupedNumbers(Regex),
    Thousands,
    LineFeeds,
}

/// A pre-tokenizer made ready.
#[derive(Debug)]
pub(crate) struct Splitter {
    steps: Vec<Step>,
}

impl Splitter {
    /// Compiles the rules.
    ///
    /// # Errors
    /// A regex does not compile (a test compiles every one of the table).
    pub(crate) fn new(rules: &[Rule]) -> Result<Self, Box<fancy_regex::Error>> {
        let steps = rules.iter().map(|rule| match *rule {
            Rule::Regex(regex) => compile(regex).map(Step::Regex),
            Rule::Spaces { regex, breaks } => compile(regex).map(|regex| Step::Spaces(regex, breaks)),
            Rule::GroupedNumbers => compile(r"\p{N}").map(Step::GroupedNumbers),
            Rule::Thousands => Ok(Step::Thousands),
            Rule::LineFeeds => Ok(Step::LineFeeds),
        });
        Ok(Self { steps: steps.collect::<Result<_, _>>()? })
    }

    /// The words of `text`: adjoining byte ranges that cover it, none empty.
    pub(crate) fn split(&self, text: &str) -> Vec<Range<usize>> {
        let mut pieces = vec![];
        if !text.is_empty() {
            pieces.push(0..text.len());
        }
        for step in &self.steps {
            let mut cut = Cutter { pieces: Vec::with_capacity(pieces.len()), at: 0 };
            for piece in pieces {
                step.cut(text, piece.clone(), &mut cut);
                cut.to(piece.end);
            }
            pieces = cut.pieces;
        }
        pieces
    }
}

/// Puts the categories of llama.cpp's tables into a regex and compiles it.
fn compile(regex: &str) -> Result<Regex, Box<fancy_regex::Error>> {
    let mut pattern = regex.to_owned();
    for category in ["L", "M", "N", "P", "S"] {
        let class = format!(r"[\p{{{category}}}&&\p{{age=15.1}}]");
        pattern = pattern.replace(&format!(r"\p{{{category}}}"), &class);
    }
    fancy_regex::RegexBuilder::new(&pattern).backtrack_limit(usize::MAX).build().map_err(Box::new)
}

/// Collects adjoining pieces.
struct Cutter {
    pieces: Vec<Range<usize>>,
    at: usize,
}

impl Cutter {
    /// Ends the piece that is open at `end`.
    fn to(&mut self, end: usize) {
        if end > self.at {
            self.pieces.push(self.at..end);
            self.at = end;
        }
    }
}

impl Step {
    /// Cuts one piece; what stays open at its end is closed by the caller.
    fn cut(&self, text: &str, piece: Range<usize>, cut: &mut Cutter) {
        let (base, text) = (piece.start, &text[piece]);
        match self {
            Self::Regex(regex) => each_match(regex, text, |found| {
                cut.to(base + found.start);
                cut.to(base + found.end);
                found.end
            }),
            Self::Spaces(regex, breaks) => each_match(regex, text, |found| {
                let end = give_back(text, &found, *breaks);
                cut.to(base + found.start);
                cut.to(base + end);
                end
            }),
            Self::GroupedNumbers(number) => grouped_numbers(number, text, |at| cut.to(base + at)),
            Self::Thousands => thousands(text.as_bytes(), |at| cut.to(base + at)),
            Self::LineFeeds => {
                let bytes = text.as_bytes();
                for at in 1..bytes.len() {
                    if (bytes[at - 1] == b'\n') != (bytes[at] == b'\n') {
                        cut.to(base + at);
                    }
                }
            }
        }
    }
}

/// Calls `found` with every match; it returns where to search on.
fn each_match(regex: &Regex, text: &str, mut found: impl FnMut(Range<usize>) -> usize) {
    let mut at = 0;
    // No error is possible: the limit on backtracking is off. No match is empty: no rule allows one.
    while let Ok(Some(hit)) = regex.find_from_pos(text, at) {
        at = found(hit.start()..hit.end()).max(at + 1);
        if at >= text.len() {
            break;
        }
    }
}

/// Where a match ends when white space gives back its last character to the word that follows.
fn give_back(text: &str, found: &Range<usize>, breaks: bool) -> usize {
    let run = &text[found.clone()];
    let mut backwards = run.char_indices().rev();
    let last = backwards.next().map_or(0, |(at, _)| at);
    let alone = last == 0 || found.end == text.len();
    if alone || !run.chars().all(char::is_whitespace) || (breaks && run.contains(['\r', '\n'])) {
        found.end
    } else {
        found.start + last
    }
}

/// Ends pieces after each group of three digits, counted from the end of each run of numbers.
fn grouped_numbers(number: &Regex, text: &str, mut cut: impl FnMut(usize)) {
    let mut ends: Vec<usize> = Vec::new();
    let mut flush = |ends: &mut Vec<usize>| {
        let first = ends.len() % 3;
        for (i, &end) in ends.iter().enumerate() {
            if (i + 1) % 3 == first {
                cut(end);
            }
        }
        ends.clear();
    };
    each_match(number, text, |found| {
        if ends.last().is_some_and(|&end| end != found.start) {
            flush(&mut ends);
        }
        ends.push(found.end);
        found.end
    });
    flush(&mut ends);
}

/// Cuts each run of ASCII digits where a multiple of three of them remains.
fn thousands(text: &[u8], mut cut: impl FnMut(usize)) {
    let mut at = 0;
    for run in text.chunk_by(|a, b| a.is_ascii_digit() == b.is_ascii_digit()) {
        if run[0].is_ascii_digit() {
            (0..run.len()).filter(|i| (run.len() - i) % 3 == 0).for_each(|i| cut(at + i));
        }
        at += run.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<'a>(rules: &[Rule], text: &'a str) -> Vec<&'a str> {
        Splitter::new(rules).unwrap().split(text).into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn matches_and_gaps_are_pieces() {
        assert_eq!(words(&[Rule::Regex("[0-9]")], "ab12c"), ["ab", "1", "2", "c"]);
        assert_eq!(words(&[], "ab"), ["ab"]);
        assert!(words(&[Rule::Regex("[0-9]")], "").is_empty());
    }

    #[test]
    fn numbers() {
        assert_eq!(words(&[Rule::GroupedNumbers], "a 1234567 b12"), ["a 1", "234", "567", " b12"]);
        assert_eq!(words(&[Rule::GroupedNumbers], "a123b"), ["a123", "b"]);
        assert_eq!(words(&[Rule::Thousands], "1234567"), ["1", "234", "567"]);
        assert_eq!(words(&[Rule::Thousands], "x123"), ["x", "123"]);
        assert_eq!(words(&[Rule::LineFeeds], "a\n\nb\n"), ["a", "\n\n", "b", "\n"]);
    }

    #[test]
    fn white_space_keeps_one_for_the_next_word() {
        let rule = [Rule::Spaces { regex: r" ?\p{L}+|\s+", breaks: false }];
        assert_eq!(words(&rule, "a   b"), ["a", "  ", " b"]);
        assert_eq!(words(&rule, "a \u{a0}b"), ["a", " ", "\u{a0}", "b"]);
        assert_eq!(words(&rule, "a  "), ["a", "  "]);
        let rule = [Rule::Spaces { regex: r"\s*[\r\n]+|\s+", breaks: true }];
        assert_eq!(words(&rule, "\n \nx"), ["\n \n", "x"]);
    }
}
