//! Buffers that are used again: the data plane allocates in its first steps only.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers kept: a few for each of the exchanges under way.
const KEPT: usize = 64;

/// Bytes of all buffers kept; what is beyond goes back to the system.
const KEPT_BYTES: usize = 64 << 20;

#[derive(Debug, Default)]
pub(super) struct Pool {
    kept: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    /// An empty buffer, with room for `capacity` if one such is kept.
    pub(super) fn get(self: &Arc<Self>, capacity: usize) -> Buffer {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let fit = kept.iter().position(|bytes| bytes.capacity() >= capacity);
        let mut bytes = fit.map(|at| kept.remove(at)).unwrap_or_default();
        drop(kept);
        bytes.reserve(capacity);
        Buffer { bytes, pool: self.clone() }
    }

    fn put(&self, mut bytes: Vec<u8>) {
        bytes.clear();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = kept.iter().map(Vec::capacity).sum();
        if bytes.capacity() > 0 && kept.len() < KEPT && all + bytes.capacity() <= KEPT_BYTES {
            // Small ones first, so that a small request does not take a large buffer.
            let at = kept.partition_point(|other| other.capacity() <= bytes.capacity());
            kept.insert(at, bytes);
        }
    }
}

/// A buffer that goes back to its pool.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.put(std::mem::take(&mut self.bytes));
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.bytes.len())
    }
}
