//! The cost model: its parts add up, its bound is one, and an emulated device is charged what a plan is.

mod common;

use common::{cluster, large, llama, node, small, workload};
use shoal_cluster::cost::{Cluster, DevicePrice, Link, Workload, lower_bound_ms, predict, prefill};
use shoal_cluster::planner::{Arrangement, RankShare, StageShares, plan_from_shares};
use shoal_cluster::sampling::uniform;
use shoal_core::model::ModelSpec;
use shoal_core::plan::{AllReduce, KvBudget, Plan, Strategy, Sums, Wire};
use shoal_core::profile::{BatchRate, ContextRate, Measured, Power};
use shoal_core::units::{MacsPerSec, Watts};
use shoal_core::{Bytes, BytesPerSec, Epoch, NodeId, QuantType, Term};

const PLENTY: Bytes = Bytes::mib(1 << 16);

/// Numbers in [0, 1) by turns.
struct Dice(u64, u64);

impl Dice {
    fn roll(&mut self) -> f64 {
        self.1 += 1;
        uniform(self.0, 77, self.1)
    }

    fn below(&mut self, n: u32) -> u32 {
        (self.roll() * f64::from(n)) as u32
    }

    /// `total` in `parts` of at least `least` each.
    fn split(&mut self, total: u32, parts: u32, least: u32) -> Vec<u32> {
        let mut counts = vec![least; parts as usize];
        for _ in 0..total - parts * least {
            counts[self.below(parts) as usize] += 1;
        }
        counts
    }
}

/// Any plan of these devices: stages, groups, shares, head and exchanges drawn.
fn random_plan(spec: &ModelSpec, devices: &[NodeId], dice: &mut Dice) -> Plan {
    let mut nodes = devices.to_vec();
    for at in (1..nodes.len()).rev() {
        nodes.swap(at, dice.below(at as u32 + 1) as usize);
    }
    let used = 1 + dice.below(nodes.len() as u32);
    nodes.truncate(used as usize);
    let stages = 1 + dice.below(used.min(spec.n_layers));
    let sizes = dice.split(used, stages, 1);
    let layers = dice.split(spec.n_layers, stages, 1);
    let how = [AllReduce::Direct, AllReduce::ReduceScatter, AllReduce::Star][dice.below(3) as usize];
    let mut left = nodes.iter().copied();
    let mut last = Vec::new();
    let stages = sizes.into_iter().zip(layers).map(|(size, layers)| {
        let members: Vec<NodeId> = left.by_ref().take(size as usize).collect();
        let heads = dice.split(spec.n_heads, size, 0);
        let blocks = dice.split(spec.ffn.div_ceil(spec.ffn_block()), size, 0);
        let ranks = members.iter().zip(heads).zip(blocks);
        let ranks =
            ranks.map(|((&node, q_heads), ffn_blocks)| RankShare { node, q_heads, ffn_blocks }).collect();
        last = members;
        StageShares { layers, ranks, sums: Sums::all(how) }
    });
    let stages: Vec<StageShares> = stages.collect();
    let on = if dice.below(2) == 0 { last } else { nodes };
    let tiles = dice.split(spec.vocab_tiles(), on.len() as u32, 1);
    let arrangement = Arrangement {
        strategy: Strategy::Hybrid,
        stages,
        head: on.into_iter().zip(tiles).collect(),
        chunk_tokens: 1 + dice.below(64),
        wire: Wire::default(),
        kv: KvBudget { context: 512, sequences: 1 + dice.below(16) },
        epoch: Epoch { term: Term(1), counter: 1 },
    };
    plan_from_shares(spec, &arrangement).expect("drawn counts add up")
}

/// Devices and links that differ in every figure.
fn random_cluster(n: u32, dice: &mut Dice) -> Cluster {
    let speeds: Vec<f64> = (0..n).map(|_| 1.0 + 30.0 * dice.roll()).collect();
    let mut cluster = cluster(&speeds, PLENTY);
    for device in &mut cluster.devices {
        let profile = &mut device.profile;
        for rate in &mut profile.rates {
            rate.stream.median.0 *= 0.3 + dice.roll();
            rate.batched = [(1, 0.4), (4, 1.0), (16, 1.0 + dice.roll()), (64, 2.0 + dice.roll())]
                .map(|(rows, factor)| {
                    let rate = MacsPerSec(rate.stream.median.0 * 4.0 * factor);
                    BatchRate { rows, rate: Measured::exact(rate) }
                })
                .to_vec();
        }
        profile.attention = [(16, 0.5), (256, 1.0), (4096, 0.7)]
            .map(|(context, factor)| ContextRate {
                context,
                rate: Measured::exact(BytesPerSec(1e9 * factor * (1.0 + 9.0 * dice.roll()))),
            })
            .to_vec();
        profile.phase_overhead.median.0 *= dice.roll() + 0.01;
        device.power = Some(Power { idle: Watts(2.0), busy: Watts(2.0 + 10.0 * dice.roll()) });
    }
    let ids: Vec<NodeId> = cluster.devices.iter().map(|device| device.node).collect();
    for &from in &ids {
        for &to in ids.iter().filter(|&&to| to != from) {
            if dice.below(5) > 0 {
                let mut link = Link::new(20e-6 + 500e-6 * dice.roll(), 1e7 + 2e8 * dice.roll());
                link.cpu *= dice.roll();
                link.shared = dice.below(6) == 0;
                cluster.links.set(from, to, link);
            }
        }
    }
    cluster
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

/// Random plans on random clusters, with what they were drawn for.
fn cases(count: u64) -> impl Iterator<Item = (ModelSpec, Cluster, Plan, Workload)> {
    let specs = [small(), llama(3, 512, (8, 2), 1536, 2048, QuantType::Q4_0)];
    (0..count).map(move |seed| {
        let mut dice = Dice(seed, 0);
        let spec = specs[dice.below(2) as usize].clone();
        let count = 1 + dice.below(6);
        let cluster = random_cluster(count, &mut dice);
        let nodes: Vec<NodeId> = cluster.devices.iter().map(|device| device.node).collect();
        let plan = random_plan(&spec, &nodes, &mut dice);
        let work = Workload { prompt_len: 1 + dice.below(300), ..workload(plan.kv.sequences) };
        (spec, cluster, plan, work)
    })
}

#[test]
fn no_plan_is_faster_than_the_bound_and_the_bound_is_not_far() {
    let mut nearest = f64::INFINITY;
    for (spec, cluster, plan, work) in cases(3000) {
        let bound = lower_bound_ms(&spec, &cluster, &work);
        let predicted = predict(&plan, &spec, &cluster, &work).expect("all nodes have rates").decode_ms;
        assert!(bound > 0.0 && predicted >= bound, "{predicted} ms is less than {bound} ms: {plan:?}");
        nearest = nearest.min(predicted / bound);
    }
    assert!(nearest < 1.000_001, "the nearest plan takes {nearest} of the bound");
}

#[test]
fn where_links_are_slow_one_device_is_the_bound() {
    let (spec, work) = (large(), workload(1));
    let mut cluster = cluster(&[10.0, 8.0, 9.0], PLENTY);
    cluster.links = shoal_cluster::cost::Links::new(Link::new(0.5, 1e6));
    let alone = Cluster { devices: vec![cluster.devices[0].clone()], links: cluster.links.clone() };
    // The output head's bound spreads over all devices as if nothing were sent; layers do not.
    let (bound, one) = (lower_bound_ms(&spec, &cluster, &work), lower_bound_ms(&spec, &alone, &work));
    assert!(bound <= one && bound > 0.9 * one, "{bound} {one}");
}

#[test]
fn parts_of_a_token_add_up() {
    for (spec, cluster, plan, work) in cases(500) {
        let p = predict(&plan, &spec, &cluster, &work).expect("all nodes have rates");
        let b = p.breakdown;
        let parts = b.compute_ms + b.all_reduce_ms + b.hops_ms + b.head_ms + b.control_ms;
        assert!(close(parts, p.decode_ms), "{parts} {}", p.decode_ms);
        for node in &p.nodes {
            let parts = node.compute_ms + node.all_reduce_ms + node.hop_ms + node.wait_ms + node.idle_ms;
            assert!(close(parts, p.decode_ms), "{parts} {}", p.decode_ms);
        }
    }
}

#[test]
fn an_emulated_device_is_charged_what_the_plan_is() {
    for (spec, cluster, plan, work) in cases(300) {
        let p = predict(&plan, &spec, &cluster, &work).expect("all nodes have rates");
        let context = (work.prompt_len + work.decode_len / 2).min(work.context);
        for part in &p.nodes {
            let device = cluster.device(part.node).expect("the plan's nodes are the cluster's");
            let price = DevicePrice::new(&spec, &device.profile, &plan, part.node).expect("it has rates");
            let mut sum = price.head(1).0 + price.embed(1).0;
            if let Some(place) = plan.place(part.node) {
                for layer in plan.stages[place.stage].layers.iter() {
                    sum += price.attention(layer, std::iter::once(context - 1)).0;
                    sum += price.feed_forward(layer, 1).0;
                }
            }
            assert!(close(sum * 1e3, part.compute_ms), "{sum} {}", part.compute_ms);
        }
    }
}

#[test]
fn rows_at_their_own_positions_cost_what_their_contexts_do() {
    let (spec, cluster) = (small(), cluster(&[10.0], PLENTY));
    let plan = random_plan(&spec, &[node(0)], &mut Dice(1, 0));
    let price = DevicePrice::new(&spec, &cluster.devices[0].profile, &plan, node(0)).expect("it has rates");
    let time = |positions: &[u32]| price.attention(0, positions.iter().copied()).0;
    assert!(close(time(&[99, 299]), time(&[199, 199])), "flat attention costs by the sum of contexts");
    assert!(time(&[300, 300]) > time(&[10, 10]));
    assert_eq!(time(&[]), 0.0);
    assert_eq!((price.feed_forward(0, 0).0, price.head(0).0), (0.0, 0.0));
    assert_eq!(price.attention(spec.n_layers, [1].into_iter()).0, 0.0);
}

#[test]
fn energy_counts_idling_for_the_whole_token_and_work_for_its_kernels() {
    let spec = small();
    let mut cluster = cluster(&[10.0, 5.0], PLENTY);
    let plan = random_plan(&spec, &[node(0)], &mut Dice(1, 0));
    let work = workload(1);
    let of = |cluster: &Cluster| predict(&plan, &spec, cluster, &work).expect("it has rates");
    assert_eq!(of(&cluster).joules_per_token, None);
    cluster.devices[0].power = Some(Power { idle: Watts(3.0), busy: Watts(8.0) });
    let p = of(&cluster);
    // Of the other device nothing is asked: it is not used.
    let joules = p.joules_per_token.expect("the used device has power figures");
    let by_hand = (3.0 * p.decode_ms + 5.0 * p.nodes[0].compute_ms) / 1e3;
    assert!(close(joules, by_hand), "{joules} {by_hand}");
}

#[test]
fn more_streams_cost_less_energy_each() {
    let mut fewer = 0;
    for (spec, cluster, plan, work) in cases(100) {
        let joules = |streams| {
            let work = Workload { streams, ..work };
            let p = predict(&plan, &spec, &cluster, &work).expect("all nodes have rates");
            p.joules_per_token.expect("all devices have power figures")
        };
        fewer += usize::from(joules(8) < joules(1));
    }
    assert!(fewer > 90, "{fewer} of 100");
}

#[test]
fn a_prompt_takes_longer_than_its_part_and_its_figures_agree() {
    for (spec, cluster, plan, work) in cases(200) {
        let of = |tokens| prefill(&plan, &spec, &cluster, tokens).expect("all nodes have rates");
        let (short, long) = (of(work.prompt_len), of(work.prompt_len * 3));
        assert!(long.ttft_ms >= short.ttft_ms);
        assert!(close(short.tps * short.ttft_ms / 1e3, f64::from(work.prompt_len)));
        let p = predict(&plan, &spec, &cluster, &work).expect("all nodes have rates");
        assert_eq!((p.ttft_ms, p.prefill_tps), (short.ttft_ms, short.tps));
    }
}

#[test]
fn head_ranks_elsewhere_queue_at_their_senders() {
    let spec = large();
    let cluster = cluster(&[10.0; 6], PLENTY);
    let on = |head: &[usize]| {
        let stage = |layers, node| StageShares {
            layers,
            ranks: vec![RankShare {
                node,
                q_heads: spec.n_heads,
                ffn_blocks: spec.ffn.div_ceil(spec.ffn_block()),
            }],
            sums: Sums::default(),
        };
        let tiles = spec.vocab_tiles();
        let share = tiles / head.len() as u32;
        let mut tiles: Vec<u32> = head.iter().map(|_| share).collect();
        tiles[0] = spec.vocab_tiles() - share * (head.len() as u32 - 1);
        let arrangement = Arrangement {
            strategy: Strategy::Hybrid,
            stages: vec![stage(16, node(0)), stage(16, node(1))],
            head: head.iter().map(|&at| node(at)).zip(tiles).collect(),
            chunk_tokens: 32,
            wire: Wire::default(),
            kv: KvBudget { context: 512, sequences: 1 },
            epoch: Epoch { term: Term(1), counter: 1 },
        };
        let plan = plan_from_shares(&spec, &arrangement).expect("the counts add up");
        let p = predict(&plan, &spec, &cluster, &workload(1)).expect("all nodes have rates");
        let compute = DevicePrice::new(&spec, &cluster.devices[head[0]].profile, &plan, node(head[0]));
        p.breakdown.head_ms - compute.expect("it has rates").head(1).0 * 1e3
    };
    let row = 4096.0 * 4.0;
    assert!(on(&[1]).abs() < 1e-9);
    assert!((on(&[0]) - 1e3 * Link::GIGABIT.time(row)).abs() < 1e-9);
    let four = 1e3 * (Link::GIGABIT.time(row) + 3.0 * Link::GIGABIT.occupied(row));
    assert!((on(&[0, 2, 3, 4]) - four).abs() < 1e-9);
}
