//! The places for connections: as many as the server may have at a time.
//!
//! When all are taken, a connection that has had no open call for a while gives its place to a new one.
//! Its client reconnects when it needs to. Without this, clients that do nothing could keep all places
//! for ever, and new ones would wait in the listener's backlog.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::metrics::Metrics;
use crate::session::ConnectionControl;

/// The places of one server. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Places(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    free: Arc<Semaphore>,
    idle: Mutex<Idle>,
    /// A connection was listed as idle.
    listed: Notify,
    metrics: Metrics,
}

/// The connections that may be closed to make room, by how long they have been idle.
#[derive(Debug, Default)]
struct Idle {
    /// The number of the next one.
    next: u64,
    /// The first has been here for longest.
    connections: BTreeMap<u64, Arc<ConnectionControl>>,
}

impl Places {
    /// So many.
    pub(super) fn new(count: usize, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            free: Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS))),
            idle: Mutex::default(),
            listed: Notify::new(),
            metrics,
        }))
    }

    /// Takes a place: a free one, or that of the connection that has been idle for longest, which is
    /// closed. Waits while there is neither.
    ///
    /// # Cancel safety
    /// Cancel-safe: a place that was freed for it stays free.
    pub(super) async fn take(&self) -> Place {
        let permit = loop {
            let free = Arc::clone(&self.0.free);
            if let Ok(permit) = Arc::clone(&free).try_acquire_owned() {
                break permit;
            }
            // Before the look at the list, so that no connection that is listed meanwhile is missed.
            let mut listed = pin!(self.0.listed.notified());
            listed.as_mut().enable();
            let evicted = self.evict_oldest();
            tokio::select! {
                // Nobody closes the semaphore.
                permit = free.acquire_owned() => if let Ok(permit) = permit { break permit },
                // One is enough for one place.
                () = listed, if !evicted => {}
            }
        };
        Place {
            _permit: permit,
            places: self.clone(),
        }
    }

    /// Closes the connection that has been idle for longest. Returns `false` if none is.
    fn evict_oldest(&self) -> bool {
        let oldest = self.0.idle.lock().connections.pop_first();
        let Some((_, connection)) = oldest else {
            return false;
        };
        if connection.close() {
            self.0.metrics.connections_evicted.inc();
        }
        true
    }
}

/// The place of one connection, which frees it when it drops this.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    places: Places,
}

impl Place {
    /// Lists its connection as idle until the guard is dropped.
    pub(super) fn idle(&self, connection: &Arc<ConnectionControl>) -> IdleGuard {
        let number = {
            let mut idle = self.places.0.idle.lock();
            let number = idle.next;
            idle.next += 1;
            idle.connections.insert(number, Arc::clone(connection));
            number
        };
        self.places.0.listed.notify_waiters();
        IdleGuard {
            number,
            places: self.places.clone(),
        }
    }
}

/// Keeps a connection in the list of idle ones.
#[derive(Debug)]
pub(super) struct IdleGuard {
    number: u64,
    places: Places,
}

impl Drop for IdleGuard {
    fn drop(&mut self) {
        let gone = self.places.0.idle.lock().connections.remove(&self.number);
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn idle_connections_give_way_oldest_first() {
        let metrics = Metrics::new();
        let places = Places::new(3, metrics.clone());
        let mut held = Vec::new();
        for _ in 0..3 {
            let place = places.take().now_or_never().expect("it is free");
            let control = Arc::<ConnectionControl>::default();
            held.push((place, control, None));
        }
        // Nobody is idle.
        let mut newcomer = Box::pin(places.take());
        assert!(newcomer.as_mut().now_or_never().is_none());
        for at in [1, 0] {
            let (place, control, idle) = &mut held[at];
            *idle = Some(place.idle(control));
        }
        let closed = |held: &[(Place, Arc<ConnectionControl>, Option<IdleGuard>)]| {
            let closed = held.iter().map(|(_, control, _)| control.is_closed());
            closed.collect::<Vec<_>>()
        };
        // The one that has been idle for longest, and only one for one newcomer.
        assert!(newcomer.as_mut().now_or_never().is_none());
        assert!(newcomer.as_mut().now_or_never().is_none());
        assert_eq!(closed(&held), [false, true, false]);
        assert_eq!(metrics.connections_evicted.get(), 1);
        drop(held.remove(1));
        let place = newcomer.now_or_never().expect("its place is free");
        // One that has a call again is not idle.
        held[0].2 = None;
        assert!(places.take().now_or_never().is_none());
        assert_eq!(closed(&held), [false, false]);
        drop(place);
        assert!(places.take().now_or_never().is_some());
        assert!(places.0.idle.lock().connections.is_empty());
    }
}
