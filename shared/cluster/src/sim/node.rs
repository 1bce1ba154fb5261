//! One simulated worker: the real machine and a fake engine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shoal_core::head::HeadAnswer;
use shoal_core::message::StepOrder;
use shoal_core::{Epoch, NodeId, Plan, SeqId, StepId, Term, shard};

use super::check::{answer, logits};
use super::scenario::{info, node_id};
use crate::worker;

/// A worker and its place in the world.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) machine: worker::Machine,
    pub(super) alive: bool,
    /// Its end of the control connection, by number.
    pub(super) connection: Option<u32>,
    /// Nothing happens here before.
    pub(super) frozen_until: Duration,
    pub(super) fail_next: bool,
    pub(super) fail_load: bool,
    pub(super) slowness: u64,
    pub(super) engine: Option<Engine>,
}

/// The shard of one epoch and what it computed.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) plan: Arc<Plan>,
    histories: BTreeMap<SeqId, Vec<u32>>,
    /// Answers of steps that were taken and not finished.
    taken: BTreeMap<StepId, Vec<HeadAnswer>>,
    /// Logits that may be asked about.
    pub(super) kept: BTreeMap<(StepId, u32), Vec<f32>>,
    pub(super) received: StepId,
    pub(super) finished: StepId,
}

impl Node {
    pub(super) fn new(index: usize, slowness: u64, fail_load: bool) -> Self {
        Self {
            id: node_id(index),
            machine: worker::Machine::new(info(index), Term(0)),
            alive: true,
            connection: None,
            frozen_until: Duration::ZERO,
            fail_next: false,
            fail_load,
            slowness,
            engine: None,
        }
    }

    pub(super) fn engine_of(&mut self, epoch: Epoch) -> Option<&mut Engine> {
        self.engine.as_mut().filter(|engine| engine.plan.epoch == epoch)
    }
}

impl Engine {
    pub(super) fn new(plan: Arc<Plan>) -> Self {
        Self {
            plan,
            histories: BTreeMap::new(),
            taken: BTreeMap::new(),
            kept: BTreeMap::new(),
            received: StepId(0),
            finished: StepId(0),
        }
    }

    /// Takes a step on. Checks what the machine should have made sure of.
    pub(super) fn take(&mut self, node: NodeId, order: &StepOrder) -> Result<(), String> {
        let plan = &self.plan;
        if order.step != StepId(self.received.0 + 1) || order.epoch != plan.epoch {
            return Err(format!("step {:?} after {:?}", order.step, self.received));
        }
        if order.rows() > plan.max_rows() as usize {
            return Err(format!("{} rows", order.rows()));
        }
        for seq in &order.release {
            if self.histories.remove(seq).is_none() {
                return Err(format!("{seq:?} released without pages"));
            }
        }
        let mut answers = Vec::new();
        let mut row = 0;
        let rows = plan.head_share(node).map(|(_, rows)| rows);
        for run in &order.runs {
            let history = self.histories.entry(run.seq).or_default();
            if history.len() != run.first_position as usize {
                return Err(format!("{:?} at {} after {}", run.seq, run.first_position, history.len()));
            }
            history.extend(&run.tokens);
            row += run.tokens.len() as u32;
            let wanted = order.head.iter().find(|head| head.row + 1 == row);
            if let (Some(head), Some(rows)) = (wanted, rows) {
                let logits = logits(history);
                answers.push(answer(&logits, rows, head.row, &head.request));
                self.kept.insert((order.step, head.row), logits);
            }
        }
        let pages: u64 = self.histories.values().map(|h| shard::pages_per_sequence(h.len() as u32)).sum();
        let budget = shard::pages_per_sequence(plan.kv.context) * u64::from(plan.kv.sequences);
        if pages > budget {
            return Err(format!("{pages} KV pages of {budget}"));
        }
        self.received = order.step;
        self.taken.insert(order.step, answers);
        Ok(())
    }

    /// The next step is through here.
    pub(super) fn finish(&mut self) -> (StepId, Vec<HeadAnswer>) {
        self.finished = StepId(self.finished.0 + 1);
        (self.finished, self.taken.remove(&self.finished).unwrap_or_default())
    }
}
