//! The model end to end: against the reference, split against unsplit, and with bad input.

mod stories;
mod support;
mod tiny;
