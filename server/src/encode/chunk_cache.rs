//! A budget for the encoded chunks that are kept for later readers.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How many bytes of chunks are kept for later readers, by all sync responses of a prefix together.
/// A chunk that does not fit is dropped with the last reader that holds it.
#[derive(Debug)]
pub struct ChunkCache {
    room: AtomicUsize,
    /// Whether nothing more is kept.
    closed: AtomicBool,
}

impl ChunkCache {
    /// A cache for at most `room` bytes.
    pub const fn new(room: usize) -> Self {
        Self {
            room: AtomicUsize::new(room),
            closed: AtomicBool::new(false),
        }
    }

    /// Keeps nothing more from now on, or does so again. What is kept stays, until its response is
    /// dropped.
    pub fn set_closed(&self, closed: bool) {
        self.closed.store(closed, Ordering::Relaxed);
    }

    /// Takes room for `len` bytes. False if there is not enough, or nothing more is kept.
    pub(super) fn reserve(&self, len: usize) -> bool {
        if self.closed.load(Ordering::Relaxed) {
            return false;
        }
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
