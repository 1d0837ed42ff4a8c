//! Why a call failed or ended: a text for people, and what the subscription has to know.

use std::error::Error as _;
use std::fmt::{self, Display, Write as _};
use std::time::Duration;

use tonic::{Code, Status};

use crate::error::RefusedReason;
use crate::net;

/// The longest pause that a server may ask for. A longer one is a mistake.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// How much of a server's text is kept, in bytes.
pub(super) const MAX_MESSAGE_TEXT: usize = 1024;

/// The trailer in which a server says how long to wait, in milliseconds.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Why a call failed or ended.
#[derive(Clone, Debug)]
pub(crate) struct CallError {
    /// The reason, where the server refused the call.
    pub(crate) refused: Option<RefusedReason>,
    /// What happened, for people.
    pub(crate) message: String,
    /// How long the server asks to wait at least.
    pub(crate) at_least: Duration,
    /// The connection was lost; false if the server answered.
    pub(crate) lost: bool,
    /// The cause is on this side: another server would not help.
    pub(crate) local: bool,
}

impl CallError {
    pub(super) const fn lost(message: String) -> Self {
        Self {
            refused: None,
            message,
            at_least: Duration::ZERO,
            lost: true,
            local: false,
        }
    }

    /// A failure on this side, before anything was sent: the connection is still good.
    pub(super) const fn local(message: String) -> Self {
        let mut error = Self::lost(message);
        error.lost = false;
        error.local = true;
        error
    }
}

impl From<&Status> for CallError {
    fn from(status: &Status) -> Self {
        // A server sends no status with a source: tonic makes those of transport errors.
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
            Some(source) => root_cause(source),
            // The original text is tonic's, or that of a server which is not driftless.
            None if status.code() == Code::Unimplemented => {
                "no driftless server of this version serves gRPC here".to_owned()
            }
            None => status.message().to_owned(),
        };
        let text = if text.is_empty() {
            status.code().description().to_owned()
        } else {
            text
        };
        // What is not a number is ignored. A negative one asks not to retry; a subscription waits as long
        // as it may.
        let at_least = status
            .metadata()
            .get(PUSHBACK)
            .and_then(|value| value.to_str().ok()?.parse::<i64>().ok())
            .map_or(Duration::ZERO, |pause| {
                u64::try_from(pause).map_or(MAX_PAUSE, Duration::from_millis)
            });
        Self {
            refused,
            message: printable(text, MAX_MESSAGE_TEXT),
            at_least: at_least.min(MAX_PAUSE),
            lost: source.is_some(),
            local: false,
        }
    }
}

/// A pause that a server asks for in milliseconds, limited to [`MAX_PAUSE`].
pub(crate) fn pause(millis: u32) -> Duration {
    Duration::from_millis(u64::from(millis)).min(MAX_PAUSE)
}

/// At most the first `limit` bytes of a text, in whole characters.
pub(crate) fn truncate(mut text: String, limit: usize) -> String {
    if let Some((end, _)) = text
        .char_indices()
        .find(|(at, char)| at + char.len_utf8() > limit)
    {
        text.truncate(end);
    }
    text
}

/// At most `limit` bytes of a text that a server has a part in, for people. Control characters are escaped, so
/// that a server cannot change a terminal's state or begin a line in a log.
pub(crate) fn printable(text: impl Display, limit: usize) -> String {
    let mut shown = Printable {
        text: String::new(),
        limit,
    };
    // An error only says that the text is cut off.
    let _ = write!(shown, "{text}");
    shown.text
}

/// Ends what is written to it at the limit, however long it would become.
struct Printable {
    text: String,
    limit: usize,
}

impl fmt::Write for Printable {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            let before = self.text.len();
            if char.is_control() {
                self.text.extend(char.escape_default());
            } else {
                self.text.push(char);
            }
            if self.text.len() > self.limit {
                self.text.truncate(before);
                return Err(fmt::Error);
            }
        }
        Ok(())
    }
}

/// The text of the innermost error: those around it say only "transport error".
pub(super) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    match net::innermost(error)
        .downcast_ref()
        .and_then(h2::Error::get_io)
    {
        Some(io) => net::explain(io),
        None => net::root_cause(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: &Status) -> CallError {
        CallError::from(status)
    }

    #[test]
    fn status_codes_map_to_refusals() {
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
    fn pushback_is_read_and_limited() {
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
    fn control_characters_of_a_server_are_escaped() {
        let status = Status::unavailable("gone\n\x1b[2JERROR\u{fc}");
        assert_eq!(error(&status).message, "gone\\n\\u{1b}[2JERROR\u{fc}");
        // An escape is not cut in half.
        assert_eq!(printable("abc\n", 4), "abc");
        assert_eq!(printable("abc\n", 5), "abc\\n");
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        let status = Status::internal("\u{fc}".repeat(2000));
        let message = error(&status).message;
        assert_eq!(message.len(), MAX_MESSAGE_TEXT);
        assert_eq!(
            error(&Status::internal("x".repeat(1024))).message.len(),
            1024
        );
    }
}
