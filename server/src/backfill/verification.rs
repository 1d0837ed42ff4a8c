//! Compares a received span with the state, slice by slice, and adopts its deletes.

use std::collections::{HashMap, VecDeque, hash_map};

use driftless_proto::digest::Digest;
use driftless_proto::{Key, Revision};

use super::received::{LastChange, Window};
use crate::store::{Batch, Changed, Position, Span, Stored, Writer};

/// Keys that one slice looks at: some 300 µs.
const SLICE: usize = 1024;

/// Why a received span cannot be the past of the state.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// A transaction is out of order, or outside of the span.
    #[error("a transaction of revision {revision} is out of order")]
    Order {
        /// The transaction's.
        revision: Revision,
    },
    /// A previous entry is not what the key's change before it left.
    #[error("the previous entry of a change at revision {revision} is not what was there before")]
    Previous {
        /// The later change's.
        revision: Revision,
    },
    /// The state has another entry.
    #[error("the state differs from the change at revision {revision}")]
    State {
        /// The first revision that differs.
        revision: Revision,
    },
}

/// A received span while it is compared with the state. The state may change between two slices.
#[derive(Debug)]
pub struct Verification {
    span: Span,
    window: Window,
    stage: Stage,
}

/// What the next slice does.
#[derive(Debug)]
enum Stage {
    /// Every entry of the state that was put in the span, and not since, must be the last change of its
    /// key.
    Puts {
        /// The entries up to here were compared.
        position: Position,
        last_changes: HashMap<Key, LastChange>,
    },
    /// The last change of every key in the span must be in the state, unless the key changed since.
    Changes {
        last_changes: hash_map::IntoIter<Key, LastChange>,
        /// The deletes to adopt.
        deletes: Vec<(Revision, Key)>,
    },
    /// Everything matches: the tombstones are recorded, the latest first.
    Deletes(Vec<(Revision, Key)>),
}

/// What one slice came to.
#[derive(Debug)]
pub(super) enum Slice {
    /// More slices follow.
    Pending,
    /// Everything matches and the deletes are adopted. The batches, oldest first, hold every change
    /// after `floor`.
    Verified {
        floor: Revision,
        batches: VecDeque<Batch>,
    },
}

impl Verification {
    /// Of what changed after `after`, which may be later than the span's beginning.
    pub(super) fn new(
        span: Span,
        after: Revision,
        window: Window,
        last_changes: HashMap<Key, LastChange>,
    ) -> Self {
        Self {
            span,
            window,
            stage: Stage::Puts {
                position: Position::after(after),
                last_changes,
            },
        }
    }

    /// The requested span.
    pub(super) const fn span(&self) -> Span {
        self.span
    }

    /// Does the next slice.
    ///
    /// # Errors
    /// When the span does not match the state.
    pub(super) fn slice(&mut self, writer: &mut Writer) -> Result<Slice, Mismatch> {
        let up_to = self.span.up_to;
        match &mut self.stage {
            Stage::Puts {
                position,
                last_changes,
            } => {
                if compare_puts(writer, position, last_changes, up_to)? {
                    self.stage = Stage::Changes {
                        last_changes: std::mem::take(last_changes).into_iter(),
                        deletes: Vec::new(),
                    };
                }
            }
            Stage::Changes {
                last_changes,
                deletes,
            } => {
                let mut count = 0;
                for (key, last) in last_changes.take(SLICE) {
                    count += 1;
                    let is_tombstone = compare_change(writer, &key, last, up_to)?;
                    if is_tombstone && last.revision > self.window.floor() {
                        deletes.push((last.revision, key));
                    }
                }
                if count < SLICE {
                    let mut deletes = std::mem::take(deletes);
                    deletes.sort_unstable();
                    self.stage = Stage::Deletes(deletes);
                }
            }
            Stage::Deletes(deletes) => {
                for _ in 0..SLICE {
                    let Some((revision, key)) = deletes.pop() else {
                        let floor = self.window.floor();
                        writer.lower_floor(floor, up_to);
                        let window = std::mem::replace(&mut self.window, Window::new(floor, 0));
                        let batches = window.into_batches();
                        return Ok(Slice::Verified { floor, batches });
                    };
                    if !writer.record_past_tombstone(revision, key) {
                        // There is no room for older ones.
                        deletes.clear();
                        self.window.drop_before(revision);
                    }
                }
            }
        }
        Ok(Slice::Pending)
    }
}

/// Compares a slice of the state's entries that were put in the span. Returns true after the last.
fn compare_puts(
    writer: &Writer,
    position: &mut Position,
    last_changes: &HashMap<Key, LastChange>,
    up_to: Revision,
) -> Result<bool, Mismatch> {
    let mut count = 0;
    let mut reached = None;
    for (at, revision, _, changed) in writer.snapshot().changed(position).take(SLICE) {
        if revision > up_to {
            break;
        }
        count += 1;
        reached = Some(at.clone());
        let Changed::Live(stored) = changed else {
            continue;
        };
        let last = last_changes.get(&stored.entry.key);
        let same = |last: &LastChange| last.revision == revision && last.hash == Some(stored.hash);
        if !last.is_some_and(same) {
            return Err(Mismatch::State { revision });
        }
    }
    if let Some(reached) = reached {
        *position = reached;
    }
    Ok(count < SLICE)
}

/// Compares the last change of a key up to `up_to` with the state. A change after `up_to` proves
/// nothing. Returns true if the change deleted the key and nothing changed it since, so that the store
/// needs a tombstone.
fn compare_change(
    writer: &Writer,
    key: &Key,
    last: LastChange,
    up_to: Revision,
) -> Result<bool, Mismatch> {
    let LastChange { revision, hash } = last;
    let snapshot = writer.snapshot();
    let deleted_since = snapshot.floor() > up_to || writer.deleted_at(key) > Some(up_to);
    match (snapshot.get(key), hash) {
        (Some(stored), _) if stored.entry.mod_revision > up_to => Ok(false),
        (Some(stored), Some(hash)) if is_entry(stored, revision, hash) => Ok(false),
        (Some(_), _) => Err(Mismatch::State { revision }),
        (None, Some(_)) if deleted_since => Ok(false),
        (None, Some(_)) => Err(Mismatch::State { revision }),
        (None, None) => Ok(!deleted_since),
    }
}

fn is_entry(stored: &Stored, revision: Revision, hash: Digest) -> bool {
    stored.entry.mod_revision == revision && stored.hash == hash
}
