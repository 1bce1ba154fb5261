//! A set of byte strings with ids, searched by prefix: what a trie does, in one sorted list.
//!
//! Used by Unigram, WordPiece and RWKV. A walk narrows a range of the list one byte at a time, so it costs
//! O(length of the match × log of the set) and no memory of its own.

/// Byte strings in ascending order, each with an id.
#[derive(Debug, Default)]
pub(crate) struct PrefixSet {
    /// Distinct keys, ascending.
    entries: Vec<(Box<[u8]>, u32)>,
}

impl PrefixSet {
    /// Collects the entries; of equal keys the last given wins. Empty keys are dropped.
    pub(crate) fn new(entries: impl IntoIterator<Item = (Vec<u8>, u32)>) -> Self {
        let mut entries: Vec<(Box<[u8]>, u32)> = entries
            .into_iter()
            .filter(|(key, _)| !key.is_empty())
            .map(|(key, id)| (key.into_boxed_slice(), id))
            .collect();
        // A stable sort keeps the given order among equal keys; reversed, the last given comes first and survives.
        entries.reverse();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        entries.dedup_by(|b, a| a.0 == b.0);
        Self { entries }
    }

    /// Calls `found(length, id)` for every key that `text` starts with, shortest first; returns how many bytes of
    /// `text` lead somewhere in the set (the depth a trie would reach), whether or not a key ends there.
    pub(crate) fn walk(&self, text: &[u8], mut found: impl FnMut(usize, u32)) -> usize {
        let mut range = &self.entries[..];
        for (depth, &byte) in text.iter().enumerate() {
            // Keys of length `depth` sort first; all others in range share the first `depth` bytes.
            let start = range.partition_point(|(key, _)| key.get(depth).is_none_or(|&b| b < byte));
            let end = start + range[start..].partition_point(|(key, _)| key.get(depth) == Some(&byte));
            range = &range[start..end];
            match range.first() {
                None => return depth,
                Some((key, id)) if key.len() == depth + 1 => found(depth + 1, *id),
                Some(_) => {}
            }
        }
        text.len()
    }

    /// The longest key that `text` starts with.
    pub(crate) fn longest(&self, text: &[u8]) -> Option<(usize, u32)> {
        let mut best = None;
        self.walk(text, |length, id| best = Some((length, id)));
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_prefix_and_the_depth() {
        let set = PrefixSet::new([
            (b"abc".to_vec(), 1),
            (b"a".to_vec(), 2),
            (b"abd".to_vec(), 3),
            (b"b".to_vec(), 4),
            (b"a".to_vec(), 5),
        ]);
        let mut seen = Vec::new();
        assert_eq!(set.walk(b"abcd", |n, id| seen.push((n, id))), 3);
        assert_eq!(seen, [(1, 5), (3, 1)]);
        assert_eq!(set.walk(b"abx", |_, _| {}), 2);
        assert_eq!(set.walk(b"x", |_, _| {}), 0);
        assert_eq!(set.longest(b"abd"), Some((3, 3)));
        assert_eq!(set.longest(b""), None);
    }
}
