//! Products of one number format at several numbers of rows, with weights that come from where the model's would.
//! Called by the other files of this folder alone.

use std::time::{Duration, Instant};

use shoal_core::model::{ModelSpec, Role, TensorSpec};
use shoal_core::quant::QuantType;
use shoal_engine::kernels::{self, Matrix};
use shoal_engine::pool::Pool;
use shoal_engine::quant::Activations;

use super::ROWS;
use super::sample::Samples;

/// One sample: far above the clock's resolution, and short beside all that is to be measured.
const SAMPLE: Duration = Duration::from_millis(8);

/// Multiply-accumulates of one call: milliseconds on a board, so that handing it to the threads is nothing beside it,
/// as with the model's own matrices.
const CALL_MACS: u64 = 32 << 20;

/// Rows of weights of one call at least: the threads' shares must be even.
const LEAST_CALL_ROWS: u64 = 64;

/// The format's largest matrix and how its products did.
pub(super) struct Products {
    pub(super) kind: QuantType,
    cols: usize,
    row_bytes: usize,
    /// Rows of the widest matrix.
    rows: usize,
    /// Byte at which the next call's weights begin.
    next: usize,
    /// Seconds for one weight, by number of rows.
    pub(super) samples: [Samples; ROWS.len()],
    /// The same for a product with one row whose weights are in the cache.
    pub(super) cached: Samples,
}

/// What products of all formats share.
pub(super) struct Bench<'a> {
    pub(super) pool: &'a Pool,
    /// Plausible numbers, in every format.
    pub(super) weights: &'a [u8],
    input: Vec<f32>,
    output: Vec<f32>,
    activations: Activations,
}

impl<'a> Bench<'a> {
    pub(super) fn new(pool: &'a Pool, weights: &'a [u8]) -> Self {
        Self { pool, weights, input: Vec::new(), output: Vec::new(), activations: Activations::new() }
    }

    /// Takes one sample of `of` with `ROWS[at]` rows of activations; the weights go round through all of them.
    pub(super) fn sample(&mut self, of: &mut Products, at: usize) {
        let seconds = self.run(of, ROWS[at] as usize, false);
        of.samples[at].push(seconds);
    }

    /// Takes one sample of a product with one row, again and again with the same few weights.
    pub(super) fn sample_cached(&mut self, of: &mut Products) {
        let seconds = self.run(of, 1, true);
        of.cached.push(seconds);
    }

    /// Seconds for one weight.
    fn run(&mut self, of: &mut Products, rows: usize, cached: bool) -> f64 {
        let wanted = (CALL_MACS / (of.cols * rows) as u64).max(LEAST_CALL_ROWS) as usize;
        let room = (self.weights.len() / of.row_bytes).max(1);
        let call = if cached { LEAST_CALL_ROWS as usize } else { wanted }.min(of.rows).min(room);
        let bytes = call * of.row_bytes;
        self.input.clear();
        self.input.extend((0..rows * of.cols).map(|i| ((i % 29) as f32 - 14.0) / 14.0));
        self.output.resize(rows * call, 0.0);
        self.activations.load(self.pool, &self.input, rows, of.cols);
        let (start, mut calls) = (Instant::now(), 0_usize);
        while calls == 0 || start.elapsed() < SAMPLE {
            if cached || of.next + bytes > self.weights.len() {
                of.next = 0;
            }
            let weights = &self.weights[of.next..of.next + bytes];
            of.next += bytes;
            let matrix = Matrix::new(of.kind, call, of.cols, weights);
            kernels::matmul(self.pool, &matrix, &self.activations, &mut self.output);
            calls += 1;
        }
        start.elapsed().as_secs_f64() / (calls * call * of.cols) as f64
    }
}

/// For each number format of the model's matrices, its largest matrix.
pub(super) fn formats(spec: &ModelSpec) -> Vec<Products> {
    let mut widest: Vec<&TensorSpec> = Vec::new();
    // The embedding table is looked up; it is multiplied only where it is the head.
    let matrices =
        spec.tensors.iter().filter(|t| t.rows > 1 && (t.role != Role::TokenEmbedding || spec.tied()));
    for tensor in matrices {
        // The output head is one of a kind; a layer's matrix is what most time goes into.
        let worth = |t: &TensorSpec| (matches!(t.role, Role::Layer(..)), t.bytes());
        match widest.iter_mut().find(|other| other.kind == tensor.kind) {
            Some(other) if worth(tensor) > worth(other) => *other = tensor,
            Some(_) => {}
            None => widest.push(tensor),
        }
    }
    widest.into_iter().map(Products::new).collect()
}

impl Products {
    fn new(tensor: &TensorSpec) -> Self {
        Self {
            kind: tensor.kind,
            cols: tensor.cols as usize,
            row_bytes: tensor.row_bytes().max(1) as usize,
            rows: tensor.rows as usize,
            next: 0,
            samples: Default::default(),
            cached: Samples::default(),
        }
    }

    /// The matrix itself; `None` where its rows are no whole blocks.
    pub(super) fn narrow(tensor: &TensorSpec) -> Option<Self> {
        (tensor.row_bytes() > 0).then(|| Self::new(tensor))
    }

    pub(super) fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Seconds for one weight and `ROWS[at]` rows, as the median has it.
    pub(super) fn seconds(&self, at: usize) -> Option<f64> {
        self.samples[at].median()
    }
}
