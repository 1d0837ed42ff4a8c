//! The error type of deserializing, which becomes a rejection.

use std::fmt;

use driftless_proto::Key;
use serde::de::{Error, Expected, Unexpected};

use crate::error::{Facts, Rejection, RejectionKind};

/// A [`Rejection`] to which each level adds where it happened.
///
/// It keeps values secret: every text of serde or of a type's own code goes through the constructors of
/// [`serde::de::Error`], which keep only what is static.
pub(super) struct Failure {
    rejection: Rejection,
    /// The error of a format's library, which knows more about the kind.
    pub(super) by_decoder: bool,
}

impl Failure {
    pub(super) fn new(kind: RejectionKind, detail: &'static str) -> Self {
        Self {
            rejection: Rejection::new(kind, detail),
            by_decoder: false,
        }
    }

    /// Something else was found than the type asked for.
    pub(super) fn mismatch(expected: &'static str, found: Option<&'static str>) -> Self {
        let mut failure = Self::new(RejectionKind::Type, "the type does not take it");
        failure.facts_mut().expected = Some(expected);
        failure.facts_mut().found = found;
        failure
    }

    /// A format's library failed when the type asked for this.
    pub(super) fn by_decoder(asked: &'static str) -> Self {
        Self {
            by_decoder: true,
            ..Self::mismatch(asked, None)
        }
    }

    /// A key or a field exists twice.
    pub(super) fn conflict(detail: &'static str, key: &Key, other: &Key) -> Self {
        let mut failure = Self::new(RejectionKind::Conflict, detail);
        failure.facts_mut().key = Some(key.clone());
        failure.facts_mut().other = Some(other.clone());
        failure
    }

    pub(super) fn facts(&self) -> &Facts {
        self.rejection.facts()
    }

    pub(super) fn facts_mut(&mut self) -> &mut Facts {
        self.rejection.facts_mut()
    }

    /// Adds what the type asked for, if a visitor only named what it got.
    pub(super) fn asked(mut self, asked: &'static str) -> Self {
        let facts = self.facts_mut();
        if facts.found.is_some() && facts.expected.is_none() {
            facts.expected = Some(asked);
        }
        self
    }

    /// Adds what was found, if more details are known; `None` changes nothing.
    pub(super) fn found(mut self, found: Option<&'static str>) -> Self {
        let facts = self.facts_mut();
        if found.is_some() && facts.kind == RejectionKind::Type && facts.expected.is_some() {
            facts.found = found;
        }
        self
    }

    /// Adds what may be revealed of a library's error: its kind, if it is not about the type, and the line and
    /// column.
    pub(super) fn described(
        mut self,
        is: Option<(RejectionKind, &'static str)>,
        position: Option<(usize, usize)>,
    ) -> Self {
        let by_decoder = self.by_decoder;
        let facts = self.facts_mut();
        if let Some((kind, detail)) = is.filter(|_| by_decoder) {
            facts.kind = kind;
            facts.detail = detail;
            facts.expected = None;
        }
        facts.position = position;
        self
    }

    /// Adds the field, element or segment in which it happened.
    pub(super) fn within(mut self, segment: &str) -> Self {
        let inner = std::mem::take(&mut self.facts_mut().path);
        let path = &mut self.facts_mut().path;
        // A segment of a key may hold any character.
        for c in segment.chars() {
            if c.is_control() {
                path.extend(c.escape_default());
            } else {
                path.push(c);
            }
        }
        if !inner.is_empty() && !inner.starts_with('[') {
            path.push('.');
        }
        path.push_str(&inner);
        self
    }

    /// Adds the key at which it happened, unless one is known.
    pub(super) fn at(mut self, key: &Key) -> Self {
        self.facts_mut().key.get_or_insert_with(|| key.clone());
        self
    }

    pub(super) fn into_rejection(self) -> Rejection {
        self.rejection
    }
}

/// The kind of thing, without its value.
const fn kind_of(unexpected: &Unexpected<'_>) -> &'static str {
    match unexpected {
        Unexpected::Bool(_) => "a boolean",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) => "an integer",
        Unexpected::Float(_) => "a number",
        Unexpected::Char(_) => "a character",
        Unexpected::Str(_) => "a string",
        Unexpected::Bytes(_) => "bytes",
        Unexpected::Unit => "null",
        Unexpected::Option => "an optional value",
        Unexpected::NewtypeStruct => "a newtype",
        Unexpected::Seq => "a list",
        Unexpected::Map => "a map",
        Unexpected::Enum
        | Unexpected::UnitVariant
        | Unexpected::NewtypeVariant
        | Unexpected::TupleVariant
        | Unexpected::StructVariant => "a variant",
        Unexpected::Other(_) => "something else",
    }
}

// `Expected`, `Display` and the names of unknown fields may quote the value: none of them is rendered.
impl Error for Failure {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self::new(RejectionKind::Type, "the type does not take it")
    }

    fn invalid_type(found: Unexpected<'_>, _: &dyn Expected) -> Self {
        let mut failure = Self::custom("");
        failure.facts_mut().found = Some(kind_of(&found));
        failure
    }

    fn invalid_value(found: Unexpected<'_>, _: &dyn Expected) -> Self {
        let mut failure = Self::custom("");
        failure.facts_mut().found = Some(match kind_of(&found) {
            "an integer" => "an integer out of its range",
            "a string" => "another string",
            other => other,
        });
        failure
    }

    fn invalid_length(_: usize, _: &dyn Expected) -> Self {
        let mut failure = Self::custom("");
        failure.facts_mut().found = Some("another number of elements");
        failure
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        let mut failure = Self::custom("");
        failure.facts_mut().one_of = expected;
        failure
    }

    fn unknown_field(_: &str, _: &'static [&'static str]) -> Self {
        Self::new(RejectionKind::UnknownField, "the type has no such field")
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(RejectionKind::MissingField, "missing, and has no default").within(field)
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new(RejectionKind::Conflict, "given twice").within(field)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rejection.fmt(f)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rejection.fmt(f)
    }
}

impl std::error::Error for Failure {}
