//! Stop strings: text is printed only when no stop string can begin in it any more.

/// Cuts a stream of text before the first stop string. Matching is by earliest start; among those that start together,
/// whichever is complete first.
#[derive(Debug)]
pub(crate) struct Stops {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl Stops {
    /// Watches for these strings; empty ones are ignored, since they would stop everything.
    pub(crate) fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, held: String::new(), stopped: false }
    }

    /// Takes more text and returns what may be printed.
    pub(crate) fn push(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = self.held.len() - self.longest_start();
        let rest = self.held.split_off(keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether a stop string was found.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped
    }

    /// What was held back, when the stream ends for another reason.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of the held text that could be the beginning of a stop string.
    fn longest_start(&self) -> usize {
        let starts = self.stops.iter().map(|stop| {
            let most = self.held.len().min(stop.len() - 1);
            (1..=most).rev().find(|&n| self.held.as_bytes().ends_with(&stop.as_bytes()[..n])).unwrap_or(0)
        });
        let mut longest = starts.max().unwrap_or(0);
        // A border inside a character: its whole character is held.
        while !self.held.is_char_boundary(self.held.len() - longest) {
            longest += 1;
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut stops = Stops::new(&stops);
        let mut out: Vec<String> = pieces.iter().map(|piece| stops.push(piece)).collect();
        out.push(stops.finish());
        (out, stops.stopped())
    }

    #[test]
    fn a_stop_across_pieces_is_never_shown() {
        let (out, stopped) = cut(&["\n\nUser:"], &["Hello", "\n", "\nUs", "er: more"]);
        assert_eq!(out, ["Hello", "", "", "", ""]);
        assert!(stopped);
    }

    #[test]
    fn held_text_comes_when_it_is_no_stop() {
        let (out, stopped) = cut(&["abcd"], &["xab", "cx", "ab"]);
        assert_eq!(out, ["x", "abcx", "", "ab"]);
        assert!(!stopped);
    }

    #[test]
    fn the_first_of_several_counts() {
        let (out, _) = cut(&["late", "er"], &["earlier and late"]);
        assert_eq!(out.concat(), "earli");
        assert_eq!(cut(&[""], &["all"]).0.concat(), "all");
        assert_eq!(cut(&["aab"], &["aaa", "ab"]).0.concat(), "aa");
    }

    #[test]
    fn characters_stay_whole() {
        let (out, _) = cut(&["é!"], &["caf", "é", "?"]);
        assert_eq!(out, ["caf", "", "é?", ""]);
    }

    #[test]
    fn any_cutting_gives_the_same_text() {
        let text = "one two END three";
        for a in 0..text.len() {
            for b in a..text.len() {
                let (out, stopped) = cut(&["END"], &[&text[..a], &text[a..b], &text[b..]]);
                assert_eq!((out.concat().as_str(), stopped), ("one two ", true), "{a} {b}");
            }
        }
    }
}
