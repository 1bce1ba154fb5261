//! The words of Shoal as types: ids, units, the model's shape, device and link profiles, the plan,
//! the data frame's header and the control messages.
//!
//! Everything here is plain data with its checks. There is no socket, clock, thread or random
//! source, and no dependency but serde and thiserror. Whoever decodes one of these types from
//! outside gets it only through the constructor that checks it ([`plan::Plan::try_new`],
//! [`frame::Header::decode`]), so code further in can trust what it holds.

pub mod frame;
pub mod head;
pub mod ids;
pub mod limits;
pub mod message;
pub mod model;
pub mod plan;
pub mod profile;
pub mod quant;
pub mod shard;
pub mod units;

pub use ids::{Epoch, NodeId, SeqId, StepId, Term};
pub use model::ModelSpec;
pub use plan::Plan;
pub use quant::QuantType;
pub use units::{Bytes, BytesPerSec};
