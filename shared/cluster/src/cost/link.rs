//! What a message takes from node to node, and what an all-reduce of a group takes.

use std::collections::BTreeMap;

use serde::Serialize;
use shoal_core::NodeId;
use shoal_core::plan::AllReduce;
use shoal_core::profile::{LinkFigures, LinkProfile};

/// Payloads at which a link's times are kept: a token's bookkeeping, a decode row, a frame.
const SIZES: [f64; 3] = [64.0, 4096.0, 65536.0];

/// One direction between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Link {
    /// Seconds from one end to the other for payloads of [`SIZES`], never falling.
    times: [f64; 3],
    /// Bytes per second.
    pub bandwidth: f64,
    /// Processor time of a small message on each end, seconds.
    pub cpu: f64,
    /// Whether all transmissions share one medium.
    pub shared: bool,
}

impl Link {
    /// A wired gigabit network between small boards, with the cost of the transport on both ends:
    /// taken where nothing was measured.
    pub const GIGABIT: Self = Self::new(150e-6, 110e6);
    /// Two processes on one machine.
    pub const LOOPBACK: Self = Self::new(30e-6, 1e9);

    /// A link on which every message takes `latency` seconds and its bytes at `bandwidth`; a fifth of the
    /// latency is processor time of each end.
    pub const fn new(latency: f64, bandwidth: f64) -> Self {
        let times =
            [latency + SIZES[0] / bandwidth, latency + SIZES[1] / bandwidth, latency + SIZES[2] / bandwidth];
        Self { times, bandwidth, cpu: latency / 5.0, shared: false }
    }

    /// A link with these measured figures, which must have passed [`LinkFigures::check`].
    pub fn of(figures: &LinkFigures) -> Self {
        let bandwidth = figures.bandwidth.median.0;
        let trips: Vec<(f64, f64)> =
            figures.round_trips.iter().map(|t| (f64::from(t.bytes), t.time.median.0 / 2.0)).collect();
        let mut times = SIZES.map(|size| interpolate(&trips, size, bandwidth));
        for at in 1..times.len() {
            times[at] = times[at].max(times[at - 1]);
        }
        Self { times, bandwidth, cpu: figures.message_cpu.median.0, shared: figures.shared }
    }

    /// Seconds from one end to the other for the smallest message.
    pub const fn latency(&self) -> f64 {
        self.times[0]
    }

    /// Seconds until a message of `bytes` has arrived, when nothing else is sent.
    pub fn time(&self, bytes: f64) -> f64 {
        let points: [(f64, f64); 3] = std::array::from_fn(|at| (SIZES[at], self.times[at]));
        interpolate(&points, bytes, self.bandwidth)
    }

    /// Seconds for which a message of `bytes` keeps either end from sending or taking the next.
    pub fn occupied(&self, bytes: f64) -> f64 {
        self.cpu + bytes / self.bandwidth
    }

    /// Seconds of [`Link::time`] in which both ends are free.
    pub fn wait(&self, bytes: f64) -> f64 {
        (self.time(bytes) - self.occupied(bytes)).max(0.0)
    }
}

/// Between two points evenly, before the first as the first, beyond the last at `bandwidth`.
fn interpolate(points: &[(f64, f64)], bytes: f64, bandwidth: f64) -> f64 {
    let Some(&(last, last_time)) = points.last() else { return bytes / bandwidth };
    if bytes >= last {
        return last_time + (bytes - last) / bandwidth;
    }
    let above = points.partition_point(|point| point.0 <= bytes);
    let Some(&(low, low_time)) = above.checked_sub(1).and_then(|at| points.get(at)) else {
        return points[0].1;
    };
    let (high, high_time) = points[above];
    low_time + (high_time - low_time) * (bytes - low) / (high - low)
}

/// Links by ordered pair, with a figure for those not measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Links {
    pub(crate) default: Link,
    known: BTreeMap<(NodeId, NodeId), Link>,
}

impl Links {
    /// Nothing measured: every link is `default`.
    pub const fn new(default: Link) -> Self {
        Self { default, known: BTreeMap::new() }
    }

    /// Takes a measured link, in place of an earlier figure. A profile out of bounds is not taken, and
    /// `false` is returned.
    pub fn insert(&mut self, profile: &LinkProfile) -> bool {
        let sound = profile.check().is_ok();
        if sound {
            self.set(profile.from, profile.to, Link::of(&profile.figures));
        }
        sound
    }

    /// Takes a link's figures as they are.
    pub fn set(&mut self, from: NodeId, to: NodeId, link: Link) {
        self.known.insert((from, to), link);
    }

    /// The link's figures: its own, else those of the other direction, else the default.
    pub fn get(&self, from: NodeId, to: NodeId) -> Link {
        let found = self.known.get(&(from, to)).or_else(|| self.known.get(&(to, from)));
        found.copied().unwrap_or(self.default)
    }

    /// A link at least as good in each figure as any between two of these nodes.
    pub(crate) fn best(&self, nodes: &[NodeId]) -> Link {
        let mut nodes = nodes.to_vec();
        nodes.sort_unstable();
        let among = |node: &NodeId| nodes.binary_search(node).is_ok();
        let known = self.known.iter().filter(|((from, to), _)| from < to && among(from) && among(to));
        let back = self.known.iter().filter(|((from, to), _)| from > to && among(from) && among(to));
        let all = nodes.len() * nodes.len().saturating_sub(1) / 2;
        // A pair without a figure of its own has the default's.
        let covered = known.clone().count() == all || back.clone().count() == all;
        let start = (!covered).then_some(&self.default);
        let found = start.into_iter().chain(known.chain(back).map(|(_, link)| link)).copied();
        let best = found.reduce(|a, b| Link {
            times: std::array::from_fn(|at| a.times[at].min(b.times[at])),
            bandwidth: a.bandwidth.max(b.bandwidth),
            cpu: a.cpu.min(b.cpu),
            shared: a.shared && b.shared,
        });
        best.unwrap_or(self.default)
    }
}

/// Time of an all-reduce of `bytes` among `nodes`, and the bytes it sends in all. Sends of one node go one
/// after another, and so do its receipts; different nodes send at once, save on a shared medium.
pub(crate) fn all_reduce(how: AllReduce, nodes: &[NodeId], links: &Links, bytes: f64) -> (f64, f64) {
    let n = nodes.len() as f64;
    if nodes.len() < 2 {
        return (0.0, 0.0);
    }
    let all = |to: NodeId| move |&from: &NodeId| from != to;
    match how {
        AllReduce::Direct => {
            let pairs = nodes.iter().flat_map(|&to| {
                let from = nodes.iter().copied().filter(move |from| all(to)(from));
                from.map(move |from| (from, to))
            });
            (exchange(pairs, links, bytes), n * (n - 1.0) * bytes)
        }
        AllReduce::ReduceScatter => {
            let pairs = nodes.iter().flat_map(|&to| {
                let from = nodes.iter().copied().filter(move |from| all(to)(from));
                from.map(move |from| (from, to))
            });
            (2.0 * exchange(pairs, links, bytes / n), 2.0 * (n - 1.0) * bytes)
        }
        AllReduce::Star => {
            let root = nodes[0];
            let there = nodes[1..].iter().map(|&other| (other, root));
            let back = nodes[1..].iter().map(|&other| (root, other));
            (exchange(there, links, bytes) + exchange(back, links, bytes), 2.0 * (n - 1.0) * bytes)
        }
    }
}

/// The all-reduce that is cheapest for this size among these nodes, the earlier of equal ones, and its time.
pub(crate) fn cheapest(nodes: &[NodeId], links: &Links, bytes: f64) -> (AllReduce, f64) {
    let mut best = (AllReduce::Direct, all_reduce(AllReduce::Direct, nodes, links, bytes).0);
    for how in [AllReduce::ReduceScatter, AllReduce::Star] {
        let time = all_reduce(how, nodes, links, bytes).0;
        if time < best.1 {
            best = (how, time);
        }
    }
    best
}

/// Time until each of these messages of `bytes`, all ready at once, has arrived.
fn exchange(pairs: impl Iterator<Item = (NodeId, NodeId)>, links: &Links, bytes: f64) -> f64 {
    // For each node: sending, receiving, and the longest wait of what it sends.
    let mut busy: BTreeMap<NodeId, (f64, f64, f64)> = BTreeMap::new();
    let (mut air, mut air_wait) = (0.0, 0.0_f64);
    for (from, to) in pairs {
        let link = links.get(from, to);
        let (occupied, wait) = (link.occupied(bytes), link.wait(bytes));
        let sender = busy.entry(from).or_default();
        sender.0 += occupied;
        sender.2 = sender.2.max(wait);
        let receiver = busy.entry(to).or_default();
        receiver.1 += occupied;
        receiver.2 = receiver.2.max(wait);
        if link.shared {
            air += bytes / link.bandwidth;
            air_wait = air_wait.max(link.time(bytes) - bytes / link.bandwidth);
        }
    }
    let nodes = busy.values().map(|&(out, into, wait)| f64::max(out, into) + wait);
    nodes.fold(air + air_wait, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u8) -> NodeId {
        NodeId([id; 16])
    }

    #[test]
    fn times_lie_between_the_measured_ones() {
        let link = Link::new(100e-6, 100e6);
        assert!((link.time(64.0) - 100.64e-6).abs() < 1e-12);
        assert!((link.time(10e6) - 100.1e-3).abs() < 1e-9);
        assert_eq!(link.time(1.0), link.latency());
        assert!(link.time(30_000.0) > link.time(20_000.0));
    }

    #[test]
    fn an_exchange_of_two_is_one_message_time() {
        let links = Links::new(Link::new(100e-6, 100e6));
        let (time, sent) = all_reduce(AllReduce::Direct, &[node(1), node(2)], &links, 8192.0);
        assert!((time - links.default.time(8192.0)).abs() < 1e-12);
        assert_eq!(sent, 16384.0);
    }

    #[test]
    fn large_sums_are_scattered_and_small_ones_are_not() {
        let links = Links::new(Link::new(100e-6, 100e6));
        let nodes: Vec<NodeId> = (0..6).map(node).collect();
        assert_eq!(cheapest(&nodes, &links, 64.0).0, AllReduce::Direct);
        assert_eq!(cheapest(&nodes, &links, 4e6).0, AllReduce::ReduceScatter);
    }

    #[test]
    fn a_shared_medium_carries_one_message_at_a_time() {
        let wired = Links::new(Link::new(1e-3, 30e6));
        let air = Links::new(Link { shared: true, ..Link::new(1e-3, 30e6) });
        let nodes: Vec<NodeId> = (0..4).map(node).collect();
        let time = |links| all_reduce(AllReduce::Direct, &nodes, links, 64e3).0;
        assert!(time(&air) > 3.0 * time(&wired), "{} {}", time(&air), time(&wired));
    }
}
