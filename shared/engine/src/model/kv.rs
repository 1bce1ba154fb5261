//! The KV cache: keys and values of past positions in pages, half precision.
//!
//! A page holds [`PAGE_POSITIONS`] positions of one sequence for all layers and KV heads of the shard:
//! `[layer][key, value][kv head][position][head_dim]`, so that one head's keys of a page lie together.
//! Pages are allocated as they are needed, up to the plan's budget, and are counted by reference, so
//! that sequences can share the pages of a common prefix; a shared page is copied before it is written.
//! A rank without KV heads counts the same pages with no bytes in them: all ranks accept and refuse the
//! same steps.

use std::collections::HashMap;
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;
use shoal_core::ids::SeqId;
use shoal_core::limits::PAGE_POSITIONS;
use thiserror::Error;

use super::batch::{Batch, RowRun};

/// Positions of one page.
pub(super) const PAGE: usize = PAGE_POSITIONS as usize;

/// Why a step's positions have no room.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KvError {
    /// A run that does not start where the sequence ends.
    #[error("failed to extend sequence {}: it holds {held} positions, the run starts at {first}", .seq.0)]
    Position {
        /// The sequence.
        seq: SeqId,
        /// Positions held.
        held: u32,
        /// First position of the run.
        first: u32,
    },
    /// A run that ends beyond the plan's context.
    #[error("failed to extend sequence {} to {end} positions: the context is {context}", .seq.0)]
    Context {
        /// The sequence.
        seq: SeqId,
        /// Positions it would hold.
        end: u32,
        /// Positions it may hold.
        context: u32,
    },
    /// No page is left.
    #[error("failed to extend the KV cache: {wanted} more pages are needed, {free} of {total} are free")]
    Full {
        /// Pages that the step needs.
        wanted: usize,
        /// Pages that are free.
        free: usize,
        /// Pages of the budget.
        total: usize,
    },
    /// A cut of a sequence to more than it holds.
    #[error("failed to cut sequence {} to {len} positions: it holds {held}", .seq.0)]
    Cut {
        /// The sequence.
        seq: SeqId,
        /// Positions held.
        held: u32,
        /// Positions wanted.
        len: u32,
    },
}

/// The shape of a page.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageShape {
    pub(super) layers: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

impl PageShape {
    fn len(&self) -> usize {
        self.layers * 2 * self.kv_heads * PAGE * self.head_dim
    }

    /// Start of a head's keys (`value` false) or values of a layer.
    fn head(&self, layer: usize, value: bool, kv_head: usize) -> usize {
        ((layer * 2 + usize::from(value)) * self.kv_heads + kv_head) * PAGE * self.head_dim
    }
}

type Page = Arc<Vec<f16>>;

#[derive(Debug, Default)]
struct Sequence {
    pages: Vec<Page>,
    len: u32,
}

/// The cache of one shard.
#[derive(Debug)]
pub(super) struct KvCache {
    shape: PageShape,
    context: u32,
    /// Pages of the budget, and those that exist (in sequences or free).
    max_pages: usize,
    allocated: usize,
    free: Vec<Page>,
    sequences: HashMap<SeqId, Sequence>,
}

/// The pages of one sequence, to be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct SequencePages<'a> {
    shape: PageShape,
    pages: &'a [Page],
}

impl SequencePages<'_> {
    /// One head's keys (`value` false) or values in page `page` of a layer: [PAGE, head_dim] into `out`.
    pub(super) fn read(&self, page: usize, layer: usize, value: bool, kv_head: usize, out: &mut [f32]) {
        let start = self.shape.head(layer, value, kv_head);
        self.pages[page][start..start + out.len()].convert_to_f32_slice(out);
    }
}

impl KvCache {
    pub(super) fn new(shape: PageShape, context: u32, max_pages: usize) -> Self {
        Self { shape, context, max_pages, allocated: 0, free: Vec::new(), sequences: HashMap::new() }
    }

    /// Positions that `seq` holds.
    pub(super) fn len(&self, seq: SeqId) -> u32 {
        self.sequences.get(&seq).map_or(0, |sequence| sequence.len)
    }

    /// Pages that exist.
    pub(super) fn allocated(&self) -> usize {
        self.allocated
    }

    /// Bytes of all pages that exist.
    pub(super) fn bytes(&self) -> u64 {
        (self.allocated * self.shape.len() * size_of::<f16>()) as u64
    }

    /// Makes room for the batch, or changes nothing.
    pub(super) fn reserve(&mut self, batch: &Batch) -> Result<(), KvError> {
        let mut wanted = 0;
        for run in batch.runs() {
            self.check(run)?;
            let sequence = self.sequences.get(&run.seq);
            let pages = sequence.map_or(&[][..], |sequence| &sequence.pages);
            wanted += (run.end() as usize).div_ceil(PAGE).saturating_sub(pages.len());
            // A shared page that the run writes into will be copied.
            let first = run.first_position as usize / PAGE;
            wanted += pages.iter().skip(first).filter(|page| Arc::strong_count(page) > 1).count();
        }
        let free = self.free.len() + (self.max_pages - self.allocated);
        if wanted > free {
            return Err(KvError::Full { wanted, free, total: self.max_pages });
        }
        for run in batch.runs() {
            self.grow(run);
        }
        Ok(())
    }

    fn check(&self, run: &RowRun) -> Result<(), KvError> {
        let RowRun { seq, first_position: first, .. } = *run;
        let held = self.len(seq);
        if held != first {
            return Err(KvError::Position { seq, held, first });
        }
        if run.end() > self.context {
            return Err(KvError::Context { seq, end: run.end(), context: self.context });
        }
        Ok(())
    }

    fn grow(&mut self, run: &RowRun) {
        let mut pages = self.sequences.entry(run.seq).or_default().pages.split_off(0);
        let first = run.first_position as usize / PAGE;
        for page in pages.iter_mut().skip(first) {
            if Arc::get_mut(page).is_none() {
                let mut own = self.page();
                if let Some(data) = Arc::get_mut(&mut own) {
                    data.copy_from_slice(page);
                }
                *page = own;
            }
        }
        while pages.len() < (run.end() as usize).div_ceil(PAGE) {
            pages.push(self.page());
        }
        if let Some(sequence) = self.sequences.get_mut(&run.seq) {
            sequence.pages = pages;
        }
    }

    /// A page nobody else holds; `reserve` has counted it.
    fn page(&mut self) -> Page {
        self.free.pop().unwrap_or_else(|| {
            self.allocated += 1;
            Arc::new(vec![f16::ZERO; self.shape.len()])
        })
    }

    /// Writes keys and values of one layer: rows of `kv_heads·head_dim` for the batch's rows. The pages
    /// were reserved.
    pub(super) fn write(&mut self, batch: &Batch, layer: usize, keys: &[f32], values: &[f32]) {
        let (shape, head_dim) = (self.shape, self.shape.head_dim);
        let width = shape.kv_heads * head_dim;
        if width == 0 {
            return;
        }
        let mut rows = keys.chunks_exact(width).zip(values.chunks_exact(width));
        for run in batch.runs() {
            let Some(sequence) = self.sequences.get_mut(&run.seq) else { continue };
            for position in run.first_position as usize..run.end() as usize {
                let (Some((key, value)), Some(page)) =
                    (rows.next(), Arc::get_mut(&mut sequence.pages[position / PAGE]))
                else {
                    continue;
                };
                let row = position % PAGE * head_dim;
                for kv_head in 0..shape.kv_heads {
                    let head = kv_head * head_dim..(kv_head + 1) * head_dim;
                    for (is_value, source) in [(false, key), (true, value)] {
                        let start = shape.head(layer, is_value, kv_head) + row;
                        page[start..start + head_dim].convert_from_f32_slice(&source[head.clone()]);
                    }
                }
            }
        }
    }

    /// The pages of `seq`.
    pub(super) fn pages(&self, seq: SeqId) -> SequencePages<'_> {
        let pages = self.sequences.get(&seq).map_or(&[][..], |sequence| &sequence.pages);
        SequencePages { shape: self.shape, pages }
    }

    /// Counts the batch's positions as held: all layers have written them.
    pub(super) fn commit(&mut self, batch: &Batch) {
        for run in batch.runs() {
            if let Some(sequence) = self.sequences.get_mut(&run.seq) {
                sequence.len = run.end();
            }
        }
    }

    /// Forgets the positions of `seq` from `len` on.
    pub(super) fn truncate(&mut self, seq: SeqId, len: u32) -> Result<(), KvError> {
        let held = self.len(seq);
        if len > held {
            return Err(KvError::Cut { seq, held, len });
        }
        let pages = self.sequences.get_mut(&seq).map(|sequence| {
            sequence.len = len;
            sequence.pages.split_off((len as usize).div_ceil(PAGE))
        });
        self.give_back(pages.unwrap_or_default());
        Ok(())
    }

    /// Lets the new sequence `to` start with the first `len` positions of `from`, on the same pages.
    pub(super) fn share(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<(), KvError> {
        let held = self.len(from);
        if len > held {
            return Err(KvError::Cut { seq: from, held, len });
        }
        if self.len(to) > 0 {
            return Err(KvError::Position { seq: to, held: self.len(to), first: 0 });
        }
        self.release(to);
        let pages = (len as usize).div_ceil(PAGE);
        let pages = self.sequences.get(&from).map(|sequence| sequence.pages[..pages].to_vec());
        self.sequences.insert(to, Sequence { pages: pages.unwrap_or_default(), len });
        Ok(())
    }

    /// Forgets `seq`; nothing happens when it is unknown.
    pub(super) fn release(&mut self, seq: SeqId) {
        let pages = self.sequences.remove(&seq).map(|sequence| sequence.pages);
        self.give_back(pages.unwrap_or_default());
    }

    fn give_back(&mut self, pages: Vec<Page>) {
        self.free.extend(pages.into_iter().filter(|page| Arc::strong_count(page) == 1));
    }
}
