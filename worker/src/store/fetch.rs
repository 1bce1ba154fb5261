//! Bringing a shard's chunks into the cache.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use shoal_core::message::ModelRef;
use shoal_core::units::Bytes;
use tokio::task::{JoinSet, spawn_blocking};

use super::cache::CachedModel;
use super::chunks::ChunkList;
use super::source::{CacheSource, LocalSource};
use super::{Cancel, Needs, SharedSource, Store, StoreError};

/// Chunks asked for at once: as many streams as the coordinator allows.
const FETCHES: usize = shoal_net::control::CHUNK_STREAMS as usize;

/// Times a chunk is asked for before it is given up: the second try covers a fault in transit.
const TRIES: usize = 2;

/// What [`ChunkSource`] promises.
pub type ChunkFuture<'a> = Pin<Box<dyn Future<Output = Result<Vec<u8>, FetchError>> + Send + 'a>>;

/// A peer that did not give what was asked for.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct FetchError(pub String);

/// Who has the chunks of a model. What comes back is checked by the store.
pub trait ChunkSource: Send + Sync {
    /// The concatenated chunk hashes: `bytes` of them.
    fn list(&self, model: &ModelRef, bytes: u64) -> ChunkFuture<'_>;

    /// Chunk `index`: `bytes` of it.
    fn chunk(&self, model: &ModelRef, index: u32, bytes: u64) -> ChunkFuture<'_>;
}

/// How far a load is; read by whoever likes, at any time.
#[derive(Debug, Default)]
pub struct Meter {
    done: AtomicU64,
    total: AtomicU64,
    fetched: AtomicU64,
}

impl Meter {
    /// Bytes of chunks that are in place.
    pub fn done(&self) -> Bytes {
        Bytes(self.done.load(Ordering::Relaxed))
    }

    /// Bytes of chunks that are needed; zero until that is known.
    pub fn total(&self) -> Bytes {
        Bytes(self.total.load(Ordering::Relaxed))
    }

    /// Bytes that came from a peer, the chunk list not counted.
    pub fn fetched(&self) -> Bytes {
        Bytes(self.fetched.load(Ordering::Relaxed))
    }

    fn add_done(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_fetched(&self, bytes: u64) {
        self.fetched.fetch_add(bytes, Ordering::Relaxed);
    }
}

pub(super) async fn prepare(
    store: &Store,
    needs: Needs,
    peer: Arc<dyn ChunkSource>,
    cancel: Cancel,
    meter: Arc<Meter>,
) -> Result<SharedSource, StoreError> {
    let Needs { model, ranges, mapped } = needs;
    let local = {
        let (store, model, cancel) = (store.clone(), model.clone(), cancel.clone());
        blocking(move || store.local_copy(&model, &cancel)).await?
    };
    if let Some(path) = local {
        tracing::info!(path = %path.display(), "using a local copy of the model");
        let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        meter.total.store(bytes, Ordering::Relaxed);
        meter.add_done(bytes);
        return Ok(Arc::new(LocalSource::open(&path, cancel)?));
    }
    let cached = {
        let (cache, model) = (Arc::clone(&store.cache), model.clone());
        Arc::new(blocking(move || cache.open(&model)).await?)
    };
    let list = Arc::new(chunk_list(&cached, &model, &*peer).await?);
    let needed = list.needed(&ranges)?;
    meter.total.store(needed.iter().map(|&index| list.len(index)).sum(), Ordering::Relaxed);
    let missing = {
        let (cached, list, cancel, meter) = (cached.clone(), list.clone(), cancel.clone(), meter.clone());
        blocking(move || cached.missing(&list, &needed, &cancel, |bytes| meter.add_done(bytes))).await?
    };
    let kept = if missing.is_empty() {
        Vec::new()
    } else {
        let (cache, cached, list) = (store.cache.clone(), cached.clone(), list.clone());
        let missing = missing.clone();
        blocking(move || cache.promise(&cached, &list, &missing)).await?
    };
    if kept.len() < missing.len() {
        tracing::warn!(
            "the model cache is too small: {} of {} missing chunks are used but not kept (raise --cache-size)",
            missing.len() - kept.len(),
            missing.len()
        );
    }
    let job = Job { model, list, cached, peer, cancel, meter };
    if let Err(error) = job.fetch(&kept).await {
        job.cached.unpromise(&kept);
        return Err(error);
    }
    let Job { model, list, cached, peer, cancel, meter } = job;
    Ok(Arc::new(CacheSource::new(model, list, cached, peer, cancel, meter, mapped)?))
}

async fn chunk_list(
    cached: &Arc<CachedModel>,
    model: &ModelRef,
    peer: &dyn ChunkSource,
) -> Result<ChunkList, StoreError> {
    if let Some(list) = cached.list(model) {
        return Ok(list);
    }
    let count = super::chunks::chunk_count(model)?;
    let bytes = peer.list(model, u64::from(count) * 32).await?;
    let list = ChunkList::parse(model, &bytes)?;
    let cached = Arc::clone(cached);
    blocking(move || cached.put_list(&bytes)).await?;
    Ok(list)
}

struct Job {
    model: ModelRef,
    list: Arc<ChunkList>,
    cached: Arc<CachedModel>,
    peer: Arc<dyn ChunkSource>,
    cancel: Cancel,
    meter: Arc<Meter>,
}

impl Job {
    /// Fetches and keeps these chunks, several at once.
    async fn fetch(&self, chunks: &[u32]) -> Result<(), StoreError> {
        let mut waiting = chunks.iter().copied();
        let mut running = JoinSet::new();
        loop {
            while running.len() < FETCHES
                && let Some(index) = waiting.next()
            {
                self.cancel.check()?;
                let (model, list) = (self.model.clone(), Arc::clone(&self.list));
                let (cached, peer) = (Arc::clone(&self.cached), Arc::clone(&self.peer));
                running.spawn(async move {
                    let bytes = verified(&*peer, &model, &list, index).await?;
                    blocking(move || cached.put(&list, index, &bytes).map(|()| bytes.len() as u64)).await
                });
            }
            let Some(done) = running.join_next().await else { return Ok(()) };
            let bytes = done.unwrap_or_else(|error| Err(lost(error)))?;
            self.meter.add_done(bytes);
            self.meter.add_fetched(bytes);
            self.cancel.check()?;
        }
    }
}

/// A chunk from a peer, with the right hash.
pub(super) async fn verified(
    peer: &dyn ChunkSource,
    model: &ModelRef,
    list: &ChunkList,
    index: u32,
) -> Result<Vec<u8>, StoreError> {
    for _ in 0..TRIES {
        let bytes = peer.chunk(model, index, list.len(index)).await?;
        if list.verify(index, &bytes) {
            return Ok(bytes);
        }
        tracing::warn!(index, "a fetched chunk has another hash than the model's list says");
    }
    Err(StoreError::Corrupt { index })
}

/// Runs work on files off the runtime's thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(lost(error)))
}

/// A task that ended without a result: the runtime is going down, or the task panicked.
fn lost(error: tokio::task::JoinError) -> StoreError {
    if error.is_panic() { std::panic::resume_unwind(error.into_panic()) } else { StoreError::Cancelled }
}
