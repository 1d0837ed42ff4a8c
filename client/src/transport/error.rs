//! Why a call failed or ended, in words for people and in what the subscription has to know.

use std::error::Error as _;
use std::io::{self, ErrorKind};
use std::time::Duration;

use tonic::{Code, Status};

use crate::error::RefusedReason;

/// The longest pause that a server may ask for: one that asks for more is mistaken.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// The longest text of a server that is kept, in bytes.
pub(super) const MAX_MESSAGE_TEXT: usize = 1024;

/// The trailer in which a server says how long to wait, in milliseconds.
pub(super) const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Why a call failed or ended.
#[derive(Clone, Debug)]
pub(crate) struct CallError {
    /// The server's refusal, where it is one.
    pub(crate) refused: Option<RefusedReason>,
    /// What happened, for people.
    pub(crate) message: String,
    /// How long the server asks to wait at least.
    pub(crate) at_least: Duration,
    /// The connection was lost, in contrast to: the server answered.
    pub(crate) lost: bool,
    /// What is wrong is on this side: no other server would do better.
    pub(crate) here: bool,
}

impl CallError {
    pub(crate) const fn lost(message: String) -> Self {
        Self {
            refused: None,
            message,
            at_least: Duration::ZERO,
            lost: true,
            here: false,
        }
    }

    /// What is wrong on this side, before anything was sent: the connection is as good as it was.
    pub(super) const fn here(message: String) -> Self {
        let mut error = Self::lost(message);
        error.lost = false;
        error.here = true;
        error
    }
}

impl From<&Status> for CallError {
    fn from(status: &Status) -> Self {
        // A status that has a source was not sent by the server: it stands for what went wrong on
        // the way.
        let source = status.source();
        let refused = match status.code() {
            _ if source.is_some() => None,
            Code::InvalidArgument => Some(RefusedReason::Invalid),
            Code::NotFound => Some(RefusedReason::NotServed),
            Code::PermissionDenied => Some(RefusedReason::Denied),
            Code::Unauthenticated => Some(RefusedReason::Unauthenticated),
            Code::FailedPrecondition | Code::Unimplemented => Some(RefusedReason::Incompatible),
            _ => None,
        };
        let text = match source {
            Some(source) => innermost(source),
            // The words are of this library's make, or of a server that has never heard of this one.
            None if status.code() == Code::Unimplemented => {
                "this is not where a driftless server of this version serves gRPC".to_owned()
            }
            None => status.message().to_owned(),
        };
        let text = if text.is_empty() {
            status.code().description().to_owned()
        } else {
            text
        };
        // What is not a number is ignored; a negative one asks not to come back, which for a
        // subscription means: not soon.
        let at_least = status
            .metadata()
            .get(PUSHBACK)
            .and_then(|value| value.to_str().ok()?.parse::<i64>().ok())
            .map_or(Duration::ZERO, |pause| {
                u64::try_from(pause).map_or(MAX_PAUSE, Duration::from_millis)
            });
        Self {
            refused,
            message: cut(text, MAX_MESSAGE_TEXT),
            at_least: at_least.min(MAX_PAUSE),
            lost: source.is_some(),
            here: false,
        }
    }
}

/// A pause that a server asks for in milliseconds, within reason.
pub(crate) fn pause(millis: u32) -> Duration {
    Duration::from_millis(u64::from(millis)).min(MAX_PAUSE)
}

/// At most the first `most` bytes of a text, in whole characters.
pub(crate) fn cut(mut text: String, most: usize) -> String {
    if let Some((end, _)) = text
        .char_indices()
        .find(|(at, char)| at + char.len_utf8() > most)
    {
        text.truncate(end);
    }
    text
}

/// The text of the error at the root: those around it say "transport error".
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    let h2 = || root.downcast_ref().and_then(h2::Error::get_io);
    match root.downcast_ref().or_else(h2).map(io::Error::kind) {
        // Which of them is a matter of chance.
        Some(
            ErrorKind::BrokenPipe
            | ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::NotConnected
            | ErrorKind::UnexpectedEof,
        ) => "the connection was closed".to_owned(),
        _ => root.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: &Status) -> CallError {
        CallError::from(status)
    }

    #[test]
    fn statuses_that_refuse() {
        for (code, reason) in [
            (Code::InvalidArgument, Some(RefusedReason::Invalid)),
            (Code::NotFound, Some(RefusedReason::NotServed)),
            (Code::PermissionDenied, Some(RefusedReason::Denied)),
            (Code::Unauthenticated, Some(RefusedReason::Unauthenticated)),
            (Code::FailedPrecondition, Some(RefusedReason::Incompatible)),
            (Code::Unimplemented, Some(RefusedReason::Incompatible)),
            (Code::Unavailable, None),
            (Code::ResourceExhausted, None),
            (Code::Internal, None),
            (Code::Unknown, None),
        ] {
            let status = Status::new(code, "why");
            assert_eq!(error(&status).refused, reason, "{code:?}");
            if code != Code::Unimplemented {
                assert_eq!(error(&status).message, "why");
            }
        }
    }

    #[test]
    fn pauses_are_read_and_bounded() {
        for (text, millis) in [
            ("250", 250),
            ("0", 0),
            ("-1", 60_000),
            ("99999999", 60_000),
            ("soon", 0),
        ] {
            let mut status = Status::unavailable("");
            status
                .metadata_mut()
                .insert(PUSHBACK, text.parse().unwrap());
            assert_eq!(error(&status).at_least, Duration::from_millis(millis));
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let status = Status::internal("\u{fc}".repeat(2000));
        let message = error(&status).message;
        assert_eq!(message.len(), MAX_MESSAGE_TEXT);
        assert_eq!(
            error(&Status::internal("x".repeat(1024))).message.len(),
            1024
        );
    }
}
