//! Which ranges are watched: all watchers of one range share one stream.

use std::sync::Arc;

use driftless_proto::KeyRange;

use super::handle::Subscription;
use super::ranges::Ranges;
use crate::error::Closed;
use crate::transport::Transport;

/// The subscriptions of one client.
pub(crate) struct Registry {
    transport: Arc<Transport>,
    range_limit: usize,
    ranges: Arc<Ranges<Subscription>>,
}

impl Registry {
    pub(crate) fn new(transport: Arc<Transport>, range_limit: usize) -> Self {
        Self {
            transport,
            range_limit,
            ranges: Arc::new(Ranges::new()),
        }
    }

    /// The subscription to `range`: the one there is, or a new one.
    ///
    /// # Errors
    /// When the client was shut down.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(crate) fn subscribe(&self, range: KeyRange) -> Result<Arc<Subscription>, Closed> {
        self.ranges.get_or_begin(
            range,
            |found| !found.is_closed(),
            |range| {
                Subscription::begin(
                    range,
                    self.range_limit,
                    Arc::clone(&self.transport),
                    Arc::downgrade(&self.ranges),
                )
            },
        )
    }

    /// Ends all subscriptions, and allows no new ones.
    pub(crate) fn close(&self) {
        // Not under the table's lock: ending them wakes who waits, and dropping one locks.
        for subscription in self.ranges.close() {
            subscription.end(Closed::Shutdown);
        }
    }
}

#[cfg(test)]
mod tests {
    use driftless_proto::v1;

    use super::*;
    use crate::net::{Connecting, Endpoint};
    use crate::resources::ResourceTracker;

    fn registry() -> Registry {
        let nowhere = |_: &Endpoint| Box::pin(std::future::pending()) as Connecting;
        let endpoint = Endpoint::parse("http://h:1").unwrap();
        let info = v1::ClientInfo::default();
        let tracker = ResourceTracker::new();
        let transport = Transport::new(vec![endpoint], Box::new(nowhere), info, tracker);
        Registry::new(Arc::new(transport), 1)
    }

    fn tasks() -> usize {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    }

    #[tokio::test]
    async fn watchers_of_a_range_share_one_task() {
        let (registry, before) = (registry(), tasks());
        let key = KeyRange::key("/a").unwrap();
        let one = registry.subscribe(key.clone()).unwrap();
        let two = registry.subscribe(key.clone()).unwrap();
        assert!(Arc::ptr_eq(&one, &two));
        assert_eq!(tasks(), before + 1);
        let prefix = registry.subscribe(KeyRange::prefix("/a").unwrap()).unwrap();
        assert!(!Arc::ptr_eq(&one, &prefix));
        drop((one, prefix));
        assert_eq!(registry.ranges.len(), 1);
        drop(two);
        assert_eq!(registry.ranges.len(), 0);
    }

    #[tokio::test]
    async fn drop_does_not_remove_the_successor() {
        let registry = registry();
        let key = KeyRange::key("/a").unwrap();
        let old = registry.subscribe(key.clone()).unwrap();
        registry.ranges.expire(key.clone());
        let new = registry.subscribe(key.clone()).unwrap();
        assert!(!Arc::ptr_eq(&old, &new));
        drop(old);
        assert!(Arc::ptr_eq(&new, &registry.subscribe(key).unwrap()));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn concurrent_drop_and_subscribe_leave_nothing_behind() {
        let (registry, before) = (registry(), tasks());
        let key = KeyRange::key("/a").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let handle = tokio::runtime::Handle::current();
                let (registry, key) = (&registry, &key);
                scope.spawn(move || {
                    let _runtime = handle.enter();
                    for _ in 0..1000 {
                        let subscription = registry.subscribe(key.clone()).unwrap();
                        assert!(!subscription.is_closed());
                    }
                });
            }
        });
        assert_eq!(registry.ranges.len(), 0);
        tokio::time::timeout(std::time::Duration::from_secs(5), async {
            while tasks() > before {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }
}
