//! Messages between nodes: a queue of what leaves and a queue of what comes in at each, and one medium
//! that all shared links have in common.

use shoal_core::NodeId;

use super::jitter::Jitter;
use crate::cost::{Link, Links};

/// One direction between two places, as it was used.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Used {
    pub(super) bytes: f64,
    /// Seconds either end was held up by it.
    pub(super) occupied: f64,
}

/// A message on its way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Flight {
    /// When the first of it reaches the receiver's queue.
    pub(super) reaches: f64,
    /// For how long it keeps the receiver.
    pub(super) occupied: f64,
}

/// Places are the plan's nodes by index, and the coordinator after the last.
#[derive(Debug)]
pub(super) struct Network<'a> {
    nodes: &'a [NodeId],
    links: &'a Links,
    known: Vec<Option<Link>>,
    used: Vec<Used>,
    sending_until: Vec<f64>,
    receiving_until: Vec<f64>,
    medium_until: f64,
    /// Seconds the shared medium was taken.
    pub(super) medium_used: f64,
}

impl<'a> Network<'a> {
    pub(super) fn new(nodes: &'a [NodeId], links: &'a Links) -> Self {
        let places = nodes.len() + 1;
        Self {
            nodes,
            links,
            known: vec![None; places * places],
            used: vec![Used::default(); places * places],
            sending_until: vec![0.0; places],
            receiving_until: vec![0.0; places],
            medium_until: 0.0,
            medium_used: 0.0,
        }
    }

    /// The coordinator's place.
    pub(super) fn coordinator(&self) -> usize {
        self.nodes.len()
    }

    fn link(&mut self, from: usize, to: usize) -> Link {
        let at = from * (self.nodes.len() + 1) + to;
        *self.known[at].get_or_insert_with(|| match (self.nodes.get(from), self.nodes.get(to)) {
            (Some(&from), Some(&to)) => self.links.get(from, to),
            _ => self.links.default,
        })
    }

    /// When a message that is ready at `now` begins to leave, on a shared link; elsewhere it is sent at once.
    pub(super) fn shared_start(&mut self, now: f64, from: usize, to: usize, bytes: f64) -> Option<f64> {
        let link = self.link(from, to);
        link.shared.then(|| self.take_sender(now, from, link.occupied(bytes)))
    }

    /// Sends over a link of its own: after what is leaving already.
    pub(super) fn send(
        &mut self,
        now: f64,
        from: usize,
        to: usize,
        bytes: f64,
        jitter: &mut Jitter,
    ) -> Flight {
        let link = self.link(from, to);
        let occupied = link.occupied(bytes);
        let start = self.take_sender(now, from, occupied);
        self.note(from, to, bytes, occupied);
        Flight { reaches: start + link.wait(bytes) * jitter.factor(), occupied }
    }

    /// Sends over the shared medium what began to leave `now` ([`Network::shared_start`]): as soon as nobody
    /// else transmits.
    pub(super) fn send_shared(
        &mut self,
        now: f64,
        from: usize,
        to: usize,
        bytes: f64,
        jitter: &mut Jitter,
    ) -> Flight {
        let link = self.link(from, to);
        let occupied = link.occupied(bytes);
        let air = bytes / link.bandwidth;
        let start = now.max(self.medium_until);
        self.medium_until = start + air;
        self.medium_used += air;
        self.note(from, to, bytes, occupied);
        Flight { reaches: start + link.wait(bytes) * jitter.factor(), occupied }
    }

    /// When a message that reaches `to` now is taken over there.
    pub(super) fn receive(&mut self, now: f64, to: usize, occupied: f64) -> f64 {
        let end = now.max(self.receiving_until[to]) + occupied;
        self.receiving_until[to] = end;
        end
    }

    /// Every pair that was used, by places.
    pub(super) fn used(&self) -> impl Iterator<Item = (usize, usize, Used)> + '_ {
        let places = self.nodes.len() + 1;
        let all = self.used.iter().enumerate().filter(|(_, used)| used.bytes > 0.0);
        all.map(move |(at, used)| (at / places, at % places, *used))
    }

    fn take_sender(&mut self, now: f64, from: usize, occupied: f64) -> f64 {
        let start = now.max(self.sending_until[from]);
        self.sending_until[from] = start + occupied;
        start
    }

    fn note(&mut self, from: usize, to: usize, bytes: f64, occupied: f64) {
        let used = &mut self.used[from * (self.nodes.len() + 1) + to];
        used.bytes += bytes;
        used.occupied += occupied;
    }
}
