//! What `run` and `demo` say of a finished text, as design 17 lays it down.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use shoal_core::message::{Counters, Resident};
use shoal_core::plan::{Plan, PlanView, Strategy};
use shoal_core::{Bytes, ModelSpec, NodeId, shard};

use super::{EmulationView, Generated};

/// The JSON object of `run` and `demo`. Fields may be added, never renamed.
#[derive(Debug, Serialize)]
pub(crate) struct RunReport<'a> {
    pub(crate) text: &'a str,
    pub(crate) token_ids: &'a [u32],
    pub(crate) prompt_tokens: usize,
    pub(crate) finish_reason: &'static str,
    pub(crate) model: &'a str,
    pub(crate) strategy: Strategy,
    pub(crate) workers: usize,
    pub(crate) epoch: u32,
    pub(crate) seed: u64,
    pub(crate) ttft_ms: Option<f64>,
    pub(crate) prefill_tps: Option<f64>,
    pub(crate) decode_tps: Option<f64>,
    pub(crate) itl_ms: Percentiles,
    pub(crate) bytes_per_token: Traffic,
    pub(crate) ranks: Vec<RankReport>,
    pub(crate) plan: PlanView<'a>,
    /// Where workers play other devices; null where all are themselves. Times and rates are the played devices'.
    pub(crate) emulation: Option<EmulationView>,
}

/// Milliseconds; unknown where there were too few tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: Option<f64>,
    pub(crate) p95: Option<f64>,
}

/// Bytes sent over all links: hops and sums for each token that went through the layers (those of the prompt too),
/// head and control for each token that was generated.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub(crate) struct Traffic {
    pub(crate) hops: f64,
    pub(crate) all_reduce: f64,
    pub(crate) head: f64,
    pub(crate) control: f64,
}

/// One node of the plan. Times are means over the steps of this request; `stage` and `rank` are null for a node that
/// holds nothing but rows of the output head.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct RankReport {
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) stage: Option<usize>,
    pub(crate) rank: Option<usize>,
    pub(crate) steps: u64,
    pub(crate) compute_ms: Option<f64>,
    pub(crate) wait_ms: Option<f64>,
    /// The process, as the system sees it.
    pub(crate) resident_bytes: u64,
    /// Weights, table, KV pages in use and buffers, as the worker accounts them.
    pub(crate) accounted_bytes: u64,
    /// What the plan lists for this node at most.
    pub(crate) planned_bytes: u64,
    /// What it fetched of the model for this plan: zero where all was in its cache or a local copy.
    pub(crate) fetched_bytes: u64,
}

/// Counters of all workers at one time.
pub(crate) type Snapshot = BTreeMap<NodeId, (Counters, Resident)>;

impl<'a> RunReport<'a> {
    /// Puts the report together from the counters before and after the request.
    pub(crate) fn new(
        generated: &'a Generated,
        plan: &'a Plan,
        spec: &'a ModelSpec,
        seed: u64,
        names: &BTreeMap<NodeId, String>,
        before: &Snapshot,
        after: &Snapshot,
    ) -> Self {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let some = !generated.tokens.is_empty();
        let decode: Duration = generated.gaps.iter().sum();
        let rate = |count: usize, time: Duration| {
            (count > 0 && !time.is_zero()).then(|| count as f64 / time.as_secs_f64())
        };
        let rank = |&node: &NodeId| RankReport::new(node, plan, spec, names, before, after);
        Self {
            text: &generated.text,
            token_ids: &generated.tokens,
            prompt_tokens: generated.prompt_tokens,
            finish_reason: generated.finish_reason,
            model: &spec.name,
            strategy: plan.strategy,
            workers: plan.nodes().len(),
            epoch: plan.epoch.counter,
            seed,
            ttft_ms: some.then(|| ms(generated.first)),
            prefill_tps: rate(generated.prompt_tokens, generated.first),
            decode_tps: rate(generated.gaps.len(), decode),
            itl_ms: Percentiles::of(&generated.gaps),
            bytes_per_token: Traffic::between(before, after, generated),
            ranks: plan.nodes().iter().map(rank).collect(),
            plan: plan.view(),
            emulation: None,
        }
    }

    /// The same as the played devices would tell it: times divided by the factor their clocks are slowed by.
    pub(crate) fn emulated(
        mut self,
        emulation: Option<EmulationView>,
        before: &Snapshot,
        after: &Snapshot,
    ) -> Self {
        let Some(emulation) = emulation.map(|view| view.between(before, after)) else { return self };
        let slower = emulation.dilation;
        let ranks = self.ranks.iter_mut().flat_map(|rank| [&mut rank.compute_ms, &mut rank.wait_ms]);
        let own = [&mut self.ttft_ms, &mut self.itl_ms.p50, &mut self.itl_ms.p95];
        ranks.chain(own).flatten().for_each(|ms| *ms /= slower);
        [&mut self.prefill_tps, &mut self.decode_tps].into_iter().flatten().for_each(|tps| *tps *= slower);
        self.emulation = Some(emulation);
        self
    }

    /// The same with what each node fetched.
    pub(crate) fn fetched(mut self, by: &BTreeMap<NodeId, Bytes>) -> Self {
        for rank in &mut self.ranks {
            rank.fetched_bytes = by.get(&rank.node).map_or(0, |bytes| bytes.0);
        }
        self
    }
}

impl Percentiles {
    fn of(gaps: &[Duration]) -> Self {
        let mut sorted = gaps.to_vec();
        sorted.sort_unstable();
        let at = |percent: usize| {
            let index = (sorted.len() * percent).div_ceil(100).checked_sub(1)?;
            Some(sorted.get(index)?.as_secs_f64() * 1e3)
        };
        Self { p50: at(50), p95: at(95) }
    }
}

impl Traffic {
    fn between(before: &Snapshot, after: &Snapshot, generated: &Generated) -> Self {
        let total = |of: fn(&Counters) -> u64| {
            let grown = after.iter().map(|(node, (now, _))| {
                let then = before.get(node).map_or(0, |(then, _)| of(then));
                of(now).saturating_sub(then)
            });
            grown.sum::<u64>() as f64
        };
        let made = generated.tokens.len().max(1) as f64;
        // The last token is not run through the layers.
        let through = (generated.prompt_tokens + generated.tokens.len().saturating_sub(1)).max(1) as f64;
        Self {
            hops: total(|c| c.hop_bytes) / through,
            all_reduce: total(|c| c.sum_bytes) / through,
            head: total(|c| c.head_bytes) / made,
            control: total(|c| c.control_bytes) / made,
        }
    }
}

impl RankReport {
    fn new(
        node: NodeId,
        plan: &Plan,
        spec: &ModelSpec,
        names: &BTreeMap<NodeId, String>,
        before: &Snapshot,
        after: &Snapshot,
    ) -> Self {
        let place = plan.place(node);
        let (then, _) = before.get(&node).copied().unwrap_or_default();
        let (now, resident) = after.get(&node).copied().unwrap_or_default();
        let steps = now.steps.saturating_sub(then.steps);
        let mean =
            |now: u64, then: u64| (steps > 0).then(|| now.saturating_sub(then) as f64 / 1e3 / steps as f64);
        Self {
            node,
            name: names.get(&node).cloned().unwrap_or_default(),
            stage: place.map(|place| place.stage),
            rank: place.map(|place| place.rank),
            steps,
            compute_ms: mean(now.compute_us, then.compute_us),
            wait_ms: mean(now.wait_us, then.wait_us),
            resident_bytes: resident.process.0,
            accounted_bytes: resident.accounted.total().0,
            planned_bytes: shard::footprint(plan, spec, node).total().0,
            fetched_bytes: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_gaps() {
        let gaps: Vec<Duration> = (1..=20).rev().map(Duration::from_millis).collect();
        assert_eq!(Percentiles::of(&gaps), Percentiles { p50: Some(10.0), p95: Some(19.0) });
        assert_eq!(Percentiles::of(&[]), Percentiles::default());
    }

    #[test]
    fn traffic_is_what_the_counters_grew_by() {
        let counters = |n: u64| Counters { hop_bytes: 300 * n, head_bytes: 30 * n, ..Counters::default() };
        let snapshot = |n| Snapshot::from([(NodeId([1; 16]), (counters(n), Resident::default()))]);
        let generated = Generated {
            text: String::new(),
            tokens: vec![5, 6, 7],
            prompt_tokens: 4,
            finish_reason: "length",
            first: Duration::ZERO,
            gaps: Vec::new(),
        };
        let traffic = Traffic::between(&snapshot(1), &snapshot(2), &generated);
        assert_eq!(traffic, Traffic { hops: 50.0, all_reduce: 0.0, head: 10.0, control: 0.0 });
    }
}
