//! From a job to warm workers, and back to idle.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_core::message::{Failure, Order, Peer, Resident};
use shoal_core::profile::DeviceProfile;
use shoal_core::units::Bytes;
use shoal_core::{Epoch, NodeId, Plan, limits};

use super::machine::{Machine, Team, Work};
use super::serving::Serving;
use super::{Action, Failed, Job, LOAD_STALL, PROFILE_DEADLINE, Planning, UNLOAD_DEADLINE};
use crate::cost::{Cluster, Device, Prediction, predict};
use crate::planner::{Choice, Options, choose};

/// How far a worker is with loading.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loading {
    done: Bytes,
    fetched: Bytes,
    /// No later than this there must be progress.
    until: Duration,
}

impl Machine {
    pub(super) fn start(&mut self, now: Duration, job: Box<Job>) {
        let refusal = if !matches!(self.work, Work::Idle) {
            Some("another job is going on".to_owned())
        } else {
            job.spec.check().err().map(|error| format!("the model is not sound: {error}"))
        };
        if let Some(reason) = refusal {
            return self.act(Action::Refused { seq: None, reason });
        }
        let until = now + job.gather;
        self.work = Work::Gathering { job, until };
        self.gathered(now);
    }

    /// Goes on from gathering when all are there, or time is up.
    pub(super) fn gathered(&mut self, now: Duration) {
        let Work::Gathering { job, until } = &self.work else { return };
        let late = now >= *until;
        match &job.planning {
            Planning::Fixed(parts) => {
                let ranks = parts.stages.iter().flat_map(|stage| &stage.ranks).map(|share| share.node);
                let mut nodes = ranks.chain(parts.head.iter().map(|head| head.node));
                if let Some(absent) = nodes.find(|&node| !self.members.contains(node)) {
                    if late {
                        let reason = format!("node {absent} is not connected");
                        self.fail(now, Failed::Plan { reason });
                    }
                    return;
                }
            }
            Planning::Choose(_) if late && self.members.len() == 0 => {
                let reason = "no worker came".to_owned();
                return self.fail(now, Failed::Workers { reason });
            }
            Planning::Choose(_) if !late && self.members.len() < job.workers.max(1) => return,
            Planning::Choose(_) => {}
        }
        if let Work::Gathering { job, .. } = std::mem::replace(&mut self.work, Work::Idle) {
            self.profile(now, job);
        }
    }

    fn profile(&mut self, now: Duration, mut job: Box<Job>) {
        let nodes: BTreeSet<NodeId> = self.members.nodes().collect();
        let mut profiles = std::mem::take(&mut job.profiles);
        profiles.retain(|node, profile| nodes.contains(node) && profile.check().is_ok());
        let team = Team { job, profiles, nodes, linked: BTreeSet::new() };
        if matches!(team.job.planning, Planning::Fixed(_)) {
            return self.plan_and_load(now, team);
        }
        for (&node, profile) in &team.profiles {
            self.doubt(node, profile);
        }
        self.ask_profiles(now, team);
    }

    /// Has those measure themselves whose profiles are missing; when none is missing, goes on with the links.
    fn ask_profiles(&mut self, now: Duration, team: Team) {
        let missing = team.nodes.iter().copied().filter(|node| !team.profiles.contains_key(node));
        let waiting: BTreeSet<NodeId> = if team.job.twins {
            let mut kinds = BTreeMap::new();
            for node in missing {
                kinds.entry(self.members.kind(node)).or_insert(node);
            }
            kinds.into_values().collect()
        } else {
            missing.collect()
        };
        if waiting.is_empty() {
            return self.start_links(now, team);
        }
        for &node in &waiting {
            if let Some(member) = self.members.get_mut(node) {
                member.profiles_due += 1;
            }
            self.send(node, Order::Profile { spec: Box::new(team.job.spec.clone()) });
        }
        self.work = Work::Profiling { team, waiting, until: now + PROFILE_DEADLINE };
    }

    /// Says what is hardly believable of a sound profile.
    fn doubt(&mut self, node: NodeId, profile: &DeviceProfile) {
        if let Some(reason) = profile.doubt() {
            let name = self.members.name(node);
            self.act(Action::Doubt { node, name, reason });
        }
    }

    pub(super) fn profiled(
        &mut self,
        now: Duration,
        node: NodeId,
        result: Result<Box<DeviceProfile>, Failure>,
    ) {
        let due = self.members.get_mut(node).map(|member| {
            member.profiles_due = member.profiles_due.saturating_sub(1);
            member.profiles_due
        });
        let Work::Profiling { team, waiting, .. } = &mut self.work else { return };
        if due != Some(0) || !waiting.remove(&node) {
            return;
        }
        let result = match result {
            Ok(profile) => profile.check().map(|()| profile).map_err(|error| error.to_string()),
            Err(failure) => Err(failure.message),
        };
        match result {
            Ok(profile) => {
                let kind = self.members.kind(node);
                let twins = team.job.twins;
                let missing = team.nodes.iter().copied().filter(|node| !team.profiles.contains_key(node));
                let same = |&other: &NodeId| other == node || (twins && self.members.kind(other) == kind);
                for node in missing.filter(same).collect::<Vec<_>>() {
                    team.profiles.insert(node, (*profile).clone());
                    self.actions.push_back(Action::Profiled { node, profile: profile.clone() });
                }
                self.doubt(node, &profile);
                self.all_profiled(now);
            }
            Err(reason) => {
                let name = self.members.name(node);
                self.drop_from_team(now, node, name, &reason);
            }
        }
    }

    fn all_profiled(&mut self, now: Duration) {
        if !matches!(&self.work, Work::Profiling { waiting, .. } if waiting.is_empty()) {
            return;
        }
        if let Work::Profiling { team, .. } = std::mem::replace(&mut self.work, Work::Idle) {
            self.ask_profiles(now, team);
        }
    }

    /// A worker will not take part in the job that is being prepared.
    pub(super) fn drop_from_team(&mut self, now: Duration, node: NodeId, name: String, reason: &str) {
        self.left_out(node, name, reason.to_owned());
        let empty = match &mut self.work {
            Work::Profiling { team, waiting, .. } => {
                team.nodes.remove(&node);
                waiting.remove(&node);
                team.nodes.is_empty()
            }
            Work::Linking { team, waiting, .. } => {
                team.nodes.remove(&node);
                waiting.retain(|&other| other != node);
                team.nodes.is_empty()
            }
            _ => return,
        };
        if empty {
            let reason = format!("none is left to plan for; the last one was left out: {reason}");
            return self.fail(now, Failed::Workers { reason });
        }
        if matches!(&self.work, Work::Linking { current, .. } if *current == node) {
            self.links_go_on(now);
        }
        self.all_profiled(now);
    }

    pub(super) fn plan_and_load(&mut self, now: Duration, team: Team) {
        self.epochs += 1;
        let epoch = Epoch { term: self.config.term, counter: self.epochs };
        let (plan, choice, prediction) = match self.plan_for(&team, epoch) {
            Ok(planned) => planned,
            Err(Unplanned::NoPlan(no_plan)) => {
                self.act(Action::NoPlan(no_plan));
                return self.act(Action::Idle);
            }
            Err(Unplanned::Unfit(reason)) => return self.fail(now, Failed::Plan { reason }),
        };
        let peers = self.peers(plan.nodes().iter().copied());
        for &node in plan.nodes() {
            let peers = peers.iter().filter(|peer| peer.node != node).cloned().collect();
            let order = Order::Load {
                model: team.job.model.clone(),
                spec: Box::new(team.job.spec.clone()),
                plan: Box::new(plan.parts().clone()),
                peers,
            };
            self.send(node, order);
        }
        self.act(Action::Planned { plan: Box::new(plan.clone()), choice });
        let loading = Loading { done: Bytes(0), fetched: Bytes(0), until: now + LOAD_STALL };
        let waiting = plan.nodes().iter().map(|&node| (node, loading)).collect();
        let dilation = self.members.dilation(plan.nodes());
        let serving = Serving::new(plan, team.job.spec.vocab, prediction, dilation);
        self.work = Work::Loading(Box::new(serving), waiting);
    }

    fn plan_for(&self, team: &Team, epoch: Epoch) -> Result<Planned, Unplanned> {
        let job = &team.job;
        let cluster = self.cluster(team);
        match &job.planning {
            Planning::Choose(options) => {
                let most = options.max_workers.map_or(limits::WORKERS, |most| most.min(limits::WORKERS));
                let options = Options { epoch, max_workers: Some(most), ..options.clone() };
                let choice =
                    choose(&job.spec, &cluster, &job.workload, &options).map_err(Unplanned::NoPlan)?;
                let plan = choice.chosen.plan.clone();
                let prediction = choice.chosen.prediction.clone();
                Ok((plan, Some(Box::new(choice)), Some(prediction)))
            }
            Planning::Fixed(parts) => {
                let mut parts = (**parts).clone();
                parts.epoch = epoch;
                let unfit = |error: &dyn std::error::Error| Unplanned::Unfit(error.to_string());
                let plan = Plan::try_new(parts, &job.spec).map_err(|error| unfit(&error))?;
                let workers = plan.nodes().len();
                if workers > limits::WORKERS {
                    let most = limits::WORKERS;
                    return Err(Unplanned::Unfit(format!(
                        "a plan that runs has at most {most} workers, not {workers}"
                    )));
                }
                let prediction = predict(&plan, &job.spec, &cluster, &job.workload).ok();
                Ok((plan, None, prediction))
            }
        }
    }

    /// The team's devices whose profiles are known.
    fn cluster(&self, team: &Team) -> Cluster {
        let device = |&node: &NodeId| {
            let info = &self.members.get(node)?.info;
            let profile = team.profiles.get(&node)?.clone();
            let power = team.job.power.get(&node).copied();
            Some(Device { node, name: info.name.clone(), profile, usable: info.usable, power })
        };
        Cluster { devices: team.nodes.iter().filter_map(device).collect(), links: self.links.clone() }
    }

    pub(super) fn peers(&self, nodes: impl Iterator<Item = NodeId>) -> Vec<Peer> {
        let peer = |node| Some(Peer { node, addresses: self.members.get(node)?.addresses.clone() });
        nodes.filter_map(peer).collect()
    }

    pub(super) fn progress(
        &mut self,
        now: Duration,
        node: NodeId,
        done: Bytes,
        total: Bytes,
        fetched: Bytes,
    ) {
        let Work::Loading(_, waiting) = &mut self.work else { return };
        let Some(loading) = waiting.get_mut(&node) else { return };
        if done > loading.done || fetched > loading.fetched {
            *loading = Loading { done, fetched, until: now + LOAD_STALL };
        }
        self.act(Action::Progress { node, done, total, fetched });
    }

    pub(super) fn loaded(&mut self, now: Duration, node: NodeId, resident: Resident, fetched: Bytes) {
        let Work::Loading(_, waiting) = &mut self.work else { return };
        if waiting.remove(&node).is_none() {
            return;
        }
        let all = waiting.is_empty();
        self.act(Action::Loaded { node, resident, fetched });
        if !all {
            return;
        }
        if let Work::Loading(serving, _) = std::mem::replace(&mut self.work, Work::Idle) {
            self.work = Work::Serving(serving);
            self.warm_up(now);
        }
    }

    pub(super) fn unload(&mut self, now: Duration, epoch: Epoch, nodes: Vec<NodeId>) {
        let waiting: BTreeSet<NodeId> =
            nodes.into_iter().filter(|&node| self.members.contains(node)).collect();
        for &node in &waiting {
            self.send(node, Order::Unload { epoch });
        }
        self.work = Work::Unloading { epoch, waiting, until: now + UNLOAD_DEADLINE };
        self.all_unloaded();
    }

    pub(super) fn idle(&mut self, node: NodeId, epoch: Epoch) {
        if matches!(&self.work, Work::Unloading { epoch: current, .. } if *current == epoch) {
            self.unloaded(node);
        }
    }

    pub(super) fn unloaded(&mut self, node: NodeId) {
        if let Work::Unloading { waiting, .. } = &mut self.work {
            waiting.remove(&node);
            self.all_unloaded();
        }
    }

    fn all_unloaded(&mut self) {
        if matches!(&self.work, Work::Unloading { waiting, .. } if waiting.is_empty()) {
            self.work = Work::Idle;
            self.act(Action::Idle);
        }
    }

    /// Deadline of the current phase.
    pub(super) fn phase_deadline(&self) -> Option<Duration> {
        match &self.work {
            Work::Gathering { until, .. }
            | Work::Profiling { until, .. }
            | Work::Linking { until, .. }
            | Work::Unloading { until, .. } => Some(*until),
            Work::Loading(_, waiting) => waiting.values().map(|loading| loading.until).min(),
            Work::Idle | Work::Serving(_) => None,
        }
    }

    pub(super) fn phase_timeout(&mut self, now: Duration) {
        if self.phase_deadline().is_none_or(|until| now < until) {
            return;
        }
        match &self.work {
            Work::Gathering { .. } => self.gathered(now),
            Work::Profiling { waiting, .. } => {
                for node in waiting.clone() {
                    let name = self.members.name(node);
                    self.drop_from_team(now, node, name, "it did not measure itself in time");
                }
            }
            Work::Linking { current, .. } => {
                let node = *current;
                let name = self.members.name(node);
                self.drop_from_team(now, node, name, "it did not measure its links in time");
            }
            Work::Loading(_, waiting) => {
                let late: BTreeMap<_, _> = waiting.iter().filter(|(_, l)| now >= l.until).collect();
                let Some((&&node, _)) = late.first_key_value() else { return };
                let name = self.members.name(node);
                let reason = "it made no progress in loading".to_owned();
                self.fail(now, Failed::Lost { node, name, reason });
            }
            Work::Unloading { waiting, .. } => {
                // Whoever cannot even drop its shard starts afresh with a new connection.
                for node in waiting.clone() {
                    let reason = "it did not drop its shard in time".to_owned();
                    self.members.remove(node);
                    self.act(Action::Disconnect { node, reason });
                    self.unloaded(node);
                }
            }
            Work::Idle | Work::Serving(_) => {}
        }
    }
}

type Planned = (Plan, Option<Box<Choice>>, Option<Prediction>);

enum Unplanned {
    NoPlan(Box<crate::planner::NoPlan>),
    Unfit(String),
}
