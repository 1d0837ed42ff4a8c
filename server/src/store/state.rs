//! The whole state of a prefix, as a source reads it, and proof of how old a state is.

use driftless_proto::{Entry, Epoch, Revision};
use tokio::time::Instant;

/// The whole state of a prefix at one revision.
#[derive(Clone, Debug)]
pub struct State {
    /// The history that the revision belongs to.
    pub epoch: Epoch,
    /// The revision of all of it.
    pub revision: Revision,
    /// In ascending order of keys, each key once.
    pub entries: Vec<Entry>,
    /// How it relates to the source's updates before it.
    pub history: History,
    /// When etcd was asked for it, as in [`Proof::asked_at`]. `None` if it proves nothing.
    pub asked_at: Option<Instant>,
}

/// An answer of etcd that no later answer contradicts: every transaction that etcd had committed when
/// the question was sent has at most this revision. So a state that reached the revision is at most as
/// old as the question.
///
/// Only a linearizable read proves that. A member that is cut off from the others still answers
/// progress requests and sends what it has, and what arrives at a process that stood still may have
/// been sent long before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// When the question was sent. The time of the answer proves nothing: it may be read late.
    pub asked_at: Instant,
    /// etcd's revision in the answer.
    pub revision: Revision,
}

/// How a state relates to the updates that its source sent before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// A later state of the same history, or the first state.
    Continues,
    /// etcd went back in revision, was replaced or restored: revisions before this state belong to
    /// another history.
    Replaced,
}
