//! The entries of a range at one revision, as an immutable value, and the differences of two.

use std::fmt;

use bytes::Bytes;
use driftless_proto::{Entry, Key, Revision};
use imbl::OrdMap;
use imbl::ordmap::DiffItem;

/// The state of a range at one revision. Immutable; cloning costs a reference count, and two states share
/// their equal entries.
#[derive(Clone, Default)]
pub struct Entries {
    map: OrdMap<Key, Compared>,
    revision: Revision,
}

/// An entry that compares by when it was last put, and to what: a difference is a change. Values that share
/// memory are equal without being read.
#[derive(Clone)]
struct Compared(Entry);

impl PartialEq for Compared {
    fn eq(&self, other: &Self) -> bool {
        let (one, other) = (&self.0, &other.0);
        one.mod_revision == other.mod_revision && same_bytes(&one.value, &other.value)
    }
}

fn same_bytes(one: &Bytes, other: &Bytes) -> bool {
    (one.as_ptr(), one.len()) == (other.as_ptr(), other.len()) || one == other
}

impl Entries {
    /// The revision up to which this state is known: no entry of the range changed between the newest
    /// entry's revision and this one.
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The entry of `key`.
    pub fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.map.get(key).map(|held| &held.0)
    }

    /// All entries, in ascending order of keys.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Entry> + ExactSizeIterator {
        self.map.values().map(|held| &held.0)
    }

    /// The difference from `old` to this state, in ascending order of keys. Its cost grows with what changed
    /// and not with the range, if one was made from the other.
    pub(crate) fn changes_since(&self, old: &Self) -> Vec<EntryChange> {
        let item = |item| match item {
            DiffItem::Add(_, new) => EntryChange::Put {
                old: None,
                new: Compared::clone(new).0,
            },
            DiffItem::Update { old, new } => EntryChange::Put {
                old: Some(Compared::clone(old.1).0),
                new: Compared::clone(new.1).0,
            },
            DiffItem::Remove(_, old) => EntryChange::Delete {
                old: Compared::clone(old).0,
                revision: self.revision,
            },
        };
        old.map.diff(&self.map).map(item).collect()
    }

    /// The keys of the same difference, computed one by one.
    pub(crate) fn changed_keys_since<'a>(&'a self, old: &'a Self) -> impl Iterator<Item = &'a Key> {
        old.map.diff(&self.map).map(|item| match item {
            DiffItem::Add(key, _) | DiffItem::Remove(key, _) => key,
            DiffItem::Update { new, .. } => new.0,
        })
    }

    pub(crate) fn set_revision(&mut self, revision: Revision) {
        self.revision = revision;
    }

    /// Whether that changed anything.
    pub(crate) fn insert(&mut self, entry: Entry) -> bool {
        let new = Compared(entry);
        match self.map.insert(new.0.key.clone(), new.clone()) {
            Some(old) => old != new,
            None => true,
        }
    }

    /// Whether that changed anything.
    pub(crate) fn remove(&mut self, key: &Key) -> bool {
        self.map.remove(key).is_some()
    }
}

impl fmt::Debug for Entries {
    /// The revision and the number of keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entries")
            .field("revision", &self.revision)
            .field("len", &self.len())
            .finish()
    }
}

/// What changed between two states.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EntriesChange {
    /// The revision of the newer state.
    pub revision: Revision,
    /// Each key at most once, in ascending order of keys. Never empty.
    pub changes: Vec<EntryChange>,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryChange {
    /// It was put.
    Put {
        /// The entry before; `None` if the key is new.
        old: Option<Entry>,
        /// The entry now.
        new: Entry,
    },
    /// It was deleted.
    Delete {
        /// The entry before.
        old: Entry,
        /// The revision of the state without it; the deletion itself may be older if several changes came
        /// together.
        revision: Revision,
    },
}

impl EntryChange {
    /// The key that changed.
    pub const fn key(&self) -> &Key {
        match self {
            Self::Put { new: entry, .. } | Self::Delete { old: entry, .. } => &entry.key,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &'static str, mod_revision: i64) -> Entry {
        Entry {
            key: Key::new(Bytes::copy_from_slice(key.as_bytes())).unwrap(),
            value: Bytes::from_static(value.as_bytes()),
            create_revision: Revision::new(1),
            mod_revision: Revision::new(mod_revision),
            version: 1,
        }
    }

    fn state(revision: i64, entries: &[Entry]) -> Entries {
        let mut state = Entries::default();
        for entry in entries {
            state.insert(entry.clone());
        }
        state.set_revision(Revision::new(revision));
        state
    }

    #[test]
    fn difference_lists_puts_and_deletes() {
        let (a, b, c) = (entry("a", "1", 1), entry("b", "1", 1), entry("c", "1", 1));
        let (b2, d) = (entry("b", "2", 5), entry("d", "1", 6));
        let old = state(3, &[a.clone(), b.clone(), c.clone()]);
        let new = state(7, &[b2.clone(), c, d.clone()]);
        let expected = vec![
            EntryChange::Delete {
                old: a,
                revision: Revision::new(7),
            },
            EntryChange::Put {
                old: Some(b),
                new: b2,
            },
            EntryChange::Put { old: None, new: d },
        ];
        assert_eq!(new.changes_since(&old), expected);
        assert_eq!(new.changes_since(&new.clone()), []);
    }

    #[test]
    fn change_is_a_new_revision_or_value() {
        let base = entry("a", "1", 5);
        for (what, other, changes) in [
            ("the same", base.clone(), 0),
            ("another value, put later", entry("a", "2", 6), 1),
            ("the same value, put again", entry("a", "1", 6), 1),
            ("another value, in another history", entry("a", "2", 5), 1),
            (
                "only counted differently",
                Entry {
                    version: 9,
                    ..base.clone()
                },
                0,
            ),
        ] {
            let (old, new) = (state(5, std::slice::from_ref(&base)), state(6, &[other]));
            assert_eq!(new.changes_since(&old).len(), changes, "{what}");
        }
    }

    #[test]
    fn difference_is_found_anywhere_in_a_large_state() {
        let mut old = Entries::default();
        for n in 0..10_000 {
            old.insert(entry(&format!("{n:05}"), "v", 1));
        }
        for changed in ["00000", "04999", "05000", "09999", "x"] {
            let mut new = old.clone();
            new.insert(entry(changed, "w", 2));
            let changes = new.changes_since(&old);
            assert_eq!(changes.len(), 1);
            assert_eq!(changes[0].key().to_string(), changed);
            let back = old.changes_since(&new);
            assert_eq!(back.len(), 1);
        }
    }

    #[test]
    fn debug_does_not_reveal_values() {
        let (a, b) = (entry("a", "CANARY", 1), entry("a", "CANARY2", 2));
        let (old, new) = (state(1, &[a]), state(2, &[b]));
        let changes = new.changes_since(&old);
        assert!(!format!("{new:?} {changes:?}").contains("CANARY"));
    }
}
