//! The machine: events, timeouts and the way from one state to the next.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use shoal_core::message::{Answer, Order};
use shoal_core::profile::DeviceProfile;
use shoal_core::{Epoch, NodeId, Plan};

use super::links::BadLink;
use super::members::Members;
use super::serving::Serving;
use super::{Action, Config, Event, Failed, Job, State};
use crate::cost::Links;
use crate::planner::LeftOut;

/// The coordinator's state machine.
#[derive(Debug)]
pub struct Machine {
    pub(super) config: Config,
    pub(super) members: Members,
    pub(super) links: Links,
    pub(super) work: Work,
    /// Number of the last epoch of this term.
    pub(super) epochs: u32,
    nonce: u64,
    pub(super) actions: VecDeque<Action>,
}

/// What is going on.
#[derive(Debug)]
pub(super) enum Work {
    Idle,
    Gathering {
        job: Box<Job>,
        until: Duration,
    },
    Profiling {
        team: Team,
        waiting: BTreeSet<NodeId>,
        until: Duration,
    },
    /// One node at a time, so that measurements do not disturb each other.
    Linking {
        team: Team,
        current: NodeId,
        /// The peers to which `current` was told to measure.
        asked: BTreeSet<NodeId>,
        waiting: VecDeque<NodeId>,
        bad: Vec<BadLink>,
        until: Duration,
    },
    Loading(Box<Serving>, BTreeMap<NodeId, super::phases::Loading>),
    Serving(Box<Serving>),
    Unloading {
        epoch: Epoch,
        waiting: BTreeSet<NodeId>,
        until: Duration,
    },
}

/// A job with the workers that may take part.
#[derive(Debug)]
pub(super) struct Team {
    pub(super) job: Box<Job>,
    pub(super) profiles: BTreeMap<NodeId, DeviceProfile>,
    pub(super) nodes: BTreeSet<NodeId>,
    /// Pairs whose links are known, from and to.
    pub(super) linked: BTreeSet<(NodeId, NodeId)>,
}

impl Machine {
    /// Idle, with no worker.
    pub fn new(config: Config) -> Self {
        let links = Links::new(config.default_link);
        Self {
            config,
            members: Members::default(),
            links,
            work: Work::Idle,
            epochs: 0,
            nonce: 0,
            actions: VecDeque::new(),
        }
    }

    /// Takes in what happened at `now` (time since the start; never falls).
    pub fn handle_event(&mut self, now: Duration, event: Event) {
        match event {
            Event::Start(job) => self.start(now, job),
            Event::Connected { info, addresses } => {
                let node = info.node;
                if self.members.add(now, *info, addresses) {
                    self.gathered(now);
                } else {
                    let reason = "a node with this identity is connected already".to_owned();
                    self.act(Action::RefuseConnection { node, reason });
                }
            }
            Event::Disconnected { node, reason } => {
                if self.members.contains(node) {
                    self.lose(now, node, &reason);
                }
            }
            Event::Answer { node, answer } => {
                if self.members.contains(node) {
                    self.members.heard(now, node);
                    self.answer(now, node, answer);
                }
            }
            Event::Submit(request) => self.submit(now, *request),
            Event::Cancel(seq) => self.cancel(now, seq),
            Event::Report => self.report(),
            Event::Stop => {
                if !matches!(self.work, Work::Idle | Work::Unloading { .. }) {
                    self.fail(now, Failed::Stopped);
                }
            }
        }
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Duration) {
        for node in self.members.dead(now) {
            let reason = "nothing was heard of it for a second".to_owned();
            self.act(Action::Disconnect { node, reason: reason.clone() });
            self.lose(now, node, &reason);
        }
        for node in self.members.due_pings(now) {
            self.nonce += 1;
            self.send(node, Order::Ping { nonce: self.nonce });
        }
        self.phase_timeout(now);
        self.step_timeout(now);
    }

    /// When [`Machine::handle_timeout`] must be called next; `None` while nothing is awaited.
    pub fn poll_timeout(&self) -> Option<Duration> {
        [self.members.next_timeout(), self.phase_deadline(), self.step_deadline()].into_iter().flatten().min()
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Where the machine stands.
    pub fn state(&self) -> State {
        match &self.work {
            Work::Idle => State::Idle,
            Work::Gathering { .. } => State::Gathering,
            Work::Profiling { .. } => State::Profiling,
            Work::Linking { .. } => State::Linking,
            Work::Loading(..) => State::Loading,
            Work::Serving(serving) if serving.is_warming() => State::WarmingUp,
            Work::Serving(_) => State::Serving,
            Work::Unloading { .. } => State::Unloading,
        }
    }

    /// The plan that is loading or in force.
    pub fn plan(&self) -> Option<&Plan> {
        match &self.work {
            Work::Loading(serving, _) | Work::Serving(serving) => Some(serving.plan()),
            _ => None,
        }
    }

    /// Connected workers, by id.
    pub fn workers(&self) -> impl Iterator<Item = &shoal_core::profile::NodeInfo> + '_ {
        self.members.nodes().filter_map(|node| Some(&self.members.get(node)?.info))
    }

    /// Steps on their way.
    pub fn steps_in_flight(&self) -> usize {
        match &self.work {
            Work::Serving(serving) => serving.scheduler.in_flight(),
            _ => 0,
        }
    }

    fn answer(&mut self, now: Duration, node: NodeId, answer: Answer) {
        match answer {
            Answer::Profiled(result) => self.profiled(now, node, result),
            Answer::LinksMeasured { links, failed } => self.links_measured(now, node, links, failed),
            Answer::Progress { epoch, done, total, fetched } if self.in_force(epoch) => {
                self.progress(now, node, done, total, fetched);
            }
            Answer::Loaded { epoch, resident, fetched } if self.in_force(epoch) => {
                self.loaded(now, node, resident, fetched);
            }
            Answer::Head { epoch, step, rows } if self.in_force(epoch) => self.head(now, node, step, rows),
            Answer::Queried { epoch, step, row, query, found } if self.in_force(epoch) => {
                self.queried(now, node, step, row, query, found);
            }
            Answer::Reported { epoch, counters, resident } if self.in_force(epoch) => {
                self.act(Action::Reported { node, counters, resident });
            }
            Answer::Failed { epoch, failure } if self.in_force(epoch) => {
                let blame = failure.blame.unwrap_or(node);
                let name = self.members.name(blame);
                let reason = if blame == node {
                    failure.message
                } else {
                    format!("{} (says {})", failure.message, self.members.name(node))
                };
                self.fail(now, Failed::Worker { node: blame, name, reason });
            }
            Answer::Idle { epoch } => self.idle(node, epoch),
            // Signs of life, greetings the driver has judged, and news of epochs that are over.
            Answer::Pong { .. }
            | Answer::Welcome { .. }
            | Answer::Refused { .. }
            | Answer::Progress { .. }
            | Answer::Loaded { .. }
            | Answer::Head { .. }
            | Answer::Queried { .. }
            | Answer::Reported { .. }
            | Answer::Failed { .. } => {}
        }
    }

    fn in_force(&self, epoch: Epoch) -> bool {
        self.plan().is_some_and(|plan| plan.epoch == epoch)
    }

    /// A worker is gone: what that means depends on what it was doing.
    fn lose(&mut self, now: Duration, node: NodeId, reason: &str) {
        let Some(member) = self.members.remove(node) else { return };
        let name = member.info.name;
        if self.plan().is_some_and(|plan| plan.nodes().contains(&node)) {
            return self.fail(now, Failed::Lost { node, name, reason: reason.to_owned() });
        }
        match &mut self.work {
            Work::Profiling { .. } | Work::Linking { .. } => self.drop_from_team(now, node, name, reason),
            Work::Unloading { .. } => self.unloaded(node),
            _ => {}
        }
    }

    /// Ends the job: its requests end, its workers are unloaded.
    pub(super) fn fail(&mut self, now: Duration, failed: Failed) {
        let work = std::mem::replace(&mut self.work, Work::Idle);
        let mut loaded = None;
        if let Work::Loading(serving, _) | Work::Serving(serving) = work {
            let reason = failed.to_string();
            for seq in serving.requests() {
                self.act(Action::Aborted { seq, reason: reason.clone() });
            }
            loaded = Some((serving.plan().epoch, serving.plan().nodes().to_vec()));
        }
        self.act(Action::Ended(failed));
        match loaded {
            Some((epoch, nodes)) => self.unload(now, epoch, nodes),
            None => self.act(Action::Idle),
        }
    }

    pub(super) fn left_out(&mut self, node: NodeId, name: String, reason: String) {
        self.act(Action::LeftOut(LeftOut { node, name, reason, cost: None }));
    }

    pub(super) fn send(&mut self, node: NodeId, order: Order) {
        self.act(Action::Send { node, order });
    }

    pub(super) fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }
}
