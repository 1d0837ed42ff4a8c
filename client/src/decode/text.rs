//! Deserializes text into scalars: a value that is read as text, and the name of a field or of a map's entry.

use std::cell::Cell;

use serde::de::value::StrDeserializer;
use serde::de::{Deserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::failure::Failure;
use super::number;

/// Deserializes from text.
#[derive(Clone, Copy)]
pub(super) struct Text<'t> {
    text: &'t str,
    /// Set when the type asks for the name of a struct's field.
    named: Option<&'t Cell<bool>>,
}

impl<'t> Text<'t> {
    pub(super) const fn new(text: &'t str) -> Self {
        Self { text, named: None }
    }

    /// A name that sets `named` if it is taken as a field's name. That tells a struct from a map, also one that
    /// flattens and therefore asks for a map.
    pub(super) const fn name(text: &'t str, named: &'t Cell<bool>) -> Self {
        Self {
            text,
            named: Some(named),
        }
    }
}

macro_rules! parsed {
    ($($method:ident $visit:ident $type:ty: $asked:literal,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            match self.text.trim().parse::<$type>() {
                Ok(value) => visitor.$visit(value),
                Err(_) => Err(Failure::mismatch($asked, Some(number::text($asked, self.text)))),
            }
            .map_err(|failure: Failure| failure.asked($asked))
        }
    )*};
}

macro_rules! finite {
    ($($method:ident $visit:ident $type:ty: $asked:literal,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            // Not "inf" and "nan": no other format has them, and 1e999 is a mistake.
            match self.text.trim().parse::<$type>() {
                Ok(value) if value.is_finite() => visitor.$visit(value),
                _ => Err(Failure::mismatch($asked, Some(number::text($asked, self.text)))),
            }
            .map_err(|failure: Failure| failure.asked($asked))
        }
    )*};
}

macro_rules! verbatim {
    ($($method:ident: $asked:literal,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            visitor
                .visit_str(self.text)
                .map_err(|failure: Failure| failure.asked($asked))
        }
    )*};
}

impl<'de> Deserializer<'de> for Text<'_> {
    type Error = Failure;

    parsed! {
        deserialize_bool visit_bool bool: "a boolean (true or false)",
        deserialize_i8 visit_i8 i8: "an integer (i8)",
        deserialize_i16 visit_i16 i16: "an integer (i16)",
        deserialize_i32 visit_i32 i32: "an integer (i32)",
        deserialize_i64 visit_i64 i64: "an integer (i64)",
        deserialize_i128 visit_i128 i128: "an integer (i128)",
        deserialize_u8 visit_u8 u8: "an integer (u8)",
        deserialize_u16 visit_u16 u16: "an integer (u16)",
        deserialize_u32 visit_u32 u32: "an integer (u32)",
        deserialize_u64 visit_u64 u64: "an integer (u64)",
        deserialize_u128 visit_u128 u128: "an integer (u128)",
    }

    finite! {
        deserialize_f32 visit_f32 f32: "a number (f32)",
        deserialize_f64 visit_f64 f64: "a number (f64)",
    }

    verbatim! {
        deserialize_char: "a character",
        deserialize_str: "a string",
        deserialize_string: "a string",
        deserialize_any: "something else than text",
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        if let Some(named) = self.named {
            named.set(true);
        }
        self.deserialize_str(visitor)
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
        StrDeserializer::<Failure>::new(self.text.trim())
            .deserialize_enum(name, variants, visitor)
            .map_err(|failure| failure.asked("a variant with data, as JSON"))
    }

    forward_to_deserialize_any! {
        bytes byte_buf unit unit_struct seq tuple tuple_struct map struct ignored_any
    }
}
