//! Why a frame is not applied.

use crate::delta::DeltaError;
use crate::{Key, Revision};

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
    #[error("key {} is outside the requested range", .key.shortened())]
    Foreign {
        /// The key.
        key: Key,
    },
    /// A patch refers to a value that the client does not have.
    #[error(
        "a patch of {} refers to revision {base}, which the client does not have",
        .key.shortened()
    )]
    PatchBase {
        /// The key.
        key: Key,
        /// The revision that the patch refers to.
        base: Revision,
    },
    /// A patch cannot be applied.
    #[error("a patch of {} cannot be applied: {source}", .key.shortened())]
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
    /// A number that etcd never has: its revisions and versions begin at 1.
    #[error("the server broke the contract: {field} is {number}; etcd's are positive")]
    NotPositive {
        /// The field of `config.proto`.
        field: &'static str,
        /// What it holds.
        number: i64,
    },
    /// A field is longer than the contract allows.
    #[error(
        "the server broke the contract: {field} is {len} bytes long; at most {max} are allowed"
    )]
    TooLong {
        /// The field of `config.proto`.
        field: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The most that it may have.
        max: usize,
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
    ///
    /// True for [`WentBack`](Self::WentBack): only a server that knows the client's revision can tell
    /// whether etcd ever reached it, and answer with a reset if not.
    pub const fn keeps_state(&self) -> bool {
        matches!(
            self,
            Self::Gap { .. } | Self::TooLarge { .. } | Self::WentBack { .. }
        )
    }
}
