//! The control side of a worker as a state machine: what it obeys, what it refuses, what it answers.
//!
//! The driver feeds [`Event`]s into [`Machine::handle_event`] and drains [`Machine::poll_action`]; it owns
//! the sockets, the files and the compute thread. Nothing here computes or waits. Whatever an order holds
//! is checked before an action names it, so that the compute thread can trust what it is told; an order
//! that cannot be obeyed is answered with a failure, never with a panic.
//!
//! ```text
//!            Load                    Loaded(Ok)                 Step, Query, Settled, Report
//! Idle ────────────────► Loading ────────────────► Ready ─────────────────────────────┐
//!  ▲                        │                        │ ▲                              │
//!  └────── Unload, lost coordinator, failure ────────┘ └──────────────────────────────┘
//! ```
//!
//! A `Load` in any state ends the epoch in force first. Orders of another epoch than the one in force
//! are dropped without an answer.

mod checks;
mod machine;

use std::sync::Arc;

use shoal_core::head::{Candidate, HeadAnswer, HeadQuery};
use shoal_core::message::{Answer, Counters, Failure, ModelRef, Order, Peer, Resident, StepOrder};
use shoal_core::model::ModelSpec;
use shoal_core::profile::{DeviceProfile, LinkProfile};
use shoal_core::units::Bytes;
use shoal_core::{Epoch, Plan, StepId};

pub use machine::Machine;

/// Steps a worker takes on before the first of them is done: one for each stage of the longest
/// pipeline, and as many again on their way.
pub const STEPS_HELD: usize = 2 * shoal_core::limits::WORKERS;

/// What happened to a worker.
#[derive(Debug, Clone)]
pub enum Event {
    /// The coordinator sent an order.
    Order(Order),
    /// The control connection is gone.
    Disconnected,
    /// A measurement asked for by [`Action::StartProfile`] is done.
    Profiled(Result<Box<DeviceProfile>, Failure>),
    /// A measurement asked for by [`Action::StartLinks`] is done.
    LinksMeasured { links: Vec<LinkProfile>, failed: Vec<Failure> },
    /// Loading goes on.
    Progress { epoch: Epoch, done: Bytes, total: Bytes, fetched: Bytes },
    /// What [`Action::StartLoad`] asked for is done; on failure the driver holds nothing any more.
    Loaded { epoch: Epoch, result: Result<(Resident, Bytes), Failure> },
    /// A step is done here. `head` holds this node's answers, empty where it is no head rank.
    StepDone { epoch: Epoch, step: StepId, head: Vec<HeadAnswer> },
    /// A step failed, or the data plane did.
    StepFailed { epoch: Epoch, failure: Failure },
    /// A question was answered.
    Queried {
        epoch: Epoch,
        step: StepId,
        row: u32,
        query: HeadQuery,
        result: Result<Vec<Candidate>, Failure>,
    },
    /// The counters that [`Action::Report`] asked for.
    Reported { epoch: Epoch, counters: Counters, resident: Resident },
    /// What [`Action::Drop`] asked for is done.
    Dropped { epoch: Epoch },
}

/// What the driver must do.
#[derive(Debug, Clone, PartialEq)]
#[must_use = "an action that is not carried out leaves the machine waiting"]
pub enum Action {
    /// Send this to the coordinator. Dropped where there is no connection.
    Reply(Answer),
    /// Close the control connection, for the reason given.
    Close { reason: String },
    /// Measure this device for the model.
    StartProfile { spec: Box<ModelSpec> },
    /// Measure the links to these nodes.
    StartLinks { peers: Vec<Peer> },
    /// Load the shard of this plan and connect to the peers. All steps of an earlier epoch are void:
    /// its [`Action::Drop`] came before.
    StartLoad { model: ModelRef, spec: Arc<ModelSpec>, plan: Arc<Plan>, peers: Vec<Peer> },
    /// Run this step after those before it.
    RunStep(Box<StepOrder>),
    /// Answer a question about a row of a step that is done and not settled.
    RunQuery { epoch: Epoch, step: StepId, row: u32, query: HeadQuery },
    /// Logits of steps up to this one need not be kept.
    Settle { epoch: Epoch, step: StepId },
    /// Say the counters of the epoch.
    Report { epoch: Epoch },
    /// Drop the shard, the KV cache and the data connections of this epoch; stop loading it if that is
    /// going on. Answer with [`Event::Dropped`].
    Drop { epoch: Epoch },
}

/// Where a worker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Holds nothing.
    Idle,
    /// Is loading the shard of a plan.
    Loading,
    /// Runs steps.
    Ready,
}
