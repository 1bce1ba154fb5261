//! Repeated measurements and the clock they run against. Called by the other files of this folder alone.

use std::time::{Duration, Instant};

use shoal_core::profile::Measured;

/// Repetitions of one figure, in seconds (or seconds for some unit of work).
#[derive(Debug, Clone, Default)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    pub(super) fn push(&mut self, seconds: f64) {
        self.0.push(seconds);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The middle one: what disturbs a few of them does not matter. `None` without samples.
    pub(super) fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            odd if odd % 2 == 1 => Some(sorted[middle]),
            _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        }
    }

    /// `(largest − smallest) ÷ median`, zero without samples.
    pub(super) fn spread(&self) -> f32 {
        let Some(median) = self.median() else { return 0.0 };
        let most = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        ((most - least) / median.abs().max(f64::MIN_POSITIVE)).min(f32::MAX.into()) as f32
    }

    /// The figure that `of` makes of the median, with this spread.
    pub(super) fn measured<T>(&self, of: impl Fn(f64) -> T) -> Option<Measured<T>> {
        Some(Measured { median: of(self.median()?), spread: self.spread() })
    }
}

/// How much of the time for the whole measurement is left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    end: Instant,
}

impl Clock {
    pub(super) fn new(time: Duration) -> Self {
        Self { end: Instant::now() + time }
    }

    /// Whether work of about so many seconds would still end in time.
    pub(super) fn allows(&self, seconds: f64) -> bool {
        self.left() >= seconds
    }

    pub(super) fn left(&self) -> f64 {
        self.end.saturating_duration_since(Instant::now()).as_secs_f64()
    }

    /// A part of what is left.
    pub(super) fn part(&self, part: f64) -> Self {
        Self::new(Duration::from_secs_f64(self.left() * part))
    }
}

/// Seconds that `work` takes.
pub(super) fn time<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed().as_secs_f64(), result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples(values.to_vec())
    }

    #[test]
    fn the_median_is_the_middle_and_the_spread_is_relative_to_it() {
        assert_eq!(samples(&[3.0, 1.0, 2.0]).median(), Some(2.0));
        assert_eq!(samples(&[3.0, 1.0]).median(), Some(2.0));
        assert_eq!(samples(&[]).median(), None);
        assert_eq!(samples(&[3.0, 1.0, 2.0]).spread(), 1.0);
        assert_eq!(samples(&[]).spread(), 0.0);
    }

    #[test]
    fn a_clock_allows_what_ends_in_time() {
        let clock = Clock::new(Duration::from_secs(3600));
        assert!(clock.allows(10.0) && !clock.allows(4000.0));
        assert!(clock.part(0.1).left() < 361.0);
        assert!(!Clock::new(Duration::ZERO).allows(1e-3));
    }
}
