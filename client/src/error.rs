//! What can go wrong, and whether trying again helps.
//!
//! No error here carries a value, nor the text of a decoder's error: decoders quote what they could
//! not read.
//!
//! `Debug` is for people too: it is what a `main` that returns an error prints, and `unwrap`. So it
//! says what `Display` does, after the name of the variant to match on.

use std::fmt;
use std::time::Duration;

use driftless_proto::{Key, KeyRange, RangeError};

use crate::decode::Rejection;

/// Why a client cannot be built from these options. Trying again does not help.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No endpoint was given.
    #[error("no endpoint was given; name one, such as \"http://127.0.0.1:7400\"")]
    NoEndpoint,
    /// An endpoint is no URL that can be dialled.
    #[error("endpoint \"{url}\" {problem}; it should look like \"http://127.0.0.1:7400\"")]
    Endpoint {
        /// The endpoint as it was given, without a password that it may have held.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The endpoint asks for TLS, and the library was built without its feature `tls`.
    #[error(
        "endpoint \"{url}\" asks for TLS, which this build does not support; enable the feature \
         `tls` of driftless-client"
    )]
    TlsUnsupported {
        /// The endpoint as it was given.
        url: String,
    },
    /// The name that the servers' certificates are to be for is neither a host name nor an address.
    #[error(
        "\"{name}\" is no name that a certificate could be for; give the host name or the address \
         that is in the server's"
    )]
    ServerName {
        /// The name.
        name: String,
    },
    /// There is a bearer token, and an endpoint to which it would travel in clear text.
    #[error(
        "endpoint \"{url}\" would get the token in clear text; use https://, or http:// on this \
         machine only"
    )]
    TokenInClear {
        /// The endpoint.
        url: String,
    },
    /// There is a CA, a client's certificate or a server's name for TLS, and no endpoint that speaks
    /// it: everything would travel in clear text.
    #[error(
        "options of TLS are given, and no endpoint starts with https://; write that, or leave them out"
    )]
    TlsUnused,
    /// The instance id is empty or longer than the contract allows.
    #[error("the instance id is {len} bytes long; 1 to {max} are allowed")]
    Instance {
        /// Its length in bytes.
        len: usize,
        /// The most that is allowed, in bytes.
        max: usize,
    },
    /// There are more labels than the contract allows.
    #[error("there are {count} labels; at most {max} are allowed")]
    TooManyLabels {
        /// How many there are.
        count: usize,
        /// The most that are allowed.
        max: usize,
    },
    /// A label's name or value is longer than the contract allows, or its name is empty.
    #[error("label \"{name}\" is too long or has no name; names and values take up to {max} bytes")]
    Label {
        /// The label's name, cut to what is allowed.
        name: String,
        /// The most that is allowed, in bytes.
        max: usize,
    },
}

impl BuildError {
    /// Whether trying again with the same options can succeed: never.
    pub const fn is_retryable(&self) -> bool {
        false
    }
}

/// A server's refusal to serve a range: asking again is likely to get the same answer until
/// somebody changes something.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("{endpoint}: {message}")]
pub struct Refused {
    /// Whose answer it is about.
    pub endpoint: String,
    /// What kind of refusal.
    pub reason: RefusedReason,
    /// What the server says about it, or what to do.
    pub message: String,
}

/// What to say when a range holds more than this client takes.
pub(crate) fn too_large(range: &KeyRange, limit: usize) -> String {
    format!(
        "{range} holds more than {limit} bytes; name less, or raise `range_limit` of the client's \
         builder"
    )
}

/// The kinds of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusedReason {
    /// The range lies under no prefix that the server serves.
    NotServed,
    /// The request is not valid.
    Invalid,
    /// This client may not read the range.
    Denied,
    /// The server does not know who this client is.
    Unauthenticated,
    /// The two ends do not speak the same version, or the endpoint is no driftless server.
    Incompatible,
    /// The range holds more than this client's limit
    /// ([`ClientBuilder::range_limit`](crate::ClientBuilder::range_limit)).
    TooLarge,
}

impl fmt::Display for RefusedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotServed => "the range is not served",
            Self::Invalid => "the request is not valid",
            Self::Denied => "the range may not be read",
            Self::Unauthenticated => "the server does not know this client",
            Self::Incompatible => "the endpoint does not speak this version",
            Self::TooLarge => "the range is too large for this client",
        })
    }
}

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

/// A watcher will not see another change.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Closed {
    /// The server took back the right to the range and asked for its copies to be deleted.
    #[error("the right to read this range was taken back")]
    Revoked,
    /// The client was [shut down](crate::Client::shutdown).
    #[error("the client was shut down")]
    Shutdown,
    /// The task that served the watcher is gone, because its runtime was shut down.
    #[error("the runtime that served this watcher is gone")]
    Ended,
}

impl Closed {
    /// Whether a new watch may succeed without anybody changing something: never.
    pub const fn is_retryable(&self) -> bool {
        false
    }
}

/// A value is older than it may be, or its age is not known.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stale {
    /// What is watched.
    pub range: KeyRange,
    /// How old the value may be; `None` where that is not known.
    pub age: Option<Duration>,
    /// How old it would be allowed to be.
    pub max_age: Duration,
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            range,
            age,
            max_age,
        } = self;
        match age {
            Some(age) => write!(
                f,
                "the value of {range} was last proven {age:.1?} ago, and {max_age:?} are allowed"
            )?,
            None => write!(f, "how old the value of {range} is cannot be told")?,
        }
        f.write_str("; the watcher's status says what stands between it and etcd")
    }
}

impl fmt::Debug for Stale {
    /// Its name, and what it says.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stale: {self}")
    }
}

impl std::error::Error for Stale {}

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

macro_rules! debug {
    ($($error:ident: $($variant:ident)*;)*) => {$(
        impl fmt::Debug for $error {
            /// The name of the variant, and what the error says.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let variant = match self {
                    $(Self::$variant { .. } => stringify!($variant),)*
                };
                write!(f, "{variant}: {self}")
            }
        }
    )*};
}

debug! {
    BuildError: NoEndpoint Endpoint TlsUnsupported ServerName TokenInClear TlsUnused Instance TooManyLabels Label;
    WatchError: Range Refused NoFirstValue Closed;
    NoValue: NotConnected Missing Rejected;
    Closed: Revoked Shutdown Ended;
    GetError: Range Refused TimedOut Unavailable Closed BadAnswer;
}

impl fmt::Debug for Refused {
    /// Its name, and what it says.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Refused: {self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
