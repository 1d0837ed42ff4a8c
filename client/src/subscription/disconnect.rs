//! Why a stream or an attempt ended, and what that means for the next one.

use std::time::Duration;

use driftless_proto::KeyRange;
use driftless_proto::apply::ApplyError;
use driftless_proto::v1;

use super::state::Cause;
use crate::error::{RefusedReason, too_large};
use crate::transport::{CallError, pause};

/// Why a stream or an attempt ended.
pub(super) struct Disconnect {
    pub(super) cause: Cause,
    /// The shortest wait before the next attempt.
    pub(super) at_least: Duration,
    pub(super) message: String,
    pub(super) refused: Option<RefusedReason>,
    /// The server that it is about, where the message does not say.
    pub(super) endpoint: Option<String>,
    /// The next attempt must not use this connection, and tries its server last.
    pub(super) retire: bool,
    /// The client must delete its copies of the range: the subscription ends for good. A revoked right
    /// without it is a refusal, and the next attempt follows.
    pub(super) purge: bool,
}

impl Disconnect {
    fn transient(message: impl Into<String>) -> Self {
        Self {
            cause: Cause::Transient,
            at_least: Duration::ZERO,
            message: message.into(),
            refused: None,
            endpoint: None,
            retire: false,
            purge: false,
        }
    }

    /// The server ended the stream without an error.
    pub(super) fn clean() -> Self {
        Self::transient("the server ended the stream")
    }

    /// Nothing came for too long: the connection may be up and lead nowhere.
    pub(super) fn silent() -> Self {
        Self {
            retire: true,
            ..Self::transient("the server sent nothing for too long")
        }
    }

    /// The state did not arrive within its time, though something came now and then.
    pub(super) fn unfinished() -> Self {
        Self {
            retire: true,
            ..Self::transient("the server did not send the whole state in time")
        }
    }

    pub(super) fn malformed(problem: &str) -> Self {
        Self::transient(format!("the server broke the contract: {problem}"))
    }

    /// A hello cannot be accepted. What is held is as good as before.
    pub(super) fn greeting(error: &ApplyError) -> Self {
        Self::transient(error.to_string())
    }

    /// A call failed. `has_choice`: there is another server.
    pub(super) fn failed(error: CallError, has_choice: bool) -> Self {
        Self {
            cause: match error.refused {
                Some(_) => Cause::Refused,
                None => Cause::Transient,
            },
            at_least: error.at_least,
            refused: error.refused,
            // Another server may do better than one that cannot answer now. Without another one, a
            // connection that works is kept.
            retire: error.lost || (error.refused.is_none() && !error.local && has_choice),
            ..Self::transient(error.message)
        }
    }

    /// A frame could not be applied.
    pub(super) fn not_applied(error: &ApplyError, range: &KeyRange) -> Self {
        let transient = Self::transient(error.to_string());
        match error {
            ApplyError::TooLarge { limit } => Self {
                message: too_large(range, *limit),
                cause: Cause::Refused,
                refused: Some(RefusedReason::TooLarge),
                // Each attempt costs both ends as much as the limit allows.
                at_least: pause(u32::MAX),
                ..transient
            },
            ApplyError::WentBack { .. } => Self {
                cause: Cause::Ahead,
                ..transient
            },
            _ if error.keeps_state() => transient,
            ApplyError::Diverged { .. }
            | ApplyError::PatchBase { .. }
            | ApplyError::Patch { .. } => Self {
                cause: Cause::Diverged,
                ..transient
            },
            _ => Self {
                cause: Cause::Discard,
                ..transient
            },
        }
    }

    pub(super) fn goodbye(goodbye: &v1::Goodbye) -> Self {
        use v1::goodbye::Reason;
        let reason = goodbye.reason();
        let (message, retire) = match reason {
            Reason::Unspecified => ("the server said goodbye", true),
            Reason::Drain => ("the server is shutting down", true),
            Reason::Rebalance => ("the server rebalances its load", true),
            Reason::Stalled => ("the server found this client too slow", false),
            Reason::Revoked => ("the right to read the range was revoked", false),
            Reason::History => ("etcd's history was replaced", false),
        };
        let revoked = reason == Reason::Revoked;
        Self {
            cause: if revoked {
                Cause::Refused
            } else {
                Cause::Transient
            },
            at_least: pause(goodbye.retry_after_ms),
            refused: revoked.then_some(RefusedReason::Denied),
            retire,
            purge: goodbye.purge,
            ..Self::transient(message)
        }
    }
}
