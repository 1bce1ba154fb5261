//! The model end to end: against the reference, split against unsplit, and with bad input.

mod invariance;
mod split;
mod stories;
mod support;
mod tiny;
