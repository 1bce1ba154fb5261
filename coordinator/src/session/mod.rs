//! One prompt and its answer: text to tokens, tokens to text as they come, and what is said of it afterwards.
//!
//! Which token comes is the cluster's business (`driver`); here it is only shown.

mod conversation;
pub(crate) mod emulation;
mod generate;
mod prompt;
mod report;
mod stops;

pub(crate) use conversation::Conversation;
pub(crate) use emulation::EmulationView;
pub(crate) use generate::{Generated, Wanted, generate};
pub(crate) use prompt::{prompt_tokens, seed};
pub(crate) use report::{RunReport, Snapshot, Traffic};
