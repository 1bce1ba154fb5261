//! The exact planner against every plan there is, on random clusters of up to five devices.

mod case;

use shoal_cluster::cost::predict;
use shoal_cluster::planner::exact::{NoSolution, Query, Solution, WORK, solve};
use shoal_cluster::planner::problem::{Family, Goal, HeadMode, Problem};
use shoal_cluster::planner::{Arrangement, Pin, RankShare, StageShares, plan_from_shares};
use shoal_core::plan::{AllReduce, KvBudget, Plan, Strategy, Sums, Wire};
use shoal_core::{Epoch, NodeId, shard};

use case::{Case, case, larger, node};

/// Every way to write `total` as a sum of `parts` counts.
fn sums(total: u32, parts: usize) -> Vec<Vec<u32>> {
    if parts == 0 {
        return if total == 0 { vec![Vec::new()] } else { Vec::new() };
    }
    let mut out = Vec::new();
    for first in 0..=total {
        for rest in sums(total - first, parts - 1) {
            out.push([vec![first], rest].concat());
        }
    }
    out
}

/// Every stage sequence: disjoint groups of devices with their numbers of layers.
fn structures(devices: usize, layers: u32) -> Vec<Vec<(Vec<usize>, u32)>> {
    fn extend(
        free: u32,
        layers: u32,
        so_far: &mut Vec<(Vec<usize>, u32)>,
        out: &mut Vec<Vec<(Vec<usize>, u32)>>,
    ) {
        if layers == 0 {
            out.push(so_far.clone());
            return;
        }
        for group in 1..=free {
            if group & free != group {
                continue;
            }
            let members: Vec<usize> = (0..8).filter(|device| group >> device & 1 == 1).collect();
            for count in 1..=layers {
                so_far.push((members.clone(), count));
                extend(free & !group, layers - count, so_far, out);
                so_far.pop();
            }
        }
    }
    let mut out = Vec::new();
    extend((1 << devices) - 1, layers, &mut Vec::new(), &mut out);
    out
}

impl Case {
    fn problem(&self) -> Problem<'_> {
        Problem::new(&self.spec, &self.cluster, &self.workload, Wire::default(), Epoch::default())
    }

    fn query(&self, goal: Goal) -> Query<'_> {
        Query {
            goal,
            family: self.family,
            use_all: self.use_all,
            pins: &self.pins,
            strategy: Strategy::Hybrid,
            work: WORK,
        }
    }

    fn in_family(&self, structure: &[(Vec<usize>, u32)]) -> bool {
        let sizes: Vec<usize> = structure.iter().map(|stage| stage.0.len()).collect();
        let used: usize = sizes.iter().sum();
        let family = match self.family {
            Family::Single => sizes == [1],
            Family::Layers => sizes.iter().all(|&size| size == 1),
            Family::Heads => sizes.len() == 1,
            Family::Mixed => sizes.len() > 1 && sizes.iter().any(|&size| size > 1),
            Family::Any => true,
        };
        family && (!self.use_all || used == self.cluster.devices.len())
    }

    fn pinned(&self, plan: &Plan) -> bool {
        self.pins.iter().all(|pin| match *pin {
            Pin::Layers { node, span } => {
                plan.place(node).is_some_and(|place| plan.stages[place.stage].layers == span)
            }
            Pin::QHeads { node, span } => plan.share(node).is_some_and(|share| share.q_heads == span),
        })
    }

    /// Seconds of what is made least.
    fn cost(&self, plan: &Plan, goal: Goal) -> f64 {
        let prediction =
            predict(plan, &self.spec, &self.cluster, &self.workload).expect("all nodes are known");
        match goal {
            Goal::Latency => prediction.decode_ms / 1e3,
            Goal::Throughput => f64::from(self.workload.streams) / prediction.throughput(),
        }
    }

    fn fits(&self, plan: &Plan) -> bool {
        self.cluster
            .devices
            .iter()
            .all(|device| shard::footprint(plan, &self.spec, device.node).total() <= device.usable)
    }

    /// The least cost of all plans with these chunks, by trying them all.
    fn brute(&self, goal: Goal, chunk: u32) -> Option<f64> {
        let problem = self.problem();
        let spec = &self.spec;
        let blocks = spec.ffn.div_ceil(spec.ffn_block());
        let modes = if self.family == Family::Single { &HeadMode::ALL[..1] } else { &HeadMode::ALL[..] };
        let mut best: Option<f64> = None;
        for structure in structures(self.cluster.devices.len(), spec.n_layers) {
            if !self.in_family(&structure) {
                continue;
            }
            let (rows, _) = problem.step_rows(goal, structure.len());
            let last: Vec<NodeId> =
                structure[structure.len() - 1].0.iter().map(|&at| node(at as u32)).collect();
            let heads: Vec<_> =
                modes.iter().filter_map(|&mode| problem.head_tiles(mode, &last, rows)).collect();
            // Every share of each stage in which each rank has something.
            let shares: Vec<Vec<Vec<(u32, u32)>>> = structure
                .iter()
                .map(|(group, _)| {
                    let mut all = Vec::new();
                    for q_heads in sums(spec.n_heads, group.len()) {
                        for ffn in sums(blocks, group.len()) {
                            let share: Vec<_> = q_heads.iter().copied().zip(ffn).collect();
                            if share.iter().all(|&(q, f)| q + f > 0) {
                                all.push(share);
                            }
                        }
                    }
                    all
                })
                .collect();
            // Which all-reduce is cheapest depends on the group alone: the best choice of all stages is the best
            // of each, so only the group's number is walked here.
            let mut choice = vec![0; shares.len()];
            'shares: loop {
                if shares.iter().any(Vec::is_empty) {
                    break;
                }
                for head in &heads {
                    let arrangement = Arrangement {
                        strategy: Strategy::Hybrid,
                        stages: structure
                            .iter()
                            .zip(&shares)
                            .zip(&choice)
                            .map(|(((group, layers), shares), &at)| StageShares {
                                layers: *layers,
                                ranks: group
                                    .iter()
                                    .zip(&shares[at])
                                    .map(|(&at, &(q_heads, ffn_blocks))| RankShare {
                                        node: node(at as u32),
                                        q_heads,
                                        ffn_blocks,
                                    })
                                    .collect(),
                                sums: Sums::default(),
                            })
                            .collect(),
                        head: head.clone(),
                        chunk_tokens: chunk,
                        wire: Wire::default(),
                        kv: KvBudget { context: self.workload.context, sequences: self.workload.streams },
                        epoch: Epoch::default(),
                    };
                    let plan = plan_from_shares(spec, &arrangement).expect("the counts add up");
                    if !self.pinned(&plan) || !self.fits(&plan) {
                        continue;
                    }
                    let cost = self.best_sums(&arrangement, goal);
                    if best.is_none_or(|best| cost < best) {
                        best = Some(cost);
                    }
                }
                for at in 0..choice.len() {
                    choice[at] += 1;
                    if choice[at] < shares[at].len() {
                        continue 'shares;
                    }
                    choice[at] = 0;
                }
                break;
            }
        }
        best
    }

    /// The plan's cost with the best all-reduce of each stage. A stage's all-reduce changes that stage's time
    /// alone, and no cost falls when it grows, so each is chosen with the others as they are.
    fn best_sums(&self, arrangement: &Arrangement, goal: Goal) -> f64 {
        let cost = |arrangement: &Arrangement| {
            let plan = plan_from_shares(&self.spec, arrangement).expect("the counts add up");
            self.cost(&plan, goal)
        };
        let mut arrangement = arrangement.clone();
        let mut best = cost(&arrangement);
        for stage in 0..arrangement.stages.len() {
            if arrangement.stages[stage].ranks.len() == 1 {
                continue;
            }
            let mut chosen = arrangement.stages[stage].sums;
            for how in [AllReduce::ReduceScatter, AllReduce::Star] {
                arrangement.stages[stage].sums = Sums::all(how);
                let with = cost(&arrangement);
                if with < best {
                    (best, chosen) = (with, Sums::all(how));
                }
            }
            arrangement.stages[stage].sums = chosen;
        }
        best
    }

    /// Whether there is a plan. The answer must be the best of all plans, or that there is none.
    fn check(&self, seed: u64) -> Result<bool, String> {
        let problem = self.problem();
        let mut feasible = false;
        for goal in [Goal::Latency, Goal::Throughput] {
            let devices = self.cluster.devices.len();
            let say = |what: String| {
                format!(
                    "seed {seed}: {devices} devices, {goal:?}, {:?}, all {}: {what}",
                    self.family, self.use_all
                )
            };
            let want = [64, 16, 8].into_iter().find_map(|chunk| self.brute(goal, chunk));
            match (solve(&problem, &self.query(goal)), want) {
                (Ok(got), Some(want)) => {
                    self.sound(&got, goal).map_err(say)?;
                    let off = (got.cost - want) / want;
                    if off.abs() >= 1e-9 || !got.optimal {
                        let optimal = got.optimal;
                        return Err(say(format!("{} for {want} ({off:e}), optimal {optimal}", got.cost)));
                    }
                    feasible = true;
                }
                (Err(NoSolution::Infeasible), None) => {}
                (got, want) => return Err(say(format!("{:?} for {want:?}", got.map(|got| got.cost)))),
            }
        }
        Ok(feasible)
    }

    /// The plan keeps to memory, pins and family, and costs what is said.
    fn sound(&self, got: &Solution, goal: Goal) -> Result<(), String> {
        let cost = self.cost(&got.plan, goal);
        let device = |node| self.cluster.devices.iter().position(|device| device.node == node).unwrap();
        let stages = got.plan.stages.iter();
        let structure: Vec<(Vec<usize>, u32)> = stages
            .map(|stage| (stage.ranks.iter().map(|rank| device(rank.node)).collect(), stage.layers.len()))
            .collect();
        let facts = [
            ("memory", self.fits(&got.plan)),
            ("pins", self.pinned(&got.plan)),
            ("family", self.in_family(&structure)),
            ("bound", got.bound <= got.cost && (0.0..=1.0).contains(&got.gap())),
            ("prediction", (got.cost / cost - 1.0).abs() < 1e-9),
        ];
        match facts.into_iter().find(|fact| !fact.1) {
            Some((what, _)) => {
                Err(format!("{what} of {:?}, {} predicted to be {cost}", got.plan.parts(), got.cost))
            }
            None => Ok(()),
        }
    }
}

/// Devices of the case of a seed: few of five, since these have most plans.
fn devices(seed: u64) -> u32 {
    [1, 2, 2, 3, 3, 3, 4, 4, 2, 5][(seed % 10) as usize]
}

fn check_all(seeds: std::ops::Range<u64>) {
    let count = seeds.end - seeds.start;
    let (mut feasible, mut wrong) = (0, Vec::new());
    for seed in seeds {
        match case(seed, devices(seed)).check(seed) {
            Ok(found) => feasible += u64::from(found),
            Err(what) => wrong.push(what),
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    // Neither all nor none have a plan.
    assert!(feasible * 10 > count * 4 && feasible * 100 < count * 97, "{feasible} of {count}");
}

#[test]
fn the_exact_plan_is_the_best_of_all_plans() {
    check_all(0..120);
}

/// The same on 2,000 clusters: `cargo test -p shoal-cluster --test exact -- --ignored`.
#[test]
#[ignore = "minutes"]
fn the_exact_plan_is_the_best_of_all_plans_on_many_clusters() {
    check_all(1000..3000);
}

#[test]
fn the_order_of_devices_does_not_matter() {
    let mut found = 0;
    for seed in 0..12 {
        let case = larger(seed);
        let mut turned = larger(seed);
        turned.cluster.devices.reverse();
        turned.cluster.devices.swap(1, 3);
        for goal in [Goal::Latency, Goal::Throughput] {
            let one = solve(&case.problem(), &case.query(goal));
            let other = solve(&turned.problem(), &turned.query(goal));
            let again = solve(&case.problem(), &case.query(goal));
            for other in [other, again] {
                match (&one, &other) {
                    (Ok(one), Ok(other)) => {
                        assert_eq!(one.plan.parts(), other.plan.parts(), "seed {seed}");
                        assert_eq!((one.cost, one.bound, one.work), (other.cost, other.bound, other.work));
                        found += 1;
                    }
                    (one, other) => assert_eq!(one.as_ref().err(), other.as_ref().err(), "seed {seed}"),
                }
            }
        }
    }
    assert!(found > 20, "{found}");
}

#[test]
fn a_search_that_ends_early_says_how_far_from_best_it_may_be() {
    let (mut early, mut whole) = (0, 0);
    for seed in 0..12 {
        let case = larger(seed);
        let problem = case.problem();
        for goal in [Goal::Latency, Goal::Throughput] {
            let Ok(best) = solve(&problem, &Query { work: 100 * WORK, ..case.query(goal) }) else { continue };
            assert!(best.optimal && best.gap() < 1e-9, "seed {seed}: {} {}", best.cost, best.bound);
            for work in [500, 2_000, 8_000, 32_000] {
                match solve(&problem, &Query { work, ..case.query(goal) }) {
                    Ok(got) => {
                        case.sound(&got, goal).unwrap_or_else(|what| panic!("seed {seed}: {what}"));
                        let optimum = best.cost * (1.0 + 1e-9);
                        assert!(got.bound <= optimum, "seed {seed}, {work}: {} {optimum}", got.bound);
                        assert!(!got.optimal || got.cost <= optimum, "seed {seed}: {} {optimum}", got.cost);
                        early += u32::from(!got.optimal);
                        whole += u32::from(got.optimal);
                    }
                    Err(none) => assert_eq!(none, NoSolution::Unknown, "seed {seed}"),
                }
            }
        }
    }
    assert!(early > 5 && whole > 5, "{early} {whole}");
}
