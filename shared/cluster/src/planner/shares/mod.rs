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
use stairs::{Axis, least};

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

/// The best shares, or that none fit.
///
/// # Errors
/// The work allowed has been done.
pub(crate) fn solve(ask: &Ask<'_>, work: &mut Work) -> Result<Option<Shares>, Exhausted> {
    let weights = &ask.problem.weights;
    work.spend(ask.members.len() as u64)?;
    if ask.members.len() == 1 {
        return Ok(alone(ask));
    }
    let (kinds, axes) = axes(ask);
    let (attention_kinds, feed_forward_kinds) = &kinds;
    let split = attention_kinds.len();
    let attention = least(&axes[..split], &[], |limits| {
        work.spend(1)?;
        Ok(reach(ask, attention_kinds, limits).is_some())
    })?;
    let feed_forward = least(&axes[split..], &[], |limits| {
        work.spend(1)?;
        Ok(enough(ask, feed_forward_kinds, limits))
    })?;
    let (Some((attention, mut limits)), Some((feed_forward, more))) = (attention, feed_forward) else {
        return Ok(None);
    };
    limits.extend(more);
    let seconds = attention + feed_forward;
    let joint = Joint::new(ask, &kinds);
    // Where the greedy shares at these limits fit, nothing is better.
    if !weights.short
        && let Some(heads) = reach(ask, attention_kinds, &limits[..split])
        && let Some(blocks) = joint.fill(&heads, &limits)
    {
        return Ok(Some(Shares { seconds, heads, blocks }));
    }
    let (joint, cost) = (joint.with_rooms(), ask.members.len() as u64 * weights.heads as u64);
    let mut fits = |limits: &[f64]| {
        work.spend(1 + cost / 4)?;
        Ok(joint.fit(limits).is_some())
    };
    let found = if fits(&limits)? {
        Some((seconds, limits))
    } else {
        let floor: Vec<f64> = (0..axes.len())
            .map(|at| {
                if at == 0 {
                    seconds
                } else if at <= split {
                    feed_forward
                } else {
                    0.0
                }
            })
            .collect();
        least(&axes, &floor, fits)?
    };
    Ok(found.and_then(|(seconds, limits)| {
        let (heads, blocks) = joint.fit(&limits)?;
        Some(Shares { seconds, heads, blocks })
    }))
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
