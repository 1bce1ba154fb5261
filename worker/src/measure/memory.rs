//! How much memory a measurement touches, and what it is filled with. Called by the other files of this folder alone.

use std::io;
use std::ops::Range;

use shoal_engine::model::WeightSource;

use crate::machine::Memory;

/// Weights that are streamed are at least this many bytes where the model has as many: beyond the caches of small
/// boards, whatever they say of themselves.
pub(super) const LEAST_SET: u64 = 64 << 20;

/// And at most this many: a quarter of a gigabyte, so that a board with 1 GB can measure itself and a slow one does
/// not spend its time on filling memory.
pub(super) const MOST_SET: u64 = 256 << 20;

/// A working set of this many last-level caches leaves hardly anything of the last pass in them.
const CACHES: u64 = 4;

/// The part of the free memory that one working set may take; there are two at a time.
const MEMORY_PART: u64 = 8;

/// Bytes after which what fills memory repeats itself: no cache knows.
const PATTERN: usize = 1 << 20;

/// Bytes of weights that are streamed of a model with so many: all of a small model, else what does not fit into the
/// last-level cache, as far as there is memory.
pub(super) fn working_set(model: u64) -> u64 {
    let beyond = last_cache().saturating_mul(CACHES).clamp(LEAST_SET, MOST_SET);
    let room = (Memory::read().available.0 / MEMORY_PART).max(1 << 20);
    model.min(beyond).min(room)
}

/// Bytes of the largest cache of the first processor; zero where the system does not tell.
pub(super) fn last_cache() -> u64 {
    let sizes = (0..8).filter_map(|index| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        parse_size(std::fs::read_to_string(path).ok()?.trim())
    });
    sizes.max().unwrap_or(0)
}

/// `32768K`, `4M`, `512`.
fn parse_size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) => (digits, text.as_bytes()[text.len() - 1]),
        None => (text, b'B'),
    };
    let shift = match unit {
        b'K' => 10,
        b'M' => 20,
        b'G' => 30,
        _ => 0,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Bytes that are ordinary numbers in every format, whatever of a block they are: no infinity and no subnormal, which
/// some processors handle slowly.
pub(super) fn plausible(len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len);
    let pattern = pattern(len.min(PATTERN));
    while out.len() < len {
        out.extend_from_slice(&pattern[..pattern.len().min(len - out.len())]);
    }
    out
}

fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        0x30 | (state >> 24) as u8 & 0x0b
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// A model file of plausible numbers that lies nowhere.
pub(super) struct PlausibleFile {
    pattern: Vec<u8>,
    /// Where there are ones: divisors of the rotation, which must be of ordinary size.
    ones: Range<u64>,
}

impl PlausibleFile {
    pub(super) fn new(ones: Range<u64>) -> Self {
        Self { pattern: pattern(PATTERN), ones }
    }
}

impl WeightSource for PlausibleFile {
    fn read_range(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.ones.contains(&offset) {
            let (values, _) = out.as_chunks_mut::<4>();
            values.iter_mut().for_each(|value| *value = 1.0_f32.to_le_bytes());
            return Ok(());
        }
        for part in out.chunks_mut(self.pattern.len()) {
            part.copy_from_slice(&self.pattern[..part.len()]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_caches_are_read() {
        assert_eq!(parse_size("32768K"), Some(32 << 20));
        assert_eq!(parse_size("4M"), Some(4 << 20));
        assert_eq!(parse_size("512"), Some(512));
        assert_eq!(parse_size("many"), None);
        assert_eq!(parse_size("99999999999999999999G"), None);
    }

    #[test]
    fn a_small_model_is_measured_whole_and_a_large_one_beyond_the_cache() {
        assert_eq!(working_set(100_000), 100_000);
        let large = working_set(100 << 30);
        assert!((1 << 20..=MOST_SET).contains(&large), "{large}");
    }

    #[test]
    fn what_fills_memory_is_finite_in_every_place() {
        let bytes = plausible(3 * PATTERN / 2);
        assert_eq!(bytes.len(), 3 * PATTERN / 2);
        for value in bytes.as_chunks::<4>().0 {
            assert!(f32::from_le_bytes(*value).is_normal());
        }
    }
}
