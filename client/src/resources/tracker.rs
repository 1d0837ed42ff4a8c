//! Tracks what a client holds at this moment.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::watch;

use super::resource::Resource;

/// What one client holds. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ResourceTracker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    active: Mutex<Slab<Resource>>,
    /// How many, for those who wait until there are none.
    count: watch::Sender<usize>,
}

impl ResourceTracker {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            active: Mutex::default(),
            count: watch::Sender::new(0),
        }))
    }

    /// Tracks a resource until the guard is dropped.
    pub(crate) fn track(&self, resource: Resource) -> ResourceGuard {
        let mut active = self.0.active.lock();
        let key = active.insert(resource);
        self.0.count.send_replace(active.len());
        drop(active);
        ResourceGuard {
            tracker: self.clone(),
            key,
        }
    }

    /// Tracks a resource until the future, and everything in it, is dropped.
    pub(crate) fn track_future<F: Future>(&self, resource: Resource, future: F) -> Tracked<F> {
        Tracked {
            future: Box::pin(future),
            _guard: self.track(resource),
        }
    }

    /// All that is held now.
    pub(crate) fn active(&self) -> Vec<Resource> {
        let active = self.0.active.lock();
        active
            .iter()
            .map(|(_, resource)| resource.clone())
            .collect()
    }

    /// How many resources are held, to wait for changes.
    pub(crate) fn count(&self) -> watch::Receiver<usize> {
        self.0.count.subscribe()
    }
}

/// A future that is tracked.
pub(crate) struct Tracked<F> {
    // First, because fields are dropped in order: everything in the future is gone before the guard is.
    future: Pin<Box<F>>,
    _guard: ResourceGuard,
}

impl<F: Future> Future for Tracked<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.future.as_mut().poll(cx)
    }
}

/// A resource that is held. Dropping it tells the tracker that the resource is gone.
#[derive(Debug)]
pub(crate) struct ResourceGuard {
    tracker: ResourceTracker,
    key: usize,
}

impl Drop for ResourceGuard {
    fn drop(&mut self) {
        let mut active = self.tracker.0.active.lock();
        let gone = active.try_remove(self.key);
        self.tracker.0.count.send_replace(active.len());
        drop(active);
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Before and after the first poll.
    #[tokio::test]
    async fn guard_outlives_what_is_in_the_future() {
        struct Given(ResourceTracker);
        impl Drop for Given {
            fn drop(&mut self) {
                assert_eq!(self.0.active().len(), 1);
            }
        }
        for polled in [false, true] {
            let tracker = ResourceTracker::new();
            let given = Given(tracker.clone());
            let mut tracked = tracker.track_future(Resource::Get("/a".to_owned()), async move {
                std::future::pending::<()>().await;
                drop(given);
            });
            if polled {
                let poll = std::future::poll_fn(|cx| {
                    assert!(Pin::new(&mut tracked).poll(cx).is_pending());
                    Poll::Ready(())
                });
                poll.await;
            }
            drop(tracked);
            assert_eq!(tracker.active(), []);
        }
    }

    #[test]
    fn resource_is_listed_until_its_guard_is_dropped() {
        let tracker = ResourceTracker::new();
        let count = tracker.count();
        let one = tracker.track(Resource::Lookup("config.example".to_owned()));
        let two = tracker.track(Resource::Get("/a".to_owned()));
        assert_eq!(*count.borrow(), 2);
        drop(one);
        assert_eq!(tracker.active(), [Resource::Get("/a".to_owned())]);
        drop(two);
        assert_eq!((*count.borrow(), tracker.active()), (0, Vec::new()));
    }
}
