//! A loaded plan on this node: its steps in order, its head work, its questions.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_cluster::worker::Event;
use shoal_core::frame::Phase;
use shoal_core::head::{HeadAnswer, HeadQuery, HeadRequest};
use shoal_core::message::{Counters, Failure, HeadRow, Resident, StepOrder};
use shoal_core::plan::Place;
use shoal_core::units::Bytes;
use shoal_core::{Epoch, NodeId, Plan, SeqId, StepId};
use shoal_engine::model::{Batch, ForwardError, RowRun, Solo};
use shoal_engine::pool::Pool;
use shoal_engine::wire;
use shoal_net::DataPlane;
use shoal_net::data::{Block, BlockKey, DataBytes};
use tokio::sync::mpsc::UnboundedSender;

use super::exchange::{At, ExchangeError, Shape, check_block, decode};
use super::group::{NetGroup, SumError};
use super::{CONNECT_DEADLINE, Interrupt, Loading, failure};
use crate::emulate::{Body, Emulated, Paced, Pacer};
use crate::store::SharedSource;
use crate::{chain, machine};

/// The sequence of the warm-up; the coordinator counts from 1.
const WARM_SEQ: SeqId = SeqId(u64::MAX);

/// A loaded plan.
pub(super) struct Job {
    node: NodeId,
    plan: Arc<Plan>,
    d_model: usize,
    shard: Body,
    /// On a worker that plays another device.
    pacer: Option<Pacer>,
    /// Whether the work at hand was waited for.
    waited: bool,
    /// The table may be mapped from it, and its chunks are safe from eviction.
    _source: SharedSource,
    place: Option<Place>,
    /// Index among the head ranks.
    head: Option<usize>,
    group: NetGroup,
    events: UnboundedSender<Event>,
    /// Steps of which the layers are still to be run; on a node without layers always empty.
    steps: VecDeque<Box<StepOrder>>,
    /// Steps of which the head is still to be run.
    heads: VecDeque<PendingHead>,
    /// When the last piece of work was done or came in: how long the next one lets wait.
    since: Instant,
    /// Nothing is done any more; the driver will unload.
    failed: bool,
    counters: Counters,
    /// What the data plane had sent when this epoch began.
    sent_before: DataBytes,
    /// Rows as they came in or leave.
    hidden: Vec<f32>,
    encoded: Vec<u8>,
}

struct PendingHead {
    step: StepId,
    rows: Vec<HeadRow>,
    key: BlockKey,
}

impl Job {
    /// Loads the shard, waits for the peers, and runs one row through it, so that the first request finds
    /// pages mapped and threads awake.
    pub(super) fn load(
        loading: Loading,
        node: NodeId,
        plane: &Arc<DataPlane>,
        pool: &Arc<Pool>,
        events: UnboundedSender<Event>,
        interrupt: Interrupt,
        emulated: Option<&Emulated>,
    ) -> Result<(Self, Resident), Failure> {
        let Loading { spec, plan, source } = loading;
        let dry = emulated.is_some_and(Emulated::is_dry);
        let shard = Body::load(dry, &spec, &plan, node, &*source, Arc::clone(pool))
            .map_err(|error| failure(chain(&error)))?;
        let place = plan.place(node);
        let group_place = place.unwrap_or(Place { stage: 0, rank: 0 });
        let mut job = Self {
            node,
            d_model: spec.d_model as usize,
            shard,
            pacer: emulated.and_then(|emulated| emulated.pacer(&spec, &plan, node)),
            waited: true,
            _source: source,
            place,
            head: plan.head_share(node).map(|(index, _)| index),
            group: NetGroup::with_interrupt(&plan, group_place, Arc::clone(plane), interrupt),
            plan,
            events,
            steps: VecDeque::new(),
            heads: VecDeque::new(),
            since: Instant::now(),
            failed: false,
            counters: Counters::default(),
            sent_before: plane.bytes(),
            hidden: Vec::new(),
            encoded: Vec::new(),
        };
        if let Some(emulated) = emulated {
            job.group.play(emulated);
        }
        job.warm_up().map_err(|error| failure(format!("failed to warm up: {}", chain(&*error))))?;
        plane.wait_connected(Instant::now() + CONNECT_DEADLINE).map_err(|source| {
            let blame = match &source {
                shoal_net::data::WaitError::NotConnected { nodes } => nodes.first().map(|(node, _)| *node),
                shoal_net::data::WaitError::PeerLost { node, .. } => Some(*node),
                _ => None,
            };
            Failure { message: format!("failed to reach the other workers of the plan: {source}"), blame }
        })?;
        let resident = job.resident();
        Ok((job, resident))
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.plan.epoch
    }

    fn warm_up(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let row = vec![0.01; self.d_model];
        if let Some(place) = self.place {
            if place.stage == 0 {
                self.shard.embed(&[0])?;
            }
            self.shard.set_hidden(&row, 1)?;
            let batch = Batch::new(vec![RowRun { seq: WARM_SEQ, first_position: 0, rows: 1 }])?;
            let result = self.shard.run_layers(&batch, &mut Solo);
            self.shard.release(WARM_SEQ);
            result?;
        }
        if self.head.is_some() {
            self.shard.head(StepId(0), &row, &[HeadRow { row: 0, request: HeadRequest::greedy() }])?;
            self.shard.settle(StepId(0));
        }
        Ok(())
    }

    /// Takes a step on.
    pub(super) fn step(&mut self, order: Box<StepOrder>) {
        if self.steps.is_empty() && self.heads.is_empty() {
            self.since = Instant::now();
        }
        if self.place.is_some() {
            self.steps.push_back(order);
        } else {
            self.await_head(&order);
        }
    }

    /// Answers a question at once: its rows are kept.
    pub(super) fn query(&self, step: StepId, row: u32, query: HeadQuery) {
        let result = self.shard.query(step, row, query).map_err(|error| failure(chain(&error)));
        self.tell(Event::Queried { epoch: self.epoch(), step, row, query, result });
    }

    pub(super) fn settle(&mut self, step: StepId) {
        self.shard.settle(step);
    }

    pub(super) fn report(&mut self) {
        let sent = self.group.exchange().plane().bytes();
        let counters = Counters {
            hop_bytes: sent.hop - self.sent_before.hop,
            sum_bytes: sent.sum - self.sent_before.sum,
            head_bytes: sent.head - self.sent_before.head,
            emulation: self.pacer.as_ref().map(Pacer::counters).unwrap_or_default(),
            ..self.counters
        };
        let (epoch, resident) = (self.epoch(), self.resident());
        self.tell(Event::Reported { epoch, counters, resident });
    }

    /// Does the next piece of work, or waits for it or for a command: one call, one piece.
    pub(super) fn advance(&mut self) {
        if let Err(failure) = self.try_advance()
            && !std::mem::replace(&mut self.failed, true)
            // What was ended on purpose has not failed.
            && self.group.exchange().check().is_ok()
        {
            tracing::warn!(epoch = %self.epoch(), "{}", failure.message);
            self.steps.clear();
            self.heads.clear();
            self.tell(Event::StepFailed { epoch: self.epoch(), failure });
        }
    }

    fn try_advance(&mut self) -> Result<(), Failure> {
        if self.failed {
            return self.idle();
        }
        // Head work first: others wait for it, and it waits for nobody.
        if let Some((index, block)) = self.ready_head() {
            return self.run_remote_head(index, &block);
        }
        let Some(order) = self.steps.front() else { return self.wait_for_work(None) };
        match self.input(order) {
            None => self.run_first_stage(),
            Some(key) => match self.group.exchange().plane().try_take(&key) {
                Some(block) => self.run_later_stage(&block, key.from),
                None => self.wait_for_work(Some(key)),
            },
        }
    }

    /// The block that the layers of this step need; `None` in the first stage, and for a step without rows.
    fn input(&self, order: &StepOrder) -> Option<BlockKey> {
        let place = self.place.filter(|_| order.rows() > 0)?;
        let from = self.plan.hop_source(place.stage, place.rank)?;
        let layer = self.plan.stages[place.stage].layers.first - 1;
        let (epoch, step, stage) = (self.epoch(), order.step, place.stage as u16);
        Some(BlockKey { epoch, step, stage, layer, phase: Phase::Hop, from })
    }

    /// Sleeps until one of the awaited blocks is there (and does its work), or there is a command.
    fn wait_for_work(&mut self, input: Option<BlockKey>) -> Result<(), Failure> {
        let keys: Vec<BlockKey> = self.heads.iter().map(|head| head.key).chain(input).collect();
        if keys.is_empty() {
            return self.idle();
        }
        let deadline = self.since + self.group.exchange().deadline();
        self.waited = true;
        let woken = self.group.exchange().wait_any(&keys, deadline);
        self.counters.wait_us += micros(self.group.exchange().take_waited());
        match woken {
            Ok(None) => Ok(()),
            Ok(Some((index, block))) if index < self.heads.len() => self.run_remote_head(index, &block),
            Ok(Some((index, block))) => self.run_later_stage(&block, keys[index].from),
            Err(error) => Err(error.failure("wait for the next step's rows")),
        }
    }

    /// Sleeps until there is a command.
    fn idle(&mut self) -> Result<(), Failure> {
        self.waited = true;
        // Whatever woke it, the thread looks at its commands next.
        let _ = self.group.exchange().plane().wait_any(&[], None);
        Ok(())
    }

    fn run_first_stage(&mut self) -> Result<(), Failure> {
        let Some(order) = self.steps.pop_front() else { return Ok(()) };
        self.begin();
        if order.rows() > 0 {
            let tokens: Vec<u32> = order.runs.iter().flat_map(|run| &run.tokens).copied().collect();
            let start = Instant::now();
            self.shard.embed(&tokens).map_err(|error| failure(chain(&error)))?;
            self.counters.compute_us += micros(start.elapsed());
        }
        self.run_layers(&order)
    }

    fn run_later_stage(&mut self, block: &Block, from: NodeId) -> Result<(), Failure> {
        let Some(order) = self.steps.pop_front() else { return Ok(()) };
        self.begin();
        let shape = Shape::rows(self.plan.wire.hop, order.rows(), self.d_model);
        self.take(block, from, shape).map_err(|error| error.failure("take over the hidden state"))?;
        self.shard.set_hidden(&self.hidden, order.rows()).map_err(|error| failure(chain(&error)))?;
        self.run_layers(&order)
    }

    /// The rows of a block, into `hidden`; where they mean nothing, zeros.
    fn take(&mut self, block: &Block, from: NodeId, shape: Shape) -> Result<(), ExchangeError> {
        check_block(block, from, shape)?;
        if self.shard.is_dry() {
            self.hidden.clear();
            self.hidden.resize(shape.rows * shape.cols, 0.0);
            return Ok(());
        }
        decode(block, from, shape, &mut self.hidden)
    }

    /// The played device takes up the next piece of work.
    fn begin(&mut self) {
        let waited = std::mem::take(&mut self.waited);
        if let Some(pacer) = &mut self.pacer {
            pacer.begin(waited, self.group.exchange().sent());
        }
    }

    fn run_layers(&mut self, order: &StepOrder) -> Result<(), Failure> {
        for &seq in &order.release {
            self.shard.release(seq);
        }
        self.counters.steps += 1;
        if order.rows() > 0 {
            let batch = Batch::of(&order.runs).map_err(|error| failure(chain(&error)))?;
            self.group.begin(order.step, order.class);
            if let Some(pacer) = &mut self.pacer {
                pacer.step(order);
            }
            self.forward(&batch)?;
            self.hand_on(order).map_err(|error| error.failure("hand the hidden state on"))?;
        }
        self.since = Instant::now();
        match self.place {
            Some(place) if place.stage == self.plan.last_stage() && self.head.is_some() => {
                self.run_own_head(order)
            }
            _ => {
                self.await_head(order);
                Ok(())
            }
        }
    }

    /// Runs the layers. Head rows of earlier steps that come meanwhile are served between two layers: all
    /// streams of such a step wait for them.
    fn forward(&mut self, batch: &Batch) -> Result<(), Failure> {
        let (mut next, count) = (0, self.shard.layers());
        while next < count {
            let end = if self.heads.is_empty() { count } else { next + 1 };
            let start = Instant::now();
            let result = match &mut self.pacer {
                None => self.shard.run_some(next..end, batch, &mut self.group),
                Some(pacer) => {
                    let mut group = Paced { pacer, group: &mut self.group };
                    let result = self.shard.run_some(next..end, batch, &mut group);
                    pacer.sync();
                    result
                }
            };
            let waited = self.group.exchange().take_waited();
            self.counters.wait_us += micros(waited);
            self.counters.compute_us += micros(start.elapsed().saturating_sub(waited));
            result.map_err(|error| forward_failure(&error))?;
            next = end;
            if next < count {
                while let Some((index, block)) = self.ready_head() {
                    self.run_remote_head(index, &block)?;
                }
                self.begin();
            }
        }
        Ok(())
    }

    /// Head work whose rows are there.
    fn ready_head(&mut self) -> Option<(usize, Block)> {
        (0..self.heads.len()).find_map(|index| {
            let block = self.group.exchange().plane().try_take(&self.heads[index].key)?;
            Some((index, block))
        })
    }

    /// Sends the hidden rows to the next stage, or those that need logits to the head ranks elsewhere.
    fn hand_on(&mut self, order: &StepOrder) -> Result<(), ExchangeError> {
        let Some(place) = self.place else { return Ok(()) };
        let (rows, cols, dtype) = (order.rows(), self.d_model, self.plan.wire.hop);
        let last_layer = self.plan.stages[place.stage].layers.end - 1;
        let plan = Arc::clone(&self.plan);
        let mut targets = plan.hop_targets(place).peekable();
        if targets.peek().is_some() {
            self.encode(dtype, rows, None)?;
            let (stage, phase) = ((place.stage + 1) as u16, Phase::Hop);
            let at = At { step: order.step, stage, layer: last_layer, phase };
            for to in targets {
                let shape = Shape::rows(dtype, rows, cols);
                self.group.exchange().send(to, order.class, at, shape, &self.encoded)?;
            }
        }
        let mut targets = plan.head_targets(place).peekable();
        if !order.head.is_empty() && targets.peek().is_some() {
            self.encode(dtype, order.head.len(), Some(&order.head))?;
            let at = self.head_at(order.step);
            for to in targets {
                let shape = Shape::rows(dtype, order.head.len(), cols);
                self.group.exchange().send(to, order.class, at, shape, &self.encoded)?;
            }
        }
        Ok(())
    }

    /// Encodes the hidden rows, or those of them that are asked for.
    fn encode(
        &mut self,
        dtype: shoal_core::frame::WireType,
        rows: usize,
        only: Option<&[HeadRow]>,
    ) -> Result<(), ExchangeError> {
        self.encoded.clear();
        let d = self.d_model;
        if self.shard.is_dry() {
            self.encoded.resize(wire::encoded_len(dtype, rows, d), 0);
            return Ok(());
        }
        let hidden = match only {
            None => self.shard.hidden(),
            Some(wanted) => {
                gather(self.shard.hidden(), d, wanted, &mut self.hidden);
                &self.hidden
            }
        };
        wire::encode(dtype, rows, d, hidden, &mut self.encoded)
            .map_err(|source| ExchangeError::Encode { source })
    }

    fn head_at(&self, step: StepId) -> At {
        let last = &self.plan.stages[self.plan.last_stage()];
        At { step, stage: self.plan.stages.len() as u16, layer: last.layers.end - 1, phase: Phase::Head }
    }

    /// A step whose layers are done here, or are not run here: its head rows come from elsewhere, or it has
    /// none and is done.
    fn await_head(&mut self, order: &StepOrder) {
        match self.head {
            Some(index) if !order.head.is_empty() => {
                let from = self.plan.head_source(index);
                let at = self.head_at(order.step);
                let key = self.group.exchange().key(at, from);
                self.heads.push_back(PendingHead { step: order.step, rows: order.head.clone(), key });
            }
            _ => self.done(order.step, Vec::new()),
        }
    }

    fn run_own_head(&mut self, order: &StepOrder) -> Result<(), Failure> {
        if order.head.is_empty() {
            self.done(order.step, Vec::new());
            return Ok(());
        }
        self.begin();
        gather(self.shard.hidden(), self.d_model, &order.head, &mut self.hidden);
        self.run_head(order.step, &order.head)
    }

    fn run_remote_head(&mut self, index: usize, block: &Block) -> Result<(), Failure> {
        let Some(PendingHead { step, rows, key }) = self.heads.remove(index) else { return Ok(()) };
        let shape = Shape::rows(self.plan.wire.hop, rows.len(), self.d_model);
        self.begin();
        self.take(block, key.from, shape)
            .map_err(|error| error.failure("take over rows for the output head"))?;
        self.run_head(step, &rows)
    }

    /// Answers for the rows in `hidden`.
    fn run_head(&mut self, step: StepId, rows: &[HeadRow]) -> Result<(), Failure> {
        let start = Instant::now();
        let answers = self.shard.head(step, &self.hidden, rows).map_err(|error| failure(chain(&error)))?;
        if let Some(pacer) = &mut self.pacer {
            pacer.head(rows.len());
            pacer.sync();
        }
        self.counters.compute_us += micros(start.elapsed());
        self.since = Instant::now();
        self.done(step, answers);
        Ok(())
    }

    fn done(&self, step: StepId, head: Vec<HeadAnswer>) {
        self.tell(Event::StepDone { epoch: self.epoch(), step, head });
    }

    fn resident(&self) -> Resident {
        let mut accounted = self.shard.resident();
        accounted.buffers += Bytes((self.hidden.capacity() * 4 + self.encoded.capacity()) as u64);
        Resident { accounted, process: machine::process_resident() }
    }

    fn tell(&self, event: Event) {
        // Without a driver there is nobody to tell.
        let _ = self.events.send(event);
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        tracing::debug!(epoch = %self.epoch(), node = %self.node.short(), "dropped the shard");
    }
}

/// The wanted rows of `hidden`, in order.
fn gather(hidden: &[f32], d: usize, wanted: &[HeadRow], out: &mut Vec<f32>) {
    out.clear();
    for head in wanted {
        // The order was checked: its rows are within the step's.
        let start = head.row as usize * d;
        out.extend_from_slice(hidden.get(start..start + d).unwrap_or_default());
    }
}

fn forward_failure(error: &ForwardError) -> Failure {
    let blame = match error {
        ForwardError::Group { source, .. } => source.downcast_ref::<SumError>().and_then(SumError::blame),
        _ => None,
    };
    Failure { message: chain(error), blame }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
