//! What each of the five strategies gives: by exact search where that can, by the heuristic where it cannot.

use shoal_core::limits;
use shoal_core::model::ModelSpec;
use shoal_core::plan::{HeadShare, KvBudget, Plan, PlanParts, Span, Stage, Strategy, Sums};
use shoal_core::{NodeId, shard};

use super::exact::{self, NoSolution, Query};
use super::heuristic::{self, Ask, CHUNKS};
use super::pins::Pins;
use super::problem::{Family, Goal, Problem};
use super::share::largest_remainder;
use super::{Infeasible, Missing, Options, Outcome, Priced, bound, lack};
use crate::cost::{Cluster, Objective, Workload, predict};

/// Searches of one choice between which its effort is divided: all strategies but `static-layer`, which has one plan.
const SEARCHES: u64 = 4;

/// One planning's inputs.
pub(super) struct Planner<'a> {
    pub(super) spec: &'a ModelSpec,
    /// Only devices that may be used, by node id, with what each may use.
    pub(super) cluster: &'a Cluster,
    pub(super) workload: &'a Workload,
    pub(super) options: &'a Options,
    pub(super) pins: Pins,
    pub(super) problem: Problem<'a>,
}

/// A plan outside the exact search's space is taken where it is better by more than this part.
const FINER: f64 = 1e-3;

/// A search's answer.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    pub(super) plan: Option<Plan>,
    /// No plan of the kind costs less, in seconds per token of one stream or over all streams; 0 where nothing is known.
    pub(super) bound: f64,
    /// Whether the plan is proven the best, or it is proven that there is none.
    pub(super) proven: bool,
    pub(super) work: u64,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        spec: &'a ModelSpec,
        cluster: &'a Cluster,
        workload: &'a Workload,
        options: &'a Options,
        pins: Pins,
    ) -> Self {
        let problem = Problem::new(spec, cluster, workload, options.wire, options.epoch);
        Self { spec, cluster, workload, options, pins, problem }
    }

    /// Most devices of a plan.
    pub(super) fn most(&self) -> usize {
        self.options.max_workers.unwrap_or(limits::PLANNED_WORKERS).min(limits::PLANNED_WORKERS)
    }

    /// Whether plans are searched for exactly.
    pub(super) fn exact(&self) -> bool {
        let n = self.cluster.devices.len();
        n <= exact::DEVICES && n <= self.most() && self.options.effort != Some(0)
    }

    /// What this strategy gives. `use_all`: a device without work is no plan, where the strategy could use it.
    pub(super) fn outcome(&self, strategy: Strategy, use_all: bool) -> Outcome {
        let attempt = if self.workload.objective() == Objective::Energy && strategy != Strategy::StaticLayer {
            self.least_energy(strategy, use_all)
        } else {
            self.attempt(strategy, use_all)
        };
        let bound = self.figure_of(attempt.bound);
        let priced = attempt.plan.map(|plan| self.priced(plan));
        match priced {
            Some(Ok(priced)) => {
                let figure = self.figure(&priced);
                let gap = if attempt.proven { 0.0 } else { (1.0 - bound / figure).clamp(0.0, 1.0) };
                let (optimal, expansions) = (attempt.proven, attempt.work);
                Outcome { strategy, bound: bound.min(figure), result: Ok(priced), optimal, gap, expansions }
            }
            Some(Err(infeasible)) => Outcome {
                strategy,
                result: Err(infeasible),
                optimal: false,
                gap: 1.0,
                bound,
                expansions: attempt.work,
            },
            None => {
                let infeasible = lack::infeasible(self, strategy);
                let gap = if attempt.proven { 0.0 } else { 1.0 };
                let (optimal, expansions) = (attempt.proven, attempt.work);
                Outcome { strategy, result: Err(infeasible), optimal, gap, bound, expansions }
            }
        }
    }

    /// The prediction that goes with a plan.
    pub(super) fn priced(&self, plan: Plan) -> Result<Priced, Infeasible> {
        match predict(&plan, self.spec, self.cluster, self.workload) {
            Ok(prediction) => Ok(Priced { plan, prediction }),
            Err(error) => Err(Infeasible { reason: error.to_string(), missing: Vec::new() }),
        }
    }

    /// The objective of a plan in the unit of [`super::Choice::figure`].
    pub(super) fn figure(&self, priced: &Priced) -> f64 {
        match self.workload.objective() {
            Objective::Latency => priced.prediction.decode_ms,
            Objective::Throughput => 1e3 / priced.prediction.throughput(),
            Objective::Energy => priced.prediction.joules_per_token.unwrap_or(f64::INFINITY),
        }
    }

    /// Seconds of a search in that unit. Of energy nothing is known.
    fn figure_of(&self, seconds: f64) -> f64 {
        match self.workload.objective() {
            Objective::Latency | Objective::Throughput => seconds * 1e3,
            Objective::Energy => 0.0,
        }
    }

    fn attempt(&self, strategy: Strategy, use_all: bool) -> Attempt {
        let goal = match self.workload.objective() {
            Objective::Latency => Goal::Latency,
            Objective::Throughput | Objective::Energy => Goal::Throughput,
        };
        match strategy {
            Strategy::StaticLayer => {
                Attempt { plan: self.static_layer().ok(), bound: 0.0, proven: true, work: 0 }
            }
            Strategy::Single => self.search(Family::Single, strategy, false, goal),
            Strategy::AdaptiveLayer => self.search(Family::Layers, strategy, use_all, goal),
            Strategy::Head => self.search(Family::Heads, strategy, use_all, goal),
            Strategy::Hybrid => {
                let mixed = self.search(Family::Mixed, strategy, use_all, goal);
                if mixed.plan.is_some() {
                    return mixed;
                }
                // Where there is no true mixture, the better of its two extremes.
                let layers = self.search(Family::Layers, strategy, use_all, goal);
                let heads = self.search(Family::Heads, strategy, use_all, goal);
                let work = mixed.work + layers.work + heads.work;
                let (proven, bound) =
                    (layers.proven && heads.proven && mixed.proven, layers.bound.min(heads.bound));
                let cost = |attempt: &Attempt| {
                    attempt.plan.as_ref().map_or(f64::INFINITY, |plan| self.seconds(plan))
                };
                let better = if cost(&heads) < cost(&layers) { heads } else { layers };
                Attempt { proven, bound, work, ..better }
            }
        }
    }

    /// Seconds per token by the goal, of a plan whose devices are all known.
    fn seconds(&self, plan: &Plan) -> f64 {
        let Ok(prediction) = predict(plan, self.spec, self.cluster, self.workload) else {
            return f64::INFINITY;
        };
        match self.workload.objective() {
            Objective::Latency => prediction.decode_ms / 1e3,
            Objective::Throughput | Objective::Energy => 1.0 / prediction.throughput(),
        }
    }

    /// The best plan of a family that can be found.
    fn search(&self, family: Family, strategy: Strategy, use_all: bool, goal: Goal) -> Attempt {
        let mut known = None;
        // More devices than layers cannot all have one: as many as can be is not a question for the exact search.
        let too_many = family == Family::Layers && self.cluster.devices.len() > self.spec.n_layers as usize;
        if self.exact() && !(use_all && too_many) {
            let work = self.options.effort.map_or(exact::WORK, |effort| effort / SEARCHES);
            let query = Query { goal, family, use_all, pins: &self.options.pins, strategy, work };
            match exact::solve(&self.problem, &query) {
                Ok(solution) if solution.optimal => {
                    // The exact search places the output head by rules; a finer placing may be better still.
                    let ask = self.ask(family, strategy, use_all, goal, &[]);
                    let finer = heuristic::near(&ask, &solution.plan, None)
                        .filter(|found| found.score < solution.cost * (1.0 - FINER));
                    let exact::Solution { plan, bound, work, .. } = solution;
                    let plan = finer.map_or(plan, |found| found.plan);
                    return Attempt { plan: Some(plan), bound, proven: true, work };
                }
                Ok(solution) => known = Some(solution),
                Err(NoSolution::Infeasible) => {
                    return Attempt { plan: None, bound: 0.0, proven: true, work: 0 };
                }
                Err(NoSolution::TooLarge | NoSolution::Unknown) => {}
            }
        }
        let (found, work) = heuristic::find(&self.ask(family, strategy, use_all, goal, &[]));
        let bound = bound::seconds(self.spec, self.cluster, self.workload, goal);
        match (known, found) {
            (Some(known), found) => {
                let better = found.filter(|found| found.score < known.cost);
                let plan = better.map_or(known.plan, |found| found.plan);
                Attempt {
                    plan: Some(plan),
                    bound: known.bound.max(bound),
                    proven: false,
                    work: known.work + work,
                }
            }
            (None, found) => Attempt { plan: found.map(|found| found.plan), bound, proven: false, work },
        }
    }

    /// What the heuristic is asked.
    pub(super) fn ask<'q>(
        &'q self,
        family: Family,
        strategy: Strategy,
        use_all: bool,
        goal: Goal,
        wanted: &'q [NodeId],
    ) -> Ask<'q> {
        Ask {
            spec: self.spec,
            cluster: self.cluster,
            workload: self.workload,
            pins: &self.pins,
            wire: self.options.wire,
            epoch: self.options.epoch,
            objective: match goal {
                Goal::Latency => Objective::Latency,
                Goal::Throughput => Objective::Throughput,
            },
            family,
            strategy,
            use_all,
            wanted,
            most: self.most(),
        }
    }

    /// Equal layers and equal parts of the head on all devices, in the order of their ids, with the largest chunk that
    /// fits; or what the plan with the smallest lacks.
    pub(super) fn static_layer(&self) -> Result<Plan, Vec<Missing>> {
        let n = self.cluster.devices.len().min(self.spec.n_layers as usize).min(self.most());
        let devices = &self.cluster.devices[..n];
        let mut last = Vec::new();
        for chunk in CHUNKS {
            if u64::from(chunk) * u64::from(self.spec.d_model) * 4 > limits::ACTIVATION_BYTES {
                continue;
            }
            let nodes: Vec<NodeId> = devices.iter().map(|device| device.node).collect();
            let Some(plan) = self.equal(&nodes, chunk) else { break };
            let missing = self.missing(&plan);
            if missing.is_empty() {
                return if self.pins.kept(&plan) { Ok(plan) } else { Err(Vec::new()) };
            }
            last = missing;
        }
        Err(last)
    }

    fn equal(&self, nodes: &[NodeId], chunk_tokens: u32) -> Option<Plan> {
        let spec = self.spec;
        let even = vec![1.0; nodes.len()];
        let (mut stages, mut head) = (Vec::new(), Vec::new());
        let (mut layer, mut row) = (0, 0);
        let layers = largest_remainder(spec.n_layers, &even);
        let tiles = largest_remainder(spec.vocab_tiles(), &even);
        for ((&node, layers), tiles) in nodes.iter().zip(layers).zip(tiles) {
            let whole = [(node, Span::new(0, spec.n_heads), Span::new(0, spec.ffn))];
            let stage = Stage::from_spans(Span::new(layer, layer + layers), &whole, spec);
            stages.push(Stage { sums: Sums::default(), ..stage });
            layer += layers;
            let end = (row + tiles * limits::VOCAB_TILE).min(spec.vocab);
            if tiles > 0 {
                head.push(HeadShare { node, rows: Span::new(row, end) });
            }
            row = end;
        }
        let kv = KvBudget {
            context: self.workload.context.clamp(1, spec.context.max(1)),
            sequences: self.workload.streams.clamp(1, limits::SEQUENCES as u32),
        };
        let (epoch, wire, strategy) = (self.options.epoch, self.options.wire, Strategy::StaticLayer);
        Plan::try_new(PlanParts { epoch, strategy, stages, head, chunk_tokens, wire, kv }, spec).ok()
    }

    /// Bytes each device of the plan lacks.
    pub(super) fn missing(&self, plan: &Plan) -> Vec<Missing> {
        let lacking = self.cluster.devices.iter().filter_map(|device| {
            let need = shard::footprint(plan, self.spec, device.node).total();
            let bytes = need.saturating_sub(device.usable);
            (bytes.0 > 0).then(|| Missing { node: device.node, name: device.name.clone(), bytes })
        });
        lacking.collect()
    }
}
