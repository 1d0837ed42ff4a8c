//! Why a `get` fails.

use std::time::Duration;

use driftless_proto::{KeyRange, RangeError};

use super::closed::Closed;
use super::refused::Refused;

/// Why a `get` fails.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// The argument is not a range.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The server refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// No complete answer came in time.
    #[error("no answer within {after:?} for {range} from {endpoints}")]
    TimedOut {
        /// The range that was to be read.
        range: KeyRange,
        /// The servers that were asked, or would have been.
        endpoints: String,
        /// The timeout.
        after: Duration,
    },
    /// No server could be reached, or the server could not answer now or completely.
    #[error("no server could answer: {message}")]
    Unavailable {
        /// The error, with its server.
        message: String,
    },
    /// The client was shut down.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// The answer violates the protocol.
    #[error("the answer cannot be used: {message}")]
    BadAnswer {
        /// What is wrong with it, and which server sent it.
        message: String,
    },
}

impl GetError {
    /// Whether the same call may succeed later: a server comes back, or is in sync. False if the call or
    /// somebody's rights must change first.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::Unavailable { .. } => true,
            Self::Range(_) | Self::Refused(_) | Self::Closed(_) | Self::BadAnswer { .. } => false,
        }
    }
}

debug_as_display! { GetError: Range Refused TimedOut Unavailable Closed BadAnswer }
