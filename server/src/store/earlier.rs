//! What changed before the first state, put in front of the log once it is certain to fit.
//!
//! A server starts with a state and no past. When its clients return they hold earlier states, and
//! the source can say what changed since. That is taken in part by part, checked key by key against
//! the state, and only then adopted: the log reaches back further, and the deletes are known. What
//! does not fit is thrown away as a whole.

use std::collections::{HashMap, VecDeque, hash_map};

use driftless_proto::apply::Edit;
use driftless_proto::digest::Digest;
use driftless_proto::{Key, Revision};

use super::batch::{Batch, Change};
use super::past::{PastChange, PastTransaction, Span};
use super::snapshot::{Changed, Position, Stored};
use super::writer::Writer;

/// Keys that one call of [`Settling::settle`] looks at: some 300 µs.
const SLICE: usize = 1024;

/// Why what is said of the past cannot be true of this state.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// Not in order, or outside of what was asked for.
    #[error("a transaction of revision {revision} is out of order")]
    Order {
        /// The transaction's.
        revision: Revision,
    },
    /// What was there before a change is not what the change before it left.
    #[error("what changed at revision {revision} was not there before")]
    Chain {
        /// The later change's.
        revision: Revision,
    },
    /// The state has something else.
    #[error("the state differs from what was changed at revision {revision}")]
    State {
        /// Where they part.
        revision: Revision,
    },
}

/// What is known of a key's last change.
#[derive(Clone, Copy, Debug)]
struct Last {
    revision: Revision,
    /// Of the entry; `None` when it was deleted.
    hash: Option<Digest>,
}

/// Batches from before the first state, the latest of them that fit into a budget of bytes.
#[derive(Debug)]
pub struct PastBatches {
    batches: VecDeque<Batch>,
    bytes: usize,
    budget: usize,
    floor: Revision,
    is_complete: bool,
}

impl PastBatches {
    /// None yet: every change after `floor` is there, within `budget` bytes.
    pub const fn new(floor: Revision, budget: usize) -> Self {
        Self {
            batches: VecDeque::new(),
            bytes: 0,
            budget,
            floor,
            is_complete: true,
        }
    }

    /// The revision from which on every change is there.
    pub const fn floor(&self) -> Revision {
        self.floor
    }

    /// False if what came before them is known to be out of reach.
    pub const fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// The batches, oldest first.
    pub fn into_batches(self) -> impl Iterator<Item = Batch> {
        self.batches.into_iter()
    }

    fn push(&mut self, batch: Batch) {
        self.bytes += batch.bytes();
        self.batches.push_back(batch);
        while self.bytes > self.budget && self.drop_oldest() {}
    }

    fn drop_oldest(&mut self) -> bool {
        let Some(oldest) = self.batches.pop_front() else {
            return false;
        };
        self.bytes -= oldest.bytes();
        self.floor = oldest.to;
        self.is_complete = false;
        true
    }

    /// Drops what led to the state at `revision`.
    fn forget_before(&mut self, revision: Revision) {
        let is_before = |oldest: &Batch| oldest.to <= revision;
        while self.batches.front().is_some_and(is_before) {
            self.drop_oldest();
        }
        self.floor = self.floor.max(revision);
        self.is_complete = false;
    }
}

/// What changed before the first state, while it is being taken in.
#[derive(Debug)]
pub struct Earlier {
    span: Span,
    budget: usize,
    /// From where on it is said, which may be later than was asked for.
    after: Revision,
    /// The revision of the latest transaction.
    at: Revision,
    /// Of the batches so far, those that fit.
    past: PastBatches,
    last: HashMap<Key, Last>,
}

impl Earlier {
    /// For what changed in this span, up to the floor of the log, within `budget` bytes.
    pub fn new(span: Span, budget: usize) -> Self {
        Self {
            span,
            budget,
            after: span.after,
            at: span.after,
            past: PastBatches::new(span.after, budget),
            last: HashMap::new(),
        }
    }

    /// What was asked for.
    pub const fn span(&self) -> Span {
        self.span
    }

    /// Starts anew, with what comes after this revision.
    pub fn begin(&mut self, after: Revision) {
        *self = Self {
            after,
            at: after,
            past: PastBatches::new(after, self.budget),
            ..Self::new(self.span, self.budget)
        };
        if after > self.span.after {
            // etcd has forgotten what lies before.
            self.past.is_complete = false;
        }
    }

    /// Takes in the next transactions.
    ///
    /// # Errors
    /// When they contradict themselves.
    pub fn take(&mut self, transactions: Vec<PastTransaction>) -> Result<(), Misfit> {
        for PastTransaction { revision, changes } in transactions {
            if revision <= self.at || revision > self.span.up_to {
                return Err(Misfit::Order { revision });
            }
            let mut taken = Vec::with_capacity(changes.len());
            for change in changes {
                taken.extend(self.change(revision, change)?);
            }
            if !taken.is_empty() {
                self.past.push(Batch {
                    from: self.at,
                    to: revision,
                    conflated: false,
                    changes: taken,
                    replaced: Vec::new(),
                });
            }
            self.at = revision;
        }
        Ok(())
    }

    /// `None` for one that changes nothing.
    fn change(&mut self, revision: Revision, change: PastChange) -> Result<Option<Change>, Misfit> {
        let PastChange { edit, previous } = change;
        let before = previous.map(|entry| Digest::of(&entry));
        let after = match &edit {
            Edit::Put(entry) => Some(Digest::of(entry)),
            Edit::Delete { .. } => None,
        };
        let last = Last {
            revision,
            hash: after,
        };
        let known = self.last.insert(edit.key().clone(), last);
        if known.is_some_and(|known| known.hash != before) {
            return Err(Misfit::Chain { revision });
        }
        let nothing = Digest::EMPTY;
        let delta = after.unwrap_or(nothing) - before.unwrap_or(nothing);
        Ok((before.is_some() || after.is_some()).then_some(Change { edit, delta }))
    }

    /// Everything was said: goes on to compare it with the state.
    pub fn end(self) -> Settling {
        Settling {
            position: Position::after(self.after),
            earlier: self,
            deleted: Vec::new(),
            step: Step::Puts,
        }
    }
}

/// What changed before the first state, while it is being compared and adopted, slice by slice: the
/// state may change in between.
#[derive(Debug)]
pub struct Settling {
    earlier: Earlier,
    /// Up to where the state's entries were looked up.
    position: Position,
    deleted: Vec<(Revision, Key)>,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// Each entry that was put in the span, and not since, must be what was said last of its key.
    Puts,
    /// Each key that changed must be what was said last of it, unless it changed since.
    Last(hash_map::IntoIter<Key, Last>),
    /// All fits; the deletes are being remembered, the latest first.
    Deletes,
}

impl Settling {
    /// What was asked for.
    pub const fn span(&self) -> Span {
        self.earlier.span
    }

    /// Does a slice of the work. Returns what was adopted once all of it is done, to be put in
    /// front of the log.
    ///
    /// # Errors
    /// When it does not fit the state.
    pub fn settle(&mut self, writer: &mut Writer) -> Result<Option<PastBatches>, Misfit> {
        match &mut self.step {
            Step::Puts => {
                if self.compare_puts(writer)? {
                    let last = std::mem::take(&mut self.earlier.last);
                    self.step = Step::Last(last.into_iter());
                }
            }
            Step::Last(keys) => {
                let mut count = 0;
                for (key, last) in keys.take(SLICE) {
                    count += 1;
                    if writer.agrees(&key, last.revision, last.hash, self.earlier.span.up_to)?
                        && last.revision > self.earlier.past.floor()
                    {
                        self.deleted.push((last.revision, key));
                    }
                }
                if count < SLICE {
                    self.deleted.sort_unstable();
                    self.step = Step::Deletes;
                }
            }
            Step::Deletes => {
                for _ in 0..SLICE {
                    let Some((revision, key)) = self.deleted.pop() else {
                        let floor = self.earlier.past.floor();
                        writer.knows_deletes_since(floor, self.earlier.span.up_to);
                        let none = PastBatches::new(floor, 0);
                        return Ok(Some(std::mem::replace(&mut self.earlier.past, none)));
                    };
                    if !writer.bury_earlier(revision, key) {
                        // No room for older ones.
                        self.deleted.clear();
                        self.earlier.past.forget_before(revision);
                    }
                }
            }
        }
        Ok(None)
    }

    /// Looks at a slice of the entries that were put in the span. Returns whether that was the last.
    fn compare_puts(&mut self, writer: &Writer) -> Result<bool, Misfit> {
        let (up_to, last) = (self.earlier.span.up_to, &self.earlier.last);
        let mut count = 0;
        let mut reached = None;
        for (position, revision, _, changed) in
            writer.snapshot().changed(&self.position).take(SLICE)
        {
            if revision > up_to {
                break;
            }
            count += 1;
            reached = Some(position.clone());
            let Changed::Live(stored) = changed else {
                continue;
            };
            let said = last.get(&stored.entry.key);
            let same = |said: &Last| said.revision == revision && said.hash == Some(stored.hash);
            if !said.is_some_and(same) {
                return Err(Misfit::State { revision });
            }
        }
        if let Some(reached) = reached {
            self.position = reached;
        }
        Ok(count < SLICE)
    }
}

impl Writer {
    /// Whether a key whose last change up to `up_to` was this one was deleted by it and is gone
    /// since, so that the delete is worth remembering.
    ///
    /// # Errors
    /// When the state says otherwise. What changed after `up_to` says nothing.
    fn agrees(
        &self,
        key: &Key,
        revision: Revision,
        hash: Option<Digest>,
        up_to: Revision,
    ) -> Result<bool, Misfit> {
        let since = self.snapshot().floor() > up_to || self.deleted_at(key) > Some(up_to);
        let held = self.snapshot().by_key.get(key);
        match (held, hash) {
            (Some(held), _) if held.entry.mod_revision > up_to => Ok(false),
            (Some(held), Some(hash)) if is(held, revision, hash) => Ok(false),
            (Some(_), _) => Err(Misfit::State { revision }),
            (None, Some(_)) if since => Ok(false),
            (None, Some(_)) => Err(Misfit::State { revision }),
            (None, None) => Ok(!since),
        }
    }
}

fn is(held: &Stored, revision: Revision, hash: Digest) -> bool {
    held.entry.mod_revision == revision && held.hash == hash
}
