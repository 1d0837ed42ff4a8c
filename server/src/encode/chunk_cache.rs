//! A budget for the encoded chunks that are kept for later readers.

use std::sync::atomic::{AtomicUsize, Ordering};

/// How many bytes of chunks are kept for later readers, by all sync responses of a prefix together.
/// A chunk that does not fit is dropped with the last reader that holds it.
#[derive(Debug)]
pub struct ChunkCache {
    room: AtomicUsize,
}

impl ChunkCache {
    /// A cache for at most `room` bytes.
    pub const fn new(room: usize) -> Self {
        Self {
            room: AtomicUsize::new(room),
        }
    }

    /// Takes room for `len` bytes. False if there is not enough.
    pub(super) fn reserve(&self, len: usize) -> bool {
        self.room
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| {
                room.checked_sub(len)
            })
            .is_ok()
    }

    /// Returns room that was taken.
    pub(super) fn release(&self, len: usize) {
        self.room.fetch_add(len, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn room(&self) -> usize {
        self.room.load(Ordering::Relaxed)
    }
}
