//! A good plan on any number of devices, without a proof that it is the best.
//!
//! Devices are put into a few orders (by speed, by memory, by islands of fast links), each order is cut into runs that
//! become groups by dynamic programming ([`seeds`]), and the best cuts are improved by moving, swapping, merging and
//! splitting ([`local`]) until no single move helps or the work is spent. A list of groups is priced by [`arrange`]: the
//! shares of each group follow speed and give way to memory ([`group`]), layers go to groups so that the sum or the
//! longest of their times is least ([`layering`]), the output head is on the last group or on all devices. What is found
//! is laid out and weighed as a plan by [`finish`].
//!
//! The result is a function of the arguments. It is held against [`super::exact`] in `tests/heuristic.rs`.

mod arrange;
mod deck;
mod fill;
mod finish;
mod group;
mod layering;
mod local;
mod seeds;

use shoal_core::model::ModelSpec;
use shoal_core::plan::{Plan, Strategy, Wire};
use shoal_core::{Epoch, NodeId, limits};

use self::arrange::{Groups, Table};
use self::deck::Deck;
use self::finish::finish;
use self::local::{Rules, Seen, climb};
use self::seeds::{orders, seeds};
use super::pins::Pins;
use super::problem::Family;
use crate::cost::{Cluster, Objective, Workload};

/// Chunks of prefill that are tried; the largest that fits is taken.
pub(super) const CHUNKS: [u32; 7] = [512, 256, 128, 64, 32, 16, 8];

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask<'q> {
    pub(super) spec: &'q ModelSpec,
    /// Only devices that may be used, by node id.
    pub(super) cluster: &'q Cluster,
    pub(super) workload: &'q Workload,
    pub(super) pins: &'q Pins,
    pub(super) wire: Wire,
    pub(super) epoch: Epoch,
    /// Latency or throughput.
    pub(super) objective: Objective,
    pub(super) family: Family,
    pub(super) strategy: Strategy,
    /// Every device must have a part.
    pub(super) use_all: bool,
    /// Nodes that must have a part.
    pub(super) wanted: &'q [NodeId],
    /// Most devices of a plan.
    pub(super) most: usize,
}

/// What was found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) plan: Plan,
    /// Seconds per token of one stream, or over all streams.
    pub(super) score: f64,
    /// Lists of groups that were priced.
    pub(super) work: u64,
}

/// Beginnings from which local search goes on, and the lists it may price from each, by number of devices.
const EFFORT: [(usize, usize, u64); 4] = [(10, 8, 3000), (32, 4, 3000), (128, 3, 1500), (usize::MAX, 2, 400)];

/// Layouts that are made into plans to find one that fits.
const FINALISTS: usize = 12;

/// A good plan, if one is found. `None`, and the work spent, where none fits.
pub(super) fn find(ask: &Ask<'_>) -> (Option<Found>, u64) {
    let row = u64::from(ask.spec.d_model) * 4;
    let legal = |chunk: &u32| u64::from(*chunk) * row <= limits::ACTIVATION_BYTES;
    let chunks: Vec<u32> = CHUNKS.into_iter().filter(legal).collect();
    let (Some(&largest), Some(&smallest)) = (chunks.first(), chunks.last()) else { return (None, 0) };
    let (found, mut work) = with_chunk(ask, largest);
    if found.is_some() || largest == smallest {
        return (found, work);
    }
    let (mut least, spent) = with_chunk(ask, smallest);
    work += spent;
    // What fits with a chunk fits with a smaller one.
    let (mut too_large, mut fits) = (0, chunks.len() - 1);
    while least.is_some() && fits - too_large > 1 {
        let middle = usize::midpoint(too_large, fits);
        let (found, spent) = with_chunk(ask, chunks[middle]);
        work += spent;
        if found.is_some() {
            (least, fits) = (found, middle);
        } else {
            too_large = middle;
        }
    }
    (least.map(|found| Found { work, ..found }), work)
}

fn with_chunk(ask: &Ask<'_>, chunk_tokens: u32) -> (Option<Found>, u64) {
    let formats = (ask.wire, ask.epoch, chunk_tokens);
    let deck = Deck::new(ask.spec, ask.cluster, ask.workload, ask.pins, formats, ask.objective);
    let n = deck.nodes.len();
    if n == 0 {
        return (None, 0);
    }
    let table = Table::new(&deck);
    let orders = orders(&table);
    let index = |node: &NodeId| Some(deck.nodes.binary_search(node).ok()? as u16);
    let mut wanted: Vec<u16> = ask.wanted.iter().filter_map(index).collect();
    wanted.extend(ask.pins.nodes().filter_map(|node| index(&node)));
    wanted.sort_unstable();
    wanted.dedup();
    let rules = Rules {
        family: ask.family,
        use_all: ask.use_all,
        most: ask.most,
        wanted: &wanted,
        by_speed: &orders[0],
    };
    let mut seen = Seen::new();
    let begin = seeds(&table, &rules, &orders);
    let &(_, starts, work) = EFFORT.iter().find(|(most, ..)| n <= *most).unwrap_or(&EFFORT[EFFORT.len() - 1]);
    for (groups, _) in begin.iter().take(starts) {
        climb(&table, &rules, groups.clone(), &mut seen, work);
    }
    seen.extend(begin);
    let mut best: Vec<(Groups, f64)> = seen.into_iter().collect();
    best.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut found: Option<Found> = None;
    for (groups, score) in best.into_iter().take(FINALISTS) {
        if score >= arrange::UNFIT {
            break;
        }
        if let Some((plan, score)) = finish(&table, &groups, ask.strategy) {
            if found.as_ref().is_none_or(|found| score < found.score) {
                found = Some(Found { plan, score, work: 0 });
            }
        }
    }
    let work = table.priced.get();
    (found.map(|found| Found { work, ..found }), work)
}

/// Whether some plan is found that fits, with the smallest chunk.
pub(super) fn fits(ask: &Ask<'_>) -> bool {
    with_chunk(ask, CHUNKS[CHUNKS.len() - 1]).0.is_some()
}

/// The best plan near `plan` that uses `node` as well: what using it costs.
pub(super) fn with_node(ask: &Ask<'_>, plan: &Plan, node: NodeId) -> Option<Found> {
    let formats = (ask.wire, ask.epoch, plan.chunk_tokens);
    let deck = Deck::new(ask.spec, ask.cluster, ask.workload, ask.pins, formats, ask.objective);
    let table = Table::new(&deck);
    let orders = orders(&table);
    let index = |node: NodeId| Some(deck.nodes.binary_search(&node).ok()? as u16);
    let wanted = [index(node)?];
    let rules =
        Rules { family: ask.family, use_all: false, most: ask.most, wanted: &wanted, by_speed: &orders[0] };
    let mut groups: Groups = Vec::new();
    for stage in &plan.stages {
        let mut group: Vec<u16> = stage.ranks.iter().filter_map(|share| index(share.node)).collect();
        group.sort_unstable();
        groups.push(group);
    }
    let mut seen = Seen::new();
    for at in 0..=groups.len() {
        let mut alone = groups.clone();
        alone.insert(at, vec![wanted[0]]);
        seen.entry(alone).or_insert(f64::NAN);
        let Some(group) = groups.get(at) else { continue };
        let mut joined = groups.clone();
        joined[at].push(wanted[0]);
        joined[at].sort_unstable();
        seen.entry(joined).or_insert(f64::NAN);
        for place in 0..group.len() {
            let mut instead = groups.clone();
            instead[at][place] = wanted[0];
            instead[at].sort_unstable();
            seen.entry(instead).or_insert(f64::NAN);
        }
    }
    seen.insert(vec![vec![wanted[0]]], f64::NAN);
    let mut starts: Vec<(Groups, f64)> = seen
        .into_keys()
        .filter(|groups| rules.allow(groups))
        .map(|groups| {
            let score = table.score(&groups);
            (groups, score)
        })
        .collect();
    starts.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut seen = Seen::new();
    for (groups, _) in starts.iter().take(2) {
        climb(&table, &rules, groups.clone(), &mut seen, AROUND);
    }
    seen.extend(starts);
    let mut best: Vec<(Groups, f64)> = seen.into_iter().collect();
    best.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut plans = best.into_iter().take(3).filter_map(|(groups, _)| finish(&table, &groups, ask.strategy));
    let (plan, score) = plans.next()?;
    Some(Found { plan, score, work: table.priced.get() })
}

/// Lists of groups priced around a plan to see what a node costs.
const AROUND: u64 = 300;
