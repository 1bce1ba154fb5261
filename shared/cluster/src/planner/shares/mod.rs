//! The best shares of one group for a range of layers: heads and feed-forward blocks of every rank.
//!
//! All layers of a stage have the same shares, so what is made least is the sum over kinds of layers of
//! the slowest rank's attention and the slowest rank's feed-forward network. Each is a limit; a test says
//! whether limits can be kept. Attention and feed-forward networks are solved apart; where their
//! shares fit the memory together, nothing is better. Otherwise both are searched together ([`joint`]).

mod joint;
mod stairs;

use super::problem::{Class, Problem, Step};
use joint::Joint;
use stairs::{Axis, Corner, least};

/// A group, the layers it runs and what memory it has for them.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) problem: &'a Problem<'a>,
    pub(crate) step: &'a Step,
    /// Devices, rising.
    pub(crate) members: &'a [usize],
    /// Layers of each class.
    pub(crate) counts: &'a [u32],
    /// Bytes each may use for its layers and its buffers.
    pub(crate) rooms: &'a [u64],
    /// Heads that members must have.
    pub(crate) pinned: &'a [Option<(u32, u32)>],
    /// Most rows of any step, which buffers are for.
    pub(crate) buffer_rows: u32,
}

/// The shares of a group.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shares {
    /// Seconds of all layers without the sums.
    pub(crate) seconds: f64,
    /// Query heads of each member.
    pub(crate) heads: Vec<(u32, u32)>,
    /// Feed-forward blocks of each member.
    pub(crate) blocks: Vec<u32>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    /// `None` where nothing fits, or nothing was found.
    pub(crate) shares: Option<Shares>,
    /// No shares take less: those found, where they are the best; infinite where nothing fits.
    pub(crate) least: f64,
}

impl Answer {
    /// Nothing fits.
    pub(crate) const NONE: Self = Self { shares: None, least: f64::INFINITY };

    fn best(shares: Shares) -> Self {
        Self { least: shares.seconds, shares: Some(shares) }
    }
}

/// Work that may still be done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) done: u64,
    pub(crate) most: u64,
}

/// The work allowed has been done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exhausted;

impl Work {
    /// Counts work that has been done.
    ///
    /// # Errors
    /// No more is allowed.
    pub(crate) fn spend(&mut self, units: u64) -> Result<(), Exhausted> {
        self.done += units;
        if self.done > self.most { Err(Exhausted) } else { Ok(()) }
    }
}

/// The best shares, or that none fit. `floor`: what they take at least, as far as is known. Where that takes
/// more than `most` units of work, the best found by then.
///
/// # Errors
/// All work allowed has been done.
pub(crate) fn solve(ask: &Ask<'_>, floor: f64, most: u64, work: &mut Work) -> Result<Answer, Exhausted> {
    let weights = &ask.problem.weights;
    work.spend(ask.members.len() as u64)?;
    if ask.members.len() == 1 {
        return Ok(alone(ask).map_or(Answer::NONE, Answer::best));
    }
    let (kinds, axes) = axes(ask);
    let (attention_kinds, feed_forward_kinds) = &kinds;
    let split = attention_kinds.len();
    let (mut attention, mut feed_forward) = (None, None);
    least(&axes[..split], &[], &mut attention, |limits| {
        work.spend(1)?;
        Ok(reach(ask, attention_kinds, limits).is_some())
    })?;
    least(&axes[split..], &[], &mut feed_forward, |limits| {
        work.spend(1)?;
        Ok(enough(ask, feed_forward_kinds, limits))
    })?;
    let (Some((attention, mut limits)), Some((feed_forward, more))) = (attention, feed_forward) else {
        return Ok(Answer::NONE);
    };
    limits.extend(more);
    let seconds = attention + feed_forward;
    let joint = Joint::new(ask, &kinds);
    // Where the greedy shares at these limits fit, nothing is better.
    if !weights.short
        && let Some(heads) = reach(ask, attention_kinds, &limits[..split])
        && let Some(blocks) = joint.fill(&heads, &limits)
    {
        return Ok(Answer::best(Shares { seconds, heads, blocks }));
    }
    let joint = joint.with_rooms();
    let unit = 1 + (ask.members.len() * weights.heads) as u64 / 32;
    let mut own = Work { done: 0, most };
    let mut fits = |limits: &[f64]| {
        own.spend(unit)?;
        Ok(joint.fit(limits).is_some())
    };
    let floor = floor.max(seconds);
    let mut best: Option<Corner> = None;
    let end = together(&axes, split, &limits, (floor, feed_forward, seconds), &mut best, &mut fits);
    work.spend(own.done)?;
    let found = best.and_then(|(seconds, limits)| {
        let (heads, blocks) = joint.fit(&limits)?;
        Some(Shares { seconds, heads, blocks })
    });
    Ok(match (end, found) {
        (Ok(()), Some(shares)) => Answer::best(shares),
        (Ok(()), None) => Answer::NONE,
        (Err(Exhausted), shares) => Answer { shares, least: floor },
    })
}

/// By how much the limits of the separate optimum are raised at most, as a part, for a first answer.
const RAISE: f64 = 3.0;

/// Halvings between raises: to a thousandth.
const HALVINGS: usize = 12;

/// Heads and blocks searched together. `apart`: the limits at which each fits alone; `floor`: what all take at
/// least, what blocks take at least, and what both take apart.
fn together(
    axes: &[Axis<'_>],
    split: usize,
    apart: &[f64],
    (floor, feed_forward, seconds): (f64, f64, f64),
    best: &mut Option<Corner>,
    fits: &mut impl FnMut(&[f64]) -> Result<bool, Exhausted>,
) -> Result<(), Exhausted> {
    if fits(apart)? {
        *best = Some((seconds, apart.to_vec()));
        return Ok(());
    }
    // Good corners first: limits of both, of blocks, or of heads raised alike, then each lowered as far as it goes.
    for which in [0..axes.len(), split..axes.len(), 0..split] {
        let raised = |by: f64| -> Vec<f64> {
            let raise =
                |(at, limit): (usize, &f64)| if which.contains(&at) { limit * (1.0 + by) } else { *limit };
            apart.iter().enumerate().map(raise).collect()
        };
        let (mut low, mut high) = (0.0, RAISE);
        if !fits(&raised(high))? {
            continue;
        }
        for _ in 0..HALVINGS {
            let middle = f64::midpoint(low, high);
            if fits(&raised(middle))? { high = middle } else { low = middle }
        }
        let mut limits = raised(high);
        for at in 0..axes.len() {
            let values = axes[at].values;
            let (mut low, mut high) = (0, values.partition_point(|&value| value <= limits[at]));
            while low < high {
                let middle = usize::midpoint(low, high);
                limits[at] = values[middle];
                if fits(&limits)? { high = middle } else { low = middle + 1 }
            }
            limits[at] = values[low.min(values.len() - 1)];
        }
        let cost = axes.iter().zip(&limits).map(|(axis, limit)| axis.weight * limit).sum();
        if best.as_ref().is_none_or(|best| cost < best.0) && fits(&limits)? {
            *best = Some((cost, limits));
        }
    }
    let floors: Vec<f64> = (0..axes.len())
        .map(|at| {
            if at == 0 {
                floor
            } else if at <= split {
                feed_forward
            } else {
                0.0
            }
        })
        .collect();
    least(axes, &floors, best, fits)
}

/// One device has all.
fn alone(ask: &Ask<'_>) -> Option<Shares> {
    let weights = &ask.problem.weights;
    let (device, all) = (ask.members[0], weights.at(0, weights.heads));
    let heads = (0, weights.heads as u32);
    if ask.pinned[0].is_some_and(|pin| pin != heads) {
        return None;
    }
    let bytes = bytes(ask, heads, weights.blocks, true);
    let seconds = |(&n, class): (&u32, &Class)| {
        let attention = ask.step.attention[class.attention][device][all];
        let feed_forward = ask.step.feed_forward[class.feed_forward][device][1][weights.blocks];
        f64::from(n) * (attention + feed_forward)
    };
    let seconds = ask.counts.iter().zip(&weights.classes).map(seconds).sum();
    (bytes <= ask.rooms[0]).then(|| Shares {
        seconds,
        heads: vec![heads],
        blocks: vec![weights.blocks as u32],
    })
}

/// What a member holds with this share: layers, rotation and buffers.
fn bytes(ask: &Ask<'_>, heads: (u32, u32), blocks: usize, last: bool) -> u64 {
    let weights = &ask.problem.weights;
    let (first, end) = (heads.0 as usize, heads.1 as usize);
    let with_heads = if first == end {
        0
    } else {
        weights.attention_bytes(ask.counts, weights.at(first, end)) + weights.rope
    };
    with_heads
        + weights.feed_forward_bytes(ask.counts, blocks, last)
        + ask.problem.rank_buffers(heads, blocks, last, ask.members.len(), ask.buffer_rows)
}

/// Kinds of attention and of feed-forward network.
type Kinds = (Vec<usize>, Vec<usize>);

/// The kinds of attention and of feed-forward networks in these layers, and a limit for each.
fn axes<'a>(ask: &Ask<'a>) -> (Kinds, Vec<Axis<'a>>) {
    let weights = &ask.problem.weights;
    let mut attention = vec![0_u32; weights.attentions.len()];
    let mut feed_forward = vec![0_u32; weights.feed_forwards.len()];
    for (&n, class) in ask.counts.iter().zip(&weights.classes) {
        attention[class.attention] += n;
        feed_forward[class.feed_forward] += n;
    }
    let used = |of: &[u32]| -> Vec<usize> { (0..of.len()).filter(|&kind| of[kind] > 0).collect() };
    let kinds = (used(&attention), used(&feed_forward));
    let mut axes = Vec::with_capacity(kinds.0.len() + kinds.1.len());
    let axis = |values: &'a [f64], n: u32| Axis { values, weight: n.into() };
    axes.extend(kinds.0.iter().map(|&kind| axis(&ask.step.attention_values[kind], attention[kind])));
    axes.extend(kinds.1.iter().map(|&kind| axis(&ask.step.feed_forward_values[kind], feed_forward[kind])));
    (kinds, axes)
}

/// Heads of every member if each takes as many as the limits allow; `None` where some are left.
///
/// A part of a range costs no more than the range, so whoever takes most leaves least to the next.
fn reach(ask: &Ask<'_>, kinds: &[usize], limits: &[f64]) -> Option<Vec<(u32, u32)>> {
    let weights = &ask.problem.weights;
    let mut out = Vec::with_capacity(ask.members.len());
    let mut first = 0;
    for (at, &device) in ask.members.iter().enumerate() {
        let within = |end: usize| {
            first == end
                || kinds
                    .iter()
                    .zip(limits)
                    .all(|(&kind, &limit)| ask.step.attention[kind][device][weights.at(first, end)] <= limit)
        };
        let end = match ask.pinned[at] {
            Some((from, to)) if from as usize == first && within(to as usize) => to as usize,
            Some(_) => return None,
            None => {
                // No more than is left by the next whose heads are given.
                let next = ask.pinned[at + 1..].iter().flatten().next();
                let most = next.map_or(weights.heads, |pin| pin.0 as usize);
                if most < first {
                    return None;
                }
                let (mut low, mut high) = (first, most + 1);
                while high - low > 1 {
                    let middle = usize::midpoint(low, high);
                    if within(middle) { low = middle } else { high = middle }
                }
                low
            }
        };
        out.push((first as u32, end as u32));
        first = end;
    }
    (first == weights.heads).then_some(out)
}

/// Blocks a member can do within the limits, the model's last block among them or not.
fn most_blocks(ask: &Ask<'_>, kinds: &[usize], limits: &[f64], device: usize, last: bool) -> usize {
    let counts = kinds.iter().zip(limits).map(|(&kind, &limit)| {
        let times = &ask.step.feed_forward[kind][device][usize::from(last)];
        times.partition_point(|&time| time <= limit) - 1
    });
    counts.min().unwrap_or(ask.problem.weights.blocks)
}

/// Whether all blocks can be done within the limits.
fn enough(ask: &Ask<'_>, kinds: &[usize], limits: &[f64]) -> bool {
    let weights = &ask.problem.weights;
    let most = |&device: &usize| most_blocks(ask, kinds, limits, device, false);
    if !weights.short {
        return ask.members.iter().map(most).sum::<usize>() >= weights.blocks;
    }
    // Whoever has the last block has one column fewer or more than others with as many blocks.
    let mut before = 0;
    ask.members.iter().any(|device| {
        let own = most_blocks(ask, kinds, limits, *device, true);
        let done = own > 0 && before + own >= weights.blocks;
        before += most(device);
        done
    })
}
