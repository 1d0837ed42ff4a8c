//! Wraps any format's deserializer: tracks the place in the document, and drops the format's error texts.
//!
//! A [`Track`] wraps the deserializer of a format and everything that it passes on, so that the type deserializes
//! with [`Failure`] as its error and never sees the format's own error, whose text quotes the document. As an
//! error is returned, each level adds where it was. Only names that the type itself declares are taken from the
//! document, by looking them up in the type's static list: everything else in a document is secret, including the
//! keys of its maps.
//!
//! Errors cross each level twice, because the format's code runs between ours. *Out* of our code, the error is an
//! empty error of the format, and the failure is stored in `aside`. Back *in* our code, it is the failure again,
//! and the format's error, which by then knows line and column, is stored in `format_error` for the level above.

use std::cell::Cell;
use std::convert::identity;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};

use super::failure::Failure;
use super::number;

type Aside = Cell<Option<Failure>>;
type FormatError<E> = Cell<Option<E>>;

/// A name in the document that the type declares.
type Name = Cell<Option<&'static str>>;

/// Reads from `format`; a failure comes with the format's last error.
pub(super) fn track<'de, D: Deserializer<'de>, R>(
    format: D,
    read: impl FnOnce(Track<'_, D, D::Error>) -> Result<R, Failure>,
) -> Result<R, (Failure, Option<D::Error>)> {
    let (aside, format_error) = (Aside::default(), Cell::new(None));
    read(Track {
        inner: format,
        aside: &aside,
        format_error: &format_error,
        name: None,
    })
    .map_err(|failure| (failure, format_error.take()))
}

/// A format's deserializer, wrapped.
pub(super) struct Track<'t, D, E> {
    inner: D,
    aside: &'t Aside,
    format_error: &'t FormatError<E>,
    /// Where to store the name that this deserializes, and the names that the type declares.
    name: Option<(&'t Name, &'static [&'static str])>,
}

/// From our code into the format's.
fn leave<E: Error>(aside: &Aside, format_error: Option<E>, failure: Failure) -> E {
    aside.set(Some(failure));
    format_error.unwrap_or_else(|| E::custom(""))
}

/// Back into our code.
fn enter<E>(
    aside: &Aside,
    format_error: &FormatError<E>,
    error: E,
    asked: &'static str,
) -> Failure {
    format_error.set(Some(error));
    aside.take().unwrap_or_else(|| Failure::by_decoder(asked))
}

impl<'t, D, E> Track<'t, D, E> {
    /// Calls the format with the visitor wrapped.
    fn visit<'de, V: Visitor<'de>>(
        self,
        visitor: V,
        asked: &'static str,
        names: &'static [&'static str],
        run: impl FnOnce(D, Visit<'t, V>) -> Result<V::Value, E>,
    ) -> Result<V::Value, Failure> {
        let visit = Visit {
            inner: visitor,
            aside: self.aside,
            asked,
            names,
            name: self.name,
        };
        run(self.inner, visit).map_err(|error| enter(self.aside, self.format_error, error, asked))
    }
}

macro_rules! tracked {
    ($($method:ident $asked:literal,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            self.visit(visitor, $asked, &[], |format, visit| format.$method(visit))
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Track<'_, D, D::Error> {
    type Error = Failure;

    scalars!(tracked);

    tracked! {
        deserialize_any "another sort of value",
        deserialize_ignored_any "any value",
        deserialize_bytes "bytes",
        deserialize_byte_buf "bytes",
        deserialize_option "a value or null",
        deserialize_unit "null",
        deserialize_seq "a list",
        deserialize_map "a map",
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.visit(visitor, "null", &[], |format, visit| {
            format.deserialize_unit_struct(name, visit)
        })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.visit(visitor, "a value", &[], |format, visit| {
            format.deserialize_newtype_struct(name, visit)
        })
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.visit(visitor, "a list of fixed length", &[], |format, visit| {
            format.deserialize_tuple(len, visit)
        })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.visit(visitor, "a list of fixed length", &[], |format, visit| {
            format.deserialize_tuple_struct(name, len, visit)
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.visit(visitor, "a struct", fields, |format, visit| {
            format.deserialize_struct(name, fields, visit)
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.visit(visitor, "a variant", variants, |format, visit| {
            format.deserialize_enum(name, variants, visit)
        })
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

/// The type's visitor, as the format sees it.
struct Visit<'t, V> {
    inner: V,
    aside: &'t Aside,
    asked: &'static str,
    /// The names of the fields or variants within.
    names: &'static [&'static str],
    name: Option<(&'t Name, &'static [&'static str])>,
}

impl<V> Visit<'_, V> {
    fn note_name(&self, text: &str) {
        if let Some((name, names)) = self.name {
            name.set(names.iter().find(|name| **name == text).copied());
        }
    }
}

macro_rules! visited {
    ($($method:ident $type:ty,)*) => {$(
        fn $method<E: Error>(self, value: $type) -> Result<V::Value, E> {
            let visited = self.inner.$method::<Failure>(value);
            visited.map_err(|failure| leave(self.aside, None, failure.asked(self.asked)))
        }
    )*};
}

macro_rules! visited_number {
    ($wrong:ident: $($method:ident $type:ty => $as:expr,)*) => {$(
        fn $method<E: Error>(self, value: $type) -> Result<V::Value, E> {
            let visited = self.inner.$method::<Failure>(value);
            visited.map_err(|failure| {
                let found = number::$wrong(self.asked, $as(value.into()));
                leave(self.aside, None, failure.asked(self.asked).found(found))
            })
        }
    )*};
}

macro_rules! visited_text {
    ($($method:ident $type:ty,)*) => {$(
        fn $method<E: Error>(self, text: $type) -> Result<V::Value, E> {
            self.note_name(&text);
            let visited = self.inner.$method::<Failure>(text);
            visited.map_err(|failure| leave(self.aside, None, failure.asked(self.asked)))
        }
    )*};
}

macro_rules! visited_nothing {
    ($($method:ident)*) => {$(
        fn $method<E: Error>(self) -> Result<V::Value, E> {
            let visited = self.inner.$method::<Failure>();
            visited.map_err(|failure| leave(self.aside, None, failure.asked(self.asked)))
        }
    )*};
}

macro_rules! visited_inner {
    ($($method:ident)*) => {$(
        fn $method<D: Deserializer<'de>>(self, format: D) -> Result<V::Value, D::Error> {
            let format_error = Cell::new(None);
            let track = Track { inner: format, aside: self.aside, format_error: &format_error, name: self.name };
            let visited = self.inner.$method(track);
            visited.map_err(|failure| {
                leave(self.aside, format_error.take(), failure.asked(self.asked))
            })
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Visit<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    visited_number! {
        out_of_range:
        visit_i8 i8 => Ok, visit_i16 i16 => Ok, visit_i32 i32 => Ok, visit_i64 i64 => Ok,
        visit_i128 i128 => Ok,
        visit_u8 u8 => Ok, visit_u16 u16 => Ok, visit_u32 u32 => Ok, visit_u64 u64 => Ok,
        // Not each of these is an i128.
        visit_u128 u128 => Err,
    }

    visited_number! { no_integer: visit_f32 f32 => identity, visit_f64 f64 => identity, }

    visited! {
        visit_bool bool,
        visit_char char,
        visit_bytes &[u8], visit_borrowed_bytes &'de [u8], visit_byte_buf Vec<u8>,
    }

    visited_text! { visit_str &str, visit_borrowed_str &'de str, visit_string String, }

    visited_nothing! { visit_none visit_unit }

    visited_inner! { visit_some visit_newtype_struct }

    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let format_error = Cell::new(None);
        let elements = Elements {
            inner: access,
            aside: self.aside,
            format_error: &format_error,
            index: 0,
        };
        let visited = self.inner.visit_seq(elements);
        visited.map_err(|failure| leave(self.aside, format_error.take(), failure.asked(self.asked)))
    }

    fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let format_error = Cell::new(None);
        let fields = Fields {
            inner: access,
            aside: self.aside,
            format_error: &format_error,
            names: self.names,
            name: Cell::new(None),
        };
        let visited = self.inner.visit_map(fields);
        visited.map_err(|failure| leave(self.aside, format_error.take(), failure.asked(self.asked)))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let format_error = Cell::new(None);
        let choice = Choice {
            inner: access,
            aside: self.aside,
            format_error: &format_error,
            names: self.names,
            name: None,
        };
        let visited = self.inner.visit_enum(choice);
        visited.map_err(|failure| leave(self.aside, format_error.take(), failure.asked(self.asked)))
    }
}

/// The type's next part of a list, map or variant, as the format sees it.
struct Seed<'t, S> {
    inner: S,
    aside: &'t Aside,
    name: Option<(&'t Name, &'static [&'static str])>,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Seed<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, format: D) -> Result<S::Value, D::Error> {
        let format_error = Cell::new(None);
        let track = Track {
            inner: format,
            aside: self.aside,
            format_error: &format_error,
            name: self.name,
        };
        let made = self.inner.deserialize(track);
        made.map_err(|failure| leave(self.aside, format_error.take(), failure))
    }
}

/// A list's elements.
struct Elements<'t, A, E> {
    inner: A,
    aside: &'t Aside,
    format_error: &'t FormatError<E>,
    index: usize,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Elements<'_, A, A::Error> {
    type Error = Failure;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Failure> {
        let index = self.index;
        self.index += 1;
        let seed = Seed {
            inner: seed,
            aside: self.aside,
            name: None,
        };
        let next = self.inner.next_element_seed(seed);
        next.map_err(|error| {
            enter(self.aside, self.format_error, error, "an element").within(&format!("[{index}]"))
        })
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

/// Replaces a name that the document and not the type declares.
const SOME_ENTRY: &str = "*";

/// A map's entries, or a struct's fields.
struct Fields<'t, A, E> {
    inner: A,
    aside: &'t Aside,
    format_error: &'t FormatError<E>,
    names: &'static [&'static str],
    /// The current field, if the type declares it.
    name: Name,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Fields<'_, A, A::Error> {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Failure> {
        self.name.set(None);
        let seed = Seed {
            inner: seed,
            aside: self.aside,
            name: Some((&self.name, self.names)),
        };
        let next = self.inner.next_key_seed(seed);
        next.map_err(|error| {
            let failure = enter(self.aside, self.format_error, error, "a name");
            if failure.by_decoder {
                // An error of the map, which may have ended here.
                failure
            } else {
                failure.within(SOME_ENTRY)
            }
        })
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Failure> {
        let seed = Seed {
            inner: seed,
            aside: self.aside,
            name: None,
        };
        let next = self.inner.next_value_seed(seed);
        next.map_err(|error| {
            enter(self.aside, self.format_error, error, "a value")
                .within(self.name.get().unwrap_or(SOME_ENTRY))
        })
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

/// A variant: its name before it is known, its content after that.
struct Choice<'t, A, E> {
    inner: A,
    aside: &'t Aside,
    format_error: &'t FormatError<E>,
    names: &'static [&'static str],
    name: Option<&'static str>,
}

impl<'t, A, E> Choice<'t, A, E> {
    fn seed<S>(&self, seed: S) -> Seed<'t, S> {
        Seed {
            inner: seed,
            aside: self.aside,
            name: None,
        }
    }

    fn visit<V>(&self, visitor: V, fields: &'static [&'static str]) -> Visit<'t, V> {
        Visit {
            inner: visitor,
            aside: self.aside,
            asked: "a variant's content",
            names: fields,
            name: None,
        }
    }

    fn failed(
        aside: &Aside,
        format_error: &FormatError<E>,
        name: Option<&'static str>,
        error: E,
    ) -> Failure {
        let failure = enter(aside, format_error, error, "a variant");
        match name {
            Some(name) => failure.within(name),
            None => failure,
        }
    }
}

impl<'de, 't, A: EnumAccess<'de>> EnumAccess<'de> for Choice<'t, A, A::Error> {
    type Error = Failure;
    type Variant = Choice<'t, A::Variant, A::Error>;

    fn variant_seed<T: DeserializeSeed<'de>>(
        self,
        seed: T,
    ) -> Result<(T::Value, Self::Variant), Failure> {
        let (aside, format_error) = (self.aside, self.format_error);
        let name = Name::default();
        let seed = Seed {
            inner: seed,
            aside,
            name: Some((&name, self.names)),
        };
        match self.inner.variant_seed(seed) {
            Ok((value, content)) => Ok((
                value,
                Choice {
                    inner: content,
                    aside,
                    format_error,
                    names: &[],
                    name: name.get(),
                },
            )),
            Err(error) => Err(Self::failed(aside, format_error, None, error)),
        }
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Choice<'_, A, A::Error> {
    type Error = Failure;

    fn unit_variant(self) -> Result<(), Failure> {
        let failed = |error| Self::failed(self.aside, self.format_error, self.name, error);
        self.inner.unit_variant().map_err(failed)
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Failure> {
        let seed = self.seed(seed);
        let failed = |error| Self::failed(self.aside, self.format_error, self.name, error);
        self.inner.newtype_variant_seed(seed).map_err(failed)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Failure> {
        let visit = self.visit(visitor, &[]);
        let failed = |error| Self::failed(self.aside, self.format_error, self.name, error);
        self.inner.tuple_variant(len, visit).map_err(failed)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let visit = self.visit(visitor, fields);
        let failed = |error| Self::failed(self.aside, self.format_error, self.name, error);
        self.inner.struct_variant(fields, visit).map_err(failed)
    }
}
