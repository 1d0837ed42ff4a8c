//! The chunks so far of a frame that is not complete, within the caller's limit.
//!
//! Each thing is charged before it is kept, and has memory of its own: what is staged costs its holder
//! what was charged, whatever the messages were padded with.

use bytes::Bytes;

use super::{ApplyError, Edit, Lookup, wire};
use crate::delta;
use crate::{Entry, KeyRange, MAX_VALUE_BYTES, Revision, v1};

/// What an entry costs besides its key and value, in bytes, so that the limit holds for very many
/// tiny entries too: the entry itself, its place in a map that is two thirds full, and two allocations.
const ENTRY_OVERHEAD: usize = 256;

/// Which frame the chunks belong to: the same in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    Snapshot { to: Revision, reset: bool },
    Diff { from: Revision, to: Revision },
}

/// The content of the chunks so far.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) head: Head,
    limit: usize,
    edits: Vec<Edit>,
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
    /// Without its value.
    first: v1::Entry,
    value: Hidden,
}

/// Part of a value, which `Debug` must not show.
struct Hidden(Vec<u8>);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

impl Staged {
    /// Nothing yet. `limit` is the most that it may cost.
    pub(super) const fn new(head: Head, limit: usize) -> Self {
        Self {
            head,
            limit,
            edits: Vec::new(),
            piece: None,
            put: 0,
            deleted: 0,
        }
    }

    /// Takes an entry of a snapshot, or a piece of one.
    pub(super) fn entry(&mut self, range: &KeyRange, entry: v1::Entry) -> Result<(), ApplyError> {
        let Some(entry) = self.piece(range, entry)? else {
            return Ok(());
        };
        if self
            .edits
            .last()
            .is_some_and(|last| *last.key() >= entry.key)
        {
            return Err(ApplyError::Malformed {
                what: "a snapshot's keys are not in order",
            });
        }
        self.edits.push(Edit::Put(entry));
        Ok(())
    }

    /// Takes a change of a diff.
    pub(super) fn change(
        &mut self,
        range: &KeyRange,
        change: v1::Change,
        entries: &impl Lookup,
    ) -> Result<(), ApplyError> {
        use v1::change::Change;
        match change.change {
            Some(Change::Put(entry)) => {
                let entry = self.piece(range, entry)?;
                self.edits.extend(entry.map(Edit::Put));
            }
            Some(Change::Patch(patch)) => {
                self.no_piece()?;
                let entry = self.patch(range, &patch, entries)?;
                self.edits.push(Edit::Put(entry));
            }
            Some(Change::Delete(delete)) => {
                self.no_piece()?;
                charge(&mut self.deleted, self.limit, delete.key.len())?;
                self.edits.push(Edit::Delete {
                    key: wire::key(range, &delete.key)?,
                    mod_revision: wire::revision("Delete.mod_revision", delete.mod_revision)?,
                });
            }
            None => {
                return Err(ApplyError::Malformed {
                    what: "a change is of an unknown kind",
                });
            }
        }
        Ok(())
    }

    /// Counts a change that is not kept, so that a frame which is skipped ends too.
    pub(super) fn skip(&mut self, change: &v1::Change) -> Result<(), ApplyError> {
        use v1::change::Change;
        let bytes = match &change.change {
            Some(Change::Put(entry)) => entry.key.len() + entry.value.len(),
            Some(Change::Patch(patch)) => patch.key.len(),
            Some(Change::Delete(delete)) => {
                return charge(&mut self.deleted, self.limit, delete.key.len());
            }
            None => 0,
        };
        charge(&mut self.put, self.limit, bytes)
    }

    fn patch(
        &mut self,
        range: &KeyRange,
        patch: &v1::Patch,
        entries: &impl Lookup,
    ) -> Result<Entry, ApplyError> {
        let key = wire::key(range, &patch.key)?;
        let base = wire::revision("Patch.base_mod_revision", patch.base_mod_revision)?;
        let old = entries.entry(&key).filter(|old| old.mod_revision == base);
        let Some(old) = old else {
            return Err(ApplyError::PatchBase { key, base });
        };
        // Charged before the value is made: a few ops can make a large value. `delta::apply` rejects
        // a length that no value may have.
        let length = patch.length.min(MAX_VALUE_BYTES as u64) as usize;
        charge(&mut self.put, self.limit, key.as_ref().len() + length)?;
        match delta::apply(&old.value, &patch.ops, patch.length) {
            Ok(value) => wire::patched(key, patch, value),
            Err(source) => Err(ApplyError::Patch { key, source }),
        }
    }

    /// Takes one piece of an entry. Returns the entry when it is complete.
    fn piece(&mut self, range: &KeyRange, piece: v1::Entry) -> Result<Option<Entry>, ApplyError> {
        const BAD_PIECE: ApplyError = ApplyError::Malformed {
            what: "the pieces of a value do not fit together",
        };
        charge(
            &mut self.put,
            self.limit,
            piece.key.len() + piece.value.len(),
        )?;
        if piece.total == 0 {
            self.no_piece()?;
            if piece.offset != 0 {
                return Err(BAD_PIECE);
            }
            let value = Bytes::copy_from_slice(&piece.value);
            return wire::entry(range, &piece, value).map(Some);
        }
        if piece.total > MAX_VALUE_BYTES as u64 {
            return Err(ApplyError::Malformed {
                what: "a value is longer than any may be",
            });
        }
        let mut pending = match self.piece.take() {
            None if piece.offset == 0 => Piece {
                first: v1::Entry {
                    key: wire::key(range, &piece.key)?.as_bytes().clone(),
                    value: Bytes::new(),
                    ..piece
                },
                // Grows with the bytes that arrive, not with the length that is claimed.
                value: Hidden(Vec::new()),
            },
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
        // A boxed slice has no spare capacity.
        let value = pending.value.0.into_boxed_slice().into();
        wire::entry(range, &pending.first, value).map(Some)
    }

    const fn no_piece(&self) -> Result<(), ApplyError> {
        match self.piece {
            None => Ok(()),
            Some(_) => Err(ApplyError::Malformed {
                what: "a value is cut off",
            }),
        }
    }

    /// All edits, in ascending order of keys.
    pub(super) fn finish(mut self) -> Result<Vec<Edit>, ApplyError> {
        self.no_piece()?;
        self.edits
            .sort_unstable_by(|one, other| one.key().cmp(other.key()));
        let twice = |pair: &[Edit]| pair[0].key() == pair[1].key();
        if self.edits.windows(2).any(twice) {
            return Err(ApplyError::Malformed {
                what: "a key appears twice in one frame",
            });
        }
        Ok(self.edits)
    }
}

/// What an entry costs its holder, in bytes.
pub(super) fn cost(entry: &Entry) -> usize {
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
