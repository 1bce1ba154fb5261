//! Steps and draws while a plan is in force.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_core::head::{Candidate, HeadAnswer, HeadQuery};
use shoal_core::message::{Order, StepOrder};
use shoal_core::{NodeId, Plan, SeqId, StepId};

use super::machine::{Machine, Work};
use super::{Action, Failed, Request, STEP_DEADLINE, STEP_DEADLINE_FACTOR, WARM_UP_DEADLINE, WARM_UP_SEQ};
use crate::cost::Prediction;
use crate::sampling::{MergeError, Outcome, Queried, Sampler, SamplingParams};
use crate::scheduler::{FinishReason, NewSequence, Scheduler};

/// A plan in force with its sequences.
#[derive(Debug)]
pub(super) struct Serving {
    plan: Plan,
    vocab: u32,
    prediction: Option<Prediction>,
    pub(super) scheduler: Scheduler,
    samplers: BTreeMap<SeqId, Sampler>,
    /// Steps that somebody has not answered, or whose tokens are not drawn.
    steps: BTreeMap<StepId, Step>,
    /// Head ranks were told that no question about steps up to this one will come.
    settled: StepId,
    /// When the last step was done: the next one begins no earlier.
    last_done: Duration,
    /// Time of the warm-up step, the measure of steps where nothing was predicted.
    warm_up: Option<Duration>,
    warming: bool,
    /// By how much the workers' clocks are slowed: predictions are of clocks that are not.
    dilation: f64,
}

/// A step that was sent.
#[derive(Debug)]
struct Step {
    sent: Duration,
    rows: usize,
    /// Rows that want logits and whose they are.
    head: Vec<(u32, SeqId)>,
    /// Nodes that have not answered.
    waiting: BTreeSet<NodeId>,
    answers: BTreeMap<NodeId, Vec<HeadAnswer>>,
    /// Through all stages, and its answers merged.
    done: bool,
    /// Rows about which more was asked.
    asked: BTreeMap<u32, Asked>,
}

/// Questions about one row.
#[derive(Debug)]
struct Asked {
    seq: SeqId,
    queries: Vec<(NodeId, HeadQuery)>,
    found: Vec<Option<Vec<Candidate>>>,
}

impl Serving {
    pub(super) fn new(plan: Plan, vocab: u32, prediction: Option<Prediction>, dilation: f64) -> Self {
        Self {
            scheduler: Scheduler::new(&plan, vocab),
            plan,
            vocab,
            prediction,
            dilation,
            samplers: BTreeMap::new(),
            steps: BTreeMap::new(),
            settled: StepId(0),
            last_done: Duration::ZERO,
            warm_up: None,
            warming: true,
        }
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(super) fn is_warming(&self) -> bool {
        self.warming
    }

    /// Requests that have not ended.
    pub(super) fn requests(&self) -> Vec<SeqId> {
        self.scheduler.sequences().filter(|&seq| seq != WARM_UP_SEQ).collect()
    }

    /// All nodes as steps reach them: the first stage's ranks need their orders first.
    fn in_order(&self) -> Vec<NodeId> {
        let ranks = self.plan.stages.iter().flat_map(|stage| &stage.ranks).map(|share| share.node);
        let mut nodes: Vec<NodeId> = ranks.collect();
        nodes.extend(self.plan.nodes().iter().filter(|&&node| self.plan.place(node).is_none()));
        nodes
    }

    /// Nodes with rows of the output head, in order.
    fn head_ranks(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.plan.head.iter().filter(|head| !head.rows.is_empty()).map(|head| head.node)
    }

    /// Whether a step is through: its logits are there, or the last stage has answered.
    fn is_through(&self, step: &Step) -> bool {
        if step.head.is_empty() {
            let last = &self.plan.stages[self.plan.last_stage()].ranks;
            !last.iter().any(|share| step.waiting.contains(&share.node))
        } else {
            !self.head_ranks().any(|node| step.waiting.contains(&node))
        }
    }

    /// When the oldest step must be answered by all.
    fn deadline(&self) -> Option<Duration> {
        let step = self.steps.values().find(|step| !step.waiting.is_empty())?;
        let begun = step.sent.max(self.last_done);
        if self.warming {
            return Some(begun + WARM_UP_DEADLINE.mul_f64(self.dilation));
        }
        let rows = step.rows.max(1) as f64;
        let predicted = match &self.prediction {
            // Rows share the weights' stream, so a step costs no more than either sum.
            Some(p) => (p.decode_ms * rows).min(p.decode_ms + p.chunk_ms) / 1e3 * self.dilation,
            None => self.warm_up.map_or(0.0, |one| one.as_secs_f64()) * rows,
        };
        let allowed = Duration::try_from_secs_f64(STEP_DEADLINE_FACTOR * predicted).unwrap_or(Duration::MAX);
        Some(begun.saturating_add(STEP_DEADLINE.max(allowed)))
    }

    fn next_step(&mut self, now: Duration) -> Option<StepOrder> {
        let samplers = &mut self.samplers;
        let order = self.scheduler.next_step(|seq, history| match samplers.get_mut(&seq) {
            Some(sampler) => sampler.request(history),
            None => shoal_core::head::HeadRequest::greedy(),
        })?;
        let mut head = Vec::new();
        let mut rows = 0;
        for run in &order.runs {
            rows += run.tokens.len();
            if order.head.iter().any(|head| head.row as usize + 1 == rows) {
                head.push((rows as u32 - 1, run.seq));
            }
        }
        let step = Step {
            sent: now,
            rows,
            head,
            waiting: self.plan.nodes().iter().copied().collect(),
            answers: BTreeMap::new(),
            done: false,
            asked: BTreeMap::new(),
        };
        self.steps.insert(order.step, step);
        Some(order)
    }

    /// The last step up to which all draws are done.
    fn settleable(&self) -> StepId {
        let open = self.steps.iter().find(|(_, step)| !step.done || !step.asked.is_empty());
        let last = self.steps.keys().next_back().map_or(self.settled, |&last| last);
        open.map_or(last, |(step, _)| StepId(step.0 - 1)).max(self.settled)
    }
}

impl Machine {
    pub(super) fn warm_up(&mut self, now: Duration) {
        let Work::Serving(serving) = &mut self.work else { return };
        let sequence = NewSequence { seq: WARM_UP_SEQ, tokens: vec![0], max_new: 1, stop_tokens: Vec::new() };
        if serving.scheduler.submit(sequence).is_ok() {
            serving.samplers.insert(WARM_UP_SEQ, Sampler::new(SamplingParams::greedy()));
            self.pump(now);
        } else {
            // A context of one position has no room for a step.
            self.warm(Duration::ZERO);
        }
    }

    fn warm(&mut self, took: Duration) {
        if let Work::Serving(serving) = &mut self.work {
            serving.warming = false;
            serving.warm_up = Some(took);
            self.act(Action::Ready);
        }
    }

    pub(super) fn submit(&mut self, now: Duration, request: Request) {
        let seq = request.seq;
        let taken = match &mut self.work {
            _ if seq == WARM_UP_SEQ => Err("this sequence number is taken".to_owned()),
            Work::Serving(serving) if !serving.warming => {
                let Request { seq, tokens, max_new, params, stop_tokens } = request;
                let sequence = NewSequence { seq, tokens, max_new, stop_tokens };
                let checked = params.check(serving.vocab).map_err(|error| error.to_string());
                let submit = |()| serving.scheduler.submit(sequence).map_err(|error| error.to_string());
                checked.and_then(submit).map(|()| {
                    serving.samplers.insert(seq, Sampler::new(params));
                })
            }
            _ => Err("no model is being served".to_owned()),
        };
        match taken {
            Ok(()) => self.pump(now),
            Err(reason) => self.act(Action::Refused { seq: Some(seq), reason }),
        }
    }

    pub(super) fn cancel(&mut self, now: Duration, seq: SeqId) {
        let Work::Serving(serving) = &mut self.work else { return };
        if seq == WARM_UP_SEQ || !serving.scheduler.cancel(seq) {
            return;
        }
        serving.samplers.remove(&seq);
        self.act(Action::Finished { seq, reason: FinishReason::Cancelled });
        self.pump(now);
    }

    pub(super) fn report(&mut self) {
        let Work::Serving(serving) = &self.work else { return };
        let epoch = serving.plan.epoch;
        for node in serving.plan.nodes().to_vec() {
            self.send(node, Order::Report { epoch });
        }
    }

    /// Sends steps as long as there are some and stages are free.
    fn pump(&mut self, now: Duration) {
        loop {
            let Work::Serving(serving) = &mut self.work else { return };
            let Some(order) = serving.next_step(now) else { return };
            for node in serving.in_order() {
                self.send(node, Order::Step(Box::new(order.clone())));
            }
        }
    }

    pub(super) fn head(&mut self, now: Duration, node: NodeId, step: StepId, rows: Vec<HeadAnswer>) {
        let Work::Serving(serving) = &mut self.work else { return };
        let is_head = serving.head_ranks().any(|rank| rank == node);
        // A step that is over, or a second answer.
        let Some(state) = serving.steps.get_mut(&step) else { return };
        if !state.waiting.remove(&node) {
            return;
        }
        if is_head {
            let fits = rows.len() == state.head.len()
                && rows.iter().zip(&state.head).all(|(answer, (row, _))| answer.row == *row);
            if !fits {
                let reason = format!("step {} has other rows than it answered", step.0);
                return self.nonsense(now, node, reason);
            }
            state.answers.insert(node, rows);
        }
        let through = serving.steps.get(&step).is_some_and(|state| !state.done && serving.is_through(state));
        if through {
            self.through(now, step);
        }
        self.tidy(now);
    }

    /// A step is through all stages: draws its tokens.
    fn through(&mut self, now: Duration, step: StepId) {
        let Work::Serving(serving) = &mut self.work else { return };
        serving.scheduler.step_done(step);
        serving.last_done = now;
        let ranks: Vec<NodeId> = serving.head_ranks().collect();
        let Some(state) = serving.steps.get_mut(&step) else { return };
        state.done = true;
        let took = now.saturating_sub(state.sent);
        let rows = state.head.clone();
        let mut answers = std::mem::take(&mut state.answers);
        if serving.warming {
            serving.warm_up = Some(took);
        }
        for (at, (row, seq)) in rows.into_iter().enumerate().rev() {
            let row_answers: Vec<HeadAnswer> =
                ranks.iter().filter_map(|rank| answers.get_mut(rank)?.pop()).collect();
            debug_assert!(row_answers.iter().all(|answer| answer.row == row), "row {at} of step {step:?}");
            let Work::Serving(serving) = &mut self.work else { return };
            // Its owner may have cancelled it.
            if !serving.scheduler.awaits(seq, step) {
                continue;
            }
            let Some(sampler) = serving.samplers.get_mut(&seq) else { continue };
            let outcome = sampler.merge(row_answers, &serving.plan);
            self.drawn(now, step, row, seq, outcome);
        }
    }

    pub(super) fn queried(
        &mut self,
        now: Duration,
        node: NodeId,
        step: StepId,
        row: u32,
        query: HeadQuery,
        found: Vec<Candidate>,
    ) {
        let Work::Serving(serving) = &mut self.work else { return };
        let Some(state) = serving.steps.get_mut(&step) else { return };
        let Some(asked) = state.asked.get_mut(&row) else { return };
        let open = |(at, _): &(usize, &(NodeId, HeadQuery))| asked.found[*at].is_none();
        let at = asked.queries.iter().enumerate().filter(open).find(|(_, asked)| **asked == (node, query));
        let Some((at, _)) = at else { return };
        asked.found[at] = Some(found);
        if asked.found.iter().any(Option::is_none) {
            return;
        }
        let Some(asked) = state.asked.remove(&row) else { return };
        let answers = asked.queries.into_iter().zip(asked.found.into_iter().flatten());
        let queried = answers.map(|((node, query), found)| Queried { node, query, found }).collect();
        if let Some(sampler) = serving.samplers.get_mut(&asked.seq)
            && serving.scheduler.awaits(asked.seq, step)
        {
            let outcome = sampler.resume(queried);
            self.drawn(now, step, row, asked.seq, outcome);
        }
        self.tidy(now);
    }

    /// A token came out of a row, or questions, or an error.
    fn drawn(
        &mut self,
        now: Duration,
        step: StepId,
        row: u32,
        seq: SeqId,
        outcome: Result<Outcome, MergeError>,
    ) {
        let Work::Serving(serving) = &mut self.work else { return };
        match outcome {
            Ok(Outcome::Token(drawn)) => {
                let finished = serving.scheduler.token(seq, drawn.token);
                if finished.is_some() {
                    serving.samplers.remove(&seq);
                }
                if seq == WARM_UP_SEQ {
                    let took = serving.warm_up.unwrap_or_default();
                    return self.warm(took);
                }
                self.act(Action::Emit { seq, token: drawn.token, logit: drawn.logit });
                if let Some(reason) = finished {
                    self.act(Action::Finished { seq, reason });
                }
            }
            Ok(Outcome::Need(queries)) => {
                let epoch = serving.plan.epoch;
                let found = vec![None; queries.len()];
                if let Some(state) = serving.steps.get_mut(&step) {
                    state.asked.insert(row, Asked { seq, queries: queries.clone(), found });
                }
                for (node, query) in queries {
                    self.send(node, Order::Query { epoch, step, row, query });
                }
            }
            Err(MergeError::Answer { rank, what }) => {
                let blame = serving.head_ranks().nth(rank);
                if let Some(node) = blame {
                    self.nonsense(now, node, format!("its head answered {what}"));
                }
            }
            Err(error @ (MergeError::Nothing | MergeError::Unasked)) => {
                serving.scheduler.cancel(seq);
                serving.samplers.remove(&seq);
                self.act(Action::Aborted { seq, reason: format!("failed to draw a token: {error}") });
            }
        }
    }

    /// Forgets steps that are over, tells the head ranks, and sends what can be sent.
    fn tidy(&mut self, now: Duration) {
        self.pump(now);
        let Work::Serving(serving) = &mut self.work else { return };
        let settle = serving.settleable();
        if settle > serving.settled {
            serving.settled = settle;
            let epoch = serving.plan.epoch;
            for node in serving.head_ranks().collect::<Vec<_>>() {
                self.send(node, Order::Settled { epoch, step: settle });
            }
        }
        let Work::Serving(serving) = &mut self.work else { return };
        serving.steps.retain(|_, step| !(step.done && step.waiting.is_empty() && step.asked.is_empty()));
    }

    fn nonsense(&mut self, now: Duration, node: NodeId, reason: String) {
        let name = self.members.name(node);
        self.fail(now, Failed::Answer { node, name, reason });
    }

    pub(super) fn step_deadline(&self) -> Option<Duration> {
        match &self.work {
            Work::Serving(serving) => serving.deadline(),
            _ => None,
        }
    }

    pub(super) fn step_timeout(&mut self, now: Duration) {
        if self.step_deadline().is_none_or(|until| now < until) {
            return;
        }
        let Work::Serving(serving) = &self.work else { return };
        let Some((id, step)) = serving.steps.iter().find(|(_, step)| !step.waiting.is_empty()) else {
            return;
        };
        // Later stages wait for the earliest that has not answered.
        let stages = serving.plan.stages.iter().map(|stage| &stage.ranks);
        let silent = stages
            .map(|ranks| ranks.iter().map(|share| share.node).filter(|node| step.waiting.contains(node)))
            .find_map(|ranks| self.members.most_silent(ranks));
        let Some(node) = silent.or_else(|| step.waiting.first().copied()) else { return };
        let reason = format!("step {} is past its deadline", id.0);
        let name = self.members.name(node);
        self.fail(now, Failed::Lost { node, name, reason });
    }
}
