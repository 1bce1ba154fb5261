//! One node's part of a model: what it holds, and the verbs a worker drives it with.
//!
//! A step on a rank: [`Shard::embed`] (first stage) or [`Shard::set_hidden`], then
//! [`Shard::run_layers`], then [`Shard::hidden`] is handed on. On a head rank: [`Shard::head`], then
//! [`Shard::query`] as asked, then [`Shard::settle`]. No input makes these panic; after an error the
//! cache is as before the step.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use shoal_core::head::{Candidate, HeadAnswer, HeadQuery};
use shoal_core::ids::{NodeId, SeqId, StepId};
use shoal_core::message::HeadRow;
use shoal_core::model::ModelSpec;
use shoal_core::plan::Plan;
use shoal_core::shard::Footprint;
use shoal_core::units::Bytes;
use thiserror::Error;

use super::batch::{Batch, BatchError, RowRun};
use super::block::Stage;
use super::group::{Group, GroupError, ReducePhase};
use super::head::{Head, HeadError};
use super::kv::KvError;
use super::source::WeightSource;
use super::weights::{self, LoadError};
use crate::pool::Pool;

/// Why a step could not run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// The plan gives this node no layers.
    #[error("failed to run the step: this node holds no layers")]
    NoLayers,
    /// Tokens were handed to a stage without the embedding table.
    #[error("failed to run the step: this node holds no embedding table")]
    NoTable,
    /// A token beyond the vocabulary.
    #[error("failed to run the step: token {token} is not in the vocabulary of {vocab}")]
    Token {
        /// The token.
        token: u32,
        /// Rows of the embedding table.
        vocab: u32,
    },
    /// More rows than the plan has room for.
    #[error("failed to run the step: {rows} rows, the plan has room for {most}")]
    Rows {
        /// Rows of the step.
        rows: usize,
        /// Most rows of a step.
        most: usize,
    },
    /// The hidden rows at hand are not those of the batch.
    #[error("failed to run the step: {hidden} hidden values for {rows} rows of {d_model}")]
    Hidden {
        /// Values at hand.
        hidden: usize,
        /// Rows of the batch.
        rows: usize,
        /// Values of a row.
        d_model: usize,
    },
    /// A row with NaN or infinity.
    #[error("failed to run the step: row {row} is not finite {at}")]
    NonFinite {
        /// The row.
        row: usize,
        /// Where it was found.
        at: &'static str,
    },
    /// The runs make no batch.
    #[error("failed to run the step: {0}")]
    Batch(#[from] BatchError),
    /// The positions have no room.
    #[error("failed to run the step: {0}")]
    Kv(#[from] KvError),
    /// The group's sum did not come about.
    #[error("failed to run layer {layer}: {source}")]
    Group {
        /// The layer.
        layer: u32,
        /// Which sum.
        phase: ReducePhase,
        /// Why.
        #[source]
        source: GroupError,
    },
}

/// One node's part of a model, ready to run.
pub struct Shard {
    pool: Arc<Pool>,
    stage: Option<Stage>,
    head: Option<Head>,
    weight_bytes: Bytes,
    mapped_bytes: Bytes,
}

impl Shard {
    /// Loads exactly [`shoal_core::shard::slices`] of `node`. `progress` hears the bytes in place, of all.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(
        spec: &ModelSpec,
        plan: &Plan,
        node: NodeId,
        source: &dyn WeightSource,
        pool: Arc<Pool>,
        progress: &mut dyn FnMut(Bytes, Bytes),
    ) -> Result<Self, LoadError> {
        spec.check()?;
        if !plan.nodes().contains(&node) {
            return Err(LoadError::Node(node));
        }
        let mut weights = weights::load(spec, plan, node, source, progress)?;
        let head = plan.head_share(node).map(|(_, rows)| {
            let (d_model, sequences) = (spec.d_model as usize, plan.kv.sequences as usize);
            Head::new(weights.head.take(), rows, d_model, spec.norm_eps, sequences)
        });
        let (weight_bytes, mapped_bytes) = (weights.weight_bytes, weights.mapped_bytes);
        let stage = Stage::new(spec, plan, node, weights);
        Ok(Self { pool, stage, head, weight_bytes, mapped_bytes })
    }

    /// What is held now, as allocated: weights, the table, KV pages and buffers.
    pub fn resident(&self) -> Footprint {
        let stage = self.stage.as_ref();
        let buffers = stage.map_or(0, |stage| stage.buffer_bytes(self.pool.threads()))
            + self.head.as_ref().map_or(0, Head::buffer_bytes);
        Footprint {
            weights: self.weight_bytes,
            mapped: self.mapped_bytes,
            kv: Bytes(stage.map_or(0, |stage| stage.kv().bytes())),
            buffers: Bytes(buffers as u64),
        }
    }

    /// Makes the embeddings of `tokens` the hidden rows.
    ///
    /// # Errors
    /// No table here, a token beyond the vocabulary, too many rows.
    pub fn embed(&mut self, tokens: &[u32]) -> Result<(), ForwardError> {
        self.stage_mut()?.embed(tokens)
    }

    /// Makes `hidden`, rows × `d_model`, the hidden rows.
    ///
    /// # Errors
    /// Not whole rows, too many of them, or a value that is not finite.
    pub fn set_hidden(&mut self, hidden: &[f32]) -> Result<(), ForwardError> {
        self.stage_mut()?.set_hidden(hidden)
    }

    /// The hidden rows: rows × `d_model`; empty before the first step and where no layers are held.
    pub fn hidden(&self) -> &[f32] {
        self.stage.as_ref().map_or(&[], Stage::hidden)
    }

    /// Takes the hidden rows through this stage's layers; afterwards all ranks hold the same bits.
    ///
    /// # Errors
    /// See [`ForwardError`]. The positions count as held only when all went well.
    pub fn run_layers(&mut self, batch: &Batch, group: &mut dyn Group) -> Result<(), ForwardError> {
        self.run_some(0..self.layers(), batch, group)
    }

    /// How many layers are here.
    pub fn layers(&self) -> usize {
        self.stage.as_ref().map_or(0, Stage::layers)
    }

    /// [`Shard::run_layers`] in parts: these of the layers, counted from the first here. The parts of a batch follow
    /// each other from 0 to [`Shard::layers`]; between two of them nothing but the output head may be used.
    ///
    /// # Errors
    /// See [`ForwardError`]; the batch is over.
    pub fn run_some(
        &mut self,
        layers: Range<usize>,
        batch: &Batch,
        group: &mut dyn Group,
    ) -> Result<(), ForwardError> {
        let stage = self.stage.as_mut().ok_or(ForwardError::NoLayers)?;
        stage.run(&self.pool, layers, batch, group)
    }

    /// Answers the step's requests from the final hidden rows, one for each request, and keeps the
    /// modified logits until the step is settled.
    ///
    /// # Errors
    /// See [`HeadError`].
    pub fn head(
        &mut self,
        step: StepId,
        hidden: &[f32],
        requests: &[HeadRow],
    ) -> Result<Vec<HeadAnswer>, HeadError> {
        self.head.as_mut().ok_or(HeadError::NotHere)?.run(&self.pool, step, hidden, requests)
    }

    /// Answers a question about a row of a step that was answered and is not settled.
    ///
    /// # Errors
    /// The row is not kept, or the tile is not held here.
    pub fn query(&self, step: StepId, row: u32, query: HeadQuery) -> Result<Vec<Candidate>, HeadError> {
        self.head.as_ref().ok_or(HeadError::NotHere)?.query(step, row, query)
    }

    /// No more questions about steps up to this one will come.
    pub fn settle(&mut self, step: StepId) {
        if let Some(head) = &mut self.head {
            head.settle(step);
        }
    }

    /// Positions of `seq` that are held.
    pub fn len(&self, seq: SeqId) -> u32 {
        self.stage.as_ref().map_or(0, |stage| stage.kv().len(seq))
    }

    /// Forgets a sequence.
    pub fn release(&mut self, seq: SeqId) {
        if let Some(stage) = &mut self.stage {
            stage.kv_mut().release(seq);
        }
    }

    /// Forgets the positions of `seq` from `len` on: the only way back.
    ///
    /// # Errors
    /// Fewer positions are held.
    pub fn truncate(&mut self, seq: SeqId, len: u32) -> Result<(), ForwardError> {
        Ok(self.stage_mut()?.kv_mut().truncate(seq, len)?)
    }

    /// Makes `seq` hold exactly `len` positions of which those it did not hold before are not computed: their keys
    /// and values are zeros, or whatever the page held last. For measuring what attention over them takes.
    ///
    /// # Errors
    /// They have no room.
    pub fn assume(&mut self, seq: SeqId, len: u32) -> Result<(), ForwardError> {
        let kv = self.stage_mut()?.kv_mut();
        let held = kv.len(seq);
        if held >= len {
            return Ok(kv.truncate(seq, len)?);
        }
        let blank = Batch::new(vec![RowRun { seq, first_position: held, rows: len - held }])?;
        kv.reserve(&blank)?;
        kv.commit(&blank);
        Ok(())
    }

    /// Starts the new sequence `to` with the first `len` positions of `from`, without copying them.
    ///
    /// # Errors
    /// `from` holds fewer, or `to` is not new.
    pub fn share(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<(), ForwardError> {
        Ok(self.stage_mut()?.kv_mut().share(from, to, len)?)
    }

    fn stage_mut(&mut self) -> Result<&mut Stage, ForwardError> {
        self.stage.as_mut().ok_or(ForwardError::NoLayers)
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard").field("resident", &self.resident()).finish_non_exhaustive()
    }
}
