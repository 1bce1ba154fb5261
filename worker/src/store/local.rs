//! Local copies of model files, in folders the user named.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_core::message::ModelRef;

use super::cache::hex;
use super::{Cancel, StoreError};

/// Folders below a named one that are searched: `models/publisher/model/file`.
const DEPTH: usize = 3;

/// Files looked at in one search, so that `--models /` ends.
const FILES: usize = 20_000;

/// Hashes remembered; a record is a few hundred bytes.
const REMEMBERED: usize = 256;

/// Read at once while hashing.
const BUFFER: usize = 1 << 20;

/// A file's identity when it was hashed: if all is as it was, so is the content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Hashed {
    bytes: u64,
    modified_s: i64,
    modified_ns: i64,
    inode: u64,
    device: u64,
    blake3: String,
}

type Hashes = BTreeMap<PathBuf, Hashed>;

/// The path of a file that is the model. Same name first, then any of the same size.
pub(super) fn find(
    dirs: &[PathBuf],
    data_dir: &Path,
    model: &ModelRef,
    cancel: &Cancel,
) -> Result<Option<PathBuf>, StoreError> {
    let mut files = Vec::new();
    let mut left = FILES;
    for dir in dirs {
        walk(dir, DEPTH, &mut left, model.file_bytes.0, &mut files);
    }
    let name = Path::new(&model.file_name).file_name();
    files.sort_by_key(|path| (path.file_name() != name, path.clone()));
    files.dedup();
    let record = data_dir.join("hashes.json");
    let mut hashes = read(&record);
    let wanted = hex(&model.hash);
    for path in files {
        cancel.check()?;
        match hash(&path, &mut hashes, cancel)? {
            Some((blake3, new)) => {
                if new {
                    write(&record, &mut hashes);
                }
                if blake3 == wanted {
                    return Ok(Some(path));
                }
                tracing::info!(path = %path.display(), "a file of the model's size is another model");
            }
            None => tracing::warn!(path = %path.display(), "failed to read a file of the model's size"),
        }
    }
    Ok(None)
}

fn walk(dir: &Path, depth: usize, left: &mut usize, bytes: u64, out: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else {
        tracing::warn!(dir = %dir.display(), "failed to read a folder of models");
        return;
    };
    for entry in entries.flatten() {
        let Some(rest) = left.checked_sub(1) else { return };
        *left = rest;
        // Follows links: model folders often are links into a cache.
        let Ok(metadata) = fs::metadata(entry.path()) else { continue };
        if metadata.is_file() && metadata.len() == bytes {
            out.push(entry.path());
        } else if metadata.is_dir() && depth > 0 {
            walk(&entry.path(), depth - 1, left, bytes, out);
        }
    }
}

/// The file's hash and whether it is news; `None` when it cannot be read.
fn hash(path: &Path, hashes: &mut Hashes, cancel: &Cancel) -> Result<Option<(String, bool)>, StoreError> {
    let Ok(mut file) = File::open(path) else { return Ok(None) };
    let Some(before) = identity(&file) else { return Ok(None) };
    if let Some(known) = hashes.get(path)
        && (Hashed { blake3: known.blake3.clone(), ..before.clone() }) == *known
    {
        return Ok(Some((known.blake3.clone(), false)));
    }
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        cancel.check()?;
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => _ = hasher.update(&buffer[..n]),
            Err(_) => return Ok(None),
        }
    }
    // A file that is being written has no hash yet.
    if identity(&file).as_ref() != Some(&before) {
        return Ok(None);
    }
    let blake3 = hasher.finalize().to_hex().to_string();
    hashes.insert(path.to_owned(), Hashed { blake3: blake3.clone(), ..before });
    Ok(Some((blake3, true)))
}

fn identity(file: &File) -> Option<Hashed> {
    let metadata = file.metadata().ok()?;
    Some(Hashed {
        bytes: metadata.len(),
        modified_s: metadata.mtime(),
        modified_ns: metadata.mtime_nsec(),
        inode: metadata.ino(),
        device: metadata.dev(),
        blake3: String::new(),
    })
}

fn read(record: &Path) -> Hashes {
    fs::read(record).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Losing the record costs a rehash, so a failure is only logged.
fn write(record: &Path, hashes: &mut Hashes) {
    hashes.retain(|path, _| path.exists());
    while hashes.len() > REMEMBERED {
        hashes.pop_first();
    }
    let written = serde_json::to_vec(hashes).map_err(std::io::Error::other).and_then(|bytes| {
        let new = record.with_extension("new");
        fs::write(&new, bytes)?;
        fs::rename(&new, record)
    });
    if let Err(error) = written {
        tracing::warn!(%error, "failed to remember the hashes of local models");
    }
}

#[cfg(test)]
mod tests {
    use super::super::chunks::tests::model;
    use super::*;

    #[test]
    fn a_copy_is_found_by_its_content_and_its_hash_is_remembered() {
        let (dir, data) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
        let dirs = [dir.path().to_owned()];
        let (bytes, reference, _) = model(100_000, 3);
        let find = || find(&dirs, data.path(), &reference, &Cancel::default()).expect("search");
        assert_eq!(find(), None);
        let mut other = bytes.clone();
        other[77] ^= 1;
        fs::write(dir.path().join(&reference.file_name), &other).expect("write");
        assert_eq!(find(), None, "same name and size, other content");
        let path = dir.path().join("a/b/renamed.gguf");
        fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        fs::write(&path, &bytes).expect("write");
        assert_eq!(find(), Some(path.clone()));
        // The record alone answers now: a forged record is believed, so the file is not read again.
        let record = data.path().join("hashes.json");
        let mut hashes = read(&record);
        assert_eq!(hashes.len(), 2);
        hashes.get_mut(&path).expect("known").blake3 = "0".repeat(64);
        fs::write(&record, serde_json::to_vec(&hashes).expect("json")).expect("write");
        assert_eq!(find(), None);
        // A changed file is read again.
        fs::write(&path, &bytes).expect("write");
        File::open(&path).expect("open").set_modified(std::time::SystemTime::UNIX_EPOCH).expect("time");
        assert_eq!(find(), Some(path));
    }

    #[test]
    fn a_search_can_be_cancelled() {
        let dir = tempfile::tempdir().expect("folder");
        let (bytes, reference, _) = model(100_000, 4);
        fs::write(dir.path().join("x"), &bytes).expect("write");
        let cancel = Cancel::default();
        cancel.cancel();
        let found = find(&[dir.path().to_owned()], dir.path(), &reference, &cancel);
        assert!(matches!(found, Err(StoreError::Cancelled)));
    }
}
