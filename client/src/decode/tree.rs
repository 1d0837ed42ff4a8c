//! Decodes the keys below a prefix into a typed value.
//!
//! There is no tree in memory: the keys are sorted by their segments, so that the keys below a segment are a
//! slice.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use driftless_proto::{Entry, Key};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, MapAccess, VariantAccess, Visitor,
};

use super::failure::Failure;
use super::format::{Format, Suffix};
use super::leaf::Leaf;
use super::text::Text;
use crate::error::{Rejection, RejectionKind};

/// The most segments that are followed, as many as the levels of a JSON document. Otherwise a type that takes
/// anything would overflow the stack on a key with very many slashes.
const MAX_DEPTH: usize = 128;

/// The most maps of whole paths that are discovered in a type. Each is a place in the type and not in the data,
/// so only a type that contains itself could have more than a few.
const MAX_ATTEMPTS: usize = 32;

/// The text for a key that has a value and keys below it.
const LEAF_AND_PARENT: &str = "one has a value and is a parent of the other: use one of them";

/// The text for keys that differ by their suffix only.
const SUFFIXES: &str = "they differ by their suffix only: use one of them";

/// Decodes the entries below `prefix`.
pub(super) fn decode<T: DeserializeOwned>(
    prefix: &Key,
    entries: &mut dyn Iterator<Item = &Entry>,
    format: Option<Format>,
) -> Result<T, Rejection> {
    let mut below: Vec<Below<'_>> = Vec::new();
    for entry in entries {
        // An entry outside of the range is not for this type.
        if let Some(path) = entry.key.as_ref().strip_prefix(prefix.as_ref()) {
            if path.starts_with(b"/") && !prefix.as_ref().ends_with(b"/") {
                return Err(no_slash(prefix, &entry.key));
            }
            below.push(Below::new(path, entry, format)?);
        }
    }
    below.sort_by(|a, b| a.name.split('/').cmp(b.name.split('/')));
    let whole_paths = BTreeSet::new();
    let mut shape = Shape {
        prefix,
        whole_paths,
        discovered: RefCell::new(None),
    };
    let mut attempt = 0;
    loop {
        attempt += 1;
        let root = Branch {
            shape: &shape,
            below: &below,
            start: 0,
            place: Place::new(),
        };
        let root = Node {
            what: What::Branch(root),
            map: None,
        };
        match T::deserialize(root) {
            Ok(value) => return Ok(value),
            Err(failure) => {
                let discovered = shape.discovered.take();
                let more = discovered.is_some_and(|place| shape.whole_paths.insert(place));
                if !more || attempt == MAX_ATTEMPTS {
                    return Err(failure.into_rejection());
                }
            }
        }
    }
}

/// The prefix lacks its final slash. That is a mistake: no field's name is empty, so a struct of defaults would
/// silently take no key.
fn no_slash(prefix: &Key, key: &Key) -> Rejection {
    let detail = "the watched prefix does not end in `/`";
    let mut failure = Failure::new(RejectionKind::Prefix, detail).at(key);
    failure.facts_mut().instead = Key::new([prefix.as_ref(), b"/"].concat());
    failure.into_rejection()
}

/// One key below the prefix.
struct Below<'a> {
    /// The key without the prefix.
    path: &'a str,
    /// The same without its suffix.
    name: &'a str,
    leaf: Leaf<'a>,
}

impl<'a> Below<'a> {
    fn new(path: &'a [u8], entry: &'a Entry, format: Option<Format>) -> Result<Self, Rejection> {
        let path = std::str::from_utf8(path).map_err(|_| {
            Failure::new(RejectionKind::Utf8, "the key is not UTF-8")
                .at(&entry.key)
                .into_rejection()
        })?;
        let (name, suffix) = Suffix::split(path);
        Ok(Self {
            path,
            name,
            leaf: Leaf::in_tree(entry, suffix, format),
        })
    }
}

/// A place in the type: fields by name, and `None` for any entry of a map. It stands for every
/// value that the type has there.
type Place<'a> = Vec<Option<&'a str>>;

/// What is known about the type, and what one attempt discovers.
///
/// Whether a map wants whole paths depends on the type of its values, which serde reveals only when it asks for a
/// value: after its key was given. So the first attempt gives every map one segment as the key. When a value that
/// is not text is then asked for as text, the map's place is stored, and another attempt is made.
struct Shape<'a> {
    prefix: &'a Key,
    whole_paths: BTreeSet<Place<'a>>,
    discovered: RefCell<Option<Place<'a>>>,
}

/// All keys below a segment.
#[derive(Clone)]
struct Branch<'a, 's> {
    shape: &'s Shape<'a>,
    below: &'s [Below<'a>],
    /// Where in their paths the next segment starts.
    start: usize,
    place: Place<'a>,
}

/// What one name stands for.
enum What<'a, 's> {
    Leaf(Leaf<'a>),
    Branch(Branch<'a, 's>),
    /// Two keys for one thing.
    Clash(&'static str, &'a Key, &'a Key),
}

/// Deserializes what one name stands for.
struct Node<'a, 's> {
    what: What<'a, 's>,
    /// The map whose value this is, unless it has whole paths already.
    map: Option<(&'s Shape<'a>, Place<'a>)>,
}

impl<'a, 's> Branch<'a, 's> {
    /// The first name, what it stands for, and the keys of the other names.
    fn split(&self) -> Option<(&'a str, What<'a, 's>, &'s [Below<'a>])> {
        let first = self.below.first()?;
        let rest = |below: &Below<'a>| -> &'a str { &below.name[self.start..] };
        let segment = |below: &Below<'a>| -> &'a str {
            let rest = rest(below);
            rest.split_once('/').map_or(rest, |(segment, _)| segment)
        };
        let name = segment(first);
        let same = self.below.partition_point(|below| segment(below) <= name);
        let (group, others) = self.below.split_at(same);
        // Sorted: keys that end here come before those that go on.
        let leaves = group.partition_point(|below| rest(below).len() == name.len());
        let what = match (leaves, group) {
            (0, _) => What::Branch(Branch {
                shape: self.shape,
                below: group,
                start: self.start + name.len() + 1,
                place: self.place.clone(),
            }),
            (1, [leaf]) => What::Leaf(leaf.leaf),
            (1, [leaf, child, ..]) => What::Clash(LEAF_AND_PARENT, leaf.leaf.key, child.leaf.key),
            (_, [one, other, ..]) => What::Clash(SUFFIXES, one.leaf.key, other.leaf.key),
            (_, [_] | []) => return None,
        };
        Some((name, what, others))
    }

    /// The key of a field of this branch.
    fn key_of(&self, field: &str) -> Option<Key> {
        let above = self.below.first().map_or("", |b| &b.path[..self.start]);
        let prefix = self.shape.prefix.as_ref();
        Key::new([prefix, above.as_bytes(), field.as_bytes()].concat())
    }

    /// The first path, its value, and the other keys.
    fn split_path(&self) -> Option<(&'a str, What<'a, 's>, &'s [Below<'a>])> {
        let (first, others) = self.below.split_first()?;
        Some((&first.path[self.start..], What::Leaf(first.leaf), others))
    }

    /// Deserializes a struct or a map.
    fn visit<V: Visitor<'a>>(self, visitor: V, kind: Kind) -> Result<V::Value, Failure> {
        if self.place.len() >= MAX_DEPTH {
            let deep = "the keys are nested too deep";
            return Err(Failure::new(RejectionKind::TooDeep, deep));
        }
        let fields = Fields {
            rest: self.clone(),
            kind,
            value: None,
        };
        visitor.visit_map(fields).map_err(|mut failure| {
            let facts = failure.facts();
            if facts.kind == RejectionKind::MissingField && facts.key.is_none() {
                let key = self.key_of(&facts.path);
                failure.facts_mut().key = key;
            }
            failure.asked("another sort of value")
        })
    }
}

/// How the type reads the keys below a segment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Struct,
    /// A map, or a struct that asks for one because it flattens.
    Map,
    /// A map whose keys are whole paths.
    Paths,
}

impl<'a, 's> What<'a, 's> {
    /// The key that an error names.
    fn key(&self) -> Option<&'a Key> {
        match self {
            Self::Leaf(leaf) => Some(leaf.key),
            Self::Branch(branch) => branch.below.first().map(|below| below.leaf.key),
            Self::Clash(_, key, _) => Some(key),
        }
    }
}

/// The fields of a struct or the entries of a map.
struct Fields<'a, 's> {
    rest: Branch<'a, 's>,
    kind: Kind,
    /// What the name that was returned last stands for.
    value: Option<(&'a str, Node<'a, 's>)>,
}

impl<'de> MapAccess<'de> for Fields<'de, '_> {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Failure> {
        let split = match self.kind {
            Kind::Paths => self.rest.split_path(),
            Kind::Struct | Kind::Map => self.rest.split(),
        };
        let Some((name, mut what, others)) = split else {
            return Ok(None);
        };
        self.rest.below = others;
        let named = Cell::new(self.kind == Kind::Struct);
        let key = seed
            .deserialize(Text::name(name, &named))
            .map_err(|failure| located(failure.within(name), what.key()))?;
        let map = (self.kind == Kind::Map && !named.get())
            .then(|| (self.rest.shape, self.rest.place.clone()));
        if let What::Branch(branch) = &mut what {
            branch.place.push(named.get().then_some(name));
        }
        self.value = Some((name, Node { what, map }));
        Ok(Some(key))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Failure> {
        let Some((name, node)) = self.value.take() else {
            return Err(serde::de::Error::custom("a value before its name"));
        };
        let key = node.what.key();
        seed.deserialize(node)
            .map_err(|failure| located(failure.within(name), key))
    }
}

fn located(failure: Failure, key: Option<&Key>) -> Failure {
    match key {
        Some(key) => failure.at(key),
        None => failure,
    }
}

impl<'a, 's> Node<'a, 's> {
    /// The leaf, for a type that is read from text.
    fn text(self, asked: &'static str) -> Result<Leaf<'a>, Failure> {
        let found = match self.what {
            What::Leaf(leaf) if leaf.suffix.is_none() || self.map.is_none() => return Ok(leaf),
            What::Leaf(_) => Failure::mismatch(asked, Some("a key with a suffix")),
            What::Branch(_) => Failure::mismatch(asked, Some("keys below it")),
            What::Clash(why, key, other) => Failure::conflict(why, key, other),
        };
        // In a map of whole paths, each path has a value.
        if let Some((shape, place)) = self.map {
            shape.discovered.replace(Some(place));
        }
        Err(found)
    }

    /// The leaf, for a type that is read from a document and cannot be read from keys.
    fn document(self, asked: &'static str) -> Result<Leaf<'a>, Failure> {
        match self.what {
            What::Leaf(leaf) => Ok(leaf),
            What::Branch(_) => Err(Failure::mismatch(asked, Some("keys below it"))),
            What::Clash(why, key, other) => Err(Failure::conflict(why, key, other)),
        }
    }
}

macro_rules! as_text {
    ($($method:ident $asked:literal,)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            self.text($asked)?.$method(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for Node<'de, '_> {
    type Error = Failure;

    scalars!(as_text);

    as_text! {
        deserialize_bytes "bytes",
        deserialize_byte_buf "bytes",
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.what {
            What::Leaf(leaf) => leaf.deserialize_any(visitor),
            What::Branch(_) | What::Clash(..) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match &self.what {
            // Only the prefix itself can have no key below it.
            What::Branch(branch) if branch.below.is_empty() => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        match self.what {
            What::Branch(branch) => branch.visit(visitor, Kind::Struct),
            _ => self
                .document("a struct")?
                .deserialize_struct(name, fields, visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.what {
            What::Branch(branch) => {
                let kind = if branch.shape.whole_paths.contains(&branch.place) {
                    Kind::Paths
                } else {
                    Kind::Map
                };
                branch.visit(visitor, kind)
            }
            _ => self.document("a map")?.deserialize_map(visitor),
        }
    }

    /// A variant with data is one name below this one, as in any format; a variant without data is text.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        if let What::Branch(branch) = &self.what
            && let Some((variant, mut what, [])) = branch.split()
            && variants.contains(&variant)
        {
            let key = what.key();
            if let What::Branch(inner) = &mut what {
                inner.place.push(Some(variant));
            }
            let content = Node { what, map: None };
            return visitor
                .visit_enum(Variant { variant, content })
                .map_err(|failure| located(failure.within(variant), key));
        }
        self.text("a variant")?
            .deserialize_enum(name, variants, visitor)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.document("null")?.deserialize_unit(visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.document("null")?
            .deserialize_unit_struct(name, visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.document("a list")?.deserialize_seq(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.document("a list of fixed length")?
            .deserialize_tuple(len, visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.document("a list of fixed length")?
            .deserialize_tuple_struct(name, len, visitor)
    }
}

/// A variant with data: its name, and its content.
struct Variant<'a, 's> {
    variant: &'a str,
    content: Node<'a, 's>,
}

impl<'de, 's> EnumAccess<'de> for Variant<'de, 's> {
    type Error = Failure;
    type Variant = Node<'de, 's>;

    fn variant_seed<T: DeserializeSeed<'de>>(
        self,
        seed: T,
    ) -> Result<(T::Value, Node<'de, 's>), Failure> {
        let variant = seed.deserialize(Text::new(self.variant))?;
        Ok((variant, self.content))
    }
}

impl<'de> VariantAccess<'de> for Node<'de, '_> {
    type Error = Failure;

    fn unit_variant(self) -> Result<(), Failure> {
        let expected = "the variant's name as the value";
        Err(Failure::mismatch(expected, Some("a key of that name")))
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Failure> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_tuple(len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.deserialize_struct("", fields, visitor)
    }
}
