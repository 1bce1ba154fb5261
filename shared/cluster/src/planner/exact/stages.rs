//! What a stage really takes: exact shares, kept for when they are asked again.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::groups::{Groups, Set, members};
use super::reach::{Mode, Pace};
use super::rules::Rules;
use crate::planner::problem::{HeadMode, Problem, Step};
use crate::planner::shares::{self, Ask, Exhausted, Shares, Work};

/// All that depends on the number of rows of a step, and not on how much time is left for it.
pub(super) struct Stages<'a> {
    pub(super) problem: &'a Problem<'a>,
    pub(super) rules: &'a Rules,
    pub(super) step: Rc<Step>,
    pub(super) groups: Groups,
    pub(super) pace: Pace,
    pub(super) modes: Vec<Mode>,
    pub(super) buffer_rows: u32,
    /// Different counts of layers by class.
    counts: Vec<Vec<u32>>,
    /// `[first][end]`: index into `counts`.
    count_of: Vec<u16>,
    /// By group, mode with place, and counts: seconds with sums.
    known: BTreeMap<(Set, u8, u16), Option<f64>>,
}

impl<'a> Stages<'a> {
    pub(super) fn new(
        problem: &'a Problem<'a>,
        rules: &'a Rules,
        modes: &[HeadMode],
        rows: u32,
        chunk: u32,
    ) -> Self {
        let step = problem.step(rows);
        let groups = Groups::new(problem, rules, &step);
        let pace = Pace::new(problem, &step);
        let modes =
            modes.iter().filter_map(|&mode| Mode::new(problem, rules, &step, mode, &groups.sets)).collect();
        let layers = groups.layers;
        let mut counts: Vec<Vec<u32>> = Vec::new();
        let mut index: BTreeMap<Vec<u32>, u16> = BTreeMap::new();
        let mut count_of = vec![0; (layers + 1) * (layers + 1)];
        for first in 0..layers {
            for end in first + 1..=layers {
                let of = problem.weights.counts(first, end);
                let at = *index.entry(of).or_insert_with_key(|of| {
                    counts.push(of.clone());
                    (counts.len() - 1) as u16
                });
                count_of[first * (layers + 1) + end] = at;
            }
        }
        let buffer_rows = chunk.max(problem.kv.sequences);
        Self {
            problem,
            rules,
            step,
            groups,
            pace,
            modes,
            buffer_rows,
            counts,
            count_of,
            known: BTreeMap::new(),
        }
    }

    /// Seconds of these layers on this group, sums included; `None` where no shares fit.
    pub(super) fn seconds(
        &mut self,
        mode: usize,
        set: Set,
        first: usize,
        end: usize,
        work: &mut Work,
    ) -> Result<Option<f64>, Exhausted> {
        let layers = self.groups.layers;
        let place = (mode as u8) << 2 | u8::from(first == 0) << 1 | u8::from(end == layers);
        let key = (set, place, self.count_of[first * (layers + 1) + end]);
        if let Some(&known) = self.known.get(&key) {
            return Ok(known);
        }
        let sums = self.groups.sums[usize::from(set)] * (end - first) as f64;
        let found = self.shares(mode, set, first, end, work)?.map(|shares| shares.seconds + sums);
        self.known.insert(key, found);
        Ok(found)
    }

    /// The shares themselves.
    pub(super) fn shares(
        &self,
        mode: usize,
        set: Set,
        first: usize,
        end: usize,
        work: &mut Work,
    ) -> Result<Option<Shares>, Exhausted> {
        let layers = self.groups.layers;
        let members = members(set);
        let Some(rooms) = self.modes[mode].rooms(self.problem, set, first == 0, end == layers) else {
            return Ok(None);
        };
        let pinned: Vec<_> = members.iter().map(|&device| self.rules.heads[device]).collect();
        let ask = Ask {
            problem: self.problem,
            step: &self.step,
            members: &members,
            counts: &self.counts[usize::from(self.count_of[first * (layers + 1) + end])],
            rooms: &rooms,
            pinned: &pinned,
            buffer_rows: self.buffer_rows,
        };
        shares::solve(&ask, work)
    }
}
