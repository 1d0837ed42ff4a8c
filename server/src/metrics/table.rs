//! Every metric, declared once: see [`declare`](super::declare) for what an entry means.
//!
//! To add a metric, add an entry and count where it happens; then
//! `DRIFTLESS_REGENERATE=1 cargo test -p driftless --test docs` adds its row to `server/README.md`.

use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::declare::{Description, PREFIX, metrics};

metrics! {
    /// Open connections.
    connections: Gauge;
    /// Open streams of `Watch`.
    streams: Gauge;
    /// Ranges that have subscribers.
    scopes: Gauge;

    /// Changes that came from etcd, one per key and transaction.
    changes: Counter;
    /// Changes encoded for sending. Changes that nobody watches are never encoded.
    changes_encoded: Counter;
    /// Bytes of encoded changes held for clients that reconnect.
    log_bytes: Gauge, unit Bytes;

    /// Jobs that are computing the deltas of a transaction.
    delta_jobs: Gauge;
    /// Deltas computed that save enough to be sent.
    deltas_computed: Counter;
    /// Deltas computed and dropped, because they save too little.
    deltas_dropped: Counter;
    /// Transactions sent whole, because their deltas took too long or too many were in progress.
    deltas_late: Counter;

    /// Frames encoded, one per range and transaction that reached a stream.
    frames_encoded: Counter;
    /// Chunks of snapshots and conflated diffs that were encoded.
    chunks_encoded: Counter;
    /// Bytes of response bodies handed to connections, gRPC framing included.
    sent_bytes: Counter, unit Bytes;

    /// Streams that started with nothing to send: the client was up to date.
    syncs_current: Counter;
    /// Streams that started with changes from the log.
    syncs_replay: Counter;
    /// Streams that started with one conflated diff.
    syncs_diff: Counter;
    /// Streams that started with a snapshot.
    syncs_snapshot: Counter;
    /// Streams that were told to retry later, because too many snapshots and diffs were being sent.
    syncs_deferred: Counter;
    /// Streams cut off in a snapshot or conflated diff that they did not read fast enough. Their clients
    /// come back.
    syncs_cut_off: Counter;
    /// Snapshots and conflated diffs that are being sent.
    syncs_in_progress: Gauge;
    /// Those of them that are read slowly or for long, and do not count against the limit.
    syncs_in_background: Gauge;
    /// Estimated bytes of what was overwritten and is kept for snapshots and conflated diffs that are
    /// being sent.
    pinned_bytes: Gauge, unit Bytes;
    /// Times that a stream fell behind the log and got one conflated diff.
    conflated: Counter;

    /// Connections closed because the client left data unread for too long.
    slow_consumers_closed: Counter;
    /// Connections closed because the client sent too many HTTP/2 frames of a kind within a second.
    floods_closed: Family<[(&'static str, &'static str); 1], Counter>, labels "frame";
    /// Connections without an open call that were closed to make room for new ones, because all of
    /// `max_connections` were in use.
    connections_evicted: Counter;
    /// The limit on memory; 0 without one.
    memory_limit_bytes: Gauge, unit Bytes;
    /// Resident memory of the process; 0 without a limit.
    memory_resident_bytes: Gauge, unit Bytes;
    /// How short memory is: 0 not at all, 1 new snapshots and diffs are refused, 2 new connections wait
    /// too.
    memory_level: Gauge;
    /// Snapshots and conflated diffs that were refused because memory was short.
    memory_refused: Counter;
    /// Connections and streams that were ended because memory was nearly used up.
    memory_ended: Counter;
    /// TLS handshakes that failed.
    tls_handshakes_failed: Counter;
    /// Requests that were refused.
    refused: Counter;
    /// Reports received from clients.
    reports: Counter;

    /// Attempts to connect to etcd.
    etcd_attempts: Counter;
    /// Times that the connection to etcd was lost.
    etcd_lost: Counter;
    /// Times that the history of etcd went back or was replaced.
    etcd_history_replaced: Counter;
    /// Full lists of a prefix read from etcd.
    etcd_lists: Counter;
    /// Watches opened on etcd.
    etcd_watches: Counter;
    /// Watches opened on etcd for a backfill: to read what changed before the server's start.
    etcd_backfill_watches: Counter;
    /// Backfills rejected because they did not match the state.
    backfills_rejected: Counter;
    /// Audits that found the state equal to etcd's.
    audits: Counter;
    /// Audits that found the state different from etcd's.
    audit_differences: Counter;
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn names_and_help_are_exported_as_described() {
        let mut text = String::new();
        Metrics::new().write(&mut text).unwrap();
        assert_exported(&DESCRIPTIONS, &text);
        assert!(
            text.contains("# UNIT driftless_sent_bytes bytes\n"),
            "{text}"
        );
    }

    /// Asserts that each metric without labels is exported as described, at 0. One with labels is not
    /// exported before something is counted.
    fn assert_exported(descriptions: &[Description], text: &str) {
        for description in descriptions {
            if description.labels.is_empty() {
                let sample = format!("\n{} 0\n", description.exported_name());
                assert!(text.contains(&sample), "{sample}{text}");
                assert!(text.contains(&description.help()), "{description:?}");
            }
        }
    }

    /// What one entry of a table makes.
    #[allow(unreachable_pub, reason = "the table makes public items")]
    mod toy {
        use super::*;

        metrics! {
            /// Requests by
            /// what became of them.
            requests: Family<[(&'static str, &'static str); 1], Counter>, labels "outcome";
            /// Retries.
            retries: Counter;
        }

        #[test]
        fn metric_with_labels_is_not_exported_before_it_counts() {
            let mut text = String::new();
            let metrics = Inner::new();
            encode(&mut text, metrics.registry()).unwrap();
            assert_eq!(metrics.retries.get(), 0);
            assert_exported(&DESCRIPTIONS, &text);
            assert!(!text.contains("driftless_requests"), "{text}");
        }

        #[test]
        fn one_entry_makes_a_whole_metric() {
            let metrics = Inner::new();
            let refused = metrics.requests.get_or_create(&[("outcome", "refused")]);
            refused.inc();
            let mut text = String::new();
            encode(&mut text, metrics.registry()).unwrap();
            let sample = "driftless_requests_total{outcome=\"refused\"} 1\n";
            assert!(text.contains(sample), "{text}");
            assert_eq!(
                DESCRIPTIONS[0].readme_row(),
                "| `driftless_requests_total{outcome}` | counter | Requests by what became of them |"
            );
        }
    }
}
