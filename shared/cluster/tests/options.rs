//! What a caller may ask of the planner, what it says beside the plan, and what it does with bad input.

use shoal_cluster::cost::{Cluster, Link, Links, Objective};
use shoal_cluster::planner::{Choice, LimitKind, NoPlan, Options, Pin, choose};
use shoal_core::model::shapes::{FileType, Shape};
use shoal_core::plan::{Span, Strategy};
use shoal_core::profile::Power;
use shoal_core::units::Watts;
use shoal_core::{Bytes, BytesPerSec};

mod common;

use common::{cluster, device, large, node, small, workload};

fn asked(strategy: Strategy) -> Options {
    Options { strategy: Some(strategy), ..Options::default() }
}

fn plan(cluster: &Cluster, options: &Options) -> Result<Choice, Box<NoPlan>> {
    choose(&small(), cluster, &workload(1), options)
}

fn layers(index: usize, first: u32, end: u32) -> Pin {
    Pin::Layers { node: node(index), span: Span::new(first, end) }
}

fn heads(index: usize, first: u32, end: u32) -> Pin {
    Pin::QHeads { node: node(index), span: Span::new(first, end) }
}

#[test]
fn pins_are_kept_by_both_searches() {
    let cluster = cluster(&[4.0, 3.0, 2.0, 1.0], Bytes::mib(64));
    let cases = [
        vec![layers(3, 0, 2)],
        vec![layers(1, 2, 5), layers(0, 5, 8)],
        vec![heads(2, 0, 2)],
        vec![layers(0, 3, 8), layers(1, 3, 8), heads(1, 0, 6)],
    ];
    for pins in cases {
        for effort in [None, Some(0)] {
            let options = Options { pins: pins.clone(), effort, ..Options::default() };
            let choice = plan(&cluster, &options).unwrap_or_else(|no| panic!("{pins:?} {effort:?}: {no}"));
            assert_eq!(choice.optimal, effort.is_none(), "{pins:?}");
            for outcome in &choice.outcomes {
                let Ok(priced) = &outcome.result else { continue };
                for pin in &pins {
                    let place = priced.plan.place(pin.node()).expect("a pinned node has layers");
                    let kept = match pin {
                        Pin::Layers { span, .. } => priced.plan.stages[place.stage].layers == *span,
                        Pin::QHeads { node, span } => priced.plan.share(*node).unwrap().q_heads == *span,
                    };
                    assert!(kept, "{pin:?} {effort:?} {:?}: {:?}", outcome.strategy, priced.plan.stages);
                }
            }
        }
    }
}

#[test]
fn pins_that_contradict_each_other_are_both_named() {
    let cluster = cluster(&[4.0, 3.0], Bytes::mib(64));
    let refused = |options: &Options| plan(&cluster, options).unwrap_err().to_string();
    let pinned = |pins: &[Pin]| refused(&Options { pins: pins.to_vec(), ..Options::default() });
    let said = pinned(&[layers(0, 0, 5), layers(1, 4, 8)]);
    assert!(said.contains("layers 0 to 4 on board-0") && said.contains("layers 4 to 7 on board-1"), "{said}");
    let said = pinned(&[layers(0, 0, 5), layers(0, 0, 4)]);
    assert!(said.contains("contradict"), "{said}");
    let said = pinned(&[layers(0, 0, 8), layers(1, 0, 8), heads(0, 0, 5), heads(1, 4, 8)]);
    assert!(said.contains("query heads 0 to 4 on board-0") && said.contains("on board-1"), "{said}");
    let said = pinned(&[layers(0, 0, 9)]);
    assert!(said.contains("the model has 8 layers"), "{said}");
    let said = pinned(&[layers(5, 0, 2)]);
    assert!(said.contains("not among"), "{said}");
    let both = Options { pins: vec![layers(1, 0, 8)], exclude: vec![node(1)], ..Options::default() };
    assert!(refused(&both).contains("excluded as well"));
    // No contradiction, but no plan of one device either.
    let apart = Options { pins: vec![layers(0, 0, 4), layers(1, 4, 8)], ..asked(Strategy::Single) };
    let no = plan(&cluster, &apart).unwrap_err();
    assert!(no.refused.is_none() && no.to_string().contains("keeps the pins"), "{no}");
}

#[test]
fn a_reserve_is_kept_free_on_every_device() {
    let whole = small().total_bytes().0;
    let room = Bytes(whole * 2 + (32 << 20));
    let cluster = cluster(&[8.0, 8.0], room);
    assert_eq!(plan(&cluster, &Options::default()).unwrap().strategy(), Strategy::Single);
    let reserve = Bytes(room.0 - whole * 3 / 4);
    let options = Options { reserve, ..Options::default() };
    let choice = plan(&cluster, &options).unwrap();
    assert!(choice.chosen.plan.nodes().len() == 2);
    for node in &choice.chosen.prediction.nodes {
        assert!(node.memory.total() + reserve <= room);
    }
}

#[test]
fn what_is_missing_is_said_and_one_more_board_with_it_helps() {
    let spec = large();
    let load = workload(1);
    let mut cluster = cluster(&[8.0, 6.0], Bytes(1 << 30));
    let no = choose(&spec, &cluster, &load, &Options::default()).unwrap_err();
    assert!(no.missing.0 > 0 && no.boards.iter().map(|board| board.bytes.0).sum::<u64>() == no.missing.0);
    // Weights, caches and buffers that the boards together do not hold.
    assert!(no.missing.0 + 2 * (1 << 30) >= spec.total_bytes().0, "{no}");
    let addition = no.addition.expect("one more board helps");
    assert!(
        addition >= no.missing.saturating_sub(Bytes(1 << 30)) && no.to_string().contains("one more board"),
        "{no}"
    );
    cluster.devices.push(device(2, 8.0, addition));
    choose(&spec, &cluster, &load, &Options::default()).unwrap();
}

#[test]
fn a_tiny_model_on_fast_boards_is_not_distributed() {
    let spec = Shape::from_name("stories").unwrap().spec(FileType::from_name("Q8_0").unwrap());
    for n in [2, 3, 5] {
        let speeds: Vec<f64> = (0..n).map(|at| 5.0 - 0.4 * at as f64).collect();
        let cluster = cluster(&speeds, Bytes::mib(256));
        let choice = choose(&spec, &cluster, &workload(1), &Options::default()).unwrap();
        assert_eq!(choice.strategy(), Strategy::Single, "{}", choice.reason);
        assert!(choice.optimal && choice.gap == 0.0 && choice.bound == choice.figure);
        assert_eq!(choice.left_out.len(), n - 1);
        for left in &choice.left_out {
            assert!(left.cost.is_some_and(|ms| ms > 0.0), "{left:?}");
            assert!(left.reason.contains("would cost"), "{left:?}");
        }
    }
}

#[test]
fn what_limits_the_plan_is_named() {
    // The fast board is full long before it is slow.
    let spec = large();
    let mut tight = cluster(&[30.0, 5.0], Bytes(8 << 30));
    tight.devices[0].usable = Bytes(2 << 30);
    let choice = choose(&spec, &tight, &workload(1), &Options::default()).unwrap();
    let full = choice.limits.iter().find(|limit| limit.kind == LimitKind::Memory).expect("a board is full");
    assert_eq!(full.node, Some(node(0)));
    assert!(full.text.contains("board-0") && full.share > 0.9, "{full:?}");
    // Slow links: the sums of a group take most of the time when it is asked for.
    let slow = Cluster { links: Links::new(Link::new(20e-3, 10e6)), ..tight.clone() };
    let choice = choose(&spec, &slow, &workload(1), &asked(Strategy::Head)).unwrap();
    let first = choice.limits.iter().find(|limit| limit.kind != LimitKind::Memory).unwrap();
    assert_eq!(first.kind, LimitKind::AllReduce, "{:?}", choice.limits);
    assert!(choice.limits.windows(2).all(|pair| pair[0].share >= pair[1].share));
    assert_eq!(choice.limits.last().unwrap().kind, LimitKind::Scope);
    // The parts of the reason are the prediction's.
    let sums = choice.outcomes[3].result.as_ref().unwrap().prediction.breakdown.all_reduce_ms;
    assert!((first.share - sums / choice.chosen.prediction.decode_ms).abs() < 1e-9);
}

#[test]
fn energy_takes_the_thrifty_board_and_names_one_without_figures() {
    let mut cluster = cluster(&[5.0, 10.0], Bytes(16 << 30));
    let mut load = workload(1);
    load.objective = Some(Objective::Energy);
    let unknown = plan_energy(&cluster, &load).unwrap_err();
    assert!(unknown.to_string().contains("board-0"), "{unknown}");
    let power = |idle, busy| Some(Power { idle: Watts(idle), busy: Watts(busy) });
    cluster.devices[0].power = power(1.0, 3.0);
    cluster.devices[1].power = power(30.0, 80.0);
    let choice = plan_energy(&cluster, &load).unwrap();
    assert_eq!(choice.chosen.plan.nodes(), [node(0)], "{}", choice.reason);
    assert!(!choice.optimal && choice.figure > 0.0 && choice.objective == Objective::Energy);
    assert!(choice.limits.iter().any(|limit| limit.text.contains("energy")), "{:?}", choice.limits);
    // Nearly the same draw: the faster one needs less.
    cluster.devices[1].power = power(1.0, 3.1);
    assert_eq!(plan_energy(&cluster, &load).unwrap().chosen.plan.nodes(), [node(1)]);
}

fn plan_energy(cluster: &Cluster, load: &shoal_cluster::cost::Workload) -> Result<Choice, Box<NoPlan>> {
    choose(&small(), cluster, load, &Options::default())
}

#[test]
fn an_effort_that_ends_early_gives_a_plan_with_a_gap() {
    let spec = large();
    let speeds: Vec<f64> = (0..9).map(|at| 3.0 + f64::from(at * 5 % 7)).collect();
    let cluster = cluster(&speeds, Bytes(1 << 30));
    let load = workload(16);
    let all = choose(&spec, &cluster, &load, &Options { effort: Some(0), ..Options::default() }).unwrap();
    assert!(!all.optimal && all.gap > 0.0 && all.gap < 1.0);
    let little =
        choose(&spec, &cluster, &load, &Options { effort: Some(400), ..Options::default() }).unwrap();
    assert!(little.figure >= little.bound && (little.optimal || little.gap > 0.0));
    assert!(little.figure <= all.figure * 1.001, "{} {}", little.figure, all.figure);
}

#[test]
fn figures_of_no_use_break_nothing() {
    let absurd = [f64::NAN, 0.0, -1.0, f64::INFINITY, 1e300, f64::MIN_POSITIVE];
    for value in absurd {
        let mut cluster = cluster(&[4.0; 4], Bytes::mib(64));
        cluster.devices[0].profile.rates[1].stream.median = BytesPerSec(value);
        cluster.devices[1].profile.attention[0].rate.median = BytesPerSec(value);
        cluster.devices[2].profile.phase_overhead.median.0 = -1.0 - value.abs();
        let choice = plan(&cluster, &asked(Strategy::Head)).unwrap();
        assert_eq!(choice.chosen.plan.nodes(), [node(3)], "{value}");
        assert_eq!(choice.left_out.len(), 3, "{value}: {:?}", choice.left_out);
    }
    // Nothing of use at all, no device, no memory, and a link nobody measured.
    let mut none = cluster(&[4.0; 2], Bytes::mib(64));
    none.devices.iter_mut().for_each(|device| device.profile.rates.clear());
    let no = plan(&none, &Options::default()).unwrap_err();
    assert!(no.devices == 0 && no.left_out.len() == 2 && no.addition.is_none(), "{no}");
    let no = plan(&cluster(&[], Bytes(0)), &Options::default()).unwrap_err();
    assert!(no.devices == 0 && no.to_string().contains("no device"), "{no}");
    let no = plan(&cluster(&[4.0; 3], Bytes(0)), &Options::default()).unwrap_err();
    assert!(no.missing.0 > 0, "{no}");
    let mut some = cluster(&[4.0; 2], Bytes::mib(64));
    some.links.set(node(0), node(9), Link::LOOPBACK);
    assert!(plan(&some, &asked(Strategy::Head)).unwrap().chosen.plan.nodes().len() == 2);
    let huge = cluster(&[4.0; 3], Bytes(u64::MAX));
    assert!(plan(&huge, &Options { reserve: Bytes(1), ..Options::default() }).is_ok());
}

#[test]
fn what_is_said_to_help_a_strategy_does_help_it() {
    let spec = large();
    let load = workload(1);
    let mut helped = 0;
    for strategy in Strategy::ALL {
        for (small_board, fast_board) in [(1 << 30, 2 << 30), (10 << 20, 4 << 30), (1 << 29, 1 << 30)] {
            let mut cluster = cluster(&[8.0, 6.0, 4.0], Bytes(fast_board));
            cluster.devices[1].usable = Bytes(small_board);
            let Err(no) = choose(&spec, &cluster, &load, &asked(strategy)) else { continue };
            let Some(addition) = no.addition else { continue };
            cluster.devices.push(device(3, 8.0, addition));
            let with = choose(&spec, &cluster, &load, &asked(strategy));
            assert!(with.is_ok(), "{strategy:?}: {addition} more do not help: {}", with.unwrap_err());
            helped += 1;
        }
    }
    assert!(helped >= 5, "only {helped} were helped");
}

#[test]
fn only_what_was_searched_for_is_called_the_best() {
    let cluster = cluster(&[8.0, 6.0], Bytes::mib(64));
    let scope = |options: &Options| {
        let choice = plan(&cluster, options).unwrap();
        choice.limits.last().unwrap().text.clone()
    };
    assert!(scope(&Options::default()).starts_with("proven the best by"));
    assert!(scope(&asked(Strategy::Head)).starts_with("proven the best of head by"));
    let fixed = scope(&asked(Strategy::StaticLayer));
    assert!(!fixed.contains("proven") && fixed.contains("nothing was searched for"), "{fixed}");
    // One device has one plan, whatever it is called: there is no next best.
    let alone = Cluster { devices: cluster.devices[..1].to_vec(), links: cluster.links.clone() };
    let choice = plan(&alone, &Options::default()).unwrap();
    assert!(choice.reason.contains("no other strategy has another plan"), "{}", choice.reason);
}
