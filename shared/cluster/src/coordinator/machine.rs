//! The machine's skeleton.

use std::time::Duration;

use super::{Action, Config, Event, State};

/// The coordinator's state machine.
#[derive(Debug)]
pub struct Machine {}

impl Machine {
    /// Idle, with no worker.
    pub fn new(config: Config) -> Self {
        unimplemented!()
    }

    /// Takes in what happened at `now` (time since the start; never falls).
    pub fn handle_event(&mut self, now: Duration, event: Event) {
        unimplemented!()
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Duration) {
        unimplemented!()
    }

    /// When [`Machine::handle_timeout`] must be called next; `None` while nothing is awaited.
    pub fn poll_timeout(&self) -> Option<Duration> {
        unimplemented!()
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        unimplemented!()
    }

    /// Where the machine stands.
    pub fn state(&self) -> State {
        unimplemented!()
    }
}
