//! Plans beside a plan: one thing moved a little. Whether the chosen plan is the best of them is measured.

use shoal_cluster::cost::Cluster;
use shoal_cluster::planner::{Arrangement, RankShare, StageShares, plan_from_shares};
use shoal_core::limits::VOCAB_TILE;
use shoal_core::{ModelSpec, NodeId, Plan, shard};

/// Feed-forward columns move by one part in so many: what a figure can tell.
const FFN_STEP: u32 = 16;

/// A plan that differs from the chosen one in one thing.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Neighbour {
    /// What is different.
    pub(super) what: String,
    pub(super) plan: Plan,
}

/// Up to `count` neighbours of `plan` that fit, as different in kind as there are.
pub(super) fn neighbours(plan: &Plan, spec: &ModelSpec, cluster: &Cluster, count: usize) -> Vec<Neighbour> {
    let base = arrangement(plan, spec);
    let kinds = [
        layers_moved(&base),
        heads_moved(&base),
        columns_moved(&base),
        boards_swapped(&base, cluster),
        output_moved(&base, plan, spec),
    ];
    let mut kinds = kinds.map(|kind| kind.into_iter());
    let mut found: Vec<Neighbour> = Vec::new();
    // One of each kind in turn, until none is left or there are enough.
    loop {
        let mut any = false;
        for kind in &mut kinds {
            let Some((what, arrangement)) = kind.next() else { continue };
            any = true;
            let Ok(other) = plan_from_shares(spec, &arrangement) else { continue };
            let fits = |&node: &NodeId| {
                let usable = cluster.device(node).map_or_else(Default::default, |device| device.usable);
                shard::footprint(&other, spec, node).total() <= usable
            };
            let new = other.stages != plan.stages || other.head != plan.head;
            let new = new && found.iter().all(|f| f.plan.stages != other.stages || f.plan.head != other.head);
            if new && other.nodes().iter().all(fits) && found.len() < count {
                found.push(Neighbour { what, plan: other });
            }
        }
        if !any || found.len() >= count {
            return found;
        }
    }
}

type Moved = Vec<(String, Arrangement)>;

/// The plan by its counts.
fn arrangement(plan: &Plan, spec: &ModelSpec) -> Arrangement {
    let stage = |stage: &shoal_core::plan::Stage| StageShares {
        layers: stage.layers.len(),
        ranks: stage
            .ranks
            .iter()
            .map(|share| RankShare {
                node: share.node,
                q_heads: share.q_heads.len(),
                ffn_blocks: share.ffn.len().div_ceil(spec.ffn_block()),
            })
            .collect(),
        sums: stage.sums,
    };
    Arrangement {
        strategy: plan.strategy,
        stages: plan.stages.iter().map(stage).collect(),
        head: plan.head.iter().map(|head| (head.node, head.rows.len().div_ceil(VOCAB_TILE))).collect(),
        chunk_tokens: plan.chunk_tokens,
        wire: plan.wire,
        kv: plan.kv,
        epoch: plan.epoch,
    }
}

/// Ordered pairs of neighbouring indices below `n`: (0, 1), (1, 0), (1, 2), …
fn pairs(n: usize) -> impl Iterator<Item = (usize, usize)> {
    (1..n).flat_map(|at| [(at - 1, at), (at, at - 1)])
}

fn layers_moved(base: &Arrangement) -> Moved {
    let moved =
        pairs(base.stages.len()).filter(|(from, _)| base.stages[*from].layers > 1).map(|(from, to)| {
            let mut other = base.clone();
            other.stages[from].layers -= 1;
            other.stages[to].layers += 1;
            (format!("a layer from stage {from} to stage {to}"), other)
        });
    moved.collect()
}

fn within_stages(base: &Arrangement) -> impl Iterator<Item = (usize, usize, usize)> {
    let stages = base.stages.iter().enumerate();
    stages.flat_map(|(stage, shares)| pairs(shares.ranks.len()).map(move |(from, to)| (stage, from, to)))
}

fn heads_moved(base: &Arrangement) -> Moved {
    let places = within_stages(base).filter(|&(stage, from, _)| base.stages[stage].ranks[from].q_heads > 0);
    let moved = places.map(|(stage, from, to)| {
        let mut other = base.clone();
        other.stages[stage].ranks[from].q_heads -= 1;
        other.stages[stage].ranks[to].q_heads += 1;
        (format!("a query head from rank {from} to rank {to} of stage {stage}"), other)
    });
    moved.collect()
}

fn columns_moved(base: &Arrangement) -> Moved {
    let blocks = |stage: &StageShares| stage.ranks.iter().map(|rank| rank.ffn_blocks).sum::<u32>();
    let moved = within_stages(base).filter_map(|(stage, from, to)| {
        let step = (blocks(&base.stages[stage]) / FFN_STEP).max(1);
        let step = step.min(base.stages[stage].ranks[from].ffn_blocks);
        let mut other = base.clone();
        other.stages[stage].ranks[from].ffn_blocks -= step;
        other.stages[stage].ranks[to].ffn_blocks += step;
        let what = format!("{step} FFN block(s) from rank {from} to rank {to} of stage {stage}");
        (step > 0).then_some((what, other))
    });
    moved.collect()
}

fn boards_swapped(base: &Arrangement, cluster: &Cluster) -> Moved {
    let ranks = base.stages.iter().flat_map(|stage| &stage.ranks).map(|rank| rank.node);
    let nodes: Vec<NodeId> = ranks.collect();
    let name = |node: NodeId| cluster.device(node).map_or_else(|| node.short(), |d| d.name.clone());
    let mut moved = Moved::new();
    for (at, &a) in nodes.iter().enumerate() {
        for &b in &nodes[at + 1..] {
            let swap = |node: &mut NodeId| match *node {
                node_a if node_a == a => *node = b,
                node_b if node_b == b => *node = a,
                _ => {}
            };
            let mut other = base.clone();
            other.stages.iter_mut().flat_map(|stage| &mut stage.ranks).for_each(|rank| swap(&mut rank.node));
            other.head.iter_mut().for_each(|head| swap(&mut head.0));
            moved.push((format!("{} and {} swapped", name(a), name(b)), other));
        }
    }
    moved
}

/// The output head elsewhere: on one rank of the last stage, on all nodes, and a tenth of a rank's rows moved.
fn output_moved(base: &Arrangement, plan: &Plan, spec: &ModelSpec) -> Moved {
    let tiles = spec.vocab.div_ceil(VOCAB_TILE);
    let spread = |nodes: &[NodeId]| {
        let n = nodes.len() as u32;
        let share = |at: u32| tiles / n + u32::from(at < tiles % n);
        let head = nodes.iter().enumerate().map(|(at, &node)| (node, share(at as u32)));
        Arrangement { head: head.filter(|head| head.1 > 0).collect(), ..base.clone() }
    };
    let last: Vec<NodeId> = plan.stages[plan.last_stage()].ranks.iter().map(|share| share.node).collect();
    let mut moved = vec![
        ("the output head on all boards, evenly".to_owned(), spread(plan.nodes())),
        ("the output head on the last stage, evenly".to_owned(), spread(&last)),
        ("the output head on one board of the last stage".to_owned(), spread(&last[..1])),
    ];
    for (from, to) in pairs(base.head.len()) {
        let step = (base.head[from].1 / 10).max(1);
        let mut other = base.clone();
        other.head[from].1 = other.head[from].1.saturating_sub(step);
        other.head[to].1 += step;
        if other.head[from].1 > 0 {
            moved.push((format!("{step} vocabulary tile(s) from head rank {from} to {to}"), other));
        }
    }
    moved
}

#[cfg(test)]
mod tests {
    use shoal_cluster::cost::{Device, Link, Links};
    use shoal_core::plan::{KvBudget, Strategy, Sums, Wire};
    use shoal_core::profile::{ContextRate, DeviceProfile, KindRate, Measured};
    use shoal_core::units::{Bytes, BytesPerSec, MacsPerSec, Seconds};
    use shoal_core::{Epoch, QuantType};

    use super::*;
    use crate::model::Model;

    fn cluster(nodes: u8) -> Cluster {
        let profile = DeviceProfile {
            rates: vec![KindRate::flat(QuantType::Q8_0, BytesPerSec(1e9), MacsPerSec(1e9))],
            attention: ContextRate::flat(BytesPerSec(1e9)),
            phase_overhead: Measured::exact(Seconds(1e-6)),
            threads: 1,
            kernel_set: String::new(),
        };
        let device = |id: u8| Device {
            node: NodeId([id; 16]),
            name: format!("n{id}"),
            profile: profile.clone(),
            usable: Bytes(1 << 30),
            power: None,
        };
        Cluster { devices: (1..=nodes).map(device).collect(), links: Links::new(Link::LOOPBACK) }
    }

    #[test]
    fn neighbours_differ_from_the_plan_and_from_each_other_and_fit() {
        let spec = Model::embedded().unwrap().spec;
        let rank = |id: u8, q_heads, ffn_blocks| RankShare { node: NodeId([id; 16]), q_heads, ffn_blocks };
        let blocks = spec.ffn.div_ceil(spec.ffn_block());
        let half = spec.n_heads / 2;
        let base = Arrangement {
            strategy: Strategy::Hybrid,
            stages: vec![
                StageShares {
                    layers: spec.n_layers - 2,
                    ranks: vec![rank(1, half, blocks / 2), rank(2, spec.n_heads - half, blocks - blocks / 2)],
                    sums: Sums::default(),
                },
                StageShares { layers: 2, ranks: vec![rank(3, spec.n_heads, blocks)], sums: Sums::default() },
            ],
            head: vec![(NodeId([3; 16]), spec.vocab.div_ceil(VOCAB_TILE))],
            chunk_tokens: 8,
            wire: Wire::default(),
            kv: KvBudget { context: 64, sequences: 1 },
            epoch: Epoch::default(),
        };
        let plan = plan_from_shares(&spec, &base).unwrap();
        assert_eq!(arrangement(&plan, &spec), base, "a plan and its counts are the same");
        let cluster = cluster(3);
        let found = neighbours(&plan, &spec, &cluster, 12);
        assert!(found.len() >= 10, "{found:?}");
        for word in ["layer", "query head", "FFN", "swapped", "output head"] {
            assert!(found.iter().any(|n| n.what.contains(word)), "no {word}: {found:?}");
        }
        for (at, one) in found.iter().enumerate() {
            assert!(one.plan.stages != plan.stages || one.plan.head != plan.head, "{}", one.what);
            assert!(found[..at].iter().all(|other| other.plan != one.plan), "{} twice", one.what);
        }
        assert_eq!(neighbours(&plan, &spec, &cluster, 3).len(), 3);
        let tight = |device: &Device| Device { usable: Bytes(1), ..device.clone() };
        let tight = Cluster { devices: cluster.devices.iter().map(tight).collect(), ..cluster.clone() };
        assert!(neighbours(&plan, &spec, &tight, 12).is_empty());
    }
}
