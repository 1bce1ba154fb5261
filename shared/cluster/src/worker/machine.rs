//! The worker's state machine.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use shoal_core::head::HeadQuery;
use shoal_core::limits::PROTOCOL_VERSION;
use shoal_core::message::{Answer, Failure, ModelRef, Order, Peer, StepOrder};
use shoal_core::model::ModelSpec;
use shoal_core::plan::PlanParts;
use shoal_core::profile::NodeInfo;
use shoal_core::{Epoch, Plan, StepId, Term};

use super::checks::Ledger;
use super::{Action, Event, Phase, STEPS_HELD};

/// A worker's control side. Keeps the highest term it has seen across connections.
#[derive(Debug)]
pub struct Machine {
    info: NodeInfo,
    highest_term: Term,
    /// Whether the coordinator on the connection has greeted and was welcomed.
    greeted: bool,
    work: Work,
    /// Epochs whose drop is asked for and not yet done.
    dropping: BTreeSet<Epoch>,
    actions: VecDeque<Action>,
}

#[derive(Debug)]
enum Work {
    Idle,
    Loading(Job),
    Ready(Job),
}

#[derive(Debug)]
struct Job {
    plan: Arc<Plan>,
    spec: Arc<ModelSpec>,
    ledger: Ledger,
    /// Steps told to run and not done.
    running: VecDeque<StepId>,
    /// Steps up to this one are settled.
    settled: StepId,
    /// The last step that is done.
    done: StepId,
}

impl Machine {
    /// A worker that has seen no coordinator since `highest_term`.
    pub fn new(info: NodeInfo, highest_term: Term) -> Self {
        Self {
            info,
            highest_term,
            greeted: false,
            work: Work::Idle,
            dropping: BTreeSet::new(),
            actions: VecDeque::new(),
        }
    }

    /// Takes in what happened.
    pub fn handle_event(&mut self, event: Event) {
        match event {
            Event::Order(order) => self.handle_order(order),
            Event::Disconnected => {
                self.greeted = false;
                self.drop_work();
            }
            Event::Profiled(result) => self.reply(Answer::Profiled(result)),
            Event::LinksMeasured { links, failed } => {
                self.reply(Answer::LinksMeasured { links, failed });
            }
            Event::Progress { epoch, done, total, fetched } if self.is_loading(epoch) => {
                self.reply(Answer::Progress { epoch, done, total, fetched });
            }
            Event::Loaded { epoch, result } if self.is_loading(epoch) => match result {
                Ok((resident, fetched)) => {
                    if let Work::Loading(job) = std::mem::replace(&mut self.work, Work::Idle) {
                        self.work = Work::Ready(job);
                    }
                    self.reply(Answer::Loaded { epoch, resident, fetched });
                }
                Err(failure) => {
                    self.work = Work::Idle;
                    self.reply(Answer::Failed { epoch, failure });
                }
            },
            Event::StepDone { epoch, step, head } => self.step_done(epoch, step, head),
            Event::StepFailed { epoch, failure } => self.fail(epoch, failure),
            Event::Queried { epoch, step, row, query, result } if self.ready(epoch).is_some() => match result
            {
                Ok(found) => self.reply(Answer::Queried { epoch, step, row, query, found }),
                Err(failure) => self.fail(epoch, failure),
            },
            Event::Reported { epoch, counters, resident } if self.ready(epoch).is_some() => {
                self.reply(Answer::Reported { epoch, counters, resident });
            }
            Event::Dropped { epoch } => {
                if self.dropping.remove(&epoch) {
                    self.reply(Answer::Idle { epoch });
                }
            }
            // Late news of an epoch that is over.
            Event::Progress { .. }
            | Event::Loaded { .. }
            | Event::Queried { .. }
            | Event::Reported { .. } => {}
        }
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Where this worker stands.
    pub fn phase(&self) -> Phase {
        match &self.work {
            Work::Idle => Phase::Idle,
            Work::Loading(_) => Phase::Loading,
            Work::Ready(_) => Phase::Ready,
        }
    }

    /// The epoch that is loading or in force.
    pub fn epoch(&self) -> Option<Epoch> {
        match &self.work {
            Work::Idle => None,
            Work::Loading(job) | Work::Ready(job) => Some(job.plan.epoch),
        }
    }

    /// The plan in force, once it is loaded.
    pub fn plan(&self) -> Option<&Arc<Plan>> {
        match &self.work {
            Work::Ready(job) => Some(&job.plan),
            Work::Idle | Work::Loading(_) => None,
        }
    }

    /// The highest term seen, to be kept across restarts.
    pub fn highest_term(&self) -> Term {
        self.highest_term
    }

    /// Steps told to run and not done.
    pub fn steps_running(&self) -> usize {
        match &self.work {
            Work::Ready(job) => job.running.len(),
            Work::Idle | Work::Loading(_) => 0,
        }
    }

    fn handle_order(&mut self, order: Order) {
        match order {
            Order::Hello { protocol, term, .. } => return self.greet(protocol, term),
            Order::Ping { nonce } => return self.reply(Answer::Pong { nonce }),
            _ if !self.greeted => {
                let reason = "an order came before the greeting".to_owned();
                return self.act(Action::Close { reason });
            }
            _ => {}
        }
        match order {
            Order::Hello { .. } | Order::Ping { .. } => {}
            Order::Profile { spec } => match spec.check() {
                Ok(()) => self.act(Action::StartProfile { spec }),
                Err(error) => self.reply(Answer::Profiled(Err(failure(format!("bad model: {error}"))))),
            },
            Order::Links { peers } => self.act(Action::StartLinks { peers }),
            Order::Load { model, spec, plan, peers } => self.load(model, *spec, *plan, peers),
            Order::Step(order) => self.step(order),
            Order::Query { epoch, step, row, query } => self.query(epoch, step, row, query),
            Order::Settled { epoch, step } => {
                if let Some(job) = self.ready(epoch)
                    && step > job.settled
                {
                    job.settled = step;
                    self.act(Action::Settle { epoch, step });
                }
            }
            Order::Report { epoch } => {
                if self.ready(epoch).is_some() {
                    self.act(Action::Report { epoch });
                }
            }
            Order::Unload { epoch } => {
                if self.epoch() == Some(epoch) {
                    self.drop_work();
                } else if !self.dropping.contains(&epoch) {
                    // Nothing of it is here: say so, for the coordinator waits.
                    self.reply(Answer::Idle { epoch });
                }
            }
        }
    }

    fn greet(&mut self, protocol: u32, term: Term) {
        let refusal = if protocol != PROTOCOL_VERSION {
            Some(format!("the coordinator speaks protocol {protocol}, this worker {PROTOCOL_VERSION}"))
        } else if term < self.highest_term {
            Some(format!("the coordinator's term {} is over; {} was seen", term.0, self.highest_term.0))
        } else {
            None
        };
        if let Some(reason) = refusal {
            let (protocol, highest_term) = (PROTOCOL_VERSION, self.highest_term);
            self.reply(Answer::Refused { protocol, highest_term, reason: reason.clone() });
            return self.act(Action::Close { reason });
        }
        // A greeting starts afresh: a coordinator that greets knows of no epoch here.
        self.drop_work();
        self.highest_term = term;
        self.greeted = true;
        self.reply(Answer::Welcome { protocol: PROTOCOL_VERSION, info: Box::new(self.info.clone()) });
    }

    fn load(&mut self, model: ModelRef, spec: ModelSpec, parts: PlanParts, peers: Vec<Peer>) {
        let epoch = parts.epoch;
        if epoch.term != self.highest_term || self.epoch().is_some_and(|current| epoch <= current) {
            return;
        }
        self.drop_work();
        let refuse = |message| Answer::Failed { epoch, failure: failure(message) };
        if let Err(error) = spec.check() {
            return self.reply(refuse(format!("failed to load: the model is not sound: {error}")));
        }
        let plan = match Plan::try_new(parts, &spec) {
            Ok(plan) if plan.nodes().contains(&self.info.node) => plan,
            Ok(_) => {
                return self.reply(refuse("failed to load: the plan has no work for this node".to_owned()));
            }
            Err(error) => {
                return self.reply(refuse(format!("failed to load: the plan is not sound: {error}")));
            }
        };
        let (plan, spec) = (Arc::new(plan), Arc::new(spec));
        self.work = Work::Loading(Job {
            plan: Arc::clone(&plan),
            spec: Arc::clone(&spec),
            ledger: Ledger::default(),
            running: VecDeque::new(),
            settled: StepId(0),
            done: StepId(0),
        });
        self.act(Action::StartLoad { model, spec, plan, peers });
    }

    fn step(&mut self, order: Box<StepOrder>) {
        let epoch = order.epoch;
        let Some(job) = self.ready(epoch) else { return };
        let checked = if job.running.len() >= STEPS_HELD {
            Err(format!("{STEPS_HELD} steps are waiting already"))
        } else {
            job.ledger.take(&order, &job.plan, &job.spec)
        };
        match checked {
            Ok(()) => {
                job.running.push_back(order.step);
                self.act(Action::RunStep(order));
            }
            Err(why) => self.fail(epoch, failure(format!("failed to take step {}: {why}", order.step.0))),
        }
    }

    fn step_done(&mut self, epoch: Epoch, step: StepId, rows: Vec<shoal_core::head::HeadAnswer>) {
        let Some(job) = self.ready(epoch) else { return };
        let Some(at) = job.running.iter().position(|&running| running == step) else { return };
        job.running.remove(at);
        job.done = job.done.max(step);
        // An answer without rows also tells the coordinator that this stage is through.
        self.reply(Answer::Head { epoch, step, rows });
    }

    fn query(&mut self, epoch: Epoch, step: StepId, row: u32, query: HeadQuery) {
        let node = self.info.node;
        let Some(job) = self.ready(epoch) else { return };
        let refusal = match query {
            _ if step > job.done || step <= job.settled => {
                Some(format!("step {} is not there to be asked about", step.0))
            }
            HeadQuery::Tile(tile) if job.plan.tile_owner(tile) != Some(node) => {
                Some(format!("tile {tile} is not held here"))
            }
            HeadQuery::Tile(_) | HeadQuery::Top(_) => None,
        };
        if let Some(why) = refusal {
            return self.fail(epoch, failure(why));
        }
        self.act(Action::RunQuery { epoch, step, row, query });
    }

    /// Ends the epoch with a failure; nothing of it is kept.
    fn fail(&mut self, epoch: Epoch, failure: Failure) {
        if self.epoch() == Some(epoch) {
            self.reply(Answer::Failed { epoch, failure });
            self.drop_work();
        }
    }

    fn drop_work(&mut self) {
        if let Some(epoch) = self.epoch() {
            self.work = Work::Idle;
            self.dropping.insert(epoch);
            self.act(Action::Drop { epoch });
        }
    }

    fn is_loading(&self, epoch: Epoch) -> bool {
        matches!(&self.work, Work::Loading(job) if job.plan.epoch == epoch)
    }

    fn ready(&mut self, epoch: Epoch) -> Option<&mut Job> {
        match &mut self.work {
            Work::Ready(job) if job.plan.epoch == epoch => Some(job),
            _ => None,
        }
    }

    fn reply(&mut self, answer: Answer) {
        self.act(Action::Reply(answer));
    }

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }
}

fn failure(message: String) -> Failure {
    Failure { message, blame: None }
}
