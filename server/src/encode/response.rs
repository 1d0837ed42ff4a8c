//! A snapshot or conflated diff: encoded chunk by chunk as its readers ask for it, each chunk once
//! for all who read the same.
//!
//! A [`SyncResponse`] holds an immutable snapshot and the place at which each chunk starts in it, so
//! that a chunk which was dropped can be made again. The [`ChunkCache`] bounds how many are kept, and
//! [`PinnedStates`](super::PinnedStates) for how long the snapshot is held while the state changes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use driftless_proto::apply::Edit;
use driftless_proto::digest::Digest;
use driftless_proto::{Key, KeyRange, Revision, v1};
use parking_lot::Mutex;

use super::chunk_cache::ChunkCache;
use super::fields::{change_field, entry_field};
use super::frame::{Frame, SEGMENT, Segments};
use super::message::message;
use super::pinned::{Pin, PinnedOfPrefix};
use crate::metrics::Metrics;
use crate::store::{Changed, Position, Snapshot};

/// A chunk is closed before it has more bytes than this. One chunk a stream is in flight, so it is as
/// large as a segment.
const CHUNK: usize = SEGMENT;

/// How many entries one call scans for a chunk, so that a sparse range in a large prefix does not
/// block the thread: some 0.2 ms.
pub(super) const SCAN: usize = 4096;

/// The kind of a sync response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncKind {
    /// The whole state.
    Snapshot {
        /// See `Snapshot.reset` in the contract: it may lower the client's revision.
        reset: bool,
    },
    /// What changed since a revision, in one diff.
    Diff {
        /// The client's revision.
        since: Revision,
    },
}

/// Where a chunk starts.
#[derive(Clone, Debug)]
struct Start {
    after: After,
    /// How many fields of the first entry were in the chunk before.
    piece: usize,
}

#[derive(Clone, Debug)]
enum After {
    /// For a snapshot, in the order of keys.
    Key(Option<Key>),
    /// For a diff, in the order of changes.
    Change(Position),
}

/// The fields of one chunk.
struct Scanned {
    fields: Vec<Frame>,
    /// Where the next chunk starts; `None` if this is the last.
    next: Option<Start>,
}

/// A chunk that was encoded.
#[derive(Debug)]
struct Made {
    start: Start,
    frame: Cached,
}

#[derive(Debug)]
enum Cached {
    /// Counted by the cache.
    Kept(Arc<Frame>),
    /// There was no room: it lives as long as a reader holds it.
    Borrowed(Weak<Frame>),
}

#[derive(Debug)]
struct Chunks {
    /// `None` once it was taken away.
    root: Option<Snapshot>,
    made: Vec<Made>,
    /// Where the next one starts; `None` once the last was made.
    next: Option<Start>,
    /// Bytes that the cache keeps.
    cached: usize,
}

/// A snapshot or conflated diff of one range, for any number of readers.
#[derive(Debug)]
pub struct SyncResponse {
    revision: Revision,
    range: KeyRange,
    kind: SyncKind,
    digest: Digest,
    contact_ms: u64,
    cache: Arc<ChunkCache>,
    chunks: Mutex<Chunks>,
    pin: OnceLock<Pin>,
    revoked: AtomicBool,
}

/// The result of [`SyncReader::next`].
#[derive(Debug)]
pub enum Chunk {
    /// The next message.
    Ready(Arc<Frame>),
    /// None yet: all entries scanned were outside the range. Yield, then call again.
    Scanning,
    /// There are no more.
    Done,
    /// The state was taken away, because what it cost was needed: the reader has to begin anew.
    Revoked,
}

impl SyncResponse {
    /// A response for `range` in `root`, whose digest over the range is `digest`. It pins the root.
    pub fn new(
        root: Snapshot,
        range: KeyRange,
        kind: SyncKind,
        digest: Digest,
        contact_ms: u64,
        cache: Arc<ChunkCache>,
        pinned: &PinnedOfPrefix,
    ) -> Arc<Self> {
        let after = match kind {
            SyncKind::Diff { since } => After::Change(Position::after(since)),
            SyncKind::Snapshot { .. } => After::Key(None),
        };
        let revision = root.revision();
        let response = Arc::new(Self {
            revision,
            range,
            kind,
            digest,
            contact_ms,
            cache,
            chunks: Mutex::new(Chunks {
                root: Some(root.clone()),
                made: Vec::new(),
                next: Some(Start { after, piece: 0 }),
                cached: 0,
            }),
            pin: OnceLock::new(),
            revoked: AtomicBool::new(false),
        });
        let pin = pinned.pin(&root, Arc::downgrade(&response));
        let _ = response.pin.set(pin);
        response
    }

    /// Takes the state and all chunks away from its readers.
    pub(super) fn revoke(&self) {
        self.revoked.store(true, Ordering::Relaxed);
        let mut chunks = self.chunks.lock();
        let root = chunks.root.take();
        let made = std::mem::take(&mut chunks.made);
        self.cache.release(std::mem::take(&mut chunks.cached));
        drop(chunks);
        drop((root, made));
    }

    /// Whether the state was taken away.
    pub fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Relaxed)
    }

    /// The revision of a reader that has read everything.
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// The kind of the response.
    pub const fn kind(&self) -> SyncKind {
        self.kind
    }

    /// The chunk with this number, encoded by the first reader that needs it. Others wait meanwhile,
    /// for a time that `CHUNK` and `SCAN` bound.
    fn chunk(&self, number: usize, metrics: &Metrics) -> Chunk {
        let mut chunks = self.chunks.lock();
        let chunks = &mut *chunks;
        let Some(root) = &chunks.root else {
            return Chunk::Revoked;
        };
        if let Some(made) = chunks.made.get_mut(number) {
            if let Some(frame) = made.frame() {
                return Chunk::Ready(frame);
            }
            let scanned = self.scan(root, &made.start);
            let frame = Arc::new(self.encode(root, &scanned, metrics));
            made.frame = Cached::Borrowed(Arc::downgrade(&frame));
            return Chunk::Ready(frame);
        }
        let Some(start) = chunks.next.take() else {
            return Chunk::Done;
        };
        let scanned = self.scan(root, &start);
        if scanned.fields.is_empty() && scanned.next.is_some() {
            chunks.next = scanned.next;
            return Chunk::Scanning;
        }
        let frame = Arc::new(self.encode(root, &scanned, metrics));
        let cached = if self.cache.reserve(frame.len()) {
            chunks.cached += frame.len();
            Cached::Kept(Arc::clone(&frame))
        } else {
            Cached::Borrowed(Arc::downgrade(&frame))
        };
        chunks.made.push(Made {
            start,
            frame: cached,
        });
        chunks.next = scanned.next;
        Chunk::Ready(frame)
    }

    /// The fields of the chunk that starts there. Depends on the root only, so that a chunk made
    /// again is the same.
    fn scan(&self, root: &Snapshot, start: &Start) -> Scanned {
        match &start.after {
            After::Key(after) => {
                let entries = root.entries(&self.range, after.as_ref());
                let items = entries.map(|stored| {
                    let at = After::Key(Some(stored.entry.key.clone()));
                    (at, entry_field(2, None, &stored.entry).0)
                });
                collect(start, items)
            }
            After::Change(after) => {
                let items = root.changed(after).map(|(at, revision, key, changed)| {
                    let fields = if self.range.contains(key) {
                        changed_fields(revision, key, changed)
                    } else {
                        Vec::new()
                    };
                    (After::Change(at.clone()), fields)
                });
                collect(start, items)
            }
        }
    }

    fn encode(&self, root: &Snapshot, scanned: &Scanned, metrics: &Metrics) -> Frame {
        metrics.chunks_encoded.inc();
        let fields: Vec<&Frame> = scanned.fields.iter().collect();
        let last = scanned.next.is_none();
        let only_last = |bytes: Bytes| if last { bytes } else { Bytes::new() };
        let digest = only_last(self.digest.to_bytes());
        let contact_ms = if last { self.contact_ms } else { 0 };
        let to = self.revision.get();
        let mut out = Segments::default();
        match self.kind {
            SyncKind::Snapshot { reset } => {
                let header = v1::Snapshot {
                    revision: to,
                    entries: Vec::new(),
                    more: !last,
                    digest,
                    reset,
                    epoch: only_last(root.epoch().as_bytes().clone()),
                    contact_ms,
                };
                message(&mut out, 2, &header, &fields);
            }
            SyncKind::Diff { since } => {
                let header = v1::Diff {
                    from: since.get(),
                    to,
                    changes: Vec::new(),
                    more: !last,
                    digest,
                    conflated: true,
                    contact_ms,
                };
                message(&mut out, 3, &header, &fields);
            }
        }
        out.finish_messages()
    }
}

impl Drop for SyncResponse {
    fn drop(&mut self) {
        self.cache.release(self.chunks.get_mut().cached);
    }
}

impl Made {
    fn frame(&self) -> Option<Arc<Frame>> {
        match &self.frame {
            Cached::Kept(frame) => Some(Arc::clone(frame)),
            Cached::Borrowed(frame) => frame.upgrade(),
        }
    }
}

/// Collects fields for one chunk. `items` are the items after `start.after`, each with its place and
/// its fields.
fn collect(start: &Start, items: impl Iterator<Item = (After, Vec<Frame>)>) -> Scanned {
    let mut scanned = Scanned {
        fields: Vec::new(),
        next: None,
    };
    let mut len = 0;
    let mut here = start.clone();
    for (index, (at, fields)) in items.enumerate() {
        if index == SCAN {
            scanned.next = Some(here);
            break;
        }
        let sent = std::mem::take(&mut here.piece);
        for (piece, field) in fields.into_iter().enumerate().skip(sent) {
            if len > 0 && len + field.len() > CHUNK {
                here.piece = piece;
                scanned.next = Some(here);
                return scanned;
            }
            len += field.len();
            scanned.fields.push(field);
        }
        here.after = at;
    }
    scanned
}

fn changed_fields(revision: Revision, key: &Bytes, changed: &Changed) -> Vec<Frame> {
    let edit = match changed {
        Changed::Live(stored) => Edit::Put(stored.entry.clone()),
        Changed::Gone => match Key::new(key.clone()) {
            Some(key) => Edit::Delete {
                key,
                mod_revision: revision,
            },
            None => return Vec::new(),
        },
    };
    change_field(&edit).0
}

/// One stream's place in a sync response.
#[derive(Debug)]
pub struct SyncReader {
    response: Arc<SyncResponse>,
    next: usize,
}

impl SyncReader {
    /// Reads the response from its beginning.
    pub const fn new(response: Arc<SyncResponse>) -> Self {
        Self { response, next: 0 }
    }

    /// The revision of a reader that has read everything.
    pub fn revision(&self) -> Revision {
        self.response.revision()
    }

    /// The next chunk.
    pub fn next(&mut self, metrics: &Metrics) -> Chunk {
        let chunk = self.response.chunk(self.next, metrics);
        if let Chunk::Ready(_) = chunk {
            self.next += 1;
        }
        chunk
    }
}
