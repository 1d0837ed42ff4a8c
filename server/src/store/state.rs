//! The whole state of a prefix, as a source reads it.

use driftless_proto::{Entry, Epoch, Revision};

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
