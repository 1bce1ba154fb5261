//! Sleeping up to a point in time, as exactly as a system without spinning can.
//!
//! A sleeper never spins: several played devices share the cores of one machine, and one that spins takes
//! them from the others. Instead it has the system's timers not be put off ([`prompt_timers`]), learns by how
//! much it wakes too late, and goes to sleep for so much less. What is left of the error, early or late, is
//! for the caller to carry over.

use std::time::{Duration, Instant};

/// Most by which a sleep is cut short: a machine that wakes threads later than this is too busy to play
/// devices, and shows it in its overruns.
const LONGEST_BIAS: Duration = Duration::from_micros(200);

/// Part of each error that is learned: a dozen sleeps to follow a change, one outlier forgotten as fast.
const LEARNED: f64 = 0.1;

/// Shorter sleeps are not worth a call of the system: they are left to be carried over.
const SHORTEST: Duration = Duration::from_micros(20);

/// A thread's sleeper.
#[derive(Debug, Default)]
pub(crate) struct Sleeper {
    /// By how much sleeps are cut short, in seconds.
    bias: f64,
    prompt: bool,
    pub(crate) sleeps: u64,
    /// Sum of the errors, whatever their direction.
    pub(crate) missed: Duration,
}

impl Sleeper {
    /// Sleeps until about `deadline`; by how much it was missed, in seconds: positive when late. A deadline
    /// that has passed is not slept for.
    pub(crate) fn until(&mut self, deadline: Instant) -> f64 {
        // Once for each thread; a sleeper stays on its own.
        if !std::mem::replace(&mut self.prompt, true) {
            prompt_timers();
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let cut = Duration::from_secs_f64(self.bias);
        if left > SHORTEST + cut {
            std::thread::sleep(left - cut);
            let missed = signed(deadline, Instant::now());
            self.bias = (self.bias + LEARNED * missed).clamp(0.0, LONGEST_BIAS.as_secs_f64());
            self.sleeps += 1;
            self.missed += Duration::from_secs_f64(missed.abs());
        }
        signed(deadline, Instant::now())
    }
}

/// Seconds from `deadline` to `now`, negative before it.
fn signed(deadline: Instant, now: Instant) -> f64 {
    match now.checked_duration_since(deadline) {
        Some(late) => late.as_secs_f64(),
        None => -(deadline - now).as_secs_f64(),
    }
}

/// Linux puts the timers of a thread off by 50 µs, to fire several at once, unless the thread says otherwise.
/// Elsewhere, and where that is not allowed, sleeps are cut short by more.
fn prompt_timers() {
    // `<process>/task/<thread>`; a thread's own folder below /proc goes by its number.
    let Ok(own) = std::fs::read_link("/proc/thread-self") else { return };
    let Some(thread) = own.file_name() else { return };
    let path = std::path::Path::new("/proc").join(thread).join("timerslack_ns");
    if let Err(error) = std::fs::write(path, "1") {
        tracing::debug!("timers stay imprecise: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passed_deadline_is_late_by_what_has_passed_and_costs_no_sleep() {
        let mut sleeper = Sleeper::default();
        let late = sleeper.until(Instant::now() - Duration::from_millis(3));
        assert!((3e-3..1.0).contains(&late), "{late}");
        assert_eq!(sleeper.sleeps, 0);
    }

    #[test]
    fn sleeps_learn_what_the_system_adds() {
        let mut sleeper = Sleeper::default();
        for _ in 0..50 {
            let deadline = Instant::now() + Duration::from_millis(2);
            let missed = sleeper.until(deadline);
            // Early by no more than what a sleep is cut short, or what is too short to be slept for.
            let most = LONGEST_BIAS + SHORTEST + Duration::from_micros(1);
            assert!(missed > -most.as_secs_f64(), "{missed}");
        }
        // A busy machine may let the thread go on only when a deadline has passed.
        assert!((1..=50).contains(&sleeper.sleeps), "{}", sleeper.sleeps);
        assert!(sleeper.bias > 0.0, "no system wakes at once");
    }
}
