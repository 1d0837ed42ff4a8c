//! One key's value to whatever the target asks for.

use driftless_proto::{Entry, Key};
use serde::de::value::Error as Discarded;
use serde::de::{DeserializeOwned, Deserializer, Visitor};

use super::failure::Failure;
use super::rejection::{Rejection, RejectionKind};
use super::text::Text;
use super::track::{Track, track};

/// What a value is written in, when its key says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suffix {
    Json,
    /// A format that this build cannot read; what to say about it.
    Unread(&'static str),
}

impl Suffix {
    /// Splits the suffix off a key's text, when there is one and it leaves a name.
    pub(super) fn split(key: &str) -> (&str, Option<Self>) {
        const KNOWN: [(&str, Suffix); 3] = [
            (".json", Suffix::Json),
            (
                ".toml",
                Suffix::Unread("this build has no decoder for .toml: write it as .json"),
            ),
            (
                ".yaml",
                Suffix::Unread("this build has no decoder for .yaml: write it as .json"),
            ),
        ];
        KNOWN
            .iter()
            .find_map(|(text, suffix)| {
                let name = key.strip_suffix(text)?;
                let named = !name.is_empty() && !name.ends_with('/');
                named.then_some((name, Some(*suffix)))
            })
            .unwrap_or((key, None))
    }
}

/// A value that exists.
#[derive(Clone, Copy)]
pub(super) struct Leaf<'a> {
    pub(super) key: &'a Key,
    value: &'a [u8],
    pub(super) suffix: Option<Suffix>,
    /// A target that takes anything gets text, and not JSON.
    any_is_text: bool,
}

/// The one value that a range of one key holds.
pub(super) fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T, Rejection> {
    let suffix = entry.key.as_str().and_then(|key| Suffix::split(key).1);
    let leaf = Leaf {
        any_is_text: false,
        ..Leaf::in_tree(entry, suffix)
    };
    T::deserialize(leaf).map_err(|failure| failure.at(&entry.key).into_rejection())
}

/// What a type makes of a key that does not exist, if anything.
pub(super) fn decode_missing<T: DeserializeOwned>() -> Option<T> {
    T::deserialize(Missing).ok()
}

impl<'a> Leaf<'a> {
    pub(super) fn in_tree(entry: &'a Entry, suffix: Option<Suffix>) -> Self {
        Self {
            key: &entry.key,
            value: &entry.value,
            suffix,
            any_is_text: true,
        }
    }

    fn text(&self) -> Result<&'a str, Failure> {
        std::str::from_utf8(self.value)
            .map_err(|_| Failure::new(RejectionKind::Utf8, "the value is not UTF-8"))
    }

    /// Reads the value as a document in the format that the suffix names, JSON without one.
    fn document<R>(
        &self,
        read: impl FnOnce(Track<'_, &mut Json<'a>>) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        if let Some(Suffix::Unread(why)) = self.suffix {
            return Err(Failure::new(RejectionKind::Format, why));
        }
        let mut json = serde_json::Deserializer::from_str(self.text()?);
        let read = track(&mut json, read).map_err(|(failure, said)| located(failure, said));
        let value = read?;
        // More behind the end of it is no JSON either.
        let end = json.end();
        end.map_err(|said| located(Failure::by_decoder("the end"), Some(said)))?;
        Ok(value)
    }
}

type Json<'a> = serde_json::Deserializer<serde_json::de::StrRead<'a>>;

/// Adds what may be known of what the decoder said: where, and which sort.
fn located(mut failure: Failure, said: Option<serde_json::Error>) -> Failure {
    let Some(said) = said else { return failure };
    let by_decoder = failure.by_decoder;
    let facts = failure.facts_mut();
    if by_decoder && !said.is_data() {
        facts.kind = RejectionKind::Syntax;
        facts.detail = if said.is_eof() {
            "not JSON: it ends too early"
        } else {
            "not JSON"
        };
        facts.expected = None;
    }
    // Line 0: it does not know.
    if said.line() > 0 {
        facts.position = Some((said.line(), said.column()));
    }
    failure
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
            self.document(|json| json.$method($($arg,)* visitor))
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
        if self.any_is_text && self.suffix.is_none() {
            Text::new(self.text()?).deserialize_any(visitor)
        } else {
            self.document(|json| json.deserialize_any(visitor))
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
        if text.trim_start().starts_with(['"', '{']) {
            self.document(|json| json.deserialize_enum(name, variants, visitor))
        } else {
            Text::new(text).deserialize_enum(name, variants, visitor)
        }
    }
}

/// A key that does not exist: nothing but an `Option`, or a newtype of one, can be made from it.
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
