//! Measuring the links of a team: one node at a time, and who is left out where two cannot reach each other.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use shoal_core::NodeId;
use shoal_core::message::{Failure, Order};
use shoal_core::profile::LinkProfile;

use super::machine::{Machine, Team, Work};
use super::{Action, LINKS_DEADLINE};

/// A pair of nodes whose link could not be measured.
#[derive(Debug, Clone)]
pub(super) struct BadLink {
    reporter: NodeId,
    blamed: NodeId,
    message: String,
}

impl Machine {
    /// Has the next node measure its links to those after it.
    pub(super) fn next_links(
        &mut self,
        now: Duration,
        mut team: Team,
        mut waiting: VecDeque<NodeId>,
        bad: Vec<BadLink>,
    ) {
        while let Some(current) = waiting.pop_front() {
            let asked: BTreeSet<NodeId> = waiting.iter().copied().collect();
            if team.nodes.contains(&current) && !asked.is_empty() {
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
        asked: BTreeSet<NodeId>,
        waiting: VecDeque<NodeId>,
        bad: Vec<BadLink>,
    ) {
        let peers = self.peers(asked.iter().copied());
        if let Some(member) = self.members.get_mut(current) {
            member.links_due += 1;
        }
        self.send(current, Order::Links { peers });
        self.work = Work::Linking { team, current, asked, waiting, bad, until: now + LINKS_DEADLINE };
    }

    pub(super) fn links_measured(
        &mut self,
        now: Duration,
        node: NodeId,
        result: Result<Vec<LinkProfile>, Failure>,
    ) {
        let due = self.members.get_mut(node).map(|member| {
            member.links_due = member.links_due.saturating_sub(1);
            member.links_due
        });
        let Work::Linking { current, asked, bad, .. } = &mut self.work else { return };
        if due != Some(0) || *current != node {
            return;
        }
        match result {
            Ok(mut links) => {
                links.retain(|link| link.from == node || link.to == node);
                links.retain(|link| self.links.insert(link));
                self.act(Action::LinksMeasured { node, links });
                self.links_go_on(now);
            }
            Err(Failure { message, blame: Some(blamed) }) if asked.remove(&blamed) => {
                // It stopped at this peer: its links to the others are still to be measured.
                bad.push(BadLink { reporter: node, blamed, message });
                self.links_again(now);
            }
            Err(failure) => {
                let name = self.members.name(node);
                self.drop_from_team(now, node, name, &failure.message);
            }
        }
    }

    /// The node that stopped at a peer goes on with the others.
    fn links_again(&mut self, now: Duration) {
        match std::mem::replace(&mut self.work, Work::Idle) {
            Work::Linking { team, current, mut asked, waiting, bad, .. } => {
                asked.retain(|node| team.nodes.contains(node));
                if asked.is_empty() {
                    self.next_links(now, team, waiting, bad);
                } else {
                    self.ask_links(now, team, current, asked, waiting, bad);
                }
            }
            other => self.work = other,
        }
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
