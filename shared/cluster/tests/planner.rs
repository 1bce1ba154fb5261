//! What the planner promises: plans that fit, all five strategies, one choice with its reason.

use std::time::Instant;

use proptest::prelude::*;
use shoal_cluster::cost::{Cluster, Link, Links, Objective, predict};
use shoal_cluster::planner::{
    Arrangement, Choice, Options, RankShare, StageShares, choose, plan_from_shares,
};
use shoal_core::plan::{AllReduce, KvBudget, PlanError, Strategy as How, Sums, Wire};
use shoal_core::{Bytes, Epoch, ModelSpec, QuantType, limits};

mod common;

use common::{cluster, device, large, llama, node, small, workload};

fn asked(strategy: How) -> Options {
    Options { strategy: Some(strategy), ..Options::default() }
}

/// Every plan of the choice keeps to memory and above the bound.
fn sound(choice: &Choice) {
    for outcome in &choice.outcomes {
        let Ok(priced) = &outcome.result else { continue };
        assert_eq!(priced.plan.strategy, outcome.strategy);
        for node in &priced.prediction.nodes {
            assert!(node.memory.total() <= node.usable, "{:?}: {node:?}", outcome.strategy);
        }
        let p = &priced.prediction;
        assert!(p.decode_ms >= choice.lower_bound_ms, "{p:?}");
        assert!(p.decode_ms.is_finite() && p.ttft_ms > 0.0 && p.prefill_tps > 0.0 && p.efficiency > 0.0);
        let rates: Vec<f64> = p.aggregate.iter().map(|a| a.tps).collect();
        assert!(rates.iter().all(|tps| *tps > 0.0));
    }
}

#[test]
fn every_strategy_runs_on_one_to_five_workers() {
    let spec = small();
    for n in 1..=5 {
        let cluster = cluster(&[4.0, 3.0, 2.0, 4.0, 1.0][..n], Bytes::mib(64));
        for strategy in How::ALL {
            let choice = choose(&spec, &cluster, &workload(1), &asked(strategy)).unwrap();
            sound(&choice);
            let plan = &choice.chosen.plan;
            assert_eq!(plan.strategy, strategy);
            assert_eq!(choice.outcomes.iter().map(|o| o.strategy).collect::<Vec<_>>(), How::ALL);
            let ranks: Vec<usize> = plan.stages.iter().map(|stage| stage.ranks.len()).collect();
            match strategy {
                How::Single => assert_eq!(ranks, [1]),
                How::StaticLayer => {
                    assert_eq!(ranks, vec![1; n]);
                    let layers: Vec<u32> = plan.stages.iter().map(|stage| stage.layers.len()).collect();
                    assert!(layers.iter().max().unwrap() - layers.iter().min().unwrap() <= 1);
                }
                How::AdaptiveLayer => assert_eq!(ranks, vec![1; n]),
                How::Head => assert_eq!(ranks, [n]),
                How::Hybrid => {
                    assert_eq!(ranks.iter().sum::<usize>(), n);
                    assert!(n < 3 || (ranks.len() > 1 && ranks.iter().any(|&r| r > 1)), "{ranks:?}");
                }
            }
            assert_eq!(choice.left_out.len(), n - plan.nodes().len());
        }
    }
}

#[test]
fn faster_devices_take_more() {
    let spec = small();
    let cluster = cluster(&[1.0, 3.0], Bytes::mib(64));
    let plan = choose(&spec, &cluster, &workload(4), &asked(How::AdaptiveLayer)).unwrap().chosen.plan;
    let layers = |index| plan.stages[plan.place(node(index)).unwrap().stage].layers.len();
    assert!(layers(1) > layers(0), "{:?}", plan.stages);
    let plan = choose(&spec, &cluster, &workload(1), &asked(How::Head)).unwrap().chosen.plan;
    let share = |index| plan.share(node(index)).unwrap();
    assert_eq!((share(0).q_heads.len(), share(1).q_heads.len()), (2, 6));
    assert_eq!((share(0).ffn.len(), share(1).ffn.len()), (192, 576));
}

#[test]
fn budgets_under_the_model_are_kept() {
    let spec = small();
    let whole = spec.total_bytes().0;
    for n in 3..=5 {
        let cluster = cluster(&[4.0, 4.0, 2.0, 1.0, 1.0][..n], Bytes(whole * 3 / 4));
        for strategy in How::ALL {
            match choose(&spec, &cluster, &workload(1), &asked(strategy)) {
                Ok(choice) => sound(&choice),
                Err(no) => {
                    assert_eq!(strategy, How::Single, "{no}");
                    assert!(
                        no.strategies[0].1.missing.len() == n && no.to_string().contains("missing on board-")
                    );
                }
            }
        }
    }
}

#[test]
fn uneven_memory_moves_work_to_where_there_is_room() {
    let spec = small();
    let mut cluster = cluster(&[8.0, 1.0, 1.0], Bytes::mib(64));
    cluster.devices[0].usable = Bytes(spec.total_bytes().0 / 3);
    for strategy in [How::AdaptiveLayer, How::Head, How::Hybrid] {
        sound(&choose(&spec, &cluster, &workload(1), &asked(strategy)).unwrap());
    }
}

#[test]
fn nothing_fits_says_what_is_missing_where() {
    let spec = large();
    let cluster = cluster(&[8.0, 8.0], Bytes::mib(64));
    let no = choose(&spec, &cluster, &workload(1), &Options::default()).unwrap_err();
    assert_eq!(no.strategies.len(), 5);
    for (strategy, why) in &no.strategies {
        assert!(
            !why.missing.is_empty() && why.missing.iter().all(|m| m.bytes.0 > 0),
            "{strategy:?}: {why:?}"
        );
    }
    assert!(no.to_string().contains("GB missing on board-0"), "{no}");
    let empty = Cluster { devices: Vec::new(), links: Links::new(Link::GIGABIT) };
    assert_eq!(choose(&spec, &empty, &workload(1), &Options::default()).unwrap_err().devices, 0);
}

#[test]
fn a_small_model_stays_on_one_device_and_a_large_one_is_split() {
    let rooms = cluster(&[8.0; 4], Bytes(16 << 30));
    let choice = choose(&small(), &rooms, &workload(1), &Options::default()).unwrap();
    assert_eq!(choice.strategy(), How::Single);
    assert!(choice.reason.contains("one device alone is fastest"), "{}", choice.reason);
    assert_eq!(choice.left_out.len(), 3);
    let choice = choose(&large(), &rooms, &workload(1), &Options::default()).unwrap();
    assert_eq!(choice.strategy(), How::Head, "{}", choice.reason);
    sound(&choice);
    let single = choice.outcomes[0].result.as_ref().unwrap().prediction.decode_ms;
    assert!(choice.chosen.prediction.decode_ms < single / 2.5);
}

#[test]
fn a_layer_split_does_not_shorten_one_stream_but_serves_more() {
    let cluster = cluster(&[8.0; 3], Bytes(16 << 30));
    let one = choose(&large(), &cluster, &workload(1), &asked(How::StaticLayer)).unwrap().chosen.prediction;
    let single = choose(&large(), &cluster, &workload(1), &asked(How::Single)).unwrap().chosen.prediction;
    assert!(one.decode_ms > single.decode_ms * 0.9);
    let many = choose(&large(), &cluster, &workload(3), &asked(How::StaticLayer)).unwrap().chosen.prediction;
    assert!(many.throughput() > 2.0 * single.decode_tps);
    assert!(many.efficiency <= 1.0, "{}", many.efficiency);
}

#[test]
fn odd_devices_are_left_out_with_a_reason() {
    let spec = small();
    let mut cluster = cluster(&[2.0; 4], Bytes::mib(64));
    cluster.devices[1].profile.rates[0].stream.median.0 = f64::NAN;
    cluster.devices[2].profile.rates.clear();
    let options = Options { exclude: vec![node(3)], ..asked(How::Head) };
    let choice = choose(&spec, &cluster, &workload(1), &options).unwrap();
    assert_eq!(choice.chosen.plan.nodes(), [node(0)]);
    let reasons: Vec<&str> = choice.left_out.iter().map(|left| left.reason.as_str()).collect();
    assert_eq!(reasons.len(), 3);
    assert!(reasons[0].contains("weight streaming rate"));
    assert_eq!(reasons[2], "excluded");
}

#[test]
fn sixty_four_devices_are_planned_for_in_a_moment() {
    let spec = large();
    let speeds: Vec<f64> = (0..64).map(|i| 2.0 + f64::from(i % 7)).collect();
    let cluster = cluster(&speeds, Bytes(2 << 30));
    let start = Instant::now();
    let choice = choose(&spec, &cluster, &workload(8), &Options::default()).unwrap();
    let took = start.elapsed();
    sound(&choice);
    // One second in a release build on the reference machine; tests run less optimised and in parallel.
    assert!(took.as_secs_f64() < 8.0, "{took:?}");
}

#[test]
fn fixed_shares_make_the_plan_they_say() {
    let spec = small();
    let rank = |index, q_heads, ffn_blocks| RankShare { node: node(index), q_heads, ffn_blocks };
    let star = Sums::all(AllReduce::Star);
    let mut arrangement = Arrangement {
        strategy: How::Hybrid,
        stages: vec![
            StageShares { layers: 3, ranks: vec![rank(2, 5, 1), rank(0, 3, 23)], sums: star },
            StageShares { layers: 5, ranks: vec![rank(1, 8, 24)], sums: star },
        ],
        head: vec![(node(0), 6), (node(2), 10)],
        chunk_tokens: 64,
        wire: Wire::default(),
        kv: KvBudget { context: 512, sequences: 4 },
        epoch: Epoch::default(),
    };
    let plan = plan_from_shares(&spec, &arrangement).unwrap();
    assert_eq!(plan.stages[0].ranks[1].ffn.first, 32);
    assert_eq!(plan.head[1].rows.end, 4096);
    let cluster = cluster(&[1.0; 3], Bytes::mib(64));
    let prediction = predict(&plan, &spec, &cluster, &workload(2)).unwrap();
    assert!(prediction.bytes_per_token.hops > 0.0 && prediction.bytes_per_token.all_reduce > 0.0);
    arrangement.stages[0].ranks[0].q_heads = 6;
    assert!(matches!(
        plan_from_shares(&spec, &arrangement),
        Err(PlanError::Short { .. } | PlanError::Gap { .. })
    ));
}

fn any_case() -> impl Strategy<Value = (ModelSpec, Cluster, u32, Option<How>)> {
    let devices = proptest::collection::vec((0.5_f64..10.0, 1_u64..40), 1..7);
    let strategy = prop_oneof![Just(None), (0_usize..5).prop_map(|at| Some(How::ALL[at]))];
    (1_u32..12, devices, prop_oneof![Just(1_u32), 2_u32..20], strategy).prop_map(
        |(layers, devices, streams, how)| {
            let spec = llama(layers, 256, (8, 4), 672, 3000, QuantType::Q8_0);
            let devices =
                devices.into_iter().enumerate().map(|(i, (speed, mib))| device(i, speed, Bytes::mib(mib)));
            (spec, Cluster { devices: devices.collect(), links: Links::new(Link::LOOPBACK) }, streams, how)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_plan_is_a_function_of_its_arguments((spec, cluster, streams, how) in any_case(), turn in 0_usize..6) {
        let options = Options { strategy: how, ..Options::default() };
        let mut turned = cluster.clone();
        let at = turn % turned.devices.len();
        turned.devices.rotate_left(at);
        let mut load = workload(streams);
        if turn == 0 {
            load.objective = Some(Objective::Throughput);
        }
        let (a, b) = (choose(&spec, &cluster, &load, &options), choose(&spec, &turned, &load, &options));
        match (a, b) {
            (Ok(a), Ok(b)) => {
                sound(&a);
                prop_assert_eq!(a.chosen.plan, b.chosen.plan);
                prop_assert_eq!(a.chosen.prediction, b.chosen.prediction);
                prop_assert_eq!(a.reason, b.reason);
                prop_assert_eq!(a.left_out, b.left_out);
            }
            (Err(a), Err(b)) => {
                prop_assert_eq!(&a.strategies, &b.strategies);
                for (_, why) in &a.strategies {
                    prop_assert!(!why.missing.is_empty() || spec.n_layers < 2 || cluster.devices.len() < 2, "{why}");
                }
            }
            (a, b) => prop_assert!(false, "{:?} and {:?}", a.map(|c| c.chosen.plan), b.map(|c| c.chosen.plan)),
        }
        prop_assert!(limits::WORKERS >= cluster.devices.len());
    }
}
