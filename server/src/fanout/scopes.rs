//! All scopes of a prefix, found by the keys that a change touches and not by trying each scope.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use driftless_proto::KeyRange;

use super::scope::Scope;
use crate::store::Batch;

/// The scopes of all watched ranges. Finding those that hold a key costs one look-up for each *length*
/// that a watched prefix has, however many prefixes and keys are watched.
#[derive(Debug, Default)]
pub(super) struct Scopes {
    by_range: HashMap<KeyRange, Watched>,
    /// The same scopes, in the order in which they were made.
    by_id: BTreeMap<u64, Arc<Scope>>,
    /// How many watched prefixes there are of each length.
    lengths: BTreeMap<usize, usize>,
}

#[derive(Debug)]
struct Watched {
    scope: Arc<Scope>,
    subscribers: usize,
}

/// A place in a round through the scopes of a prefix. It holds none of them, and visits none that are
/// made while the round is under way.
#[derive(Debug)]
#[must_use = "the scopes that were not visited yet wait for it"]
pub struct ScopeCursor {
    next: u64,
    end: u64,
}

impl ScopeCursor {
    /// Whether all scopes were visited.
    pub(super) const fn is_over(&self) -> bool {
        self.next >= self.end
    }
}

impl Scopes {
    /// Adds a subscriber of `range`. The first one makes the scope.
    pub(super) fn join(
        &mut self,
        range: KeyRange,
        make: impl FnOnce(KeyRange) -> Scope,
    ) -> Arc<Scope> {
        if let Some(watched) = self.by_range.get_mut(&range) {
            watched.subscribers += 1;
            return Arc::clone(&watched.scope);
        }
        if let KeyRange::Prefix(prefix) = &range {
            *self.lengths.entry(prefix.as_bytes().len()).or_default() += 1;
        }
        let scope = Arc::new(make(range.clone()));
        self.by_id.insert(scope.id(), Arc::clone(&scope));
        self.by_range.insert(
            range,
            Watched {
                scope: Arc::clone(&scope),
                subscribers: 1,
            },
        );
        scope
    }

    /// Removes a subscriber of `scope`. Removes and returns the scope with the last one, to be dropped
    /// outside any lock.
    pub(super) fn leave(&mut self, scope: &Arc<Scope>) -> Option<Arc<Scope>> {
        let watched = self.by_range.get_mut(scope.range())?;
        // A scope that was ended may have a successor of the same range.
        if !Arc::ptr_eq(&watched.scope, scope) {
            return None;
        }
        watched.subscribers -= 1;
        if watched.subscribers > 0 {
            return None;
        }
        if let KeyRange::Prefix(prefix) = scope.range() {
            let length = prefix.as_bytes().len();
            if let Some(count) = self.lengths.get_mut(&length) {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&length);
                }
            }
        }
        self.by_id.remove(&scope.id());
        self.by_range
            .remove(scope.range())
            .map(|watched| watched.scope)
    }

    /// Whether this is the current scope of its range, and not one that was ended.
    pub(super) fn holds(&self, scope: &Arc<Scope>) -> bool {
        self.by_range
            .get(scope.range())
            .is_some_and(|watched| Arc::ptr_eq(&watched.scope, scope))
    }

    /// Removes all scopes.
    pub(super) fn take(&mut self) -> Vec<Arc<Scope>> {
        let all = std::mem::take(self);
        all.by_range
            .into_values()
            .map(|watched| watched.scope)
            .collect()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_range.is_empty() && self.by_id.is_empty() && self.lengths.is_empty()
    }

    /// A cursor over the scopes that there are now.
    pub(super) fn cursor(&self) -> ScopeCursor {
        ScopeCursor {
            next: 0,
            end: self.by_id.last_key_value().map_or(0, |(id, _)| id + 1),
        }
    }

    /// The next `count` scopes, less those that were dropped meanwhile. If there are fewer, they are
    /// the last.
    pub(super) fn next_of(&self, cursor: &mut ScopeCursor, count: usize) -> Vec<Arc<Scope>> {
        let rest = self.by_id.range(cursor.next..cursor.end).take(count);
        let scopes: Vec<_> = rest.map(|(_, scope)| Arc::clone(scope)).collect();
        cursor.next = match scopes.last() {
            Some(last) if scopes.len() == count => last.id() + 1,
            _ => cursor.end,
        };
        scopes
    }

    /// The scopes whose range holds a key that the batch changes, each once.
    pub(super) fn touched_by(&self, batch: &Batch) -> impl Iterator<Item = &Arc<Scope>> {
        let mut touched: HashMap<u64, &Arc<Scope>> = HashMap::new();
        for change in &batch.changes {
            let key = change.edit.key();
            let exact = KeyRange::Key(key.clone());
            let prefixes = self
                .lengths
                .keys()
                .take_while(|length| **length <= key.as_bytes().len());
            let prefixes = prefixes.filter_map(|length| {
                driftless_proto::Key::new(key.as_bytes().slice(..*length)).map(KeyRange::Prefix)
            });
            for range in prefixes.chain([exact]) {
                if let Some(watched) = self.by_range.get(&range) {
                    touched.insert(watched.scope.id(), &watched.scope);
                }
            }
        }
        touched.into_values()
    }
}
