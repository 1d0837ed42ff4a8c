//! The rule of application: what a frame does to the state that a client holds, or why it is
//! rejected.
//!
//! [`Applier`] joins chunks, decides, and checks the digest *before* anything is published. It keeps
//! no entries once a frame is complete: the caller keeps them, and lends them through [`Lookup`]. So
//! it is pure and works over any map. A client in another language has to reimplement only this.

mod error;
mod staged;
mod wire;

use std::collections::BTreeMap;

use crate::digest::Digest;
use crate::{Entry, Epoch, Key, KeyRange, Revision, v1};

pub use error::ApplyError;
pub use wire::{Greeting, MAX_EPOCH_BYTES, MAX_TOKEN_BYTES, MAX_WATCH_ID_BYTES};

use staged::{Head, Staged, cost};

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

/// Applies the frames of one stream after the other to the state that the caller holds.
#[derive(Debug)]
pub struct Applier {
    range: KeyRange,
    limit: usize,
    /// What is held. `None` before the first snapshot.
    held: Option<Held>,
    /// The epoch of the current stream.
    stream: Option<Epoch>,
    /// The chunks so far of a frame that is not complete.
    partial: Option<Staged>,
}

#[derive(Clone, Debug)]
struct Held {
    epoch: Epoch,
    revision: Revision,
    digest: Digest,
    /// What the entries cost together.
    bytes: usize,
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
        let at = wire::revision("Current.revision", current.revision)?;
        self.confirm("current", at, &current.digest)
    }

    /// The range has not changed up to this revision.
    ///
    /// # Errors
    /// When the digests differ, or there is no state.
    pub fn progress(&mut self, progress: &v1::Progress) -> Result<Action, ApplyError> {
        let to = wire::revision("Progress.revision", progress.revision)?;
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
        if wire::digest(digest)? != held.digest {
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

    /// What is staged of the frame that a chunk belongs to.
    fn staged(&mut self, head: Head) -> Result<Staged, ApplyError> {
        match self.partial.take() {
            None => Ok(Staged::new(head, self.limit)),
            Some(staged) if staged.head == head => Ok(staged),
            Some(_) => Err(ApplyError::Malformed {
                what: "chunks of two frames are mixed",
            }),
        }
    }

    /// A chunk of a snapshot.
    ///
    /// # Errors
    /// When it breaks the contract, is older than the held state and not a reset, or has the wrong
    /// digest.
    pub fn snapshot(&mut self, chunk: v1::Snapshot) -> Result<Action, ApplyError> {
        let to = wire::revision("Snapshot.revision", chunk.revision)?;
        let epoch = self.stream.clone().ok_or(ApplyError::Malformed {
            what: "no hello came first",
        })?;
        let reset = chunk.reset;
        let mut staged = self.staged(Head::Snapshot { to, reset })?;
        if let Some(held) = &self.held
            && held.epoch == epoch
            && to < held.revision
            && !reset
        {
            return Err(ApplyError::WentBack {
                to,
                held: held.revision,
            });
        }
        not_endless(chunk.more, chunk.entries.is_empty())?;
        for entry in chunk.entries {
            staged.entry(&self.range, entry)?;
        }
        if chunk.more {
            self.partial = Some(staged);
            return Ok(Action::Incomplete);
        }
        let edits = staged.finish()?.into_iter();
        let entries: Vec<Entry> = edits
            .filter_map(|edit| match edit {
                Edit::Put(entry) => Some(entry),
                Edit::Delete { .. } => None,
            })
            .collect();
        let made: Digest = entries.iter().collect();
        if made != wire::digest(&chunk.digest)? {
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
    pub fn diff(&mut self, chunk: v1::Diff, entries: &impl Lookup) -> Result<Action, ApplyError> {
        let from = wire::revision_or_none("Diff.from", chunk.from)?;
        let to = wire::revision("Diff.to", chunk.to)?;
        let held = self.base("diff")?.clone();
        let mut staged = self.staged(Head::Diff { from, to })?;
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
        not_endless(chunk.more, chunk.changes.is_empty())?;
        // The chunks of a diff that is skipped are counted too, so that the next frame is recognised.
        let skip = to <= held.revision;
        for change in chunk.changes {
            if skip {
                staged.skip(&change)?;
            } else {
                staged.change(&self.range, change, entries)?;
            }
        }
        if chunk.more {
            self.partial = Some(staged);
            return Ok(Action::Incomplete);
        }
        if skip {
            return Ok(Action::Skipped);
        }
        let edits = staged.finish()?;
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
        if made != wire::digest(&chunk.digest)? {
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
            conflated: chunk.conflated,
        })
    }
}

/// Rejects a chunk that brings nothing and says that more follow: such chunks could follow for ever.
const fn not_endless(more: bool, is_empty: bool) -> Result<(), ApplyError> {
    if more && is_empty {
        Err(ApplyError::Malformed {
            what: "an empty chunk says that more follow",
        })
    } else {
        Ok(())
    }
}
