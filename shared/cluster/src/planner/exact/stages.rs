//! What a stage really takes: exact shares, kept for when they are asked again.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::groups::{Groups, Set, members};
use super::pace::{Pace, ROUNDING};
use super::reach::Mode;
use super::rules::Rules;
use crate::planner::problem::{HeadMode, Problem, Step};
use crate::planner::shares::{self, Answer, Ask, Exhausted, Shares, Work};

/// All that depends on the number of rows of a step, and not on how much time is left for it.
pub(super) struct Stages<'a> {
    pub(super) problem: &'a Problem<'a>,
    pub(super) rules: &'a Rules,
    pub(super) step: Rc<Step>,
    pub(super) groups: Groups,
    pub(super) pace: Pace,
    pub(super) modes: Vec<Mode>,
    /// What holds under any of the modes; for bounds alone.
    pub(super) any: Option<Mode>,
    pub(super) buffer_rows: u32,
    /// Different counts of layers by class.
    counts: Vec<Vec<u32>>,
    /// `[first][end]`: index into `counts`.
    count_of: Vec<u16>,
    /// By group, mode with place, and counts.
    known: BTreeMap<(Set, u8, u16), Known>,
    /// Part of the work left that one stage may take. Where that has grown, prices that are not exact are sought again.
    pub(super) part: u64,
}

/// Seconds of a stage, sums included.
#[derive(Debug, Clone, Copy)]
pub(super) struct Price {
    /// Of the best shares found; infinite where there are none.
    pub(super) found: f64,
    /// No shares take less.
    pub(super) least: f64,
}

/// The least work that one stage may take.
const LEAST: u64 = 4_000;

/// A price with the shares it is for, and the part of the work by which it was found.
#[derive(Debug)]
struct Known {
    price: Price,
    shares: Option<Shares>,
    part: u64,
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
        let modes: Vec<Mode> =
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
        let any = Mode::any(problem, rules, &modes);
        Self {
            problem,
            rules,
            step,
            groups,
            pace,
            modes,
            any,
            buffer_rows,
            counts,
            count_of,
            known: BTreeMap::new(),
            part: u64::MAX,
        }
    }

    /// A mode, or beyond the last one what holds under any.
    pub(super) fn mode(&self, mode: usize) -> Option<&Mode> {
        self.modes.get(mode).or(self.any.as_ref())
    }

    /// What these layers take on this group.
    pub(super) fn price(
        &mut self,
        mode: usize,
        stage: (Set, usize, usize),
        work: &mut Work,
    ) -> Result<Price, Exhausted> {
        let key = self.key(mode, stage);
        let known = self.known.get(&key);
        if let Some(known) =
            known.filter(|known| known.price.least >= known.price.found || known.part <= self.part)
        {
            return Ok(known.price);
        }
        let (set, first, end) = stage;
        let sums = self.groups.sums[usize::from(set)] * (end - first) as f64;
        let answer = self.answer(mode, stage, sums, work)?;
        let found = answer.shares.as_ref().map_or(f64::INFINITY, |shares| shares.seconds + sums);
        let mut now = Known {
            price: Price { found, least: found.min(answer.least + sums) },
            shares: answer.shares,
            part: self.part,
        };
        // More work never makes the answer worse; a plan may have been made of the one before.
        if let Some(known) = self.known.remove(&key).filter(|known| known.price.found <= found) {
            now.price = Price { found: known.price.found, least: now.price.least.min(known.price.found) };
            now.shares = known.shares;
        }
        let price = now.price;
        self.known.insert(key, now);
        Ok(price)
    }

    /// The shares by which a stage was priced.
    pub(super) fn shares(&self, mode: usize, stage: (Set, usize, usize)) -> Option<&Shares> {
        self.known.get(&self.key(mode, stage))?.shares.as_ref()
    }

    /// Ranges of layers with the same counts cost the same, save at either end of the model.
    fn key(&self, mode: usize, (set, first, end): (Set, usize, usize)) -> (Set, u8, u16) {
        let layers = self.groups.layers;
        let place = (mode as u8) << 2 | u8::from(first == 0) << 1 | u8::from(end == layers);
        (set, place, self.count_of[first * (layers + 1) + end])
    }

    fn answer(
        &self,
        mode: usize,
        (set, first, end): (Set, usize, usize),
        sums: f64,
        work: &mut Work,
    ) -> Result<Answer, Exhausted> {
        let layers = self.groups.layers;
        let (members, of) = (members(set), &self.modes[mode]);
        let floor =
            self.pace.floor(self.problem, &self.groups, of, (set, first, end), self.buffer_rows) - sums;
        let rooms = of.rooms(self.problem, set, first == 0, end == layers);
        let Some(rooms) = rooms.filter(|_| floor.is_finite()) else {
            return Ok(Answer::NONE);
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
        let most = (work.most.saturating_sub(work.done) / self.part).max(LEAST);
        // A sum taken in another order.
        shares::solve(&ask, floor * (1.0 - ROUNDING), most, work)
    }
}
