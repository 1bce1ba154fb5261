//! The events: steps through a plan's nodes, in virtual time.
//!
//! A node computes one thing at a time and is blocked while it waits for its group, as the worker's compute
//! thread is. Between two layers, and between steps, it takes head work first. The coordinator's scheduler is the real one.

use std::collections::{BTreeMap, BinaryHeap};

use shoal_core::head::HeadRequest;
use shoal_core::model::ModelSpec;
use shoal_core::plan::AllReduce;
use shoal_core::{NodeId, Plan, SeqId};

use super::event::{Event, Happening, Message, What};
use super::jitter::Jitter;
use super::network::{Flight, Network};
use super::node::{Node, Part, State};
use super::price::NodeWork;
use super::{Load, Options};
use crate::cost::model::{Model, wire_row};
use crate::cost::parts::{ANSWER_BYTES, ORDER_BYTES};
use crate::cost::predict::rates_of;
use crate::cost::{Cluster, CostError};
use crate::scheduler::{NewSequence, Scheduler};

/// Bytes by which each further token makes an order longer.
const TOKEN_BYTES: f64 = 5.0;

/// A step that was formed.
#[derive(Debug)]
struct Step {
    id: shoal_core::StepId,
    positions: Vec<u32>,
    /// Whose tokens its logits give.
    head: Vec<SeqId>,
    /// Answers that are missing until it is through.
    awaited: usize,
}

/// One run.
pub(super) struct World<'a> {
    plan: &'a Plan,
    load: Load,
    model: Model,
    work: Vec<NodeWork>,
    pub(super) network: Network<'a>,
    jitter: Jitter,
    pub(super) nodes: Vec<Node>,
    /// Ranks of each stage, by place.
    stages: Vec<Vec<usize>>,
    /// Ranks of each stage that add something to each phase.
    contributors: Vec<[Vec<bool>; 2]>,
    /// Whether a node's answer says that a step with logits, or without, is through.
    answers: Vec<[bool; 2]>,
    /// In the order in which orders are sent.
    order: Vec<usize>,
    scheduler: Scheduler,
    /// Position of a sequence's first token: what its cache holds before.
    offset: u32,
    steps: Vec<Step>,
    events: BinaryHeap<Event>,
    scheduled: u64,
    pub(super) now: f64,
    /// Events so far.
    pub(super) count: u64,
    /// When each sequence's tokens came.
    pub(super) tokens: BTreeMap<SeqId, Vec<f64>>,
}

impl<'a> World<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        spec: &ModelSpec,
        cluster: &'a Cluster,
        load: Load,
        options: &Options,
    ) -> Result<Self, CostError> {
        let mut rates = rates_of(plan, cluster)?;
        let ids = plan.nodes();
        let at = |node: NodeId| ids.binary_search(&node).unwrap_or_default();
        let work =
            ids.iter().filter_map(|&node| Some(NodeWork::new(plan, node, rates.remove(&node)?))).collect();
        let stages: Vec<Vec<usize>> = plan
            .stages
            .iter()
            .map(|stage| stage.ranks.iter().map(|share| at(share.node)).collect())
            .collect();
        let contributors = plan.stages.iter().map(|stage| {
            [
                stage.ranks.iter().map(|share| !share.q_heads.is_empty()).collect(),
                stage.ranks.iter().map(|share| !share.ffn.is_empty()).collect(),
            ]
        });
        let head = |node| plan.head_share(node).is_some_and(|(_, rows)| !rows.is_empty());
        let last = &stages[plan.last_stage()];
        let mut order = stages.concat();
        order.extend((0..ids.len()).filter(|&node| plan.place(ids[node]).is_none()));
        let nodes = ids.iter().map(|&node| {
            let place = plan.place(node);
            let hops = place.map(|place| plan.hop_targets(place).map(at).collect()).unwrap_or_default();
            let heads = place.map(|place| plan.head_targets(place).map(at).collect()).unwrap_or_default();
            Node::new(place, plan.head_share(node).is_some(), hops, heads)
        });
        Ok(Self {
            plan,
            load,
            model: Model::new(spec),
            work,
            network: Network::new(ids, &cluster.links),
            jitter: Jitter::new(options.seed, options.jitter),
            nodes: nodes.collect(),
            contributors: contributors.collect(),
            answers: (0..ids.len()).map(|node| [head(ids[node]), last.contains(&node)]).collect(),
            stages,
            order,
            scheduler: Scheduler::new(plan, spec.vocab),
            offset: if load.prefilled { load.prompt_len.saturating_sub(1) } else { 0 },
            steps: Vec::new(),
            events: BinaryHeap::new(),
            scheduled: 0,
            now: 0.0,
            count: 0,
            tokens: BTreeMap::new(),
        })
    }

    /// Until every sequence has its tokens.
    pub(super) fn run(&mut self) {
        let prompt = if self.load.prefilled { 1 } else { self.load.prompt_len.max(1) };
        for seq in 1..=u64::from(self.load.streams) {
            let tokens = vec![0; prompt as usize];
            let new = NewSequence {
                seq: SeqId(seq),
                tokens,
                max_new: self.load.decode_len,
                stop_tokens: Vec::new(),
            };
            // What the plan's context has no room for is left out; the report counts what came.
            let _ = self.scheduler.submit(new);
        }
        self.pump();
        while let Some(event) = self.events.pop() {
            self.now = event.time;
            self.count += 1;
            match event.what {
                Happening::Computed(node) => self.computed(node),
                Happening::Leaves(message) => {
                    let Message { from, to, bytes, .. } = message;
                    let flight = self.network.send_shared(self.now, from, to, bytes, &mut self.jitter);
                    self.fly(message, flight);
                }
                Happening::Reaches(message, occupied) => {
                    let end = self.network.receive(self.now, message.to, occupied);
                    self.at(end, Happening::Arrives(message));
                }
                Happening::Arrives(message) => self.arrived(message),
            }
        }
    }

    fn at(&mut self, time: f64, what: Happening) {
        self.scheduled += 1;
        self.events.push(Event { time, order: self.scheduled, what });
    }

    fn send(&mut self, from: usize, to: usize, step: usize, what: What, bytes: f64) {
        let message = Message { from, to, step, what, bytes };
        if let Some(start) = self.network.shared_start(self.now, from, to, bytes) {
            return self.at(start, Happening::Leaves(message));
        }
        let flight = self.network.send(self.now, from, to, bytes, &mut self.jitter);
        self.fly(message, flight);
    }

    fn fly(&mut self, message: Message, flight: Flight) {
        self.at(flight.reaches, Happening::Reaches(message, flight.occupied));
    }

    /// Sends the steps there are stages for.
    fn pump(&mut self) {
        while let Some(order) = self.scheduler.next_step(|_, _| HeadRequest::greedy()) {
            let mut positions = Vec::with_capacity(order.rows());
            let mut ends = Vec::with_capacity(order.runs.len());
            for run in &order.runs {
                let first = self.offset + run.first_position;
                positions.extend(first..first + run.tokens.len() as u32);
                ends.push((positions.len(), run.seq));
            }
            let head: Vec<SeqId> = order
                .head
                .iter()
                .filter_map(|head| ends.iter().find(|(end, _)| *end == head.row as usize + 1))
                .map(|(_, seq)| *seq)
                .collect();
            let which = usize::from(head.is_empty());
            let bytes = ORDER_BYTES * ends.len() as f64 + TOKEN_BYTES * (positions.len() - ends.len()) as f64;
            let step = self.steps.len();
            self.steps.push(Step {
                id: order.step,
                awaited: self.answers.iter().filter(|says| says[which]).count(),
                positions,
                head,
            });
            for at in 0..self.order.len() {
                self.send(self.network.coordinator(), self.order[at], step, What::Order, bytes);
            }
        }
    }

    fn arrived(&mut self, message: Message) {
        let Message { from, to, step, what, .. } = message;
        match what {
            What::Order if self.nodes[to].place.is_some() => {
                self.nodes[to].queue.push_back(step);
                self.next(to);
            }
            What::Order => {
                self.await_head(to, step);
                self.next(to);
            }
            What::Hop => {
                self.nodes[to].inputs.insert(step);
                self.next(to);
            }
            What::HeadRows => {
                self.nodes[to].head_inputs.insert(step);
                self.next(to);
            }
            What::Partial(round) => self.summand(to, step, round, 0),
            What::Sum(round) => self.summand(to, step, round, 1),
            What::Answer => self.answered(from, step),
            What::Settled => {}
        }
    }

    /// The next piece of work of a node that has none: head work first.
    fn next(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if node.state != State::Idle {
            return;
        }
        if let Some(step) = node.take_head() {
            return self.start_head(at, step);
        }
        let first = node.place.is_some_and(|place| place.stage == 0);
        if let Some(&step) = node.queue.front()
            && (first || node.inputs.remove(&step))
        {
            node.queue.pop_front();
            self.start_round(at, step, 0);
        }
    }

    /// Starts a step's layers, or goes on with them: after head work whose rows are there.
    fn go_on(&mut self, at: usize, step: usize, round: u32) {
        match self.nodes[at].take_head() {
            Some(head) => {
                self.nodes[at].interrupted = Some((step, round));
                self.start_head(at, head);
            }
            None => self.start_round(at, step, round),
        }
    }

    /// Starts the kernels of a round (two to a layer), or, where there is nobody to sum with, of as many as
    /// nothing can come between.
    fn start_round(&mut self, at: usize, step: usize, round: u32) {
        let Some(place) = self.nodes[at].place else { return };
        if round == 0 {
            self.nodes[at].phases = self.work[at].phases(&self.model, &self.steps[step].positions);
        }
        let alone = self.stages[place.stage].len() == 1;
        let end = match (alone, self.nodes[at].heads.is_empty()) {
            (false, _) => round + 1,
            (true, false) => round + 2,
            (true, true) => self.work[at].layers() * 2,
        };
        self.nodes[at].end = end;
        let mut time = 0.0;
        for round in round..end {
            let class = self.work[at].class(&self.model, round / 2);
            time += self.nodes[at].phases[class][round as usize % 2] * self.jitter.factor();
        }
        self.compute(at, State::Layers { step, round, part: Part::Computing }, time);
    }

    fn start_head(&mut self, at: usize, step: usize) {
        let rows = self.steps[step].head.len();
        let time = self.work[at].head(&self.model, rows) * self.jitter.factor();
        self.compute(at, State::Head { step }, time);
    }

    fn compute(&mut self, at: usize, state: State, time: f64) {
        self.nodes[at].state = state;
        self.nodes[at].busy += time;
        self.at(self.now + time, Happening::Computed(at));
    }

    fn computed(&mut self, at: usize) {
        match self.nodes[at].state {
            State::Head { step } => {
                self.nodes[at].state = State::Idle;
                let rows = self.steps[step].head.len() as f64;
                self.send(at, self.network.coordinator(), step, What::Answer, rows * ANSWER_BYTES);
                match self.nodes[at].interrupted.take() {
                    Some((step, round)) => self.go_on(at, step, round),
                    None => self.next(at),
                }
            }
            State::Layers { step, round, part: Part::Computing } => {
                let Some(place) = self.nodes[at].place else { return };
                if self.stages[place.stage].len() == 1 {
                    return self.after(at, step, self.nodes[at].end);
                }
                self.nodes[at].since = self.now;
                self.nodes[at].state = State::Layers { step, round, part: Part::Partials };
                let others = self.nodes[at].others(&self.stages);
                if self.contributors[place.stage][round as usize % 2][place.rank] {
                    let (how, bytes) = self.sum_of(place.stage, step);
                    for to in others {
                        if how != AllReduce::Star || to == self.stages[place.stage][0] {
                            self.send(at, to, step, What::Partial(round), bytes);
                        }
                    }
                }
                self.progress(at);
            }
            _ => {}
        }
    }

    /// How a step's sums are taken in a stage, and the bytes of one message of theirs.
    fn sum_of(&self, stage: usize, step: usize) -> (AllReduce, f64) {
        let rows = self.steps[step].positions.len();
        let how = self.plan.stages[stage].sums.of(rows, self.plan.kv.sequences);
        let whole = rows as f64 * wire_row(self.plan.wire.sum, self.model.d_model);
        let parts = if how == AllReduce::ReduceScatter { self.stages[stage].len() } else { 1 };
        (how, whole / parts as f64)
    }

    fn summand(&mut self, at: usize, step: usize, round: u32, which: usize) {
        self.nodes[at].received.entry((step, round)).or_default()[which] += 1;
        if matches!(self.nodes[at].state, State::Layers { step: s, round: r, .. } if (s, r) == (step, round))
        {
            self.progress(at);
        }
    }

    /// Goes on with a sum as far as what came in allows.
    fn progress(&mut self, at: usize) {
        let State::Layers { step, round, mut part } = self.nodes[at].state else { return };
        let Some(place) = self.nodes[at].place else { return };
        let (how, bytes) = self.sum_of(place.stage, step);
        let received = self.nodes[at].received.get(&(step, round)).copied().unwrap_or_default();
        let contributors = &self.contributors[place.stage][round as usize % 2];
        let root = place.rank == 0;
        if part == Part::Partials {
            let own = usize::from(contributors[place.rank]);
            let wanted = contributors.iter().filter(|&&adds| adds).count() - own;
            let sums_here = how != AllReduce::Star || root;
            if sums_here && usize::from(received[0]) < wanted {
                return;
            }
            if sums_here && how != AllReduce::Direct {
                for to in self.nodes[at].others(&self.stages) {
                    self.send(at, to, step, What::Sum(round), bytes);
                }
            }
            part = Part::Sums;
            self.nodes[at].state = State::Layers { step, round, part };
        }
        let wanted = match how {
            AllReduce::Direct => 0,
            AllReduce::Star => usize::from(!root),
            AllReduce::ReduceScatter => self.stages[place.stage].len() - 1,
        };
        if part != Part::Sums || usize::from(received[1]) < wanted {
            return;
        }
        let node = &mut self.nodes[at];
        node.received.remove(&(step, round));
        node.blocked += self.now - node.since;
        self.after(at, step, round + 1);
    }

    /// All rounds before this one are done.
    fn after(&mut self, at: usize, step: usize, round: u32) {
        if round >= self.work[at].layers() * 2 {
            self.finish(at, step);
        } else if round.is_multiple_of(2) {
            self.go_on(at, step, round);
        } else {
            self.start_round(at, step, round);
        }
    }

    /// A step's layers are done: hands its rows on.
    fn finish(&mut self, at: usize, step: usize) {
        let Some(place) = self.nodes[at].place else { return };
        let row = wire_row(self.plan.wire.hop, self.model.d_model);
        let rows = self.steps[step].positions.len() as f64;
        for to in self.nodes[at].hops.clone() {
            self.send(at, to, step, What::Hop, rows * row);
        }
        let head_rows = self.steps[step].head.len();
        if head_rows > 0 {
            for to in self.nodes[at].head_rows_to.clone() {
                self.send(at, to, step, What::HeadRows, head_rows as f64 * row);
            }
        }
        self.nodes[at].state = State::Idle;
        if place.stage == self.plan.last_stage() && self.nodes[at].has_head && head_rows > 0 {
            return self.start_head(at, step);
        }
        self.await_head(at, step);
        self.next(at);
    }

    /// Waits for a step's rows of the head, or answers that there is nothing to say.
    fn await_head(&mut self, at: usize, step: usize) {
        if self.nodes[at].has_head && !self.steps[step].head.is_empty() {
            self.nodes[at].heads.push_back(step);
        } else {
            self.send(at, self.network.coordinator(), step, What::Answer, ORDER_BYTES);
        }
    }

    fn answered(&mut self, from: usize, step: usize) {
        let state = &mut self.steps[step];
        if !self.answers[from][usize::from(state.head.is_empty())] {
            return;
        }
        state.awaited -= 1;
        if state.awaited > 0 {
            return;
        }
        let (id, head) = (state.id, state.head.clone());
        self.scheduler.step_done(id);
        for &seq in head.iter().rev() {
            self.scheduler.token(seq, 0);
            self.tokens.entry(seq).or_default().push(self.now);
        }
        self.pump();
        if !head.is_empty() {
            for to in 0..self.nodes.len() {
                if self.answers[to][0] {
                    self.send(self.network.coordinator(), to, step, What::Settled, ORDER_BYTES);
                }
            }
        }
    }
}
