//! What this machine can do with a model: the real kernels on the model's number formats and shapes, so that the sum
//! of the phases as `shoal_cluster::cost` prices them is the time the layers take.
//!
//! Three things are measured, in rounds, so that what disturbs this machine for a while disturbs all of them alike:
//!
//! - **layers** of the model (`trial`), as many as do not fit into the cache (all of a small model), at 1 to 256
//!   rows, and the output head's answer;
//! - **products** of each number format with as much memory (`products`), at the same numbers of rows: they say how
//!   a layer's time is shared among its formats. What a layer takes beyond them (norms, rotations, quantizing) grows
//!   with its matrices and is put on their rates;
//! - a **narrow layer**, which has all of a layer's hand-overs between threads and hardly any weights, at its first
//!   position for the overhead of a phase, and at later ones for attention.
//!
//! Every figure is a median with its spread. The whole ends in [`LONGEST`] on any board: what is too slow for its part
//! of the time has fewer samples, or is derived from smaller passes. The compute thread calls [`profile`] while it
//! holds no shard. Links are measured elsewhere (`shoal_net::data`), and a worker that plays another device answers
//! without coming here.

mod memory;
mod products;
mod sample;
mod trial;

use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_core::model::{ModelSpec, Role};
use shoal_core::profile::{BatchRate, ContextRate, DeviceProfile, KindRate, Measured};
use shoal_core::quant::QuantType;
use shoal_core::units::{BytesPerSec, MacsPerSec, Seconds};
use shoal_engine::kernels;
use shoal_engine::pool::Pool;

use products::{Bench, Products};
use sample::{Clock, Samples};
use trial::{Cut, Trial};

/// The whole measurement: a person waits for it once a model.
pub const LONGEST: Duration = Duration::from_secs(8);

/// Numbers of rows at which products are measured: one stream, a few, many, prompts.
pub const ROWS: [u32; 5] = [1, 4, 16, 64, 256];

/// Contexts at which attention is measured, as far as the model has them.
pub const CONTEXTS: [u32; 3] = [128, 1024, 4096];

/// Samples of each figure: their median does not mind three disturbed ones.
const SAMPLES: usize = 7;

/// The part of the time for narrow layers; the rest is for weights.
const NARROW_PART: f64 = 0.3;

/// Seconds of one pass at most: on a slow board the large ones are derived from smaller ones.
const LONGEST_PASS: f64 = 0.5;

/// Weights of the layers that are run at many rows, which no cache matters for.
const BATCHED_SET: u64 = 24 << 20;

/// Numbers of rows from which [`BATCHED_SET`] is enough: a weight is used so often that its way from memory is short
/// beside that.
const BATCHED_ROWS: u32 = 64;

/// Bytes that products go round through at least: the few rows of any call.
const LEAST_RING: usize = 256 << 10;

/// Keys and values of the longest context at most.
const MOST_KV: u64 = 64 << 20;

/// Sequences at most whose attention is measured in turn.
const MOST_TURNS: u32 = 8;

/// By how much a layer may differ from its products: beyond that the machine was disturbed.
const CORRECTION: std::ops::RangeInclusive<f64> = 0.5..=8.0;

/// The part of a narrow pass that is at least its attention or its fixed cost: a difference that noise makes smaller is
/// not believed.
const LEAST_REST: f64 = 0.1;

/// Fixed costs below this are noise.
const LEAST_OVERHEAD: f64 = 0.5e-6;

/// A measurement that did not come about.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    #[error("failed to measure this device: the model has no matrices")]
    Empty,
    #[error("failed to measure this device: a trial layer does not run: {0}")]
    Layer(String),
    #[error("failed to measure this device: {0}")]
    Profile(#[from] shoal_core::profile::ProfileError),
}

/// Measures this device for `spec` on the threads of `pool`.
///
/// # Errors
/// The model has no matrices, or a trial layer does not run.
pub fn profile(spec: &ModelSpec, pool: &Arc<Pool>) -> Result<DeviceProfile, MeasureError> {
    let (start, clock) = (Instant::now(), Clock::new(LONGEST));
    let formats = products::formats(spec);
    if formats.is_empty() {
        return Err(MeasureError::Empty);
    }
    let set = memory::working_set(spec.total_bytes().0);
    let widest_row = formats.iter().map(Products::row_bytes).max().unwrap_or(1);
    let weights = memory::plausible((set as usize).max(widest_row).max(LEAST_RING));
    let mut bench = Bench::new(pool, &weights);

    let narrow = Narrow::measure(spec, pool, &mut bench, clock.part(NARROW_PART))?;
    let mut wide = Wide::load(spec, pool, set, formats)?;
    wide.measure(&mut bench, clock)?;
    let profile = DeviceProfile {
        rates: wide.rates(spec, &narrow),
        attention: narrow.attention,
        phase_overhead: narrow.overhead,
        threads: pool.threads() as u32,
        kernel_set: kernels::kernel_set_id().to_owned(),
    };
    profile.check()?;
    tracing::info!(model = %spec.name, elapsed = ?start.elapsed(), working_set = set, "measured this device");
    Ok(profile)
}

/// What narrow layers tell.
struct Narrow {
    overhead: Measured<Seconds>,
    attention: Vec<ContextRate>,
}

impl Narrow {
    fn measure(
        spec: &ModelSpec,
        pool: &Arc<Pool>,
        bench: &mut Bench<'_>,
        clock: Clock,
    ) -> Result<Self, MeasureError> {
        // One head for the overhead: nothing but hand-overs and short vectors.
        let mut bare = Trial::load(spec, &Cut::narrow_layer(spec, 1, 2, 1), pool)?;
        let contexts = contexts(spec);
        let longest = contexts.last().copied().unwrap_or(1);
        let turns = turns(spec, longest);
        let mut deep =
            Trial::load(spec, &Cut::narrow_layer(spec, spec.n_kv_heads, longest + 1, turns + 1), pool)?;
        let mut first = Samples::default();
        let mut late: Vec<(u32, Samples)> = contexts.into_iter().map(|at| (at, Samples::default())).collect();
        let mut last = vec![0.0; late.len()];
        // The first pass of each only warms the caches and makes the pages.
        bare.pass(0, 0, 1)?;
        for round in 0..SAMPLES + turns as usize {
            let overhead = bare.pass(0, 0, 1)?;
            if round > 0 {
                first.push(overhead);
            }
            for ((context, samples), last) in late.iter_mut().zip(&mut last) {
                // A slow machine tries each context once or twice.
                if round > 1 && !clock.allows(2.0 * *last) {
                    continue;
                }
                let turn = round as u32 % turns;
                let (before, at) = (deep.pass(turns, 0, 1)?, deep.pass(turn, *context - 1, 1)?);
                *last = before + at;
                // The first round of a turn touches its pages for the first time: it counts where there is no other.
                if round == turns as usize {
                    *samples = Samples::default();
                }
                samples.push((at - before).max(at * LEAST_REST));
            }
        }
        let kv_bytes = deep.kv_bytes();
        let rate = |(context, samples): &(u32, Samples)| {
            let rate = samples.measured(|s| BytesPerSec(f64::from(*context) * kv_bytes / s.max(1e-9)))?;
            Some(ContextRate { context: *context, rate })
        };
        let attention: Vec<ContextRate> = late.iter().filter_map(rate).collect();
        Ok(Self { overhead: overhead(&first, bare.weights_seconds(bench)), attention })
    }

    /// Seconds of attention of one layer over `kv_bytes` a position, as they are priced.
    fn attention_seconds(&self, rows: f64, context: f64, kv_bytes: f64) -> f64 {
        let above = self.attention.iter().find(|entry| f64::from(entry.context) >= context);
        let rate = above.or(self.attention.last()).map_or(f64::INFINITY, |entry| entry.rate.median.0);
        rows * context * kv_bytes / rate
    }
}

/// What a phase costs beside its weights: of a pass there are two, attention and feed-forward.
fn overhead(passes: &Samples, weights: f64) -> Measured<Seconds> {
    let pass = passes.median().unwrap_or(LEAST_OVERHEAD);
    let rest = (pass - weights).max(pass * LEAST_REST);
    Measured { median: Seconds((rest / 2.0).max(LEAST_OVERHEAD)), spread: passes.spread() }
}

/// Sequences whose attention is measured in turn: as many as the model has layers, since between two tokens a layer's
/// keys and values give way to those of all others; as far as they fit into [`MOST_KV`].
fn turns(spec: &ModelSpec, context: u32) -> u32 {
    let sequence = u64::from(spec.n_kv_heads) * u64::from(spec.head_dim) * 4 * u64::from(context);
    (MOST_KV / sequence.max(1)).clamp(1, u64::from(spec.n_layers.min(MOST_TURNS))) as u32
}

/// Contexts at which attention is measured: the model's own where it has fewer, and what fits into [`MOST_KV`].
fn contexts(spec: &ModelSpec) -> Vec<u32> {
    let position = u64::from(spec.n_kv_heads) * u64::from(spec.head_dim) * 4;
    let most = (MOST_KV / position.max(1)).clamp(1, 1 << 20) as u32;
    let most = most.min(spec.context).max(2);
    let mut out: Vec<u32> = CONTEXTS.into_iter().filter(|&context| context <= most).collect();
    // A model of few positions is measured at its last one.
    if most < CONTEXTS[CONTEXTS.len() - 1] && out.last() != Some(&most) {
        out.push(most);
    }
    out
}

impl Trial {
    /// Seconds of one row's products when the weights are in the cache, as a narrow layer's are.
    fn weights_seconds(&self, bench: &mut Bench<'_>) -> f64 {
        let mut formats: Vec<Products> = Vec::new();
        let mut seconds = 0.0;
        for tensor in self.matrices() {
            let at = formats.iter().position(|known| known.kind == tensor.kind).or_else(|| {
                let mut new = Products::narrow(tensor)?;
                (0..3).for_each(|_| bench.sample_cached(&mut new));
                formats.push(new);
                Some(formats.len() - 1)
            });
            let weight = at.and_then(|at| formats[at].cached.median()).unwrap_or(0.0);
            seconds += weight * tensor.rows as f64 * tensor.cols as f64;
        }
        seconds
    }
}

/// What whole layers and products tell.
struct Wide {
    formats: Vec<Products>,
    /// Layers beyond the cache, and the output head.
    layers: Trial,
    /// A layer of which the cache does not matter.
    batched: Trial,
    /// Seconds of a pass, by number of rows.
    passes: [Samples; ROWS.len()],
    head: Samples,
}

impl Wide {
    fn load(
        spec: &ModelSpec,
        pool: &Arc<Pool>,
        set: u64,
        formats: Vec<Products>,
    ) -> Result<Self, MeasureError> {
        let layers = Trial::load(spec, &Cut::whole_layers(spec, set), pool)?;
        let one = Cut::whole_layers(spec, BATCHED_SET.min(set));
        let batched = Trial::load(spec, &Cut { layers: one.layers[..1].to_vec(), ..one }, pool)?;
        Ok(Self { formats, layers, batched, passes: Default::default(), head: Samples::default() })
    }

    fn trial(&mut self, at: usize) -> &mut Trial {
        if ROWS[at] >= BATCHED_ROWS { &mut self.batched } else { &mut self.layers }
    }

    /// Takes samples of everything in turn until each has [`SAMPLES`] or the time is over.
    fn measure(&mut self, bench: &mut Bench<'_>, clock: Clock) -> Result<(), MeasureError> {
        let mut last = [0.0; ROWS.len()];
        for round in 0..=SAMPLES {
            for at in 0..ROWS.len() {
                for format in &mut self.formats {
                    // Every figure has one sample at least; one takes milliseconds.
                    if format.samples[at].is_empty() || clock.allows(0.05) {
                        bench.sample(format, at);
                    }
                }
                let expected = if round > 0 { last[at] } else { self.products_seconds(at) };
                if expected > LONGEST_PASS || !clock.allows(expected) {
                    continue;
                }
                last[at] = self.trial(at).pass(0, 0, ROWS[at])?;
                // The first pass touches its pages for the first time.
                if round > 0 || last[at] > LONGEST_PASS / 4.0 {
                    self.passes[at].push(last[at]);
                }
            }
            if round == 0 || clock.allows(self.head.median().unwrap_or(0.0)) {
                let head = self.layers.head()?;
                if round > 0 || head > LONGEST_PASS / 4.0 {
                    self.head.push(head);
                }
            }
            // The larger passes end long before the smaller ones are sampled enough: nobody waits for what is known.
            if self.passes.iter().all(|samples| samples.len() >= SAMPLES) {
                break;
            }
        }
        Ok(())
    }

    /// Seconds that the products alone say a pass takes.
    fn products_seconds(&mut self, at: usize) -> f64 {
        let weight = |kind: QuantType| {
            let of = self.formats.iter().find(|of| of.kind == kind).or(self.formats.first());
            of.and_then(|of| of.seconds(at)).unwrap_or(0.0)
        };
        let trial = if ROWS[at] >= BATCHED_ROWS { &self.batched } else { &self.layers };
        trial.matrices().map(|t| weight(t.kind) * t.rows as f64 * t.cols as f64).sum()
    }

    /// By how much a pass takes longer than its products: overheads and attention taken off.
    fn correction(&mut self, at: usize, narrow: &Narrow) -> Option<(f64, f32)> {
        let (pass, spread) = (self.passes[at].median()?, self.passes[at].spread());
        let products = self.products_seconds(at);
        let trial = self.trial(at);
        let (layers, rows) = (f64::from(trial.spec.n_layers), f64::from(ROWS[at]));
        let attention = narrow.attention_seconds(rows, f64::midpoint(rows, 1.0), trial.kv_bytes());
        let fixed = layers * (attention + 2.0 * narrow.overhead.median.0);
        let rest = (pass - fixed).max(products * CORRECTION.start());
        Some(((rest / products).clamp(*CORRECTION.start(), *CORRECTION.end()), spread))
    }

    /// Rates under which layers and head take what they took.
    fn rates(&mut self, spec: &ModelSpec, narrow: &Narrow) -> Vec<KindRate> {
        let mut corrections = Vec::with_capacity(ROWS.len());
        let mut known = (1.0, 0.0);
        for at in 0..ROWS.len() {
            // What was too slow to be run is as far from its products as the largest pass that was run.
            known = self.correction(at, narrow).unwrap_or(known);
            corrections.push(known);
        }
        let output = spec.output().map(|tensor| tensor.kind);
        let head = self.head_extra(narrow);
        let layer_weights = |kind| {
            let of = spec.tensors.iter().filter(|t| t.rows > 1 && t.kind == kind);
            of.filter(|t| matches!(t.role, Role::Layer(..))).map(weights_of).sum::<f64>()
        };
        let mut out = Vec::with_capacity(self.formats.len());
        for format in &self.formats {
            let layers = layer_weights(format.kind);
            let rows_of_head = spec.output().filter(|_| output == Some(format.kind)).map_or(0.0, weights_of);
            let mut batched: Vec<BatchRate> = Vec::with_capacity(ROWS.len());
            for (at, &(correction, spread)) in corrections.iter().enumerate() {
                let Some(product) = format.seconds(at) else { continue };
                let rows = f64::from(ROWS[at]);
                // The head answers every row of a decode step, and one row of a prompt.
                let head_weights = if ROWS[at] < BATCHED_ROWS || layers == 0.0 { rows_of_head } else { 0.0 };
                let in_layers = layers * product * correction;
                // Rows share what one row's answer takes less, so that never less than half a product is left.
                let in_head = head_weights * (product + rows * head).max(product / 2.0);
                let weights = layers + head_weights;
                // A format of rows that are only looked up has no layer to be corrected by.
                let seconds =
                    if weights > 0.0 { (in_layers + in_head) / weights } else { product * correction };
                let median = MacsPerSec(rows / seconds.max(1e-18));
                let spread = spread.max(format.samples[at].spread());
                batched.push(BatchRate { rows: ROWS[at], rate: Measured { median, spread } });
            }
            let Some(one) = batched.first() else { continue };
            let bytes = format.kind.block_bytes() as f64 / format.kind.block_len() as f64;
            let stream = Measured { median: BytesPerSec(one.rate.median.0 * bytes), spread: one.rate.spread };
            out.push(KindRate { kind: format.kind, stream, batched });
        }
        out
    }

    /// Seconds for one weight of the output head and one row beyond the product: candidates and sums.
    fn head_extra(&self, narrow: &Narrow) -> f64 {
        let trial = &self.layers.spec;
        let Some((output, answer)) = trial.output().zip(self.head.median()) else { return 0.0 };
        let product = self.formats.iter().find(|of| of.kind == output.kind).and_then(|of| of.seconds(0));
        let Some(product) = product else { return 0.0 };
        let weights = weights_of(output);
        // May be negative where the head's product is faster than a layer's, never so much that none is left.
        ((answer - narrow.overhead.median.0) / weights - product).max(-product / 2.0)
    }
}

fn weights_of(tensor: &shoal_core::model::TensorSpec) -> f64 {
    tensor.rows as f64 * tensor.cols as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_core::model::shapes::{FileType, Shape};

    #[test]
    fn real_shapes_are_measured_in_time_and_to_sensible_figures() {
        let pool = Arc::new(Pool::new(2).expect("pool"));
        for (shape, file) in [("llama-3.2-1b", "Q4_K_M"), ("qwen2.5-0.5b", "Q8_0"), ("llama-3.1-8b", "Q4_0")]
        {
            let Some(shape) = Shape::from_name(shape) else { panic!("no shape {shape}") };
            let spec = shape.spec(FileType::from_name(file).expect("file type"));
            let start = Instant::now();
            let profile = profile(&spec, &pool).expect("profile");
            // 10 s are promised of a machine that has nothing else to do. What is under way when the clock ends takes
            // as much longer as a busy one lets it.
            assert!(start.elapsed() < 3 * LONGEST, "{:?}: {profile:?}", start.elapsed());
            assert_eq!(profile.threads, 2);
            for rate in &profile.rates {
                let rows: Vec<u32> = rate.batched.iter().map(|entry| entry.rows).collect();
                assert_eq!(rows, ROWS);
            }
            let contexts: Vec<u32> = profile.attention.iter().map(|entry| entry.context).collect();
            assert_eq!(contexts, CONTEXTS);
            let kinds: Vec<QuantType> = products::formats(&spec).iter().map(|of| of.kind).collect();
            assert!(kinds.iter().all(|kind| profile.rates.iter().any(|rate| rate.kind == *kind)));
        }
    }

    #[test]
    fn a_model_without_matrices_is_an_error() {
        let shape = Shape::from_name("llama-3.2-1b").expect("shape");
        let mut spec = shape.spec(FileType::from_name("F16").expect("file type"));
        spec.tensors.clear();
        assert!(profile(&spec, &Arc::new(Pool::new(1).expect("pool"))).is_err());
    }

    #[test]
    fn contexts_are_the_models_own_and_fit_into_memory() {
        let shape = Shape::from_name("stories").expect("shape");
        let mut spec = shape.spec(FileType::from_name("Q8_0").expect("file type"));
        spec.context = 64;
        assert_eq!(contexts(&spec), [64]);
        spec.context = 2048;
        assert_eq!(contexts(&spec), [128, 1024, 2048]);
        spec.context = 128 << 10;
        assert_eq!(contexts(&spec), CONTEXTS);
        (spec.n_kv_heads, spec.head_dim) = (128, 128);
        assert_eq!(contexts(&spec), [128, 1024]);
    }
}
