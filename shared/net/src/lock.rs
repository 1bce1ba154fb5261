//! One coordinator a cluster: the lock on its data folder, and the term that each start raises.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use shoal_core::Term;

use crate::files::{self, FileError, io_error};

/// A term is a decimal number of at most 20 digits.
const TERM_FILE_BYTES: u64 = 64;

/// The lock on a coordinator's data folder. Released when dropped, or when the process ends.
#[derive(Debug)]
pub struct DataDirLock {
    _file: File,
    dir: PathBuf,
}

/// Why the coordinator cannot have its data folder.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another coordinator runs with the data folder {} ({holder})", dir.display())]
    Held {
        dir: PathBuf,
        /// `process 4711`, or that it did not say.
        holder: String,
    },
    #[error("the term kept in {} is not a number: {text:?}", path.display())]
    Term { path: PathBuf, text: String },
    #[error(transparent)]
    File(#[from] FileError),
}

impl DataDirLock {
    /// Takes the lock, making the folder if need be. Does not wait.
    ///
    /// # Errors
    /// When another process has it (with its id), or the folder cannot be used.
    pub fn acquire(dir: &Path) -> Result<Self, LockError> {
        files::ensure_dir(dir)?;
        let path = dir.join("coordinator.lock");
        let Some(mut file) = files::lock_file(&path, false)? else {
            let pid = std::fs::read_to_string(&path).unwrap_or_default();
            let holder = match pid.trim().parse::<u32>() {
                Ok(pid) => format!("process {pid}"),
                Err(_) => "its process id is unknown".to_owned(),
            };
            return Err(LockError::Held { dir: dir.to_owned(), holder });
        };
        let mut say = || {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            writeln!(file, "{}", std::process::id())?;
            file.flush()
        };
        say().map_err(io_error("write", &path))?;
        Ok(Self { _file: file, dir: dir.to_owned() })
    }

    /// Raises the persisted term by one; what is returned is on disk already.
    ///
    /// # Errors
    /// When the term cannot be read or kept.
    pub fn raise_term(&self) -> Result<Term, LockError> {
        let path = self.dir.join("term");
        let mut text = String::new();
        if let Some(bytes) = files::read_private(&path, TERM_FILE_BYTES)? {
            bytes.as_slice().read_to_string(&mut text).map_err(io_error("read", &path))?;
        } else {
            text.push('0');
        }
        let last = text.trim().parse::<u64>().ok().and_then(|term| term.checked_add(1));
        let Some(term) = last else { return Err(LockError::Term { path, text }) };
        files::write_private(&path, format!("{term}\n").as_bytes())?;
        Ok(Term(term))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_coordinator_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDirLock::acquire(dir.path()).unwrap();
        let error = DataDirLock::acquire(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        DataDirLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn each_start_raises_the_term() {
        let dir = tempfile::tempdir().unwrap();
        for term in 1..4 {
            assert_eq!(DataDirLock::acquire(dir.path()).unwrap().raise_term().unwrap(), Term(term));
        }
        std::fs::write(dir.path().join("term"), "soon").unwrap();
        let error = DataDirLock::acquire(dir.path()).unwrap().raise_term().unwrap_err();
        assert!(matches!(error, LockError::Term { .. }), "{error}");
    }
}
