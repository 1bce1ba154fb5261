//! The model: from a file's metadata to a [`ModelSpec`](shoal_core::ModelSpec), from a plan to a
//! [`Shard`], and a step through a shard's layers and output head.
//!
//! - [`spec`](fn@spec) reads what a GGUF file holds; the coordinator calls it.
//! - [`Shard`] is one node's part; the worker's compute thread owns it and drives it.
//! - [`DryShard`] is a shard without weights, which counts and answers and computes nothing.
//! - [`WeightSource`] is the only way to a file's bytes, [`Group`] the only way to other ranks: there is
//!   no socket and no path in here.
//! - [`reduce`] is the one function that all ways of summing a group's partials compute.
//!
//! Results are a function of the weights, the plan's shares and the tokens before a position alone: not
//! of threads, batches, chunks or stages.

mod attention;
mod batch;
mod block;
mod dry;
mod group;
mod head;
mod kv;
pub mod reduce;
mod rope;
mod shard;
mod source;
mod spec;
mod weights;

pub use batch::{Batch, BatchError, RowRun};
pub use dry::DryShard;
pub use group::{Group, GroupError, LocalGroup, LocalGroupError, ReducePhase, Solo};
pub use head::HeadError;
pub use kv::KvError;
pub use shard::{ForwardError, Shard};
pub use source::{FileSource, MemorySource, WeightSource, map_file};
pub use spec::{SpecError, spec};
pub use weights::LoadError;
