//! A plan's messages and kernels as discrete events over the cost model: what the closed formula
//! ([`crate::cost::predict`]) leaves out.
//!
//! Times of kernels and messages are the cost model's. Beyond it, here each message waits for its turn at its
//! sender and at its receiver, messages of shared links wait for the medium, ranks and stages wait for each
//! other by what really came in, several streams are in flight as the real [`Scheduler`](crate::scheduler)
//! forms steps of them, and all may take longer or shorter by chance. A run is a function of its arguments and
//! its seed. It computes no token, loses no message and knows no failure: the state machines under faults are
//! [`crate::sim`]'s.
//!
//! The formula is exact, so that both agree, for one stream without chance on one device, on a layer split whose
//! head is on its last stage, and on one group of equal ranks that sum directly or by scattered slices. It is not
//! where ranks, links or hops are uneven (the formula takes the worst of each, events overlap), for a star (whose
//! second queue hides behind the first), and where several steps share a medium or a sender.
//!
//! What is not modelled: processor time that messages take from a node's kernels, which run on other threads;
//! the sampler's time, which is microseconds.

mod event;
mod jitter;
mod network;
mod node;
mod price;
mod report;
mod world;

use serde::Serialize;
use shoal_core::model::ModelSpec;
use shoal_core::{NodeId, Plan};

use crate::cost::{Cluster, CostError, Workload, predict, prefill};
use world::World;

/// The largest spread of chance that makes sense: a standard deviation as large as the mean.
pub const JITTER_MAX: f64 = 1.0;

/// What chance there is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Options {
    /// Standard deviation of each kernel's and each message's time as a fraction of its mean, log-normal; zero
    /// for none, at most [`JITTER_MAX`].
    pub jitter: f64,
    /// Runs of the same seed are the same.
    pub seed: u64,
}

/// What the plan is to do in one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Sequences, all there at the start.
    pub streams: u32,
    /// Tokens of each prompt, from 1.
    pub prompt_len: u32,
    /// Tokens each generates, from 1.
    pub decode_len: u32,
    /// Whether all of a prompt but its last token is in the caches already.
    pub prefilled: bool,
}

/// The middle and the slow end of many times.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub p50: f64,
    pub p95: f64,
}

/// How one node spent a run: fractions of its time, which add up to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NodeUse {
    pub node: NodeId,
    /// Its kernels ran.
    pub busy: f64,
    /// It waited for the others of its stage.
    pub wait: f64,
    /// It had nothing to do.
    pub idle: f64,
}

/// How one direction between two nodes was used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LinkUse {
    /// `None` for the coordinator.
    pub from: Option<NodeId>,
    pub to: Option<NodeId>,
    pub bytes: f64,
    /// Fraction of the run in which a message kept either end.
    pub utilisation: f64,
}

/// What one run did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Run {
    /// Until the last token.
    pub elapsed_ms: f64,
    /// Tokens of all streams.
    pub tokens: u64,
    /// Time between two tokens of a stream; `None` where no stream had two.
    pub itl_ms: Option<Spread>,
    /// From the start to each stream's first token.
    pub ttft_ms: Spread,
    /// Tokens per second while all streams generate, or over the whole run where they never do at once.
    pub tps: f64,
    /// By node id.
    pub nodes: Vec<NodeUse>,
    /// The busiest first.
    pub links: Vec<LinkUse>,
    /// Fraction of the run in which the shared medium was taken; `None` where no link is shared.
    pub medium: Option<f64>,
    /// Events that were worked off.
    pub events: u64,
}

/// Runs a load.
///
/// # Errors
/// A node of the plan that the cluster does not have, or has no rates of.
pub fn run(
    plan: &Plan,
    spec: &ModelSpec,
    cluster: &Cluster,
    load: Load,
    options: &Options,
) -> Result<Run, CostError> {
    let mut world = World::new(plan, spec, cluster, load, options)?;
    world.run();
    Ok(report::of(&world, plan))
}

/// A simulated figure beside the formula's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Beside {
    pub simulated: f64,
    pub predicted: f64,
    /// Simulated ÷ predicted − 1.
    pub difference: f64,
}

impl Beside {
    fn new(simulated: f64, predicted: f64) -> Self {
        Self { simulated, predicted, difference: simulated / predicted - 1.0 }
    }
}

/// A plan simulated for a workload.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Simulation {
    /// Median time between two tokens of one stream, ms.
    pub decode_ms: Beside,
    /// The 95th percentile of that, ms.
    pub decode_p95_ms: f64,
    /// Tokens per second over the workload's streams.
    pub aggregate_tps: Beside,
    /// From a prompt of the workload's length to its first token, nothing else going on, ms.
    pub ttft_ms: Beside,
    /// One stream.
    pub one: Run,
    /// The workload's streams, their prompts in the caches already.
    pub many: Run,
    /// The workload's streams asked for at once, prompts and all.
    pub together: Run,
}

/// Simulates a plan: one stream, the workload's streams, one prompt, and all of them asked for at once; the
/// formula's figures beside.
///
/// # Errors
/// A node of the plan that the cluster does not have, or has no rates of.
pub fn simulate(
    plan: &Plan,
    spec: &ModelSpec,
    cluster: &Cluster,
    workload: &Workload,
    options: &Options,
) -> Result<Simulation, CostError> {
    let context = plan.kv.context.max(2);
    let prompt_len = workload.prompt_len.clamp(1, context - 1);
    // Two tokens have a time between them.
    let decode_len = workload.decode_len.clamp(1, context - prompt_len).max(2);
    let streams = workload.streams.max(1);
    let predicted = predict(plan, spec, cluster, workload)?;
    let run = |load: Load| run(plan, spec, cluster, load, options);
    let one = run(Load { streams: 1, prompt_len, decode_len, prefilled: true })?;
    let many = run(Load { streams, prompt_len, decode_len, prefilled: true })?;
    let prompt = run(Load { streams: 1, prompt_len, decode_len: 1, prefilled: false })?;
    let together = run(Load { streams, prompt_len, decode_len, prefilled: false })?;
    let itl = one.itl_ms.unwrap_or(Spread { p50: one.elapsed_ms, p95: one.elapsed_ms });
    Ok(Simulation {
        decode_ms: Beside::new(itl.p50, predicted.decode_ms),
        decode_p95_ms: itl.p95,
        aggregate_tps: Beside::new(many.tps, predicted.throughput()),
        ttft_ms: Beside::new(prompt.ttft_ms.p50, prefill(plan, spec, cluster, prompt_len)?.ttft_ms),
        one,
        many,
        together,
    })
}
