//! The rule of application: what a frame does to the state that a client holds, or why it is
//! rejected.
//!
//! [`Applier`] joins chunks, decides, and checks the digest *before* anything is published. It keeps
//! no entries once a frame is complete: the caller keeps them, and lends them through [`Lookup`]. So
//! it is pure and works over any map. A client in another language has to reimplement only this.

use std::collections::BTreeMap;

use bytes::BytesMut;

use crate::delta::{self, DeltaError};
use crate::digest::Digest;
use crate::{Entry, Epoch, Key, KeyRange, MAX_VALUE_BYTES, Revision, v1};

/// The entries that the caller holds.
pub trait Lookup {
    /// The entry held under `key`.
    fn entry(&self, key: &Key) -> Option<&Entry>;
}

impl Lookup for BTreeMap<Key, Entry> {
    fn entry(&self, key: &Key) -> Option<&Entry> {
        self.get(key)
    }
}

/// One key's change, ready to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// The key now has this entry.
    Put(Entry),
    /// The key was deleted.
    Delete {
        /// The key, which the caller may not have.
        key: Key,
        /// The revision of the deletion.
        mod_revision: Revision,
    },
}

impl Edit {
    /// The key that changes.
    pub const fn key(&self) -> &Key {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key, .. } => key,
        }
    }
}

/// What the caller must do after a frame, completely and at once.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "the applier has moved to the new revision: a caller that skips the edits has drifted"]
pub enum Action {
    /// Nothing yet: more chunks follow.
    Incomplete,
    /// Nothing: the caller has this already.
    Skipped,
    /// No edits: the digest proves that the state is the same at this revision.
    Confirm {
        /// The revision that the caller is at now.
        revision: Revision,
    },
    /// Replace everything that is held with these entries, in ascending order of keys.
    Replace {
        /// The revision that the caller is at now.
        revision: Revision,
        /// The whole state.
        entries: Vec<Entry>,
        /// The history went back or was replaced: the revision may be lower than it was.
        reset: bool,
    },
    /// Apply these edits, in ascending order of keys, all at once.
    Edit {
        /// The revision that the caller is at now.
        revision: Revision,
        /// Each key at most once.
        edits: Vec<Edit>,
        /// The edits of several transactions, joined.
        conflated: bool,
    },
}

/// Why a frame was not applied. The held state is unchanged and still valid.
///
/// In every case the caller must end the stream. [`ApplyError::keeps_state`] says whether the next
/// stream may resume from the held state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// A diff starts after the held revision: a change in between is missing.
    #[error("a diff starts at revision {from}, but the client is at {held}: a change is missing")]
    Gap {
        /// Where the diff starts.
        from: Revision,
        /// The held revision.
        held: Revision,
    },
    /// The digests differ: client and server do not hold the same state.
    #[error("the digest at revision {at} differs from the server's")]
    Diverged {
        /// The revision of the frame.
        at: Revision,
    },
    /// A snapshot is older than the held state and is not a reset.
    #[error("a snapshot at revision {to} is older than the client's {held} and is not a reset")]
    WentBack {
        /// The snapshot's revision.
        to: Revision,
        /// The held revision.
        held: Revision,
    },
    /// The frame builds on a state that the client does not have.
    #[error("a {frame} came before any snapshot of this history")]
    NothingHeld {
        /// What kind of frame.
        frame: &'static str,
    },
    /// A key outside the requested range.
    #[error("key {key} is outside the requested range")]
    Foreign {
        /// The key.
        key: Key,
    },
    /// A patch refers to a value that the client does not have.
    #[error("a patch of {key} refers to revision {base}, which the client does not have")]
    PatchBase {
        /// The key.
        key: Key,
        /// The revision that the patch refers to.
        base: Revision,
    },
    /// A patch cannot be applied.
    #[error("a patch of {key} cannot be applied: {source}")]
    Patch {
        /// The key.
        key: Key,
        /// Why.
        source: DeltaError,
    },
    /// More than the caller allows.
    #[error("the range is larger than the limit of {limit} bytes")]
    TooLarge {
        /// The limit that the caller set, in bytes of keys and values.
        limit: usize,
    },
    /// The frame breaks the contract of `config.proto`.
    #[error("the server broke the contract: {what}")]
    Malformed {
        /// How.
        what: &'static str,
    },
}

impl ApplyError {
    /// Whether the next stream may resume from the held state. If not, it must start without one, to
    /// get a snapshot.
    pub const fn keeps_state(&self) -> bool {
        matches!(self, Self::Gap { .. } | Self::TooLarge { .. })
    }
}

/// What an entry costs besides its key and value, in bytes, so that the limit holds for very many
/// tiny entries too. A generous estimate of a map node.
const ENTRY_OVERHEAD: usize = 128;

/// Applies the frames of one stream after the other to the state that the caller holds.
#[derive(Debug)]
pub struct Applier {
    range: KeyRange,
    limit: usize,
    /// What is held. `None` before the first snapshot.
    held: Option<Held>,
    /// The epoch of the current stream.
    stream: Option<Epoch>,
    partial: Option<Partial>,
}

#[derive(Clone, Debug)]
struct Held {
    epoch: Epoch,
    revision: Revision,
    digest: Digest,
    /// What the entries cost together.
    bytes: usize,
}

/// The chunks so far of a frame that is not complete.
#[derive(Debug)]
enum Partial {
    Snapshot(Staged<v1::Snapshot>),
    Diff(Staged<v1::Diff>),
}

/// The head of the first chunk, and the content of the chunks so far.
#[derive(Debug)]
struct Staged<H> {
    head: H,
    edits: BTreeMap<Key, Edit>,
    piece: Option<Piece>,
    /// What the entries cost, at most the limit of a state.
    put: usize,
    /// What the deletions cost, at most the same limit. Counted apart, because a diff may delete all
    /// of one state and put another.
    deleted: usize,
}

/// A value that has arrived in part.
#[derive(Debug)]
struct Piece {
    first: v1::Entry,
    value: Hidden,
}

/// Part of a value, which `Debug` must not show.
struct Hidden(BytesMut);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

impl Applier {
    /// An applier for `range`, with no state yet. `limit` is the most that one state may hold, in
    /// bytes of keys and values. A frame that exceeds it is rejected before it is kept.
    pub const fn new(range: KeyRange, limit: usize) -> Self {
        Self {
            range,
            limit,
            held: None,
            stream: None,
            partial: None,
        }
    }

    /// Starts from a state that was held before, for example one read from disk. The entries must be
    /// those that the caller will lend.
    pub fn resume<'a>(
        &mut self,
        epoch: Epoch,
        revision: Revision,
        entries: impl IntoIterator<Item = &'a Entry>,
    ) {
        let mut held = Held {
            epoch,
            revision,
            digest: Digest::EMPTY,
            bytes: 0,
        };
        for entry in entries {
            held.digest += Digest::of(entry);
            held.bytes = held.bytes.saturating_add(cost(entry));
        }
        self.held = Some(held);
    }

    /// The held revision, or [`Revision::NONE`] without a state.
    pub fn revision(&self) -> Revision {
        self.held
            .as_ref()
            .map_or(Revision::NONE, |held| held.revision)
    }

    /// The digest of the held state.
    pub fn digest(&self) -> Digest {
        self.held.as_ref().map_or(Digest::EMPTY, |held| held.digest)
    }

    /// What the client tells a server that it has. `None` without a state.
    pub fn have(&self, token: bytes::Bytes) -> Option<v1::Have> {
        self.held.as_ref().map(|held| v1::Have {
            epoch: held.epoch.as_bytes().clone(),
            revision: held.revision.get(),
            digest: held.digest.to_bytes(),
            token,
        })
    }

    /// Begins a new stream, in this epoch. Drops the incomplete frame of the last one.
    pub fn begin(&mut self, epoch: Epoch) {
        self.partial = None;
        self.stream = Some(epoch);
    }

    /// The held state, if the current stream may build on it.
    fn base(&self, frame: &'static str) -> Result<&Held, ApplyError> {
        let held = self
            .held
            .as_ref()
            .filter(|held| self.stream.as_ref() == Some(&held.epoch));
        held.ok_or(ApplyError::NothingHeld { frame })
    }

    /// Rejects a frame that comes between the chunks of another.
    const fn not_within_chunks(&self) -> Result<(), ApplyError> {
        match self.partial {
            None => Ok(()),
            Some(_) => Err(ApplyError::Malformed {
                what: "a frame came between the chunks of another",
            }),
        }
    }

    /// The client's state is the current one.
    ///
    /// # Errors
    /// When the digests differ, or there is no state.
    pub fn current(&mut self, current: &v1::Current) -> Result<Action, ApplyError> {
        self.confirm("current", Revision::new(current.revision), &current.digest)
    }

    /// The range has not changed up to this revision.
    ///
    /// # Errors
    /// When the digests differ, or there is no state.
    pub fn progress(&mut self, progress: &v1::Progress) -> Result<Action, ApplyError> {
        let to = Revision::new(progress.revision);
        // This server is behind the last one. The frame only proves that the stream is alive.
        if to < self.base("progress")?.revision {
            self.not_within_chunks()?;
            return Ok(Action::Skipped);
        }
        self.confirm("progress", to, &progress.digest)
    }

    fn confirm(
        &mut self,
        frame: &'static str,
        to: Revision,
        digest: &[u8],
    ) -> Result<Action, ApplyError> {
        self.not_within_chunks()?;
        let held = self.base(frame)?;
        if wire_digest(digest)? != held.digest {
            return Err(ApplyError::Diverged { at: to });
        }
        let revision = held.revision.max(to);
        let held = Held {
            revision,
            ..held.clone()
        };
        self.held = Some(held);
        Ok(Action::Confirm { revision })
    }

    /// A chunk of a snapshot.
    ///
    /// # Errors
    /// When it breaks the contract, is older than the held state and not a reset, or has the wrong
    /// digest.
    pub fn snapshot(&mut self, mut chunk: v1::Snapshot) -> Result<Action, ApplyError> {
        let entries = std::mem::take(&mut chunk.entries);
        let more = chunk.more;
        let to = Revision::new(chunk.revision);
        let epoch = self.stream.clone().ok_or(ApplyError::Malformed {
            what: "no hello came first",
        })?;
        let digest = chunk.digest.clone();
        let mut staged = match self.partial.take() {
            None => Staged::new(chunk),
            Some(Partial::Snapshot(staged))
                if (staged.head.revision, staged.head.reset) == (chunk.revision, chunk.reset) =>
            {
                staged
            }
            Some(_) => {
                return Err(ApplyError::Malformed {
                    what: "chunks of two frames are mixed",
                });
            }
        };
        if let Some(held) = &self.held
            && held.epoch == epoch
            && to < held.revision
            && !staged.head.reset
        {
            return Err(ApplyError::WentBack {
                to,
                held: held.revision,
            });
        }
        for entry in entries {
            if let Some(entry) = staged.piece(&self.range, self.limit, entry)? {
                let last = staged.edits.last_key_value();
                if last.is_some_and(|(last, _)| *last >= entry.key) {
                    return Err(ApplyError::Malformed {
                        what: "a snapshot's keys are not in order",
                    });
                }
                staged.insert(Edit::Put(entry))?;
            }
        }
        if more {
            self.partial = Some(Partial::Snapshot(staged));
            return Ok(Action::Incomplete);
        }
        let reset = staged.head.reset;
        let entries: Vec<Entry> = staged
            .finish()?
            .filter_map(|edit| match edit {
                Edit::Put(entry) => Some(entry),
                Edit::Delete { .. } => None,
            })
            .collect();
        let made: Digest = entries.iter().collect();
        if made != wire_digest(&digest)? {
            return Err(ApplyError::Diverged { at: to });
        }
        self.held = Some(Held {
            epoch,
            revision: to,
            digest: made,
            bytes: entries.iter().map(cost).sum(),
        });
        Ok(Action::Replace {
            revision: to,
            entries,
            reset,
        })
    }

    /// A chunk of a diff, over the held entries.
    ///
    /// # Errors
    /// When a change before it is missing, it breaks the contract, or has the wrong digest.
    pub fn diff(
        &mut self,
        mut chunk: v1::Diff,
        entries: &impl Lookup,
    ) -> Result<Action, ApplyError> {
        let changes = std::mem::take(&mut chunk.changes);
        let more = chunk.more;
        let (from, to) = (Revision::new(chunk.from), Revision::new(chunk.to));
        let digest = chunk.digest.clone();
        let conflated = chunk.conflated;
        let held = self.base("diff")?.clone();
        let mut staged = match self.partial.take() {
            None => Staged::new(chunk),
            Some(Partial::Diff(staged))
                if (staged.head.from, staged.head.to) == (chunk.from, chunk.to) =>
            {
                staged
            }
            Some(_) => {
                return Err(ApplyError::Malformed {
                    what: "chunks of two frames are mixed",
                });
            }
        };
        if from >= to {
            return Err(ApplyError::Malformed {
                what: "a diff does not move forward",
            });
        }
        if from > held.revision {
            return Err(ApplyError::Gap {
                from,
                held: held.revision,
            });
        }
        // The chunks of a diff that is skipped are counted too, so that the next frame is recognised.
        let skip = to <= held.revision;
        if !skip {
            for change in changes {
                staged.change(&self.range, self.limit, change, entries)?;
            }
        }
        if more {
            self.partial = Some(Partial::Diff(staged));
            return Ok(Action::Incomplete);
        }
        if skip {
            return Ok(Action::Skipped);
        }
        let edits: Vec<Edit> = staged.finish()?.collect();
        let mut made = held.digest;
        let mut bytes = held.bytes;
        for edit in &edits {
            if let Some(old) = entries.entry(edit.key()) {
                made -= Digest::of(old);
                bytes = bytes.saturating_sub(cost(old));
            }
            if let Edit::Put(entry) = edit {
                made += Digest::of(entry);
                bytes = bytes.saturating_add(cost(entry));
            }
        }
        if bytes > self.limit {
            return Err(ApplyError::TooLarge { limit: self.limit });
        }
        if made != wire_digest(&digest)? {
            return Err(ApplyError::Diverged { at: to });
        }
        self.held = Some(Held {
            revision: to,
            digest: made,
            bytes,
            ..held
        });
        Ok(Action::Edit {
            revision: to,
            edits,
            conflated,
        })
    }
}

impl<H> Staged<H> {
    const fn new(head: H) -> Self {
        Self {
            head,
            edits: BTreeMap::new(),
            piece: None,
            put: 0,
            deleted: 0,
        }
    }

    fn change(
        &mut self,
        range: &KeyRange,
        limit: usize,
        change: v1::Change,
        entries: &impl Lookup,
    ) -> Result<(), ApplyError> {
        use v1::change::Change;
        match change.change {
            Some(Change::Put(entry)) => match self.piece(range, limit, entry)? {
                Some(entry) => self.insert(Edit::Put(entry)),
                None => Ok(()),
            },
            Some(Change::Patch(patch)) => {
                self.no_piece()?;
                let key = ranged(range, patch.key)?;
                let base = Revision::new(patch.base_mod_revision);
                let old = entries.entry(&key).filter(|old| old.mod_revision == base);
                let Some(old) = old else {
                    return Err(ApplyError::PatchBase { key, base });
                };
                // Charged before the value is made: a few ops can make a large value. `delta::apply`
                // rejects a length that no value may have.
                let length = patch.length.min(MAX_VALUE_BYTES as u64) as usize;
                charge(&mut self.put, limit, key.as_ref().len() + length)?;
                let value = match delta::apply(&old.value, &patch.ops, patch.length) {
                    Ok(value) => value,
                    Err(source) => return Err(ApplyError::Patch { key, source }),
                };
                self.insert(Edit::Put(Entry {
                    key,
                    value,
                    create_revision: Revision::new(patch.create_revision),
                    mod_revision: Revision::new(patch.mod_revision),
                    version: patch.version,
                }))
            }
            Some(Change::Delete(delete)) => {
                self.no_piece()?;
                let key = ranged(range, delete.key)?;
                charge(&mut self.deleted, limit, key.as_ref().len())?;
                self.insert(Edit::Delete {
                    key,
                    mod_revision: Revision::new(delete.mod_revision),
                })
            }
            None => Err(ApplyError::Malformed {
                what: "a change is of an unknown kind",
            }),
        }
    }

    /// Takes one piece of an entry. Returns the entry when it is complete.
    fn piece(
        &mut self,
        range: &KeyRange,
        limit: usize,
        piece: v1::Entry,
    ) -> Result<Option<Entry>, ApplyError> {
        const BAD_PIECE: ApplyError = ApplyError::Malformed {
            what: "the pieces of a value do not fit together",
        };
        charge(&mut self.put, limit, piece.key.len() + piece.value.len())?;
        if piece.total == 0 {
            self.no_piece()?;
            if piece.offset != 0 {
                return Err(BAD_PIECE);
            }
            return whole(range, piece).map(Some);
        }
        if piece.total > MAX_VALUE_BYTES as u64 {
            return Err(ApplyError::Malformed {
                what: "a value is longer than any may be",
            });
        }
        let mut pending = match self.piece.take() {
            None if piece.offset == 0 => {
                ranged(range, piece.key.clone())?;
                // The buffer grows with the bytes that arrive, not with the length that is claimed.
                Piece {
                    first: v1::Entry {
                        value: Default::default(),
                        ..piece.clone()
                    },
                    value: Hidden(BytesMut::new()),
                }
            }
            Some(pending) if continues(&pending, &piece) => pending,
            _ => return Err(BAD_PIECE),
        };
        pending.value.0.extend_from_slice(&piece.value);
        let arrived = pending.value.0.len() as u64;
        if arrived > piece.total || piece.value.is_empty() {
            return Err(BAD_PIECE);
        }
        if arrived < piece.total {
            self.piece = Some(pending);
            return Ok(None);
        }
        whole(
            range,
            v1::Entry {
                value: pending.value.0.freeze(),
                ..pending.first
            },
        )
        .map(Some)
    }

    fn insert(&mut self, edit: Edit) -> Result<(), ApplyError> {
        match self.edits.insert(edit.key().clone(), edit) {
            None => Ok(()),
            Some(_) => Err(ApplyError::Malformed {
                what: "a key appears twice in one frame",
            }),
        }
    }

    const fn no_piece(&self) -> Result<(), ApplyError> {
        match self.piece {
            None => Ok(()),
            Some(_) => Err(ApplyError::Malformed {
                what: "a value is cut off",
            }),
        }
    }

    fn finish(self) -> Result<impl Iterator<Item = Edit>, ApplyError> {
        self.no_piece()?;
        Ok(self.edits.into_values())
    }
}

/// What an entry costs its holder, in bytes.
fn cost(entry: &Entry) -> usize {
    entry.key.as_ref().len() + entry.value.len() + ENTRY_OVERHEAD
}

fn charge(count: &mut usize, limit: usize, bytes: usize) -> Result<(), ApplyError> {
    *count = count.saturating_add(bytes).saturating_add(ENTRY_OVERHEAD);
    if *count > limit {
        Err(ApplyError::TooLarge { limit })
    } else {
        Ok(())
    }
}

/// Whether `piece` is the next piece of the pending value.
fn continues(pending: &Piece, piece: &v1::Entry) -> bool {
    let first = &pending.first;
    (
        &first.key,
        first.create_revision,
        first.mod_revision,
        first.version,
        first.total,
    ) == (
        &piece.key,
        piece.create_revision,
        piece.mod_revision,
        piece.version,
        piece.total,
    ) && piece.offset == pending.value.0.len() as u64
}

fn ranged(range: &KeyRange, key: bytes::Bytes) -> Result<Key, ApplyError> {
    let key = Key::new(key).ok_or(ApplyError::Malformed {
        what: "a key is empty",
    })?;
    if range.contains(key.as_ref()) {
        Ok(key)
    } else {
        Err(ApplyError::Foreign { key })
    }
}

fn whole(range: &KeyRange, entry: v1::Entry) -> Result<Entry, ApplyError> {
    Ok(Entry {
        key: ranged(range, entry.key)?,
        value: entry.value,
        create_revision: Revision::new(entry.create_revision),
        mod_revision: Revision::new(entry.mod_revision),
        version: entry.version,
    })
}

fn wire_digest(bytes: &[u8]) -> Result<Digest, ApplyError> {
    Digest::from_bytes(bytes).ok_or(ApplyError::Malformed {
        what: "a digest is not 16 bytes long",
    })
}
