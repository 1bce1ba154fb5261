//! Causal attention of a batch over the paged cache.
//!
//! Each query's softmax is computed page by page with a running maximum (Milakov and Gimelshein 2018,
//! arXiv:1805.02867). Pages lie at fixed positions, so a query's result is the same whatever else is in
//! the batch, however a prompt was cut into chunks, and whichever thread computes it.

use std::cell::RefCell;
use std::ops::Range;

use shoal_core::model::ModelSpec;
use shoal_core::plan::Share;

use super::batch::{Batch, RowRun};
use super::block::none;
use super::kv::{KvCache, PAGE, SequencePages};
use crate::kernels;
use crate::math;
use crate::pool::Pool;

/// Rows that share one widening of a page: its cost is then small beside theirs, and their state stays
/// in the nearest cache.
const ROW_BLOCK: usize = 16;

/// What is the same for all layers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention {
    head_dim: usize,
    /// Query heads of this rank, and the first one's place among all.
    n_q: usize,
    first_q: usize,
    /// KV heads of this rank, and the first one's place among all.
    n_kv: usize,
    first_kv: usize,
    /// Query heads that read one KV head.
    group: usize,
    /// 1 / √head_dim
    scale: f32,
}

thread_local! {
    /// Pages in full precision and the softmax state of a block of rows.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Debug, Default)]
struct Scratch {
    /// [PAGE, head_dim]
    keys: Vec<f32>,
    /// [PAGE, head_dim]
    values: Vec<f32>,
    /// [ROW_BLOCK, group]
    softmax: Vec<Softmax>,
}

/// The running state of one query's softmax.
#[derive(Debug, Clone, Copy)]
struct Softmax {
    max: f32,
    sum: f32,
}

impl Attention {
    pub(super) fn new(spec: &ModelSpec, share: &Share) -> Self {
        Self {
            head_dim: spec.head_dim as usize,
            n_q: share.q_heads.len() as usize,
            first_q: share.q_heads.first as usize,
            n_kv: share.kv_heads.len() as usize,
            first_kv: share.kv_heads.first as usize,
            group: spec.group_size() as usize,
            scale: 1.0 / (spec.head_dim as f32).sqrt(),
        }
    }

    /// Bytes of scratch that each kernel thread holds.
    pub(super) fn scratch_bytes(&self) -> usize {
        2 * PAGE * self.head_dim * size_of::<f32>() + ROW_BLOCK * self.group * size_of::<Softmax>()
    }

    /// `queries` and `out` are [rows, n_q, head_dim]; keys and values of all rows are in the cache.
    pub(super) fn run(
        &self,
        pool: &Pool,
        cache: &KvCache,
        layer: usize,
        batch: &Batch,
        queries: &[f32],
        out: &mut [f32],
    ) {
        let items = batch.rows() * self.n_q;
        // Threads get whole groups of heads where heads come in whole groups.
        let grain = if self.n_q.is_multiple_of(self.group) { self.group } else { 1 };
        pool.for_slices(items, grain, (out, self.head_dim), none(), none(), {
            |first, out, _, _| {
                let items = first..first + out.len() / self.head_dim;
                SCRATCH
                    .with_borrow_mut(|scratch| self.part(cache, layer, batch, queries, items, out, scratch));
            }
        });
    }

    /// The part of one thread: `items` counts (row, query head) pairs.
    #[expect(clippy::too_many_arguments, reason = "all are needed, none belong together")]
    fn part(
        &self,
        cache: &KvCache,
        layer: usize,
        batch: &Batch,
        queries: &[f32],
        items: Range<usize>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        scratch.keys.resize(PAGE * self.head_dim, 0.0);
        scratch.values.resize(PAGE * self.head_dim, 0.0);
        scratch.softmax.resize(ROW_BLOCK * self.group, Softmax { max: 0.0, sum: 0.0 });
        let rows = items.start / self.n_q..items.end.div_ceil(self.n_q);
        let mut run_start = 0;
        for run in batch.runs() {
            let run_rows = run_start..run_start + run.rows as usize;
            let mine = run_rows.start.max(rows.start)..run_rows.end.min(rows.end);
            for start in mine.clone().step_by(ROW_BLOCK) {
                let block = Block {
                    pages: cache.pages(run.seq),
                    rows: start..mine.end.min(start + ROW_BLOCK),
                    position: position(run, start - run_rows.start),
                };
                for kv in 0..self.n_kv {
                    self.block(&block, layer, kv, queries, &items, out, scratch);
                }
            }
            run_start = run_rows.end;
        }
    }

    /// A block of rows of one sequence against one KV head.
    #[expect(clippy::too_many_arguments, reason = "all are needed, none belong together")]
    fn block(
        &self,
        block: &Block<'_>,
        layer: usize,
        kv: usize,
        queries: &[f32],
        items: &Range<usize>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let Scratch { keys, values, softmax } = scratch;
        softmax.fill(Softmax { max: f32::NEG_INFINITY, sum: 0.0 });
        let heads = Heads { attention: self, kv, items, first_row: block.rows.start };
        for row in block.rows.clone() {
            heads.of(row).for_each(|(item, _)| self.output(out, items, item).fill(0.0));
        }
        let last = block.position + block.rows.len() - 1;
        for page in 0..=last / PAGE {
            block.pages.read(page, layer, false, kv, keys);
            block.pages.read(page, layer, true, kv, values);
            for row in block.rows.clone() {
                let position = block.position + row - block.rows.start;
                let Some(before) = (position + 1).checked_sub(page * PAGE).filter(|&n| n > 0) else {
                    continue;
                };
                let seen = before.min(PAGE) * self.head_dim;
                for (item, state) in heads.of(row) {
                    let query = &queries[item * self.head_dim..][..self.head_dim];
                    let out = self.output(out, items, item);
                    softmax[state].page(query, &keys[..seen], &values[..seen], self.scale, out);
                }
            }
        }
        for row in block.rows.clone() {
            for (item, state) in heads.of(row) {
                let sum = softmax[state].sum;
                self.output(out, items, item).iter_mut().for_each(|value| *value /= sum);
            }
        }
    }

    /// The output of one (row, query head) pair: head_dim.
    fn output<'a>(&self, out: &'a mut [f32], items: &Range<usize>, item: usize) -> &'a mut [f32] {
        &mut out[(item - items.start) * self.head_dim..][..self.head_dim]
    }
}

fn position(run: &RowRun, row: usize) -> usize {
    run.first_position as usize + row
}

/// Consecutive rows of one sequence.
struct Block<'a> {
    pages: SequencePages<'a>,
    rows: Range<usize>,
    /// Position of the first row.
    position: usize,
}

/// The query heads that read one KV head and belong to one thread.
struct Heads<'a> {
    attention: &'a Attention,
    kv: usize,
    items: &'a Range<usize>,
    first_row: usize,
}

impl Heads<'_> {
    /// (row, query head) pairs of a row, each with the place of its softmax.
    fn of(&self, row: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let Attention { n_q, first_q, first_kv, group, .. } = *self.attention;
        let first = ((first_kv + self.kv) * group).saturating_sub(first_q);
        let end = ((first_kv + self.kv + 1) * group - first_q).min(n_q);
        let first = (row * n_q + first).max(self.items.start);
        let end = (row * n_q + end).min(self.items.end);
        let state = (row - self.first_row) * group;
        (first..end).enumerate().map(move |(index, item)| (item, state + index))
    }
}

impl Softmax {
    /// Takes one page in: `keys` and `values` are [seen, head_dim], `out` is the unnormalized output.
    #[inline]
    fn page(&mut self, query: &[f32], keys: &[f32], values: &[f32], scale: f32, out: &mut [f32]) {
        let mut scores = [f32::NEG_INFINITY; PAGE];
        for (score, key) in scores.iter_mut().zip(keys.chunks_exact(query.len())) {
            *score = kernels::dot(query, key) * scale;
        }
        let seen = &mut scores[..keys.len() / query.len()];
        let max = kernels::max(seen).max(self.max);
        let fade = if self.max == f32::NEG_INFINITY { 0.0 } else { math::exp_f32(self.max - max) };
        *self = Self { max, sum: self.sum * fade + kernels::exp_sum(seen, max) };
        kernels::scale(out, fade);
        for (weight, value) in seen.iter().zip(values.chunks_exact(query.len())) {
            kernels::add_scaled(out, *weight, value);
        }
    }
}
