//! Drawing the next token exactly, although no node ever sees all logits.
//!
//! A head rank answers with its best candidates and, when wanted, the log-sum-exp of each tile of
//! [`shoal_core::limits::VOCAB_TILE`] rows ([`shoal_core::head`]). [`Sampler`] merges the answers of all
//! ranks: the k best of each rank contain the k best of all, and tiles added in id order give sums that
//! do not depend on how the rows are split. Where the candidates do not suffice, it asks again.
//!
//! Order of the filters: penalties and biases (done by the head ranks), then top-k, top-p, min-p,
//! temperature, draw. The uniform number is a function of (seed, choice index, position), so a replay
//! needs no generator state. Exponentials and logarithms are computed portably, so every machine draws
//! the same token from the same logits.

mod filter;
mod params;
mod sampler;
mod uniform;

pub use params::{BIASES, PENALTY_WINDOW, ParamsError, SamplingParams};
pub use sampler::{Drawn, MergeError, Outcome, Queried, Sampler};
pub use uniform::uniform;
