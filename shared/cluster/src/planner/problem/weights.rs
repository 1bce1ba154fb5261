//! What a rank holds of each layer, in bytes, exactly as [`shard::footprint`] counts it.

use shoal_core::model::Role;
use shoal_core::plan::{KvBudget, Share, Span, Stage};
use shoal_core::shard::{self, Cut};
use shoal_core::{ModelSpec, NodeId, limits};

use crate::cost::model::Model;

/// Layers that cost and weigh the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Class {
    /// Index among the kinds of attention.
    pub(crate) attention: usize,
    /// Index among the kinds of feed-forward network.
    pub(crate) feed_forward: usize,
    /// Index among the cost model's classes.
    pub(crate) priced_as: usize,
    /// Bytes of vectors that attention holds whole.
    attention_whole: u64,
    /// The same of the feed-forward network.
    feed_forward_whole: u64,
}

/// Bytes of ranges of heads and of counts of feed-forward blocks.
///
/// A range of heads costs and weighs the same wherever its first head lies, up to multiples of a period:
/// that after which KV heads and blocks of the output matrix begin together.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) heads: usize,
    pub(crate) blocks: usize,
    /// Whether the last block has fewer columns than the others.
    pub(crate) short: bool,
    pub(crate) period: usize,
    pub(crate) classes: Vec<Class>,
    /// Class of each layer.
    pub(crate) class_of: Vec<usize>,
    /// For each kind of attention and of feed-forward network, a class of the cost model that has it.
    pub(crate) attentions: Vec<usize>,
    pub(crate) feed_forwards: Vec<usize>,
    /// `[class][Weights::at]`: one layer's matrices, vectors and KV pages.
    attention: Vec<Vec<u64>>,
    /// `[class][last block among them][blocks]`.
    feed_forward: Vec<[Vec<u64>; 2]>,
    /// `[last block among them][blocks]`: columns.
    columns: [Vec<u32>; 2],
    /// Divisors of the rotation, held where there are heads.
    pub(crate) rope: u64,
    /// The embedding table.
    pub(crate) embedding: u64,
    /// Norm before the head, and one row of the head.
    head: (u64, u64),
}

impl Weights {
    pub(crate) fn new(spec: &ModelSpec, model: &Model, kv: KvBudget) -> Self {
        let heads = spec.n_heads as usize;
        let block = spec.ffn_block();
        let (mut attentions, mut feed_forwards) = (Vec::new(), Vec::new());
        let kind = |of: &mut Vec<usize>, class: usize, same: &dyn Fn(usize) -> bool| {
            of.iter().position(|&known| same(known)).unwrap_or_else(|| {
                of.push(class);
                of.len() - 1
            })
        };
        let (mut classes, mut class_of, mut layer_of): (Vec<Class>, Vec<usize>, Vec<u32>) =
            Default::default();
        let whole = Model::whole_share(spec, NodeId::default());
        for layer in 0..spec.n_layers {
            let priced_as = model.class_of[layer as usize];
            let of = |class: usize| &model.classes[class];
            let vectors = |share: &Share| {
                let slices = shard::layer_slices(spec, layer, share);
                slices.iter().filter(|slice| slice.cut == Cut::Whole).map(|slice| slice.bytes().0).sum()
            };
            let class = Class {
                attention: kind(&mut attentions, priced_as, &|known| of(known).same_attention(of(priced_as))),
                feed_forward: kind(&mut feed_forwards, priced_as, &|known| {
                    of(known).same_feed_forward(of(priced_as))
                }),
                priced_as,
                attention_whole: vectors(&Share { ffn: Span::default(), ..whole.clone() }),
                feed_forward_whole: vectors(&Share { q_heads: Span::default(), ..whole.clone() }),
            };
            let at = classes.iter().position(|known| *known == class).unwrap_or_else(|| {
                classes.push(class);
                layer_of.push(layer);
                classes.len() - 1
            });
            class_of.push(at);
        }
        let bytes = |role| spec.tensor(role);
        let mut out = Self {
            heads,
            blocks: spec.ffn.div_ceil(block) as usize,
            short: !spec.ffn.is_multiple_of(block),
            period: period(spec, model),
            classes,
            class_of,
            attentions,
            feed_forwards,
            attention: Vec::new(),
            feed_forward: Vec::new(),
            columns: [false, true].map(|last| {
                (0..=spec.ffn.div_ceil(block) as usize).map(|n| columns_of(spec, n, last)).collect()
            }),
            rope: bytes(Role::RopeFactors).map_or(0, |t| t.rows * t.cols * 4),
            embedding: bytes(Role::TokenEmbedding).map_or(0, |t| t.bytes().0),
            head: (
                bytes(Role::OutputNorm).map_or(0, |t| t.rows * t.cols * 4),
                spec.output().map_or(0, |t| t.row_bytes()),
            ),
        };
        let pages = shard::pages_per_sequence(kv.context) * u64::from(kv.sequences);
        let layer_bytes = |layer: u32, share: &Share| -> u64 {
            shard::layer_slices(spec, layer, share).iter().map(|slice| slice.bytes().0).sum()
        };
        for &layer in &layer_of {
            let of_heads = |share: &Share| {
                if share.q_heads.is_empty() {
                    0
                } else {
                    layer_bytes(layer, share) + shard::kv_page_bytes(spec, share) * pages
                }
            };
            out.attention.push(out.by_range(spec, of_heads));
            let of_blocks = |short: bool| {
                (0..=out.blocks as u32).map(|n| layer_bytes(layer, &columns(spec, n, short))).collect()
            };
            out.feed_forward.push([of_blocks(false), of_blocks(true)]);
        }
        out
    }

    /// Where the figures of a range of heads stand.
    pub(crate) fn at(&self, first: usize, end: usize) -> usize {
        (first % self.period) * (self.heads + 1) + (end - first)
    }

    /// A figure for every range of heads, in the order of [`Weights::at`]. Ranges that do not exist get that
    /// of no heads.
    pub(crate) fn by_range<T>(&self, spec: &ModelSpec, figure: impl Fn(&Share) -> T) -> Vec<T> {
        let mut out = Vec::with_capacity(self.period * (self.heads + 1));
        for first in 0..self.period {
            for len in 0..=self.heads {
                let end = if first + len > self.heads { first } else { first + len };
                out.push(figure(&heads(spec, first, end)));
            }
        }
        out
    }

    /// Layers of each class from `first` to `end`.
    pub(crate) fn counts(&self, first: usize, end: usize) -> Vec<u32> {
        let mut counts = vec![0; self.classes.len()];
        for &class in &self.class_of[first..end] {
            counts[class] += 1;
        }
        counts
    }

    /// Bytes of so many layers of each class for this range of heads.
    pub(crate) fn attention_bytes(&self, counts: &[u32], at: usize) -> u64 {
        counts.iter().zip(&self.attention).map(|(&n, of)| u64::from(n) * of[at]).sum()
    }

    /// Bytes of so many layers of each class for this count of blocks.
    pub(crate) fn feed_forward_bytes(&self, counts: &[u32], blocks: usize, last: bool) -> u64 {
        let last = usize::from(last && self.short);
        counts.iter().zip(&self.feed_forward).map(|(&n, of)| u64::from(n) * of[last][blocks]).sum()
    }

    /// One layer of this class: bytes of attention and of the feed-forward network that ranks share out.
    pub(crate) fn credit(&self, class: usize) -> (u64, u64) {
        let of = &self.classes[class];
        let attention = self.attention[class][self.at(0, self.heads)];
        let feed_forward = self.feed_forward[class][1][self.blocks];
        (attention - of.attention_whole, feed_forward - of.feed_forward_whole)
    }

    /// So many blocks as a part of all columns.
    pub(crate) fn part(&self, blocks: usize, last: bool) -> f64 {
        f64::from(self.columns[usize::from(last)][blocks]) / f64::from(self.columns[1][self.blocks])
    }

    /// Bytes of so many rows of the output head with what it needs beside them.
    pub(crate) fn head_bytes(&self, spec: &ModelSpec, kv: KvBudget, rows: u32) -> u64 {
        if rows == 0 {
            return 0;
        }
        let buffers = shard::head_buffers(spec, kv.sequences, rows).0;
        self.head.0 + u64::from(rows) * self.head.1 + buffers
    }
}

/// Columns of so many blocks; the model's last block is one of them or not.
pub(crate) fn columns_of(spec: &ModelSpec, blocks: usize, last: bool) -> u32 {
    let (block, total) = (u64::from(spec.ffn_block()), u64::from(spec.ffn));
    let missing = if last && blocks > 0 { total.next_multiple_of(block) - total } else { 0 };
    (blocks as u64 * block).saturating_sub(missing).min(total) as u32
}

/// A share with these heads and no columns.
pub(crate) fn heads(spec: &ModelSpec, first: usize, end: usize) -> Share {
    let span = Span::new(first as u32, end as u32);
    let stage = Stage::from_spans(Span::default(), &[(NodeId::default(), span, Span::default())], spec);
    let none = Share {
        node: NodeId::default(),
        q_heads: span,
        kv_heads: Span::default(),
        kv_owned: Span::default(),
        ffn: Span::default(),
    };
    stage.ranks.into_iter().next().unwrap_or(none)
}

/// A share with so many blocks of columns and no heads; the model's last block is one of them or not.
pub(crate) fn columns(spec: &ModelSpec, blocks: u32, last: bool) -> Share {
    Share { ffn: Span::new(0, columns_of(spec, blocks as usize, last)), ..heads(spec, 0, 0) }
}

/// Heads after which KV heads and blocks of every output matrix begin together.
fn period(spec: &ModelSpec, model: &Model) -> usize {
    let lcm = |a: u64, b: u64| a / gcd(a, b) * b;
    let mut out = u64::from(spec.group_size().max(1));
    for class in &model.classes {
        let block = class.o_block();
        out = lcm(out, block / gcd(block, u64::from(spec.head_dim.max(1))));
    }
    out.clamp(1, u64::from(spec.n_heads.max(1)).min(u64::from(limits::MODEL_DIMENSION))) as usize
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl super::Problem<'_> {
    /// Bytes of buffers of a rank with these shares, in a group of `ranks`, for steps of up to `rows` rows.
    pub(crate) fn rank_buffers(
        &self,
        heads: (u32, u32),
        blocks: usize,
        last: bool,
        ranks: usize,
        rows: u32,
    ) -> u64 {
        let group = self.spec.group_size().max(1);
        let q_heads = Span::new(heads.0, heads.1);
        let kv_heads = if q_heads.is_empty() {
            Span::default()
        } else {
            Span::new(heads.0 / group, heads.1.div_ceil(group))
        };
        let ffn = Span::new(0, self.weights.columns[usize::from(last)][blocks]);
        let share = Share { node: NodeId::default(), q_heads, kv_heads, kv_owned: kv_heads, ffn };
        shard::rank_buffers(self.spec, rows, &share, ranks).0
    }
}
