//! What was received of a requested span.

use std::collections::{HashMap, VecDeque};

use driftless_proto::apply::Edit;
use driftless_proto::digest::Digest;
use driftless_proto::{Key, Revision};

use super::verification::{Mismatch, Verification};
use crate::store::{Batch, Change, PastChange, PastTransaction, Span};

/// The last change of a key in the span.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastChange {
    pub(super) revision: Revision,
    /// The hash of the entry; `None` after a delete.
    pub(super) hash: Option<Digest>,
}

/// Consecutive batches up to the start of the change log: the latest that fit into a budget of bytes.
#[derive(Debug)]
pub(super) struct Window {
    batches: VecDeque<Batch>,
    bytes: usize,
    budget: usize,
    floor: Revision,
}

impl Window {
    pub(super) const fn new(floor: Revision, budget: usize) -> Self {
        Self {
            batches: VecDeque::new(),
            bytes: 0,
            budget,
            floor,
        }
    }

    /// Every change after this revision is there.
    pub(super) const fn floor(&self) -> Revision {
        self.floor
    }

    /// The batches, oldest first.
    pub(super) fn into_batches(self) -> VecDeque<Batch> {
        self.batches
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
        true
    }

    /// Drops the batches that led to the state at `revision`.
    pub(super) fn drop_before(&mut self, revision: Revision) {
        let is_before = |oldest: &Batch| oldest.to <= revision;
        while self.batches.front().is_some_and(is_before) {
            self.drop_oldest();
        }
        self.floor = self.floor.max(revision);
    }
}

/// The transactions of a span that were received so far.
#[derive(Debug)]
pub struct Received {
    span: Span,
    budget: usize,
    /// Where the answer begins: later than the span when etcd has compacted its beginning.
    after: Revision,
    /// The revision of the latest transaction.
    at: Revision,
    window: Window,
    last_changes: HashMap<Key, LastChange>,
}

impl Received {
    /// Nothing yet of this span. Keeps at most `budget` bytes of batches.
    pub(super) fn new(span: Span, budget: usize) -> Self {
        Self {
            span,
            budget,
            after: span.after,
            at: span.after,
            window: Window::new(span.after, budget),
            last_changes: HashMap::new(),
        }
    }

    /// The requested span.
    pub(super) const fn span(&self) -> Span {
        self.span
    }

    /// The answer begins, or begins again: what changed after this revision follows.
    pub(super) fn begin(&mut self, after: Revision) {
        *self = Self {
            after,
            at: after,
            window: Window::new(after, self.budget),
            ..Self::new(self.span, self.budget)
        };
    }

    /// Adds the next transactions.
    ///
    /// # Errors
    /// When they contradict one another.
    pub(super) fn receive(&mut self, transactions: Vec<PastTransaction>) -> Result<(), Mismatch> {
        for PastTransaction { revision, changes } in transactions {
            if revision <= self.at || revision > self.span.up_to {
                return Err(Mismatch::Order { revision });
            }
            let mut taken = Vec::with_capacity(changes.len());
            let mut sum = Digest::EMPTY;
            for change in changes {
                if let Some((edit, delta)) = self.change(revision, change)? {
                    sum += delta;
                    taken.push(Change { edit, sum });
                }
            }
            if !taken.is_empty() {
                self.window.push(Batch {
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

    /// Returns the edit and what it did to the digest; `None` for a delete of nothing.
    fn change(
        &mut self,
        revision: Revision,
        change: PastChange,
    ) -> Result<Option<(Edit, Digest)>, Mismatch> {
        let PastChange { edit, previous } = change;
        let before = previous.map(|entry| Digest::of(&entry));
        let after = match &edit {
            Edit::Put(entry) => Some(Digest::of(entry)),
            Edit::Delete { .. } => None,
        };
        let last = LastChange {
            revision,
            hash: after,
        };
        let known = self.last_changes.insert(edit.key().clone(), last);
        if known.is_some_and(|known| known.hash != before) {
            return Err(Mismatch::Previous { revision });
        }
        let nothing = Digest::EMPTY;
        let delta = after.unwrap_or(nothing) - before.unwrap_or(nothing);
        Ok((before.is_some() || after.is_some()).then_some((edit, delta)))
    }

    /// The whole span was received: starts to compare it with the state.
    pub(super) fn verify(self) -> Verification {
        Verification::new(self.span, self.after, self.window, self.last_changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::entry;

    fn batch(from: i64, to: i64) -> Batch {
        Batch {
            from: Revision::new(from),
            to: Revision::new(to),
            conflated: false,
            changes: vec![Change {
                edit: Edit::Put(entry("/c/a", "v", to)),
                sum: Digest::EMPTY,
            }],
            replaced: Vec::new(),
        }
    }

    /// With a batch for each of the revisions 2 to `last`, and room for `fit` of them.
    fn window(last: i64, fit: usize) -> Window {
        let mut window = Window::new(Revision::new(1), batch(1, 2).bytes() * fit);
        (2..=last).for_each(|to| window.push(batch(to - 1, to)));
        window
    }

    #[test]
    fn window_over_its_budget_drops_the_oldest_batches() {
        let window = window(6, 3);
        assert_eq!(window.floor(), Revision::new(3));
        let batches = window.into_batches();
        let led_to: Vec<i64> = batches.iter().map(|batch| batch.to.get()).collect();
        assert_eq!(led_to, [4, 5, 6]);
    }

    #[test]
    fn window_drops_what_led_to_a_revision() {
        let mut window = window(6, 10);
        window.drop_before(Revision::new(4));
        assert_eq!(window.floor(), Revision::new(4));
        assert_eq!(window.bytes, batch(1, 2).bytes() * 2);
        assert_eq!(window.into_batches().len(), 2);
    }

    #[test]
    fn transaction_before_the_answer_is_out_of_order() {
        let span = Span {
            after: Revision::new(1),
            up_to: Revision::new(20),
            last_put: None,
        };
        let mut received = Received::new(span, 1024);
        // etcd has compacted what was before.
        received.begin(Revision::new(10));
        let revision = Revision::new(10);
        let early = PastTransaction {
            revision,
            changes: Vec::new(),
        };
        let refused = received.receive(vec![early]);
        assert_eq!(refused, Err(Mismatch::Order { revision }));
    }
}
