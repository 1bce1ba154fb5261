//! What this machine can do with a model: the real kernels on the model's number formats and shapes.
//!
//! Rates come from products of the model's widest matrices, of which as many lie in memory as the model
//! has of that format, up to [`WORKING_SET`]: a small model is measured in the cache, where it will run,
//! and a large one beyond it. Attention and the fixed cost of a phase come from a layer that really runs
//! ([`Shard`]). Every part is bounded in time; the whole takes under [`LONGEST`] on any board.
//!
//! The compute thread calls [`profile`] while it holds no shard. Links are measured elsewhere
//! (`shoal_net::data`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_core::frame::WireType;
use shoal_core::ids::{Epoch, NodeId, SeqId};
use shoal_core::limits;
use shoal_core::model::{LayerRole, ModelSpec, Role, TensorSpec};
use shoal_core::plan::{HeadShare, KvBudget, Plan, PlanParts, Share, Span, Stage, Strategy, Sums, Wire};
use shoal_core::profile::{BatchRate, ContextRate, DeviceProfile, KindRate, Measured};
use shoal_core::quant::QuantType;
use shoal_core::units::{BytesPerSec, MacsPerSec, Seconds};
use shoal_engine::kernels::{self, Matrix};
use shoal_engine::model::{Batch, MemorySource, RowRun, Shard, Solo};
use shoal_engine::pool::Pool;
use shoal_engine::quant::Activations;

/// Weights of one format that are streamed: beyond the last cache of any board.
pub const WORKING_SET: u64 = 64 << 20;

/// The whole measurement: a person waits for it once a model.
pub const LONGEST: Duration = Duration::from_secs(5);

/// Samples of each figure; their median is taken, so two disturbed ones do not matter.
const SAMPLES: usize = 5;

/// One sample of a rate: far above the clock's resolution and a scheduler's tick.
const SAMPLE: Duration = Duration::from_millis(10);

/// Rows of a product that counts as batched: more no longer raises the rate.
const BATCH_ROWS: usize = 32;

/// Positions whose attention is measured, fewer where the machine is too slow to fill them in
/// [`FILL`].
const POSITIONS: u32 = 1024;

/// Positions of one fill step.
const FILL_ROWS: u32 = 32;

/// Time to fill the KV cache for the attention figure.
const FILL: Duration = Duration::from_millis(250);

/// Hidden width of the layer that is run: one block of every format, so that its matrices stay small.
const LAYER_WIDTH: u32 = 256;

/// The part of a trial's time that is at least its attention or its fixed cost: a difference that noise
/// makes smaller is not believed.
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
    let start = Instant::now();
    let rates: Vec<KindRate> =
        widest(spec).into_iter().map(|(tensor, total)| rate(&tensor, total, pool)).collect();
    let profile = DeviceProfile {
        attention: vec![attention(spec, &rates, pool)?],
        phase_overhead: overhead(spec, &rates, pool)?,
        rates,
        threads: pool.threads() as u32,
        kernel_set: kernels::kernel_set_id().to_owned(),
    };
    profile.check()?;
    tracing::info!(model = %spec.name, elapsed = ?start.elapsed(), "measured this device");
    Ok(profile)
}

/// For each number format of the model's matrices: the largest matrix and the bytes of all.
fn widest(spec: &ModelSpec) -> Vec<(TensorSpec, u64)> {
    let mut out: Vec<(TensorSpec, u64)> = Vec::new();
    // The embedding table is looked up; it is multiplied only where it is the head.
    let matrices =
        spec.tensors.iter().filter(|t| t.rows > 1 && (t.role != Role::TokenEmbedding || spec.tied()));
    for tensor in matrices {
        match out.iter_mut().find(|(widest, _)| widest.kind == tensor.kind) {
            Some((widest, total)) => {
                *total = total.saturating_add(tensor.bytes().0);
                // The output head is one of a kind; a layer's matrix is what most time goes into.
                let layer = |t: &TensorSpec| (matches!(t.role, Role::Layer(..)), t.bytes());
                if layer(tensor) > layer(widest) {
                    *widest = tensor.clone();
                }
            }
            None => out.push((tensor.clone(), tensor.bytes().0)),
        }
    }
    out
}

fn rate(tensor: &TensorSpec, total: u64, pool: &Arc<Pool>) -> KindRate {
    let cols = tensor.cols as usize;
    let row_bytes = tensor.row_bytes().max(1);
    // A matrix beyond the working set is measured by its first rows.
    let rows = tensor.rows.min(WORKING_SET / row_bytes).max(1) as usize;
    let bytes = rows * row_bytes as usize;
    let copies = (total.min(WORKING_SET) as usize / bytes).max(1);
    let weights = plausible(bytes * copies);
    let matrix =
        |copy: usize| Matrix::new(tensor.kind, rows, cols, &weights[copy * bytes..(copy + 1) * bytes]);
    let input: Vec<f32> = (0..BATCH_ROWS * cols).map(|i| ((i % 29) as f32 - 14.0) / 14.0).collect();
    let mut output = vec![0.0; BATCH_ROWS * rows];
    let mut activations = Activations::new();

    activations.load(pool, &input[..cols], 1, cols);
    let mut next = 0;
    let stream = sample(|| {
        kernels::matmul(pool, &matrix(next), &activations, &mut output[..rows]);
        next = (next + 1) % copies;
        bytes as f64
    });
    // As many rows as a batch has, so few weights that a sample stays short.
    let few = (rows / 8).clamp(rows.min(64), 512.min(rows));
    let matrix = Matrix::new(tensor.kind, few, cols, &weights[..few * row_bytes as usize]);
    let batched = sample(|| {
        activations.load(pool, &input, BATCH_ROWS, cols);
        kernels::matmul(pool, &matrix, &activations, &mut output[..BATCH_ROWS * few]);
        (BATCH_ROWS * few * cols) as f64
    });
    KindRate {
        kind: tensor.kind,
        stream: Measured { median: BytesPerSec(stream.median), spread: stream.spread },
        batched: vec![BatchRate {
            rows: BATCH_ROWS as u32,
            rate: Measured { median: MacsPerSec(batched.median), spread: batched.spread },
        }],
    }
}

/// Amount per second of what `work` says it did, over several samples.
fn sample(mut work: impl FnMut() -> f64) -> Measured<f64> {
    work();
    let mut rates = [0.0; SAMPLES];
    for rate in &mut rates {
        let (start, mut amount) = (Instant::now(), 0.0);
        while start.elapsed() < SAMPLE {
            amount += work();
        }
        *rate = amount / start.elapsed().as_secs_f64();
    }
    median(&mut rates)
}

fn median(values: &mut [f64]) -> Measured<f64> {
    values.sort_by(f64::total_cmp);
    let median = values[values.len() / 2];
    let spread = (values[values.len() - 1] - values[0]) / median.max(f64::MIN_POSITIVE);
    Measured { median, spread: spread as f32 }
}

/// Bytes that are ordinary numbers in every format, whatever of a block they are: no infinity and no
/// subnormal, which some processors handle slowly.
fn plausible(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        0x30 | (state >> 24) as u8 & 0x0b
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// A layer of the model, narrow and with hardly any feed-forward columns, so that its matrices take little
/// of the time.
struct Trial {
    shard: Shard,
    d: usize,
    hidden: Vec<f32>,
    /// Keys and values of one position.
    kv_bytes: f64,
    /// What its matrices take at the measured rates.
    weights_s: f64,
}

impl Trial {
    fn new(
        spec: &ModelSpec,
        n_kv_heads: u32,
        positions: u32,
        rates: &[KindRate],
        pool: &Arc<Pool>,
    ) -> Result<Self, MeasureError> {
        let (mut trial, file) = trial_spec(spec, n_kv_heads)?;
        // Room for one more than the model may have: the trial is over then.
        trial.context = positions + 1;
        let plan = trial_plan(&trial, positions + 1).map_err(failed)?;
        let (node, pool) = (NodeId::default(), Arc::clone(pool));
        let shard =
            Shard::load(&trial, &plan, node, &MemorySource(&file), pool, &mut |_, _| {}).map_err(failed)?;
        let d = trial.d_model as usize;
        let matrices = trial.tensors.iter().filter(|t| t.rows > 1 && matches!(t.role, Role::Layer(..)));
        Ok(Self {
            shard,
            d,
            hidden: (0..FILL_ROWS as usize * d).map(|i| ((i % 31) as f32 - 15.0) / 15.0).collect(),
            kv_bytes: f64::from(trial.n_kv_heads) * f64::from(trial.head_dim) * 4.0,
            weights_s: matrices.map(|tensor| tensor.bytes().0 as f64 / stream_rate(rates, tensor.kind)).sum(),
        })
    }

    /// Seconds of one pass of these rows.
    fn run(&mut self, first_position: u32, rows: u32) -> Result<f64, MeasureError> {
        let batch = Batch::new(vec![RowRun { seq: SeqId(1), first_position, rows }]).map_err(failed)?;
        self.shard.set_hidden(&self.hidden[..rows as usize * self.d]).map_err(failed)?;
        let start = Instant::now();
        self.shard.run_layers(&batch, &mut Solo).map_err(failed)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Seconds of one row at this position, up to which the sequence is filled: the least, since what
    /// disturbs a difference of two of them only ever adds, and the spread.
    fn decode(&mut self, position: u32) -> Result<Measured<f64>, MeasureError> {
        // The first warms the caches.
        self.run(position, 1)?;
        let (mut times, start) = (Vec::new(), Instant::now());
        while times.len() < SAMPLES || start.elapsed() < SAMPLE {
            self.shard.truncate(SeqId(1), position).map_err(failed)?;
            times.push(self.run(position, 1)?);
        }
        self.shard.truncate(SeqId(1), position).map_err(failed)?;
        let spread = median(&mut times).spread;
        // Sorted by now.
        Ok(Measured { median: times[0], spread })
    }

    /// Fills the sequence for a while; the position it is filled to.
    fn fill(&mut self, positions: u32) -> Result<u32, MeasureError> {
        let (start, mut filled) = (Instant::now(), 0);
        while filled + FILL_ROWS <= positions && (filled == 0 || start.elapsed() < FILL) {
            self.run(filled, FILL_ROWS)?;
            filled += FILL_ROWS;
        }
        Ok(filled)
    }
}

/// What a row costs beside its weights: at the first position of a layer with one KV head.
fn overhead(
    spec: &ModelSpec,
    rates: &[KindRate],
    pool: &Arc<Pool>,
) -> Result<Measured<Seconds>, MeasureError> {
    let mut trial = Trial::new(spec, 1, 1, rates, pool)?;
    let first = trial.decode(0)?;
    // Attention and feed-forward are a phase each.
    let rest = (first.median - trial.weights_s).max(first.median * LEAST_REST);
    let median = (rest / 2.0).max(LEAST_OVERHEAD);
    Ok(Measured { median: Seconds(median), spread: first.spread })
}

/// KV bytes per second: a late position against the first, with all heads.
fn attention(spec: &ModelSpec, rates: &[KindRate], pool: &Arc<Pool>) -> Result<ContextRate, MeasureError> {
    let positions = POSITIONS.min(spec.context).max(FILL_ROWS);
    let mut trial = Trial::new(spec, spec.n_kv_heads, positions, rates, pool)?;
    let first = trial.decode(0)?;
    let filled = trial.fill(positions)?;
    let late = trial.decode(filled)?;
    let time = (late.median - first.median).max(late.median * LEAST_REST).max(1e-9);
    let rate = f64::from(filled) * trial.kv_bytes / time;
    Ok(ContextRate { context: filled, rate: Measured { median: BytesPerSec(rate), spread: late.spread } })
}

fn failed(error: impl std::fmt::Display) -> MeasureError {
    MeasureError::Layer(error.to_string())
}

fn stream_rate(rates: &[KindRate], kind: QuantType) -> f64 {
    rates.iter().find(|rate| rate.kind == kind).map_or(1e10, |rate| rate.stream.median.0)
}

/// The model's first layer, with so many KV heads, as a model of its own, and a file for it.
fn trial_spec(spec: &ModelSpec, n_kv_heads: u32) -> Result<(ModelSpec, Vec<u8>), MeasureError> {
    let mut trial = ModelSpec {
        n_layers: 1,
        d_model: spec.d_model.min(LAYER_WIDTH),
        n_heads: n_kv_heads * spec.group_size(),
        n_kv_heads,
        ffn: spec.ffn_block().min(spec.ffn),
        vocab: spec.vocab.min(limits::VOCAB_TILE),
        // The last position is timed as well, whatever the model's own context is.
        context: spec.context.max(POSITIONS + 1),
        ..spec.clone()
    };
    trial.tensors.retain(|tensor| match tensor.role {
        Role::TokenEmbedding | Role::OutputNorm | Role::RopeFactors | Role::Layer(0, _) => true,
        Role::Output | Role::Layer(..) => false,
    });
    if trial.tensors.is_empty() {
        return Err(MeasureError::Empty);
    }
    let mut offset = 0;
    let shapes: Vec<(u64, u64)> = trial.tensors.iter().map(|tensor| trial.shape_of(tensor.role)).collect();
    for (tensor, (rows, cols)) in trial.tensors.iter_mut().zip(shapes) {
        (tensor.rows, tensor.cols, tensor.offset) = (rows, cols, offset);
        // A width that is cut down may no longer be whole blocks.
        if tensor.kind.row_bytes(cols).is_none() {
            tensor.kind = QuantType::F16;
        }
        offset += tensor.bytes().0;
    }
    let mut file = plausible(offset as usize);
    for tensor in &trial.tensors {
        // Divisors of the rotation of ordinary size; the rest may be what it is.
        if tensor.role == Role::RopeFactors && tensor.kind == QuantType::F32 {
            let (values, _) =
                file[tensor.offset as usize..][..tensor.bytes().0 as usize].as_chunks_mut::<4>();
            values.iter_mut().for_each(|value| *value = 1.0_f32.to_le_bytes());
        }
    }
    debug_assert!(trial.tensors.iter().any(|tensor| matches!(tensor.role, Role::Layer(0, LayerRole::Q))));
    Ok((trial, file))
}

fn trial_plan(spec: &ModelSpec, context: u32) -> Result<Plan, shoal_core::plan::PlanError> {
    let node = NodeId::default();
    let (q_heads, kv) = (Span::new(0, spec.n_heads), Span::new(0, spec.n_kv_heads));
    let share = Share { node, q_heads, kv_heads: kv, kv_owned: kv, ffn: Span::new(0, spec.ffn) };
    let parts = PlanParts {
        epoch: Epoch::default(),
        strategy: Strategy::Single,
        stages: vec![Stage { layers: Span::new(0, 1), ranks: vec![share], sums: Sums::default() }],
        head: vec![HeadShare { node, rows: Span::new(0, spec.vocab) }],
        chunk_tokens: FILL_ROWS,
        wire: Wire { hop: WireType::F32, sum: WireType::F16 },
        kv: KvBudget { context: context.min(spec.context), sequences: 1 },
    };
    Plan::try_new(parts, spec)
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
            assert!(start.elapsed() < LONGEST, "{:?}: {profile:?}", start.elapsed());
            assert_eq!(profile.threads, 2);
            let kinds: Vec<QuantType> = widest(&spec).iter().map(|(tensor, _)| tensor.kind).collect();
            assert!(
                !kinds.is_empty()
                    && kinds.iter().all(|kind| profile.rates.iter().any(|rate| rate.kind == *kind))
            );
        }
    }

    #[test]
    fn a_model_without_matrices_is_an_error() {
        let shape = Shape::from_name("llama-3.2-1b").expect("shape");
        let mut spec = shape.spec(FileType::from_name("F16").expect("file type"));
        spec.tensors.clear();
        assert!(profile(&spec, &Arc::new(Pool::new(1).expect("pool"))).is_err());
    }
}
