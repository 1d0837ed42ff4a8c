//! Why a single read has no answer.

use std::time::Duration;

use driftless_proto::{KeyRange, RangeError};

use super::closed::Closed;
use super::refused::Refused;

/// Why a `get` has no answer.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// What was named is not a range.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The server refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// There was no complete answer in time.
    #[error("no answer within {after:?} for {range} from {endpoints}")]
    TimedOut {
        /// What was asked for.
        range: KeyRange,
        /// Who was asked, or would have been.
        endpoints: String,
        /// The limit that was set.
        after: Duration,
    },
    /// No server could be reached, or it could not answer now or in full.
    #[error("no server could answer: {message}")]
    Unavailable {
        /// What went wrong, and with which server.
        message: String,
    },
    /// The client was shut down.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// The answer breaks the contract.
    #[error("the answer cannot be used: {message}")]
    BadAnswer {
        /// What is wrong with it, and whose it is.
        message: String,
    },
}

impl GetError {
    /// Whether the same call may well succeed later: a server comes back, or is in sync. Not where
    /// the call, or who may do what, has to change first.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::Unavailable { .. } => true,
            Self::Range(_) | Self::Refused(_) | Self::Closed(_) | Self::BadAnswer { .. } => false,
        }
    }
}

debug_as_display! { GetError: Range Refused TimedOut Unavailable Closed BadAnswer }
