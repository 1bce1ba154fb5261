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
use shoal_core::plan::{AllReduce, HeadShare, KvBudget, Plan, PlanParts, Share, Span, Stage, Strategy, Wire};
use shoal_core::profile::{DeviceProfile, KindRate, Measured};
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

/// Hidden width of the layer that is run: attention does not depend on it, and its matrices stay small.
const LAYER_WIDTH: u32 = 1024;

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
    let layer = trial_layer(spec, &rates, pool)?;
    let profile = DeviceProfile {
        rates,
        attention: layer.attention,
        phase_overhead: layer.overhead,
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
        batched: Measured { median: MacsPerSec(batched.median), spread: batched.spread },
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

struct LayerFigures {
    attention: Measured<BytesPerSec>,
    overhead: Measured<Seconds>,
}

/// Runs one layer of the model's heads, narrow and with hardly any feed-forward columns: at the first
/// position for the fixed cost, at a late one for attention.
fn trial_layer(spec: &ModelSpec, rates: &[KindRate], pool: &Arc<Pool>) -> Result<LayerFigures, MeasureError> {
    let failed = |error: &dyn std::fmt::Display| MeasureError::Layer(error.to_string());
    let (mut trial, file) = trial_spec(spec)?;
    let positions = POSITIONS.min(spec.context).max(FILL_ROWS);
    // Room for one more than the model may have: the trial is over then.
    trial.context = positions + 1;
    let plan = trial_plan(&trial, positions + 1).map_err(|error| failed(&error))?;
    let node = NodeId::default();
    let mut shard = Shard::load(&trial, &plan, node, &MemorySource(&file), Arc::clone(pool), &mut |_, _| {})
        .map_err(|error| failed(&error))?;
    let d = trial.d_model as usize;
    let hidden: Vec<f32> = (0..FILL_ROWS as usize * d).map(|i| ((i % 31) as f32 - 15.0) / 15.0).collect();
    let run = |shard: &mut Shard, first_position: u32, rows: u32| -> Result<f64, MeasureError> {
        let batch = Batch::new(vec![RowRun { seq: SeqId(1), first_position, rows }])
            .map_err(|error| failed(&error))?;
        shard.set_hidden(&hidden[..rows as usize * d]).map_err(|error| failed(&error))?;
        let start = Instant::now();
        shard.run_layers(&batch, &mut Solo).map_err(|error| failed(&error))?;
        Ok(start.elapsed().as_secs_f64())
    };
    let decode = |shard: &mut Shard, position: u32| -> Result<Measured<f64>, MeasureError> {
        let mut times = Vec::new();
        let start = Instant::now();
        while times.len() < SAMPLES || start.elapsed() < SAMPLE {
            times.push(run(shard, position, 1)?);
            shard.truncate(SeqId(1), position).map_err(|error| failed(&error))?;
        }
        // The first warms the caches.
        Ok(median(&mut times[1..]))
    };
    let first = decode(&mut shard, 0)?;
    let (start, mut filled) = (Instant::now(), 0);
    while filled + FILL_ROWS <= positions && (filled == 0 || start.elapsed() < FILL) {
        run_fill(&mut shard, &hidden, d, filled).map_err(|error| failed(&error))?;
        filled += FILL_ROWS;
    }
    let late = decode(&mut shard, filled)?;
    let kv = f64::from(filled) * f64::from(trial.n_kv_heads) * f64::from(trial.head_dim) * 4.0;
    // Where attention drowns in noise it is at least as fast as this.
    let attention = kv / (late.median - first.median).max(late.median * 0.02).max(1e-9);
    let weights: f64 = (trial.tensors.iter())
        .filter(|tensor| tensor.rows > 1 && matches!(tensor.role, Role::Layer(..)))
        .map(|tensor| tensor.bytes().0 as f64 / stream_rate(rates, tensor.kind))
        .sum();
    let overhead = ((first.median - weights) / 2.0).max(LEAST_OVERHEAD);
    Ok(LayerFigures {
        attention: Measured { median: BytesPerSec(attention), spread: late.spread },
        overhead: Measured { median: Seconds(overhead), spread: first.spread },
    })
}

fn run_fill(shard: &mut Shard, hidden: &[f32], d: usize, first_position: u32) -> Result<(), String> {
    let run = RowRun { seq: SeqId(1), first_position, rows: FILL_ROWS };
    let batch = Batch::new(vec![run]).map_err(|error| error.to_string())?;
    shard.set_hidden(&hidden[..FILL_ROWS as usize * d]).map_err(|error| error.to_string())?;
    shard.run_layers(&batch, &mut Solo).map_err(|error| error.to_string())
}

fn stream_rate(rates: &[KindRate], kind: QuantType) -> f64 {
    rates.iter().find(|rate| rate.kind == kind).map_or(1e10, |rate| rate.stream.median.0)
}

/// The model's first layer as a model of its own, and a file for it.
fn trial_spec(spec: &ModelSpec) -> Result<(ModelSpec, Vec<u8>), MeasureError> {
    let mut trial = ModelSpec {
        n_layers: 1,
        d_model: spec.d_model.min(LAYER_WIDTH),
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
        stages: vec![Stage { layers: Span::new(0, 1), ranks: vec![share] }],
        head: vec![HeadShare { node, rows: Span::new(0, spec.vocab) }],
        chunk_tokens: FILL_ROWS,
        wire: Wire { hop: WireType::F32, sum: WireType::F16 },
        all_reduce: AllReduce::Direct,
        kv: KvBudget { context: context.min(spec.context), sequences: 1 },
    };
    Plan::try_new(parts, spec)
}
