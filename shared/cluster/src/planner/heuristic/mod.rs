//! A good plan on any number of devices, without a proof that it is the best.
//!
//! Devices are put into a few orders (by speed, by memory, by islands of fast links), each order is cut into runs that
//! become groups by dynamic programming ([`seeds`]), and the best cuts are improved by moving, swapping, merging and
//! splitting ([`local`]) until no single move helps or the work is spent. A list of groups is priced by [`arrange`]: the
//! shares of each group follow speed and give way to memory ([`group`], [`ranks`]), layers go to groups so that the sum or the
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
mod ranks;
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
    /// Every device must have a part, or as many as there are layers where each needs one of its own.
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
}

/// Beginnings from which local search goes on, and the lists it may price from each, by number of devices.
const EFFORT: [(usize, usize, u64); 4] = [(10, 8, 3000), (32, 4, 3000), (128, 3, 1000), (usize::MAX, 2, 400)];

/// Layouts that are made into plans to find one that fits.
const FINALISTS: usize = 12;

/// The same where none of these fits.
const LAST_RESORT: usize = 400;

/// Lists of groups priced around a plan, from each of two beginnings, and those made into plans.
const AROUND: u64 = 250;
const AROUND_FINALISTS: usize = 3;

/// Chunks of prefill that this model may have, the largest first.
pub(super) fn legal_chunks(spec: &ModelSpec) -> impl Iterator<Item = u32> {
    let row = u64::from(spec.d_model) * 4;
    CHUNKS.into_iter().filter(move |&chunk| u64::from(chunk) * row <= limits::ACTIVATION_BYTES)
}

/// A good plan, if one is found, and the work spent: lists of groups that were priced.
///
/// It is made with the smallest chunk of prefill, which leaves the most memory, and then given the largest that fits.
pub(super) fn find(ask: &Ask<'_>) -> (Option<Found>, u64) {
    let Some(chunk_tokens) = legal_chunks(ask.spec).last() else { return (None, 0) };
    let formats = (ask.wire, ask.epoch, chunk_tokens);
    let deck = Deck::new(ask.spec, ask.cluster, ask.workload, ask.pins, formats, ask.objective);
    let n = deck.nodes.len();
    if n == 0 {
        return (None, 0);
    }
    let table = Table::new(&deck, everyone(ask, n));
    let orders = orders(&table);
    let index = |node: &NodeId| Some(deck.nodes.binary_search(node).ok()? as u16);
    let mut wanted: Vec<u16> = ask.wanted.iter().filter_map(index).collect();
    wanted.extend(ask.pins.nodes().filter_map(|node| index(&node)));
    wanted.sort_unstable();
    wanted.dedup();
    let rules = rules(ask, &deck, &wanted, &orders[0]);
    let mut seen = Seen::new();
    let begin = seeds(&table, &rules, &orders);
    let &(_, starts, work) = EFFORT.iter().find(|(most, ..)| n <= *most).unwrap_or(&EFFORT[EFFORT.len() - 1]);
    for (groups, _) in begin.iter().take(starts) {
        climb(&table, &rules, groups.clone(), &mut seen, work);
    }
    seen.extend(begin);
    let found = finalist(&table, seen, FINALISTS, ask.strategy);
    (found, table.priced.get())
}

fn rules<'r>(ask: &Ask<'_>, deck: &Deck<'_>, wanted: &'r [u16], by_speed: &'r [u16]) -> Rules<'r> {
    let layers = if ask.family == Family::Layers { deck.layers } else { usize::MAX };
    let exactly = ask.use_all.then_some(deck.nodes.len().min(ask.most).min(layers));
    Rules { family: ask.family, exactly, most: ask.most, wanted, by_speed }
}

/// Up to this many devices, those without layers may have some of the output head: each more is an answer to wait for.
const EVERYONE: usize = 16;

/// Whether devices without layers may have some of the output head.
fn everyone(ask: &Ask<'_>, devices: usize) -> bool {
    ask.family != Family::Single && devices <= EVERYONE && devices <= ask.most
}

/// A plan near this one that is better, or the best one found near it that uses `node` as well.
pub(super) fn near(ask: &Ask<'_>, plan: &Plan, node: Option<NodeId>) -> Option<Found> {
    let formats = (ask.wire, ask.epoch, legal_chunks(ask.spec).last()?);
    let deck = Deck::new(ask.spec, ask.cluster, ask.workload, ask.pins, formats, ask.objective);
    let table = Table::new(&deck, everyone(ask, deck.nodes.len()));
    let orders = orders(&table);
    let index = |node: NodeId| Some(deck.nodes.binary_search(&node).ok()? as u16);
    let mut wanted: Vec<u16> = ask.pins.nodes().chain(node).filter_map(index).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let rules = rules(ask, &deck, &wanted, &orders[0]);
    let mut groups: Groups = Vec::new();
    for stage in &plan.stages {
        let mut group: Vec<u16> = stage.ranks.iter().filter_map(|share| index(share.node)).collect();
        group.sort_unstable();
        groups.push(group);
    }
    let mut lists = match node {
        Some(node) => with(&groups, index(node)?),
        None => vec![groups],
    };
    lists.sort_unstable();
    lists.dedup();
    lists.retain(|groups| rules.allow(groups));
    let scored = |groups: Groups| {
        let score = table.score(&groups);
        (groups, score)
    };
    let mut starts: Vec<(Groups, f64)> = lists.into_iter().map(scored).collect();
    starts.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut seen = Seen::new();
    for (groups, _) in starts.iter().take(2) {
        climb(&table, &rules, groups.clone(), &mut seen, AROUND);
    }
    seen.extend(starts);
    finalist(&table, seen, AROUND_FINALISTS, ask.strategy)
}

/// The groups with one more device: joining any of them, as one of its own anywhere, in any other's place, or alone.
fn with(groups: &Groups, device: u16) -> Vec<Groups> {
    let mut out = vec![vec![vec![device]]];
    for at in 0..=groups.len() {
        let mut alone = groups.clone();
        alone.insert(at, vec![device]);
        out.push(alone);
        let Some(group) = groups.get(at) else { continue };
        let mut joined = groups.clone();
        joined[at].push(device);
        joined[at].sort_unstable();
        out.push(joined);
        for place in 0..group.len() {
            let mut instead = groups.clone();
            instead[at][place] = device;
            instead[at].sort_unstable();
            out.push(instead);
        }
    }
    out
}

/// The best plan of the lists with the best scores, so many of them.
fn finalist(table: &Table<'_, '_>, seen: Seen, most: usize, strategy: Strategy) -> Option<Found> {
    let mut best: Vec<(Groups, f64)> = seen.into_iter().collect();
    best.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut found: Option<Found> = None;
    for (at, (groups, score)) in best.into_iter().take(LAST_RESORT).enumerate() {
        // Where what the lines say fits does not, the next ones are tried until one does.
        if score >= arrange::UNFIT || (at >= most && found.is_some()) {
            break;
        }
        if let Some((plan, score)) = finish(table, &groups, strategy)
            && found.as_ref().is_none_or(|found| score < found.score)
        {
            found = Some(Found { plan, score });
        }
    }
    found
}
