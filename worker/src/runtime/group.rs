//! The all-reduce of a stage's ranks over the data plane: three ways to move partial sums, one function
//! of them ([`shoal_engine::model::reduce`]), so that all ranks and all ways agree bit for bit.
//!
//! | way | what travels |
//! |---|---|
//! | direct | each contributing rank's partial to all other ranks, each of which sums |
//! | star | partials to rank 0, which sums; the sum to all |
//! | reduce-scatter | a slice of each partial to the rank that sums it; each summed slice to all |
//!
//! A stage of one rank has nothing to sum and nothing is encoded. A rank without a share of a phase sends
//! no partial and still gets the sum.

use std::sync::Arc;

use shoal_core::frame::{Class, Phase, WireType};
use shoal_core::plan::{AllReduce, Place, Plan, Sums};
use shoal_core::{NodeId, StepId};
use shoal_engine::model::reduce::{self, ReduceError, Scratch, Slice};
use shoal_engine::model::{Group, GroupError, ReducePhase};
use shoal_engine::wire;
use shoal_net::DataPlane;
use shoal_net::data::Block;

use super::Interrupt;
use super::exchange::{At, Exchange, ExchangeError, Shape};
use crate::emulate::Emulated;

/// Why a sum over the network did not come about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SumError {
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    #[error("rank {rank} of stage {stage}: {source}")]
    Own { stage: usize, rank: usize, source: ReduceError },
    #[error("what {node} sent cannot be summed: {source}")]
    Theirs { node: NodeId, source: ReduceError },
}

impl SumError {
    pub(crate) fn blame(&self) -> Option<NodeId> {
        match self {
            Self::Exchange(error) => error.blame(),
            Self::Own { .. } => None,
            Self::Theirs { node, .. } => Some(*node),
        }
    }
}

/// One rank of a stage, with the others across the network.
#[derive(Debug)]
pub struct NetGroup {
    exchange: Exchange,
    place: Place,
    /// Nodes of the stage, by rank.
    nodes: Vec<NodeId>,
    /// Ranks that have something to add, by phase.
    contributors: [Vec<usize>; 2],
    dtype: WireType,
    sums: Sums,
    sequences: u32,
    step: StepId,
    class: Class,
    scratch: Scratch,
    /// Partials are zeros of the right size, and are not summed.
    dry: bool,
    /// The own partial, encoded.
    partial: Vec<u8>,
    /// Of several slices of partials the one that is being sent, or the own one.
    slice: Vec<u8>,
    /// An encoded sum.
    sum: Vec<u8>,
}

impl NetGroup {
    /// The member of `place` of the plan in force on `plane`.
    pub fn new(plan: &Plan, place: Place, plane: Arc<DataPlane>) -> Self {
        Self::with_interrupt(plan, place, plane, Interrupt::default())
    }

    pub(crate) fn with_interrupt(
        plan: &Plan,
        place: Place,
        plane: Arc<DataPlane>,
        interrupt: Interrupt,
    ) -> Self {
        let stage = &plan.stages[place.stage];
        Self {
            exchange: Exchange::new(plane, plan.epoch, place.rank, interrupt),
            place,
            nodes: stage.ranks.iter().map(|share| share.node).collect(),
            contributors: [ReducePhase::Attn, ReducePhase::Ffn].map(|phase| phase.contributors(stage)),
            dtype: plan.wire.sum,
            sums: stage.sums,
            sequences: plan.kv.sequences,
            step: StepId(0),
            class: Class::Decode,
            scratch: Scratch::default(),
            dry: false,
            partial: Vec::new(),
            slice: Vec::new(),
            sum: Vec::new(),
        }
    }

    /// The step whose sums come next.
    pub fn begin(&mut self, step: StepId, class: Class) {
        (self.step, self.class) = (step, class);
    }

    /// Plays the group of another device.
    pub(crate) fn play(&mut self, emulated: &Emulated) {
        self.dry = emulated.is_dry();
        self.exchange.play(emulated);
    }

    /// Whether there is nobody to sum with.
    pub(crate) fn is_alone(&self) -> bool {
        self.nodes.len() == 1
    }

    pub(crate) fn exchange(&mut self) -> &mut Exchange {
        &mut self.exchange
    }

    fn sum(&mut self, layer: u32, phase: ReducePhase, x: &mut [f32], rows: usize) -> Result<(), SumError> {
        self.exchange.check()?;
        if self.nodes.len() == 1 || rows == 0 {
            return Ok(());
        }
        let round = Round { layer, phase, rows, cols: x.len() / rows };
        self.partial.clear();
        if self.contributes(phase, self.place.rank) {
            let own = self.own();
            if self.dry {
                self.partial.resize(wire::encoded_len(self.dtype, rows, round.cols), 0);
            } else {
                reduce::encode(self.dtype, x, rows, round.cols, &mut self.partial).map_err(own)?;
            }
        }
        match self.sums.of(rows, self.sequences) {
            AllReduce::Direct => self.direct(round, x),
            AllReduce::Star => {
                let whole = Slice { rows: 0..rows, cols: 0..round.cols };
                let none = || Slice { rows: 0..0, cols: 0..0 };
                let slices = (0..self.nodes.len()).map(|rank| if rank == 0 { whole.clone() } else { none() });
                self.by_slices(round, &slices.collect::<Vec<_>>(), x)
            }
            AllReduce::ReduceScatter => {
                self.by_slices(round, &reduce::slices(rows, round.cols, self.nodes.len()), x)
            }
        }
    }

    /// Everyone sends to everyone, and sums.
    fn direct(&mut self, round: Round, x: &mut [f32]) -> Result<(), SumError> {
        let shape = Shape::rows(self.dtype, round.rows, round.cols);
        if self.contributes(round.phase, self.place.rank) {
            for to in self.others() {
                self.exchange.send(
                    self.nodes[to],
                    self.class,
                    self.at(round, false),
                    shape,
                    &self.partial,
                )?;
            }
        }
        let blocks = self.partials(round, shape)?;
        if self.dry {
            return Ok(());
        }
        let parts = self.in_order(round.phase, &blocks, &self.partial);
        reduce::sum(self.dtype, &parts, round.rows, round.cols, &mut self.scratch, x)
            .map_err(|error| blamed(error, &self.contributors[round.phase as usize], &self.nodes, self.place))
    }

    /// Each rank sums the slice that is its own (which may be empty), and sends the sum to all others.
    fn by_slices(&mut self, round: Round, slices: &[Slice], x: &mut [f32]) -> Result<(), SumError> {
        let Round { phase, cols, .. } = round;
        let (me, dtype) = (self.place.rank, self.dtype);
        let shape = |slice: &Slice| Shape {
            dtype,
            rows: slice.rows.len(),
            cols: slice.cols.len(),
            first_col: slice.cols.start,
        };
        let empty = |slice: &Slice| slice.rows.is_empty() || slice.cols.is_empty();
        if self.contributes(phase, me) {
            for to in self.others() {
                if !empty(&slices[to]) {
                    self.slice.clear();
                    reduce::cut(self.dtype, &self.partial, cols, &slices[to], &mut self.slice);
                    let at = self.at(round, false);
                    self.exchange.send(self.nodes[to], self.class, at, shape(&slices[to]), &self.slice)?;
                }
            }
        }
        let own = &slices[me];
        if !empty(own) {
            let own_shape = shape(own);
            self.slice.clear();
            if self.contributes(phase, me) {
                reduce::cut(self.dtype, &self.partial, cols, own, &mut self.slice);
            }
            let blocks = self.partials(round, own_shape)?;
            self.sum.clear();
            let (contributors, nodes) = (&self.contributors[phase as usize], &self.nodes);
            let parts = in_order(contributors, me, &blocks, &self.slice);
            let (rows, width) = (own_shape.rows, own_shape.cols);
            if self.dry {
                self.sum.resize(wire::encoded_len(self.dtype, rows, width), 0);
            } else {
                reduce::sum_encoded(self.dtype, &parts, rows, width, &mut self.scratch, &mut self.sum)
                    .map_err(|error| blamed(error, contributors, nodes, self.place))?;
            }
            for to in self.others() {
                self.exchange.send(self.nodes[to], self.class, self.at(round, true), own_shape, &self.sum)?;
            }
            if !self.dry {
                reduce::place(self.dtype, &self.sum, cols, own, x).map_err(self.own())?;
            }
        }
        for from in self.others() {
            if !empty(&slices[from]) {
                let (node, shape) = (self.nodes[from], shape(&slices[from]));
                let at = self.at(round, true);
                let block = self.exchange.wait(at, node, shape)?;
                if self.dry {
                    continue;
                }
                reduce::place(self.dtype, block.bytes(), cols, &slices[from], x)
                    .map_err(|source| SumError::Theirs { node, source })?;
            }
        }
        Ok(())
    }

    /// Waits for the partials of the other contributing ranks, by rank.
    fn partials(&mut self, round: Round, shape: Shape) -> Result<Vec<Block>, SumError> {
        let mut blocks = Vec::new();
        for index in 0..self.contributors[round.phase as usize].len() {
            let rank = self.contributors[round.phase as usize][index];
            if rank != self.place.rank {
                blocks.push(self.exchange.wait(self.at(round, false), self.nodes[rank], shape)?);
            }
        }
        Ok(blocks)
    }

    fn in_order<'a>(&self, phase: ReducePhase, blocks: &'a [Block], own: &'a [u8]) -> Vec<&'a [u8]> {
        in_order(&self.contributors[phase as usize], self.place.rank, blocks, own)
    }

    fn at(&self, round: Round, summed: bool) -> At {
        let phase = match (round.phase, summed) {
            (ReducePhase::Attn, false) => Phase::AttnPartial,
            (ReducePhase::Attn, true) => Phase::AttnSum,
            (ReducePhase::Ffn, false) => Phase::FfnPartial,
            (ReducePhase::Ffn, true) => Phase::FfnSum,
        };
        At { step: self.step, stage: self.place.stage as u16, layer: round.layer, phase }
    }

    fn contributes(&self, phase: ReducePhase, rank: usize) -> bool {
        self.contributors[phase as usize].contains(&rank)
    }

    /// The other ranks, starting with the next one, so that not all send to the first at once.
    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let (n, me) = (self.nodes.len(), self.place.rank);
        (1..n).map(move |step| (me + step) % n)
    }

    fn own(&self) -> impl FnOnce(ReduceError) -> SumError + use<> {
        let Place { stage, rank } = self.place;
        move |source| SumError::Own { stage, rank, source }
    }
}

impl Group for NetGroup {
    fn all_reduce(
        &mut self,
        layer: u32,
        phase: ReducePhase,
        x: &mut [f32],
        rows: usize,
    ) -> Result<(), GroupError> {
        Ok(self.sum(layer, phase, x, rows)?)
    }
}

/// One sum.
#[derive(Debug, Clone, Copy)]
struct Round {
    layer: u32,
    phase: ReducePhase,
    rows: usize,
    cols: usize,
}

/// The partials by rank, the own one among them.
fn in_order<'a>(contributors: &[usize], me: usize, blocks: &'a [Block], own: &'a [u8]) -> Vec<&'a [u8]> {
    let mut blocks = blocks.iter();
    let part = |&rank: &usize| if rank == me { Some(own) } else { blocks.next().map(Block::bytes) };
    contributors.iter().filter_map(part).collect()
}

/// Puts a sum that failed down to the rank whose partial it was.
fn blamed(source: ReduceError, contributors: &[usize], nodes: &[NodeId], place: Place) -> SumError {
    match source {
        ReduceError::Partial { place: at, .. }
            if contributors.get(at).is_some_and(|&rank| rank != place.rank) =>
        {
            SumError::Theirs { node: nodes[contributors[at]], source }
        }
        _ => SumError::Own { stage: place.stage, rank: place.rank, source },
    }
}
