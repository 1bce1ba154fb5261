//! The cost of each phase of a layer and of the exchanges between ranks.

use shoal_core::frame::WireType;
use shoal_core::model::{LayerRole, ModelSpec, Role, TensorSpec};
use shoal_core::plan::{Share, Span};
use shoal_core::{NodeId, QuantType};

use super::rates::Rates;

/// A matrix as the cost model sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Matrix {
    kind: QuantType,
    rows: u64,
    cols: u64,
}

/// Layers whose matrices have the same formats cost the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LayerClass {
    q: Matrix,
    k: Matrix,
    v: Matrix,
    o: Matrix,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

impl LayerClass {
    /// Values in one block of the output matrix of attention.
    pub(crate) fn o_block(&self) -> u64 {
        self.o.kind.block_len()
    }

    /// Whether attention costs the same in both.
    pub(crate) fn same_attention(&self, other: &Self) -> bool {
        (self.q, self.k, self.v, self.o) == (other.q, other.k, other.v, other.o)
    }

    /// Whether the feed-forward network costs the same in both.
    pub(crate) fn same_feed_forward(&self, other: &Self) -> bool {
        (self.gate, self.up, self.down) == (other.gate, other.up, other.down)
    }
}

/// What of a model the cost depends on.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) classes: Vec<LayerClass>,
    /// Class of each layer.
    pub(crate) class_of: Vec<usize>,
    output: Matrix,
    head_dim: u64,
    pub(crate) d_model: u64,
}

impl Model {
    /// The model must have passed [`ModelSpec::check`]; a missing tensor counts as nothing.
    pub(crate) fn new(spec: &ModelSpec) -> Self {
        let nothing = Matrix { kind: QuantType::F32, rows: 0, cols: 0 };
        let matrix = |tensor: &TensorSpec| Matrix { kind: tensor.kind, rows: tensor.rows, cols: tensor.cols };
        let mut classes: Vec<LayerClass> = Vec::new();
        let mut class_of = Vec::new();
        for layer in 0..spec.n_layers {
            let find = |role| spec.tensor(Role::Layer(layer, role)).map_or(nothing, matrix);
            let class = LayerClass {
                q: find(LayerRole::Q),
                k: find(LayerRole::K),
                v: find(LayerRole::V),
                o: find(LayerRole::O),
                gate: find(LayerRole::Gate),
                up: find(LayerRole::Up),
                down: find(LayerRole::Down),
            };
            let at = classes.iter().position(|known| *known == class);
            class_of.push(at.unwrap_or_else(|| {
                classes.push(class);
                classes.len() - 1
            }));
        }
        Self {
            classes,
            class_of,
            output: spec.output().map_or(nothing, matrix),
            head_dim: spec.head_dim.into(),
            d_model: spec.d_model.into(),
        }
    }

    /// Attention of one layer on one rank: `b` rows at context `s`.
    pub(crate) fn attention(&self, class: &LayerClass, rates: &Rates, share: &Share, b: f64, s: f64) -> f64 {
        if share.q_heads.is_empty() {
            return 0.0;
        }
        self.attention_weights(class, rates, share, b)
            + self.attention_cache(rates, share, b, s)
            + rates.overhead
    }

    /// The four products of attention, for `b` rows.
    pub(crate) fn attention_weights(&self, class: &LayerClass, rates: &Rates, share: &Share, b: f64) -> f64 {
        let q = u64::from(share.q_heads.len()) * self.head_dim;
        let kv = u64::from(share.kv_heads.len()) * self.head_dim;
        let rows = |m: &Matrix, rows| rates.product(m.kind, rows, m.cols, b);
        let values =
            Span::new(share.q_heads.first * self.head_dim as u32, share.q_heads.end * self.head_dim as u32);
        rows(&class.q, q)
            + rows(&class.k, kv)
            + rows(&class.v, kv)
            + rates.product(class.o.kind, class.o.rows, held(values, class.o.kind), b)
    }

    /// Reading the cache: keys and values, two bytes each.
    pub(crate) fn attention_cache(&self, rates: &Rates, share: &Share, b: f64, s: f64) -> f64 {
        let kv = u64::from(share.kv_heads.len()) * self.head_dim;
        b * s * (kv * 4) as f64 / rates.attention(s)
    }

    /// Each product of a whole layer: `b` rows.
    pub(crate) fn products(&self, class: &LayerClass, rates: &Rates, b: f64) -> [f64; 7] {
        let matrices = [class.q, class.k, class.v, class.o, class.gate, class.up, class.down];
        matrices.map(|m| rates.product(m.kind, m.rows, m.cols, b))
    }

    /// Feed-forward network of one layer on one rank: `b` rows.
    pub(crate) fn feed_forward(&self, class: &LayerClass, rates: &Rates, share: &Share, b: f64) -> f64 {
        if share.ffn.is_empty() {
            return 0.0;
        }
        let rows = |m: &Matrix| rates.product(m.kind, share.ffn.len().into(), m.cols, b);
        let down = rates.product(class.down.kind, class.down.rows, held(share.ffn, class.down.kind), b);
        rows(&class.gate) + rows(&class.up) + down + rates.overhead
    }

    /// Output head on one rank: `b` rows of hidden state.
    pub(crate) fn head(&self, rates: &Rates, rows: Span, b: f64) -> f64 {
        if rows.is_empty() {
            return 0.0;
        }
        rates.product(self.output.kind, rows.len().into(), self.output.cols, b) + rates.overhead
    }

    /// Time this device would take for all matrices of one token at context `s`, and for the phases'
    /// overheads apart, as if its memory had no limit.
    pub(crate) fn alone(&self, rates: &Rates, whole: &Share, vocab: u32, b: f64, s: f64) -> f64 {
        let layers: f64 = self
            .class_of
            .iter()
            .map(|&class| {
                let class = &self.classes[class];
                self.attention(class, rates, whole, b, s) + self.feed_forward(class, rates, whole, b)
            })
            .sum();
        layers + self.head(rates, Span::new(0, vocab), b)
    }

    /// One rank has all of a layer.
    pub(crate) fn whole_share(spec: &ModelSpec, node: NodeId) -> Share {
        let (q_heads, kv_heads) = (Span::new(0, spec.n_heads), Span::new(0, spec.n_kv_heads));
        Share { node, q_heads, kv_heads, kv_owned: kv_heads, ffn: Span::new(0, spec.ffn) }
    }
}

/// Columns that are held for these: whole blocks.
fn held(used: Span, kind: QuantType) -> u64 {
    let block = kind.block_len();
    u64::from(used.end).div_ceil(block) * block - u64::from(used.first) / block * block
}

/// Bytes of one encoded row of `cols` values.
pub(crate) fn wire_row(kind: WireType, cols: u64) -> f64 {
    let cols = cols as f64;
    match kind {
        WireType::F32 => cols * 4.0,
        // A scale for the row.
        WireType::F16 => cols * 2.0 + 2.0,
        // A scale for each block of 32.
        WireType::Q8 => cols * (1.0 + 2.0 / 32.0),
    }
}
