//! Shared by tests over a scripted etcd: a record of every state that it had.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;

use driftless_client::Entries;
use driftless_proto::{Entry, KeyRange, Revision};
use driftless_server::source::scripted::ScriptedEtcd;

/// What the servers serve.
pub(crate) const PREFIX: &str = "/c/";

/// A point in time: how often etcd's history was replaced before, and the revision.
pub(crate) type Place = (u64, Revision);

/// Every state that etcd has had below [`PREFIX`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Record(BTreeMap<Place, Vec<Entry>>);

impl Record {
    /// Call it after every change of etcd.
    pub(crate) fn note(&mut self, etcd: &ScriptedEtcd) {
        #[allow(clippy::unwrap_used, reason = "a test's own constant")]
        let all = KeyRange::prefix(PREFIX).unwrap();
        let place = (etcd.history(), etcd.revision());
        self.0.insert(place, etcd.state(&all));
    }

    /// The history of the first matching state of this revision at or after `since`. A later history counts
    /// as later, whatever its revisions.
    pub(crate) fn place(
        &self,
        revision: Revision,
        since: Option<Place>,
        is_it: impl Fn(&[Entry]) -> bool,
    ) -> Option<u64> {
        let last = self.0.last_key_value().map_or(0, |(place, _)| place.0);
        let first = since.map_or(0, |since| since.0);
        (first..=last)
            .map(|history| (history, revision))
            .filter(|place| since.is_none_or(|since| since <= *place))
            .find(|place| self.0.get(place).is_some_and(|state| is_it(state)))
            .map(|place| place.0)
    }

    /// True if etcd had these entries in the range at this revision of any history.
    pub(crate) fn knows(&self, range: &KeyRange, seen: &Entries) -> bool {
        let is_it = |state: &[Entry]| within(state, range).eq(seen.iter());
        self.place(seen.revision(), None, is_it).is_some()
    }

    /// Removes a key from the record, for a control.
    pub(crate) fn forget(&mut self, key: &str) {
        for state in self.0.values_mut() {
            state.retain(|entry| entry.key.as_ref() != key.as_bytes());
        }
    }
}

/// What is in the range, of a state.
pub(crate) fn within<'a>(
    state: &'a [Entry],
    range: &'a KeyRange,
) -> impl Iterator<Item = &'a Entry> {
    state
        .iter()
        .filter(|entry| range.contains(entry.key.as_ref()))
}

/// A value in which `edit` is one line and decides where another one is.
pub(crate) fn document(edit: u8) -> String {
    let line = |n: usize| format!("setting.{n} = {}\n", n * n * n);
    let mut lines: Vec<String> = (0..200).map(line).collect();
    lines[100] = format!("edit = {edit}\n");
    lines.insert(usize::from(edit) / 2, "one more\n".to_owned());
    lines.concat()
}
