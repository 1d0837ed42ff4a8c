//! What changed before the changes that a source reports: a span of revisions, and the transactions
//! in it.

use driftless_proto::apply::Edit;
use driftless_proto::{Entry, Revision};

/// A span of revisions before the changes that a source reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Exclusive; at least 1.
    pub after: Revision,
    /// Inclusive; a revision that the source reported a state of, or a change after it.
    pub up_to: Revision,
    /// The highest mod revision of the keys that exist at `up_to`. `None` when it is not known, but
    /// something in the prefix is known to have changed after `up_to`.
    pub last_put: Option<Revision>,
}

/// All that one etcd transaction changed under the prefix, with the previous entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastTransaction {
    /// The transaction's revision.
    pub revision: Revision,
    /// In ascending order of keys, each key once.
    pub changes: Vec<PastChange>,
}

/// A change of one key, with its previous entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastChange {
    /// The change.
    pub edit: Edit,
    /// The key's entry before the change; `None` for none, or for one that cannot be served.
    pub previous: Option<Entry>,
}

/// The answer to a request for a [`Span`], part by part.
#[derive(Clone, Debug)]
pub enum BackfillEvent {
    /// All changes after this revision follow. Events before this one no longer count.
    Begin {
        /// The beginning of the requested span, or of what etcd has not compacted.
        after: Revision,
    },
    /// Whole transactions, each later than those before.
    Transactions(Vec<PastTransaction>),
    /// Everything up to the end of the span was sent.
    End,
    /// The span cannot be read.
    Failed {
        /// Why, for people. Never a value.
        reason: String,
    },
}
