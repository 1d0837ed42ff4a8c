//! All the scopes of a prefix, found by what a change touches and not by trying each.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use driftless_proto::KeyRange;

use super::scope::Scope;
use crate::store::Batch;

/// Which ranges are watched. Finding those that contain a key costs one look-up for each *length*
/// that a watched prefix has, however many prefixes and keys are watched.
#[derive(Debug, Default)]
pub(super) struct Scopes {
    by_range: HashMap<KeyRange, Watched>,
    /// The same ones, in the order in which they came.
    by_id: BTreeMap<u64, Arc<Scope>>,
    /// How many watched prefixes there are of each length.
    lengths: BTreeMap<usize, usize>,
}

#[derive(Debug)]
struct Watched {
    scope: Arc<Scope>,
    subscribers: usize,
}

/// Where a walk through the scopes of a prefix is. It holds none of them, and visits none that come
/// while it is under way.
#[derive(Debug)]
#[must_use = "the scopes that were not visited yet wait for it"]
pub struct Walk {
    next: u64,
    end: u64,
}

impl Walk {
    /// Whether all were visited.
    pub(super) const fn is_over(&self) -> bool {
        self.next >= self.end
    }
}

impl Scopes {
    /// One more subscriber of `range`.
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

    /// One subscriber of `scope` less; with the last one it goes. Returns it then, to be dropped
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

    /// Whether this scope is the one of its range, and not one that was ended.
    pub(super) fn holds(&self, scope: &Arc<Scope>) -> bool {
        self.by_range
            .get(scope.range())
            .is_some_and(|watched| Arc::ptr_eq(&watched.scope, scope))
    }

    /// Removes all of them.
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

    /// A walk through those that there are now.
    pub(super) fn walk(&self) -> Walk {
        Walk {
            next: 0,
            end: self.by_id.last_key_value().map_or(0, |(id, _)| id + 1),
        }
    }

    /// The next `count` of a walk, less those that went meanwhile; fewer are the last.
    pub(super) fn next_of(&self, walk: &mut Walk, count: usize) -> Vec<Arc<Scope>> {
        let rest = self.by_id.range(walk.next..walk.end).take(count);
        let scopes: Vec<_> = rest.map(|(_, scope)| Arc::clone(scope)).collect();
        walk.next = match scopes.last() {
            Some(last) if scopes.len() == count => last.id() + 1,
            _ => walk.end,
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
