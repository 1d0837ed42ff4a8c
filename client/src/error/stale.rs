//! A value that is too old to use.

use std::fmt;
use std::time::Duration;

use driftless_proto::KeyRange;

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
