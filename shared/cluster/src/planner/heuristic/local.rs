//! Local search over ordered lists of groups: a device moves, two swap, groups merge, split and change places.

use std::collections::BTreeMap;

use super::super::problem::Family;
use super::arrange::{Groups, Table};

/// Up to this many devices every move is tried; beyond, moves begin at a few groups and devices at a time.
const ALL_MOVES: usize = 16;

/// Beyond [`ALL_MOVES`], neighbouring groups and unused devices that a device's moves look at.
const REACH: usize = 3;

/// What a search may do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules<'r> {
    pub(super) family: Family,
    /// So many devices must be used, if any number must.
    pub(super) exactly: Option<usize>,
    /// Most devices of a plan.
    pub(super) most: usize,
    /// Devices that must be used.
    pub(super) wanted: &'r [u16],
    /// Devices by falling worth: those worth adding first.
    pub(super) by_speed: &'r [u16],
}

impl Rules<'_> {
    /// Whether these groups are of the family.
    pub(super) fn allow(&self, groups: &[Vec<u16>]) -> bool {
        let used: usize = groups.iter().map(Vec::len).sum();
        let family = match self.family {
            Family::Single => groups.len() == 1 && used == 1,
            Family::Layers => groups.iter().all(|group| group.len() == 1),
            Family::Heads => groups.len() == 1,
            Family::Mixed => groups.len() > 1 && groups.iter().any(|group| group.len() > 1),
            Family::Any => !groups.is_empty(),
        };
        family
            && used <= self.most
            && self.exactly.is_none_or(|count| used == count)
            && self.wanted.iter().all(|device| groups.iter().any(|group| group.contains(device)))
    }
}

/// Scores that were worked out.
pub(super) type Seen = BTreeMap<Groups, f64>;

/// Goes from `start` to better neighbours until there is none or the work is spent. Lists that were seen are not priced
/// again.
pub(super) fn climb(
    table: &Table<'_, '_>,
    rules: &Rules<'_>,
    start: Groups,
    seen: &mut Seen,
    work: u64,
) -> (Groups, f64) {
    let limit = table.priced.get() + work;
    let mut price = |groups: &Groups| {
        if let Some(&score) = seen.get(groups) {
            return score;
        }
        let score = table.score(groups);
        seen.insert(groups.clone(), score);
        score
    };
    let mut at = start;
    let mut score = price(&at);
    let mut turn = 0;
    loop {
        let mut better: Option<(Groups, f64)> = None;
        for neighbour in neighbours(rules, &at, turn) {
            if table.priced.get() >= limit {
                break;
            }
            let found = price(&neighbour);
            if found < better.as_ref().map_or(score, |better| better.1) * (1.0 - 1e-9) {
                let large = at.iter().map(Vec::len).sum::<usize>() > ALL_MOVES;
                better = Some((neighbour, found));
                // With many devices the first better one is taken.
                if large {
                    break;
                }
            }
        }
        turn += 1;
        match better {
            Some((groups, found)) => (at, score) = (groups, found),
            None => return (at, score),
        }
    }
}

/// Lists one move away that the rules allow.
fn neighbours<'n>(
    rules: &'n Rules<'_>,
    groups: &'n Groups,
    turn: usize,
) -> impl Iterator<Item = Groups> + 'n {
    let used: usize = groups.iter().map(Vec::len).sum();
    let large = used.max(rules.by_speed.len()) > ALL_MOVES;
    let mut is_used = vec![false; rules.by_speed.iter().max().map_or(0, |&most| usize::from(most) + 1)];
    for &device in groups.iter().flatten() {
        is_used[usize::from(device)] = true;
    }
    let reach = if large { REACH } else { usize::MAX };
    let pool: Vec<u16> =
        rules.by_speed.iter().copied().filter(|&d| !is_used[usize::from(d)]).take(reach).collect();
    let mut moves: Vec<Move> = Vec::new();
    let stages = groups.len();
    let near = move |a: usize, b: usize| !large || a.abs_diff(b) <= REACH;
    for group in 0..stages {
        for other in group + 1..stages {
            if near(group, other) {
                moves.push(Move::Exchange(group, other));
                moves.push(Move::Merge(group, other));
            }
        }
        for to in 0..stages {
            if near(group, to) && to != group && to != group + 1 {
                moves.push(Move::Shift(group, to));
            }
        }
        if groups[group].len() > 1 {
            moves.push(Move::Halve(group));
            moves.push(Move::Deal(group));
        }
        for place in 0..groups[group].len() {
            moves.push(Move::Drop(group, place));
            moves.push(Move::Leave(group, place, group));
            moves.push(Move::Leave(group, place, group + 1));
            for (to, target) in groups.iter().enumerate() {
                if to != group && near(group, to) {
                    moves.push(Move::Go(group, place, to));
                    for other in 0..target.len() {
                        if to > group {
                            moves.push(Move::Swap(group, place, to, other));
                        }
                    }
                }
            }
            for &device in &pool {
                moves.push(Move::Replace(group, place, device));
            }
        }
        for &device in &pool {
            moves.push(Move::Add(group, device));
            moves.push(Move::Begin(group, device));
        }
    }
    for &device in &pool {
        moves.push(Move::Begin(stages, device));
    }
    // Many devices: each turn begins elsewhere, so that no group waits for all before it.
    if large && !moves.is_empty() {
        let by = turn.wrapping_mul(7919) % moves.len();
        moves.rotate_left(by);
    }
    moves.into_iter().map(move |step| step.of(groups)).filter(move |next| rules.allow(next))
}

#[derive(Debug, Clone, Copy)]
enum Move {
    /// Two groups change places.
    Exchange(usize, usize),
    /// The second joins the first.
    Merge(usize, usize),
    /// A group goes before another.
    Shift(usize, usize),
    /// The first half of a group becomes a group.
    Halve(usize),
    /// Every other device of a group becomes a group.
    Deal(usize),
    /// A device is used no more.
    Drop(usize, usize),
    /// A device becomes a group at this place.
    Leave(usize, usize, usize),
    /// A device goes to another group.
    Go(usize, usize, usize),
    /// Two devices change places.
    Swap(usize, usize, usize, usize),
    /// An unused device takes a used one's place.
    Replace(usize, usize, u16),
    /// An unused device joins a group.
    Add(usize, u16),
    /// An unused device becomes a group at this place.
    Begin(usize, u16),
}

impl Move {
    fn of(self, groups: &Groups) -> Groups {
        let mut out = groups.clone();
        match self {
            Self::Exchange(a, b) => out.swap(a, b),
            Self::Merge(a, b) => {
                let joining = out.remove(b);
                out[a].extend(joining);
                out[a].sort_unstable();
            }
            Self::Shift(from, to) => {
                let group = out.remove(from);
                out.insert(if to > from { to - 1 } else { to }, group);
            }
            Self::Halve(at) => {
                let half = out[at].len() / 2;
                let rest = out[at].split_off(half);
                out.insert(at + 1, rest);
            }
            Self::Deal(at) => {
                let odd = out[at].iter().copied().skip(1).step_by(2).collect();
                let mut place = 0;
                out[at].retain(|_| {
                    place += 1;
                    place % 2 == 1
                });
                out.insert(at + 1, odd);
            }
            Self::Drop(group, place) => {
                out[group].remove(place);
            }
            Self::Leave(group, place, to) => {
                let device = out[group].remove(place);
                out.insert(to, vec![device]);
            }
            Self::Go(group, place, to) => {
                let device = out[group].remove(place);
                insert(&mut out[to], device);
            }
            Self::Swap(group, place, to, other) => {
                let (a, b) = (out[group].remove(place), out[to].remove(other));
                insert(&mut out[group], b);
                insert(&mut out[to], a);
            }
            Self::Replace(group, place, device) => {
                out[group].remove(place);
                insert(&mut out[group], device);
            }
            Self::Add(group, device) => insert(&mut out[group], device),
            Self::Begin(at, device) => out.insert(at, vec![device]),
        }
        out.retain(|group| !group.is_empty());
        out
    }
}

fn insert(group: &mut Vec<u16>, device: u16) {
    let at = group.partition_point(|&other| other < device);
    group.insert(at, device);
}
