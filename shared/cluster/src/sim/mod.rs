//! A seeded simulator: the real coordinator and worker machines over virtual time.
//!
//! A seed makes a [`Scenario`]: workers of different speeds, links with latency and loss (a lost packet
//! is a delay; a stream never reorders), requests, and faults: crashes, closed connections, pauses, failed
//! steps, failed loads, absurd profiles, slow nodes. The engine is a fake whose logits are a hash of the
//! sequence's history, so that every emitted token can be checked. After every event the invariants of
//! `check` are tested. A failed run returns the seed's log.

mod check;
mod fabric;
mod node;
mod scenario;
mod world;

pub use check::Violation;
pub use scenario::{Fault, Scenario};
pub use world::{Summary, run};
