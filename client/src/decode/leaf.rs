//! Deserializes one key's value into whatever the type asks for.

use driftless_proto::{Entry, Key};
use serde::de::value::Error as Discarded;
use serde::de::{DeserializeOwned, Deserializer, Visitor};

use super::failure::Failure;
use super::format::{Format, Suffix};
use super::json;
use super::text::Text;
#[cfg(feature = "toml")]
use super::toml;
#[cfg(feature = "yaml")]
use super::yaml;
use crate::error::{Rejection, RejectionKind};

/// A value that exists.
#[derive(Clone, Copy)]
pub(super) struct Leaf<'a> {
    pub(super) key: &'a Key,
    value: &'a [u8],
    pub(super) suffix: Option<Suffix>,
    /// The format of values without a suffix.
    format: Option<Format>,
    /// A type that takes anything gets text and not a document, unless the format is known.
    any_is_text: bool,
}

/// Decodes the value of a range that is one key.
pub(super) fn decode<T: DeserializeOwned>(
    entry: &Entry,
    format: Option<Format>,
) -> Result<T, Rejection> {
    let suffix = entry.key.as_str().and_then(|key| Suffix::split(key).1);
    let leaf = Leaf {
        any_is_text: false,
        ..Leaf::in_tree(entry, suffix, format)
    };
    T::deserialize(leaf).map_err(|failure| failure.at(&entry.key).into_rejection())
}

/// The type's value for a key that does not exist, if it has one.
pub(super) fn decode_missing<T: DeserializeOwned>() -> Option<T> {
    T::deserialize(Missing).ok()
}

impl<'a> Leaf<'a> {
    pub(super) fn in_tree(
        entry: &'a Entry,
        suffix: Option<Suffix>,
        format: Option<Format>,
    ) -> Self {
        Self {
            key: &entry.key,
            value: &entry.value,
            suffix,
            format,
            any_is_text: true,
        }
    }

    fn text(&self) -> Result<&'a str, Failure> {
        std::str::from_utf8(self.value)
            .map_err(|_| Failure::new(RejectionKind::Utf8, "the value is not UTF-8"))
    }

    /// The format of a document: the suffix's, else the caller's, else JSON.
    fn format(&self) -> Result<Format, Failure> {
        match self.suffix {
            Some(Suffix::Named(format)) => Ok(format),
            Some(Suffix::Unread(why)) => Err(Failure::new(RejectionKind::Format, why)),
            None => Ok(self.format.unwrap_or(Format::Json)),
        }
    }

    /// Whether the value is only a variant's name and not a document: `fast` is neither JSON nor TOML, and is
    /// meant as a name.
    fn is_name(&self, text: &str) -> Result<bool, Failure> {
        Ok(match self.format()? {
            Format::Json => !text.trim_start().starts_with(['"', '{']),
            #[cfg(feature = "toml")]
            Format::Toml => !text.contains(['=', '[']),
            // In YAML, a name is a document.
            #[cfg(feature = "yaml")]
            Format::Yaml => false,
        })
    }
}

/// Reads a leaf as a document, with a method of its format's deserializer.
macro_rules! document {
    ($leaf:expr, $method:ident($($arg:expr),*)) => {
        match $leaf.format()? {
            Format::Json => json::read($leaf.text()?, |json| json.$method($($arg),*)),
            #[cfg(feature = "toml")]
            Format::Toml => toml::read($leaf.text()?, |toml| toml.$method($($arg),*)),
            #[cfg(feature = "yaml")]
            Format::Yaml => yaml::read($leaf.text()?, |yaml| yaml.$method($($arg),*)),
        }
    };
}

macro_rules! as_text {
    ($($method:ident $asked:literal,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            Text::new(self.text()?).$method(visitor)
        }
    )*};
}

macro_rules! as_document {
    ($($method:ident($($arg:ident: $type:ty),*),)*) => {$(
        fn $method<V: Visitor<'de>>(self, $($arg: $type,)* visitor: V) -> Result<V::Value, Failure> {
            document!(self, $method($($arg,)* visitor))
        }
    )*};
}

macro_rules! as_bytes {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            visitor
                .visit_bytes(self.value)
                .map_err(|failure: Failure| failure.asked("bytes"))
        }
    )*};
}

impl<'de> Deserializer<'de> for Leaf<'de> {
    type Error = Failure;

    scalars!(as_text);

    as_bytes! { deserialize_bytes deserialize_byte_buf }

    as_document! {
        deserialize_unit(),
        deserialize_unit_struct(name: &'static str),
        deserialize_seq(),
        deserialize_tuple(len: usize),
        deserialize_tuple_struct(name: &'static str, len: usize),
        deserialize_map(),
        deserialize_struct(name: &'static str, fields: &'static [&'static str]),
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        if self.any_is_text && self.suffix.is_none() && self.format.is_none() {
            Text::new(self.text()?).deserialize_any(visitor)
        } else {
            document!(self, deserialize_any(visitor))
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let text = self.text()?;
        if self.is_name(text)? {
            Text::new(text).deserialize_enum(name, variants, visitor)
        } else {
            document!(self, deserialize_enum(name, variants, visitor))
        }
    }
}

/// A key that does not exist: only an `Option`, or a newtype of one, can be made from it.
struct Missing;

impl<'de> Deserializer<'de> for Missing {
    type Error = Discarded;

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Discarded> {
        visitor.visit_none()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Discarded> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Discarded> {
        Err(serde::de::Error::custom("nothing is there"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}
