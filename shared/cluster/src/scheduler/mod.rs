//! Which step runs next: sequences, their tokens and positions, and the steps in flight.
//!
//! A step holds one decode row for each chosen ready sequence, and one chunk of a prompt where rows are
//! left. Up to one step per stage is in flight; ready sequences are spread over that many steps, so that
//! stages stay busy when there are streams. Chunks of one prompt may be in flight one after another,
//! for they do not wait for a draw. The caller draws the tokens and says what logits it wants.

mod queue;
mod sequence;

pub use queue::{QUEUE, Scheduler, SubmitError};
pub use sequence::{FinishReason, NewSequence};
