//! The rows of a step: which sequence and position each belongs to.

use shoal_core::ids::SeqId;
use shoal_core::message::Run;
use thiserror::Error;

/// Consecutive positions of one sequence: consecutive rows of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowRun {
    /// The sequence.
    pub seq: SeqId,
    /// Position of the first row.
    pub first_position: u32,
    /// Number of rows, at least 1.
    pub rows: u32,
}

impl RowRun {
    /// Position after the last row's.
    pub(super) fn end(&self) -> u32 {
        self.first_position + self.rows
    }
}

/// The rows of one step, in order. Each sequence is there once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    runs: Vec<RowRun>,
    rows: usize,
}

/// Runs that make no batch.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BatchError {
    /// No run, or a run without rows.
    #[error("failed to form a batch: it has no rows, or a run without rows")]
    Empty,
    /// A sequence is there twice.
    #[error("failed to form a batch: sequence {} is there twice", .0.0)]
    Twice(SeqId),
    /// Positions beyond what can be counted.
    #[error("failed to form a batch: the positions of sequence {} overflow", .0.0)]
    Positions(SeqId),
}

impl Batch {
    /// A batch of these runs.
    ///
    /// # Errors
    /// See [`BatchError`]. Whether the positions follow what the cache holds is checked when it runs.
    pub fn new(runs: Vec<RowRun>) -> Result<Self, BatchError> {
        if runs.is_empty() || runs.iter().any(|run| run.rows == 0) {
            return Err(BatchError::Empty);
        }
        let mut seqs: Vec<SeqId> = runs.iter().map(|run| run.seq).collect();
        seqs.sort_unstable();
        if let Some(pair) = seqs.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(BatchError::Twice(pair[0]));
        }
        if let Some(run) = runs.iter().find(|run| run.first_position.checked_add(run.rows).is_none()) {
            return Err(BatchError::Positions(run.seq));
        }
        let rows = runs.iter().map(|run| run.rows as usize).sum();
        Ok(Self { runs, rows })
    }

    /// The batch of a step order's runs.
    ///
    /// # Errors
    /// See [`BatchError`].
    pub fn of(runs: &[Run]) -> Result<Self, BatchError> {
        let row_run = |run: &Run| {
            let rows = u32::try_from(run.tokens.len()).map_err(|_| BatchError::Positions(run.seq))?;
            Ok(RowRun { seq: run.seq, first_position: run.first_position, rows })
        };
        Self::new(runs.iter().map(row_run).collect::<Result<_, _>>()?)
    }

    /// The runs.
    pub fn runs(&self) -> &[RowRun] {
        &self.runs
    }

    /// Rows of all runs.
    pub fn rows(&self) -> usize {
        self.rows
    }
}
