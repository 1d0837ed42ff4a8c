//! The status of a subscription, cheap enough for every health check.

use std::fmt;
use std::time::{Duration, Instant};

use driftless_proto::Revision;

use crate::error::{Refused, Rejection};

/// What a watch is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WatchState {
    /// It connects to a server, or waits for its first frame.
    Connecting,
    /// A server is sending the first state.
    Syncing,
    /// The watch holds what the server holds.
    Live,
    /// It lost its server and waits before it tries again. The last state stays readable.
    Backoff,
    /// A server refused to serve the range. The watch tries again every few seconds.
    Refused,
    /// It has ended for good.
    Closed,
}

impl fmt::Display for WatchState {
    /// One word, stable.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connecting => "connecting",
            Self::Syncing => "syncing",
            Self::Live => "live",
            Self::Backoff => "backoff",
            Self::Refused => "refused",
            Self::Closed => "closed",
        })
    }
}

/// A state that was refused by the type or by the validator of a watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RejectedState {
    /// The revision of the state.
    pub revision: Revision,
    /// What was wrong with it, without the value.
    pub rejection: Rejection,
}

/// The status of a watcher.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// What the watch is doing.
    pub state: WatchState,
    /// Since when.
    pub since: Instant,
    /// The server that it is connected to, or was connected to last.
    pub endpoint: Option<String>,
    /// The revision up to which the state is known; [`Revision::NONE`] before the first.
    pub revision: Revision,
    /// The last error on the way to a server. Kept after the problem is over.
    pub last_error: Option<String>,
    /// Why the server refuses, while it does.
    pub refused: Option<Refused>,
    /// The state that this watcher refused, until it accepts a newer one. Always `None` for an untyped
    /// watcher, which accepts everything.
    pub last_rejection: Option<RejectedState>,
    /// The watched key does not exist: the watcher has its default, or the last value before the key was
    /// deleted. Always false for an untyped watcher.
    pub missing: bool,
    /// How many streams began after the first.
    pub reconnects: u64,
    /// How often the state differed from the server's, and was fetched again.
    pub diverged: u64,
    pub(crate) proven: Option<tokio::time::Instant>,
}

impl Status {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            state: WatchState::Connecting,
            since: now,
            endpoint: None,
            revision: Revision::NONE,
            last_error: None,
            refused: None,
            last_rejection: None,
            missing: false,
            reconnects: 0,
            diverged: 0,
            proven: None,
        }
    }

    /// How old the state may be: the time since it was last proven to be etcd's. It grows while the
    /// server, or the server's etcd, cannot be reached. `None` before the first proof.
    pub fn age(&self) -> Option<Duration> {
        self.proven.map(|proven| proven.elapsed())
    }
}
