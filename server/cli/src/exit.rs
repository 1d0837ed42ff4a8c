//! How a run fails: a message, and an exit status for scripts.

use std::fmt;
use std::process::ExitCode;

use driftless_client::{GetError, RangeError, Refused, WatchError};
use driftless_server::SettingsError;

use crate::output;

/// For `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit status:
  0  done; for watch also: the reader of its output has gone
  1  failed; for get: the key does not exist
  2  wrong arguments or settings
  3  the server refused: the range is not served, or may not be read
  4  no server answered in time
  128 and above: ended at once by the second signal of that number";

/// The kind of failure, which decides the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Failed,
    Usage,
    Refused,
    Unreachable,
    /// Ended by the signal of this number.
    Signal(u8),
}

impl Kind {
    const fn status(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::Unreachable => 4,
            Self::Signal(number) => 128 + number,
        }
    }
}

/// Why a run failed: one line of text, and the exit status.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    message: String,
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: impl fmt::Display) -> Self {
        Self {
            kind,
            message: message.to_string(),
        }
    }

    pub(crate) fn failed(message: impl fmt::Display) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// A failed call to the system.
    pub(crate) fn system(doing: &str, error: &std::io::Error) -> Self {
        Self::failed(format_args!("cannot {doing}: {error}"))
    }

    /// Prints the message and returns the exit status.
    pub(crate) fn report(self) -> ExitCode {
        output::note(&self.message);
        ExitCode::from(self.kind.status())
    }
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Self::new(Kind::Usage, error)
    }
}

impl From<RangeError> for Failure {
    fn from(error: RangeError) -> Self {
        Self::new(Kind::Usage, error)
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Self::new(Kind::Refused, refused)
    }
}

impl From<WatchError> for Failure {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::Refused(refused) => refused.into(),
            WatchError::Range(error) => error.into(),
            other => Self::failed(other),
        }
    }
}

impl From<GetError> for Failure {
    fn from(error: GetError) -> Self {
        match error {
            GetError::Refused(refused) => refused.into(),
            GetError::Range(error) => error.into(),
            GetError::TimedOut { .. } | GetError::Unavailable { .. } => {
                Self::new(Kind::Unreachable, error)
            }
            other => Self::failed(other),
        }
    }
}
