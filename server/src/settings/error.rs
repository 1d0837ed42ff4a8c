//! Where a setting was given, and why settings were refused.

use std::fmt;
use std::path::PathBuf;

use driftless_proto::Key;

use super::name::{ENVIRONMENT_PREFIX, known_variables};
use super::table::Setting;

/// Where a setting was given.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// A method of [`SettingsBuilder`](super::SettingsBuilder), its defaults included.
    Code,
    /// A settings file.
    File {
        /// Its path, as it was given.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Environment,
    /// A flag.
    Flag,
}

/// A setting and where it was given. Displayed as that place spells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Which setting.
    pub setting: Setting,
    /// Where.
    pub origin: Origin,
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Code => f.write_str(self.setting.name()),
            Origin::File { path, line } => {
                write!(
                    f,
                    "{}, line {line}: {}",
                    path.display(),
                    self.setting.name()
                )
            }
            Origin::Environment => f.write_str(&self.setting.variable()),
            Origin::Flag => f.write_str(&self.setting.flag()),
        }
    }
}

/// Why settings were refused. Trying again without a change does not help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// There is no setting of this name.
    #[error("{place}: unknown setting {name:?}; {}", advice(name, nearest.as_deref()))]
    Unknown {
        /// The file and line, or "environment".
        place: String,
        /// What was given.
        name: String,
        /// The known setting that it resembles, spelled for the place.
        nearest: Option<String>,
    },
    /// The value of a setting is not valid.
    #[error("{given}: {problem}")]
    Invalid {
        /// Which one, and where.
        given: Given,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A required setting was not given.
    #[error("{what}: {}", setting.how_to_give())]
    Missing {
        /// Which one.
        setting: Setting,
        /// What it is needed for.
        what: &'static str,
    },
    /// A served prefix is listed twice.
    #[error("{given}: the prefix {prefix} is listed twice; remove one of them")]
    PrefixTwice {
        /// Where.
        given: Given,
        /// The prefix, escaped.
        prefix: Key,
    },
    /// A served prefix lies inside another, so its keys would be watched and held twice.
    #[error(
        "{given}: the prefix {inner} lies inside {outer}, which already serves its keys; remove one of them"
    )]
    PrefixInside {
        /// Where.
        given: Given,
        /// The longer prefix.
        inner: Key,
        /// The prefix that it lies in.
        outer: Key,
    },
    /// The settings file cannot be read.
    #[error("cannot read the settings file {}: {source}", path.display())]
    Unreadable {
        /// Its path, as it was given.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The settings file is not TOML.
    #[error(
        "{}, line {line}: not valid TOML: {problem}; write settings like listen = \"127.0.0.1:7400\"",
        path.display()
    )]
    Syntax {
        /// Its path, as it was given.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser expected, without the text of the file.
        problem: String,
    },
}

fn advice(name: &str, nearest: Option<&str>) -> String {
    match nearest {
        Some(nearest) => format!("did you mean {nearest:?}?"),
        None => {
            let known = if name.starts_with(ENVIRONMENT_PREFIX) {
                known_variables()
            } else {
                Setting::ALL.map(|known| known.name().to_owned()).to_vec()
            };
            format!("known settings: {}", known.join(", "))
        }
    }
}
