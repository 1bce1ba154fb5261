//! Named limits that more than one room obeys, each with its reason. Limits of one room live there.

/// Version of the control protocol; peers of another version are refused with both numbers named.
pub const PROTOCOL_VERSION: u32 = 2;

/// Largest control message: a step of 512 prompt tokens and 256 sampled rows is far below it.
pub const CONTROL_MESSAGE_BYTES: usize = 1 << 20;

/// Largest payload of one data frame on the wire: a long prefill never blocks a decode step for longer
/// than this takes to send (0.5 ms on gigabit Ethernet).
pub const FRAME_BYTES: usize = 64 << 10;

/// Largest activation block (all frames of one exchange between two ranks).
pub const ACTIVATION_BYTES: u64 = 32 << 20;

/// Workers in a running plan: direct all-reduce and a table a person can read both end about here.
pub const WORKERS: usize = 64;

/// Workers in a plan on paper: what can be planned for in the time a person waits.
pub const PLANNED_WORKERS: usize = 500;

/// Live sequences of a cluster.
pub const SEQUENCES: usize = 256;

/// Tokens of one step of prefill: more no longer raises a worker's rate, and delays decode steps.
pub const CHUNK_TOKENS: u32 = 512;

/// Rows of the output head that travel and are owned together.
pub const VOCAB_TILE: u32 = 256;

/// Positions of one KV page: small enough to waste little per sequence, large enough to stream.
pub const PAGE_POSITIONS: u32 = 32;

/// Candidates a head step may ask for; more than any sampler setting in use, and 16 kB at most.
pub const HEAD_CANDIDATES: u32 = 1024;

/// Layers, heads and similar counts of a model: far above any model, so that products stay in range.
pub const MODEL_DIMENSION: u32 = 1 << 20;

/// Layers of a model.
pub const LAYERS: u32 = 4096;
