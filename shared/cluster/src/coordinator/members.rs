//! Who is connected, and whether they are alive.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_core::NodeId;
use shoal_core::profile::{Emulation, NodeInfo};

use super::{DEAD_AFTER, HEARTBEAT};

/// A connected worker.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) info: NodeInfo,
    pub(super) addresses: Vec<String>,
    last_heard: Duration,
    next_ping: Duration,
    /// Profiles asked for and not answered; the answer to an earlier question is not that to the last.
    pub(super) profiles_due: u32,
    pub(super) links_due: u32,
}

/// Connected workers by id.
#[derive(Debug, Default)]
pub(super) struct Members {
    by_id: BTreeMap<NodeId, Member>,
}

impl Members {
    /// `false` if the node is connected already.
    pub(super) fn add(&mut self, now: Duration, info: NodeInfo, addresses: Vec<String>) -> bool {
        if self.by_id.contains_key(&info.node) {
            return false;
        }
        let next_ping = now + HEARTBEAT;
        let (node, last_heard) = (info.node, now);
        let member = Member { info, addresses, last_heard, next_ping, profiles_due: 0, links_due: 0 };
        self.by_id.insert(node, member);
        true
    }

    /// By how much the clocks of these workers are slowed, if they play other devices.
    pub(super) fn dilation(&self, nodes: &[NodeId]) -> f64 {
        let of = |node| self.by_id.get(node)?.info.emulation.as_ref().map(|emulation| emulation.dilation());
        nodes.iter().filter_map(of).fold(1.0, f64::max)
    }

    pub(super) fn remove(&mut self, node: NodeId) -> Option<Member> {
        self.by_id.remove(&node)
    }

    pub(super) fn get(&self, node: NodeId) -> Option<&Member> {
        self.by_id.get(&node)
    }

    pub(super) fn get_mut(&mut self, node: NodeId) -> Option<&mut Member> {
        self.by_id.get_mut(&node)
    }

    pub(super) fn contains(&self, node: NodeId) -> bool {
        self.by_id.contains_key(&node)
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.by_id.keys().copied()
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Name for people; the id where the node is not connected.
    pub(super) fn name(&self, node: NodeId) -> String {
        self.by_id.get(&node).map_or_else(|| node.short(), |member| member.info.name.clone())
    }

    /// What workers of one machine have in common, and others hardly ever: see [`super::Job::twins`].
    pub(super) fn kind(&self, node: NodeId) -> Option<(String, String, u32, Option<Emulation>)> {
        let NodeInfo { hardware, kernel_set, threads, emulation, .. } = &self.by_id.get(&node)?.info;
        Some((hardware.clone(), kernel_set.clone(), *threads, emulation.clone()))
    }

    pub(super) fn heard(&mut self, now: Duration, node: NodeId) {
        if let Some(member) = self.by_id.get_mut(&node) {
            member.last_heard = now;
        }
    }

    /// Of these, the one that has been silent for longest; of equals the lowest id.
    pub(super) fn most_silent(&self, nodes: impl Iterator<Item = NodeId>) -> Option<NodeId> {
        nodes.min_by_key(|node| (self.by_id.get(node).map(|member| member.last_heard), *node))
    }

    /// Workers of which nothing was heard for too long.
    pub(super) fn dead(&self, now: Duration) -> Vec<NodeId> {
        let dead = self.by_id.iter().filter(|(_, member)| now >= member.last_heard + DEAD_AFTER);
        dead.map(|(&node, _)| node).collect()
    }

    /// Workers whose ping is due; the next one is set.
    pub(super) fn due_pings(&mut self, now: Duration) -> Vec<NodeId> {
        let due = self.by_id.iter_mut().filter(|(_, member)| now >= member.next_ping);
        due.map(|(&node, member)| {
            member.next_ping = now + HEARTBEAT;
            node
        })
        .collect()
    }

    pub(super) fn next_timeout(&self) -> Option<Duration> {
        self.by_id.values().map(|member| member.next_ping.min(member.last_heard + DEAD_AFTER)).min()
    }
}
