//! A snapshot or conflated diff: encoded chunk by chunk as its readers come for it, each chunk once
//! for all who read the same.
//!
//! An [`Answer`] holds an immutable root and where each chunk starts in it, so a chunk that has been
//! let go of can be made again. Which are kept is bounded by a [`Shelf`].

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use driftless_proto::apply::Edit;
use driftless_proto::digest::Digest;
use driftless_proto::{Key, KeyRange, Revision, v1};

use super::{Frame, SEGMENT, Segments, change_field, entry_field, message};
use crate::metrics::Metrics;
use crate::store::{Changed, Position, Snapshot};

/// A chunk is closed before it has more bytes than this: as much as one segment, since one chunk per
/// stream is in flight.
const CHUNK: usize = SEGMENT;

/// How many entries one call looks at for a chunk, so that a sparse range in a large prefix does not
/// hold up the thread: some 0.2 ms.
pub(super) const SCAN: usize = 4096;

/// What an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The whole state; `reset` lets it lower the client's revision.
    Snapshot {
        /// See `Snapshot.reset` in the contract.
        reset: bool,
    },
    /// What changed since this revision, in one diff.
    Diff {
        /// What the client has.
        since: Revision,
    },
}

/// How many bytes of chunks are kept for readers that are yet to come, all answers of a prefix
/// together. What does not fit goes with the last reader that has it in hand.
#[derive(Debug)]
pub struct Shelf {
    room: AtomicUsize,
}

impl Shelf {
    /// With room for so many bytes.
    pub const fn new(room: usize) -> Self {
        Self {
            room: AtomicUsize::new(room),
        }
    }

    fn take(&self, len: usize) -> bool {
        self.room
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| {
                room.checked_sub(len)
            })
            .is_ok()
    }

    fn give_back(&self, len: usize) {
        self.room.fetch_add(len, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn room(&self) -> usize {
        self.room.load(Ordering::Relaxed)
    }
}

/// Where a chunk starts.
#[derive(Clone, Debug)]
struct Start {
    after: After,
    /// How many pieces of the first entry were in the chunk before.
    piece: usize,
}

#[derive(Clone, Debug)]
enum After {
    /// In the order of keys, of a snapshot.
    Key(Option<Key>),
    /// In the order of changes, of a diff.
    Change(Position),
}

/// The fields of one chunk, and where the next one starts: `None` when this is the last.
struct Scanned {
    fields: Vec<Frame>,
    next: Option<Start>,
}

/// A chunk that was made.
#[derive(Debug)]
struct Made {
    start: Start,
    frame: Kept,
}

#[derive(Debug)]
enum Kept {
    /// On the shelf.
    Here(Arc<Frame>),
    /// Wherever a reader has it in hand.
    There(Weak<Frame>),
}

#[derive(Debug)]
struct Chunks {
    made: Vec<Made>,
    /// Where the next one starts; `None` once the last was made.
    next: Option<Start>,
    /// Bytes on the shelf.
    shelved: usize,
}

/// A snapshot or conflated diff of one range, for any number of readers.
#[derive(Debug)]
pub struct Answer {
    root: Snapshot,
    range: KeyRange,
    kind: Kind,
    digest: Digest,
    contact_ms: u64,
    shelf: Arc<Shelf>,
    chunks: Mutex<Chunks>,
}

/// What [`Reader::next`] came to.
#[derive(Debug)]
pub enum Chunk {
    /// The next message.
    Ready(Arc<Frame>),
    /// Nothing yet, after a stretch of entries outside the range: call again, after others had a
    /// turn.
    Scanning,
    /// That was all.
    Done,
}

impl Answer {
    /// Of `range` in `root`, whose digest over the range is `digest`.
    pub fn new(
        root: Snapshot,
        range: KeyRange,
        kind: Kind,
        digest: Digest,
        contact_ms: u64,
        shelf: Arc<Shelf>,
    ) -> Self {
        let after = match kind {
            Kind::Diff { since } => After::Change(Position::after(since)),
            Kind::Snapshot { .. } => After::Key(None),
        };
        let chunks = Chunks {
            made: Vec::new(),
            next: Some(Start { after, piece: 0 }),
            shelved: 0,
        };
        Self {
            root,
            range,
            kind,
            digest,
            contact_ms,
            shelf,
            chunks: Mutex::new(chunks),
        }
    }

    /// The revision that a reader is at when it has taken everything.
    pub const fn revision(&self) -> Revision {
        self.root.revision()
    }

    /// What it is.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    fn lock(&self) -> MutexGuard<'_, Chunks> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The chunk with this number, made by whoever comes first. Who comes second waits for as long
    /// as that takes, which `CHUNK` and `SCAN` bound.
    fn chunk(&self, number: usize, metrics: &Metrics) -> Chunk {
        let mut chunks = self.lock();
        if let Some(made) = chunks.made.get_mut(number) {
            if let Some(frame) = made.frame() {
                return Chunk::Ready(frame);
            }
            let scanned = self.scan(&made.start);
            let frame = Arc::new(self.encode(&scanned, metrics));
            made.frame = Kept::There(Arc::downgrade(&frame));
            return Chunk::Ready(frame);
        }
        let Some(start) = chunks.next.take() else {
            return Chunk::Done;
        };
        let scanned = self.scan(&start);
        if scanned.fields.is_empty() && scanned.next.is_some() {
            chunks.next = scanned.next;
            return Chunk::Scanning;
        }
        let frame = Arc::new(self.encode(&scanned, metrics));
        let kept = if self.shelf.take(frame.len()) {
            chunks.shelved += frame.len();
            Kept::Here(Arc::clone(&frame))
        } else {
            Kept::There(Arc::downgrade(&frame))
        };
        chunks.made.push(Made { start, frame: kept });
        chunks.next = scanned.next;
        Chunk::Ready(frame)
    }

    /// What goes into the chunk that starts there: a function of the root, so that it comes out the
    /// same again.
    fn scan(&self, start: &Start) -> Scanned {
        match &start.after {
            After::Key(after) => {
                let entries = self.root.entries(&self.range, after.as_ref());
                let items = entries.map(|stored| {
                    let at = After::Key(Some(stored.entry.key.clone()));
                    (at, entry_field(2, None, &stored.entry).0)
                });
                collect(start, items)
            }
            After::Change(after) => {
                let items = self
                    .root
                    .changed(after)
                    .map(|(at, revision, key, changed)| {
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

    fn encode(&self, scanned: &Scanned, metrics: &Metrics) -> Frame {
        metrics.chunks_encoded.inc();
        let fields: Vec<&Frame> = scanned.fields.iter().collect();
        let last = scanned.next.is_none();
        let only_last = |bytes: Bytes| if last { bytes } else { Bytes::new() };
        let digest = only_last(self.digest.to_bytes());
        let to = self.root.revision().get();
        let mut out = Segments::default();
        match self.kind {
            Kind::Snapshot { reset } => {
                let head = v1::Snapshot {
                    revision: to,
                    entries: Vec::new(),
                    more: !last,
                    digest,
                    reset,
                    epoch: only_last(self.root.epoch().as_bytes().clone()),
                };
                message(&mut out, 2, &head, &fields);
            }
            Kind::Diff { since } => {
                let head = v1::Diff {
                    from: since.get(),
                    to,
                    changes: Vec::new(),
                    more: !last,
                    digest,
                    conflated: true,
                    contact_ms: if last { self.contact_ms } else { 0 },
                };
                message(&mut out, 3, &head, &fields);
            }
        }
        out.finish_messages()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let chunks = self.chunks.get_mut();
        let chunks = chunks.unwrap_or_else(PoisonError::into_inner);
        self.shelf.give_back(chunks.shelved);
    }
}

impl Made {
    fn frame(&self) -> Option<Arc<Frame>> {
        match &self.frame {
            Kept::Here(frame) => Some(Arc::clone(frame)),
            Kept::There(frame) => frame.upgrade(),
        }
    }
}

/// As many of the items' fields as go into one chunk. `items` are those after `start.after`, each
/// with its place and its fields.
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

/// One stream's way through an answer.
#[derive(Debug)]
pub struct Reader {
    answer: Arc<Answer>,
    next: usize,
}

impl Reader {
    /// From its beginning.
    pub const fn new(answer: Arc<Answer>) -> Self {
        Self { answer, next: 0 }
    }

    /// The revision that the reader is at when it has taken everything.
    pub fn revision(&self) -> Revision {
        self.answer.revision()
    }

    /// The next chunk.
    pub fn next(&mut self, metrics: &Metrics) -> Chunk {
        let chunk = self.answer.chunk(self.next, metrics);
        if let Chunk::Ready(_) = chunk {
            self.next += 1;
        }
        chunk
    }
}
