//! What a client holds at this moment, by name: its subscriptions, connections, calls, callbacks and
//! the jobs that cannot be cancelled.
//!
//! Everything that goes on by itself holds a [`Holding`] for as long as it really lives: a task until
//! its future is dropped, a blocking job until it has returned. So an empty inventory means that
//! nothing is left, and one that is not says what is. It keeps nothing alive and ends nothing.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use slab::Slab;
use tokio::sync::watch;

/// What is held.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Held {
    /// The task of a subscription, by its range.
    Subscription(String),
    /// A connection, or an attempt at one, by its endpoint.
    Connection(String),
    /// A task of a connection, by its endpoint.
    ConnectionTask(String),
    /// A single read that is under way, by its range.
    Get(String),
    /// A callback of [`Watcher::on_change`](crate::Watcher::on_change), by its range.
    Callback(String),
    /// A look-up of a host name, which runs on the runtime's blocking pool and cannot be cancelled.
    Lookup(String),
    /// A file that is being read, on the same pool.
    File(String),
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subscription(range) => write!(f, "the subscription to {range}"),
            Self::Connection(endpoint) => write!(f, "a connection to {endpoint}"),
            Self::ConnectionTask(endpoint) => write!(f, "a task of a connection to {endpoint}"),
            Self::Get(range) => write!(f, "a read of {range}"),
            Self::Callback(range) => write!(f, "a callback for {range}"),
            Self::Lookup(host) => write!(f, "the look-up of {host}"),
            Self::File(path) => write!(f, "the reading of {path}"),
        }
    }
}

/// What one client holds. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Inventory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    items: Mutex<Slab<Held>>,
    /// How many, for those who wait until there are none.
    count: watch::Sender<usize>,
}

impl Inventory {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            items: Mutex::default(),
            count: watch::Sender::new(0),
        }))
    }

    /// Notes that something is held, until what is returned is dropped.
    pub(crate) fn hold(&self, held: Held) -> Holding {
        let mut items = self.lock();
        let key = items.insert(held);
        self.0.count.send_replace(items.len());
        drop(items);
        Holding {
            inventory: self.clone(),
            key,
        }
    }

    /// Notes it for as long as the future lives, and what is in it.
    pub(crate) fn note<F: Future>(&self, held: Held, future: F) -> Noted<F> {
        Noted {
            future: Box::pin(future),
            _holding: self.hold(held),
        }
    }

    /// All that is held now.
    pub(crate) fn items(&self) -> Vec<Held> {
        self.lock().iter().map(|(_, held)| held.clone()).collect()
    }

    /// How many things are held, and news of it.
    pub(crate) fn count(&self) -> watch::Receiver<usize> {
        self.0.count.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Held>> {
        self.0.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A future that is held.
pub(crate) struct Noted<F> {
    // First, because fields are dropped in order: what is in it is gone when that is said. What a
    // future holds on to itself it drops before what it was given.
    future: Pin<Box<F>>,
    _holding: Holding,
}

impl<F: Future> Future for Noted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.future.as_mut().poll(cx)
    }
}

/// Something that is held. Dropping it says that it is gone.
#[derive(Debug)]
pub(crate) struct Holding {
    inventory: Inventory,
    key: usize,
}

impl Drop for Holding {
    fn drop(&mut self) {
        let mut items = self.inventory.lock();
        let gone = items.try_remove(self.key);
        self.inventory.0.count.send_replace(items.len());
        drop(items);
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the future was given, before and after its first poll.
    #[tokio::test]
    async fn what_is_in_a_future_is_gone_before_that_is_said() {
        struct Given(Inventory);
        impl Drop for Given {
            fn drop(&mut self) {
                assert_eq!(self.0.items().len(), 1);
            }
        }
        for polled in [false, true] {
            let inventory = Inventory::new();
            let given = Given(inventory.clone());
            let mut noted = inventory.note(Held::Get("/a".to_owned()), async move {
                std::future::pending::<()>().await;
                drop(given);
            });
            if polled {
                let poll = std::future::poll_fn(|cx| {
                    assert!(Pin::new(&mut noted).poll(cx).is_pending());
                    Poll::Ready(())
                });
                poll.await;
            }
            drop(noted);
            assert_eq!(inventory.items(), []);
        }
    }

    #[test]
    fn what_is_held_has_a_name_until_it_is_gone() {
        let inventory = Inventory::new();
        let count = inventory.count();
        let one = inventory.hold(Held::Lookup("config.example".to_owned()));
        let two = inventory.hold(Held::Get("/a".to_owned()));
        assert_eq!(*count.borrow(), 2);
        drop(one);
        assert_eq!(inventory.items(), [Held::Get("/a".to_owned())]);
        drop(two);
        assert_eq!((*count.borrow(), inventory.items()), (0, Vec::new()));
    }
}
