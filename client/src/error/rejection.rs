//! Why a state was refused, without quoting it.

use std::borrow::Cow;
use std::fmt;

use driftless_proto::Key;

/// Why a state was refused: it does not decode, or the service's validation refused it. The service keeps the
/// last good value.
///
/// It is safe to log, report and display: it names the key, the place within the value and what was expected
/// there, and contains nothing of the value itself, nor any text that a decoder or the service made from it.
/// A validator's text that is part of the program is kept: see
/// [`WatchBuilder::validate`](crate::WatchBuilder::validate).
#[derive(Clone, PartialEq, Eq)]
pub struct Rejection(Box<Facts>);

/// The kind of a rejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RejectionKind {
    /// A value is of another type than the field.
    Type,
    /// A value is not well-formed in its format.
    Syntax,
    /// A field without a default has no value.
    MissingField,
    /// There is a key or field that the type does not have, and forbids.
    UnknownField,
    /// A key or value that must be text is not UTF-8.
    Utf8,
    /// Two keys, or two fields of a document, are for the same thing.
    Conflict,
    /// The watched prefix lacks its final `/`: the keys go on with one.
    Prefix,
    /// This build does not read the format that the key's suffix names.
    Format,
    /// Keys are nested deeper than the limit.
    TooDeep,
    /// A document is nested deeper, or expands to more, than the limit.
    TooLarge,
    /// The service's own validation refused the value.
    Invalid,
    /// The service's own code panicked on the value.
    Panic,
}

impl RejectionKind {
    /// A stable word, as reports carry it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Type => "type",
            Self::Syntax => "syntax",
            Self::MissingField => "missing-field",
            Self::UnknownField => "unknown-field",
            Self::Utf8 => "utf8",
            Self::Conflict => "conflict",
            Self::Prefix => "prefix",
            Self::Format => "format",
            Self::TooDeep => "too-deep",
            Self::TooLarge => "too-large",
            Self::Invalid => "invalid",
            Self::Panic => "panic",
        }
    }
}

impl fmt::Display for RejectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Everything that may be revealed. All text is either static or a key's.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) kind: RejectionKind,
    /// What happened, where the kind does not say it.
    pub(crate) detail: &'static str,
    /// The validator's reason.
    pub(crate) reason: Option<&'static str>,
    /// What the type asked for.
    pub(crate) expected: Option<&'static str>,
    /// The kind of thing that was found.
    pub(crate) found: Option<&'static str>,
    /// The variants to choose from.
    pub(crate) one_of: &'static [&'static str],
    pub(crate) key: Option<Key>,
    /// The other key of a conflict.
    pub(crate) other: Option<Key>,
    /// The prefix to watch instead.
    pub(crate) instead: Option<Key>,
    pub(crate) path: String,
    /// Line and column, from 1.
    pub(crate) position: Option<(usize, usize)>,
}

impl Rejection {
    pub(crate) fn new(kind: RejectionKind, detail: &'static str) -> Self {
        Self(Box::new(Facts {
            kind,
            detail,
            reason: None,
            expected: None,
            found: None,
            one_of: &[],
            key: None,
            other: None,
            instead: None,
            path: String::new(),
            position: None,
        }))
    }

    pub(crate) fn facts_mut(&mut self) -> &mut Facts {
        &mut self.0
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.0
    }

    /// The service's validation refused it. Only a reason that is part of the program is kept: any other may
    /// quote the value, and the service may log it.
    pub(crate) fn invalid(reason: Option<&'static str>) -> Self {
        let detail = "the service's validation refused it";
        let mut rejection = Self::new(RejectionKind::Invalid, detail);
        rejection.facts_mut().reason = reason;
        rejection
    }

    /// The service's code panicked on it.
    pub(crate) fn panicked() -> Self {
        Self::new(RejectionKind::Panic, "the service's code panicked on it")
    }

    /// The kind.
    pub fn kind(&self) -> RejectionKind {
        self.0.kind
    }

    /// The key whose value was refused; for a missing field, the key that would set it. `None` if the state
    /// as a whole was refused.
    pub fn key(&self) -> Option<&Key> {
        self.0.key.as_ref()
    }

    /// The other key, if two are for the same thing.
    pub fn other_key(&self) -> Option<&Key> {
        self.0.other.as_ref()
    }

    /// Which field, such as `limits.rps` or `limits[3].name`; empty for the value as a whole.
    ///
    /// It consists of segments of keys, names of fields and variants that the type declares, and positions in
    /// lists. A map's keys within a value are part of the value: each is written as `*`.
    /// Where serde buffers (`#[serde(flatten)]`, untagged enums), the path ends at the buffer.
    pub fn path(&self) -> &str {
        &self.0.path
    }

    /// The line within the value, from 1, if its format has lines.
    pub fn line(&self) -> Option<usize> {
        self.0.position.map(|(line, _)| line)
    }

    /// The column within the line, from 1, in bytes.
    pub fn column(&self) -> Option<usize> {
        self.0.position.map(|(_, column)| column)
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts = &*self.0;
        match (&facts.key, &facts.other) {
            (Some(key), Some(other)) => {
                write!(f, "keys {} and {}: ", key.shortened(), other.shortened())?;
            }
            (Some(key), None) | (None, Some(key)) => write!(f, "key {}: ", key.shortened())?,
            (None, None) => {}
        }
        if !facts.path.is_empty() {
            write!(f, "field `{}`: ", shortened(&facts.path))?;
        }
        if let Some((line, column)) = facts.position {
            write!(f, "line {line}, column {column}: ")?;
        }
        match (facts.expected, facts.found) {
            _ if !facts.one_of.is_empty() => {
                write!(f, "expected one of {}", facts.one_of.join(", "))
            }
            (Some(expected), Some(found)) => write!(f, "expected {expected}, found {found}"),
            (Some(expected), None) => write!(f, "expected {expected}"),
            _ => f.write_str(facts.detail),
        }?;
        if let Some(reason) = facts.reason {
            write!(f, ": {reason}")?;
        }
        if let Some(instead) = &facts.instead {
            write!(f, "; watch {}", instead.shortened())?;
        }
        Ok(())
    }
}

/// How much of a path a message shows, in bytes: segments of keys are a part of it, and may be long.
const SHOWN_PATH: usize = 1024;

/// The end of a path tells more than its start.
fn shortened(path: &str) -> Cow<'_, str> {
    if path.len() <= SHOWN_PATH {
        return path.into();
    }
    let mut start = path.len() - SHOWN_PATH;
    while !path.is_char_boundary(start) {
        start += 1;
    }
    format!("...{}", &path[start..]).into()
}

impl fmt::Debug for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rejection({}: {self})", self.0.kind)
    }
}

impl std::error::Error for Rejection {}
