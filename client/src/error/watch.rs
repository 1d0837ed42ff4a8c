//! Why a watch cannot begin.

use std::fmt;
use std::time::Duration;

use driftless_proto::{Key, KeyRange, RangeError};

use super::closed::Closed;
use super::refused::Refused;
use super::rejection::Rejection;

/// Why a watch cannot begin.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The argument is not a range.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The server refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// No good value came in time, and there is no default.
    #[error("no value for {range} within {within:?}: {}", why.describe(range))]
    NoFirstValue {
        /// The range that was to be watched.
        range: KeyRange,
        /// How long the watch waited.
        within: Duration,
        /// The reason at the end of the wait.
        why: NoValue,
    },
    /// The subscription ended during the wait.
    #[error(transparent)]
    Closed(#[from] Closed),
}

impl WatchError {
    /// Whether the same call may succeed later: a server comes back, a key is put, a value is fixed. False
    /// if the call or somebody's rights must change first.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::NoFirstValue { .. } => true,
            Self::Range(_) | Self::Refused(_) | Self::Closed(_) => false,
        }
    }
}

/// Why a watch has no first value.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoValue {
    /// No server could be reached, or none has sent the whole state.
    NotConnected {
        /// The last error.
        last_error: Option<String>,
    },
    /// The key does not exist, and the type has no value for that: use `Option`, or give a default.
    Missing,
    /// The value exists and was refused.
    Rejected(Rejection),
}

/// The text for a key that does not exist and looks like a folder.
pub(crate) const NO_FOLDER: &str =
    "there is no such key; for the keys below it, use KeyRange::prefix";

/// Whether the key looks as if a prefix was meant.
pub(crate) fn is_folder(key: &Key) -> bool {
    key.as_ref().ends_with(b"/")
}

impl NoValue {
    /// The text for a watch of `range`.
    pub(crate) fn describe(&self, range: &KeyRange) -> String {
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
            } => write!(f, "no server has sent the whole state: {error}"),
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
    fn debug_output_says_what_to_do() {
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
        let text = "Refused: http://h:1: this prefix is not served";
        assert_eq!(format!("{refused:?}"), text);
        assert_eq!(format!("{:?}", WatchError::Refused(refused)), text);
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
