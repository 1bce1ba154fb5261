//! Links, what workers' drivers do, and the fake data plane between them.

use std::time::Duration;

use shoal_core::message::{Answer, Failure, Order, Resident};
use shoal_core::profile::{LinkFigures, LinkProfile, Measured, RoundTrip};
use shoal_core::units::{Bytes, BytesPerSec, Seconds};
use shoal_core::{Epoch, NodeId, StepId};

use super::check::found;
use super::node::{Engine, Node};
use super::scenario::profile;
use super::world::{Happening, World, index};
use crate::worker;

/// A lost packet comes again after this time.
const RESEND: Duration = Duration::from_millis(60);

/// How far the stages of an epoch are.
#[derive(Debug, Default)]
pub(super) struct Pipeline {
    done: Vec<StepId>,
    running: Vec<bool>,
}

impl World<'_> {
    /// Does what a worker's driver does.
    pub(super) fn drain_worker(&mut self, node: usize) -> Result<(), String> {
        while let Some(action) = self.nodes[node].machine.poll_action() {
            let later = |event| Happening::AtWorker { node, event: Box::new(event) };
            match action {
                worker::Action::Reply(answer) => self.reply(node, answer),
                worker::Action::Close { reason } => return Err(format!("node {node} closes: {reason}")),
                worker::Action::StartProfile { .. } => {
                    let speed = self.dice.between(1, 10) as f64;
                    let profile = profile(speed, self.scenario.absurd.contains(&node));
                    let took = self.dice.between(1_000, 300_000);
                    self.after(took, later(worker::Event::Profiled(Ok(Box::new(profile)))));
                }
                worker::Action::StartLinks { peers } => {
                    let from = self.nodes[node].id;
                    let links = peers.iter().map(|peer| link(from, peer.node)).collect();
                    let measured = worker::Event::LinksMeasured { links, failed: Vec::new() };
                    self.after(50_000, later(measured));
                }
                worker::Action::StartLoad { plan, .. } => {
                    let epoch = plan.epoch;
                    let failed = std::mem::take(&mut self.nodes[node].fail_load);
                    let failure = Failure { message: "disk full".to_owned(), blame: None };
                    let result = if failed { Err(failure) } else { Ok((Resident::default(), Bytes(1))) };
                    if !failed {
                        self.nodes[node].engine = Some(Engine::new(plan));
                    }
                    let took = self.dice.between(1_000, 400_000);
                    let (done, total, fetched) = (Bytes(1), Bytes(2), Bytes(1));
                    self.after(took / 2, later(worker::Event::Progress { epoch, done, total, fetched }));
                    self.after(took, later(worker::Event::Loaded { epoch, result }));
                }
                worker::Action::RunStep(order) => {
                    let id = self.nodes[node].id;
                    if std::mem::take(&mut self.nodes[node].fail_next) {
                        let failure = Failure { message: "out of memory".to_owned(), blame: None };
                        self.after(100, later(worker::Event::StepFailed { epoch: order.epoch, failure }));
                    } else if let Some(engine) = self.nodes[node].engine_of(order.epoch) {
                        engine.take(id, &order)?;
                        self.advance(order.epoch);
                    }
                }
                worker::Action::RunQuery { epoch, step, row, query } => {
                    let id = self.nodes[node].id;
                    let Some(engine) = self.nodes[node].engine_of(epoch) else { continue };
                    let rows = engine.plan.head_share(id).map(|(_, rows)| rows).unwrap_or_default();
                    let logits = engine.kept.get(&(step, row)).ok_or("asked about a settled step")?;
                    let result = Ok(found(logits, rows, query));
                    self.after(200, later(worker::Event::Queried { epoch, step, row, query, result }));
                }
                worker::Action::Settle { epoch, step } => {
                    if let Some(engine) = self.nodes[node].engine_of(epoch) {
                        engine.kept.retain(|(kept, _), _| *kept > step);
                    }
                }
                worker::Action::Report { epoch } => {
                    let (counters, resident) = Default::default();
                    self.after(100, later(worker::Event::Reported { epoch, counters, resident }));
                }
                worker::Action::Drop { epoch } => {
                    if self.nodes[node].engine_of(epoch).is_some() {
                        self.nodes[node].engine = None;
                    }
                    self.after(2_000, later(worker::Event::Dropped { epoch }));
                }
            }
        }
        Ok(())
    }

    /// Begins what can begin: a stage runs a step when all its ranks have the order and the stage
    /// before is through; a node is through when its stage is and, for a head rank, the last stage.
    fn advance(&mut self, epoch: Epoch) {
        let Some(plan) = self.nodes.iter_mut().find_map(|n| n.engine_of(epoch).map(|e| e.plan.clone()))
        else {
            return;
        };
        let stages = plan.stages.len();
        let mut pipeline = self
            .pipelines
            .remove(&epoch)
            .unwrap_or_else(|| Pipeline { done: vec![StepId(0); stages], running: vec![false; stages] });
        for (stage, ranks) in plan.stages.iter().map(|stage| &stage.ranks).enumerate() {
            let next = StepId(pipeline.done[stage].0 + 1);
            let fed = stage == 0 || pipeline.done[stage - 1] >= next;
            let has = |node: NodeId, nodes: &mut Vec<Node>| {
                nodes[index(node)].engine_of(epoch).is_some_and(|engine| engine.received >= next)
            };
            if !pipeline.running[stage] && fed && ranks.iter().all(|share| has(share.node, &mut self.nodes)) {
                pipeline.running[stage] = true;
                let slow =
                    ranks.iter().map(|share| self.nodes[index(share.node)].slowness).max().unwrap_or(1);
                let took = self.dice.between(200, 2_000) * slow;
                self.after(took, Happening::StageDone { epoch, stage });
            }
        }
        let last = pipeline.done[stages - 1];
        for &node in plan.nodes() {
            let own = plan.place(node).map_or(last, |place| pipeline.done[place.stage]);
            let through = if plan.head_share(node).is_some() { own.min(last) } else { own };
            let at = index(node);
            let mut took = 50;
            while let Some(engine) = self.nodes[at].engine_of(epoch)
                && engine.finished < through.min(engine.received)
            {
                let (step, head) = engine.finish();
                took += 1;
                let event = Box::new(worker::Event::StepDone { epoch, step, head });
                self.after(took, Happening::AtWorker { node: at, event });
            }
        }
        self.pipelines.insert(epoch, pipeline);
    }

    pub(super) fn stage_done(&mut self, epoch: Epoch, stage: usize) {
        let Some(plan) = self.nodes.iter_mut().find_map(|n| n.engine_of(epoch).map(|e| e.plan.clone()))
        else {
            return;
        };
        let ranks: Vec<usize> = plan.stages[stage].ranks.iter().map(|share| index(share.node)).collect();
        let thaw = ranks.iter().map(|&rank| self.nodes[rank].frozen_until).max().unwrap_or_default();
        if thaw > self.now {
            return self.at(thaw, Happening::StageDone { epoch, stage });
        }
        // A rank that is gone leaves the others waiting.
        if ranks.iter().any(|&rank| !self.nodes[rank].alive || self.nodes[rank].engine_of(epoch).is_none()) {
            return;
        }
        if let Some(pipeline) = self.pipelines.get_mut(&epoch) {
            pipeline.done[stage].0 += 1;
            pipeline.running[stage] = false;
        }
        self.advance(epoch);
    }

    pub(super) fn send(&mut self, node: usize, order: Order) {
        if let Some((connection, _)) = self.connections[node] {
            let at = self.delivery(node, 0);
            self.at(at, Happening::ToWorker { node, connection, order: Box::new(order) });
        }
    }

    fn reply(&mut self, node: usize, answer: Answer) {
        if let Some(connection) = self.nodes[node].connection {
            let at = self.delivery(node, 1);
            self.at(at, Happening::ToCoordinator { node, connection, answer: Box::new(answer) });
        }
    }

    /// When a message sent now arrives: later than the one before it.
    fn delivery(&mut self, node: usize, way: usize) -> Duration {
        let mut took = self.dice.micros(50, 900);
        while self.dice.once_in(self.scenario.loss) {
            took += RESEND;
        }
        let at = (self.now + took).max(self.last[node][way]);
        self.last[node][way] = at;
        at
    }
}

/// What workers say of their links: a gigabit network.
fn link(from: NodeId, to: NodeId) -> LinkProfile {
    let time = |seconds| Measured::exact(Seconds(seconds));
    let figures = LinkFigures {
        round_trips: vec![RoundTrip { bytes: 64, time: time(300e-6) }],
        bandwidth: Measured::exact(BytesPerSec(110e6)),
        message_cpu: time(30e-6),
        shared: false,
    };
    LinkProfile { from, to, figures }
}
