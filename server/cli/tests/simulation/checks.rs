//! Compares what a client shows with what etcd had: the promises that one watcher can check.

use std::collections::BTreeMap;
use std::fmt;

use driftless_client::EntryChange;
use driftless_proto::{Entry, Key, KeyRange, Revision};

use crate::model::{Place, Record, within};

/// The promises, named as in the README.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// No older revision after a newer one, unless etcd's history was replaced in between.
    Ordered,
    /// No change is reported twice.
    Unique,
    /// A state is the one that etcd had at that revision, and the last one is etcd's current state.
    Reliable,
    /// The changes of one transaction become visible at once.
    Atomic,
    /// A client that reconnects receives what changed since, not everything.
    Resumable,
    /// An idle range's revision moves on.
    Bookmarked,
    /// No digest differs without a planted fault.
    SelfVerifying,
    /// A dropped watcher leaves nothing, also at the servers.
    NothingLeft,
    /// Watches go on through all failures of servers.
    Available,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) promise: Promise,
    pub(crate) what: String,
}

impl Violation {
    pub(crate) fn new(promise: Promise, what: impl Into<String>) -> Self {
        Self {
            promise,
            what: what.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is broken: {}", self.promise, self.what)
    }
}

/// A watcher's place in the record. It may stand still or move forward, never back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Position(Option<Place>);

impl Position {
    /// The watcher shows something at this revision, of a state of which `is_it` says whether it is
    /// the one. Where several histories had it, the earliest counts: it leaves the most room.
    pub(crate) fn shows(
        &mut self,
        record: &Record,
        revision: Revision,
        is_it: impl Fn(&[Entry]) -> bool,
    ) -> Result<(), Violation> {
        if let Some(history) = record.place(revision, self.0, &is_it) {
            self.0 = Some((history, revision));
            return Ok(());
        }
        let violation = match (self.0, record.place(revision, None, &is_it)) {
            (Some((history, before)), Some(_)) => {
                let what =
                    format!("revision {revision} after {before}, with no restore since {history}");
                Violation::new(Promise::Ordered, what)
            }
            _ => {
                let what = format!("at revision {revision} etcd had something else");
                Violation::new(Promise::Reliable, what)
            }
        };
        Err(violation)
    }
}

/// Follows the states and changes of a watcher of entries.
#[derive(Clone, Debug)]
pub(crate) struct Observer {
    range: KeyRange,
    position: Position,
    /// What follows from all that was told.
    told: BTreeMap<Key, Entry>,
}

impl Observer {
    /// The watcher begins with this.
    pub(crate) fn begin(
        record: &Record,
        range: KeyRange,
        revision: Revision,
        entries: &[&Entry],
    ) -> Result<Self, Violation> {
        let mut observer = Self {
            range,
            position: Position::default(),
            told: by_key(entries.iter().copied()),
        };
        observer.shows(record, revision, entries)?;
        Ok(observer)
    }

    /// The watcher tells this, and that it leads to this revision.
    pub(crate) fn is_told(
        &mut self,
        record: &Record,
        revision: Revision,
        changes: &[EntryChange],
    ) -> Result<(), Violation> {
        self.takes(changes)?;
        let (range, told) = (&self.range, &self.told);
        // Without a look at what the watcher shows: that would be told of with it.
        self.position.shows(record, revision, |state| {
            let mut count = 0;
            let all = within(state, range).inspect(|_| count += 1);
            let mut all = all.map(|entry| is_some_same(told.get(&entry.key), entry));
            let same = all.all(|same| same);
            drop(all);
            same && count == told.len()
        })
    }

    /// Each change has to follow from those before.
    fn takes(&mut self, changes: &[EntryChange]) -> Result<(), Violation> {
        let twice = |what: &str, key: &Key| {
            Err(Violation::new(Promise::Unique, format!("{what} of {key}")))
        };
        if changes.is_empty() {
            let what = "a change was told in which nothing changed";
            return Err(Violation::new(Promise::Unique, what));
        }
        let mut last = None;
        for change in changes {
            let key = change.key();
            if last.is_some_and(|last| last >= key) {
                return twice("two changes in one", key);
            }
            last = Some(key);
            let held = self.told.get(key);
            let (old, new) = match change {
                EntryChange::Put { old, new } => (old.as_ref(), Some(new)),
                EntryChange::Delete { old, .. } => (Some(old), None),
                other => panic!("there is a new kind of change: {other:?}"),
            };
            let is_held = |entry: Option<&Entry>| match (entry, held) {
                (Some(entry), Some(held)) => is_same(entry, held),
                (None, None) => true,
                _ => false,
            };
            if is_held(new) {
                return twice("a change that was told before", key);
            }
            if !is_held(old) {
                let what = format!("a change of {key} does not follow from what was told before");
                return Err(Violation::new(Promise::Reliable, what));
            }
            match new {
                Some(new) => self.told.insert(key.clone(), new.clone()),
                None => self.told.remove(key),
            };
        }
        Ok(())
    }

    /// The watcher shows this.
    pub(crate) fn shows(
        &mut self,
        record: &Record,
        revision: Revision,
        entries: &[&Entry],
    ) -> Result<(), Violation> {
        let range = &self.range;
        let is_it = |state: &[Entry]| within(state, range).eq(entries.iter().copied());
        self.position.shows(record, revision, is_it)?;
        let follows = self.told.len() == entries.len()
            && entries
                .iter()
                .all(|entry| is_some_same(self.told.get(&entry.key), entry));
        if !follows {
            let what = format!("what is shown at revision {revision} is not what was told");
            return Err(Violation::new(Promise::Reliable, what));
        }
        // How often a key was put may differ between histories, and is nothing to tell of.
        self.told = by_key(entries.iter().copied());
        Ok(())
    }
}

fn by_key<'a>(entries: impl Iterator<Item = &'a Entry>) -> BTreeMap<Key, Entry> {
    entries
        .map(|entry| (entry.key.clone(), entry.clone()))
        .collect()
}

/// As far as a change is told of.
fn is_same(one: &Entry, other: &Entry) -> bool {
    (one.mod_revision, &one.value) == (other.mod_revision, &other.value)
}

fn is_some_same(held: Option<&Entry>, entry: &Entry) -> bool {
    held.is_some_and(|held| is_same(held, entry))
}

/// Two fields that are written in one transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default)]
pub(crate) struct Pair {
    pub(crate) left: u64,
    pub(crate) right: u64,
}

impl Pair {
    /// Where it is.
    pub(crate) const PREFIX: &str = "/c/pair/";
    pub(crate) const LEFT: &str = "/c/pair/left";
    pub(crate) const RIGHT: &str = "/c/pair/right";

    /// What a state says of it.
    pub(crate) fn of(state: &[Entry]) -> Self {
        let number = |key: &str| {
            let mut found = state
                .iter()
                .filter(|entry| entry.key.as_ref() == key.as_bytes());
            let text = found
                .next()
                .and_then(|entry| std::str::from_utf8(&entry.value).ok());
            text.and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        Self {
            left: number(Self::LEFT),
            right: number(Self::RIGHT),
        }
    }

    /// Whether its fields are of one transaction.
    pub(crate) fn is_whole(self) -> Result<(), Violation> {
        if self.left == self.right {
            return Ok(());
        }
        let what = format!("{} and {} were never there together", self.left, self.right);
        Err(Violation::new(Promise::Atomic, what))
    }
}

/// Controls: each check finds its fault.
#[cfg(test)]
mod tests {
    use driftless_server::source::scripted::{Op, ScriptedEtcd};

    use super::*;

    /// An etcd, what it had, and its range.
    struct Past {
        etcd: ScriptedEtcd,
        record: Record,
        range: KeyRange,
    }

    impl Past {
        fn new() -> Self {
            let mut past = Self {
                etcd: ScriptedEtcd::default(),
                record: Record::default(),
                range: KeyRange::prefix("/c/").unwrap(),
            };
            past.record.note(&past.etcd);
            past
        }

        /// Returns what there is then.
        fn put(&mut self, key: &str, value: &str) -> (Revision, Vec<Entry>) {
            self.etcd.put(key, value);
            self.state()
        }

        fn restore(&mut self, to: Revision) -> (Revision, Vec<Entry>) {
            self.etcd.restore(to);
            self.state()
        }

        fn state(&mut self) -> (Revision, Vec<Entry>) {
            self.record.note(&self.etcd);
            (self.etcd.revision(), self.etcd.state(&self.range))
        }

        fn begin(&self, state: &(Revision, Vec<Entry>)) -> Observer {
            let range = self.range.clone();
            Observer::begin(&self.record, range, state.0, &refs(&state.1)).unwrap()
        }

        /// Tells the difference, and shows the state.
        fn go(
            &self,
            observer: &mut Observer,
            old: &(Revision, Vec<Entry>),
            new: &(Revision, Vec<Entry>),
        ) -> Result<(), Violation> {
            let changes = difference(&old.1, new);
            if !changes.is_empty() {
                observer.is_told(&self.record, new.0, &changes)?;
            }
            observer.shows(&self.record, new.0, &refs(&new.1))
        }
    }

    fn difference(old: &[Entry], new: &(Revision, Vec<Entry>)) -> Vec<EntryChange> {
        let (old, revision) = (by_key(old.iter()), new.0);
        let new = by_key(new.1.iter());
        let keys: std::collections::BTreeSet<&Key> = old.keys().chain(new.keys()).collect();
        let change = |key: &Key| match (old.get(key).cloned(), new.get(key).cloned()) {
            (old, Some(new)) if !old.as_ref().is_some_and(|old| is_same(old, &new)) => {
                Some(EntryChange::Put { old, new })
            }
            (Some(old), None) => Some(EntryChange::Delete { old, revision }),
            _ => None,
        };
        keys.into_iter().filter_map(change).collect()
    }

    fn refs(entries: &[Entry]) -> Vec<&Entry> {
        entries.iter().collect()
    }

    fn promise(broken: Result<(), Violation>) -> Option<Promise> {
        broken.err().map(|violation| violation.promise)
    }

    #[test]
    fn real_history_breaks_no_promise() {
        let mut past = Past::new();
        let one = past.put("/c/a", "1");
        let two = past.put("/c/b", "2");
        let mut observer = past.begin(&one);
        assert_eq!(past.go(&mut observer, &one, &two), Ok(()));
        assert_eq!(past.go(&mut observer, &two, &two), Ok(()), "it may stand");
        let elsewhere = past.put("/elsewhere", "");
        assert_eq!(past.go(&mut observer, &two, &elsewhere), Ok(()));
        let back = past.restore(one.0);
        assert_eq!(past.go(&mut observer, &elsewhere, &back), Ok(()));
    }

    #[test]
    fn control_older_revision_is_found() {
        let mut past = Past::new();
        let one = past.put("/c/a", "1");
        let two = past.put("/c/b", "2");
        let mut observer = past.begin(&two);
        let back = past.go(&mut observer, &two, &one);
        assert_eq!(promise(back), Some(Promise::Ordered));
    }

    #[test]
    fn control_replaced_history_is_found() {
        let mut past = Past::new();
        let one = past.put("/c/a", "1");
        let two = past.put("/c/b", "2");
        past.restore(one.0);
        let other = past.put("/c/b", "3");
        let mut observer = past.begin(&other);
        let back = past.go(&mut observer, &other, &two);
        assert_eq!(promise(back), Some(Promise::Ordered));
    }

    #[test]
    fn control_repeated_change_is_found() {
        let mut past = Past::new();
        let one = past.put("/c/a", "1");
        let two = past.put("/c/b", "2");
        let mut observer = past.begin(&one);
        let changes = difference(&one.1, &two);
        assert_eq!(observer.is_told(&past.record, two.0, &changes), Ok(()));
        let again = observer.is_told(&past.record, two.0, &changes);
        assert_eq!(promise(again), Some(Promise::Unique));
        let nothing = observer.is_told(&past.record, two.0, &[]);
        assert_eq!(promise(nothing), Some(Promise::Unique));
        past.etcd.delete("/c/b");
        let three = past.state();
        let gone = difference(&two.1, &three);
        assert_eq!(observer.is_told(&past.record, three.0, &gone), Ok(()));
        let again = observer.is_told(&past.record, three.0, &gone);
        assert_eq!(promise(again), Some(Promise::Unique));
    }

    #[test]
    fn control_untold_change_is_found() {
        let mut past = Past::new();
        let one = past.put("/c/a", "1");
        let two = past.put("/c/a", "2");
        let three = past.put("/c/a", "3");
        let mut observer = past.begin(&one);
        let shown = observer.shows(&past.record, two.0, &refs(&two.1));
        assert_eq!(promise(shown), Some(Promise::Reliable));
        let mut observer = past.begin(&one);
        let gap = observer.is_told(&past.record, three.0, &difference(&two.1, &three));
        assert_eq!(promise(gap), Some(Promise::Reliable));
        past.etcd.txn([Op::put("/c/a", "4"), Op::put("/c/b", "4")]);
        let four = past.state();
        let mut observer = past.begin(&three);
        let half = observer.is_told(&past.record, four.0, &difference(&three.1, &four)[..1]);
        assert_eq!(promise(half), Some(Promise::Reliable));
    }

    #[test]
    fn control_invented_state_is_found() {
        let mut past = Past::new();
        let one = past.put("/c/a", "1");
        past.etcd.txn([Op::put("/c/a", "2"), Op::put("/c/b", "2")]);
        let two = past.state();
        let half = (two.0, vec![two.1[0].clone()]);
        let mut observer = past.begin(&one);
        let shown = past.go(&mut observer, &one, &half);
        assert_eq!(promise(shown), Some(Promise::Reliable));
        let early = (one.0, two.1);
        let mut observer = past.begin(&one);
        let shown = past.go(&mut observer, &one, &early);
        assert_eq!(promise(shown), Some(Promise::Reliable));
    }

    #[test]
    fn control_torn_pair_is_found() {
        let (mut past, whole) = (Past::new(), [Pair::LEFT, Pair::RIGHT]);
        past.etcd.txn(whole.map(|key| Op::put(key, "7")));
        let pair = Pair::of(&past.state().1);
        assert_eq!(pair, Pair { left: 7, right: 7 });
        assert_eq!(pair.is_whole(), Ok(()));
        past.etcd.put(Pair::LEFT, "8");
        let torn = Pair::of(&past.state().1).is_whole();
        assert_eq!(promise(torn), Some(Promise::Atomic));
    }
}
