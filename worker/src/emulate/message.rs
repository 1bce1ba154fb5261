//! Processor time of messages on a played device.
//!
//! A link's round trips, which the laboratory makes as long as the profile says, contain one message's
//! processor time at each end already. What they do not contain is that a board sends (and takes) several
//! messages one after another: each keeps it busy for a while. So a message leaves no sooner than that time
//! after the one before it left, and is taken no sooner than that time after the one before it was taken.
//! The time runs from the start of a send, so what this machine's own transport takes is within it. A lone
//! message is never held.

use std::time::{Duration, Instant};

use super::sleep::Sleeper;

/// Sends and receipts of one device, each one at a time.
#[derive(Debug)]
pub(crate) struct MessagePace {
    each: Duration,
    sleeper: Sleeper,
    out_free: Option<Instant>,
    in_free: Option<Instant>,
}

impl MessagePace {
    /// `seconds` for each message, dilation included.
    pub(crate) fn new(seconds: f64) -> Self {
        let each = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        Self { each, sleeper: Sleeper::default(), out_free: None, in_free: None }
    }

    /// A message is about to be sent: waits until the one before has left.
    pub(crate) fn send(&mut self) {
        self.out_free = Some(Self::pass(self.each, &mut self.sleeper, self.out_free));
    }

    /// A message has come: waits until the one before is taken.
    pub(crate) fn take(&mut self) {
        self.in_free = Some(Self::pass(self.each, &mut self.sleeper, self.in_free));
    }

    /// When the last message has left.
    pub(crate) fn sent(&self) -> Option<Instant> {
        self.out_free
    }

    /// Waits for `free`; when the next one may pass.
    fn pass(each: Duration, sleeper: &mut Sleeper, free: Option<Instant>) -> Instant {
        let now = Instant::now();
        let start = free.map_or(now, |free| free.max(now));
        if start > now {
            sleeper.until(start);
        }
        start + each
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_pass_one_after_another_and_a_lone_one_at_once() {
        // Bounds that hold however late a busy machine runs this thread.
        let each = Duration::from_millis(3);
        let mut pace = MessagePace::new(each.as_secs_f64());
        let start = Instant::now();
        pace.send();
        pace.take();
        assert_eq!(pace.sleeper.sleeps, 0, "nothing was before them");
        let first = pace.sent().expect("sent");
        assert!(first >= start + each);
        pace.send();
        pace.send();
        assert!(pace.sent().is_some_and(|sent| sent >= first + 2 * each));
        // Two waits, less what sleeps are cut short.
        assert!(start.elapsed() > Duration::from_micros(5500), "{:?}", start.elapsed());
    }
}
