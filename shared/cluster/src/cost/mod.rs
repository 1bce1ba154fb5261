//! What a plan costs: decode and prefill times, traffic and memory, from measured figures of devices
//! and links (design 6).
//!
//! The cost of a phase of one layer on a device with `b` rows at context `s` is
//! `max(bytes ÷ w, b · macs ÷ f(b)) + b · s · kv ÷ a(s) + o`: weights streamed at rate `w` or multiplied
//! at the rate `f` of that many rows, whichever is slower; the KV cache read at the rate `a` of that
//! context; a fixed overhead `o`. A group's layer is
//! its slowest attention, an all-reduce, its slowest feed-forward network and an all-reduce. No plan is
//! made here ([`crate::planner`]) and no figure is measured here.

mod bound;
mod device;
pub(crate) mod link;
pub(crate) mod model;
pub(crate) mod parts;
pub(crate) mod predict;
pub(crate) mod rates;

use serde::Serialize;
use shoal_core::NodeId;
use shoal_core::profile::{DeviceProfile, Power};
use shoal_core::shard::Footprint;
use shoal_core::units::Bytes;

pub use bound::lower_bound_ms;
pub use device::DevicePrice;
pub use link::{Link, Links};
pub use predict::{CostError, predict, prefill};

/// A device that may take part.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    pub node: NodeId,
    /// Name for people.
    pub name: String,
    /// Checked by [`DeviceProfile::check`].
    pub profile: DeviceProfile,
    /// What weights, KV and buffers may take.
    pub usable: Bytes,
    /// What it draws, where that is known.
    pub power: Option<Power>,
}

/// Devices and what lies between them.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    pub devices: Vec<Device>,
    pub links: Links,
}

impl Cluster {
    /// The device of this node.
    pub fn device(&self, node: NodeId) -> Option<&Device> {
        self.devices.iter().find(|device| device.node == node)
    }
}

/// What is to be made best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Time between two tokens of one stream.
    Latency,
    /// Tokens per second over all streams.
    Throughput,
    /// Joules per token over all streams.
    Energy,
}

/// What the cluster is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Positions one sequence may reach; at most the model's context counts.
    pub context: u32,
    /// Sequences at once, from 1.
    pub streams: u32,
    /// Tokens of a typical prompt.
    pub prompt_len: u32,
    /// Tokens generated after it: a decoded token is priced at the middle of them.
    pub decode_len: u32,
    /// `None`: latency for one stream, throughput for several.
    pub objective: Option<Objective>,
}

impl Workload {
    /// Tokens generated where nothing is said: an answer of a few sentences.
    pub const DECODE_LEN: u32 = 128;

    /// The objective, chosen by the number of streams where none is given.
    pub const fn objective(&self) -> Objective {
        match self.objective {
            Some(objective) => objective,
            None if self.streams > 1 => Objective::Throughput,
            None => Objective::Latency,
        }
    }
}

/// Aggregate rate at a number of streams.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Aggregate {
    pub streams: u32,
    /// Tokens per second over all streams.
    pub tps: f64,
}

/// Bytes sent for one decoded token, over all links.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Traffic {
    /// Hidden states between stages.
    pub hops: f64,
    /// Partial and reduced sums within groups.
    pub all_reduce: f64,
    /// Hidden states to head ranks, and their answers.
    pub head: f64,
    /// Step orders.
    pub control: f64,
}

/// One node's part of a prediction.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodePrediction {
    pub node: NodeId,
    pub memory: Footprint,
    pub usable: Bytes,
    /// Time in kernels for one decoded token, one stream.
    pub compute_ms: f64,
    /// Time in all-reduces of its stage, for that token.
    pub all_reduce_ms: f64,
    /// Time for its hidden state to come in, from the stage before and for its rows of the head.
    pub hop_ms: f64,
    /// Time waiting for slower ranks of its stage.
    pub wait_ms: f64,
    /// What is left of the token's time: other stages are at work, or orders and answers on their way.
    pub idle_ms: f64,
}

/// One decoded token of one stream by what its time is spent on. The parts add up to
/// [`Prediction::decode_ms`].
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Breakdown {
    /// The slowest rank's kernels of each phase of each layer.
    pub compute_ms: f64,
    pub all_reduce_ms: f64,
    /// Hidden states from stage to stage.
    pub hops_ms: f64,
    /// The output head, with its rows' way to ranks outside the last group.
    pub head_ms: f64,
    /// Order and answers, from and to the coordinator.
    pub control_ms: f64,
}

/// A prompt by itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Prefill {
    pub tokens: u32,
    /// Prompt tokens per second.
    pub tps: f64,
    /// From the request to the first token.
    pub ttft_ms: f64,
}

/// What a plan is predicted to do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Prediction {
    /// One token of one stream, from order to answer, in the middle of what is generated after the prompt.
    pub decode_ms: f64,
    /// `1000 / decode_ms`.
    pub decode_tps: f64,
    /// At 1 stream, at powers of two, and at the workload's streams.
    pub aggregate: Vec<Aggregate>,
    /// Prompt tokens per second of a prompt of the workload's length.
    pub prefill_tps: f64,
    /// A prompt of the workload's length until its first token.
    pub ttft_ms: f64,
    pub bytes_per_token: Traffic,
    /// Rate at the workload's streams ÷ the sum of the rates of the used devices each running alone.
    pub efficiency: f64,
    /// Whether some used device cannot hold the model, so that its part of `efficiency` is computed
    /// as if its memory had no limit.
    pub efficiency_assumes_memory: bool,
    /// Energy of a token at the workload's streams, over all used devices: what each draws idle for a
    /// token's time and what it draws more while its kernels run. `None` where a used device has no power
    /// figures.
    pub joules_per_token: Option<f64>,
    /// No plan on these devices can decode one stream faster.
    pub lower_bound_ms: f64,
    /// Decode time of each stage for one stream, hops and sums included.
    pub stage_ms: Vec<f64>,
    /// Time of one full prefill chunk through the whole plan, all stages and hops, for deadlines.
    pub chunk_ms: f64,
    /// What `decode_ms` is spent on.
    pub breakdown: Breakdown,
    /// By node id.
    pub nodes: Vec<NodePrediction>,
}

impl Prediction {
    /// Predicted aggregate rate at the workload's streams (the last entry).
    pub fn throughput(&self) -> f64 {
        self.aggregate.last().map_or(self.decode_tps, |entry| entry.tps)
    }
}
