//! The control plane: what the coordinator and a worker say to each other.
//!
//! Participants: one coordinator (role `coordinator`), any number of workers. One bidirectional
//! stream a worker; each message is one frame of at most [`crate::limits::CONTROL_MESSAGE_BYTES`]. The
//! coordinator orders, the worker answers; a worker never sends anything but answers, reports and
//! failures. Orders of a lower term than the worker has seen are dropped. Activations and weights do
//! not travel here: they have the data plane and the chunk streams.
//!
//! Life of a worker: `Hello`/`Welcome` → (`Profile` → `Profiled`)* → (`Links` → `LinksMeasured`)* →
//! `Load` → `Progress`* → `Loaded` → (`Step` → `Head`*)* → `Unload` → `Idle`. `Ping` and `Pong` at any
//! time after the greeting; either side that hears nothing for the limit closes the connection.

use serde::{Deserialize, Serialize};

use crate::frame::Class;
use crate::head::{Candidate, HeadAnswer, HeadQuery, HeadRequest};
use crate::ids::{Epoch, NodeId, SeqId, StepId, Term};
use crate::model::ModelSpec;
use crate::plan::PlanParts;
use crate::profile::{DeviceProfile, LinkProfile, NodeInfo};
use crate::shard::Footprint;
use crate::units::Bytes;

/// A BLAKE3 hash.
pub type Hash = [u8; 32];

/// Where a node's data plane can be dialled: `ip:port` texts, each to be tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub node: NodeId,
    pub addresses: Vec<String>,
}

/// What names a model file: enough to look for a local copy, and to check the list of chunk hashes,
/// which travels on a chunk stream since a large model's list is longer than a control message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRef {
    /// BLAKE3 of the whole file.
    pub hash: Hash,
    /// BLAKE3 of the concatenated chunk hashes.
    pub chunks_hash: Hash,
    pub file_bytes: Bytes,
    /// 64 KiB or 1 MiB; the last chunk may be short.
    pub chunk_bytes: u32,
    /// The file's name without a folder.
    pub file_name: String,
}

/// Part of a sequence in a step: tokens at rising positions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub seq: SeqId,
    pub first_position: u32,
    pub tokens: Vec<u32>,
}

/// A row of the step whose logits are wanted. Rows count over the runs in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeadRow {
    pub row: u32,
    pub request: HeadRequest,
}

/// One batched pass through all stages. Every worker of the plan gets the same order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepOrder {
    pub epoch: Epoch,
    pub step: StepId,
    pub class: Class,
    pub runs: Vec<Run>,
    /// Rows rise.
    pub head: Vec<HeadRow>,
    /// Sequences whose KV pages are freed before this step runs.
    pub release: Vec<SeqId>,
}

impl StepOrder {
    /// Rows of the step.
    pub fn rows(&self) -> usize {
        self.runs.iter().map(|run| run.tokens.len()).sum()
    }
}

/// Counters of one worker within an epoch; they only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    pub steps: u64,
    /// Time in kernels.
    pub compute_us: u64,
    /// Time in which the compute thread waited for another rank or stage.
    pub wait_us: u64,
    /// Bytes sent to later stages.
    pub hop_bytes: u64,
    /// Bytes sent within the group.
    pub sum_bytes: u64,
    /// Bytes sent to head ranks and as answers of the head.
    pub head_bytes: u64,
    /// Bytes of control messages sent and received.
    pub control_bytes: u64,
    /// Of a worker that plays another device; zeros elsewhere.
    pub emulation: EmulationCounters,
}

/// How well a worker plays another device, within an epoch; they only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EmulationCounters {
    /// Time that the played device would have computed.
    pub predicted_us: u64,
    /// Time by which real work outlasted that: it could not be kept.
    pub overrun_us: u64,
    /// How often a deadline was slept up to.
    pub sleeps: u64,
    /// By how much these sleeps missed their deadlines in all, early or late.
    pub missed_us: u64,
}

/// Memory of a worker: what it accounts, and what the system says of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resident {
    /// Weights, table, KV pages in use and buffers, as allocated.
    pub accounted: Footprint,
    /// Resident set of the process.
    pub process: Bytes,
}

/// Why a worker could not do what it was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For a person.
    pub message: String,
    /// The node whose fault it is, when that is another one.
    pub blame: Option<NodeId>,
}

/// From the coordinator to a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Order {
    /// The first message on a connection.
    Hello { protocol: u32, term: Term, cluster: String },
    /// Measure yourself for this model.
    Profile { spec: Box<ModelSpec> },
    /// Measure the links to these nodes.
    Links { peers: Vec<Peer> },
    /// Take your shard of this plan and get ready. Ends whatever epoch was in force.
    Load { model: ModelRef, spec: Box<ModelSpec>, plan: Box<PlanParts>, peers: Vec<Peer> },
    /// Run a step.
    Step(Box<StepOrder>),
    /// A question about a row already answered.
    Query { epoch: Epoch, step: StepId, row: u32, query: HeadQuery },
    /// No more questions about steps up to this one will come.
    Settled { epoch: Epoch, step: StepId },
    /// Say your counters.
    Report { epoch: Epoch },
    /// Drop the shard of this epoch and everything of its steps.
    Unload { epoch: Epoch },
    /// Are you there?
    Ping { nonce: u64 },
}

/// From a worker to the coordinator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// The first message on a connection.
    Welcome {
        protocol: u32,
        info: Box<NodeInfo>,
    },
    /// The greeting is refused: other protocol, or an older term than seen.
    Refused {
        protocol: u32,
        highest_term: Term,
        reason: String,
    },
    Profiled(Result<Box<DeviceProfile>, Failure>),
    /// The links that could be measured, and a failure for each peer that could not be reached, which it
    /// blames. A failure that blames nobody is this worker's own.
    LinksMeasured {
        links: Vec<LinkProfile>,
        failed: Vec<Failure>,
    },
    /// Loading: bytes of the shard that are in place, of all.
    Progress {
        epoch: Epoch,
        done: Bytes,
        total: Bytes,
        fetched: Bytes,
    },
    Loaded {
        epoch: Epoch,
        resident: Resident,
        fetched: Bytes,
    },
    /// One head rank's answers for a step, rows as ordered.
    Head {
        epoch: Epoch,
        step: StepId,
        rows: Vec<HeadAnswer>,
    },
    /// Answer to `Query`: candidates, or a tile's logits in token order.
    Queried {
        epoch: Epoch,
        step: StepId,
        row: u32,
        query: HeadQuery,
        found: Vec<Candidate>,
    },
    Reported {
        epoch: Epoch,
        counters: Counters,
        resident: Resident,
    },
    /// The epoch cannot go on here.
    Failed {
        epoch: Epoch,
        failure: Failure,
    },
    /// The shard is dropped.
    Idle {
        epoch: Epoch,
    },
    Pong {
        nonce: u64,
    },
}
