//! The planning problem: devices by node id, what the model weighs and costs, and what a plan may be.
//!
//! Made once for a model, a cluster and a workload; every search ([`super::exact`] and the heuristics)
//! reads its tables. Nothing is searched here.

use shoal_core::plan::{KvBudget, Wire};
use shoal_core::{Epoch, ModelSpec, limits};

use crate::cost::{Cluster, Device, Workload};

/// What is to be made best: the part of [`crate::cost::Objective`] that the exact search solves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// The decode time of one row.
    Latency,
    /// Tokens per second over the workload's streams.
    Throughput,
}

/// Which mixtures of groups are plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// One stage of one device, which has the output head as well.
    Single,
    /// Groups of one device.
    Layers,
    /// One stage.
    Heads,
    /// Two stages or more, one group or more of two devices or more.
    Mixed,
    /// All of them.
    Any,
}

/// What all searches for one model on one cluster share.
#[derive(Debug)]
pub struct Problem<'a> {
    pub(crate) spec: &'a ModelSpec,
    pub(crate) cluster: &'a Cluster,
    pub(crate) workload: Workload,
    /// By node id, each once: the index of a device here is its bit in a set.
    pub(crate) devices: Vec<&'a Device>,
    pub(crate) wire: Wire,
    pub(crate) epoch: Epoch,
    pub(crate) kv: KvBudget,
}

impl<'a> Problem<'a> {
    /// `cluster` holds only devices that may be used, with profiles that passed their check; `spec` must
    /// have passed [`ModelSpec::check`]. Streams beyond [`limits::SEQUENCES`] count as that many.
    pub fn new(
        spec: &'a ModelSpec,
        cluster: &'a Cluster,
        workload: &Workload,
        wire: Wire,
        epoch: Epoch,
    ) -> Self {
        let mut devices: Vec<&Device> = cluster.devices.iter().collect();
        devices.sort_by_key(|device| device.node);
        devices.dedup_by_key(|device| device.node);
        let streams = workload.streams.clamp(1, limits::SEQUENCES as u32);
        let kv = KvBudget { context: workload.context.clamp(1, spec.context.max(1)), sequences: streams };
        Self { spec, cluster, workload: *workload, devices, wire, epoch, kv }
    }
}
