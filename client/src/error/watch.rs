//! Why a watch could not begin.

use std::fmt;
use std::time::Duration;

use driftless_proto::{Key, KeyRange, RangeError};

use super::closed::Closed;
use super::refused::Refused;
use super::rejection::Rejection;

/// Why a watch could not begin.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// What was named is not a range.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The server refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// There was no good value in time, and no default.
    #[error("no value for {range} within {within:?}: {}", why.of(range))]
    NoFirstValue {
        /// What was watched.
        range: KeyRange,
        /// How long it was waited for.
        within: Duration,
        /// What stood in the way at the end.
        why: NoValue,
    },
    /// The subscription ended while it was waited for.
    #[error(transparent)]
    Closed(#[from] Closed),
}

impl WatchError {
    /// Whether the same call may well succeed later: a server comes back, a key is put, a value is
    /// mended. Not where the call, or who may do what, has to change first.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::NoFirstValue { .. } => true,
            Self::Range(_) | Self::Refused(_) | Self::Closed(_) => false,
        }
    }
}

/// What stands between a watch and its first value.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoValue {
    /// No server could be reached, or none has answered in full.
    NotConnected {
        /// The last thing that went wrong.
        last_error: Option<String>,
    },
    /// The key does not exist, and the type has nothing to say that with: use `Option`, or give a
    /// default.
    Missing,
    /// The value is there and is no good.
    Rejected(Rejection),
}

/// What to say of a key that does not exist and looks like a folder.
pub(crate) const NO_FOLDER: &str =
    "there is no such key; for the keys below it, use KeyRange::prefix";

/// Whether the key looks as if the keys below it were meant.
pub(crate) fn is_folder(key: &Key) -> bool {
    key.as_ref().ends_with(b"/")
}

impl NoValue {
    /// The same, in words for those who watched `range`.
    pub(crate) fn of(&self, range: &KeyRange) -> String {
        match (self, range) {
            (Self::Missing, KeyRange::Key(key)) if is_folder(key) => NO_FOLDER.to_owned(),
            _ => self.to_string(),
        }
    }
}

impl fmt::Display for NoValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotConnected { last_error: None } => f.write_str("no server has answered yet"),
            Self::NotConnected {
                last_error: Some(error),
            } => write!(f, "no server has answered in full: {error}"),
            Self::Missing => f.write_str(
                "the key does not exist; put it, watch it as an `Option`, or give a default",
            ),
            Self::Rejected(rejection) => write!(f, "the value was refused: {rejection}"),
        }
    }
}

debug_as_display! { WatchError: Range Refused NoFirstValue Closed }

debug_as_display! { NoValue: NotConnected Missing Rejected }

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{BuildError, RefusedReason};

    #[test]
    fn what_main_prints_says_what_to_do() {
        let missing = |range: Result<KeyRange, RangeError>| WatchError::NoFirstValue {
            range: range.unwrap(),
            within: Duration::from_secs(30),
            why: NoValue::Missing,
        };
        assert_eq!(
            format!("{:?}", missing(KeyRange::key("/a/"))),
            "NoFirstValue: no value for /a/ within 30s: there is no such key; for the keys below \
             it, use KeyRange::prefix"
        );
        assert_eq!(
            format!("{:?}", missing(KeyRange::key("/a"))),
            "NoFirstValue: no value for /a within 30s: the key does not exist; put it, watch it as \
             an `Option`, or give a default"
        );
        let refused = Refused {
            endpoint: "http://h:1".to_owned(),
            reason: RefusedReason::NotServed,
            message: "this prefix is not served".to_owned(),
        };
        let said = "Refused: http://h:1: this prefix is not served";
        assert_eq!(format!("{refused:?}"), said);
        assert_eq!(format!("{:?}", WatchError::Refused(refused)), said);
        assert_eq!(
            format!("{:?}", BuildError::NoEndpoint),
            "NoEndpoint: no endpoint was given; name one, such as \"http://127.0.0.1:7400\""
        );
        assert_eq!(
            format!("{:?}", Closed::Ended),
            "Ended: the runtime that served this watcher is gone"
        );
    }
}
