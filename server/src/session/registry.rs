//! All open connections and streams, and what is done to any of them from outside.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use driftless_proto::v1;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::admission::Admission;
use super::connection::{Connection, ConnectionGuard, ConnectionId};
use super::stream::{NewStream, Stream, StreamGuard, StreamId, WatchId};
use crate::memory::Pressure;
use crate::metrics::Metrics;

/// How many entries are visited at a time before others get the lock: some 20 µs.
pub(super) const SLICE: usize = 1024;

/// Every open connection and stream of a server. Cheap to clone.
///
/// Outside this crate it can only be read, by [`Registry::connections`] and [`Registry::streams`].
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

impl fmt::Debug for Registry {
    /// Counts only: every stream would be written while the lock is held.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (connections, streams) = {
            let open = self.0.open.lock();
            (open.connections.len(), open.streams.len())
        };
        f.debug_struct("Registry")
            .field("connections", &connections)
            .field("streams", &streams)
            .finish_non_exhaustive()
    }
}

struct Inner {
    open: Mutex<Open>,
    next_id: AtomicU64,
    clock: Clock,
    admission: Admission,
    pressure: Pressure,
    /// A stream was told to end.
    ended: Notify,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Open {
    connections: BTreeMap<ConnectionId, Connection>,
    streams: BTreeMap<StreamId, Stream>,
    by_watch_id: HashMap<WatchId, Stream>,
    /// New connections are told to drain, or to close, as those that are open were.
    draining: bool,
    closing: bool,
}

impl Registry {
    /// An empty one.
    pub(crate) fn new(metrics: Metrics) -> Self {
        let pressure = Pressure::default();
        Self(Arc::new(Inner {
            open: Mutex::default(),
            next_id: AtomicU64::new(0),
            clock: Clock(Instant::now()),
            admission: Admission::new(metrics.clone(), pressure.clone()),
            pressure,
            ended: Notify::new(),
            metrics,
        }))
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    fn next_id(&self) -> u64 {
        self.0.next_id.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn clock(&self) -> Clock {
        self.0.clock
    }

    /// Who may read a snapshot or conflated diff.
    pub(crate) fn admission(&self) -> &Admission {
        &self.0.admission
    }

    /// How short memory is.
    pub(crate) fn pressure(&self) -> &Pressure {
        &self.0.pressure
    }

    /// The open connections, in the order in which they came.
    ///
    /// It is no snapshot: the lock is taken for a slice at a time, and what comes or goes meanwhile may
    /// be there or not. Nothing is there twice.
    pub fn connections(&self) -> Connections<'_> {
        Connections {
            registry: self,
            slice: Vec::new().into_iter(),
            last: None,
        }
    }

    /// The open streams, in the order in which they came; as [`Registry::connections`].
    pub fn streams(&self) -> Streams<'_> {
        Streams {
            registry: self,
            slice: Vec::new().into_iter(),
            last: None,
        }
    }

    /// A new connection, in the registry until the guard is dropped.
    pub(crate) fn connect(&self, peer: Option<SocketAddr>) -> ConnectionGuard {
        let connection = Connection::new(ConnectionId(self.next_id()), peer, self.0.clock);
        let mut open = self.0.open.lock();
        // One that was accepted in the last moment.
        if open.draining {
            connection.control().drain();
        }
        // The accept loop may be about to hand one over at that moment.
        if open.closing {
            connection.close();
        }
        open.connections.insert(connection.id(), connection.clone());
        drop(open);
        ConnectionGuard::new(self.clone(), connection)
    }

    pub(super) fn remove_connection(&self, id: ConnectionId) {
        let gone = self.0.open.lock().connections.remove(&id);
        drop(gone);
    }

    /// A new stream, in the registry until the guard is dropped. `subscription` is dropped with it.
    pub(crate) fn open<S>(
        &self,
        connection: &Connection,
        new: NewStream,
        subscription: S,
    ) -> StreamGuard<S> {
        let id = StreamId(self.next_id());
        let stream = Stream::new(id, connection, new, self.0.clock);
        let mut open = self.0.open.lock();
        if let Some(watch_id) = stream.watch_id() {
            open.by_watch_id.insert(watch_id, stream.clone());
        }
        open.streams.insert(id, stream.clone());
        drop(open);
        connection.stream_opened();
        StreamGuard::new(self.clone(), stream, subscription)
    }

    pub(super) fn remove_stream(&self, stream: &Stream) {
        let mut open = self.0.open.lock();
        let watch_id = stream.watch_id();
        let gone = (
            open.streams.remove(&stream.id()),
            watch_id.and_then(|id| open.by_watch_id.remove(&id)),
        );
        drop(open);
        drop(gone);
        stream.connection().stream_closed();
    }

    /// Takes what a client, which may say who it is, reports about one stream. Returns whether the stream
    /// is known.
    pub(crate) fn report(&self, report: &v1::WatchReport, client: Option<&v1::ClientInfo>) -> bool {
        let known = WatchId::from_bytes(&report.watch_id)
            .and_then(|id| self.0.open.lock().by_watch_id.get(&id).cloned());
        if let Some(stream) = &known {
            stream.take_report(report.sequence, report.outcome.as_ref());
            if let Some(client) = client {
                stream.take_client(client);
            }
        }
        known.is_some()
    }

    /// Ends one stream, and no other: it says goodbye at the end of the message that it is in. When
    /// that is not read in time, its connection is [closed](super::SlowConsumers). Returns whether the
    /// stream is open.
    pub(crate) fn end_stream(&self, id: StreamId, goodbye: v1::Goodbye) -> bool {
        let stream = self.0.open.lock().streams.get(&id).cloned();
        if let Some(stream) = &stream {
            stream.end(goodbye);
            self.0.ended.notify_one();
        }
        stream.is_some()
    }

    /// Waits until a stream is told to end.
    pub(super) async fn stream_ended(&self) {
        self.0.ended.notified().await;
    }

    /// Tells all connections, and those to come, to take no new calls.
    pub(crate) fn drain_connections(&self) {
        let mut open = self.0.open.lock();
        open.draining = true;
        open.connections
            .values()
            .for_each(|it| it.control().drain());
    }

    /// Closes all connections, and those to come.
    pub(crate) fn close_connections(&self) {
        let mut open = self.0.open.lock();
        open.closing = true;
        for connection in open.connections.values() {
            connection.close();
        }
    }

    /// Looks at the next few streams after this one, under the lock. Returns the last of them; `None`
    /// when there were none.
    pub(super) fn visit_streams(
        &self,
        after: Option<StreamId>,
        visit: impl FnMut(&Stream),
    ) -> Option<StreamId> {
        let open = self.0.open.lock();
        let slice = open.streams.range(following(after)).take(SLICE);
        let mut last = None;
        slice
            .inspect(|(id, _)| last = Some(**id))
            .map(|(_, stream)| stream)
            .for_each(visit);
        last
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        let open = self.0.open.lock();
        open.connections.is_empty() && open.streams.is_empty() && open.by_watch_id.is_empty()
    }
}

/// All that comes after a key.
fn following<K>(after: Option<K>) -> (Bound<K>, Bound<K>) {
    (
        after.map_or(Bound::Unbounded, Bound::Excluded),
        Bound::Unbounded,
    )
}

/// The open connections of a [`Registry`].
#[derive(Debug)]
#[must_use = "iterators are lazy"]
pub struct Connections<'a> {
    registry: &'a Registry,
    slice: std::vec::IntoIter<Connection>,
    last: Option<ConnectionId>,
}

impl Iterator for Connections<'_> {
    type Item = Connection;

    fn next(&mut self) -> Option<Connection> {
        if self.slice.len() == 0 {
            let open = self.registry.0.open.lock();
            let next = open.connections.range(following(self.last)).take(SLICE);
            self.slice = next
                .map(|(_, it)| it.clone())
                .collect::<Vec<_>>()
                .into_iter();
        }
        let next = self.slice.next()?;
        self.last = Some(next.id());
        Some(next)
    }
}

/// The open streams of a [`Registry`].
#[derive(Debug)]
#[must_use = "iterators are lazy"]
pub struct Streams<'a> {
    registry: &'a Registry,
    slice: std::vec::IntoIter<Stream>,
    last: Option<StreamId>,
}

impl Iterator for Streams<'_> {
    type Item = Stream;

    fn next(&mut self) -> Option<Stream> {
        if self.slice.len() == 0 {
            let mut slice = Vec::new();
            self.registry
                .visit_streams(self.last, |stream| slice.push(stream.clone()));
            self.slice = slice.into_iter();
        }
        let next = self.slice.next()?;
        self.last = Some(next.id());
        Some(next)
    }
}

/// Moments as milliseconds, so that they fit into atomics. 0 is no moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn now(self) -> u64 {
        Self::millis(self.0.elapsed()) + 1
    }

    pub(super) fn instant(self, moment: u64) -> Option<Instant> {
        let since = Duration::from_millis(moment.checked_sub(1)?);
        self.0.checked_add(since)
    }

    pub(super) fn millis(duration: Duration) -> u64 {
        u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 2)
    }
}
