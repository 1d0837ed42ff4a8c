//! A value that is too old to use.

use std::fmt;
use std::time::Duration;

use driftless_proto::KeyRange;

/// A value is older than allowed, or its age is not known.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stale {
    /// The range that is watched.
    pub range: KeyRange,
    /// How old the value may be; `None` if that is not known.
    pub age: Option<Duration>,
    /// The age that is allowed.
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
                "the value of {range} was last proven {age:.1?} ago, and at most {max_age:?} is allowed"
            )?,
            None => write!(f, "the age of the value of {range} is not known")?,
        }
        f.write_str("; the watcher's status says why")
    }
}

impl fmt::Debug for Stale {
    /// The type's name, and the text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stale: {self}")
    }
}

impl std::error::Error for Stale {}
