//! The coordinator's side as one state machine: who is there, which plan is in force, which step runs,
//! which token comes out.
//!
//! The driver feeds [`Event`]s with the time since its start into [`Machine::handle_event`], calls
//! [`Machine::handle_timeout`] no later than [`Machine::poll_timeout`] says, and drains
//! [`Machine::poll_action`] after each. It owns sockets, the greeting on a new connection
//! ([`greeting`], [`check_welcome`]) and what is shown to people.
//!
//! ```text
//!  Start(job)                                                    all answered
//! Idle ─► Gathering ─► Profiling ─► Linking ─► (plan) ─► Loading ─► WarmingUp ─► Serving
//!  ▲          │            │           │          │          │          │           │
//!  └──────────┴────────────┴───────────┴── Unloading ◄───────┴──────────┴───────────┘
//!                     a failure, a lost worker, or Stop
//! ```
//!
//! In this version a lost worker of the plan ends the run: every request fails with a reason that names
//! the node, the others are unloaded, and the next job may start. A worker is lost when its connection
//! closes, when nothing was heard of it for [`DEAD_AFTER`], or when a step it has to answer is past its
//! deadline. Answers of another epoch or step than those in force are ignored.

mod links;
mod machine;
mod members;
mod phases;
mod serving;

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_core::limits::PROTOCOL_VERSION;
use shoal_core::message::{Answer, Counters, Hash, ModelRef, Order, Resident};
use shoal_core::model::ModelSpec;
use shoal_core::plan::PlanParts;
use shoal_core::profile::{DeviceProfile, LinkProfile, NodeInfo, Power};
use shoal_core::units::Bytes;
use shoal_core::{NodeId, Plan, SeqId, Term};

pub use crate::scheduler::FinishReason;
pub use machine::Machine;

use crate::cost::{Link, Workload};
use crate::planner::{Choice, LeftOut, NoPlan, Options};
use crate::sampling::SamplingParams;

/// Time between two pings to a worker.
pub const HEARTBEAT: Duration = Duration::from_millis(250);
/// A worker of which nothing was heard for this long is lost.
pub const DEAD_AFTER: Duration = Duration::from_secs(1);
/// A step's deadline is never shorter, whatever was predicted: a busy board may pause this long.
pub const STEP_DEADLINE: Duration = Duration::from_secs(1);
/// A step's deadline as a multiple of its prediction.
pub const STEP_DEADLINE_FACTOR: f64 = 8.0;
/// A worker that has not profiled itself by then is left out; design 7 gives it 10 s.
pub const PROFILE_DEADLINE: Duration = Duration::from_secs(60);
/// Measuring all links of one worker takes no longer, or no longer than [`LINK_DEADLINE`] for each.
pub const LINKS_DEADLINE: Duration = Duration::from_secs(60);
/// Measuring one link: its own limit is 20 s, and the handshake's 5 s.
pub const LINK_DEADLINE: Duration = Duration::from_secs(25);
/// A worker that reports no progress in loading for this long is lost: hashing a large file on a slow
/// card goes without progress for about a minute.
pub const LOAD_STALL: Duration = Duration::from_secs(180);
/// A worker that has not dropped its shard by then is lost.
pub const UNLOAD_DEADLINE: Duration = Duration::from_secs(10);
/// Deadline of the warm-up step: pages of the model are touched for the first time.
pub const WARM_UP_DEADLINE: Duration = Duration::from_secs(120);

/// What the machine is told once.
#[derive(Debug, Clone)]
pub struct Config {
    /// This start's term; every epoch carries it.
    pub term: Term,
    /// Taken for links that were not measured.
    pub default_link: Link,
}

/// The sequence of the warm-up step; no request may use it.
pub const WARM_UP_SEQ: SeqId = SeqId(u64::MAX);

/// Where the plan comes from.
#[derive(Debug, Clone)]
pub enum Planning {
    /// The planner chooses; its options may name a strategy.
    Choose(Options),
    /// This plan is taken as it is (its epoch is replaced), and nobody is measured.
    Fixed(Box<PlanParts>),
}

/// A model to serve.
#[derive(Debug, Clone)]
pub struct Job {
    pub model: ModelRef,
    pub spec: ModelSpec,
    pub workload: Workload,
    pub planning: Planning,
    /// Workers to wait for; planning starts when this many are connected.
    pub workers: usize,
    /// Wait for workers no longer than this; then go on with those there are.
    pub gather: Duration,
    /// Measure links; otherwise known ones and the default are used.
    pub measure_links: bool,
    /// Profiles known from before, for these nodes: they are not measured again.
    pub profiles: BTreeMap<NodeId, DeviceProfile>,
    /// Links known from before: their pairs are not measured again.
    pub links: Vec<LinkProfile>,
    /// Workers of equal hardware, build and threads are processes of one machine: one of them measures itself for
    /// all of them, while the others rest, and one pair its link.
    pub twins: bool,
    /// What nodes draw, where that is known: for energy as the objective.
    pub power: BTreeMap<NodeId, Power>,
}

/// A request for tokens.
#[derive(Debug, Clone)]
pub struct Request {
    /// Not used before in this term.
    pub seq: SeqId,
    /// Prompt, at least one token.
    pub tokens: Vec<u32>,
    /// Most tokens to generate.
    pub max_new: u32,
    pub params: SamplingParams,
    /// Tokens that end the text; they are emitted.
    pub stop_tokens: Vec<u32>,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// Serve this model. Refused with [`Action::Refused`] unless idle.
    Start(Box<Job>),
    /// A worker is connected and greeted. `addresses` are `ip:port` of its data plane.
    Connected { info: Box<NodeInfo>, addresses: Vec<String> },
    /// A worker's connection is gone.
    Disconnected { node: NodeId, reason: String },
    /// A worker's answer. Any answer counts as a sign of life.
    Answer { node: NodeId, answer: Answer },
    /// A request; only while serving.
    Submit(Box<Request>),
    /// The request's owner wants no more tokens.
    Cancel(SeqId),
    /// Ask every worker of the plan for its counters; answers come as [`Action::Reported`].
    Report,
    /// End the job: running requests fail, workers drop their shards.
    Stop,
}

/// Why the job ended before it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// A worker of the plan is lost.
    #[error("worker {name} ({}) is lost: {reason}", .node.short())]
    Lost { node: NodeId, name: String, reason: String },
    /// A worker says that it cannot go on; `node` is the one to blame.
    #[error("worker {name} ({}) failed: {reason}", .node.short())]
    Worker { node: NodeId, name: String, reason: String },
    /// Too few workers came, or none with a usable profile.
    #[error("failed to gather workers: {reason}")]
    Workers { reason: String },
    /// The fixed plan does not fit the model or the workers.
    #[error("failed to use the given plan: {reason}")]
    Plan { reason: String },
    /// An answer that no honest worker gives.
    #[error("worker {name} ({}) answered nonsense: {reason}", .node.short())]
    Answer { node: NodeId, name: String, reason: String },
    /// The job was stopped.
    #[error("the job was stopped")]
    Stopped,
}

impl Failed {
    /// The node whose fault it is.
    pub fn blame(&self) -> Option<NodeId> {
        match self {
            Self::Lost { node, .. } | Self::Worker { node, .. } | Self::Answer { node, .. } => Some(*node),
            Self::Workers { .. } | Self::Plan { .. } | Self::Stopped => None,
        }
    }
}

/// What the driver must do or show.
#[derive(Debug, Clone)]
#[must_use = "an action that is not carried out leaves the machine waiting"]
pub enum Action {
    /// Send this order.
    Send { node: NodeId, order: Order },
    /// Close this worker's connection and report [`Event::Disconnected`] no more for it.
    Disconnect { node: NodeId, reason: String },
    /// A node that is connected already connected again: close the newer connection, and say why. A
    /// worker that restarted is welcome once its old connection is found dead.
    RefuseConnection { node: NodeId, reason: String },
    /// The event could not be taken: a second start, a submit while not serving, bad parameters.
    Refused { seq: Option<SeqId>, reason: String },
    /// A worker measured itself. To be kept for the next job.
    Profiled { node: NodeId, profile: Box<DeviceProfile> },
    /// A worker's profile is sound, but hardly that of any machine. It is used all the same.
    Doubt { node: NodeId, name: String, reason: String },
    /// A worker measured its links. To be kept for the next job.
    LinksMeasured { node: NodeId, links: Vec<LinkProfile> },
    /// A connected worker that will not be used, and why.
    LeftOut(LeftOut),
    /// The plan of this job; the choice it came from, unless it was given.
    Planned { plan: Box<Plan>, choice: Option<Box<Choice>> },
    /// No plan fits; the machine is idle again.
    NoPlan(Box<NoPlan>),
    /// Loading goes on at a worker.
    Progress { node: NodeId, done: Bytes, total: Bytes, fetched: Bytes },
    /// A worker has its shard.
    Loaded { node: NodeId, resident: Resident, fetched: Bytes },
    /// All workers are warm; requests may come.
    Ready,
    /// A token for its owner, in order. `logit` is its modified logit.
    Emit { seq: SeqId, token: u32, logit: f32 },
    /// A request ended as it should.
    Finished { seq: SeqId, reason: FinishReason },
    /// A request ended because the job did, or because of what was drawn for it.
    Aborted { seq: SeqId, reason: String },
    /// A worker's counters.
    Reported { node: NodeId, counters: Counters, resident: Resident },
    /// The job is over. All its requests were aborted before. Workers are being unloaded.
    Ended(Failed),
    /// All workers are idle, or gone; the next job may start.
    Idle,
}

/// Where the machine stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Idle,
    Gathering,
    Profiling,
    Linking,
    Loading,
    WarmingUp,
    Serving,
    Unloading,
}

/// The first message on a control connection.
pub fn greeting(term: Term, cluster: &str) -> Order {
    Order::Hello { protocol: PROTOCOL_VERSION, term, cluster: cluster.to_owned() }
}

/// A worker that cannot be talked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GreetingError {
    #[error("the worker speaks protocol {0}; this coordinator speaks {PROTOCOL_VERSION}")]
    Protocol(u32),
    #[error("the worker refused: {reason} (highest term it has seen: {highest})", highest = .highest_term.0)]
    Refused { highest_term: Term, reason: String },
    #[error("the worker says it is {said}, but its certificate says {certified}")]
    Identity { said: NodeId, certified: NodeId },
    #[error("the worker's first answer is no welcome")]
    NoWelcome,
}

/// What a worker says of itself, from its first answer. `certified` is the id in its certificate.
///
/// # Errors
/// Another protocol, a refusal, an identity that is not the certificate's, or another message.
pub fn check_welcome(answer: Answer, certified: NodeId) -> Result<Box<NodeInfo>, GreetingError> {
    match answer {
        Answer::Welcome { protocol, .. } if protocol != PROTOCOL_VERSION => {
            Err(GreetingError::Protocol(protocol))
        }
        Answer::Welcome { info, .. } if info.node != certified => {
            Err(GreetingError::Identity { said: info.node, certified })
        }
        Answer::Welcome { info, .. } => Ok(info),
        Answer::Refused { highest_term, reason, .. } => Err(GreetingError::Refused { highest_term, reason }),
        _ => Err(GreetingError::NoWelcome),
    }
}

/// A model reference for tests and simulations, in which nobody opens a file.
#[doc(hidden)]
pub fn nominal_model() -> ModelRef {
    let hash: Hash = [0; 32];
    ModelRef {
        hash,
        chunks_hash: hash,
        file_bytes: Bytes(0),
        chunk_bytes: 64 << 10,
        file_name: "none.gguf".to_owned(),
    }
}
