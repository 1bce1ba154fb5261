//! The model end to end: against the reference, split against unsplit, and with bad input.

mod bad_input;
mod bits;
mod head;
mod invariance;
mod split;
mod stories;
mod support;
mod tiny;
