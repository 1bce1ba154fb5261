//! The bounded cache of chunks on disk. Its layout and its rules are in the module above.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use shoal_core::message::{Hash, ModelRef};
use shoal_core::units::Bytes;

use super::chunks::{ChunkList, chunk_count};
use super::{Cancel, StoreError};

const MISSING: u8 = 0;
const PRESENT: u8 = 1;
const PROMISED: u8 = 2;

const MAGIC: [u8; 4] = *b"SHLC";
const HEADER: u64 = 16;

/// How a chunk's bytes reach the disk; tests put a full disk here.
pub(super) type WriteAt = fn(&File, &[u8], u64) -> io::Result<()>;

/// A folder of cached models.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    limit: Bytes,
    pub(super) write_at: WriteAt,
}

/// One model of the cache, in use until dropped.
#[derive(Debug)]
pub struct CachedModel {
    dir: PathBuf,
    data: Arc<File>,
    have: File,
    count: u32,
    chunk_bytes: u32,
    /// Locked shared while this lives.
    _lock: File,
    /// Chunks that this process verified or wrote.
    verified: Mutex<Vec<bool>>,
    write_at: WriteAt,
}

impl Cache {
    /// A cache in `dir` of at most `limit` bytes of chunks.
    pub fn new(dir: PathBuf, limit: Bytes) -> Self {
        Self { dir, limit, write_at: |file, bytes, at| file.write_all_at(bytes, at) }
    }

    /// Opens a model's entry, making it where there is none; it is safe from eviction until dropped.
    ///
    /// # Errors
    /// The folder cannot be written, or the disk is full.
    pub fn open(&self, model: &ModelRef) -> Result<CachedModel, StoreError> {
        let count = chunk_count(model)?;
        let _guard = self.lock()?;
        let dir = self.dir.join(hex(&model.hash));
        fs::create_dir_all(&dir).map_err(StoreError::io("create", &dir))?;
        let file = |name: &str| -> Result<File, StoreError> {
            let path = dir.join(name);
            let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            options.map_err(StoreError::io("open", path))
        };
        let lock = file("lock")?;
        lock.lock_shared().map_err(StoreError::io("lock", dir.join("lock")))?;
        // Only the order of eviction depends on it.
        let _ = lock.set_modified(SystemTime::now());
        let (data, have) = (file("data")?, file("have")?);
        let mut header = [0; HEADER as usize];
        header[..4].copy_from_slice(&MAGIC);
        header[4..8].copy_from_slice(&model.chunk_bytes.to_le_bytes());
        header[8..].copy_from_slice(&model.file_bytes.0.to_le_bytes());
        let mut found = [0; HEADER as usize];
        let size = have.metadata().map(|metadata| metadata.len()).unwrap_or(0);
        let same = have.read_exact_at(&mut found, 0).is_ok() && found == header;
        let set_up = || -> io::Result<()> {
            if !same || size != HEADER + u64::from(count) {
                have.set_len(0)?;
                have.set_len(HEADER + u64::from(count))?;
                have.write_all_at(&header, 0)?;
            }
            if data.metadata()?.len() != model.file_bytes.0 {
                data.set_len(model.file_bytes.0)?;
            }
            Ok(())
        };
        set_up().map_err(StoreError::io("set up", &dir))?;
        let (data, verified) = (Arc::new(data), Mutex::new(vec![false; count as usize]));
        let (chunk_bytes, write_at) = (model.chunk_bytes, self.write_at);
        Ok(CachedModel { dir, data, have, count, chunk_bytes, _lock: lock, verified, write_at })
    }

    /// Promises room for these missing chunks of an open model, in order, evicting models nobody uses,
    /// the longest unused first. Returns those that have room.
    ///
    /// # Errors
    /// The cache cannot be read or written.
    pub fn promise(
        &self,
        model: &CachedModel,
        list: &ChunkList,
        missing: &[u32],
    ) -> Result<Vec<u32>, StoreError> {
        let _guard = self.lock()?;
        let wanted: u64 = missing.iter().map(|&index| list.len(index)).sum();
        let mut entries = self.entries()?;
        // This model's promises of an earlier try are counted below, as wanted.
        let promised = |entry: &Entry| if entry.dir == model.dir { entry.present } else { entry.bytes };
        let mut used: u64 = entries.iter().map(promised).sum();
        entries.retain(|entry| entry.dir != model.dir);
        entries.sort_by_key(|entry| entry.used);
        for entry in &entries {
            if used.saturating_add(wanted) <= self.limit.0 {
                break;
            }
            if evict(&entry.dir)? {
                used -= entry.bytes;
                tracing::info!(model = %entry.dir.display(), "evicted {} of the model cache", Bytes(entry.bytes));
            }
        }
        let mut room = self.limit.0.saturating_sub(used);
        let mut kept = Vec::new();
        for &index in missing {
            let Some(rest) = room.checked_sub(list.len(index)) else { continue };
            room = rest;
            model.mark(index, PROMISED)?;
            kept.push(index);
        }
        Ok(kept)
    }

    fn lock(&self) -> Result<File, StoreError> {
        fs::create_dir_all(&self.dir).map_err(StoreError::io("create", &self.dir))?;
        let path = self.dir.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(StoreError::io("open", &path))?;
        file.lock().map_err(StoreError::io("lock", &path))?;
        Ok(file)
    }

    fn entries(&self) -> Result<Vec<Entry>, StoreError> {
        let dir = fs::read_dir(&self.dir).map_err(StoreError::io("read", &self.dir))?;
        Ok(dir.filter_map(|entry| Entry::read(&entry.ok()?.path())).collect())
    }
}

/// What a model's entry takes.
#[derive(Debug)]
struct Entry {
    dir: PathBuf,
    /// Chunks that are there.
    present: u64,
    /// Chunks that are there or promised.
    bytes: u64,
    used: SystemTime,
}

impl Entry {
    /// `None` for a folder that is no entry.
    fn read(dir: &Path) -> Option<Self> {
        let name = dir.file_name()?.to_str()?;
        if name.len() != 64 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut have = Vec::new();
        let read = File::open(dir.join("have")).and_then(|mut file| file.read_to_end(&mut have));
        let (present, bytes) = match (read, have.get(..HEADER as usize)) {
            (Ok(_), Some(header)) if header[..4] == MAGIC => {
                let chunk = u64::from(u32::from_le_bytes([header[4], header[5], header[6], header[7]]));
                let count = |of: fn(u8) -> bool| {
                    have[HEADER as usize..].iter().filter(|&&state| of(state)).count() as u64 * chunk
                };
                (count(|state| state == PRESENT), count(|state| state != MISSING))
            }
            _ => (0, 0),
        };
        let used = fs::metadata(dir.join("lock")).and_then(|metadata| metadata.modified());
        Some(Self { dir: dir.to_owned(), present, bytes, used: used.unwrap_or(SystemTime::UNIX_EPOCH) })
    }
}

/// Removes an entry nobody uses; `false` when somebody does. The caller holds the cache's lock, so that
/// nobody can be opening it.
fn evict(dir: &Path) -> Result<bool, StoreError> {
    if let Ok(lock) = File::open(dir.join("lock"))
        && lock.try_lock().is_err()
    {
        return Ok(false);
    }
    fs::remove_dir_all(dir).map_err(StoreError::io("evict", dir))?;
    Ok(true)
}

impl CachedModel {
    /// The chunk list, if it is there and is this model's.
    pub fn list(&self, model: &ModelRef) -> Option<ChunkList> {
        let bytes = fs::read(self.dir.join("list")).ok()?;
        ChunkList::parse(model, &bytes).ok()
    }

    /// Keeps the list's bytes, which were checked.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn put_list(&self, bytes: &[u8]) -> Result<(), StoreError> {
        let (path, new) = (self.dir.join("list"), self.dir.join(format!("list.{}", std::process::id())));
        let written = fs::write(&new, bytes).and_then(|()| fs::rename(&new, &path));
        written.map_err(|error| {
            let _ = fs::remove_file(&new);
            StoreError::io("write", path)(error)
        })
    }

    /// Which of these chunks are not at hand. Reads and hashes those that are recorded and were not yet
    /// looked at in this process; one that fails is struck off the record.
    ///
    /// # Errors
    /// The record cannot be read or written, or the cancel.
    pub fn missing(
        &self,
        list: &ChunkList,
        chunks: &[u32],
        cancel: &Cancel,
        mut checked: impl FnMut(u64),
    ) -> Result<Vec<u32>, StoreError> {
        let mut have = vec![0; self.count as usize];
        self.have.read_exact_at(&mut have, HEADER).map_err(StoreError::io("read", self.dir.join("have")))?;
        let mut buffer = vec![0; self.chunk_bytes as usize];
        let mut missing = Vec::new();
        for &index in chunks {
            cancel.check()?;
            let (range, at) = (list.range(index), index as usize);
            let bytes = &mut buffer[..(range.end - range.start) as usize];
            if have[at] != PRESENT {
                missing.push(index);
                continue;
            }
            if !self.verified()[at] {
                let read = self.data.read_exact_at(bytes, range.start);
                if read.is_err() || !list.verify(index, bytes) {
                    tracing::warn!(index, model = %self.dir.display(), "a cached chunk is damaged: fetching it again");
                    self.mark(index, MISSING)?;
                    missing.push(index);
                    continue;
                }
                self.verified()[at] = true;
            }
            checked(bytes.len() as u64);
        }
        Ok(missing)
    }

    /// Keeps a chunk that was verified.
    ///
    /// # Errors
    /// The disk is full or fails; what was there before stays.
    pub fn put(&self, list: &ChunkList, index: u32, bytes: &[u8]) -> Result<(), StoreError> {
        let written = (self.write_at)(&self.data, bytes, list.range(index).start);
        written.map_err(StoreError::io("write", self.dir.join("data")))?;
        self.mark(index, PRESENT)?;
        self.verified()[index as usize] = true;
        Ok(())
    }

    /// Takes back promises that will not be kept.
    pub fn unpromise(&self, chunks: &[u32]) {
        for &index in chunks {
            let mut state = [0];
            let read = self.have.read_exact_at(&mut state, HEADER + u64::from(index));
            if read.is_ok() && state[0] == PROMISED {
                // A promise that stays only makes the cache look fuller until the next load.
                let _ = self.mark(index, MISSING);
            }
        }
    }

    /// Whether the chunk can be read from [`CachedModel::data`].
    pub fn holds(&self, index: u32) -> bool {
        self.verified().get(index as usize).copied().unwrap_or(false)
    }

    /// Where [`CachedModel::data`] lies.
    pub fn path(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The file of chunks.
    pub fn data(&self) -> &File {
        &self.data
    }

    fn mark(&self, index: u32, state: u8) -> Result<(), StoreError> {
        let written = self.have.write_all_at(&[state], HEADER + u64::from(index));
        written.map_err(StoreError::io("write", self.dir.join("have")))
    }

    fn verified(&self) -> MutexGuard<'_, Vec<bool>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn hex(hash: &Hash) -> String {
    blake3::Hash::from_bytes(*hash).to_hex().to_string()
}
