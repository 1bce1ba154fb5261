//! What runs a plan's part: the real shard, or one that only plays. The one place where the two differ.

use std::ops::Range;
use std::sync::Arc;

use shoal_core::head::{Candidate, HeadAnswer, HeadQuery};
use shoal_core::ids::{NodeId, SeqId, StepId};
use shoal_core::message::HeadRow;
use shoal_core::model::ModelSpec;
use shoal_core::plan::Plan;
use shoal_core::shard::Footprint;
use shoal_engine::model::{Batch, DryShard, ForwardError, Group, HeadError, LoadError, Shard, WeightSource};
use shoal_engine::pool::Pool;

/// A node's part of a model, with its weights or without.
#[derive(Debug)]
pub(crate) enum Body {
    Real(Box<Shard>),
    Dry(Box<DryShard>),
}

impl Body {
    pub(crate) fn load(
        dry: bool,
        spec: &ModelSpec,
        plan: &Plan,
        node: NodeId,
        source: &dyn WeightSource,
        pool: Arc<Pool>,
    ) -> Result<Self, LoadError> {
        if dry {
            return Ok(Self::Dry(Box::new(DryShard::new(spec, plan, node, pool)?)));
        }
        Ok(Self::Real(Box::new(Shard::load(spec, plan, node, source, pool, &mut |_, _| {})?)))
    }

    /// Whether there are no weights, and hidden rows mean nothing.
    pub(crate) fn is_dry(&self) -> bool {
        matches!(self, Self::Dry(_))
    }

    pub(crate) fn resident(&self) -> Footprint {
        match self {
            Self::Real(shard) => shard.resident(),
            Self::Dry(shard) => shard.resident(),
        }
    }

    pub(crate) fn embed(&mut self, tokens: &[u32]) -> Result<(), ForwardError> {
        match self {
            Self::Real(shard) => shard.embed(tokens),
            Self::Dry(shard) => shard.embed(tokens),
        }
    }

    /// `rows` rows came in; `hidden` has them where they mean something.
    pub(crate) fn set_hidden(&mut self, hidden: &[f32], rows: usize) -> Result<(), ForwardError> {
        match self {
            Self::Real(shard) => shard.set_hidden(hidden),
            Self::Dry(shard) => shard.set_rows(rows),
        }
    }

    pub(crate) fn hidden(&self) -> &[f32] {
        match self {
            Self::Real(shard) => shard.hidden(),
            Self::Dry(shard) => shard.hidden(),
        }
    }

    pub(crate) fn layers(&self) -> usize {
        match self {
            Self::Real(shard) => shard.layers(),
            Self::Dry(shard) => shard.layers(),
        }
    }

    pub(crate) fn run_some(
        &mut self,
        layers: Range<usize>,
        batch: &Batch,
        group: &mut dyn Group,
    ) -> Result<(), ForwardError> {
        match self {
            Self::Real(shard) => shard.run_some(layers, batch, group),
            Self::Dry(shard) => shard.run_some(layers, batch, group),
        }
    }

    pub(crate) fn run_layers(&mut self, batch: &Batch, group: &mut dyn Group) -> Result<(), ForwardError> {
        match self {
            Self::Real(shard) => shard.run_layers(batch, group),
            Self::Dry(shard) => shard.run_layers(batch, group),
        }
    }

    pub(crate) fn head(
        &mut self,
        step: StepId,
        hidden: &[f32],
        requests: &[HeadRow],
    ) -> Result<Vec<HeadAnswer>, HeadError> {
        match self {
            Self::Real(shard) => shard.head(step, hidden, requests),
            Self::Dry(shard) => shard.head(step, hidden, requests),
        }
    }

    pub(crate) fn query(
        &self,
        step: StepId,
        row: u32,
        query: HeadQuery,
    ) -> Result<Vec<Candidate>, HeadError> {
        match self {
            Self::Real(shard) => shard.query(step, row, query),
            Self::Dry(shard) => shard.query(step, row, query),
        }
    }

    pub(crate) fn settle(&mut self, step: StepId) {
        match self {
            Self::Real(shard) => shard.settle(step),
            Self::Dry(shard) => shard.settle(step),
        }
    }

    pub(crate) fn release(&mut self, seq: SeqId) {
        match self {
            Self::Real(shard) => shard.release(seq),
            Self::Dry(shard) => shard.release(seq),
        }
    }
}
