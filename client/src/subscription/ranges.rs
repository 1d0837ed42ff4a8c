//! The table of subscriptions by range. It refers to them weakly: it shares them and keeps none alive.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use driftless_proto::KeyRange;
use parking_lot::Mutex;

use crate::error::Closed;

/// Subscriptions by range.
pub(super) struct Ranges<S>(Mutex<Table<S>>);

struct Table<S> {
    subscriptions: HashMap<KeyRange, Weak<S>>,
    /// No more are added.
    closed: bool,
}

impl<S> Ranges<S> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Table {
            subscriptions: HashMap::new(),
            closed: false,
        }))
    }

    /// The subscription to `range`: the one there is, if it is `usable`, or else the one that `begin` makes.
    ///
    /// # Errors
    /// After [`close`](Self::close).
    pub(super) fn get_or_begin(
        &self,
        range: KeyRange,
        usable: impl FnOnce(&S) -> bool,
        begin: impl FnOnce(KeyRange) -> S,
    ) -> Result<Arc<S>, Closed> {
        // Declared before the lock, so dropped after it: dropping the last reference locks too.
        let found;
        let mut table = self.0.lock();
        if table.closed {
            return Err(Closed::Shutdown);
        }
        found = table.subscriptions.get(&range).and_then(Weak::upgrade);
        if let Some(found) = &found
            && usable(found)
        {
            return Ok(Arc::clone(found));
        }
        // Nobody watches the range, or the last watcher is being dropped at this moment, or the
        // subscription has ended. None of these can be revived; the new one takes its place.
        let new = Arc::new(begin(range.clone()));
        table.subscriptions.insert(range, Arc::downgrade(&new));
        Ok(new)
    }

    /// Adds no more subscriptions, and returns those there are.
    pub(super) fn close(&self) -> Vec<Arc<S>> {
        let mut table = self.0.lock();
        table.closed = true;
        let subscriptions = table.subscriptions.values();
        subscriptions.filter_map(Weak::upgrade).collect()
    }

    /// Removes a subscription that is being dropped, unless another one has taken its place.
    pub(super) fn remove(&self, range: &KeyRange, dropped: &S) {
        let mut table = self.0.lock();
        if let Some(found) = table.subscriptions.get(range)
            // The address is not used again before `dropped` is gone.
            && std::ptr::eq(found.as_ptr(), dropped)
        {
            table.subscriptions.remove(range);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().subscriptions.len()
    }

    /// What another thread does between the last reference's end and its `Drop`.
    #[cfg(test)]
    pub(super) fn expire(&self, range: KeyRange) {
        self.0.lock().subscriptions.insert(range, Weak::new());
    }
}
