//! One node's part of a model without its weights: for a worker that plays a device whose arithmetic is
//! slept (`shoal worker --emulate … --dry`).
//!
//! It has the verbs of [`super::Shard`] and refuses what that one refuses: positions, pages and tokens are
//! counted, and what would be held is accounted as the plan lists it. Hidden rows are zeros, and the output
//! head answers with logits by chance, so the sampler works and texts mean nothing.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use shoal_core::head::{Candidate, HeadAnswer, HeadQuery};
use shoal_core::ids::{NodeId, SeqId, StepId};
use shoal_core::message::HeadRow;
use shoal_core::model::ModelSpec;
use shoal_core::plan::{Plan, Span};
use shoal_core::shard::{self, Footprint};
use shoal_core::units::Bytes;

use super::batch::Batch;
use super::group::{Group, ReducePhase};
use super::head::{Head, HeadError};
use super::kv::{KvCache, PageShape};
use super::shard::ForwardError;
use super::weights::LoadError;
use crate::pool::Pool;

/// A shard that computes nothing.
pub struct DryShard {
    pool: Arc<Pool>,
    stage: Option<DryStage>,
    head: Option<Head>,
    footprint: Footprint,
}

/// The layers of a rank, counted.
struct DryStage {
    layers: Span,
    d_model: usize,
    /// Rows of the embedding table, in the first stage.
    table: Option<u32>,
    max_rows: usize,
    /// Pages without heads: they are counted and hold nothing.
    kv: KvCache,
    /// What a page would take.
    page_bytes: u64,
    /// [rows, d]: zeros.
    x: Vec<f32>,
}

impl DryShard {
    /// What `node` would hold under `plan`.
    ///
    /// # Errors
    /// The model is not sound, or the plan knows no such node.
    pub fn new(spec: &ModelSpec, plan: &Plan, node: NodeId, pool: Arc<Pool>) -> Result<Self, LoadError> {
        spec.check()?;
        if !plan.nodes().contains(&node) {
            return Err(LoadError::Node(node));
        }
        let d_model = spec.d_model as usize;
        let stage = plan.place(node).zip(plan.share(node)).map(|(place, share)| {
            let layers = plan.stages[place.stage].layers;
            let pages = shard::pages_per_sequence(plan.kv.context) * u64::from(plan.kv.sequences);
            let shape = PageShape { layers: layers.len() as usize, kv_heads: 0, head_dim: 0 };
            DryStage {
                layers,
                d_model,
                table: (place.stage == 0).then_some(spec.vocab),
                max_rows: plan.max_rows() as usize,
                kv: KvCache::new(shape, plan.kv.context, pages as usize),
                page_bytes: u64::from(layers.len()) * shard::kv_page_bytes(spec, share),
                x: Vec::new(),
            }
        });
        let head = plan.head_share(node);
        let head = head.map(|(_, rows)| Head::dry(rows, d_model, plan.kv.sequences as usize));
        Ok(Self { pool, stage, head, footprint: shard::footprint(plan, spec, node) })
    }

    /// What would be held now: weights and buffers as planned, KV pages as they are in use.
    pub fn resident(&self) -> Footprint {
        let kv = self.stage.as_ref().map_or(0, |stage| stage.kv.allocated() as u64 * stage.page_bytes);
        Footprint { kv: Bytes(kv), ..self.footprint }
    }

    /// As [`super::Shard::embed`].
    ///
    /// # Errors
    /// No table here, a token beyond the vocabulary, too many rows.
    pub fn embed(&mut self, tokens: &[u32]) -> Result<(), ForwardError> {
        let stage = self.stage_mut()?;
        let vocab = stage.table.ok_or(ForwardError::NoTable)?;
        if let Some(&token) = tokens.iter().find(|&&token| token >= vocab) {
            return Err(ForwardError::Token { token, vocab });
        }
        stage.set_rows(tokens.len())
    }

    /// The hidden rows are `rows` zeros.
    ///
    /// # Errors
    /// No layers here, or too many rows.
    pub fn set_rows(&mut self, rows: usize) -> Result<(), ForwardError> {
        self.stage_mut()?.set_rows(rows)
    }

    /// The hidden rows: zeros.
    pub fn hidden(&self) -> &[f32] {
        self.stage.as_ref().map_or(&[], |stage| &stage.x)
    }

    /// As [`super::Shard::run_layers`]: the sums of all layers, of partials that are all zeros.
    ///
    /// # Errors
    /// See [`ForwardError`].
    pub fn run_layers(&mut self, batch: &Batch, group: &mut dyn Group) -> Result<(), ForwardError> {
        self.run_some(0..self.layers(), batch, group)
    }

    /// As [`super::Shard::layers`].
    pub fn layers(&self) -> usize {
        self.stage.as_ref().map_or(0, |stage| stage.layers.len() as usize)
    }

    /// As [`super::Shard::run_some`].
    ///
    /// # Errors
    /// See [`ForwardError`].
    pub fn run_some(
        &mut self,
        layers: Range<usize>,
        batch: &Batch,
        group: &mut dyn Group,
    ) -> Result<(), ForwardError> {
        let stage = self.stage_mut()?;
        let (rows, d_model, hidden) = (batch.rows(), stage.d_model, stage.x.len());
        if hidden != rows * d_model {
            return Err(ForwardError::Hidden { hidden, rows, d_model });
        }
        if layers.start == 0 {
            stage.kv.reserve(batch)?;
        }
        let last = layers.end >= stage.layers.len() as usize;
        for layer in stage.layers.iter().take(layers.end).skip(layers.start) {
            for phase in [ReducePhase::Attn, ReducePhase::Ffn] {
                let sum = group.all_reduce(layer, phase, &mut stage.x, rows);
                sum.map_err(|source| ForwardError::Group { layer, phase, source })?;
            }
        }
        if last {
            stage.kv.commit(batch);
        }
        Ok(())
    }

    /// As [`super::Shard::head`], with logits by chance.
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

    /// As [`super::Shard::query`].
    ///
    /// # Errors
    /// The row is not kept, or the tile is not held here.
    pub fn query(&self, step: StepId, row: u32, query: HeadQuery) -> Result<Vec<Candidate>, HeadError> {
        self.head.as_ref().ok_or(HeadError::NotHere)?.query(step, row, query)
    }

    /// As [`super::Shard::settle`].
    pub fn settle(&mut self, step: StepId) {
        if let Some(head) = &mut self.head {
            head.settle(step);
        }
    }

    /// Forgets a sequence.
    pub fn release(&mut self, seq: SeqId) {
        if let Some(stage) = &mut self.stage {
            stage.kv.release(seq);
        }
    }

    fn stage_mut(&mut self) -> Result<&mut DryStage, ForwardError> {
        self.stage.as_mut().ok_or(ForwardError::NoLayers)
    }
}

impl DryStage {
    fn set_rows(&mut self, rows: usize) -> Result<(), ForwardError> {
        if rows > self.max_rows {
            return Err(ForwardError::Rows { rows, most: self.max_rows });
        }
        self.x.resize(rows * self.d_model, 0.0);
        Ok(())
    }
}

impl fmt::Debug for DryShard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DryShard").field("resident", &self.resident()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use shoal_core::Epoch;
    use shoal_core::head::HeadRequest;
    use shoal_core::message::Run;
    use shoal_core::model::shapes::{FileType, Shape};
    use shoal_core::plan::{HeadShare, KvBudget, PlanParts, Stage, Strategy, Wire};

    use super::*;
    use crate::model::{KvError, Solo};

    const ONE: NodeId = NodeId([1; 16]);
    const OTHER: NodeId = NodeId([2; 16]);

    fn plan(spec: &ModelSpec) -> Plan {
        let stage = |id, layers| Stage::from_spans(layers, &[(id, Span::new(0, 8), Span::new(0, 768))], spec);
        let rows = [Span::new(0, 1024), Span::new(1024, 2048)];
        let parts = PlanParts {
            epoch: Epoch::default(),
            strategy: Strategy::StaticLayer,
            stages: vec![stage(ONE, Span::new(0, 3)), stage(OTHER, Span::new(3, 6))],
            head: vec![HeadShare { node: ONE, rows: rows[0] }, HeadShare { node: OTHER, rows: rows[1] }],
            chunk_tokens: 32,
            wire: Wire::default(),
            kv: KvBudget { context: 64, sequences: 1 },
        };
        Plan::try_new(parts, spec).expect("plan")
    }

    #[test]
    fn it_counts_what_a_shard_would_hold() {
        let spec =
            Shape::from_name("stories").expect("shape").spec(FileType::from_name("Q4_0").expect("type"));
        let plan = plan(&spec);
        let pool = Arc::new(Pool::new(1).expect("pool"));
        let mut shard = DryShard::new(&spec, &plan, ONE, Arc::clone(&pool)).expect("shard");
        let planned = shard::footprint(&plan, &spec, ONE);
        assert_eq!(shard.resident(), Footprint { kv: Bytes(0), ..planned });
        let batch = |first_position, rows| {
            Batch::of(&[Run { seq: SeqId(1), first_position, tokens: vec![3; rows] }]).expect("batch")
        };
        for first in [0, 32] {
            shard.embed(&[3; 32]).expect("embed");
            shard.run_layers(&batch(first, 32), &mut Solo).expect("layers");
        }
        // The context is full, and so is what is accounted.
        assert_eq!(shard.resident(), planned);
        shard.embed(&[3]).expect("embed");
        let error = shard.run_layers(&batch(64, 1), &mut Solo).expect_err("no room");
        assert!(matches!(error, ForwardError::Kv(KvError::Context { .. })), "{error}");
        assert!(matches!(shard.embed(&[2048]), Err(ForwardError::Token { .. })));
        let mut later = DryShard::new(&spec, &plan, OTHER, pool).expect("shard");
        assert!(matches!(later.embed(&[3]), Err(ForwardError::NoTable)));
        assert!(matches!(later.set_rows(33), Err(ForwardError::Rows { .. })));
    }

    #[test]
    fn its_head_answers_the_same_however_it_is_split() {
        let spec =
            Shape::from_name("stories").expect("shape").spec(FileType::from_name("Q4_0").expect("type"));
        let plan = plan(&spec);
        let pool = Arc::new(Pool::new(1).expect("pool"));
        let wanted = [HeadRow { row: 0, request: HeadRequest { k: 3, ..HeadRequest::greedy() } }];
        let hidden = vec![0.0; 256];
        let answer = |node, step| {
            let mut shard = DryShard::new(&spec, &plan, node, Arc::clone(&pool)).expect("shard");
            let answers = shard.head(StepId(step), &hidden, &wanted).expect("answers");
            // A question is answered from the same logits.
            let more = shard.query(StepId(step), 0, HeadQuery::Top(3)).expect("more");
            assert_eq!(more, answers[0].top);
            answers[0].top.clone()
        };
        let (first, second) = (answer(ONE, 1), answer(OTHER, 1));
        assert!(first.iter().all(|c| c.token < 1024) && second.iter().all(|c| c.token >= 1024));
        assert_eq!(answer(ONE, 1), first);
        assert_ne!(answer(ONE, 2), first);
    }
}
