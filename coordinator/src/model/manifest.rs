//! The manifest: what names a model file and lets each chunk of it be verified alone (BLAKE3).
//!
//! Hashing a large file takes seconds, so the result is kept in the data folder, under the file's path, size, time of
//! change and inode: a file that differs in any of these is hashed again.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use shoal_core::message::{Hash, ModelRef};
use shoal_core::units::Bytes;

/// Chunks of files under [`SMALL_FILE`]: a small model on a slow link still shows progress and shares work.
const SMALL_CHUNK: u32 = 64 << 10;

/// Chunks of other files: the list of a 70 GB file stays at 2 MB.
const LARGE_CHUNK: u32 = 1 << 20;

/// Where the chunk size changes.
const SMALL_FILE: u64 = 64 << 20;

/// What names a file, and the hash of each of its chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) model: ModelRef,
    pub(crate) chunks: Vec<Hash>,
}

impl Manifest {
    /// Hashes what `source` gives, which must be `len` bytes; `progress` hears of the bytes done.
    ///
    /// # Errors
    /// It cannot be read, or is shorter or longer than `len`.
    pub(crate) fn compute(
        mut source: impl Read,
        len: u64,
        file_name: String,
        mut progress: impl FnMut(u64),
    ) -> io::Result<Self> {
        let chunk_bytes = if len < SMALL_FILE { SMALL_CHUNK } else { LARGE_CHUNK };
        let mut whole = blake3::Hasher::new();
        let mut chunks = Vec::new();
        let mut chunk = vec![0; chunk_bytes as usize];
        let mut done = 0;
        while done < len {
            let want = u64::from(chunk_bytes).min(len - done) as usize;
            source.read_exact(&mut chunk[..want])?;
            whole.update(&chunk[..want]);
            chunks.push(*blake3::hash(&chunk[..want]).as_bytes());
            done += want as u64;
            progress(done);
        }
        if source.read(&mut chunk[..1])? != 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file grew while it was read"));
        }
        Ok(Self::new(*whole.finalize().as_bytes(), chunks, len, chunk_bytes, file_name))
    }

    /// The manifest of the file at `path`, from the cache in `data_dir` where the file has not changed.
    ///
    /// # Errors
    /// The file cannot be read. A cache that cannot be read or written only costs time.
    pub(crate) fn of_file(path: &Path, data_dir: &Path, progress: impl FnMut(u64)) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let file = File::open(&path)?;
        let identity = Identity::of(&path, &file.metadata()?);
        let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let cache = cache_path(data_dir, &path);
        if let Some(manifest) = load(&cache, &identity, &file_name) {
            return Ok(manifest);
        }
        let manifest = Self::compute(file, identity.size, file_name, progress)?;
        if let Err(error) = store(&cache, identity, &manifest) {
            tracing::warn!("failed to keep the hashes of {}: {error}", path.display());
        }
        Ok(manifest)
    }

    fn new(hash: Hash, chunks: Vec<Hash>, len: u64, chunk_bytes: u32, file_name: String) -> Self {
        let mut list = blake3::Hasher::new();
        for chunk in &chunks {
            list.update(chunk);
        }
        let chunks_hash = *list.finalize().as_bytes();
        let model = ModelRef { hash, chunks_hash, file_bytes: Bytes(len), chunk_bytes, file_name };
        Self { model, chunks }
    }
}

/// What a file is recognised by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    path: PathBuf,
    size: u64,
    modified_ns: u64,
    inode: u64,
}

impl Identity {
    fn of(path: &Path, metadata: &fs::Metadata) -> Self {
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Self {
            path: path.to_owned(),
            size: metadata.len(),
            modified_ns: modified.map_or(0, |time| time.as_nanos() as u64),
            inode: inode(metadata),
        }
    }
}

#[cfg(unix)]
fn inode(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_metadata: &fs::Metadata) -> u64 {
    0
}

/// The cache file: hashes as hexadecimal text.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cached {
    identity: Identity,
    chunk_bytes: u32,
    hash: String,
    chunks: Vec<String>,
}

fn cache_path(data_dir: &Path, path: &Path) -> PathBuf {
    let name = blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex();
    data_dir.join("manifests").join(format!("{}.json", &name[..32]))
}

fn load(cache: &Path, identity: &Identity, file_name: &str) -> Option<Manifest> {
    let cached: Cached = serde_json::from_slice(&fs::read(cache).ok()?).ok()?;
    let count = identity.size.div_ceil(u64::from(cached.chunk_bytes.max(1)));
    if cached.identity != *identity || cached.chunks.len() as u64 != count {
        return None;
    }
    let hash = |hex: &String| blake3::Hash::from_hex(hex).ok().map(|hash| *hash.as_bytes());
    let chunks = cached.chunks.iter().map(hash).collect::<Option<Vec<_>>>()?;
    Some(Manifest::new(hash(&cached.hash)?, chunks, identity.size, cached.chunk_bytes, file_name.to_owned()))
}

fn store(cache: &Path, identity: Identity, manifest: &Manifest) -> io::Result<()> {
    let hex = |hash: &Hash| blake3::Hash::from_bytes(*hash).to_hex().to_string();
    let cached = Cached {
        identity,
        chunk_bytes: manifest.model.chunk_bytes,
        hash: hex(&manifest.model.hash),
        chunks: manifest.chunks.iter().map(hex).collect(),
    };
    let folder = cache.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer(&mut file, &cached)?;
    file.persist(cache).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_and_file_are_hashed_as_blake3_does() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|i| (i * 7 / 8) as u8).collect();
        let manifest = Manifest::compute(&bytes[..], bytes.len() as u64, "m".to_owned(), |_| ()).unwrap();
        assert_eq!(manifest.model.hash, *blake3::hash(&bytes).as_bytes());
        let chunks: Vec<Hash> = bytes.chunks(65_536).map(|chunk| *blake3::hash(chunk).as_bytes()).collect();
        assert_eq!(manifest.chunks, chunks);
        assert_eq!(manifest.model.chunks_hash, *blake3::hash(&chunks.concat()).as_bytes());
        assert!(Manifest::compute(&bytes[..], 100, "m".to_owned(), |_| ()).is_err());
        assert!(Manifest::compute(&bytes[..], 300_000, "m".to_owned(), |_| ()).is_err());
    }

    #[test]
    fn an_unchanged_file_is_not_hashed_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        fs::write(&path, vec![1; 100_000]).unwrap();
        let mut calls = 0;
        let first = Manifest::of_file(&path, dir.path(), |_| calls += 1).unwrap();
        assert_eq!(calls, 2);
        let again = Manifest::of_file(&path, dir.path(), |_| panic!("hashed again")).unwrap();
        assert_eq!(first, again);
        fs::write(&path, vec![2; 100_000]).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(UNIX_EPOCH).unwrap();
        let changed = Manifest::of_file(&path, dir.path(), |_| ()).unwrap();
        assert_ne!(first.model.hash, changed.model.hash);
    }

    #[test]
    fn a_damaged_cache_only_costs_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        fs::write(&path, vec![1; 100_000]).unwrap();
        let first = Manifest::of_file(&path, dir.path(), |_| ()).unwrap();
        let cache = cache_path(dir.path(), &path.canonicalize().unwrap());
        fs::write(&cache, b"{}").unwrap();
        assert_eq!(Manifest::of_file(&path, dir.path(), |_| ()).unwrap(), first);
    }
}
