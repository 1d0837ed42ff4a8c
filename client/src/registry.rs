//! Which ranges are being watched, so that all watchers of one range cost one stream.
//!
//! It refers to subscriptions weakly: it shares them and never keeps one alive.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use driftless_proto::KeyRange;

use crate::error::Closed;
use crate::subscription::Shared;
use crate::transport::Transport;

/// The subscriptions of one client.
pub(crate) struct Registry {
    transport: Arc<Transport>,
    range_limit: usize,
    ranges: Mutex<Ranges>,
}

#[derive(Default)]
struct Ranges {
    shared: HashMap<KeyRange, Weak<Shared>>,
    /// There will be no more of them.
    closed: bool,
}

impl Registry {
    pub(crate) fn new(transport: Arc<Transport>, range_limit: usize) -> Self {
        Self {
            transport,
            range_limit,
            ranges: Mutex::default(),
        }
    }

    /// The subscription to `range`: the one there is, or a new one.
    ///
    /// # Errors
    /// When the client was shut down.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(crate) fn subscribe(self: &Arc<Self>, range: KeyRange) -> Result<Arc<Shared>, Closed> {
        // Declared before the lock, so dropped after it: dropping the last reference locks too.
        let found;
        let mut ranges = self.lock();
        if ranges.closed {
            return Err(Closed::Shutdown);
        }
        found = ranges.shared.get(&range).and_then(Weak::upgrade);
        if let Some(found) = &found
            && !found.is_closed()
        {
            return Ok(Arc::clone(found));
        }
        // Either nobody watches the range, or the last watcher is being dropped in this moment, or
        // the subscription is over. In no case can it be revived; the new one takes its place.
        let new = Arc::new(Shared::begin(
            range.clone(),
            self.range_limit,
            Arc::clone(&self.transport),
            Arc::downgrade(self),
        ));
        ranges.shared.insert(range, Arc::downgrade(&new));
        Ok(new)
    }

    /// Ends all subscriptions; there will be no more of them.
    pub(crate) fn close(&self) {
        let mut ranges = self.lock();
        ranges.closed = true;
        let shared: Vec<_> = ranges.shared.values().filter_map(Weak::upgrade).collect();
        // Ending them wakes who waits, and dropping one locks.
        drop(ranges);
        for shared in &shared {
            shared.end(Closed::Shutdown);
        }
    }

    /// Removes a subscription that is being dropped, unless another one has taken its place.
    pub(crate) fn forget(&self, dropped: &Shared) {
        let mut ranges = self.lock();
        if let Some(found) = ranges.shared.get(dropped.range())
            // The address is not used again before `dropped` is gone.
            && std::ptr::eq(found.as_ptr(), dropped)
        {
            ranges.shared.remove(dropped.range());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ranges> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use driftless_proto::v1;

    use super::*;
    use crate::connect::{Connecting, Endpoint};

    fn registry() -> Arc<Registry> {
        let nowhere = |_: &Endpoint| Box::pin(std::future::pending()) as Connecting;
        let endpoint = Endpoint::parse("http://h:1").unwrap();
        let info = v1::ClientInfo::default();
        let inventory = crate::inventory::Inventory::new();
        let transport = Transport::new(vec![endpoint], Box::new(nowhere), info, inventory);
        Arc::new(Registry::new(Arc::new(transport), 1))
    }

    fn tasks() -> usize {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    }

    #[tokio::test]
    async fn watchers_of_a_range_share_one_subscription_and_one_task() {
        let (registry, before) = (registry(), tasks());
        let key = KeyRange::key("/a").unwrap();
        let one = registry.subscribe(key.clone()).unwrap();
        let two = registry.subscribe(key.clone()).unwrap();
        assert!(Arc::ptr_eq(&one, &two));
        assert_eq!(tasks(), before + 1);
        let prefix = registry.subscribe(KeyRange::prefix("/a").unwrap()).unwrap();
        assert!(!Arc::ptr_eq(&one, &prefix));
        drop((one, prefix));
        assert_eq!(registry.lock().shared.len(), 1);
        drop(two);
        assert!(registry.lock().shared.is_empty());
    }

    #[tokio::test]
    async fn one_that_is_being_dropped_does_not_remove_its_successor() {
        let registry = registry();
        let key = KeyRange::key("/a").unwrap();
        let old = registry.subscribe(key.clone()).unwrap();
        // What another thread does between the last reference's end and its `Drop`.
        registry.lock().shared.insert(key.clone(), Weak::new());
        let new = registry.subscribe(key.clone()).unwrap();
        assert!(!Arc::ptr_eq(&old, &new));
        drop(old);
        assert!(Arc::ptr_eq(&new, &registry.subscribe(key).unwrap()));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn dropping_and_subscribing_at_once_leaves_nothing_behind() {
        let (registry, before) = (registry(), tasks());
        let key = KeyRange::key("/a").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let handle = tokio::runtime::Handle::current();
                let (registry, key) = (&registry, &key);
                scope.spawn(move || {
                    let _runtime = handle.enter();
                    for _ in 0..1000 {
                        let shared = registry.subscribe(key.clone()).unwrap();
                        assert!(!shared.is_closed());
                    }
                });
            }
        });
        assert!(registry.lock().shared.is_empty());
        tokio::time::timeout(std::time::Duration::from_secs(5), async {
            while tasks() > before {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }
}
