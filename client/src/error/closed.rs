//! Why a watcher sees no further change.

/// Why a watcher will not see another change.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Closed {
    /// The server revoked the right to the range, and asked for copies to be deleted.
    #[error("the right to read this range was revoked")]
    Revoked,
    /// The client was [shut down](crate::Client::shutdown).
    #[error("the client was shut down")]
    Shutdown,
    /// The watcher's task has ended, because its runtime was shut down.
    #[error("the runtime that served this watcher is gone")]
    Ended,
}

impl Closed {
    /// Whether a new watch may succeed without a change elsewhere: never.
    pub const fn is_retryable(&self) -> bool {
        false
    }
}

debug_as_display! { Closed: Revoked Shutdown Ended }
