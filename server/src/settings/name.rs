//! The names of settings, the places that they are given in, and what is said when one is wrong.

use std::fmt;
use std::path::PathBuf;

use driftless_proto::Key;

/// What the variables that hold settings start with.
pub const ENVIRONMENT_PREFIX: &str = "DRIFTLESS_";

/// Variables with that start which mean something else: what the command line tools read.
const OTHER_VARIABLES: [&str; 8] = [
    "DRIFTLESS_CONFIG",
    "DRIFTLESS_LOG",
    "DRIFTLESS_SERVER",
    "DRIFTLESS_CA",
    "DRIFTLESS_CERT",
    "DRIFTLESS_KEY",
    "DRIFTLESS_SERVER_NAME",
    "DRIFTLESS_TOKEN_FILE",
];

/// The name of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Setting {
    /// [`SettingsBuilder::etcd`](super::SettingsBuilder::etcd); a list.
    Etcd,
    /// [`SettingsBuilder::prefix`](super::SettingsBuilder::prefix); a list.
    Prefix,
    /// [`SettingsBuilder::listen`](super::SettingsBuilder::listen).
    Listen,
    /// [`SettingsBuilder::admin`](super::SettingsBuilder::admin); `off` for none.
    Admin,
    /// [`SettingsBuilder::tls_cert`](super::SettingsBuilder::tls_cert).
    TlsCert,
    /// [`SettingsBuilder::tls_key`](super::SettingsBuilder::tls_key).
    TlsKey,
    /// [`SettingsBuilder::tls_client_ca`](super::SettingsBuilder::tls_client_ca).
    TlsClientCa,
    /// [`SettingsBuilder::generation`](super::SettingsBuilder::generation).
    Generation,
    /// [`SettingsBuilder::log_bytes`](super::SettingsBuilder::log_bytes).
    LogBytes,
    /// [`SettingsBuilder::progress_interval`](super::SettingsBuilder::progress_interval).
    ProgressInterval,
    /// [`SettingsBuilder::ping_interval`](super::SettingsBuilder::ping_interval).
    PingInterval,
    /// [`SettingsBuilder::report_interval`](super::SettingsBuilder::report_interval).
    ReportInterval,
    /// [`SettingsBuilder::audit_interval`](super::SettingsBuilder::audit_interval).
    AuditInterval,
    /// [`SettingsBuilder::stall_timeout`](super::SettingsBuilder::stall_timeout).
    StallTimeout,
    /// [`SettingsBuilder::drain_timeout`](super::SettingsBuilder::drain_timeout).
    DrainTimeout,
    /// [`SettingsBuilder::max_connections`](super::SettingsBuilder::max_connections).
    MaxConnections,
}

impl Setting {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Etcd,
        Self::Prefix,
        Self::Listen,
        Self::Admin,
        Self::TlsCert,
        Self::TlsKey,
        Self::TlsClientCa,
        Self::Generation,
        Self::LogBytes,
        Self::ProgressInterval,
        Self::PingInterval,
        Self::ReportInterval,
        Self::AuditInterval,
        Self::StallTimeout,
        Self::DrainTimeout,
        Self::MaxConnections,
    ];

    /// As a file spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Prefix => "prefix",
            Self::Listen => "listen",
            Self::Admin => "admin",
            Self::TlsCert => "tls_cert",
            Self::TlsKey => "tls_key",
            Self::TlsClientCa => "tls_client_ca",
            Self::Generation => "generation",
            Self::LogBytes => "log_bytes",
            Self::ProgressInterval => "progress_interval",
            Self::PingInterval => "ping_interval",
            Self::ReportInterval => "report_interval",
            Self::AuditInterval => "audit_interval",
            Self::StallTimeout => "stall_timeout",
            Self::DrainTimeout => "drain_timeout",
            Self::MaxConnections => "max_connections",
        }
    }

    /// The environment variable.
    pub fn variable(self) -> String {
        format!("{ENVIRONMENT_PREFIX}{}", self.name().to_uppercase())
    }

    /// The flag, with its dashes.
    pub fn flag(self) -> String {
        format!("--{}", self.name().replace('_', "-"))
    }

    pub(super) const fn is_list(self) -> bool {
        matches!(self, Self::Etcd | Self::Prefix)
    }
}

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

/// A setting and where it was given; shown the way that place spells it.
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
    /// Something that looks like a setting is none.
    #[error("{place}: there is no setting {name:?}; {}", advice(name, nearest.as_deref()))]
    Unknown {
        /// The file and line, or "environment".
        place: String,
        /// What was given.
        name: String,
        /// The known one that it resembles, spelled for the place.
        nearest: Option<String>,
    },
    /// A setting has a value that it cannot have.
    #[error("{given}: {problem}")]
    Invalid {
        /// Which one, and where.
        given: Given,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A setting without a default was not given.
    #[error(
        "{what}: give {flag}, or set {variable}, or write {name} into the settings file",
        flag = setting.flag(), variable = setting.variable(), name = setting.name(),
    )]
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
        "{given}: the prefix {inner} lies inside {outer}, which serves its keys already; remove one of them"
    )]
    PrefixInside {
        /// Where.
        given: Given,
        /// The longer one.
        inner: Key,
        /// The one that it lies in.
        outer: Key,
    },
    /// The settings file cannot be read.
    #[error("cannot read the settings file {}: {source}", path.display())]
    Unreadable {
        /// Its path, as it was given.
        path: PathBuf,
        /// What the system said.
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
        /// What the parser did not like, without the text itself.
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
            format!("the known ones are {}", known.join(", "))
        }
    }
}

/// All variables that mean something, the tools' included.
pub(super) fn known_variables() -> Vec<String> {
    let others = OTHER_VARIABLES.into_iter().map(str::to_owned);
    let settings = Setting::ALL.into_iter().map(Setting::variable);
    settings.chain(others).collect()
}

pub(super) fn known<S: AsRef<str>>(name: &str, spell: impl Fn(Setting) -> S) -> Option<Setting> {
    Setting::ALL
        .into_iter()
        .find(|setting| spell(*setting).as_ref() == name)
}

/// The one of `known` that resembles `name` most, if one does.
pub(super) fn nearest(name: &str, known: impl IntoIterator<Item = String>) -> Option<String> {
    let lower = name.to_lowercase();
    known
        .into_iter()
        .map(|known| (edits(&lower, &known.to_lowercase()), known))
        .min_by_key(|(edits, _)| *edits)
        // More than a third of it different is another word.
        .filter(|(edits, known)| {
            *edits * 3 <= known.trim_start_matches(ENVIRONMENT_PREFIX).len().max(3)
        })
        .map(|(_, known)| known)
}

/// How many bytes have to be inserted, removed or replaced to get from one to the other.
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(a != b))
                .min(above + 1)
                .min(row[j] + 1);
            diagonal = above;
        }
    }
    row[to.len()]
}

/// Whether a variable is no business of a server's.
pub(super) fn is_foreign(name: &str) -> bool {
    !name.starts_with(ENVIRONMENT_PREFIX)
        || OTHER_VARIABLES.contains(&name)
        || is_service_link(name)
}

/// Whether Kubernetes makes such a variable for a service called `driftless`, or `driftless-…`:
/// `…_SERVICE_HOST`, `…_SERVICE_PORT…`, `…_PORT`, `…_PORT_7400_TCP…`. Refusing to start over those
/// would be refusing to run there.
fn is_service_link(name: &str) -> bool {
    if name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") {
        return true;
    }
    name.match_indices("_PORT").any(|(at, found)| {
        let rest = &name[at + found.len()..];
        rest.is_empty()
            || rest
                .strip_prefix('_')
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    })
}
