//! The engine: reads GGUF files, multiplies quantized matrices, runs transformer blocks over a shard.
//!
//! Everything here computes; nothing here talks to the network or knows of a cluster. Results are a function of the
//! inputs alone: no thread count, batch size or instruction set changes a bit (`kernels`).

pub mod gguf;
pub mod kernels;
pub mod math;
pub mod model;
pub mod pool;
pub mod quant;
pub mod synth;
pub mod wire;
