//! The other ranks of a stage, as the forward pass sees them: one all-reduce after each phase.
//!
//! [`Solo`] is the group of one. [`LocalGroup`] runs the ranks of a stage as threads of one process, for
//! tests and for machines that want it; the worker has one over the network. All of them compute the
//! function of [`super::reduce`].

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use shoal_core::frame::WireType;
use shoal_core::plan::{Plan, Stage};
use thiserror::Error;

use super::reduce::{self, ReduceError};

/// Which of a layer's two sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReducePhase {
    /// After attention's output matrix.
    Attn,
    /// After the feed-forward network's down matrix.
    Ffn,
}

impl ReducePhase {
    /// The ranks of `stage` that have something to add in this phase, in order.
    pub fn contributors(self, stage: &Stage) -> Vec<usize> {
        let share = |rank: usize| match self {
            Self::Attn => stage.ranks[rank].q_heads,
            Self::Ffn => stage.ranks[rank].ffn,
        };
        (0..stage.ranks.len()).filter(|&rank| !share(rank).is_empty()).collect()
    }
}

/// Why a sum did not come about.
pub type GroupError = Box<dyn std::error::Error + Send + Sync>;

/// A rank's way to the other ranks of its stage.
pub trait Group {
    /// Replaces this rank's partial sum by the sum of the group, the same bits on every rank. `x` is
    /// `rows × d_model`; a rank with no share of this phase hands in zeros, which are not sent.
    ///
    /// # Errors
    /// A rank is lost, or a partial is not finite. The step is over.
    fn all_reduce(
        &mut self,
        layer: u32,
        phase: ReducePhase,
        x: &mut [f32],
        rows: usize,
    ) -> Result<(), GroupError>;
}

/// The group of one: a partial sum is the sum.
#[derive(Debug, Clone, Copy, Default)]
pub struct Solo;

impl Group for Solo {
    fn all_reduce(&mut self, _: u32, _: ReducePhase, _: &mut [f32], _: usize) -> Result<(), GroupError> {
        Ok(())
    }
}

/// Why a local sum did not come about.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LocalGroupError {
    /// Another rank has ended.
    #[error("failed to sum layer {layer}: another rank of the group has ended")]
    Ended {
        /// The layer.
        layer: u32,
    },
    /// The ranks are not at the same place.
    #[error("failed to sum layer {layer}: rank {rank} is at another place")]
    OutOfStep {
        /// The layer.
        layer: u32,
        /// The rank that noticed.
        rank: usize,
    },
    /// A partial cannot be summed.
    #[error("failed to sum layer {layer}: {source}")]
    Reduce {
        /// The layer.
        layer: u32,
        /// Why.
        #[source]
        source: ReduceError,
    },
}

/// One rank of a group whose ranks are threads of this process.
#[derive(Debug)]
pub struct LocalGroup {
    rank: usize,
    dtype: WireType,
    /// Contributing ranks of each phase.
    contributors: [Vec<usize>; 2],
    meeting: Arc<Meeting>,
    scratch: reduce::Scratch,
}

/// Where the ranks lay their partials down.
#[derive(Debug)]
struct Meeting {
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Table {
    place: Option<(u32, ReducePhase)>,
    /// Encoded partials by rank.
    partials: Vec<Vec<u8>>,
    arrived: usize,
    left: usize,
    ended: bool,
}

impl LocalGroup {
    /// One member for each rank of `stage`, in order.
    pub fn of_stage(plan: &Plan, stage: usize) -> Vec<Self> {
        let stage = &plan.stages[stage];
        let n = stage.ranks.len();
        let table = Table { partials: vec![Vec::new(); n], ..Table::default() };
        let meeting = Arc::new(Meeting { table: Mutex::new(table), changed: Condvar::new() });
        let member = |rank| Self {
            rank,
            dtype: plan.wire.sum,
            contributors: [ReducePhase::Attn, ReducePhase::Ffn].map(|phase| phase.contributors(stage)),
            meeting: Arc::clone(&meeting),
            scratch: reduce::Scratch::default(),
        };
        (0..n).map(member).collect()
    }

    fn reduce(
        &mut self,
        layer: u32,
        phase: ReducePhase,
        x: &mut [f32],
        rows: usize,
    ) -> Result<(), LocalGroupError> {
        let failed = |source| LocalGroupError::Reduce { layer, source };
        let Self { rank, dtype, ref contributors, ref meeting, ref mut scratch } = *self;
        let contributors = &contributors[phase as usize];
        let cols = x.len() / rows.max(1);
        let mut partial = Vec::new();
        if contributors.contains(&rank) {
            reduce::encode(dtype, x, rows, cols, &mut partial).map_err(failed)?;
        }
        let n = meeting.lock().partials.len();

        // Lay the own partial down once the table is clear of the sum before.
        let mut table = meeting.wait(layer, |table| table.arrived < n)?;
        if table.place.is_some_and(|place| place != (layer, phase)) {
            return Err(LocalGroupError::OutOfStep { layer, rank });
        }
        table.place = Some((layer, phase));
        table.partials[rank] = partial;
        table.arrived += 1;
        meeting.changed.notify_all();
        drop(table);

        let mut table = meeting.wait(layer, |table| table.arrived == n)?;
        let parts: Vec<&[u8]> = contributors.iter().map(|&rank| &table.partials[rank][..]).collect();
        reduce::sum(dtype, &parts, rows, cols, scratch, x).map_err(failed)?;
        table.left += 1;
        if table.left == n {
            (table.place, table.arrived, table.left) = (None, 0, 0);
            meeting.changed.notify_all();
        }
        Ok(())
    }
}

impl Group for LocalGroup {
    fn all_reduce(
        &mut self,
        layer: u32,
        phase: ReducePhase,
        x: &mut [f32],
        rows: usize,
    ) -> Result<(), GroupError> {
        Ok(self.reduce(layer, phase, x, rows)?)
    }
}

impl Drop for LocalGroup {
    /// A rank that ends lets the others go on to an error instead of waiting for it.
    fn drop(&mut self) {
        self.meeting.lock().ended = true;
        self.meeting.changed.notify_all();
    }
}

impl Meeting {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(
        &self,
        layer: u32,
        ready: impl Fn(&Table) -> bool,
    ) -> Result<MutexGuard<'_, Table>, LocalGroupError> {
        let waiting = |table: &mut Table| !ready(table) && !table.ended;
        let table = self.changed.wait_while(self.lock(), waiting).unwrap_or_else(PoisonError::into_inner);
        if ready(&table) { Ok(table) } else { Err(LocalGroupError::Ended { layer }) }
    }
}
