//! The worker: the process on a board that holds a shard of a model and computes with it.
//!
//! | module | what it is |
//! |---|---|
//! | [`args`] | what a worker can be told: command line, environment, file |
//! | [`machine`] | what it knows of its machine without measuring |
//! | [`store`] | weights on this machine: local copies, the chunk cache |

pub mod args;
pub mod machine;
pub mod store;
