//! Who holds the output head: three rules, each of which fixes the tiles of every node.

use shoal_core::plan::Span;
use shoal_core::{NodeId, limits};

use super::Problem;
use super::step::Step;
use crate::cost::predict::{control, head_move};
use crate::planner::share::largest_remainder;

/// Which nodes hold the output head, and by what measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HeadMode {
    /// The last group, so that the slowest is as fast as can be.
    LastGroup,
    /// All devices, so that the slowest is as fast as can be, the way of the hidden rows to it included.
    AllBySpeed,
    /// All devices, in proportion to what each may use.
    AllByMemory,
}

impl HeadMode {
    /// Every mode, in the order in which equal plans are preferred.
    pub const ALL: [Self; 3] = [Self::LastGroup, Self::AllBySpeed, Self::AllByMemory];
}

/// The output head on particular devices.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Head {
    /// `(device, tiles)`, devices rising, none without tiles.
    pub(crate) tiles: Vec<(usize, u32)>,
}

impl Problem<'_> {
    /// Tiles of [`limits::VOCAB_TILE`] rows by node under this mode, for steps of `rows` rows and this last
    /// group: nodes rise, those without tiles are left out. `None` where the memory of these nodes, with
    /// nothing else on them, cannot hold the head.
    ///
    /// By speed, every tile goes where it is computed first, to the lower node of equals; a node that
    /// lies apart from the last group counts the way of the rows to it. The last tile counts as whole.
    pub fn head_tiles(&self, mode: HeadMode, last: &[NodeId], rows: u32) -> Option<Vec<(NodeId, u32)>> {
        let members: Vec<usize> =
            (0..self.devices.len()).filter(|&at| last.contains(&self.devices[at].node)).collect();
        let head = self.head(mode, &members, &self.step(rows))?;
        Some(head.tiles.iter().map(|&(device, tiles)| (self.devices[device].node, tiles)).collect())
    }

    /// The same by device.
    pub(crate) fn head(&self, mode: HeadMode, last: &[usize], step: &Step) -> Option<Head> {
        let all: Vec<usize> = (0..self.devices.len()).collect();
        let tiles = match mode {
            HeadMode::LastGroup => self.by_speed(last, step, |_| 0.0)?,
            HeadMode::AllBySpeed => self.by_speed(&all, step, |to| {
                all.iter()
                    .filter(|&&from| from != to)
                    .map(|&from| step.hop[from][to])
                    .fold(f64::MAX, f64::min)
            })?,
            HeadMode::AllByMemory => {
                let rooms: Vec<f64> = all.iter().map(|&at| self.devices[at].usable.0 as f64).collect();
                let tiles = largest_remainder(self.spec.vocab_tiles(), &rooms);
                all.iter().copied().zip(tiles).filter(|of| of.1 > 0).collect()
            }
        };
        let head = Head { tiles };
        let fits = |(device, bytes): (usize, u64)| bytes <= self.devices[device].usable.0;
        self.head_bytes(&head).into_iter().all(fits).then_some(head)
    }

    /// Every tile goes where it is done first.
    fn by_speed(&self, on: &[usize], step: &Step, reach: impl Fn(usize) -> f64) -> Option<Vec<(usize, u32)>> {
        let total = self.spec.vocab_tiles();
        let alone = on.len() == 1;
        let start: Vec<f64> =
            on.iter().map(|&at| self.rates[at].overhead + if alone { 0.0 } else { reach(at) }).collect();
        let most: Vec<u32> = on.iter().map(|&at| self.most_tiles(at)).collect();
        if most.iter().map(|&n| u64::from(n)).sum::<u64>() < u64::from(total) {
            return None;
        }
        // A time by which fewer than all are done surely, then one tile after another.
        let done = |at: usize, time: f64| {
            (((time - start[at]) / step.tile[on[at]]).floor().max(0.0) as u32).min(most[at])
        };
        let all_done = |time: f64| (0..on.len()).map(|at| u64::from(done(at, time))).sum::<u64>();
        let (mut low, mut high) = (0.0, 1e-6);
        while all_done(high) < u64::from(total) {
            high *= 2.0;
        }
        for _ in 0..40 {
            let middle = f64::midpoint(low, high);
            if all_done(middle) < u64::from(total) { low = middle } else { high = middle }
        }
        let mut tiles: Vec<u32> = (0..on.len()).map(|at| done(at, low)).collect();
        let mut left = total - tiles.iter().sum::<u32>();
        while left > 0 {
            let next = |at: &usize| start[*at] + f64::from(tiles[*at] + 1) * step.tile[on[*at]];
            let open = (0..on.len()).filter(|&at| tiles[at] < most[at]);
            let first = open.min_by(|a, b| next(a).total_cmp(&next(b)))?;
            tiles[first] += 1;
            left -= 1;
        }
        Some(on.iter().copied().zip(tiles).filter(|of| of.1 > 0).collect())
    }

    /// Tiles that fit the device with nothing else on it.
    fn most_tiles(&self, device: usize) -> u32 {
        let fits = |tiles: u32| {
            let rows = tiles * limits::VOCAB_TILE;
            self.weights.head_bytes(self.spec, self.kv, rows) <= self.devices[device].usable.0
        };
        let (mut low, mut high) = (0, self.spec.vocab_tiles() + 1);
        while high - low > 1 {
            let middle = u32::midpoint(low, high);
            if fits(middle) { low = middle } else { high = middle }
        }
        low
    }

    /// Rows of each node of the head, in the order of its tiles.
    fn head_rows<'h>(&self, head: &'h Head) -> impl Iterator<Item = (usize, Span)> + use<'h> {
        let vocab = self.spec.vocab;
        let mut tile = 0;
        head.tiles.iter().map(move |&(device, tiles)| {
            let first = tile * limits::VOCAB_TILE;
            tile += tiles;
            (device, Span::new(first, (tile * limits::VOCAB_TILE).min(vocab)))
        })
    }

    /// Bytes of the head by device.
    pub(crate) fn head_bytes(&self, head: &Head) -> Vec<(usize, u64)> {
        let bytes = |rows: Span| self.weights.head_bytes(self.spec, self.kv, rows.len());
        self.head_rows(head).map(|(device, rows)| (device, bytes(rows))).collect()
    }

    /// Seconds that each node of the head computes.
    pub(crate) fn head_busy(&self, head: &Head, step: &Step) -> Vec<(usize, f64)> {
        let b = f64::from(step.rows);
        let busy = |(device, rows)| (device, self.model.head(&self.rates[device], rows, b));
        self.head_rows(head).map(busy).collect()
    }

    /// Seconds that orders to a first group of so many ranks take beyond those to one rank.
    pub(crate) fn orders(&self, ranks: usize) -> f64 {
        control(&self.cluster.links, ranks, 1) - control(&self.cluster.links, 1, 1)
    }

    /// Seconds from the last group's hidden rows to the answers at the coordinator, and the coordinator's way
    /// to the first rank.
    pub(crate) fn head_time(&self, head: &Head, last: &[usize], step: &Step) -> f64 {
        let elsewhere = |device: &usize| !last.contains(device);
        let remote = head.tiles.iter().filter(|of| elsewhere(&of.0)).count();
        let leader = self.devices[last[0]].node;
        let time = |(device, busy): (usize, f64)| {
            let link = self.cluster.links.get(leader, self.devices[device].node);
            let apart = elsewhere(&device);
            busy + if apart { head_move(link, remote, last.len(), step.hop_bytes) } else { 0.0 }
        };
        let slowest = self.head_busy(head, step).into_iter().map(time).fold(0.0, f64::max);
        slowest + control(&self.cluster.links, 1, head.tiles.len())
    }
}
