//! Keys and values as they are: an immutable state, and a watcher of states. For tools, and for
//! whoever decodes by themselves.

use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use driftless_proto::{Entry, Key, KeyRange, RangeError, Revision};
use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use tokio::sync::watch;

use crate::error::{Closed, NoValue, WatchError};
use crate::registry::Registry;
use crate::status::{Status, StatusWatcher};
use crate::subscription::Shared;

/// The state of a range at one revision. Immutable; cloning costs a reference count, and two states
/// share all that is the same in them.
#[derive(Clone, Default)]
pub struct Entries {
    map: OrdMap<Key, Held>,
    revision: Revision,
}

/// An entry, compared the way that changes are told: by when it was last put, and to what. Values
/// that share their memory are not read.
#[derive(Clone)]
struct Held(Entry);

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        let (one, other) = (&self.0, &other.0);
        one.mod_revision == other.mod_revision && same_bytes(&one.value, &other.value)
    }
}

fn same_bytes(one: &Bytes, other: &Bytes) -> bool {
    (one.as_ptr(), one.len()) == (other.as_ptr(), other.len()) || one == other
}

impl Entries {
    /// The revision up to which this state is known: no entry of the range changed between the
    /// newest entry's revision and this one.
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

    /// What is under `key`.
    pub fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.map.get(key).map(|held| &held.0)
    }

    /// All entries, in ascending order of keys.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Entry> + ExactSizeIterator {
        self.map.values().map(|held| &held.0)
    }

    /// The difference from `old` to this state, in ascending order of keys. Costs what changed, not
    /// what is held, when one was made from the other.
    fn changes_since(&self, old: &Self) -> Vec<EntryChange> {
        let item = |item| match item {
            DiffItem::Add(_, new) => EntryChange::Put {
                old: None,
                new: Held::clone(new).0,
            },
            DiffItem::Update { old, new } => EntryChange::Put {
                old: Some(Held::clone(old.1).0),
                new: Held::clone(new.1).0,
            },
            DiffItem::Remove(_, old) => EntryChange::Delete {
                old: Held::clone(old).0,
                revision: self.revision,
            },
        };
        old.map.diff(&self.map).map(item).collect()
    }

    /// The keys of the same difference, made one by one.
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
        let new = Held(entry);
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

/// What became of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryChange {
    /// It was put.
    Put {
        /// What was there before; `None` when it is new.
        old: Option<Entry>,
        /// What is there now.
        new: Entry,
    },
    /// It was deleted.
    Delete {
        /// What was there before.
        old: Entry,
        /// The revision of the state in which it is gone; the deletion itself may be older when
        /// several changes came together.
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

/// Options of an untyped watch; await it.
///
/// # Cancel safety
/// Dropping it, or the future that it becomes, at any point ends all that it caused.
#[must_use = "a watch begins when it is awaited"]
pub struct EntriesBuilder {
    registry: Arc<Registry>,
    range: Result<KeyRange, RangeError>,
    within: Option<Duration>,
}

impl EntriesBuilder {
    pub(crate) const fn new(registry: Arc<Registry>, range: Result<KeyRange, RangeError>) -> Self {
        Self {
            registry,
            range,
            within: None,
        }
    }

    /// How long the first state may take; then it fails with [`WatchError::NoFirstValue`]. Default:
    /// it waits until a server answers, or refuses.
    pub const fn first_state_within(mut self, limit: Duration) -> Self {
        self.within = Some(limit);
        self
    }
}

impl IntoFuture for EntriesBuilder {
    type Output = Result<EntriesWatcher, WatchError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// Resolves when the range is in sync; an empty range is fine.
    ///
    /// # Cancel safety
    /// Dropping the future ends all that it caused.
    ///
    /// # Panics
    /// When it is polled outside of a tokio runtime.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let shared = self.registry.subscribe(self.range?)?;
            let mut entries = shared.entries();
            let first = async {
                let first = entries.wait_for(Option::is_some).await;
                first.ok().and_then(|first| first.clone())
            };
            let found = tokio::select! {
                biased;
                found = first => found,
                error = shared.hopeless() => return Err(error),
                within = expired(self.within) => {
                    let last_error = shared.status().last_error;
                    return Err(WatchError::NoFirstValue {
                        range: shared.range().clone(),
                        within,
                        why: NoValue::NotConnected { last_error },
                    });
                }
            };
            let Some(found) = found else {
                return Err(shared.hopeless().await);
            };
            let status = StatusWatcher::new(shared.watch_status(), None);
            Ok(EntriesWatcher {
                shared,
                entries,
                status,
                returned: Mutex::new(found),
            })
        })
    }
}

impl fmt::Debug for EntriesBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntriesBuilder")
            .field("range", &self.range)
            .field("within", &self.within)
            .finish_non_exhaustive()
    }
}

async fn expired(limit: Option<Duration>) -> Duration {
    match limit {
        Some(limit) => {
            tokio::time::sleep(limit).await;
            limit
        }
        None => std::future::pending().await,
    }
}

/// Watches the entries of a range. Dropping it ends all that it caused, unless others watch the
/// same range.
pub struct EntriesWatcher {
    shared: Arc<Shared>,
    entries: watch::Receiver<Option<Entries>>,
    status: StatusWatcher,
    /// What the caller was last given: what changes are told against.
    returned: Mutex<Entries>,
}

impl EntriesWatcher {
    /// The state now. What changed up to it is not told again by [`changed`](Self::changed).
    pub fn load(&self) -> Entries {
        let mut returned = self.returned();
        if let Some(now) = &*self.entries.borrow() {
            *returned = now.clone();
        }
        returned.clone()
    }

    /// Waits until the state differs from what this watcher last returned, from here or from
    /// [`load`](Self::load), and tells the difference: the latest state counts, and what came and
    /// went in between is not told.
    ///
    /// # Errors
    /// When no change will follow.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: the next call tells all that this one would have.
    pub async fn changed(&mut self) -> Result<EntriesChange, Closed> {
        loop {
            let now = self.entries.borrow_and_update().clone();
            if let Some(now) = now {
                let mut returned = self.returned();
                let changes = now.changes_since(&returned);
                // Also when nothing changed: the older state need not be kept.
                *returned = now;
                if !changes.is_empty() {
                    let revision = returned.revision;
                    return Ok(EntriesChange { revision, changes });
                }
            }
            if self.entries.changed().await.is_err() {
                return Err(self.shared.closed());
            }
        }
    }

    /// How the watcher is doing.
    pub fn status(&self) -> Status {
        self.status.status()
    }

    /// Waits until the status differs, as [`StatusWatcher::changed`] does.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: the next call returns what this one would have.
    pub async fn status_changed(&mut self) -> Status {
        self.status.changed().await
    }

    /// Follows the status apart from this watcher, so that both can be waited for at a time.
    pub fn watch_status(&self) -> StatusWatcher {
        self.status.clone()
    }

    fn returned(&self) -> MutexGuard<'_, Entries> {
        self.returned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for EntriesWatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntriesWatcher")
            .field("range", self.shared.range())
            .field("returned", &*self.returned())
            .finish_non_exhaustive()
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
    fn the_difference_of_two_states() {
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
    fn what_counts_as_a_change_of_an_entry() {
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
    fn differences_in_a_large_state_are_found_wherever_they_are() {
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
    fn nothing_shows_a_value() {
        let (a, b) = (entry("a", "CANARY", 1), entry("a", "CANARY2", 2));
        let (old, new) = (state(1, &[a]), state(2, &[b]));
        let changes = new.changes_since(&old);
        assert!(!format!("{new:?} {changes:?}").contains("CANARY"));
    }
}
