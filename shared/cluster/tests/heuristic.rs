//! The heuristic against the exact search where that is at hand, and against the lower bound and simple plans where
//! it is not.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shoal_cluster::cost::{Cluster, Link, Links, Workload};
use shoal_cluster::planner::{Choice, NoPlan, Options, choose};
use shoal_core::plan::Strategy;
use shoal_core::{Bytes, ModelSpec, QuantType};

mod common;

use common::{device, llama};

/// No work for the exact search: the heuristic alone.
fn heuristic() -> Options {
    Options { effort: Some(0), ..Options::default() }
}

struct Case {
    spec: ModelSpec,
    cluster: Cluster,
    workload: Workload,
}

fn log_uniform(rng: &mut impl Rng, least: f64, most: f64) -> f64 {
    (rng.random_range(least.ln()..most.ln())).exp()
}

/// A model of a random shape, devices that differ up to eightfold in speed and memory, links of a few kinds between
/// islands; memory is tight in a third of the cases.
fn case(seed: u64, n: usize) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let layers = rng.random_range(4..=40);
    let kv = 1 << rng.random_range(1..=3_u32);
    let heads = kv * (1 << rng.random_range(0..=2_u32));
    let d_model = heads * [64, 128][rng.random_range(0..2)];
    let kind = [QuantType::Q8_0, QuantType::Q4_0][rng.random_range(0..2)];
    let spec = llama(
        layers,
        d_model,
        (heads, kv),
        (d_model * 86 / 32).next_multiple_of(32),
        rng.random_range(8..126) * 256,
        kind,
    );
    let streams = [1, 1, 4, 16][rng.random_range(0..4)];
    let workload =
        Workload { context: 512, streams, prompt_len: 64, decode_len: Workload::DECODE_LEN, objective: None };
    let whole = spec.total_bytes().0 as f64;
    let tight = rng.random_range(0..3) == 0;
    let mut devices = Vec::new();
    for index in 0..n {
        // Speeds that make a token of this model take as long as tokens take on boards.
        let speed = whole / 1e9 * log_uniform(&mut rng, 2.0, 16.0);
        let room = if tight { log_uniform(&mut rng, 0.1, 0.6) } else { log_uniform(&mut rng, 0.5, 4.0) };
        let usable = Bytes((whole * room) as u64 + (12 << 20));
        devices.push(device(index, speed, usable));
    }
    let mut air = Link::new(2e-3, 25e6);
    air.shared = true;
    let kinds = [Link::GIGABIT, Link::new(80e-6, 280e6), Link::new(400e-6, 11e6), air];
    let default = kinds[rng.random_range(0..kinds.len())];
    let mut links = Links::new(default);
    let islands = rng.random_range(1..=3);
    let island: Vec<usize> = (0..n).map(|_| rng.random_range(0..islands)).collect();
    let inner: Vec<Link> = (0..islands).map(|_| kinds[rng.random_range(0..kinds.len())]).collect();
    for a in 0..n {
        for b in 0..n {
            if a != b && island[a] == island[b] {
                links.set(devices[a].node, devices[b].node, inner[island[a]]);
            }
        }
    }
    Case { spec, cluster: Cluster { devices, links }, workload }
}

fn plan(case: &Case, options: &Options) -> Result<Choice, Box<NoPlan>> {
    choose(&case.spec, &case.cluster, &case.workload, options)
}

/// How often, over these seeds, the heuristic is within 5 % of the exact plan; it must have one where that has.
#[expect(clippy::print_stdout, reason = "names the seeds that are far off")]
fn compare(seeds: std::ops::Range<u64>) -> (usize, usize, f64) {
    let (mut cases, mut close, mut worst) = (0, 0, 1.0_f64);
    for seed in seeds {
        let case = case(seed, 6 + (seed % 5) as usize);
        let Ok(exact) = plan(&case, &Options::default()) else { continue };
        assert!(exact.gap >= 0.0 && (!exact.optimal || exact.gap == 0.0), "seed {seed}: {}", exact.gap);
        let found = plan(&case, &heuristic());
        let found = found.unwrap_or_else(|no| panic!("seed {seed}: only the exact search has a plan: {no}"));
        let ratio = found.figure / exact.figure;
        let general = found.bound;
        assert!(
            general <= exact.figure * (1.0 + 1e-9),
            "seed {seed}: {general} is no bound of {}",
            exact.figure
        );
        cases += 1;
        close += usize::from(ratio <= 1.05);
        worst = worst.max(ratio);
        if ratio > 1.05 {
            println!("seed {seed}: {ratio:.3} times {:?}, {:?}", exact.strategy(), found.strategy());
        }
    }
    (cases, close, worst)
}

/// Seeds to try: one that is named, or these.
fn seeds(all: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let named = std::env::var("SHOAL_PLANNER_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    named.map_or(all, |seed| seed..seed + 1)
}

#[expect(clippy::print_stdout, reason = "the figures of a run are worth a look")]
fn close_enough(all: std::ops::Range<u64>) {
    let (cases, close, worst) = compare(seeds(all));
    println!("{close} of {cases} within 5 %, the worst {worst:.3}");
    // One case in a hundred, begun hundreds counted whole.
    assert!(cases - close <= cases.div_ceil(100), "{close} of {cases} within 5 %, the worst {worst}");
}

#[test]
fn few_devices_are_planned_for_nearly_as_well_as_by_exact_search() {
    close_enough(0..100);
}

#[test]
#[ignore = "takes minutes; the same on all seeds"]
fn two_thousand_clusters_are_planned_for_nearly_as_well_as_by_exact_search() {
    close_enough(0..2000);
}

/// Plans that need no search: each device alone, all in a row, all in one group.
fn simple_plans(case: &Case) -> f64 {
    let figure = |strategy| {
        let options = Options { strategy: Some(strategy), ..heuristic() };
        plan(case, &options).map_or(f64::INFINITY, |choice| choice.figure)
    };
    [Strategy::Single, Strategy::StaticLayer].into_iter().map(figure).fold(f64::INFINITY, f64::min)
}

#[test]
fn many_devices_are_planned_for_above_the_bound_and_below_simple_plans() {
    for seed in 0..24 {
        let case = case(seed, 11 + (seed % 10) as usize * 3);
        let Ok(choice) = plan(&case, &Options::default()) else { continue };
        assert!(!choice.optimal && choice.gap > 0.0 && choice.gap < 1.0, "seed {seed}: {}", choice.gap);
        assert!(choice.figure >= choice.bound && choice.bound > 0.0, "seed {seed}");
        let prediction = &choice.chosen.prediction;
        assert!(prediction.decode_ms >= choice.lower_bound_ms, "seed {seed}");
        assert!(prediction.nodes.iter().all(|node| node.memory.total() <= node.usable), "seed {seed}");
        let simple = simple_plans(&case);
        assert!(choice.figure <= simple * (1.0 + 1e-9), "seed {seed}: {} {simple}", choice.figure);
        // More devices than the others of an island have no worse plan.
        let mut fewer = case.cluster.clone();
        fewer.devices.truncate(8);
        let fewer = choose(&case.spec, &fewer, &case.workload, &Options::default());
        let fewer = fewer.map_or(f64::INFINITY, |choice| choice.figure);
        assert!(choice.figure <= fewer * 1.05, "seed {seed}: {} for all, {fewer} for eight", choice.figure);
    }
}

#[test]
fn the_order_of_devices_changes_nothing() {
    for seed in 100..106 {
        let of = || case(seed, 7 + (seed % 3) as usize * 6);
        let (case, mut turned) = (of(), of());
        turned.cluster.devices.reverse();
        turned.cluster.devices.rotate_left(2);
        for options in [Options::default(), heuristic()] {
            match (plan(&case, &options), plan(&case, &options), plan(&turned, &options)) {
                (Ok(a), Ok(b), Ok(c)) => {
                    assert_eq!(a.chosen.plan, b.chosen.plan);
                    assert_eq!(a.chosen.plan, c.chosen.plan);
                    assert_eq!(a.left_out, c.left_out);
                    assert_eq!((a.reason, a.limits), (c.reason, c.limits));
                }
                (Err(a), Err(b), Err(c)) => assert!(a == b && a == c, "{a} {c}"),
                _ => panic!("seed {seed}: a plan for one order only"),
            }
        }
    }
}

#[test]
fn hundreds_of_devices_are_planned_for_on_paper_alone() {
    let case = case(7, 90);
    let all = plan(&case, &asked(Strategy::AdaptiveLayer)).unwrap();
    assert!(all.chosen.plan.nodes().len() > 1);
    let live = Options { max_workers: Some(3), ..Options::default() };
    for outcome in plan(&case, &live).map(|choice| choice.outcomes).unwrap_or_default() {
        let Ok(priced) = outcome.result else { continue };
        assert!(priced.plan.nodes().len() <= 3, "{:?}", outcome.strategy);
    }
}

fn asked(strategy: Strategy) -> Options {
    Options { strategy: Some(strategy), ..Options::default() }
}
