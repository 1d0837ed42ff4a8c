//! What the server counts. One registry a server, so that two servers in a process stay apart.
//!
//! Labels are bounded by the configuration (served prefixes), never by clients. Gauges of things
//! that come and go are moved by [`Held`] guards only, so they cannot drift from what they count.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// All counters and gauges of one server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

/// The counters by name.
#[derive(Debug)]
pub struct Inner {
    registry: Registry,
    /// Open connections.
    pub connections: Gauge,
    /// Open streams of `Watch`.
    pub streams: Gauge,
    /// Ranges that somebody watches.
    pub scopes: Gauge,
    /// Changes that came from etcd, one per key and transaction.
    pub changes: Counter,
    /// Changes that were encoded; one that nobody watches never is.
    pub changes_encoded: Counter,
    /// Diffs that were put together, one per scope and transaction that reached a stream.
    pub frames_encoded: Counter,
    /// Chunks of snapshots and conflated diffs that were encoded.
    pub chunks_encoded: Counter,
    /// Bytes of response bodies handed to connections, gRPC's framing included.
    pub sent_bytes: Counter,
    /// Streams answered with "you have it all".
    pub answers_current: Counter,
    /// Streams answered with changes from the log.
    pub answers_replay: Counter,
    /// Streams answered with one conflated diff.
    pub answers_diff: Counter,
    /// Streams answered with a snapshot.
    pub answers_snapshot: Counter,
    /// Times that a stream had fallen behind the log and got one conflated diff.
    pub conflated: Counter,
    /// Requests that were refused.
    pub refused: Counter,
    /// Full lists of a prefix that were read from etcd.
    pub etcd_lists: Counter,
    /// Watches that were opened on etcd.
    pub etcd_watches: Counter,
    /// Times that etcd was lost.
    pub etcd_lost: Counter,
    /// Times that etcd's history went back or was replaced.
    pub etcd_history_replaced: Counter,
    /// Reports that clients sent.
    pub reports: Counter,
    /// Bytes held by the change logs.
    pub log_bytes: Gauge,
}

impl Metrics {
    /// Everything at 0.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("driftless");
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let changes = counter(
            "changes",
            "Changes that came from etcd, one per key and transaction",
        );
        let changes_encoded = counter("changes_encoded", "Changes that were encoded");
        let frames_encoded = counter("frames_encoded", "Diffs that were put together for a scope");
        let chunks_encoded = counter(
            "chunks_encoded",
            "Chunks of snapshots and conflated diffs that were encoded",
        );
        let sent_bytes = counter(
            "sent_bytes",
            "Bytes of response bodies handed to connections",
        );
        let answers_current = counter("answers_current", "Streams answered with: you have it all");
        let answers_replay = counter(
            "answers_replay",
            "Streams answered with changes from the log",
        );
        let answers_diff = counter("answers_diff", "Streams answered with one conflated diff");
        let answers_snapshot = counter("answers_snapshot", "Streams answered with a snapshot");
        let conflated = counter(
            "conflated",
            "Times that a stream was behind the log and got one conflated diff",
        );
        let refused = counter("refused", "Requests that were refused");
        let etcd_lists = counter(
            "etcd_lists",
            "Full lists of a prefix that were read from etcd",
        );
        let etcd_watches = counter("etcd_watches", "Watches that were opened on etcd");
        let etcd_lost = counter("etcd_lost", "Times that etcd was lost");
        let etcd_history_replaced = counter(
            "etcd_history_replaced",
            "Times that the history of etcd went back or was replaced",
        );
        let reports = counter("reports", "Reports that clients sent");
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let connections = gauge("connections", "Open connections");
        let streams = gauge("streams", "Open watch streams");
        let scopes = gauge("scopes", "Ranges that somebody watches");
        let log_bytes = gauge("log_bytes", "Bytes held by the change logs");
        Self(Arc::new(Inner {
            registry,
            connections,
            streams,
            scopes,
            changes,
            changes_encoded,
            frames_encoded,
            chunks_encoded,
            sent_bytes,
            answers_current,
            answers_replay,
            answers_diff,
            answers_snapshot,
            conflated,
            refused,
            etcd_lists,
            etcd_watches,
            etcd_lost,
            etcd_history_replaced,
            reports,
            log_bytes,
        }))
    }

    /// In the OpenMetrics text format.
    ///
    /// # Errors
    /// When writing fails, which writing to memory does not.
    pub fn write(&self, to: &mut String) -> fmt::Result {
        prometheus_client::encoding::text::encode(to, &self.0.registry)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl std::ops::Deref for Metrics {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// Counts one thing in a gauge for as long as it lives.
#[derive(Debug)]
#[must_use = "a thing is counted only while its guard lives"]
pub struct Held(Gauge<i64, AtomicI64>);

impl Held {
    /// One more, until dropped.
    pub fn new(gauge: &Gauge<i64, AtomicI64>) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}
