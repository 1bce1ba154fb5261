//! The address book: workers seen before and where, so that they are dialled at the next start even where multicast
//! does not work. A hint and no more: who answers there must still prove who it is.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_core::NodeId;

/// Workers remembered: as many as a cluster may have.
const ENTRIES: usize = 500;

/// A worker seen before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
}

/// Workers by id, kept in a file.
#[derive(Debug)]
pub(crate) struct Book {
    path: PathBuf,
    known: BTreeMap<NodeId, Known>,
}

impl Book {
    /// The book in this folder; an unreadable one is as good as none.
    pub(crate) fn open(dir: &Path) -> Self {
        let path = dir.join("workers.json");
        let known = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { path, known: known.unwrap_or_default() }
    }

    /// All workers.
    pub(crate) fn known(&self) -> &BTreeMap<NodeId, Known> {
        &self.known
    }

    /// Remembers a worker.
    pub(crate) fn put(&mut self, node: NodeId, known: Known) {
        if self.known.get(&node) == Some(&known)
            || (self.known.len() >= ENTRIES && !self.known.contains_key(&node))
        {
            return;
        }
        self.known.insert(node, known);
        if let Err(error) = self.save() {
            tracing::warn!("failed to keep the addresses of workers: {error}");
        }
    }

    fn save(&self) -> std::io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer_pretty(&mut file, &self.known)?;
        file.persist(&self.path).map_err(|error| error.error)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_there_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let known = Known { name: "pi".to_owned(), address: "10.0.0.2:7000".parse().unwrap() };
        Book::open(dir.path()).put(NodeId([7; 16]), known.clone());
        let book = Book::open(dir.path());
        assert_eq!(book.known().get(&NodeId([7; 16])), Some(&known));
        fs::write(dir.path().join("workers.json"), "[").unwrap();
        assert!(Book::open(dir.path()).known().is_empty());
    }
}
