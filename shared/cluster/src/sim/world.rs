//! The event loop: faults, checks, and what the coordinator's driver does.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use shoal_core::message::{Answer, Order};
use shoal_core::plan::{KvBudget, Strategy, Sums, Wire};
use shoal_core::{Epoch, NodeId, Plan, SeqId, Term};

use super::check::{Checker, Violation};
use super::fabric::Pipeline;
use super::node::Node;
use super::scenario::{CONTEXT, Dice, Fault, Scenario, VOCAB, model, node_id};
use crate::coordinator::{
    self, Action, Config, Event, Failed, Job, Planning, Request, State, check_welcome, greeting,
};
use crate::cost::{Link, Workload};
use crate::planner::{Arrangement, Options, RankShare, StageShares, plan_from_shares};
use crate::worker;

/// Virtual time after which a run that has not ended hangs.
const LONGEST: Duration = Duration::from_secs(1800);
/// A crash in a running plan ends the run within this time.
const CRASH_LIMIT: Duration = Duration::from_secs(5);
/// Sequence numbers of one job begin here times its index.
const JOB_SEQUENCES: u64 = 1000;
const LOG_LINES: usize = 60;

/// How a run went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    pub finished: usize,
    pub aborted: usize,
    pub tokens: usize,
    /// Jobs that reached service.
    pub served: usize,
    pub failed: usize,
    pub no_plan: usize,
    /// Most steps that were in flight at once.
    pub most_in_flight: usize,
    pub questions: usize,
    pub time: Duration,
}

/// Runs a scenario to its end.
///
/// # Errors
/// The first invariant that did not hold, with the seed and the last happenings.
pub fn run(scenario: &Scenario) -> Result<Summary, Box<Violation>> {
    let mut world = World::new(scenario);
    let result = world.run();
    match result {
        Ok(()) => Ok(Summary { time: world.now, ..world.summary }),
        Err(what) => {
            let log = world.log.into_iter().collect::<Vec<_>>().join("\n");
            Err(Box::new(Violation { seed: scenario.seed, at: world.now, what, log }))
        }
    }
}

#[derive(Debug)]
pub(super) enum Happening {
    Connect(usize),
    ToWorker {
        node: usize,
        connection: u32,
        order: Box<Order>,
    },
    ToCoordinator {
        node: usize,
        connection: u32,
        answer: Box<Answer>,
    },
    /// The coordinator sees that a connection is gone; the worker does.
    CoordinatorLost {
        node: usize,
        connection: u32,
    },
    WorkerLost {
        node: usize,
        connection: u32,
    },
    AtWorker {
        node: usize,
        event: Box<worker::Event>,
    },
    StageDone {
        epoch: Epoch,
        stage: usize,
    },
    Fault {
        node: usize,
        fault: Fault,
    },
    StartJob,
    Submit(Box<Request>),
    Cancel(SeqId),
}

pub(super) struct World<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) dice: Dice,
    pub(super) now: Duration,
    queue: BTreeMap<(Duration, u64), Happening>,
    queued: u64,
    coordinator: coordinator::Machine,
    pub(super) nodes: Vec<Node>,
    /// The coordinator's end of each node's connection: its number, and whether it was welcomed.
    pub(super) connections: Vec<Option<(u32, bool)>>,
    last_connection: u32,
    /// The last delivery to and from each node: streams do not reorder.
    pub(super) last: Vec<[Duration; 2]>,
    pub(super) pipelines: BTreeMap<Epoch, Pipeline>,
    checker: Checker,
    whole: Plan,
    jobs_left: usize,
    job_index: u64,
    /// The run must have ended by then, for a worker of its plan crashed.
    must_end: Option<Duration>,
    stopping: bool,
    over: bool,
    summary: Summary,
    log: VecDeque<String>,
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let node = |index| Node::new(index, scenario.slowness[index], scenario.bad_loads.contains(&index));
        let config = Config { term: Term(scenario.seed + 1), default_link: Link::GIGABIT };
        let mut world = Self {
            scenario,
            dice: Dice::new(scenario.seed ^ 0x5eed),
            now: Duration::ZERO,
            queue: BTreeMap::new(),
            queued: 0,
            coordinator: coordinator::Machine::new(config),
            nodes: (0..scenario.workers).map(node).collect(),
            connections: vec![None; scenario.workers],
            last_connection: 0,
            last: vec![[Duration::ZERO; 2]; scenario.workers],
            pipelines: BTreeMap::new(),
            checker: Checker::default(),
            whole: whole_plan(),
            jobs_left: scenario.jobs,
            job_index: 0,
            must_end: None,
            stopping: false,
            over: false,
            summary: Summary::default(),
            log: VecDeque::new(),
        };
        for index in 0..scenario.workers {
            let at = world.dice.micros(0, 400_000);
            world.at(at, Happening::Connect(index));
        }
        for &(at, node, fault) in &scenario.faults {
            world.at(at, Happening::Fault { node, fault });
        }
        world.at(Duration::ZERO, Happening::StartJob);
        world
    }

    fn run(&mut self) -> Result<(), String> {
        while !self.over {
            let due = self.coordinator.poll_timeout();
            let next = self.queue.first_key_value().map(|(key, _)| key.0);
            match (due, next) {
                (Some(due), next) if next.is_none_or(|next| due <= next) => {
                    self.now = self.now.max(due);
                    self.coordinator.handle_timeout(self.now);
                    if self.coordinator.poll_timeout().is_some_and(|again| again <= self.now) {
                        return Err("a timeout that was handled is due again".to_owned());
                    }
                }
                (_, Some(_)) => {
                    if let Some(((at, _), happening)) = self.queue.pop_first() {
                        self.now = self.now.max(at);
                        self.happen(happening)?;
                    }
                }
                (_, None) => return Err("nothing will ever happen again".to_owned()),
            }
            self.drain()?;
            self.invariants()?;
        }
        Ok(())
    }

    fn invariants(&mut self) -> Result<(), String> {
        let in_flight = self.coordinator.steps_in_flight();
        self.summary.most_in_flight = self.summary.most_in_flight.max(in_flight);
        if let Some(plan) = self.coordinator.plan()
            && in_flight > plan.stages.len()
        {
            return Err(format!("{in_flight} steps in flight over {} stages", plan.stages.len()));
        }
        if self.must_end.is_some_and(|limit| self.now > limit) {
            return Err("a crash did not end the run in time".to_owned());
        }
        if self.now > LONGEST {
            return Err(format!("it hangs in {:?}", self.coordinator.state()));
        }
        Ok(())
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        if let Some(index) = happening.place() {
            let until = self.nodes[index].frozen_until;
            if until > self.now {
                self.at(until, happening);
                return Ok(());
            }
        }
        let now = self.now;
        match happening {
            Happening::Connect(node) => self.connect(node),
            Happening::ToWorker { node, connection, order } => {
                if self.nodes[node].alive && self.nodes[node].connection == Some(connection) {
                    self.nodes[node].machine.handle_event(worker::Event::Order(*order));
                    self.drain_worker(node)?;
                }
            }
            Happening::ToCoordinator { node, connection, answer } => {
                self.reach_coordinator(node, connection, *answer);
            }
            Happening::CoordinatorLost { node, connection } => {
                if matches!(self.connections[node], Some((current, _)) if current == connection) {
                    self.connections[node] = None;
                    let reason = "connection closed".to_owned();
                    self.coordinator.handle_event(now, Event::Disconnected { node: node_id(node), reason });
                }
            }
            Happening::WorkerLost { node, connection } => {
                if self.nodes[node].alive && self.nodes[node].connection == Some(connection) {
                    self.nodes[node].connection = None;
                    self.nodes[node].machine.handle_event(worker::Event::Disconnected);
                    self.after(200_000, Happening::Connect(node));
                    self.drain_worker(node)?;
                }
            }
            Happening::AtWorker { node, event } => {
                if self.nodes[node].alive {
                    self.nodes[node].machine.handle_event(*event);
                    self.drain_worker(node)?;
                }
            }
            Happening::StageDone { epoch, stage } => self.stage_done(epoch, stage),
            Happening::Fault { node, fault } => self.fault(node, fault),
            Happening::StartJob => self.start_job(),
            Happening::Submit(request) => {
                self.checker.submitted((*request).clone());
                self.coordinator.handle_event(now, Event::Submit(request));
            }
            Happening::Cancel(seq) => self.coordinator.handle_event(now, Event::Cancel(seq)),
        }
        Ok(())
    }

    fn connect(&mut self, node: usize) {
        if !self.nodes[node].alive || self.nodes[node].connection.is_some() {
            return;
        }
        if self.connections[node].is_some() {
            return self.after(300_000, Happening::Connect(node));
        }
        self.last_connection += 1;
        self.nodes[node].connection = Some(self.last_connection);
        self.connections[node] = Some((self.last_connection, false));
        self.send(node, greeting(Term(self.scenario.seed + 1), "sim"));
    }

    fn reach_coordinator(&mut self, node: usize, connection: u32, answer: Answer) {
        let Some((current, welcomed)) = self.connections[node] else { return };
        if current != connection {
            return;
        }
        let event = if welcomed {
            Event::Answer { node: node_id(node), answer }
        } else {
            self.connections[node] = Some((current, true));
            match check_welcome(answer, node_id(node)) {
                Ok(info) => Event::Connected { info, addresses: Vec::new() },
                Err(_) => return,
            }
        };
        self.coordinator.handle_event(self.now, event);
    }

    fn fault(&mut self, node: usize, fault: Fault) {
        self.note(format!("{fault:?} at node {node}"));
        let planned = self.coordinator.plan().is_some_and(|plan| plan.nodes().contains(&node_id(node)));
        let connection = self.nodes[node].connection;
        match fault {
            Fault::Crash { silent } => {
                if planned && self.nodes[node].alive {
                    self.must_end.get_or_insert(self.now + CRASH_LIMIT);
                }
                self.nodes[node].alive = false;
                self.nodes[node].engine = None;
                if let (false, Some(connection)) = (silent, connection) {
                    self.after(1_000, Happening::CoordinatorLost { node, connection });
                }
            }
            Fault::Disconnect => {
                if let Some(connection) = connection {
                    self.after(1_000, Happening::CoordinatorLost { node, connection });
                    self.after(2_000, Happening::WorkerLost { node, connection });
                }
            }
            Fault::Pause(time) => self.nodes[node].frozen_until = self.now + time,
            Fault::FailStep => self.nodes[node].fail_next = true,
        }
    }

    fn start_job(&mut self) {
        self.note("job".to_owned());
        self.jobs_left -= 1;
        self.stopping = false;
        let scenario = self.scenario;
        let workload = Workload {
            context: CONTEXT,
            streams: scenario.streams,
            prompt_len: 16,
            decode_len: Workload::DECODE_LEN,
            objective: None,
        };
        let job = Job {
            model: coordinator::nominal_model(),
            spec: model(),
            workload,
            planning: Planning::Choose(Options { strategy: scenario.strategy, ..Options::default() }),
            workers: scenario.workers,
            gather: Duration::from_secs(2),
            measure_links: scenario.measure_links,
            links: Vec::new(),
            twins: false,
            profiles: BTreeMap::new(),
            power: BTreeMap::new(),
        };
        self.checker = Checker::default();
        self.coordinator.handle_event(self.now, Event::Start(Box::new(job)));
    }

    /// Does what the coordinator's driver does.
    fn drain(&mut self) -> Result<(), String> {
        while let Some(action) = self.coordinator.poll_action() {
            match action {
                Action::Send { node, order } => {
                    if matches!(order, Order::Query { .. }) {
                        self.summary.questions += 1;
                    }
                    self.send(index(node), order);
                }
                Action::Disconnect { node, reason } => {
                    self.note(format!("disconnect {node:?}: {reason}"));
                    let node = index(node);
                    if let Some((connection, _)) = self.connections[node].take() {
                        self.after(5_000, Happening::WorkerLost { node, connection });
                    }
                }
                Action::Planned { plan, .. } => self.checker.epoch = Some(plan.epoch),
                Action::Ready => self.submit_all(),
                Action::Emit { seq, token, .. } => {
                    if self.coordinator.plan().map(|plan| plan.epoch) != self.checker.epoch {
                        return Err(format!("a token of {seq:?} from another epoch"));
                    }
                    self.summary.tokens += 1;
                    self.checker.emitted(seq, token, &self.whole)?;
                }
                Action::Finished { seq, reason } => {
                    self.summary.finished += 1;
                    self.checker.finished(seq, reason)?;
                    self.stop_when_done();
                }
                Action::Aborted { seq, .. } => {
                    self.summary.aborted += 1;
                    self.checker.aborted(seq)?;
                }
                Action::Refused { seq: Some(seq), .. } => self.checker.aborted(seq)?,
                Action::Refused { seq: None, reason } => return Err(format!("refused: {reason}")),
                Action::Ended(failed) => {
                    self.note(format!("ended: {failed}"));
                    self.must_end = None;
                    if let Failed::Answer { .. } = failed {
                        return Err(format!("an honest worker was not believed: {failed}"));
                    }
                    self.summary.failed += usize::from(failed != Failed::Stopped);
                }
                Action::NoPlan(_) => self.summary.no_plan += 1,
                Action::Idle => self.idle()?,
                Action::RefuseConnection { node, .. } => {
                    return Err(format!("{node:?} was refused, though it has one connection"));
                }
                Action::Profiled { .. }
                | Action::Doubt { .. }
                | Action::LinksMeasured { .. }
                | Action::LeftOut(_)
                | Action::Progress { .. }
                | Action::Loaded { .. }
                | Action::Reported { .. } => {}
            }
        }
        Ok(())
    }

    fn submit_all(&mut self) {
        self.summary.served += 1;
        for request in &self.scenario.requests {
            let mut request = request.clone();
            request.seq.0 += self.job_index * JOB_SEQUENCES;
            let at = self.now + self.dice.micros(0, 200_000);
            if self.dice.once_in(6) {
                let later = at + self.dice.micros(0, 50_000);
                self.at(later, Happening::Cancel(request.seq));
            }
            self.at(at, Happening::Submit(Box::new(request)));
        }
        self.job_index += 1;
    }

    fn stop_when_done(&mut self) {
        let waiting = self.queue.values().any(|happening| matches!(happening, Happening::Submit(_)));
        if !waiting && !self.stopping && self.checker.open().is_empty() {
            self.stopping = true;
            self.coordinator.handle_event(self.now, Event::Report);
            self.coordinator.handle_event(self.now, Event::Stop);
        }
    }

    fn idle(&mut self) -> Result<(), String> {
        self.note("idle".to_owned());
        let open = self.checker.open();
        if !open.is_empty() {
            return Err(format!("{open:?} did not end"));
        }
        if self.coordinator.state() != State::Idle {
            return Err("it says it is idle and is not".to_owned());
        }
        for (node, connection) in self.nodes.iter().zip(&self.connections) {
            let same = matches!(connection, Some((number, true)) if node.connection == Some(*number));
            if node.alive && same && node.machine.phase() != worker::Phase::Idle {
                return Err(format!("{:?} is not idle", node.id));
            }
        }
        if self.jobs_left > 0 {
            self.after(400_000, Happening::StartJob);
        } else {
            self.over = true;
        }
        Ok(())
    }

    pub(super) fn after(&mut self, micros: u64, happening: Happening) {
        self.at(self.now + Duration::from_micros(micros), happening);
    }

    pub(super) fn at(&mut self, at: Duration, happening: Happening) {
        self.queued += 1;
        self.queue.insert((at, self.queued), happening);
    }

    pub(super) fn note(&mut self, line: String) {
        if self.log.len() == LOG_LINES {
            self.log.pop_front();
        }
        self.log.push_back(format!("{:?} {line}", self.now));
    }
}

impl Happening {
    /// The node at which it happens, if it waits for that node to thaw.
    fn place(&self) -> Option<usize> {
        match self {
            Self::Connect(node)
            | Self::ToWorker { node, .. }
            | Self::WorkerLost { node, .. }
            | Self::AtWorker { node, .. } => Some(*node),
            _ => None,
        }
    }
}

pub(super) fn index(node: NodeId) -> usize {
    usize::from(node.0[0]) - 1
}

/// A plan with the head on one node, for the checker's own draws.
fn whole_plan() -> Plan {
    let spec = model();
    let rank = RankShare { node: node_id(0), q_heads: spec.n_heads, ffn_blocks: spec.ffn / spec.ffn_block() };
    let arrangement = Arrangement {
        strategy: Strategy::Single,
        stages: vec![StageShares { layers: spec.n_layers, ranks: vec![rank], sums: Sums::default() }],
        head: vec![(node_id(0), VOCAB.div_ceil(shoal_core::limits::VOCAB_TILE))],
        chunk_tokens: 8,
        wire: Wire::default(),
        kv: KvBudget { context: CONTEXT, sequences: 1 },
        epoch: Epoch::default(),
    };
    match plan_from_shares(&spec, &arrangement) {
        Ok(plan) => plan,
        Err(error) => unreachable!("the simulated model has a single plan: {error}"),
    }
}
