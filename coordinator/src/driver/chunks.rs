//! The chunks of the model in hand, for workers that fetch them.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use shoal_core::message::Hash;
use shoal_net::chunks::ChunkSource;

use crate::model::{Manifest, Model, ModelBytes};

/// Serves one model at a time.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    model: Mutex<Option<Arc<(Manifest, ModelBytes)>>>,
}

impl Chunks {
    pub(super) fn set(&self, model: &Model) {
        let served = Arc::new((model.manifest.clone(), model.bytes.clone()));
        *self.model.lock().unwrap_or_else(PoisonError::into_inner) = Some(served);
    }

    fn get(&self, hash: &Hash) -> io::Result<Arc<(Manifest, ModelBytes)>> {
        let model = self.model.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let model = model.filter(|model| model.0.model.hash == *hash);
        model.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "this model is not served here"))
    }
}

impl ChunkSource for Chunks {
    fn hashes(&self, model: &Hash) -> io::Result<Vec<Hash>> {
        Ok(self.get(model)?.0.chunks.clone())
    }

    fn chunk(&self, model: &Hash, index: u32) -> io::Result<Vec<u8>> {
        let served = self.get(model)?;
        let (manifest, bytes) = &*served;
        let chunk_bytes = u64::from(manifest.model.chunk_bytes);
        let start = u64::from(index) * chunk_bytes;
        let left = manifest.model.file_bytes.0.checked_sub(start).filter(|&left| left > 0);
        let left =
            left.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the model has no such chunk"))?;
        bytes.read(start, left.min(chunk_bytes) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_those_of_the_manifest() {
        let model = Model::embedded().unwrap();
        let chunks = Chunks::default();
        let hash = model.manifest.model.hash;
        assert!(chunks.hashes(&hash).is_err(), "nothing is served yet");
        chunks.set(&model);
        let hashes = chunks.hashes(&hash).unwrap();
        for (index, want) in hashes.iter().enumerate() {
            let chunk = chunks.chunk(&hash, index as u32).unwrap();
            assert_eq!(blake3::hash(&chunk).as_bytes(), want);
        }
        assert!(chunks.chunk(&hash, hashes.len() as u32).is_err());
        assert!(chunks.chunk(&[0; 32], 0).is_err());
    }
}
