//! Where weights come from: one narrow seam, so that a local file, a cache of fetched chunks and a
//! faulty source in a test look the same to the loader.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::Mmap;

/// The bytes of a model file, some or all of them at hand.
pub trait WeightSource: Send + Sync {
    /// Fills `out` with the file's bytes from `offset` on.
    ///
    /// # Errors
    /// The bytes are not there or cannot be read.
    fn read_range(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// A map in which the model file's bytes lie at their offsets (those that are at hand: a cache may
    /// keep a file with holes); `None` where there is nothing to map, and the loader then reads instead.
    fn map(&self) -> Option<Arc<Mmap>> {
        None
    }
}

/// A model file on disk.
#[derive(Debug)]
pub struct FileSource {
    file: Mutex<File>,
    map: Arc<Mmap>,
}

impl FileSource {
    /// Opens `path` for reading. The file must not be changed in place meanwhile, see [`map_file`].
    ///
    /// # Errors
    /// It cannot be opened or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let map = map_file(&file)?;
        Ok(Self { file: Mutex::new(file), map })
    }
}

impl WeightSource for FileSource {
    /// Copies with reads, not from the map: pages of the map would stay in the process's resident set.
    fn read_range(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(out)
    }

    fn map(&self) -> Option<Arc<Mmap>> {
        Some(Arc::clone(&self.map))
    }
}

/// Maps a whole file for reading.
///
/// The file must not be cut short or rewritten in place while it is mapped: reading a page that is gone
/// ends the process. Model files and caches are replaced by renaming, which leaves the old map whole.
///
/// # Errors
/// The operating system refuses.
pub fn map_file(file: &File) -> io::Result<Arc<Mmap>> {
    #[expect(unsafe_code, reason = "a file can only be mapped so")]
    // SAFETY: the map is read-only; changes of the file in place are excluded by the documentation above.
    let map = unsafe { Mmap::map(file)? };
    Ok(Arc::new(map))
}

/// A model file in memory (the embedded model, tests). It cannot be mapped.
#[derive(Debug, Clone, Copy)]
pub struct MemorySource<'a>(pub &'a [u8]);

impl WeightSource for MemorySource<'_> {
    fn read_range(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let bytes = self.0.get(start..).and_then(|rest| rest.get(..out.len()));
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
