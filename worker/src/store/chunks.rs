//! The list of a model's chunk hashes, checked against what names the model.

use std::ops::Range;

use shoal_core::message::{Hash, ModelRef};

/// Chunk sizes a manifest may use (design 14).
pub(super) const CHUNK_SIZES: [u32; 2] = [64 << 10, 1 << 20];

/// Largest model file: 64 TiB, far above any model; it bounds the list to 2 GiB before anything is read.
pub(super) const MODEL_BYTES: u64 = 1 << 46;

/// A chunk list that does not fit its model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkListError {
    #[error("a model of {bytes} bytes in chunks of {chunk} bytes is not possible")]
    Size { bytes: u64, chunk: u32 },
    #[error("it has {got} bytes; {want} belong to a file of this size")]
    Length { got: usize, want: u64 },
    #[error("its hash is not the one that names the model")]
    Hash,
    #[error("bytes {start}..{end} are outside the file")]
    Range { start: u64, end: u64 },
}

/// The hashes of a model's chunks, as many as the file has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkList {
    hashes: Vec<Hash>,
    chunk_bytes: u64,
    file_bytes: u64,
}

/// Chunks of the model's file, once its sizes are known to be possible.
///
/// # Errors
/// [`ChunkListError::Size`].
pub(super) fn chunk_count(model: &ModelRef) -> Result<u32, ChunkListError> {
    let (bytes, chunk) = (model.file_bytes.0, model.chunk_bytes);
    let error = ChunkListError::Size { bytes, chunk };
    if !CHUNK_SIZES.contains(&chunk) || bytes == 0 || bytes > MODEL_BYTES {
        return Err(error);
    }
    u32::try_from(bytes.div_ceil(u64::from(chunk))).map_err(|_| error)
}

impl ChunkList {
    /// Reads concatenated hashes.
    ///
    /// # Errors
    /// See [`ChunkListError`].
    pub fn parse(model: &ModelRef, bytes: &[u8]) -> Result<Self, ChunkListError> {
        let want = u64::from(chunk_count(model)?) * 32;
        if bytes.len() as u64 != want {
            return Err(ChunkListError::Length { got: bytes.len(), want });
        }
        if *blake3::hash(bytes).as_bytes() != model.chunks_hash {
            return Err(ChunkListError::Hash);
        }
        let (hashes, _) = bytes.as_chunks::<32>();
        let chunk_bytes = u64::from(model.chunk_bytes);
        Ok(Self { hashes: hashes.to_vec(), chunk_bytes, file_bytes: model.file_bytes.0 })
    }

    /// Number of chunks.
    pub fn count(&self) -> u32 {
        self.hashes.len() as u32
    }

    /// Bytes of the file that chunk `index` is; empty beyond the last.
    pub fn range(&self, index: u32) -> Range<u64> {
        let start = (u64::from(index) * self.chunk_bytes).min(self.file_bytes);
        start..(start + self.chunk_bytes).min(self.file_bytes)
    }

    /// Bytes of chunk `index`.
    pub fn len(&self, index: u32) -> u64 {
        let range = self.range(index);
        range.end - range.start
    }

    /// Whether these bytes are chunk `index`.
    pub fn verify(&self, index: u32, bytes: &[u8]) -> bool {
        let hash = self.hashes.get(index as usize);
        hash.is_some_and(|hash| blake3::hash(bytes).as_bytes() == hash)
    }

    /// The chunk that holds the file's byte `offset`.
    pub fn at(&self, offset: u64) -> u32 {
        (offset / self.chunk_bytes) as u32
    }

    /// The chunks that these ranges touch, each once, in the ranges' order.
    ///
    /// # Errors
    /// A range that is not inside the file.
    pub fn needed(&self, ranges: &[Range<u64>]) -> Result<Vec<u32>, ChunkListError> {
        let mut seen = vec![false; self.hashes.len()];
        let mut out = Vec::new();
        for range in ranges {
            if range.end > self.file_bytes || range.start > range.end {
                return Err(ChunkListError::Range { start: range.start, end: range.end });
            }
            if range.is_empty() {
                continue;
            }
            for index in self.at(range.start)..=self.at(range.end - 1) {
                if !std::mem::replace(&mut seen[index as usize], true) {
                    out.push(index);
                }
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use shoal_core::units::Bytes;

    /// A file of pseudo-random bytes with its reference and list, in chunks of 64 KiB.
    pub(crate) fn model(bytes: usize, seed: u8) -> (Vec<u8>, ModelRef, Vec<u8>) {
        let mut file = vec![0; bytes];
        blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut file);
        let list: Vec<u8> = file.chunks(64 << 10).flat_map(|c| *blake3::hash(c).as_bytes()).collect();
        let model = ModelRef {
            hash: *blake3::hash(&file).as_bytes(),
            chunks_hash: *blake3::hash(&list).as_bytes(),
            file_bytes: Bytes(bytes as u64),
            chunk_bytes: 64 << 10,
            file_name: format!("model-{seed}.gguf"),
        };
        (file, model, list)
    }

    #[test]
    fn a_list_must_be_the_models() {
        let (file, model, list) = model(150_000, 1);
        let chunks = ChunkList::parse(&model, &list).expect("list");
        assert_eq!((chunks.count(), chunks.len(2)), (3, 150_000 - (128 << 10)));
        assert!(
            chunks.verify(1, &file[64 << 10..128 << 10]) && !chunks.verify(0, &file[64 << 10..128 << 10])
        );
        assert_eq!(ChunkList::parse(&model, &list[..64]), Err(ChunkListError::Length { got: 64, want: 96 }));
        let mut wrong = list.clone();
        wrong[40] ^= 1;
        assert_eq!(ChunkList::parse(&model, &wrong), Err(ChunkListError::Hash));
        for chunk_bytes in [0, 1, u32::MAX] {
            let model = ModelRef { chunk_bytes, ..model.clone() };
            assert!(matches!(ChunkList::parse(&model, &list), Err(ChunkListError::Size { .. })));
        }
    }

    #[test]
    fn only_touched_chunks_are_needed() {
        let (_, model, list) = model(1 << 20, 2);
        let chunks = ChunkList::parse(&model, &list).expect("list");
        let needed = chunks.needed(&[200_000..200_001, 0..65_537, 5..5, 1..2]).expect("inside");
        assert_eq!(needed, [3, 0, 1]);
        assert!(chunks.needed(&[0..1, 5..(1 << 20) + 1]).is_err());
    }
}
