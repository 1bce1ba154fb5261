//! Where the weights of a shard lie on this machine.
//!
//! A model is known by the BLAKE3 of its file ([`shoal_core::message::ModelRef`]). [`Store::prepare`]
//! finds a local copy of the file, or else brings the chunks that the shard's slices need into the
//! cache, and gives the loader a [`WeightSource`] over them. A chunk does not depend on any plan, so a
//! new plan fetches only what is missing.
//!
//! The cache: `<cache>/<hash>/{data, have, list, lock}`.
//!
//! | file | content |
//! |---|---|
//! | `data` | the model's file, sparse: holes where chunks are missing |
//! | `have` | a header (`SHLC`, chunk bytes, file bytes), then one byte a chunk: 0 missing, 1 written and verified, 2 promised by a worker that is fetching |
//! | `list` | the chunk hashes, written whole or not at all |
//! | `lock` | locked shared by every worker that uses the model, exclusively to evict it; its time of change is the last use |
//!
//! A chunk's byte in `have` becomes 1 after the chunk was verified and written, so an interruption loses
//! at most the chunks in flight. That order is not forced to the disk: instead each chunk is verified
//! again before its first use after a start, which finds what a power cut or a bad card left behind, at
//! the price of reading the shard once more (BLAKE3 is faster than any board's disk). Two workers may
//! share a cache: they write equal bytes to equal places. Opening, promising and evicting happen under
//! the exclusive lock `<cache>/lock`, so the bound holds over all of them.
//!
//! Who calls: the driver, off the runtime's thread where it hashes. What does not live here: which
//! chunks a plan needs (`shoal_core::shard`), how they travel (`shoal_net`).

mod cache;
mod chunks;
mod fetch;
mod local;
mod source;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use shoal_core::message::ModelRef;
use shoal_core::units::Bytes;
use shoal_engine::model::WeightSource;

pub use cache::{Cache, CachedModel};
pub use chunks::{ChunkList, ChunkListError};
pub use fetch::{ChunkFuture, ChunkSource, FetchError, Meter};

/// Why weights are not at hand.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("failed to {what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("failed to keep a chunk in {path}: the disk is full ({free_hint})")]
    DiskFull { path: PathBuf, free_hint: &'static str },
    #[error("failed to use the model's chunk list: {0}")]
    List(#[from] ChunkListError),
    #[error("failed to fetch the model: {0}")]
    Fetch(#[from] FetchError),
    #[error("failed to fetch chunk {index} of the model: what came has another hash, twice")]
    Corrupt { index: u32 },
    #[error("loading was cancelled")]
    Cancelled,
}

impl StoreError {
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull {
                path,
                free_hint: "chunks that are there stay; free some space or lower --cache-size",
            },
            _ => Self::Io { what, path, source },
        }
    }
}

/// Set once by whoever no longer wants the result.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks for an early end.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn check(&self) -> Result<(), StoreError> {
        if self.is_cancelled() { Err(StoreError::Cancelled) } else { Ok(()) }
    }
}

/// What a shard needs of a model file.
#[derive(Debug, Clone)]
pub struct Needs {
    pub model: ModelRef,
    /// Byte ranges of the file, those to be kept first in front.
    pub ranges: Vec<Range<u64>>,
    /// The part of them that is read in place as long as the shard lives.
    pub mapped: Option<Range<u64>>,
}

/// The worker's store: its folders and the cache's bound.
#[derive(Debug, Clone)]
pub struct Store {
    cache: Arc<Cache>,
    models: Vec<PathBuf>,
    data_dir: PathBuf,
}

impl Store {
    /// A store over `cache_dir`, bounded by `cache_size`; local copies are looked for in `models`, and
    /// their hashes remembered in `data_dir`. Nothing is written yet.
    pub fn new(cache_dir: PathBuf, cache_size: Bytes, models: Vec<PathBuf>, data_dir: PathBuf) -> Self {
        Self { cache: Arc::new(Cache::new(cache_dir, cache_size)), models, data_dir }
    }

    /// A local copy of the model's file: right size and right hash. Reads whole files, so it may take
    /// long; call it off the runtime's thread.
    ///
    /// # Errors
    /// Only [`StoreError::Cancelled`]: a file that cannot be read is no copy.
    pub fn local_copy(&self, model: &ModelRef, cancel: &Cancel) -> Result<Option<PathBuf>, StoreError> {
        local::find(&self.models, &self.data_dir, model, cancel)
    }

    /// Makes the ranges of `needs` readable: from a local copy, from the cache, or from `peer`. `meter`
    /// shows how far it is.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn prepare(
        &self,
        needs: Needs,
        peer: Arc<dyn ChunkSource>,
        cancel: Cancel,
        meter: Arc<Meter>,
    ) -> Result<SharedSource, StoreError> {
        fetch::prepare(self, needs, peer, cancel, meter).await
    }
}

/// A source for the loader, which may run on any thread but the runtime's.
pub type SharedSource = Arc<dyn WeightSource>;
