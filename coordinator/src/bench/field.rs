//! What is tried: the plans of the strategies, of each device alone and of the neighbours, each different one once.

use std::collections::BTreeMap;

use shoal_cluster::coordinator::{Action, Event};
use shoal_cluster::cost::{Cluster, Objective};
use shoal_cluster::planner::{Choice, Options, choose};
use shoal_core::plan::{Strategy, Wire};
use shoal_core::{ModelSpec, NodeId, Plan};

use super::alone::Alone;
use super::neighbours::{Neighbour, neighbours};
use super::trial::Trial;
use super::work::Work;
use crate::driver::{Driver, JobOptions, Update, plan};
use crate::exit::{Failure, Outcome};
use crate::model::Model;
use crate::show::Show;

/// Devices are measured alone of themselves where that takes no longer than this in a round, by its prediction.
const ALONE_SECONDS: f64 = 20.0;

/// What the caller decides.
#[derive(Debug, Clone)]
pub(crate) struct FieldOptions {
    /// In the order they are shown.
    pub(crate) strategies: Vec<Strategy>,
    /// One plan for all figures, made for this; otherwise figures of one stream are taken of the plan for latency, and
    /// those of several of the plan for throughput.
    pub(crate) objective: Option<Objective>,
    /// Every strategy uses all devices that can take part.
    pub(crate) all_devices: bool,
    pub(crate) wire: Wire,
    pub(crate) exclude: Vec<NodeId>,
    /// Whether devices are measured alone; `None`: where it is cheap.
    pub(crate) alone: Option<bool>,
    /// Neighbours of the chosen plan that are measured.
    pub(crate) neighbours: usize,
}

/// A strategy's plans, as indices of trials, or why there is none.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) strategy: Strategy,
    pub(super) latency: Result<usize, String>,
    pub(super) throughput: Result<usize, String>,
}

/// The chosen plan and those beside it.
#[derive(Debug, Clone)]
pub(super) struct Neighbourhood {
    pub(super) objective: Objective,
    pub(super) strategy: Strategy,
    pub(super) chosen: usize,
    /// What is different, and the trial.
    pub(super) others: Vec<(String, usize)>,
}

/// All that is to be tried.
#[derive(Debug)]
pub(crate) struct Field {
    pub(super) cluster: Cluster,
    pub(super) trials: Vec<Trial>,
    pub(super) entries: Vec<Entry>,
    pub(super) alone: Vec<Alone>,
    pub(super) neighbourhood: Option<Neighbourhood>,
    /// The strategy the planner would take for each objective.
    pub(super) chosen: BTreeMap<&'static str, Strategy>,
}

/// Has the workers measure themselves and their links, and comes back with the cluster as it was measured.
///
/// # Errors
/// No plan fits at all, or the cluster was lost.
pub(crate) async fn survey(
    driver: &mut Driver,
    model: &Model,
    options: &JobOptions,
    show: &Show,
) -> Outcome<Cluster> {
    let planned = plan(driver, model, options, show).await?;
    driver.handle(Event::Stop);
    while !matches!(driver.next().await?, Update::Machine(Action::Idle)) {}
    planned.map_err(|no_plan| Failure::NoPlan(no_plan.to_string()))?;
    Ok(driver.cluster())
}

impl Field {
    /// Plans everything.
    ///
    /// # Errors
    /// No plan fits, by any of the strategies.
    pub(crate) fn new(
        cluster: Cluster,
        spec: &ModelSpec,
        work: &Work,
        options: &FieldOptions,
    ) -> Outcome<Self> {
        let mut field = Self {
            cluster,
            trials: Vec::new(),
            entries: Vec::new(),
            alone: Vec::new(),
            neighbourhood: None,
            chosen: BTreeMap::new(),
        };
        let several: Vec<u32> = work.streams.iter().copied().filter(|&streams| streams > 1).collect();
        let single: Vec<u32> = work.streams.iter().copied().filter(|&streams| streams == 1).collect();
        let latency = field.plans(spec, work, options, options.objective.unwrap_or(Objective::Latency));
        let throughput = match options.objective {
            Some(_) => latency.clone(),
            None => field.plans(spec, work, options, Objective::Throughput),
        };
        let figures_of_one = Wants { decode: true, prefill: true, streams: single };
        let figures_of_several = Wants { decode: false, prefill: false, streams: several.clone() };
        for (at, &strategy) in options.strategies.iter().enumerate() {
            let name = strategy.name();
            let one = latency.plans[at].clone().map(|plan| field.add(plan, name, &figures_of_one));
            let many = match &throughput.plans[at] {
                Ok(plan) if !several.is_empty() => Ok(field.add(plan.clone(), name, &figures_of_several)),
                Ok(_) => one.clone(),
                Err(reason) => Err(reason.clone()),
            };
            field.entries.push(Entry { strategy, latency: one, throughput: many });
        }
        if field.trials.is_empty() {
            let reasons = field.entries.iter().filter_map(|entry| {
                Some(format!("{}: {}", entry.strategy.name(), entry.latency.as_ref().err()?))
            });
            let reasons: Vec<String> = reasons.collect();
            return Err(Failure::NoPlan(format!("failed to find a plan: {}", reasons.join("; "))));
        }
        for (name, plans) in [("latency", &latency), ("throughput", &throughput)] {
            if let Some(strategy) = plans.chosen.as_ref().map(|plan| plan.strategy) {
                field.chosen.insert(name, strategy);
            }
        }
        if options.neighbours > 0 {
            let by_rate = options.objective.map_or(!several.is_empty(), |o| o != Objective::Latency);
            let (objective, plans, wants) = match (by_rate, several.is_empty()) {
                (true, false) => (Objective::Throughput, &throughput, figures_of_several),
                _ => (
                    Objective::Latency,
                    &latency,
                    Wants { decode: true, prefill: false, streams: Vec::new() },
                ),
            };
            if let Some(plan) = plans.chosen.clone() {
                field.add_neighbours(plan, spec, objective, options.neighbours, &wants);
            }
        }
        field.add_alone(spec, work, options.alone);
        Ok(field)
    }

    /// The strategies' plans for an objective.
    fn plans(&self, spec: &ModelSpec, work: &Work, options: &FieldOptions, objective: Objective) -> Plans {
        let workload = work.planned_for(objective, options.objective.is_some());
        let ask = |strategy: Option<Strategy>| {
            let options = Options {
                strategy,
                wire: options.wire,
                exclude: options.exclude.clone(),
                ..Options::default()
            };
            choose(spec, &self.cluster, &workload, &options)
        };
        let free = ask(None);
        let of = |choice: &Choice, strategy: Strategy| {
            let outcome = choice.outcomes.iter().find(|outcome| outcome.strategy == strategy);
            match outcome.map(|outcome| &outcome.result) {
                Some(Ok(priced)) => Ok(priced.plan.clone()),
                Some(Err(infeasible)) => Err(infeasible.to_string()),
                None => Err("the planner does not know it".to_owned()),
            }
        };
        let plan = |&strategy: &Strategy| {
            let forced = options.all_devices.then(|| ask(Some(strategy)));
            match forced.as_ref().unwrap_or(&free) {
                Ok(choice) => of(choice, strategy),
                Err(no_plan) => {
                    let why = no_plan.strategies.iter().find(|(tried, _)| *tried == strategy);
                    Err(why.map_or_else(|| no_plan.to_string(), |(_, infeasible)| infeasible.to_string()))
                }
            }
        };
        let plans = options.strategies.iter().map(plan).collect();
        Plans { plans, chosen: free.ok().map(|choice| choice.chosen.plan) }
    }

    /// The trial of this plan: one that is there and cuts the model the same way, or a new one.
    fn add(&mut self, plan: Plan, label: &str, wants: &Wants) -> usize {
        let at = match self.trials.iter().position(|trial| same(&trial.plan, &plan)) {
            Some(at) => {
                if self.trials[at].label.split(" = ").all(|part| part != label) {
                    self.trials[at].label.push_str(&format!(" = {label}"));
                }
                // The larger cache holds what either asks for.
                if plan.kv.sequences > self.trials[at].plan.kv.sequences {
                    self.trials[at].plan = plan;
                }
                at
            }
            None => {
                let label = label.to_owned();
                self.trials.push(Trial { plan, label, decode: false, prefill: false, streams: Vec::new() });
                self.trials.len() - 1
            }
        };
        let trial = &mut self.trials[at];
        trial.decode |= wants.decode;
        trial.prefill |= wants.prefill;
        trial.streams.extend(&wants.streams);
        trial.streams.sort_unstable();
        trial.streams.dedup();
        at
    }

    fn add_neighbours(
        &mut self,
        plan: Plan,
        spec: &ModelSpec,
        objective: Objective,
        count: usize,
        wants: &Wants,
    ) {
        let strategy = plan.strategy;
        let found = neighbours(&plan, spec, &self.cluster, count);
        let chosen = self.add(plan, "chosen", wants);
        let others = found.into_iter().map(|Neighbour { what, plan }| {
            let trial = self.add(plan, &what, wants);
            (what, trial)
        });
        let others = others.collect();
        self.neighbourhood = Some(Neighbourhood { objective, strategy, chosen, others });
    }

    fn add_alone(&mut self, spec: &ModelSpec, work: &Work, asked: Option<bool>) {
        let used: Vec<NodeId> = self.trials.iter().flat_map(|trial| trial.plan.nodes().to_vec()).collect();
        let devices = self.cluster.devices.iter().filter(|device| used.contains(&device.node));
        let mut alone: Vec<Alone> =
            devices.filter_map(|device| Alone::new(device, spec, work, &self.cluster)).collect();
        let wants = Wants { decode: true, prefill: false, streams: work.streams.clone() };
        let seconds = |alone: &Alone| {
            let tokens = f64::from(work.decode);
            let one = alone.predicted.decode_tps.map_or(0.0, |tps| tokens / tps);
            let several = alone.predicted.aggregate.iter().filter(|entry| entry.streams > 1);
            let several = several.filter_map(|entry| Some(tokens * f64::from(entry.streams) / entry.tps?));
            one + several.sum::<f64>()
        };
        // The single strategy's own trial tells as much, where it holds enough sequences.
        for alone in &mut alone {
            let enough = |plan: &Plan| is_alone(plan, alone.node) && plan.kv.sequences >= work.most_streams();
            if let Some(at) = self.trials.iter().position(|trial| enough(&trial.plan)) {
                let plan = self.trials[at].plan.clone();
                alone.trial = Some(self.add(plan, &format!("{} alone", alone.name), &wants));
            }
        }
        // Boards of one kind are measured once.
        let mut kinds: Vec<usize> = Vec::new();
        for at in 0..alone.len() {
            let known = |&other: &usize| self.twins(alone[at].node, alone[other].node);
            let measured = (0..alone.len()).filter(|&other| alone[other].trial.is_some());
            if alone[at].fits && !measured.chain(kinds.iter().copied()).any(|other| known(&other)) {
                kinds.push(at);
            }
        }
        let cost: f64 = kinds.iter().map(|&at| seconds(&alone[at])).sum();
        if asked.unwrap_or(cost <= ALONE_SECONDS) {
            for at in kinds {
                let (plan, label) = (alone[at].plan.clone(), format!("{} alone", alone[at].name));
                alone[at].trial = Some(self.add(plan, &label, &wants));
            }
        }
        for at in 0..alone.len() {
            let twin = |other: &&Alone| other.trial.is_some() && self.twins(alone[at].node, other.node);
            if alone[at].fits && alone[at].trial.is_none() {
                alone[at].trial = alone.iter().find(twin).and_then(|twin| twin.trial);
            }
        }
        self.alone = alone;
    }

    /// Whether two nodes have the same profile to the last digit: they play the same board, or one was measured for
    /// both.
    fn twins(&self, a: NodeId, b: NodeId) -> bool {
        let profile = |node| self.cluster.device(node).map(|device| &device.profile);
        profile(a).is_some() && profile(a) == profile(b)
    }
}

/// What is to be measured of a plan.
#[derive(Debug, Clone)]
struct Wants {
    decode: bool,
    prefill: bool,
    streams: Vec<u32>,
}

/// Plans of the strategies asked for, in their order, and the one the planner would take.
#[derive(Debug, Clone)]
struct Plans {
    plans: Vec<Result<Plan, String>>,
    chosen: Option<Plan>,
}

/// Whether two plans cut the model the same way, whatever they are called and however many sequences they hold.
fn same(a: &Plan, b: &Plan) -> bool {
    a.stages == b.stages && a.head == b.head && a.chunk_tokens == b.chunk_tokens && a.wire == b.wire
}

/// Whether this node has all of the model.
fn is_alone(plan: &Plan, node: NodeId) -> bool {
    plan.nodes() == [node]
}
