//! Layers that really run: some of the model's own, as they are or narrower, with plausible numbers for weights.
//! Called by the other files of this folder alone.

use std::sync::Arc;

use shoal_core::frame::WireType;
use shoal_core::head::{HeadRequest, Penalties};
use shoal_core::ids::{Epoch, NodeId, SeqId, StepId};
use shoal_core::limits;
use shoal_core::message::HeadRow;
use shoal_core::model::{ModelSpec, Role, TensorSpec};
use shoal_core::plan::{
    HeadShare, KvBudget, Plan, PlanError, PlanParts, Share, Span, Stage, Strategy, Sums, Wire,
};
use shoal_core::quant::QuantType;
use shoal_engine::model::{Batch, RowRun, Shard, Solo};
use shoal_engine::pool::Pool;

use super::memory::PlausibleFile;
use super::sample::time;
use super::{MeasureError, ROWS};

/// Candidates of the default sampling parameters: what the head answers to one row.
const CANDIDATES: u32 = 40;

/// Rows of the largest pass.
const MOST_ROWS: u32 = ROWS[ROWS.len() - 1];

/// What of the model is run.
#[derive(Debug, Clone)]
pub(super) struct Cut {
    /// Layers of the model that become those of the trial, each at most once, rising.
    pub(super) layers: Vec<u32>,
    pub(super) d_model: u32,
    pub(super) n_kv_heads: u32,
    pub(super) ffn: u32,
    pub(super) vocab: u32,
    /// Positions there is room for in each sequence.
    pub(super) context: u32,
    pub(super) sequences: u32,
}

impl Cut {
    /// As many layers, evenly spread over the model, as have about `bytes`; of a layer that is larger alone, fewer
    /// feed-forward columns, and where that is not enough fewer heads. Of the vocabulary, rows of about a quarter
    /// of that.
    pub(super) fn whole_layers(spec: &ModelSpec, bytes: u64) -> Self {
        let first = Self {
            layers: vec![0],
            d_model: spec.d_model,
            n_kv_heads: spec.n_kv_heads,
            ffn: spec.ffn,
            vocab: head_rows(spec, bytes / 4),
            context: MOST_ROWS + 1,
            sequences: 1,
        };
        let layer_bytes = |cut: &Self| {
            let layer = cut.spec(spec);
            let of = |t: &&TensorSpec| matches!(t.role, Role::Layer(..));
            layer.tensors.iter().filter(of).map(|t| t.bytes().0).sum::<u64>().max(1)
        };
        let whole = layer_bytes(&first);
        if whole <= bytes {
            let count = (bytes / whole).clamp(1, u64::from(spec.n_layers));
            let layer = |at: u64| (at * u64::from(spec.n_layers) / count) as u32;
            return Self { layers: (0..count).map(layer).collect(), ..first };
        }
        let block = spec.ffn_block();
        let narrow = |part: f64, whole: u32, block: u32| {
            let wanted = (f64::from(whole) * part) as u32 / block * block;
            wanted.clamp(block.min(whole), whole)
        };
        let least = Self { ffn: block.min(spec.ffn), ..first.clone() };
        let fixed = layer_bytes(&least);
        if fixed <= bytes {
            let part = (bytes - fixed) as f64 / (whole - fixed).max(1) as f64;
            return Self { ffn: narrow(part, spec.ffn, block), ..first };
        }
        Self { n_kv_heads: narrow(bytes as f64 / fixed as f64, spec.n_kv_heads, 1), ..least }
    }

    /// A layer so narrow that its matrices take hardly any time, with `n_kv_heads` heads.
    pub(super) fn narrow_layer(spec: &ModelSpec, n_kv_heads: u32, context: u32, sequences: u32) -> Self {
        Self {
            layers: vec![0],
            d_model: spec.d_model.min(limits::VOCAB_TILE),
            n_kv_heads,
            ffn: spec.ffn_block().min(spec.ffn),
            vocab: spec.vocab.min(limits::VOCAB_TILE),
            context,
            sequences,
        }
    }

    /// The cut as a model of its own.
    pub(super) fn spec(&self, spec: &ModelSpec) -> ModelSpec {
        let mut trial = ModelSpec {
            n_layers: self.layers.len() as u32,
            d_model: self.d_model,
            n_heads: self.n_kv_heads * spec.group_size(),
            n_kv_heads: self.n_kv_heads,
            ffn: self.ffn,
            vocab: self.vocab,
            context: self.context,
            ..spec.clone()
        };
        trial.tensors.retain_mut(|tensor| match &mut tensor.role {
            Role::Layer(layer, _) => match self.layers.binary_search(layer) {
                Ok(at) => {
                    *layer = at as u32;
                    true
                }
                Err(_) => false,
            },
            Role::TokenEmbedding | Role::OutputNorm | Role::Output | Role::RopeFactors => true,
        });
        let shapes: Vec<(u64, u64)> = trial.tensors.iter().map(|t| trial.shape_of(t.role)).collect();
        let mut offset = 0;
        for (tensor, (rows, cols)) in trial.tensors.iter_mut().zip(shapes) {
            (tensor.rows, tensor.cols, tensor.offset) = (rows, cols, offset);
            // A width that is cut down may no longer be whole blocks.
            if tensor.kind.row_bytes(cols).is_none() {
                tensor.kind = QuantType::F16;
            }
            offset += tensor.bytes().0;
        }
        trial
    }
}

/// Rows of the vocabulary whose matrices (the table counts where it is one of its own) have about `bytes`, whole tiles.
fn head_rows(spec: &ModelSpec, bytes: u64) -> u32 {
    let row: u64 = [Role::TokenEmbedding, Role::Output]
        .into_iter()
        .filter_map(|role| spec.tensor(role))
        .map(TensorSpec::row_bytes)
        .sum();
    let rows = (bytes / row.max(1)).min(u64::from(spec.vocab)) as u32;
    if rows == spec.vocab { rows } else { (rows / limits::VOCAB_TILE).max(1) * limits::VOCAB_TILE }
        .min(spec.vocab)
}

/// A cut that is loaded.
pub(super) struct Trial {
    shard: Shard,
    pub(super) spec: ModelSpec,
    hidden: Vec<f32>,
    step: u64,
}

impl Trial {
    pub(super) fn load(spec: &ModelSpec, cut: &Cut, pool: &Arc<Pool>) -> Result<Self, MeasureError> {
        let trial = cut.spec(spec);
        if !trial.tensors.iter().any(|t| matches!(t.role, Role::Layer(..))) {
            return Err(MeasureError::Empty);
        }
        let plan = plan(&trial, cut.sequences).map_err(failed)?;
        let factors = trial.tensor(Role::RopeFactors);
        let ones = factors.map_or(0..0, |t| t.offset..t.offset + t.bytes().0);
        let (node, file, pool) = (NodeId::default(), PlausibleFile::new(ones), Arc::clone(pool));
        let shard = Shard::load(&trial, &plan, node, &file, pool, &mut |_, _| {}).map_err(failed)?;
        let values = MOST_ROWS as usize * trial.d_model as usize;
        let hidden = (0..values).map(|i| ((i % 31) as f32 - 15.0) / 15.0).collect();
        Ok(Self { shard, spec: trial, hidden, step: 0 })
    }

    /// Bytes of keys and values of one position in one layer.
    pub(super) fn kv_bytes(&self) -> f64 {
        f64::from(self.spec.n_kv_heads) * f64::from(self.spec.head_dim) * 4.0
    }

    /// The matrices of the trial's layers.
    pub(super) fn matrices(&self) -> impl Iterator<Item = &TensorSpec> + '_ {
        self.spec.tensors.iter().filter(|t| t.rows > 1 && matches!(t.role, Role::Layer(..)))
    }

    /// Seconds of one pass of `rows` rows of sequence `seq`, which holds `position` positions that are not computed:
    /// their keys and values are whatever is in the cache.
    pub(super) fn pass(&mut self, seq: u32, position: u32, rows: u32) -> Result<f64, MeasureError> {
        let seq = SeqId(seq.into());
        self.shard.assume(seq, position).map_err(failed)?;
        let batch = Batch::new(vec![RowRun { seq, first_position: position, rows }]).map_err(failed)?;
        let hidden = &self.hidden[..rows as usize * self.spec.d_model as usize];
        self.shard.set_hidden(hidden).map_err(failed)?;
        let (seconds, result) = time(|| self.shard.run_layers(&batch, &mut Solo));
        result.map_err(failed)?;
        Ok(seconds)
    }

    /// Seconds of the output head's answer to one row.
    pub(super) fn head(&mut self) -> Result<f64, MeasureError> {
        self.step += 1;
        let request = HeadRequest {
            k: CANDIDATES.min(self.spec.vocab),
            temperature: 1.0,
            penalties: Penalties::default(),
            bias: Vec::new(),
            mask: None,
            want_tiles: true,
            want_raw: false,
        };
        let hidden = &self.hidden[..self.spec.d_model as usize];
        let (step, rows) = (StepId(self.step), [HeadRow { row: 0, request }]);
        let (seconds, result) = time(|| self.shard.head(step, hidden, &rows));
        result.map_err(failed)?;
        self.shard.settle(step);
        Ok(seconds)
    }
}

fn failed(error: impl std::fmt::Display) -> MeasureError {
    MeasureError::Layer(error.to_string())
}

fn plan(spec: &ModelSpec, sequences: u32) -> Result<Plan, PlanError> {
    let node = NodeId::default();
    let (q_heads, kv) = (Span::new(0, spec.n_heads), Span::new(0, spec.n_kv_heads));
    let share = Share { node, q_heads, kv_heads: kv, kv_owned: kv, ffn: Span::new(0, spec.ffn) };
    let parts = PlanParts {
        epoch: Epoch::default(),
        strategy: Strategy::Single,
        stages: vec![Stage {
            layers: Span::new(0, spec.n_layers),
            ranks: vec![share],
            sums: Sums::default(),
        }],
        head: vec![HeadShare { node, rows: Span::new(0, spec.vocab) }],
        chunk_tokens: MOST_ROWS,
        wire: Wire { hop: WireType::F32, sum: WireType::F16 },
        kv: KvBudget { context: spec.context, sequences },
    };
    Plan::try_new(parts, spec)
}
