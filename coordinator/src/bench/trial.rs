//! One trial: a plan is loaded, run, and unloaded; every token is timed as it comes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shoal_cluster::coordinator::{Action, Event, Failed, Job, Planning, Request};
use shoal_cluster::sampling::SamplingParams;
use shoal_core::message::Counters;
use shoal_core::plan::PlanParts;
use shoal_core::{Bytes, NodeId, Plan, SeqId};

use super::field::Field;
use super::figures::{AggregateFigure, Figures, Percentiles, PrefillFigure, TrafficFigure, percentile};
use super::work::{DECODE_PROMPT, Work};
use crate::driver::{Driver, Update};
use crate::exit::Failure;
use crate::model::Model;
use crate::session::Snapshot;
use crate::session::emulation::own_time;

/// How long workers may take to drop a shard; the state machine gives up on them before.
const UNLOAD: Duration = Duration::from_secs(20);

/// Tokens of a prompt that is run before anything is timed: it touches what a first prompt touches.
const WARM_PROMPT: u32 = 32;

/// Tokens decoded then.
const WARM_DECODE: u32 = 2;

/// A plan with what is to be measured of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Trial {
    pub(crate) plan: Plan,
    /// What progress calls it.
    pub(crate) label: String,
    /// Decoding of one stream.
    pub(crate) decode: bool,
    /// Prompts by themselves.
    pub(crate) prefill: bool,
    /// Numbers of streams, rising; one stream is the decoding.
    pub(crate) streams: Vec<u32>,
}

/// What one round gave.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Sample {
    pub(crate) figures: Figures,
    /// Of decoding one stream.
    pub(crate) ranks: BTreeMap<NodeId, RankSample>,
    /// What each node fetched of the model.
    pub(crate) fetched: BTreeMap<NodeId, Bytes>,
    /// Of emulated devices, over all that was measured: real work that outlasted what was played, as a part of what was
    /// played, of the node that kept time worst.
    pub(crate) overrun: Option<f64>,
}

/// One node while one stream is decoded: means over its steps, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct RankSample {
    pub(crate) compute_ms: Option<f64>,
    pub(crate) wait_ms: Option<f64>,
    pub(crate) resident: Bytes,
    pub(crate) accounted: Bytes,
    /// Of an emulated device: real work that outlasted what was played, as a part of what was played.
    pub(crate) overrun: Option<f64>,
}

/// Why a trial gave nothing.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The plan cannot be run here; others may be.
    Trial(String),
    /// All is lost.
    All(Failure),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        match failure {
            // The job ended; whether the cluster did is seen by who is still connected.
            Failure::Lost(reason) => Self::Trial(reason),
            other => Self::All(other),
        }
    }
}

type Tried<T> = Result<T, Broken>;

/// The cluster at work for one benchmark.
#[derive(Debug)]
pub(super) struct Stand<'a> {
    pub(super) driver: &'a mut Driver,
    pub(super) model: &'a Model,
    pub(super) field: &'a Field,
    pub(super) work: &'a Work,
    /// By how much the cluster's clocks are slowed: all times are divided by it.
    pub(super) dilation: f64,
}

impl Stand<'_> {
    /// Loads, measures and unloads.
    ///
    /// # Errors
    /// The plan could not be run, or the cluster was lost.
    pub(super) async fn run(&mut self, trial: &Trial) -> Tried<Sample> {
        let tried = match self.load(&trial.plan).await {
            Ok(fetched) => {
                let sample = self.measure(trial).await;
                sample.map(|sample| Sample { fetched, ..sample })
            }
            Err(broken) => Err(broken),
        };
        let all_there =
            |driver: &Driver| trial.plan.nodes().iter().all(|n| driver.connected().contains_key(n));
        let ended = matches!(tried, Err(Broken::Trial(_)));
        self.unload(ended).await?;
        match tried {
            Err(Broken::Trial(reason)) if !all_there(self.driver) => Err(Broken::All(Failure::Lost(reason))),
            other => other,
        }
    }

    async fn load(&mut self, plan: &Plan) -> Tried<BTreeMap<NodeId, Bytes>> {
        let parts: PlanParts = plan.parts().clone();
        let devices = &self.field.cluster.devices;
        let job = Job {
            model: self.model.manifest.model.clone(),
            spec: (*self.model.spec).clone(),
            workload: self.work.decoding(parts.kv.sequences),
            planning: Planning::Fixed(Box::new(parts)),
            workers: 0,
            gather: Duration::ZERO,
            measure_links: false,
            // For the deadlines of steps.
            profiles: devices.iter().map(|device| (device.node, device.profile.clone())).collect(),
            links: Vec::new(),
            twins: false,
            power: BTreeMap::new(),
        };
        self.driver.handle(Event::Start(Box::new(job)));
        let mut fetched_by = BTreeMap::new();
        loop {
            match self.driver.next().await? {
                Update::Machine(Action::Loaded { node, fetched, .. }) => {
                    fetched_by.insert(node, fetched);
                }
                Update::Machine(Action::Ready) => return Ok(fetched_by),
                Update::Machine(action) => check(action)?,
                _ => {}
            }
        }
    }

    /// Waits until the workers are idle. `ended`: the job is over already, and being idle may have been heard of.
    async fn unload(&mut self, ended: bool) -> Tried<()> {
        self.driver.handle(Event::Stop);
        let idle = async {
            loop {
                match self.driver.next().await {
                    Ok(Update::Machine(Action::Idle)) => return Ok(()),
                    Ok(_) => {}
                    Err(failure) => return Err(failure),
                }
            }
        };
        match tokio::time::timeout(UNLOAD, idle).await {
            Ok(result) => result.map_err(Broken::All),
            Err(_) if ended => Ok(()),
            Err(_) => Err(Broken::All(Failure::Lost(format!(
                "failed to unload the workers: they were not idle within {} s",
                UNLOAD.as_secs()
            )))),
        }
    }

    async fn measure(&mut self, trial: &Trial) -> Tried<Sample> {
        let mut sample = Sample::default();
        let warm = WARM_PROMPT.min(self.work.context.saturating_sub(WARM_DECODE + 1)).max(1);
        self.streams(1, warm, WARM_DECODE).await?;
        let before = self.driver.report(trial.plan.nodes()).await?;
        if trial.decode {
            self.decode(trial, &mut sample).await?;
        }
        if trial.prefill {
            for &tokens in &self.work.prefill {
                let first = self.streams(1, tokens, 1).await?.first(0)?;
                let ttft_ms = self.ms(first);
                let tps = (ttft_ms > 0.0).then(|| f64::from(tokens) * 1e3 / ttft_ms);
                sample.figures.prefill.push(PrefillFigure { tokens, tps, ttft_ms: Some(ttft_ms) });
            }
        }
        for &streams in &trial.streams {
            let tps = match sample.figures.decode_tps.filter(|_| streams == 1) {
                Some(alone) => Some(alone),
                None => {
                    let times = self.streams(streams, DECODE_PROMPT, self.work.decode + 1).await?;
                    times.rate().map(|rate| rate * self.dilation)
                }
            };
            sample.figures.aggregate.push(AggregateFigure { streams, tps, efficiency: None });
        }
        let after = self.driver.report(trial.plan.nodes()).await?;
        sample.overrun = after.keys().filter_map(|node| overrun(*node, &before, &after)).reduce(f64::max);
        Ok(sample)
    }

    async fn decode(&mut self, trial: &Trial, sample: &mut Sample) -> Tried<()> {
        let before = self.driver.report(trial.plan.nodes()).await?;
        let times = self.streams(1, DECODE_PROMPT, self.work.decode + 1).await?;
        let after = self.driver.report(trial.plan.nodes()).await?;
        let gaps: Vec<f64> = times.gaps(0).map(|gap| self.ms(gap)).collect();
        let total: f64 = gaps.iter().sum();
        sample.figures.decode_tps = (total > 0.0).then(|| gaps.len() as f64 * 1e3 / total);
        sample.figures.decode_ms = Percentiles { p50: percentile(&gaps, 50), p95: percentile(&gaps, 95) };
        sample.figures.bytes_per_token = traffic(&before, &after, times.tokens());
        sample.ranks = ranks(trial.plan.nodes(), &before, &after, self.dilation);
        Ok(())
    }

    /// Submits so many sequences at once and waits until each has decoded `tokens` tokens.
    async fn streams(&mut self, streams: u32, prompt: u32, tokens: u32) -> Tried<Times> {
        let vocab = self.model.spec.vocab;
        let submits: Vec<(SeqId, Vec<u32>)> = (0..streams)
            .map(|stream| (self.driver.next_seq(), self.work.prompt(stream, prompt, vocab)))
            .collect();
        let index: BTreeMap<SeqId, usize> = submits.iter().enumerate().map(|(at, s)| (s.0, at)).collect();
        let mut times = Times { emits: vec![Vec::with_capacity(tokens as usize); submits.len()] };
        let started = Instant::now();
        for (seq, tokens_of_prompt) in submits {
            self.driver.handle(Event::Submit(Box::new(Request {
                seq,
                tokens: tokens_of_prompt,
                max_new: tokens,
                params: SamplingParams { seed: self.work.seed, ..SamplingParams::default() },
                // Texts go on to their full length, whatever they say.
                stop_tokens: Vec::new(),
            })));
        }
        let (mut running, mut aborted) = (index.len(), None);
        while running > 0 {
            let Update::Machine(action) = self.driver.next().await? else { continue };
            match action {
                Action::Emit { seq, .. } => {
                    if let Some(&at) = index.get(&seq) {
                        times.emits[at].push(started.elapsed());
                    }
                }
                Action::Finished { seq, .. } if index.contains_key(&seq) => running -= 1,
                // The job may have ended, or go on without this stream.
                Action::Aborted { seq, reason } if index.contains_key(&seq) => {
                    running -= 1;
                    aborted = Some(reason);
                }
                other => check(other)?,
            }
        }
        aborted.map_or(Ok(times), |reason| Err(Broken::Trial(reason)))
    }

    fn ms(&self, time: Duration) -> f64 {
        own_time(time, self.dilation).as_secs_f64() * 1e3
    }
}

/// When each token of each stream came, after all were submitted.
#[derive(Debug, Clone, PartialEq)]
struct Times {
    emits: Vec<Vec<Duration>>,
}

impl Times {
    fn first(&self, stream: usize) -> Tried<Duration> {
        let first = self.emits.get(stream).and_then(|emits| emits.first()).copied();
        first.ok_or_else(|| Broken::Trial("no token came".to_owned()))
    }

    fn gaps(&self, stream: usize) -> impl Iterator<Item = Duration> + '_ {
        let emits = self.emits.get(stream).map_or(&[][..], Vec::as_slice);
        emits.windows(2).map(|pair| pair[1].saturating_sub(pair[0]))
    }

    fn tokens(&self) -> usize {
        self.emits.iter().map(Vec::len).sum()
    }

    /// Tokens per second while all streams run: after the last of them began, until the first of them ended.
    fn rate(&self) -> Option<f64> {
        let from = self.emits.iter().map(|emits| emits.first().copied()).max()??;
        let to = self.emits.iter().map(|emits| emits.last().copied()).min()??;
        let within = |at: &&Duration| from < **at && **at <= to;
        let tokens = self.emits.iter().flatten().filter(within).count();
        let seconds = to.checked_sub(from)?.as_secs_f64();
        (tokens > 0 && seconds > 0.0).then(|| tokens as f64 / seconds)
    }
}

/// Turns the end of a job, or a refusal, into what it is for the trial.
fn check(action: Action) -> Tried<()> {
    match action {
        Action::Ended(Failed::Stopped) => Err(Broken::Trial("the job was stopped".to_owned())),
        Action::Ended(failed) => Err(Broken::Trial(failed.to_string())),
        Action::Refused { reason, .. } => Err(Broken::Trial(reason)),
        _ => Ok(()),
    }
}

fn traffic(before: &Snapshot, after: &Snapshot, tokens: usize) -> TrafficFigure {
    let per_token = |of: fn(&Counters) -> u64| {
        let grown = after
            .iter()
            .map(|(node, (now, _))| of(now).saturating_sub(before.get(node).map_or(0, |(then, _)| of(then))));
        (tokens > 0).then(|| grown.sum::<u64>() as f64 / tokens as f64)
    };
    TrafficFigure {
        hops: per_token(|c| c.hop_bytes),
        all_reduce: per_token(|c| c.sum_bytes),
        head: per_token(|c| c.head_bytes),
        control: per_token(|c| c.control_bytes),
    }
}

fn ranks(
    nodes: &[NodeId],
    before: &Snapshot,
    after: &Snapshot,
    dilation: f64,
) -> BTreeMap<NodeId, RankSample> {
    let one = |&node: &NodeId| {
        let (then, _) = before.get(&node).copied().unwrap_or_default();
        let (now, resident) = after.get(&node).copied().unwrap_or_default();
        let steps = now.steps.saturating_sub(then.steps);
        let mean = |now: u64, then: u64| {
            (steps > 0).then(|| now.saturating_sub(then) as f64 / 1e3 / steps as f64 / dilation)
        };
        let sample = RankSample {
            compute_ms: mean(now.compute_us, then.compute_us),
            wait_ms: mean(now.wait_us, then.wait_us),
            resident: resident.process,
            accounted: resident.accounted.total(),
            overrun: overrun(node, before, after),
        };
        (node, sample)
    };
    nodes.iter().map(one).collect()
}

/// Real work of an emulated device that outlasted what was played, as a part of what was played.
fn overrun(node: NodeId, before: &Snapshot, after: &Snapshot) -> Option<f64> {
    let of = |snapshot: &Snapshot| snapshot.get(&node).copied().unwrap_or_default().0.emulation;
    let (then, now) = (of(before), of(after));
    let played = now.predicted_us.saturating_sub(then.predicted_us);
    (played > 0).then(|| now.overrun_us.saturating_sub(then.overrun_us) as f64 / played as f64)
}

#[cfg(test)]
mod tests {
    use shoal_core::message::EmulationCounters;

    use super::*;

    fn times(streams: &[&[u64]]) -> Times {
        let one = |emits: &&[u64]| emits.iter().map(|&ms| Duration::from_millis(ms)).collect();
        Times { emits: streams.iter().map(one).collect() }
    }

    #[test]
    fn the_rate_is_of_the_time_in_which_all_streams_run() {
        // The second begins at 20 and the first ends at 40: of 20 ms, tokens at 25, 30, 35 and 40.
        let rate = times(&[&[10, 20, 30, 40], &[20, 25, 35, 50]]).rate().unwrap();
        assert!((rate - 200.0).abs() < 1e-9, "{rate}");
        assert_eq!(times(&[&[10], &[20]]).rate(), None);
        assert_eq!(times(&[&[10, 20], &[]]).rate(), None);
        assert_eq!(times(&[]).rate(), None);
    }

    #[test]
    fn gaps_are_between_tokens_of_one_stream() {
        let times = times(&[&[10, 13, 20], &[1, 2]]);
        assert_eq!(times.gaps(0).collect::<Vec<_>>(), [3, 7].map(Duration::from_millis));
        assert_eq!(times.tokens(), 5);
        assert_eq!(times.first(0).unwrap(), Duration::from_millis(10));
        assert!(times.first(7).is_err());
    }

    #[test]
    fn counters_become_means_of_steps_in_undilated_time() {
        let counters =
            |n: u64| Counters { steps: n, compute_us: 4000 * n, hop_bytes: 100 * n, ..Counters::default() };
        let snapshot = |n| Snapshot::from([(NodeId([1; 16]), (counters(n), Default::default()))]);
        let ranks = ranks(&[NodeId([1; 16])], &snapshot(1), &snapshot(11), 2.0);
        assert_eq!(ranks[&NodeId([1; 16])].compute_ms, Some(2.0));
        assert_eq!(ranks[&NodeId([1; 16])].overrun, None);
        let played = |predicted_us, overrun_us| {
            let emulation = EmulationCounters { predicted_us, overrun_us, ..EmulationCounters::default() };
            let counters = Counters { emulation, ..Counters::default() };
            Snapshot::from([(NodeId([1; 16]), (counters, Default::default()))])
        };
        assert_eq!(overrun(NodeId([1; 16]), &played(100, 50), &played(1100, 60)), Some(0.01));
        assert_eq!(traffic(&snapshot(1), &snapshot(11), 5).hops, Some(200.0));
    }
}
