//! What the loader reads from: a local copy, or the cache with what had no room in it.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use memmap2::Mmap;
use shoal_core::message::ModelRef;
use shoal_engine::model::{WeightSource, map_file};
use tokio::runtime::Handle;

use super::cache::CachedModel;
use super::chunks::ChunkList;
use super::fetch::{ChunkSource, Meter, verified};
use super::{Cancel, StoreError};

/// Read between two looks at the cancel: a fraction of a second on the slowest card.
const PIECE: usize = 4 << 20;

/// Chunks without room in the cache that are held, since neighbouring tensors share one.
const HELD: usize = 4;

/// How soon a cancel ends a fetch that hangs.
const CANCEL_POLL: Duration = Duration::from_millis(50);

/// A whole file.
#[derive(Debug)]
pub(super) struct LocalSource {
    file: File,
    map: Arc<Mmap>,
    cancel: Cancel,
}

impl LocalSource {
    pub(super) fn open(path: &Path, cancel: Cancel) -> Result<Self, StoreError> {
        let file = File::open(path).map_err(StoreError::io("open", path))?;
        let map = map_file(&file).map_err(StoreError::io("map", path))?;
        Ok(Self { file, map, cancel })
    }
}

impl WeightSource for LocalSource {
    fn read_range(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        read(&self.file, offset, out, &self.cancel)
    }

    fn map(&self) -> Option<Arc<Mmap>> {
        Some(Arc::clone(&self.map))
    }
}

/// A model's entry in the cache; what is not in it comes from the peer when it is read, and is kept no
/// longer than the neighbouring reads.
pub(super) struct CacheSource {
    model: ModelRef,
    list: Arc<ChunkList>,
    cached: Arc<CachedModel>,
    peer: Arc<dyn ChunkSource>,
    cancel: Cancel,
    meter: Arc<Meter>,
    /// Of the driver's runtime, which goes on while the loader waits on its own thread.
    runtime: Handle,
    /// Where all that is to be mapped is in the cache.
    map: Option<Arc<Mmap>>,
    held: Mutex<VecDeque<(u32, Arc<Vec<u8>>)>>,
}

impl CacheSource {
    /// To be called on the runtime. `mapped` is the part of the file that will be read in place.
    pub(super) fn new(
        model: ModelRef,
        list: Arc<ChunkList>,
        cached: Arc<CachedModel>,
        peer: Arc<dyn ChunkSource>,
        cancel: Cancel,
        meter: Arc<Meter>,
        mapped: Option<Range<u64>>,
    ) -> Result<Self, StoreError> {
        let (runtime, held) = (Handle::current(), Mutex::default());
        let mapped = mapped.map(|range| list.needed(&[range])).transpose()?;
        let whole = mapped.filter(|chunks| chunks.iter().all(|&index| cached.holds(index)));
        let map = whole
            .map(|_| map_file(cached.data()))
            .transpose()
            .map_err(StoreError::io("map", cached.path()))?;
        Ok(Self { model, list, cached, peer, cancel, meter, runtime, map, held })
    }

    fn chunk(&self, index: u32) -> Result<Arc<Vec<u8>>, StoreError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = held.iter().find(|(held, _)| *held == index) {
            return Ok(Arc::clone(bytes));
        }
        let bytes = self.runtime.block_on(async {
            let cancelled = async {
                while !self.cancel.is_cancelled() {
                    tokio::time::sleep(CANCEL_POLL).await;
                }
            };
            tokio::select! {
                bytes = verified(&*self.peer, &self.model, &self.list, index) => bytes,
                () = cancelled => Err(StoreError::Cancelled),
            }
        })?;
        self.meter.add_fetched(bytes.len() as u64);
        let bytes = Arc::new(bytes);
        held.truncate(HELD - 1);
        held.push_front((index, Arc::clone(&bytes)));
        Ok(bytes)
    }
}

impl WeightSource for CacheSource {
    fn read_range(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let index = self.list.at(at);
            let chunk = self.list.range(index);
            let here = chunk.end.saturating_sub(at).min(rest.len() as u64) as usize;
            if here == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (part, next) = rest.split_at_mut(here);
            if self.cached.holds(index) {
                read(self.cached.data(), at, part, &self.cancel)?;
            } else {
                let bytes = self.chunk(index).map_err(io::Error::other)?;
                let start = (at - chunk.start) as usize;
                part.copy_from_slice(&bytes[start..start + here]);
            }
            (at, rest) = (at + here as u64, next);
        }
        Ok(())
    }

    fn map(&self) -> Option<Arc<Mmap>> {
        self.map.clone()
    }
}

fn read(file: &File, offset: u64, out: &mut [u8], cancel: &Cancel) -> io::Result<()> {
    let mut at = offset;
    for piece in out.chunks_mut(PIECE) {
        cancel.check().map_err(io::Error::other)?;
        file.read_exact_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}
