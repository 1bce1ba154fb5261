//! What a benchmark found, as design 17 lays it down.

use std::collections::BTreeMap;

use serde::Serialize;
use shoal_core::plan::{PlanView, Strategy};
use shoal_core::{ModelSpec, NodeId, Plan, shard};

use super::alone::predicted;
use super::field::{Entry, Field};
use super::figures::{AggregateFigure, Figures, median, relative};
use super::rounds::Results;
use super::trial::Sample;
use super::work::Work;
use crate::driver::WorkerView;
use crate::session::EmulationView;
use crate::session::emulation::OVERRUN_TOLERATED;

/// The JSON object of `bench`. Fields may be added, never renamed.
#[derive(Debug, Serialize)]
pub(crate) struct Report<'a> {
    pub(super) model: &'a str,
    /// Kernel threads of each worker; null where they differ.
    threads: Option<u32>,
    /// Where workers play other devices; null where all are themselves. Times and rates are the played devices'.
    pub(super) emulation: Option<EmulationView>,
    pub(super) rounds: u32,
    pub(super) decode: u32,
    context: u32,
    pub(super) devices: Vec<DeviceRow>,
    /// What the planner would take, by objective.
    chosen: BTreeMap<&'static str, Strategy>,
    pub(super) strategies: Vec<StrategyRow<'a>>,
    pub(super) alone: Vec<AloneRow>,
    pub(super) neighbours: Option<NeighbourRows>,
    pub(super) prediction: ErrorSummary,
}

/// A worker of the cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct DeviceRow {
    node: NodeId,
    pub(super) name: String,
    /// The profile it plays, if it is not itself.
    pub(super) emulation: Option<String>,
    threads: u32,
    usable_bytes: u64,
}

/// One strategy. Figures of one stream are of the plan for latency, those of several of the plan for throughput.
#[derive(Debug, Serialize)]
pub(super) struct StrategyRow<'a> {
    pub(super) strategy: Strategy,
    pub(super) feasible: bool,
    /// Why it has no figures.
    pub(super) reason: Option<String>,
    #[serde(flatten)]
    pub(super) measured: Figures,
    /// Whether the devices' rates alone, which `efficiency` is against, were `measured`, `predicted` or `mixed`.
    pub(super) efficiency_basis: Option<&'static str>,
    pub(super) predicted: Figures,
    pub(super) error: Figures,
    /// (largest − smallest) ÷ median of the rounds.
    pub(super) spread: Figures,
    /// Least and most of the rounds.
    #[serde(skip)]
    pub(super) range: (Figures, Figures),
    pub(super) ranks: Vec<RankRow>,
    plans: Vec<PlanFor<'a>>,
}

/// One node while one stream is decoded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct RankRow {
    node: NodeId,
    pub(super) name: String,
    stage: Option<usize>,
    rank: Option<usize>,
    pub(super) compute_ms: Option<f64>,
    pub(super) wait_ms: Option<f64>,
    predicted_compute_ms: Option<f64>,
    resident_bytes: u64,
    accounted_bytes: u64,
    planned_bytes: u64,
    /// Of an emulated device: how much of the time it played was overrun by real work.
    overrun: Option<f64>,
}

#[derive(Debug, Serialize)]
struct PlanFor<'a> {
    /// `latency`, `throughput` or `both`.
    r#for: &'static str,
    plan: PlanView<'a>,
}

/// One device with the whole model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct AloneRow {
    node: NodeId,
    pub(super) name: String,
    /// Whether its memory holds the model; if not, `predicted` is as if it did.
    fits: bool,
    /// Null where it was not measured.
    measured: Option<Figures>,
    predicted: Figures,
}

/// The chosen plan among its neighbours.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct NeighbourRows {
    pub(super) strategy: Strategy,
    /// What is compared: `decode_ms` (less is better) or `tps` (more is better).
    pub(super) figure: &'static str,
    pub(super) chosen: Option<f64>,
    pub(super) chosen_predicted: Option<f64>,
    pub(super) others: Vec<NeighbourRow>,
    /// How much better the best measured plan is than the chosen one, as a part of the chosen's figure; 0 where the
    /// chosen is best.
    pub(super) gap: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct NeighbourRow {
    pub(super) what: String,
    pub(super) measured: Option<f64>,
    pub(super) predicted: Option<f64>,
    pub(super) reason: Option<String>,
}

/// How far predictions of times and rates were off, whatever the sign.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct ErrorSummary {
    /// Figures that were both predicted and measured.
    pub(super) figures: usize,
    pub(super) median: Option<f64>,
    pub(super) worst: Option<f64>,
}

impl<'a> Report<'a> {
    /// Puts the report together.
    pub(crate) fn new(
        spec: &'a ModelSpec,
        work: &Work,
        field: &'a Field,
        results: &Results,
        workers: &BTreeMap<NodeId, WorkerView>,
    ) -> Self {
        let build = Build { spec, work, field, results };
        let threads: Vec<u32> = workers.values().map(|worker| worker.info.threads).collect();
        let same = threads.iter().all(|threads_of| Some(threads_of) == threads.first());
        let strategies: Vec<StrategyRow<'a>> = field.entries.iter().map(|entry| build.row(entry)).collect();
        let prediction = ErrorSummary::of(&strategies);
        Self {
            model: &spec.name,
            threads: threads.first().copied().filter(|_| same),
            emulation: results.emulation.clone().map(|view| build.kept(view)),
            rounds: work.rounds,
            decode: work.decode,
            context: work.context,
            devices: workers.values().map(DeviceRow::new).collect(),
            chosen: field.chosen.clone(),
            strategies,
            alone: build.alone(),
            neighbours: build.neighbours(),
            prediction,
        }
    }

    /// How the workers are what they are, for people.
    pub(super) fn grade(&self) -> String {
        self.emulation
            .as_ref()
            .map_or_else(|| "real workers, nothing emulated".to_owned(), EmulationView::line)
    }
}

struct Build<'a, 'b> {
    spec: &'a ModelSpec,
    work: &'b Work,
    field: &'a Field,
    results: &'b Results,
}

impl<'a> Build<'a, '_> {
    /// The emulation with how well the played devices' time was kept, in whatever was measured.
    fn kept(&self, mut view: EmulationView) -> EmulationView {
        let samples = self.results.trials.iter().flatten().flatten();
        view.emulation_overrun = samples.filter_map(|sample| sample.overrun).reduce(f64::max);
        view.kept_time = view.emulation_overrun.map(|overrun| overrun <= OVERRUN_TOLERATED);
        view
    }

    fn samples(&self, trial: usize) -> Result<&[Sample], String> {
        match self.results.trials.get(trial) {
            Some(Ok(samples)) => Ok(samples),
            Some(Err(reason)) => Err(reason.clone()),
            None => Ok(&[]),
        }
    }

    fn figures(&self, trial: usize, of: fn(&[&Figures]) -> Figures) -> Result<Figures, String> {
        let samples = self.samples(trial)?;
        Ok(of(&samples.iter().map(|sample| &sample.figures).collect::<Vec<_>>()))
    }

    fn predicted(&self, trial: usize) -> Figures {
        let trial = &self.field.trials[trial];
        predicted(&trial.plan, self.spec, &self.field.cluster, self.work, &trial.streams)
    }

    fn row(&self, entry: &Entry) -> StrategyRow<'a> {
        let medians = |trial: &Result<usize, String>| self.figures(trial.clone()?, Figures::median);
        let (one, many) = (medians(&entry.latency), medians(&entry.throughput));
        let reason = one.as_ref().err().or(many.as_ref().err()).cloned();
        let both = |of: &dyn Fn(usize) -> Figures| {
            let of = |trial: &Result<usize, String>| trial.as_ref().ok().map(|&trial| of(trial));
            merge(of(&entry.latency), of(&entry.throughput))
        };
        let mut measured = merge(one.ok(), many.ok());
        let mut predicted = both(&|trial| self.predicted(trial));
        let over_rounds =
            |of: fn(&[&Figures]) -> Figures| both(&|at| self.figures(at, of).unwrap_or_default());
        let spread = over_rounds(Figures::spread);
        let range = (over_rounds(Figures::least), over_rounds(Figures::most));
        let basis = self.efficiencies(entry, &mut measured, &mut predicted);
        let nodes = |trial: usize| &self.field.trials[trial].plan;
        let mut plans: Vec<PlanFor<'a>> = Vec::new();
        match (&entry.latency, &entry.throughput) {
            (Ok(one), Ok(many)) if one == many => {
                plans.push(PlanFor { r#for: "both", plan: nodes(*one).view() });
            }
            (one, many) => {
                for (r#for, trial) in [("latency", one), ("throughput", many)] {
                    if let Ok(trial) = trial {
                        plans.push(PlanFor { r#for, plan: nodes(*trial).view() });
                    }
                }
            }
        }
        StrategyRow {
            strategy: entry.strategy,
            feasible: reason.is_none(),
            reason,
            error: Figures::error(&measured, &predicted),
            measured,
            efficiency_basis: basis,
            predicted,
            spread,
            range,
            ranks: entry.latency.as_ref().map_or_else(|_| Vec::new(), |&trial| self.ranks(trial)),
            plans,
        }
    }

    /// Fills in efficiencies at each number of streams; says what the devices' own rates are.
    fn efficiencies(
        &self,
        entry: &Entry,
        measured: &mut Figures,
        predicted: &mut Figures,
    ) -> Option<&'static str> {
        let mut kinds: Vec<bool> = Vec::new();
        let plan_at = |streams: u32| {
            let trial = if streams == 1 { &entry.latency } else { &entry.throughput };
            trial.as_ref().ok().map(|&trial| &self.field.trials[trial].plan)
        };
        for entry in &mut measured.aggregate {
            let Some(plan) = plan_at(entry.streams) else { continue };
            let Some((sum, all_measured)) = self.alone_rates(plan, entry.streams, true) else { continue };
            kinds.extend(all_measured);
            entry.efficiency = entry.tps.map(|tps| tps / sum);
        }
        for entry in &mut predicted.aggregate {
            let Some(plan) = plan_at(entry.streams) else { continue };
            let Some((sum, _)) = self.alone_rates(plan, entry.streams, false) else { continue };
            entry.efficiency = entry.tps.map(|tps| tps / sum);
        }
        measured.efficiency = measured.aggregate.last().and_then(|entry| entry.efficiency);
        predicted.efficiency = predicted.aggregate.last().and_then(|entry| entry.efficiency);
        match (kinds.contains(&true), kinds.contains(&false)) {
            (true, true) => Some("mixed"),
            (true, false) => Some("measured"),
            (false, true) => Some("predicted"),
            (false, false) => None,
        }
    }

    /// Sum of the rates of the plan's devices alone at so many streams, and which of them were measured.
    fn alone_rates(&self, plan: &Plan, streams: u32, measured: bool) -> Option<(f64, Vec<bool>)> {
        let mut kinds = Vec::new();
        let mut sum = 0.0;
        for &node in plan.nodes() {
            let alone = self.field.alone.iter().find(|alone| alone.node == node)?;
            let found = alone
                .trial
                .filter(|_| measured)
                .and_then(|trial| self.figures(trial, Figures::median).ok()?.tps_at(streams));
            kinds.push(found.is_some());
            sum += found.or_else(|| alone.predicted.tps_at(streams))?;
        }
        (sum > 0.0).then_some((sum, kinds))
    }

    fn ranks(&self, trial: usize) -> Vec<RankRow> {
        let plan = &self.field.trials[trial].plan;
        let samples = self.samples(trial).unwrap_or_default();
        let one = self.work.decoding(1);
        let prediction = shoal_cluster::cost::predict(plan, self.spec, &self.field.cluster, &one).ok();
        let row = |&node: &NodeId| {
            let of = |value: &dyn Fn(&super::trial::RankSample) -> Option<f64>| {
                let values: Option<Vec<f64>> = samples.iter().map(|s| value(s.ranks.get(&node)?)).collect();
                values.and_then(|values| median(&values))
            };
            let last = samples.last().and_then(|sample| sample.ranks.get(&node)).copied().unwrap_or_default();
            let place = plan.place(node);
            let predicted = prediction.as_ref().and_then(|p| p.nodes.iter().find(|n| n.node == node));
            RankRow {
                node,
                name: self.field.cluster.device(node).map_or_else(|| node.short(), |d| d.name.clone()),
                stage: place.map(|place| place.stage),
                rank: place.map(|place| place.rank),
                compute_ms: of(&|rank| rank.compute_ms),
                wait_ms: of(&|rank| rank.wait_ms),
                predicted_compute_ms: predicted.map(|node| node.compute_ms),
                resident_bytes: last.resident.0,
                accounted_bytes: last.accounted.0,
                planned_bytes: shard::footprint(plan, self.spec, node).total().0,
                overrun: of(&|rank| rank.overrun),
            }
        };
        plan.nodes().iter().map(row).collect()
    }

    fn alone(&self) -> Vec<AloneRow> {
        let row = |alone: &super::alone::Alone| AloneRow {
            node: alone.node,
            name: alone.name.clone(),
            fits: alone.fits,
            measured: alone.trial.and_then(|trial| self.figures(trial, Figures::median).ok()),
            predicted: alone.predicted.clone(),
        };
        self.field.alone.iter().map(row).collect()
    }

    fn neighbours(&self) -> Option<NeighbourRows> {
        let field = self.field.neighbourhood.as_ref()?;
        let by_rate = field.objective == shoal_cluster::cost::Objective::Throughput;
        let most = self.work.most_streams();
        let figure = |figures: &Figures| if by_rate { figures.tps_at(most) } else { figures.decode_ms.p50 };
        let predicted = |trial: usize| figure(&self.predicted(trial));
        let measured = |trial: usize| self.figures(trial, Figures::median).map(|figures| figure(&figures));
        let others: Vec<NeighbourRow> = field
            .others
            .iter()
            .map(|(what, trial)| {
                let found = measured(*trial);
                NeighbourRow {
                    what: what.clone(),
                    reason: found.as_ref().err().cloned(),
                    measured: found.ok().flatten(),
                    predicted: predicted(*trial),
                }
            })
            .collect();
        let chosen = measured(field.chosen).ok().flatten();
        let better = |a: f64, b: f64| if by_rate { a.max(b) } else { a.min(b) };
        let gap = chosen.map(|chosen| {
            let best = others.iter().filter_map(|other| other.measured).fold(chosen, better);
            relative(chosen, best).unwrap_or_default().abs()
        });
        Some(NeighbourRows {
            strategy: field.strategy,
            figure: if by_rate { "tps" } else { "decode_ms" },
            chosen,
            chosen_predicted: predicted(field.chosen),
            others,
            gap,
        })
    }
}

/// One stream's figures of the first, those of several streams of the second.
fn merge(one: Option<Figures>, many: Option<Figures>) -> Figures {
    let several = |figures: &Figures| -> Vec<AggregateFigure> {
        figures.aggregate.iter().copied().filter(|entry| entry.streams > 1).collect()
    };
    let mut out = one.unwrap_or_default();
    out.aggregate.retain(|entry| entry.streams == 1);
    out.aggregate.extend(many.as_ref().map(several).unwrap_or_default());
    out
}

impl DeviceRow {
    fn new(worker: &WorkerView) -> Self {
        let info = &worker.info;
        Self {
            node: info.node,
            name: info.name.clone(),
            emulation: info.emulation.as_ref().map(|emulation| emulation.profile.clone()),
            threads: info.threads,
            usable_bytes: info.usable.0,
        }
    }
}

impl ErrorSummary {
    fn of(rows: &[StrategyRow<'_>]) -> Self {
        let mut errors: Vec<f64> = Vec::new();
        for row in rows {
            let error = &row.error;
            errors.extend(error.decode_ms.p50);
            errors.extend(error.prefill.iter().filter_map(|entry| entry.ttft_ms));
            errors.extend(error.aggregate.iter().filter(|e| e.streams > 1).filter_map(|entry| entry.tps));
        }
        let errors: Vec<f64> = errors.into_iter().map(f64::abs).collect();
        Self {
            figures: errors.len(),
            median: median(&errors),
            worst: errors.iter().copied().reduce(f64::max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_streams_figures_and_those_of_several_come_from_their_own_plans() {
        let entry = |streams, tps| AggregateFigure { streams, tps: Some(tps), efficiency: None };
        let one = Figures {
            decode_tps: Some(9.0),
            aggregate: vec![entry(1, 9.0), entry(4, 10.0)],
            ..Figures::default()
        };
        let many = Figures {
            decode_tps: Some(5.0),
            aggregate: vec![entry(1, 5.0), entry(4, 20.0)],
            ..Figures::default()
        };
        let both = merge(Some(one.clone()), Some(many));
        assert_eq!(both.decode_tps, Some(9.0));
        assert_eq!((both.tps_at(1), both.tps_at(4)), (Some(9.0), Some(20.0)));
        assert_eq!(merge(Some(one), None).tps_at(4), None);
    }
}
