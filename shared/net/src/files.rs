//! Files of a data folder: private to the user, and whole or absent after a crash.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Why a file of the data folder could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Others could have read the secret in it.
    #[error(
        "{} is readable or writable by other users (mode {mode:04o}); \
         if nobody else had access, `chmod {wanted:04o}` it, otherwise delete it", path.display()
    )]
    Exposed { path: PathBuf, mode: u32, wanted: u32 },
    /// Larger than such a file ever is.
    #[error("{} has {size} bytes; such a file has at most {limit}", path.display())]
    TooLarge { path: PathBuf, size: u64, limit: u64 },
    /// The system refused.
    #[error("failed to {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Makes the folder, with mode 0700, unless it is there.
pub(crate) fn ensure_dir(dir: &Path) -> Result<(), FileError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("create the folder", dir))
}

/// Reads a file that only its owner may read. `None` if there is none.
pub(crate) fn read_private(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("open", path)(error)),
    };
    let meta = file.metadata().map_err(io_error("inspect", path))?;
    let mode = meta.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(FileError::Exposed { path: path.to_owned(), mode, wanted: 0o600 });
    }
    if meta.len() > limit {
        return Err(FileError::TooLarge { path: path.to_owned(), size: meta.len(), limit });
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    Ok(Some(bytes))
}

/// Replaces a file with mode 0600: after a crash the old or the new content is there, never a part.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    ensure_dir(dir)?;
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        // A leftover of a crash keeps its mode when it is opened again.
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|source| {
        // The error that matters is the first one; what is left over is overwritten next time.
        let _ = fs::remove_file(&temporary);
        io_error("write", path)(source)
    })
}

/// An exclusive lock on a file, created if need be; released when the file is closed.
pub(crate) fn lock_file(path: &Path, wait: bool) -> Result<Option<File>, FileError> {
    use rustix::fs::{FlockOperation, flock};
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(io_error("open", path))?;
    let operation =
        if wait { FlockOperation::LockExclusive } else { FlockOperation::NonBlockingLockExclusive };
    loop {
        match flock(&file, operation) {
            Ok(()) => return Ok(Some(file)),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(io_error("lock", path)(errno.into())),
        }
    }
}

pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_others_can_read_is_refused_by_name_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in").join("node.key");
        write_private(&path, b"secret").unwrap();
        assert_eq!(read_private(&path, 6).unwrap().unwrap(), b"secret");
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        assert!(matches!(read_private(&path, 5), Err(FileError::TooLarge { .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = read_private(&path, 6).unwrap_err().to_string();
        assert!(error.contains("node.key") && error.contains("0640") && error.contains("chmod"), "{error}");
        assert!(read_private(&dir.path().join("none"), 6).unwrap().is_none());
    }
}
