//! Measuring the links of a team: one node at a time, and who is left out where two cannot reach each other.
//!
//! Pairs whose figures the job brings along are not measured again. A bad peer costs the others nothing: a worker
//! answers with what it could measure and with a failure for each peer that it could not.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use shoal_core::NodeId;
use shoal_core::message::{Failure, Order};
use shoal_core::profile::LinkProfile;

use super::machine::{Machine, Team, Work};
use super::{Action, LINK_DEADLINE, LINKS_DEADLINE};

/// A pair of nodes whose link could not be measured.
#[derive(Debug, Clone)]
pub(super) struct BadLink {
    reporter: NodeId,
    blamed: NodeId,
    message: String,
}

impl Machine {
    /// Takes the links that the job brings along, and has the others measured.
    pub(super) fn start_links(&mut self, now: Duration, mut team: Team) {
        for link in std::mem::take(&mut team.job.links) {
            if self.links.insert(&link) {
                team.linked.insert((link.from, link.to));
            }
        }
        if !team.job.measure_links {
            return self.plan_and_load(now, team);
        }
        let waiting: VecDeque<NodeId> = team.nodes.iter().copied().collect();
        self.next_links(now, team, waiting, Vec::new());
    }

    /// Has the next node measure its links to those after it.
    fn next_links(
        &mut self,
        now: Duration,
        mut team: Team,
        mut waiting: VecDeque<NodeId>,
        bad: Vec<BadLink>,
    ) {
        while let Some(current) = waiting.pop_front() {
            if !team.nodes.contains(&current) {
                continue;
            }
            let others = waiting.iter().copied().filter(|node| team.nodes.contains(node));
            let asked: BTreeSet<NodeId> = others.filter(|&other| !team.is_linked(current, other)).collect();
            if !asked.is_empty() {
                return self.ask_links(now, team, current, asked, waiting, bad);
            }
        }
        self.leave_out_unreachable(&mut team, bad);
        self.plan_and_load(now, team);
    }

    fn ask_links(
        &mut self,
        now: Duration,
        team: Team,
        current: NodeId,
        mut asked: BTreeSet<NodeId>,
        waiting: VecDeque<NodeId>,
        bad: Vec<BadLink>,
    ) {
        if team.job.twins {
            // What one pair takes, all pairs take.
            asked = asked.into_iter().take(1).collect();
        }
        let peers = self.peers(asked.iter().copied());
        if let Some(member) = self.members.get_mut(current) {
            member.links_due += 1;
        }
        self.send(current, Order::Links { peers });
        let until = now + LINKS_DEADLINE.max(LINK_DEADLINE * asked.len() as u32);
        self.work = Work::Linking { team, current, asked, waiting, bad, until };
    }

    pub(super) fn links_measured(
        &mut self,
        now: Duration,
        node: NodeId,
        links: Vec<LinkProfile>,
        failed: Vec<Failure>,
    ) {
        let due = self.members.get_mut(node).map(|member| {
            member.links_due = member.links_due.saturating_sub(1);
            member.links_due
        });
        let Work::Linking { team, current, asked, bad, .. } = &mut self.work else { return };
        if due != Some(0) || *current != node {
            return;
        }
        let mut reason = None;
        for Failure { message, blame } in failed {
            match blame.filter(|blamed| asked.remove(blamed)) {
                Some(blamed) => bad.push(BadLink { reporter: node, blamed, message }),
                // Nobody else's fault.
                None => reason = Some(message),
            }
        }
        let ours = |link: &LinkProfile| {
            (link.from == node && asked.contains(&link.to)) || (link.to == node && asked.contains(&link.from))
        };
        let mut links: Vec<LinkProfile> = links.into_iter().filter(ours).collect();
        for link in &links {
            match link.check() {
                Ok(()) => asked.retain(|&other| other != link.from && other != link.to),
                Err(error) => reason = Some(format!("the figures of its links are absurd: {error}")),
            }
        }
        if let Some(silent) = asked.first() {
            reason.get_or_insert(format!("it says nothing of its link to {}", silent.short()));
        }
        if team.job.twins {
            links = team.for_all_pairs(&links);
        }
        if let Some(reason) = reason {
            let name = self.members.name(node);
            return self.drop_from_team(now, node, name, &reason);
        }
        for link in &links {
            self.links.insert(link);
            team.linked.insert((link.from, link.to));
        }
        if !links.is_empty() {
            self.act(Action::LinksMeasured { node, links });
        }
        self.links_go_on(now);
    }

    pub(super) fn links_go_on(&mut self, now: Duration) {
        match std::mem::replace(&mut self.work, Work::Idle) {
            Work::Linking { team, waiting, bad, .. } => self.next_links(now, team, waiting, bad),
            other => self.work = other,
        }
    }

    /// Leaves out the fewest nodes, as far as that is seen at a glance: always the one with the most bad
    /// links; of equals the one blamed most, then the highest id.
    fn leave_out_unreachable(&mut self, team: &mut Team, mut bad: Vec<BadLink>) {
        loop {
            bad.retain(|link| team.nodes.contains(&link.reporter) && team.nodes.contains(&link.blamed));
            let blamed = |node: NodeId| bad.iter().filter(|link| link.blamed == node).count();
            let all = |node: NodeId| blamed(node) + bad.iter().filter(|link| link.reporter == node).count();
            let worst = team.nodes.iter().copied().max_by_key(|&node| (all(node), blamed(node), node));
            let Some(node) = worst.filter(|&node| all(node) > 0) else { return };
            let mut of = bad.iter().filter(|link| link.reporter == node || link.blamed == node);
            let Some(first) = of.next() else { return };
            let more = match of.count() {
                0 => String::new(),
                more => format!("; and so with {more} more"),
            };
            let name = self.members.name(node);
            let says = self.members.name(first.reporter);
            let reason =
                format!("{name} has no link to every other node: {} (says {says}){more}", first.message);
            team.nodes.remove(&node);
            self.left_out(node, name, reason);
        }
    }
}

impl Team {
    fn is_linked(&self, a: NodeId, b: NodeId) -> bool {
        // One direction's figures serve for both where nothing else is known.
        self.linked.contains(&(a, b)) || self.linked.contains(&(b, a))
    }

    /// The figures of one pair for every pair.
    fn for_all_pairs(&self, links: &[LinkProfile]) -> Vec<LinkProfile> {
        let Some(LinkProfile { figures, .. }) = links.first() else { return Vec::new() };
        let pairs = self.nodes.iter().flat_map(|&from| {
            let others = self.nodes.iter().copied().filter(move |&to| to != from);
            others.map(move |to| (from, to))
        });
        pairs.map(|(from, to)| LinkProfile { from, to, figures: figures.clone() }).collect()
    }
}
