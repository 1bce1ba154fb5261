//! The least time from any layer on with any set of devices used: dynamic programming over sets.

use super::groups::{Groups, Set, leader, members};
use super::reach::{Mode, Reach};
use super::rules::Rules;
use crate::planner::problem::Step;

/// What the rest of a plan takes at least: `[big][stages left][used][first layer]`, from the hop into the next
/// stage to the answer. Hops come from the nearest of the devices used.
#[derive(Debug)]
pub(super) struct Table {
    layers: usize,
    sets: usize,
    /// Planes of stages left; one where their number is free.
    stages: usize,
    values: Vec<f64>,
    /// Layers of pairs of a set and a group that were looked at.
    pub(super) pairs: u64,
}

impl Table {
    /// `stages`: the number of stages of the plan, if it is fixed.
    pub(super) fn new(
        rules: &Rules,
        groups: &Groups,
        step: &Step,
        mode: &Mode,
        reach: &Reach,
        stages: Option<usize>,
    ) -> Self {
        let n = step.hop.len();
        let (layers, sets) = (groups.layers, 1 << n);
        let planes = stages.map_or(1, |stages| stages.saturating_sub(1));
        let mut out = Self {
            layers,
            sets,
            stages: planes,
            values: vec![f64::INFINITY; 2 * planes * sets * (layers + 1)],
            pairs: 0,
        };
        if stages.is_some_and(|stages| stages < 2) || layers < 2 {
            return out;
        }
        let mut room = Room::new(layers);
        let smallest = usize::from(!rules.whole());
        // hop[set][leader]: least hop from any of the set.
        let hop = |used: Set, set: Set| {
            let to = leader(set);
            members(used).into_iter().map(|from| step.hop[from][to]).fold(f64::INFINITY, f64::min)
        };
        let allowed: Vec<bool> = {
            let mut allowed = vec![false; sets];
            groups.sets.iter().for_each(|&set| allowed[usize::from(set)] = true);
            allowed
        };
        let full = (sets - 1) as Set;
        for left in 1..=planes {
            for used in (1..=full).rev() {
                let stages_done = stages.map_or(1, |stages| stages - left);
                if !mode.canonical(used) || (used.count_ones() as usize) < stages_done {
                    continue;
                }
                let rest = full & !used;
                if stages.is_some() && (rest.count_ones() as usize) < left {
                    continue;
                }
                // Layers that the devices used may have run, and that the others may run.
                let most = reach.cover(stages_done, used).min(layers - 1);
                let least = (layers - reach.cover(left, rest)).max(stages_done);
                if least > most {
                    continue;
                }
                let by_leader: Vec<f64> =
                    (0..n).map(|to| if rest >> to & 1 == 1 { hop(used, 1 << to) } else { 0.0 }).collect();
                let mut set = rest;
                while set != 0 {
                    if allowed[usize::from(set)] && mode.canonical(used | set) {
                        let hop = by_leader[leader(set)];
                        // Where the stage must end at least for the others to run the rest.
                        let end = match stages {
                            Some(_) if left == 1 => layers,
                            Some(_) => layers - reach.cover(left - 1, rest & !set),
                            None => layers - reach.cover(1, rest & !set),
                        };
                        for big in (1 - smallest)..=1 {
                            let now = big == 1 || set & (set - 1) != 0;
                            out.relax(
                                (big, left, used),
                                (set, hop, now),
                                (groups, reach, rules),
                                (stages.is_none(), (least, most), end),
                                &mut room,
                            );
                        }
                    }
                    set = (set - 1) & rest;
                }
            }
        }
        out
    }

    fn at(&self, big: usize, left: usize, used: Set) -> usize {
        ((big * self.stages + (left - 1)) * self.sets + usize::from(used)) * (self.layers + 1)
    }

    /// At least what follows: layers from `first` on, with these devices used and so many stages left (any
    /// number, where it is free).
    pub(super) fn rest(&self, big: bool, left: usize, used: Set, first: usize) -> f64 {
        let left = if self.stages == 1 { 1 } else { left };
        self.values[self.at(usize::from(big), left, used) + first]
    }

    /// Takes this group as the next stage into account.
    fn relax(
        &mut self,
        (big, left, used): (usize, usize, Set),
        (set, hop, now): (Set, f64, bool),
        (groups, reach, rules): (&Groups, &Reach, &Rules),
        (free, (start, stop), reached): (bool, (usize, usize), usize),
        room: &mut Room,
    ) {
        let layers = self.layers;
        let row = layers + 1;
        let base = usize::from(set) * row;
        let into = self.at(big, left, used);
        let prefix = groups.prefix(set);
        if (free || left == 1) && rules.complete(used | set, now) {
            let last = &reach.last[base..base + row];
            let values = &mut self.values[into..into + row];
            for first in start..=stop {
                values[first] = values[first].min(hop + last[first]);
            }
        }
        self.pairs += (stop - start + 1) as u64;
        let before_last = if free { 1 } else { left.saturating_sub(1) };
        let most = &reach.most[base..base + row];
        // Later stages begin no earlier than the others can follow, nor at the end of all layers.
        let (low, high) = (reached.max(start + 1), usize::from(most[stop]).min(layers - 1));
        if before_last == 0 || usize::from(used | set) == self.sets - 1 || low > high {
            return;
        }
        let from = self.at(usize::from(now), before_last, used | set);
        let loose = usize::from(reach.loose[usize::from(set)]);
        let added = &reach.added[base..base + row];
        let rest = &self.values[from + low..=from + high];
        for ((sum, before), rest) in room.sums[low..=high].iter_mut().zip(&prefix[low..=high]).zip(rest) {
            *sum = before + rest;
        }
        let sums = &room.sums;
        let values = &mut self.values[into..into + row];
        self.pairs += (high - low + 1) as u64;
        if rules.places() {
            for first in start..=stop {
                let ends = low.max(first + 1)..=usize::from(most[first]).min(high);
                let best = ends.map(|end| sums[end] + added[end - first]).fold(f64::INFINITY, f64::min);
                values[first] = values[first].min(hop + best - prefix[first]);
            }
            return;
        }
        // Ends without anything added are a window that moves with `first`: its least is kept in a queue, the
        // latest end at the back and least.
        let queue = &mut room.queue;
        let (mut front, mut back) = (row, row);
        // Ends from here on have been put in.
        let mut put = high + 1;
        for first in (start..=stop).rev() {
            let most = usize::from(most[first]).min(high);
            let near = most.min(first + loose);
            while put > low.max(first + 1) {
                put -= 1;
                // Later ends that are no less than the new one never win again.
                while front < back && sums[usize::from(queue[front])] >= sums[put] {
                    front += 1;
                }
                if front == back {
                    (front, back) = (row, row);
                }
                front -= 1;
                queue[front] = put as u8;
            }
            while back > front && usize::from(queue[back - 1]) > near {
                back -= 1;
            }
            if most < low {
                break;
            }
            let mut best = if front < back { sums[usize::from(queue[back - 1])] } else { f64::INFINITY };
            for end in (near.max(first) + 1).max(low)..=most {
                best = best.min(sums[end] + added[end - first]);
            }
            let value = hop + best - prefix[first];
            if value < values[first] {
                values[first] = value;
            }
        }
    }
}

/// Space that every relaxation uses again.
struct Room {
    sums: Vec<f64>,
    queue: Vec<u8>,
}

impl Room {
    fn new(layers: usize) -> Self {
        Self { sums: vec![f64::INFINITY; layers + 1], queue: vec![0; layers + 2] }
    }
}
