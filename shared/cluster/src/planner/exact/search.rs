//! Best-first search for the stages of a plan, with bounds from [`super::table`].

use std::collections::{BTreeMap, BinaryHeap};

use super::groups::{Set, leader};
use super::pace::ROUNDING;
use super::reach::Reach;
use super::rules::Ends;
use super::stages::Stages;
use super::table::Table;
use crate::planner::shares::{Exhausted, Work};

/// A plan's stages.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    /// Seconds of one round of all streams.
    pub(super) cost: f64,
    /// Index of the mode of the head.
    pub(super) mode: usize,
    pub(super) rows: u32,
    /// Groups with their first layer and their end.
    pub(super) stages: Vec<(Set, usize, usize)>,
}

/// Bounds under a limit on how long a node may be busy, for one mode.
pub(super) struct Plane {
    mode: usize,
    reach: Reach,
    table: Table,
}

/// A search for plans with one number of rows in a step.
pub(super) struct Search<'s, 'a> {
    pub(super) stages: &'s mut Stages<'a>,
    /// Number of stages, if it is fixed.
    pub(super) count: Option<usize>,
    /// Steps that serve all streams once.
    pub(super) steps: f64,
    pub(super) work: &'s mut Work,
    pub(super) best: &'s mut Option<Found>,
    /// No plan that was given up costs less.
    pub(super) proven: f64,
    nodes: Vec<Node>,
}

/// A part of a plan: layers from the first on.
#[derive(Debug, Clone, Copy)]
struct Node {
    parent: u32,
    plane: u8,
    set: Set,
    used: Set,
    end: u8,
    stages: u8,
    /// Whether a group of two or more is needed no more.
    big: bool,
    /// Seconds up to the end of its last stage.
    time: f64,
    /// The longest that a node is busy.
    busy: f64,
    /// By how much either may be less with shares that were not found.
    slack: f64,
}

/// Times of nodes that were followed, by mode, devices used, layers, stages and last leader.
type Settled = BTreeMap<(u8, Set, u8, u8, u8), Vec<(f64, f64)>>;

/// A stage that may follow a node; or, with no stage, the node itself, its stages priced exactly.
#[derive(Debug, Clone, Copy)]
struct Entry {
    bound: f64,
    order: u32,
    node: u32,
    set: Set,
    end: u8,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The greatest is the one to look at first: the lowest bound, the latest of equals.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.bound.total_cmp(&self.bound).then(self.order.cmp(&other.order))
    }
}

/// Layers of pairs of sets, and ranges of layers of groups, that are looked at in a unit of work.
const PAIRS: u64 = 256;
const RANGES: u64 = 8;

/// Exact prices that a dive for a first plan may ask for.
const DIVE: usize = 64;

/// Stages tried at each depth of a dive.
const DIVE_WIDTH: usize = 4;

impl<'s, 'a> Search<'s, 'a> {
    pub(super) fn new(
        stages: &'s mut Stages<'a>,
        count: Option<usize>,
        steps: f64,
        work: &'s mut Work,
        best: &'s mut Option<Found>,
    ) -> Self {
        Self { stages, count, steps, work, best, proven: f64::INFINITY, nodes: Vec::new() }
    }

    /// Bounds for plans of this mode that cost less than `cost`.
    ///
    /// # Errors
    /// The work allowed has been done.
    pub(super) fn plane(&mut self, mode: usize, cost: f64) -> Result<Plane, Exhausted> {
        let stages = &*self.stages;
        let Some(of) = stages.mode(mode) else { return Err(Exhausted) };
        let reach = Reach::new(
            stages.problem,
            stages.rules,
            &stages.groups,
            &stages.pace,
            of,
            stages.buffer_rows,
            (cost / self.steps, self.count),
        );
        let table = Table::new(stages.rules, &stages.groups, &stages.step, of, &reach, self.count);
        let layers = stages.groups.layers as u64;
        self.work.spend(table.pairs / PAIRS + stages.groups.sets.len() as u64 * layers / RANGES)?;
        Ok(Plane { mode, reach, table })
    }

    /// The cost to beat.
    fn limit(&self) -> f64 {
        self.best.as_ref().map_or(f64::INFINITY, |best| best.cost * (1.0 - ROUNDING))
    }

    /// The nodes to start from: nothing placed, for the mode of each plane.
    fn roots(&mut self, planes: &[Plane]) -> Vec<u32> {
        self.nodes.clear();
        let big = self.stages.rules.whole();
        for (plane, of) in planes.iter().enumerate() {
            let Some(mode) = self.stages.mode(of.mode) else { continue };
            let busy = mode.busy.iter().copied().fold(0.0, f64::max);
            self.nodes.push(Node {
                parent: u32::MAX,
                plane: plane as u8,
                set: 0,
                used: 0,
                end: 0,
                stages: 0,
                big,
                time: 0.0,
                busy,
                slack: 0.0,
            });
        }
        (0..self.nodes.len() as u32).collect()
    }

    /// The least that any plan costs, as far as bounds tell.
    pub(super) fn bound(&mut self, planes: &[Plane]) -> f64 {
        let mut least = f64::INFINITY;
        for root in self.roots(planes) {
            self.follow(planes, root, f64::INFINITY, |entry| least = least.min(entry.bound));
        }
        least
    }

    /// Looks for some good plan: the most promising stage, and so on.
    pub(super) fn dive(&mut self, planes: &[Plane]) -> Result<(), Exhausted> {
        for root in self.roots(planes) {
            let mut left = DIVE;
            self.dive_from(planes, root, &mut left)?;
        }
        Ok(())
    }

    fn dive_from(&mut self, planes: &[Plane], node: u32, left: &mut usize) -> Result<bool, Exhausted> {
        let mut entries = Vec::new();
        let limit = self.limit();
        self.follow(planes, node, limit, |entry| entries.push(entry));
        entries.sort_by(|a, b| b.cmp(a));
        let mut tried = 0;
        for entry in entries {
            if *left == 0 || tried == DIVE_WIDTH {
                break;
            }
            *left -= 1;
            match self.price(planes, entry)? {
                Priced::Plan => return Ok(true),
                Priced::Node(next) => {
                    tried += 1;
                    if self.dive_from(planes, next, left)? {
                        return Ok(true);
                    }
                }
                Priced::None => {}
            }
        }
        Ok(false)
    }

    /// Searches until nothing can be left that is better than the best by more than `tolerance` of it. What is
    /// given up is in [`Self::proven`].
    ///
    /// # Errors
    /// The work ended before; what was left counts as given up.
    pub(super) fn run(&mut self, planes: &[Plane], tolerance: f64) -> Result<(), Exhausted> {
        self.proven = f64::INFINITY;
        let mut heap: BinaryHeap<Entry> = BinaryHeap::new();
        let mut settled: Settled = BTreeMap::new();
        let mut order = 0;
        let limit = self.limit();
        for root in self.roots(planes) {
            self.follow(planes, root, limit, |entry| {
                order += 1;
                heap.push(Entry { order, ..entry });
            });
        }
        while let Some(entry) = heap.pop() {
            if entry.bound >= self.limit() * (1.0 - tolerance) {
                self.give_up(entry.bound);
                return Ok(());
            }
            let step = self.work.spend(1).and_then(|()| {
                if entry.set != 0 {
                    if let Priced::Node(next) = self.price(planes, entry)? {
                        order += 1;
                        heap.push(Entry { order, ..self.whole(planes, next) });
                    }
                    return Ok(());
                }
                let node = self.nodes[entry.node as usize];
                // Where their number is free, it tells plans apart no further.
                let stages = if self.count.is_some() { node.stages } else { 0 };
                let key = (
                    node.plane,
                    node.used,
                    node.end,
                    stages << 1 | u8::from(node.big),
                    leader(node.set) as u8,
                );
                let known = settled.entry(key).or_default();
                if known.iter().any(|&(time, busy)| time <= node.time && busy <= node.busy) {
                    if node.slack > 0.0 {
                        self.give_up(entry.bound);
                    }
                    return Ok(());
                }
                known.push((node.time, node.busy));
                let limit = self.limit();
                let mut pushed = 0;
                self.follow(planes, entry.node, limit, |entry| {
                    order += 1;
                    pushed += 1;
                    heap.push(Entry { order, ..entry });
                });
                self.work.spend(1 + pushed / 4)
            });
            if step.is_err() {
                self.give_up(entry.bound);
                return step;
            }
        }
        Ok(())
    }

    /// A plan that may cost as little as this is not looked for any more.
    fn give_up(&mut self, bound: f64) {
        self.proven = self.proven.min(bound);
    }

    /// The entry of a node whose stages are priced.
    fn whole(&self, planes: &[Plane], at: u32) -> Entry {
        let node = self.nodes[at as usize];
        let left = self.count.map_or(1, |count| count - usize::from(node.stages));
        let rest = planes[usize::from(node.plane)].table.rest(node.big, left, node.used, node.end.into());
        let bound = f64::max(node.time + rest, self.steps * node.busy) - self.steps.max(1.0) * node.slack;
        Entry { bound, order: 0, node: at, set: 0, end: 0 }
    }

    /// Every stage that may follow and lead to a plan that costs less than `below`.
    fn follow(&self, planes: &[Plane], at: u32, below: f64, mut each: impl FnMut(Entry)) {
        let node = self.nodes[at as usize];
        let Stages { problem, rules, step, groups, pace, buffer_rows, .. } = &*self.stages;
        let plane = &planes[usize::from(node.plane)];
        let Some(mode) = self.stages.mode(plane.mode) else { return };
        let (first, layers) = (usize::from(node.end), groups.layers);
        let left = self.count.map(|count| count - usize::from(node.stages));
        let from = leader(node.set);
        for &set in &groups.sets {
            let used = node.used | set;
            if node.used & set != 0 || !mode.canonical(used) {
                continue;
            }
            let ends = rules.ends(set, first);
            let (least, most) = match ends {
                Ends::None => continue,
                Ends::One(end) => (end, end),
                Ends::UpTo(end) => (first + 1, end),
            };
            let start = if first == 0 {
                problem.orders(set.count_ones() as usize)
            } else {
                step.hop[from][leader(set)]
            };
            let start = node.time - node.slack + start;
            let big = node.big || set & (set - 1) != 0;
            let busy = mode.busy(set);
            let room = if first == 0 { pace.room(problem, mode, set, *buffer_rows) } else { None };
            let mut entry = |bound: f64, compute: f64, end: usize| {
                let bound = bound.max(self.steps * (node.busy - node.slack).max(compute));
                if bound < below {
                    each(Entry { bound, order: 0, node: at, set, end: end as u8 });
                }
            };
            if most == layers
                && left.is_none_or(|left| left == 1)
                && rules.complete(used, big)
                && (first > 0 || rules.whole())
                && let Some(last) = &mode.last[usize::from(set)]
            {
                let rest = if first > 0 {
                    plane.reach.last(set, first)
                } else {
                    pace.floor(problem, groups, mode, (set, 0, layers), *buffer_rows) + last.time
                };
                entry(start + rest, rest - last.time + busy.max(last.busy), layers);
            }
            if left == Some(1) {
                continue;
            }
            let most = if first > 0 {
                most.min(plane.reach.most(set, first))
            } else {
                match &room {
                    Some(room) => pace.most(room, most.min(layers - 1)),
                    None => continue,
                }
            };
            for end in least..=most {
                let compute = groups.least(set, first, end) + plane.reach.added(set, end - first);
                let rest = plane.table.rest(big, left.map_or(1, |left| left - 1), used, end);
                entry(start + compute + rest, compute + busy, end);
            }
        }
    }

    /// The exact price of a stage after a node.
    fn price(&mut self, planes: &[Plane], entry: Entry) -> Result<Priced, Exhausted> {
        let node = self.nodes[entry.node as usize];
        let (set, first, end) = (entry.set, usize::from(node.end), usize::from(entry.end));
        let mode = planes[usize::from(node.plane)].mode;
        let price = self.stages.price(mode, (set, first, end), self.work)?;
        if !price.found.is_finite() {
            if price.least.is_finite() {
                self.give_up(entry.bound);
            }
            return Ok(Priced::None);
        }
        let start = if first == 0 {
            self.stages.problem.orders(set.count_ones() as usize)
        } else {
            self.stages.step.hop[leader(node.set)][leader(set)]
        };
        let of = &self.stages.modes[mode];
        let mut busy = price.found + of.busy(set);
        let mut time = node.time + start + price.found;
        let whole = end == self.stages.groups.layers;
        if whole && let Some(last) = &of.last[usize::from(set)] {
            busy = busy.max(price.found + last.busy);
            time += last.time;
        }
        let busy = busy.max(node.busy);
        let slack = node.slack + (price.found - price.least);
        let next = Node {
            parent: entry.node,
            set,
            used: node.used | set,
            end: entry.end,
            stages: node.stages + 1,
            big: node.big || set & (set - 1) != 0,
            time,
            busy,
            slack,
            plane: node.plane,
        };
        if whole {
            let cost = time.max(self.steps * busy);
            if slack > 0.0 {
                self.give_up(f64::max(time - slack, self.steps * (busy - slack)));
            }
            if cost >= self.limit() {
                return Ok(Priced::None);
            }
            *self.best = Some(Found { cost, mode, rows: self.stages.step.rows, stages: self.path(next) });
            return Ok(Priced::Plan);
        }
        self.nodes.push(next);
        let at = self.nodes.len() as u32 - 1;
        let bound = self.whole(planes, at).bound;
        if bound + self.steps.max(1.0) * slack >= self.limit() {
            // Nothing better is to be had with these shares.
            if slack > 0.0 {
                self.give_up(bound);
            }
            return Ok(Priced::None);
        }
        Ok(Priced::Node(at))
    }

    fn path(&self, last: Node) -> Vec<(Set, usize, usize)> {
        let mut out = Vec::new();
        let mut node = last;
        while node.set != 0 {
            let before = self.nodes[node.parent as usize];
            out.push((node.set, before.end.into(), node.end.into()));
            node = before;
        }
        out.reverse();
        out
    }
}

enum Priced {
    /// It does not fit, or costs too much.
    None,
    Node(u32),
    /// It is the last stage of a plan, which is the best now.
    Plan,
}
