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
    /// Snapshots and conflated diffs that are being read.
    pub answers_reading: Gauge,
    /// Ranges that somebody watches.
    pub scopes: Gauge,
    /// Changes that came from etcd, one per key and transaction.
    pub changes: Counter,
    /// Changes that were encoded, each once whole and once as a patch at most; one that nobody watches
    /// never is.
    pub changes_encoded: Counter,
    /// Changes whose delta was computed and pays.
    pub deltas_computed: Counter,
    /// Changes whose delta was looked for and does not pay.
    pub deltas_dropped: Counter,
    /// Transactions with values that were sent whole, because their deltas were not there in time or
    /// too many were waited for.
    pub deltas_late: Counter,
    /// Jobs that compute the deltas of a transaction.
    pub delta_jobs: Gauge,
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
    /// Times that a stream was told to come back, because too many wait for an answer.
    pub answers_deferred: Counter,
    /// Connections that were closed because something on them was not read.
    pub stalled_closed: Counter,
    /// Connections that came to no end of agreeing on TLS.
    pub tls_handshakes_failed: Counter,
    /// Requests that were refused.
    pub refused: Counter,
    /// Full lists of a prefix that were read from etcd.
    pub etcd_lists: Counter,
    /// Watches that were opened on etcd.
    pub etcd_watches: Counter,
    /// Watches that were opened on etcd to read what changed before the server's start.
    pub etcd_earlier_watches: Counter,
    /// Times that what changed before the server's start was thrown away: it did not fit the state.
    pub earlier_refused: Counter,
    /// Times that the state was found to be what etcd holds, by a list of its own.
    pub audits: Counter,
    /// Times that it was found to differ.
    pub audit_differences: Counter,
    /// Attempts to connect to etcd.
    pub etcd_attempts: Counter,
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
        let changes_encoded = counter(
            "changes_encoded",
            "Changes that were encoded, each once whole and once as a patch at most",
        );
        let deltas_computed = counter(
            "deltas_computed",
            "Changes whose delta was computed and pays",
        );
        let deltas_dropped = counter(
            "deltas_dropped",
            "Changes whose delta was looked for and does not pay",
        );
        let deltas_late = counter(
            "deltas_late",
            "Transactions with values that were sent whole, because their deltas were not there in time or too many were waited for",
        );
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
        let answers_deferred = counter(
            "answers_deferred",
            "Times that a stream was told to come back, because too many wait for an answer",
        );
        let stalled_closed = counter(
            "stalled_closed",
            "Connections that were closed because something on them was not read",
        );
        let tls_handshakes_failed = counter(
            "tls_handshakes_failed",
            "Connections that came to no end of agreeing on TLS",
        );
        let refused = counter("refused", "Requests that were refused");
        let etcd_lists = counter(
            "etcd_lists",
            "Full lists of a prefix that were read from etcd",
        );
        let etcd_watches = counter("etcd_watches", "Watches that were opened on etcd");
        let etcd_earlier_watches = counter(
            "etcd_earlier_watches",
            "Watches that were opened on etcd to read what changed before the server's start",
        );
        let earlier_refused = counter(
            "earlier_refused",
            "Times that what changed before the server's start did not fit the state",
        );
        let audits = counter(
            "audits",
            "Times that the state was found to be what etcd holds",
        );
        let audit_differences = counter(
            "audit_differences",
            "Times that the state was found to differ from what etcd holds",
        );
        let etcd_attempts = counter("etcd_attempts", "Attempts to connect to etcd");
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
        let answers_reading = gauge(
            "answers_reading",
            "Snapshots and conflated diffs that are being read",
        );
        let scopes = gauge("scopes", "Ranges that somebody watches");
        let delta_jobs = gauge(
            "delta_jobs",
            "Jobs that compute the deltas of a transaction",
        );
        let log_bytes = gauge("log_bytes", "Bytes held by the change logs");
        Self(Arc::new(Inner {
            registry,
            connections,
            streams,
            answers_reading,
            scopes,
            changes,
            changes_encoded,
            deltas_computed,
            deltas_dropped,
            deltas_late,
            delta_jobs,
            frames_encoded,
            chunks_encoded,
            sent_bytes,
            answers_current,
            answers_replay,
            answers_diff,
            answers_snapshot,
            conflated,
            answers_deferred,
            stalled_closed,
            tls_handshakes_failed,
            refused,
            etcd_lists,
            etcd_watches,
            etcd_earlier_watches,
            earlier_refused,
            audits,
            audit_differences,
            etcd_attempts,
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
