//! The transformer block over one rank's share of one stage, in the order of the paper.
//!
//! Shapes: `rows` rows of the batch; d = `d_model`; of this rank nq query heads, nkv KV heads and nf
//! feed-forward columns; h = `head_dim`. `x` is the hidden state, `delta` what a phase adds to it.

use std::ops::Range;

use shoal_core::ids::NodeId;
use shoal_core::model::ModelSpec;
use shoal_core::plan::{Plan, Share, Span};
use shoal_core::shard;

use super::attention::Attention;
use super::batch::Batch;
use super::group::{Group, ReducePhase};
use super::kv::{KvCache, PageShape};
use super::rope::Rope;
use super::shard::ForwardError;
use super::weights::{AttentionWeights, ColumnCut, LayerWeights, Stored, Weights};
use crate::kernels::{self, Product};
use crate::pool::Pool;
use crate::quant::Activations;

/// A rank's layers with their cache and buffers.
pub(super) struct Stage {
    shape: Shape,
    first_layer: u32,
    layers: Vec<LayerWeights>,
    table: Option<Stored>,
    rope: Rope,
    attention: Attention,
    kv: KvCache,
    max_rows: usize,
    buffers: Buffers,
}

/// Numbers of the model and the share.
struct Shape {
    d_model: usize,
    head_dim: usize,
    eps: f32,
    q_heads: Span,
    kv_heads: Span,
    nf: usize,
}

/// Working memory, with room for the plan's largest step.
#[derive(Default)]
struct Buffers {
    /// [rows, d]
    x: Vec<f32>,
    /// [rows, d]
    normed: Vec<f32>,
    /// [rows, d]
    delta: Vec<f32>,
    /// [rows, nq, h]
    q: Vec<f32>,
    /// [rows, nkv, h]
    k: Vec<f32>,
    /// [rows, nkv, h]
    v: Vec<f32>,
    /// [rows, nq, h]
    heads: Vec<f32>,
    /// [rows, held]: the input of a column cut whose border lies inside a block
    wide: Vec<f32>,
    /// [rows, nf]
    gate: Vec<f32>,
    /// [rows, nf]
    up: Vec<f32>,
    /// [rows, rotated values of a head]
    angles: Vec<f32>,
    /// The quantized form of a matrix's input.
    activations: Activations,
}

impl Stage {
    /// The layers of `node`, if the plan gives it any.
    pub(super) fn new(spec: &ModelSpec, plan: &Plan, node: NodeId, weights: Weights) -> Option<Self> {
        let (place, share) = (plan.place(node)?, plan.share(node)?);
        let layers = plan.stages[place.stage].layers;
        let page = PageShape {
            layers: layers.len() as usize,
            kv_heads: share.kv_heads.len() as usize,
            head_dim: spec.head_dim as usize,
        };
        let pages = shard::pages_per_sequence(plan.kv.context) * u64::from(plan.kv.sequences);
        let rope = Rope::new(spec.arch, &spec.rope, weights.rope_factors.as_deref());
        let shape = Shape::new(spec, share);
        let max_rows = plan.max_rows() as usize;
        let buffers = Buffers::new(&shape, &weights.layers, rope.dims(), max_rows);
        Some(Self {
            shape,
            first_layer: layers.first,
            layers: weights.layers,
            table: weights.table,
            rope,
            attention: Attention::new(spec, share),
            kv: KvCache::new(page, plan.kv.context, pages as usize),
            max_rows,
            buffers,
        })
    }

    pub(super) fn kv(&self) -> &KvCache {
        &self.kv
    }

    pub(super) fn kv_mut(&mut self) -> &mut KvCache {
        &mut self.kv
    }

    pub(super) fn hidden(&self) -> &[f32] {
        &self.buffers.x
    }

    /// Bytes of buffers, as allocated.
    pub(super) fn buffer_bytes(&self, threads: usize) -> usize {
        self.buffers.bytes() + threads * self.attention.scratch_bytes()
    }

    pub(super) fn embed(&mut self, tokens: &[u32]) -> Result<(), ForwardError> {
        let table = self.table.as_ref().ok_or(ForwardError::NoTable)?;
        if tokens.len() > self.max_rows {
            return Err(ForwardError::Rows { rows: tokens.len(), most: self.max_rows });
        }
        let vocab = table.rows() as u32;
        if let Some(&token) = tokens.iter().find(|&&token| token >= vocab) {
            return Err(ForwardError::Token { token, vocab });
        }
        self.buffers.x.resize(tokens.len() * self.shape.d_model, 0.0);
        for (&token, x) in tokens.iter().zip(self.buffers.x.chunks_exact_mut(self.shape.d_model)) {
            table.row(token as usize, x);
        }
        Ok(())
    }

    pub(super) fn set_hidden(&mut self, hidden: &[f32]) -> Result<(), ForwardError> {
        let d_model = self.shape.d_model;
        let rows = hidden.len() / d_model;
        if !hidden.len().is_multiple_of(d_model) {
            return Err(ForwardError::Hidden { hidden: hidden.len(), rows, d_model });
        }
        if rows > self.max_rows {
            return Err(ForwardError::Rows { rows, most: self.max_rows });
        }
        check_finite(hidden, d_model, "on arrival")?;
        self.buffers.x.clear();
        self.buffers.x.extend_from_slice(hidden);
        Ok(())
    }

    pub(super) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Runs these of the layers; of one batch all must run, in order.
    pub(super) fn run(
        &mut self,
        pool: &Pool,
        layers: Range<usize>,
        batch: &Batch,
        group: &mut dyn Group,
    ) -> Result<(), ForwardError> {
        let (rows, d_model) = (batch.rows(), self.shape.d_model);
        let hidden = self.buffers.x.len();
        if hidden != rows * d_model {
            return Err(ForwardError::Hidden { hidden, rows, d_model });
        }
        if layers.start == 0 {
            self.kv.reserve(batch)?;
            self.buffers.shape(rows, &self.shape, &self.rope, batch);
        }
        let last = layers.end >= self.layers.len();
        for index in layers.start..layers.end.min(self.layers.len()) {
            let layer = self.first_layer + index as u32;
            let mut sum = |phase, delta: &mut [f32]| {
                let sum = group.all_reduce(layer, phase, delta, rows);
                sum.map_err(|source| ForwardError::Group { layer, phase, source })
            };
            self.attention(pool, index, batch);
            sum(ReducePhase::Attn, &mut self.buffers.delta)?;
            self.buffers.add_delta();
            self.feed_forward(pool, index, rows);
            sum(ReducePhase::Ffn, &mut self.buffers.delta)?;
            self.buffers.add_delta();
        }
        if last {
            check_finite(&self.buffers.x, d_model, "after the last layer of this stage")?;
            self.kv.commit(batch);
        }
        Ok(())
    }

    /// delta = attention(norm(x)) · oᵀ over this rank's heads: a partial sum.
    fn attention(&mut self, pool: &Pool, index: usize, batch: &Batch) {
        let Self { shape, rope, attention, kv, buffers: b, .. } = self;
        let Some(w) = &self.layers[index].attention else { return b.delta.fill(0.0) };
        let rows = batch.rows();

        kernels::rmsnorm_rows(pool, &b.x, &w.norm, shape.eps, &mut b.normed); // [rows, d]
        b.activations.load(pool, &b.normed, rows, shape.d_model);
        let q = Product::new(w.q.matrix(), &mut b.q); // [rows, nq, h]
        let k = Product::new(w.k.matrix(), &mut b.k); // [rows, nkv, h]
        let v = Product::new(w.v.matrix(), &mut b.v); // [rows, nkv, h]
        kernels::matmuls(pool, &b.activations, &[q, k, v]);
        shape.bias_norm_rotate(w, rope, &b.angles, &mut b.q, &mut b.k, &mut b.v);

        kv.write(batch, index, &b.k, &b.v);
        attention.run(pool, kv, index, batch, &b.q, &mut b.heads); // [rows, nq, h]
        multiply_cut(pool, &w.o, &b.heads, rows, &mut b.wide, &mut b.activations, &mut b.delta); // [rows, d]
    }

    /// delta = (silu(norm(x) · gateᵀ) ⊙ norm(x) · upᵀ) · downᵀ over this rank's columns: a partial sum.
    fn feed_forward(&mut self, pool: &Pool, index: usize, rows: usize) {
        let Self { shape, buffers: b, .. } = self;
        let Some(w) = &self.layers[index].ffn else { return b.delta.fill(0.0) };

        kernels::rmsnorm_rows(pool, &b.x, &w.norm, shape.eps, &mut b.normed); // [rows, d]
        b.activations.load(pool, &b.normed, rows, shape.d_model);
        let gate = Product::new(w.gate.matrix(), &mut b.gate); // [rows, nf]
        let up = Product::new(w.up.matrix(), &mut b.up); // [rows, nf]
        kernels::matmuls(pool, &b.activations, &[gate, up]);
        kernels::silu_mul(pool, &mut b.gate, &b.up); // [rows, nf]
        multiply_cut(pool, &w.down, &b.gate, rows, &mut b.wide, &mut b.activations, &mut b.delta); // [rows, d]
    }
}

impl Shape {
    fn new(spec: &ModelSpec, share: &Share) -> Self {
        Self {
            d_model: spec.d_model as usize,
            head_dim: spec.head_dim as usize,
            eps: spec.norm_eps,
            q_heads: share.q_heads,
            kv_heads: share.kv_heads,
            nf: share.ffn.len() as usize,
        }
    }

    fn q_width(&self) -> usize {
        self.q_heads.len() as usize * self.head_dim
    }

    fn kv_width(&self) -> usize {
        self.kv_heads.len() as usize * self.head_dim
    }

    /// What happens to q, k and v between their matrices and attention.
    fn bias_norm_rotate(
        &self,
        w: &AttentionWeights,
        rope: &Rope,
        angles: &[f32],
        q: &mut [f32],
        k: &mut [f32],
        v: &mut [f32],
    ) {
        self.add_bias(q, w.q_bias.as_deref(), self.q_heads);
        self.add_bias(k, w.k_bias.as_deref(), self.kv_heads);
        self.add_bias(v, w.v_bias.as_deref(), self.kv_heads);
        for (rows, width, norm) in
            [(q, self.q_width(), w.q_norm.as_deref()), (k, self.kv_width(), w.k_norm.as_deref())]
        {
            for (row, angles) in rows.chunks_exact_mut(width).zip(angles.chunks_exact(rope.dims())) {
                for head in row.chunks_exact_mut(self.head_dim) {
                    if let Some(norm) = norm {
                        kernels::rmsnorm_in_place(head, norm, self.eps);
                    }
                    rope.rotate(&mut head[..rope.dims()], angles);
                }
            }
        }
    }

    /// Adds the part of `bias` (all heads') that belongs to `heads`.
    fn add_bias(&self, rows: &mut [f32], bias: Option<&[f32]>, heads: Span) {
        let Some(bias) = bias else { return };
        let bias = &bias[heads.first as usize * self.head_dim..heads.end as usize * self.head_dim];
        for row in rows.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
        }
    }
}

impl Buffers {
    fn new(shape: &Shape, layers: &[LayerWeights], rotated: usize, rows: usize) -> Self {
        let room = |width: usize| Vec::with_capacity(rows * width);
        let o_width = |layer: &LayerWeights| layer.attention.as_ref().map(|w| w.o.stored.cols());
        let widest = layers.iter().filter_map(o_width).max().unwrap_or(0);
        let needs_wide = widest > shape.q_width();
        Self {
            x: room(shape.d_model),
            normed: room(shape.d_model),
            delta: room(shape.d_model),
            q: room(shape.q_width()),
            k: room(shape.kv_width()),
            v: room(shape.kv_width()),
            heads: room(shape.q_width()),
            wide: if needs_wide { room(widest) } else { Vec::new() },
            gate: room(shape.nf),
            up: room(shape.nf),
            angles: room(rotated),
            activations: Activations::with_capacity(rows, shape.d_model.max(widest).max(shape.nf)),
        }
    }

    /// Gives every buffer the batch's number of rows, and computes its rotations.
    fn shape(&mut self, rows: usize, shape: &Shape, rope: &Rope, batch: &Batch) {
        let (q, kv) = (shape.q_width(), shape.kv_width());
        for (buffer, width) in [
            (&mut self.normed, shape.d_model),
            (&mut self.delta, shape.d_model),
            (&mut self.q, q),
            (&mut self.k, kv),
            (&mut self.v, kv),
            (&mut self.heads, q),
            (&mut self.gate, shape.nf),
            (&mut self.up, shape.nf),
            (&mut self.angles, rope.dims()),
        ] {
            buffer.resize(rows * width, 0.0);
        }
        let positions = batch.runs().iter().flat_map(|run| run.first_position..run.first_position + run.rows);
        for (position, angles) in positions.zip(self.angles.chunks_exact_mut(rope.dims())) {
            rope.angles(position, angles);
        }
    }

    fn add_delta(&mut self) {
        kernels::add(&mut self.x, &self.delta);
    }

    fn bytes(&self) -> usize {
        let Self { x, normed, delta, q, k, v, heads, wide, gate, up, angles, activations } = self;
        let floats = [x, normed, delta, q, k, v, heads, wide, gate, up, angles];
        floats.map(Vec::capacity).iter().sum::<usize>() * size_of::<f32>() + activations.bytes()
    }
}

/// y = input · cutᵀ: [rows, used] by [d, held] to [rows, d]. Held columns that are not this rank's get
/// zeros, so they add nothing.
fn multiply_cut(
    pool: &Pool,
    cut: &ColumnCut,
    input: &[f32],
    rows: usize,
    wide: &mut Vec<f32>,
    activations: &mut Activations,
    y: &mut [f32],
) {
    let (held, used) = (cut.stored.cols(), input.len() / rows);
    if held == used {
        activations.load(pool, input, rows, held);
    } else {
        wide.clear();
        wide.resize(rows * held, 0.0);
        for (from, to) in input.chunks_exact(used).zip(wide.chunks_exact_mut(held)) {
            to[cut.before..cut.before + used].copy_from_slice(from);
        }
        activations.load(pool, wide, rows, held);
    }
    kernels::matmul(pool, &cut.stored.matrix(), activations, y);
}

/// For loops over fewer slices than [`Pool::for_slices`] takes.
pub(super) fn none() -> (&'static mut [u8], usize) {
    (&mut [], 0)
}

fn check_finite(rows: &[f32], d_model: usize, at: &'static str) -> Result<(), ForwardError> {
    let bad = rows.chunks_exact(d_model).position(|row| !row.iter().all(|value| value.is_finite()));
    bad.map_or(Ok(()), |row| Err(ForwardError::NonFinite { row, at }))
}
