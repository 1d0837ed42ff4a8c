//! A server's refusal to serve a range.

use std::fmt;

use driftless_proto::KeyRange;

/// A server's refusal to serve a range. A retry is likely to fail until somebody changes something.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("{endpoint}: {message}")]
pub struct Refused {
    /// The server.
    pub endpoint: String,
    /// The kind of refusal.
    pub reason: RefusedReason,
    /// The server's text, or what to do.
    pub message: String,
}

impl fmt::Debug for Refused {
    /// The type's name, and the text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Refused: {self}")
    }
}

/// The text for a range that is larger than the client's limit.
pub(crate) fn too_large(range: &KeyRange, limit: usize) -> String {
    format!(
        "{range} holds more than {limit} bytes; name less, or raise `range_limit` of the client's \
         builder"
    )
}

/// Why a server refuses a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusedReason {
    /// The server serves no prefix that holds the range.
    NotServed,
    /// The request is not valid.
    Invalid,
    /// This client may not read the range.
    Denied,
    /// The server does not know this client's identity.
    Unauthenticated,
    /// Client and server have different versions, or the endpoint is no driftless server.
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
