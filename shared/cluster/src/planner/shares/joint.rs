//! Whether limits on time can be kept within memory, heads and blocks together.

use super::{Ask, Kinds, bytes, most_blocks};

/// No sum of blocks is known.
const NONE: i32 = -1;

/// Heads and blocks of each member.
type Placed = (Vec<(u32, u32)>, Vec<u32>);

/// What does not depend on the limits.
pub(super) struct Joint<'a> {
    ask: &'a Ask<'a>,
    kinds: &'a Kinds,
    /// Memory is no limit to any member, whatever its share.
    loose: bool,
    /// `[member][last block among them][Weights::at]`: most blocks beside this range of heads; [`NONE`] where
    /// the range alone is too much.
    room: Vec<[Vec<i32>; 2]>,
}

impl<'a> Joint<'a> {
    pub(super) fn new(ask: &'a Ask<'a>, kinds: &'a Kinds) -> Self {
        let weights = &ask.problem.weights;
        let all = bytes(ask, (0, weights.heads as u32), weights.blocks, true);
        let loose = ask.rooms.iter().all(|&room| all <= room);
        Self { ask, kinds, loose, room: Vec::new() }
    }

    /// With what each member has room for beside each range of heads.
    pub(super) fn with_rooms(mut self) -> Self {
        let weights = &self.ask.problem.weights;
        let members = 0..self.ask.members.len();
        self.room = members
            .map(|at| {
                let room = self.ask.rooms[at];
                [false, true].map(|last| {
                    let mut out = vec![NONE; weights.period * (weights.heads + 1)];
                    if last && !weights.short {
                        return out;
                    }
                    for first in 0..weights.period {
                        // More heads leave room for no more blocks.
                        let mut most = weights.blocks as i32;
                        for end in first..=weights.heads {
                            let heads = (first as u32, end as u32);
                            let fits = |blocks: i32| bytes(self.ask, heads, blocks as usize, last) <= room;
                            if most >= 0 && !self.loose && !fits(most) {
                                let (mut low, mut high) = (NONE, most);
                                while high - low > 1 {
                                    let middle = i32::midpoint(low, high);
                                    if fits(middle) { low = middle } else { high = middle }
                                }
                                most = low;
                            }
                            out[weights.at(first, end)] = most;
                        }
                    }
                    out
                })
            })
            .collect();
        self
    }

    /// Blocks of each member beside these heads, within limits of time and memory, every member having
    /// something to do. The model's last block must be a whole one.
    pub(super) fn fill(&self, heads: &[(u32, u32)], limits: &[f64]) -> Option<Vec<u32>> {
        let ask = self.ask;
        let most = self.most(limits, false);
        let least: Vec<usize> = heads.iter().map(|range| usize::from(range.0 == range.1)).collect();
        let blocks = self.spread(&least, &most, None)?;
        let fits =
            |at: usize| self.loose || bytes(ask, heads[at], blocks[at] as usize, true) <= ask.rooms[at];
        (0..heads.len()).all(fits).then_some(blocks)
    }

    /// Heads and blocks of each member within these limits of time, and within memory.
    pub(super) fn fit(&self, limits: &[f64]) -> Option<Placed> {
        if !self.ask.problem.weights.short {
            return self.fit_last(limits, None);
        }
        (0..self.ask.members.len()).find_map(|last| self.fit_last(limits, Some(last)))
    }

    /// The same when this member has the model's last block, shorter than the others, and no later one has any.
    fn fit_last(&self, limits: &[f64], last: Option<usize>) -> Option<Placed> {
        let weights = &self.ask.problem.weights;
        let (k, heads) = (self.ask.members.len(), weights.heads);
        let whole = self.most(limits, false);
        let short = last.map(|_| self.most(limits, true));
        // Some members need a block each; where there may be too few, they are counted.
        let idle = if weights.blocks < k { weights.blocks } else { 0 };
        let counted = weights.blocks < k;
        let width = heads + 1;
        // sum[e][p]: most blocks with the first p heads placed, e members in need of a block.
        let mut sum = vec![NONE; (idle + 1) * width];
        sum[0] = 0;
        let mut from: Vec<Vec<u16>> = Vec::with_capacity(k);
        for at in 0..k {
            let mut next = vec![NONE; (idle + 1) * width];
            let mut chosen = vec![u16::MAX; (idle + 1) * width];
            let (own, is_last) = match last {
                Some(last) if at == last => (short.as_ref().map_or(0, |short| short[at]), true),
                Some(last) if at > last => (0, false),
                _ => (whole[at], false),
            };
            let room = &self.room[at][usize::from(is_last)];
            for e in 0..=idle {
                for first in 0..=heads {
                    let before = sum[e * width + first];
                    if before == NONE {
                        continue;
                    }
                    for end in self.ends(at, first, limits) {
                        let most = room[weights.at(first, end)].min(own as i32);
                        let needs = i32::from(first == end || is_last);
                        if most < needs {
                            if first == end {
                                continue;
                            }
                            // More heads leave no more room.
                            break;
                        }
                        let e = e + usize::from(counted && needs > 0);
                        if e <= idle && before + most > next[e * width + end] {
                            next[e * width + end] = before + most;
                            chosen[e * width + end] = first as u16;
                        }
                    }
                }
            }
            sum = next;
            from.push(chosen);
        }
        let mut e = (0..=idle).find(|e| sum[e * width + heads] >= weights.blocks as i32)?;
        let mut ranges = vec![(0, 0); k];
        let mut end = heads;
        for at in (0..k).rev() {
            let first = usize::from(from[at][e * width + end]);
            ranges[at] = (first as u32, end as u32);
            e -= usize::from(counted && (first == end || last == Some(at)));
            end = first;
        }
        let most: Vec<usize> = (0..k)
            .map(|at| {
                let (own, is_last) = match last {
                    Some(last) if at == last => (short.as_ref().map_or(0, |short| short[at]), true),
                    Some(last) if at > last => (0, false),
                    _ => (whole[at], false),
                };
                let (first, end) = (ranges[at].0 as usize, ranges[at].1 as usize);
                own.min(self.room[at][usize::from(is_last)][weights.at(first, end)].max(0) as usize)
            })
            .collect();
        let least: Vec<usize> =
            (0..k).map(|at| usize::from(ranges[at].0 == ranges[at].1 || last == Some(at))).collect();
        Some((ranges, self.spread(&least, &most, last)?))
    }

    /// Ends of ranges of heads from `first` that the member may have within the limits, rising.
    fn ends(&self, at: usize, first: usize, limits: &[f64]) -> std::ops::Range<usize> {
        let ask = self.ask;
        let weights = &ask.problem.weights;
        let within = |end: usize| {
            first == end
                || self.kinds.0.iter().zip(limits).all(|(&kind, &limit)| {
                    ask.step.attention[kind][ask.members[at]][weights.at(first, end)] <= limit
                })
        };
        if let Some((from, to)) = ask.pinned[at] {
            let (from, to) = (from as usize, to as usize);
            return if from == first && within(to) { to..to + 1 } else { first..first };
        }
        let (mut low, mut high) = (first, weights.heads + 1);
        while high - low > 1 {
            let middle = usize::midpoint(low, high);
            if within(middle) { low = middle } else { high = middle }
        }
        first..low + 1
    }

    /// Most blocks of each member within the limits of time.
    fn most(&self, limits: &[f64], last: bool) -> Vec<usize> {
        let limits = &limits[self.kinds.0.len()..];
        let of = |&device: &usize| most_blocks(self.ask, &self.kinds.1, limits, device, last);
        self.ask.members.iter().map(of).collect()
    }

    /// All blocks, each member having from its least to its most, every further one where it is done first.
    fn spread(&self, least: &[usize], most: &[usize], last: Option<usize>) -> Option<Vec<u32>> {
        let all = self.ask.problem.weights.blocks;
        let mut blocks = least.to_vec();
        let mut left = all.checked_sub(least.iter().sum())?;
        if least.iter().zip(most).any(|(least, most)| least > most) || most.iter().sum::<usize>() < all {
            return None;
        }
        let kind = self.kinds.1.first().copied().unwrap_or(0);
        let times = |at: usize| {
            &self.ask.step.feed_forward[kind][self.ask.members[at]][usize::from(last == Some(at))]
        };
        while left > 0 {
            let open = (0..blocks.len()).filter(|&at| blocks[at] < most[at]);
            let next = open.min_by(|&a, &b| times(a)[blocks[a] + 1].total_cmp(&times(b)[blocks[b] + 1]))?;
            blocks[next] += 1;
            left -= 1;
        }
        Some(blocks.into_iter().map(|n| n as u32).collect())
    }
}
