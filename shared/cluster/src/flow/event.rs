//! What happens in a run and when: messages on their way, and kernels that end. [`super::world`] works it off.

use std::cmp::Ordering;

/// What a message is for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum What {
    /// The step's order, from the coordinator.
    Order,
    /// Hidden rows for the receiver's stage.
    Hop,
    /// A partial sum, or a summed slice, of this round of the stage's.
    Partial(u32),
    Sum(u32),
    /// Hidden rows for the receiver's part of the head.
    HeadRows,
    /// An answer to the coordinator.
    Answer,
    /// Word that a step's logits need not be kept.
    Settled,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Message {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) step: usize,
    pub(super) what: What,
    pub(super) bytes: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Happening {
    /// The node's kernels are done with what they were at.
    Computed(usize),
    /// A message on a shared link begins to leave.
    Leaves(Message),
    /// A message's first byte is there; it keeps the receiver for so long.
    Reaches(Message, f64),
    /// The message is taken over.
    Arrives(Message),
}

/// Earlier ones first, among equal times those that were scheduled first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Event {
    pub(super) time: f64,
    pub(super) order: u64,
    pub(super) what: Happening,
}

impl Eq for Event {}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> Ordering {
        other.time.total_cmp(&self.time).then(other.order.cmp(&self.order))
    }
}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
