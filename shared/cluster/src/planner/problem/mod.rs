//! The planning problem: devices by node id, what the model weighs and costs, and what a plan may be.
//!
//! Made once for a model, a cluster and a workload; every search ([`super::exact`] and the heuristics)
//! reads its tables. Nothing is searched here.

mod head;
mod step;
mod weights;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use shoal_core::plan::{KvBudget, Wire};
use shoal_core::{Epoch, ModelSpec, limits};

use crate::cost::model::Model;
use crate::cost::predict::mean_context;
use crate::cost::rates::Rates;
use crate::cost::{Cluster, Device, Workload};

pub(crate) use head::Head;
pub use head::HeadMode;
pub(crate) use step::Step;
pub(crate) use weights::{Class, Weights};

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
    /// Of each device.
    pub(crate) rates: Vec<Rates>,
    pub(crate) model: Model,
    pub(crate) weights: Weights,
    /// The context at which a decoded token is priced.
    pub(crate) context: f64,
    pub(crate) wire: Wire,
    pub(crate) epoch: Epoch,
    pub(crate) kv: KvBudget,
    steps: RefCell<BTreeMap<u32, Rc<Step>>>,
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
        devices.retain(|device| Rates::of(device).is_some());
        let rates = devices.iter().filter_map(|device| Rates::of(device)).collect();
        let streams = workload.streams.clamp(1, limits::SEQUENCES as u32);
        let kv = KvBudget { context: workload.context.clamp(1, spec.context.max(1)), sequences: streams };
        let model = Model::new(spec);
        Self {
            spec,
            cluster,
            workload: *workload,
            devices,
            rates,
            weights: Weights::new(spec, &model, kv),
            model,
            context: mean_context(spec, workload),
            wire,
            epoch,
            kv,
            steps: RefCell::default(),
        }
    }

    /// Rows of a decode step of a plan of so many stages, and how many such steps serve all streams once.
    pub fn step_rows(&self, goal: Goal, stages: usize) -> (u32, u32) {
        match goal {
            Goal::Latency => (1, 1),
            Goal::Throughput => {
                let rows = self.kv.sequences.div_ceil(stages.max(1) as u32);
                (rows, self.kv.sequences.div_ceil(rows))
            }
        }
    }

    /// Prices of a step of so many rows.
    pub(crate) fn step(&self, rows: u32) -> Rc<Step> {
        if let Some(known) = self.steps.borrow().get(&rows) {
            return Rc::clone(known);
        }
        let step = Rc::new(Step::new(self, rows));
        self.steps.borrow_mut().insert(rows, Rc::clone(&step));
        step
    }
}
