//! What short memory adds to a group's time: no member does more bytes in a time than its pace allows.

use super::groups::{Groups, Set, members};
use super::reach::Mode;
use crate::planner::problem::{Problem, Step};

/// A bound on rounding when sums taken in different orders are compared.
pub(super) const ROUNDING: f64 = 1e-12;

/// Bytes per second of a device's phases, at most.
///
/// A rank is credited with the bytes of its heads and blocks as a part of all heads and blocks. It holds no less,
/// and the credits of all ranks add up to the layer, whatever ranks hold twice.
#[derive(Debug)]
pub(super) struct Pace {
    attention: Vec<f64>,
    feed_forward: Vec<f64>,
    /// `[layers]`: bytes of the first so many layers.
    weight: Vec<u64>,
}

impl Pace {
    pub(super) fn new(problem: &Problem<'_>, step: &Step) -> Self {
        let weights = &problem.weights;
        let n = problem.devices.len();
        let (mut attention, mut feed_forward) = (vec![0.0_f64; n], vec![0.0_f64; n]);
        let credit: Vec<(u64, u64)> = (0..weights.classes.len()).map(|class| weights.credit(class)).collect();
        for (class, credit) in weights.classes.iter().zip(&credit) {
            for device in 0..n {
                for (range, &time) in step.attention[class.attention][device].iter().enumerate() {
                    if time > 0.0 {
                        let part = (range % (weights.heads + 1)) as f64 / weights.heads as f64;
                        attention[device] = attention[device].max(part * credit.0 as f64 / time);
                    }
                }
                for last in [false, true] {
                    let times = &step.feed_forward[class.feed_forward][device][usize::from(last)];
                    for (blocks, &time) in times.iter().enumerate().skip(1) {
                        let part = weights.part(blocks, last);
                        feed_forward[device] = feed_forward[device].max(part * credit.1 as f64 / time);
                    }
                }
            }
        }
        let mut weight = vec![0];
        for &class in &weights.class_of {
            weight.push(weight[weight.len() - 1] + credit[class].0 + credit[class].1);
        }
        Self { attention, feed_forward, weight }
    }

    /// Bytes of all layers, at least.
    pub(super) fn total(&self) -> u64 {
        self.weight[self.weight.len() - 1]
    }

    /// Bytes of these layers over all ranks, at least.
    pub(super) fn bytes(&self, first: usize, end: usize) -> u64 {
        self.weight[end] - self.weight[first]
    }

    /// What time beyond `attention` and `feed_forward` the group takes at least, since no member does in a time
    /// more than its pace allows, nor in all more than it has room for. Infinite where the bytes do not fit.
    pub(super) fn beyond(&self, of: &[usize], rooms: &[f64], parts: (f64, f64), bytes: f64) -> f64 {
        let start = |at: usize| self.attention[of[at]] * parts.0 + self.feed_forward[of[at]] * parts.1;
        let mut done: f64 = (0..of.len()).map(|at| start(at).min(rooms[at])).sum();
        // A little less than all, for rounding.
        let bytes = bytes * (1.0 - 1e-9);
        if done >= bytes {
            return 0.0;
        }
        // When each member's room is full, and how fast it fills until then.
        let mut fills: Vec<(f64, f64)> = (0..of.len())
            .filter(|&at| start(at) < rooms[at])
            .map(|at| {
                let pace = self.attention[of[at]].max(self.feed_forward[of[at]]);
                ((rooms[at] - start(at)) / pace, pace)
            })
            .collect();
        fills.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut pace: f64 = fills.iter().map(|fill| fill.1).sum();
        let mut time = 0.0;
        for (full, own) in fills {
            let more = pace * (full - time);
            if done + more >= bytes {
                return time + (bytes - done) / pace;
            }
            done += more;
            time = full;
            pace -= own;
        }
        f64::INFINITY
    }
}

/// What a group that begins the plan may hold, and how it is counted.
#[derive(Debug)]
pub(super) enum Room {
    /// All bytes of one device that runs `[end]` layers from the first, and what it has for them.
    Alone(Vec<u64>, u64),
    /// Bytes of layers over all members.
    Shared(u64),
}

impl Pace {
    /// What the group has for layers from the first on; `None` where a member has less than nothing.
    pub(super) fn room(
        &self,
        problem: &Problem<'_>,
        mode: &Mode,
        set: Set,
        buffer_rows: u32,
    ) -> Option<Room> {
        let rooms = mode.rooms(problem, set, true, false)?;
        if rooms.len() == 1 {
            let bytes = |end| alone_bytes(problem, &problem.weights.counts(0, end), buffer_rows);
            return Some(Room::Alone((0..self.weight.len()).map(bytes).collect(), rooms[0]));
        }
        let buffers = problem.rank_buffers((0, 0), 0, false, rooms.len(), buffer_rows);
        let rooms = rooms.into_iter().map(|room| room.checked_sub(buffers));
        Some(Room::Shared(rooms.sum::<Option<u64>>()?))
    }

    /// The last end up to `most` that may fit; 0 where there is none.
    pub(super) fn most(&self, room: &Room, most: usize) -> usize {
        let fits = |end: &usize| match room {
            Room::Alone(bytes, room) => bytes[*end] <= *room,
            Room::Shared(room) => self.bytes(0, *end) <= *room,
        };
        (1..=most).rev().find(fits).unwrap_or(0)
    }

    /// These layers on one group, at least; infinite where they cannot fit.
    pub(super) fn floor(
        &self,
        problem: &Problem<'_>,
        groups: &Groups,
        mode: &Mode,
        (set, first, end): (Set, usize, usize),
        buffer_rows: u32,
    ) -> f64 {
        let layers = groups.layers;
        let Some(rooms) = mode.rooms(problem, set, first == 0, end == layers) else { return f64::INFINITY };
        let time = groups.least(set, first, end);
        if rooms.len() == 1 {
            let bytes = alone_bytes(problem, &problem.weights.counts(first, end), buffer_rows);
            return if bytes <= rooms[0] { time } else { f64::INFINITY };
        }
        let buffers = problem.rank_buffers((0, 0), 0, false, rooms.len(), buffer_rows);
        let rooms: Option<Vec<f64>> =
            rooms.into_iter().map(|room| Some(room.checked_sub(buffers)? as f64)).collect();
        rooms.map_or(f64::INFINITY, |rooms| {
            let bytes = self.bytes(first, end) as f64;
            time + self.beyond(&members(set), &rooms, groups.parts(set, first, end), bytes)
        })
    }
}

/// Bytes of one device that runs all of these layers.
pub(super) fn alone_bytes(problem: &Problem<'_>, counts: &[u32], buffer_rows: u32) -> u64 {
    let weights = &problem.weights;
    weights.attention_bytes(counts, weights.at(0, weights.heads))
        + weights.rope
        + weights.feed_forward_bytes(counts, weights.blocks, true)
        + problem.rank_buffers((0, weights.heads as u32), weights.blocks, true, 1, buffer_rows)
}
