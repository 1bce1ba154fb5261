//! What is missing where no plan fits: bytes by board and in all, and the smallest board that would help.

use shoal_core::plan::{KvBudget, Plan, Strategy, Sums};
use shoal_core::units::Bytes;
use shoal_core::{NodeId, limits};

use super::build::{Arrangement, RankShare, StageShares, plan_from_shares};
use super::heuristic::{self, CHUNKS};
use super::problem::{Family, Goal};
use super::share::largest_remainder;
use super::strategies::Planner;
use super::{Infeasible, Missing};
use crate::cost::{Cluster, Device, Objective};

/// Parts of what is missing that one more board is tried with, from just that up: it holds buffers, and whole layers.
const ADDITIONS: [f64; 12] = [1.0, 1.02, 1.05, 1.1, 1.2, 1.35, 1.6, 2.0, 2.7, 4.0, 6.0, 9.0];

/// Up to this many devices the smallest addition is looked for: each try is a search.
const ADDITION_DEVICES: usize = 64;

/// Why this strategy has no plan, with what the attempt that came nearest lacks.
pub(super) fn infeasible(planner: &Planner<'_>, strategy: Strategy) -> Infeasible {
    let devices = planner.cluster.devices.len();
    let missing = nearest(planner, strategy);
    let reason = if devices == 0 {
        "there is no device to plan for".to_owned()
    } else if missing.is_empty() && !planner.pins.is_empty() {
        "no plan of this kind keeps the pins".to_owned()
    } else if missing.is_empty() {
        format!("the model cannot be cut this way for {devices} device(s), or their memory is too uneven")
    } else {
        match strategy {
            Strategy::Single => "no device has the memory for all of it",
            Strategy::StaticLayer => "equal layers do not fit every device",
            Strategy::AdaptiveLayer => "no split of the layers fits",
            Strategy::Head => "no split of heads and columns fits",
            Strategy::Hybrid => "no mixture of groups fits",
        }
        .to_owned()
    };
    Infeasible { reason, missing }
}

/// What the plan of this strategy that comes nearest lacks: everything in proportion to memory. For `single`, what each
/// device lacks, since any one of them with its bytes would do.
fn nearest(planner: &Planner<'_>, strategy: Strategy) -> Vec<Missing> {
    let devices: Vec<&Device> = planner.cluster.devices.iter().take(planner.most()).collect();
    let total = |missing: &Vec<Missing>| missing.iter().map(|m| m.bytes.0).fold(0, u64::saturating_add);
    let lacks = |groups: Vec<Vec<&Device>>| {
        let missing = proportional(planner, &groups, strategy).map(|plan| planner.missing(&plan));
        missing.filter(|missing| !missing.is_empty())
    };
    let layers = planner.spec.n_layers as usize;
    let alone = || devices.iter().take(layers).map(|&device| vec![device]).collect::<Vec<_>>();
    let found = match strategy {
        Strategy::Single => {
            return devices
                .iter()
                .flat_map(|&device| lacks(vec![vec![device]]).unwrap_or_default())
                .collect();
        }
        Strategy::StaticLayer => {
            return planner.static_layer().err().unwrap_or_default();
        }
        _ if devices.is_empty() => None,
        Strategy::AdaptiveLayer => lacks(alone()),
        Strategy::Head => lacks(vec![devices.clone()]),
        Strategy::Hybrid => {
            let half = devices.len().div_ceil(2);
            let halves = devices.chunks(half).map(<[&Device]>::to_vec).collect();
            let all = [lacks(alone()), lacks(vec![devices.clone()]), lacks(halves)];
            all.into_iter().flatten().min_by_key(total)
        }
    };
    found.unwrap_or_default()
}

/// These groups with everything in proportion to memory, with the smallest chunk.
fn proportional(planner: &Planner<'_>, groups: &[Vec<&Device>], strategy: Strategy) -> Option<Plan> {
    let spec = planner.spec;
    let memory = |device: &&Device| device.usable.0 as f64;
    let sums: Vec<f64> = groups.iter().map(|group| group.iter().map(memory).sum()).collect();
    let mut layers = largest_remainder(spec.n_layers, &sums);
    // Each stage has a layer: taken from the longest.
    while let Some(empty) = layers.iter().position(|&count| count == 0) {
        let longest = (0..layers.len()).max_by_key(|&at| layers[at])?;
        if layers[longest] < 2 {
            return None;
        }
        layers[longest] -= 1;
        layers[empty] += 1;
    }
    let blocks = spec.ffn.div_ceil(spec.ffn_block());
    let stage = |(group, &layers): (&Vec<&Device>, &u32)| {
        let weights: Vec<f64> = group.iter().map(memory).collect();
        let q_heads = largest_remainder(spec.n_heads, &weights);
        let shares = group.iter().zip(q_heads).zip(largest_remainder(blocks, &weights));
        let rank = |((device, q_heads), ffn_blocks): ((&&Device, u32), u32)| RankShare {
            node: device.node,
            q_heads,
            ffn_blocks,
        };
        StageShares { layers, ranks: shares.map(rank).collect(), sums: Sums::default() }
    };
    let all: Vec<&Device> = groups.concat();
    let tiles = largest_remainder(spec.vocab_tiles(), &all.iter().map(memory).collect::<Vec<_>>());
    let head = all.iter().zip(tiles).filter(|entry| entry.1 > 0).map(|(device, tiles)| (device.node, tiles));
    let arrangement = Arrangement {
        strategy,
        stages: groups.iter().zip(&layers).map(stage).collect(),
        head: head.collect(),
        chunk_tokens: CHUNKS[CHUNKS.len() - 1],
        wire: planner.options.wire,
        kv: KvBudget {
            context: planner.workload.context.clamp(1, spec.context.max(1)),
            sequences: planner.workload.streams.clamp(1, limits::SEQUENCES as u32),
        },
        epoch: planner.options.epoch,
    };
    plan_from_shares(spec, &arrangement).ok()
}

/// Usable memory with which one more board, otherwise like the fastest, makes a plan possible, and not much less does.
/// `family`: of the strategy asked for, or any.
pub(super) fn addition(planner: &Planner<'_>, family: Family, missing: Bytes) -> Option<Bytes> {
    let n = planner.cluster.devices.len();
    if n == 0 || n > ADDITION_DEVICES || missing.0 == 0 || n >= planner.most() {
        return None;
    }
    let asked = planner.options.strategy;
    let fastest = planner
        .cluster
        .devices
        .iter()
        .max_by(|a, b| rate(a).total_cmp(&rate(b)).then(b.node.cmp(&a.node)))?;
    let node = free_id(&planner.cluster.devices);
    ADDITIONS.into_iter().find_map(|part| {
        let usable = Bytes((missing.0 as f64 * part) as u64);
        let mut devices = planner.cluster.devices.clone();
        devices.push(Device { node, usable, ..fastest.clone() });
        devices.sort_by_key(|device| device.node);
        let cluster = Cluster { devices, links: planner.cluster.links.clone() };
        let goal = match planner.workload.objective() {
            Objective::Latency => Goal::Latency,
            Objective::Throughput | Objective::Energy => Goal::Throughput,
        };
        if asked == Some(Strategy::StaticLayer) {
            // Equal layers for one more: a search would find others.
            let pins = planner.pins.clone();
            let with = Planner::new(planner.spec, &cluster, planner.workload, planner.options, pins);
            return with.static_layer().ok().map(|_| usable);
        }
        // Who asks for a strategy asks for all devices, where it has a use for them.
        let use_all = asked.is_some_and(|asked| asked != Strategy::Single);
        let ask = planner.ask(family, Strategy::Hybrid, use_all, goal, &[]);
        heuristic::find(&heuristic::Ask { cluster: &cluster, ..ask }).0.map(|_| usable)
    })
}

fn rate(device: &Device) -> f64 {
    device.profile.rates.first().map_or(0.0, |rate| rate.stream.median.0)
}

/// An id that no device has.
fn free_id(devices: &[Device]) -> NodeId {
    let mut id = NodeId([0xff; 16]);
    let mut last = 0xff;
    while devices.iter().any(|device| device.node == id) {
        last -= 1;
        id.0[15] = last;
    }
    id
}
