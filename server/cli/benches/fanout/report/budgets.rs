//! The budgets: what driftless may cost, mostly relative to other contenders in the same run.
//!
//! They are printed, not asserted: only ratios within one run hold elsewhere, and only roughly.

use super::table::find;
use crate::row::{self, Row};

/// A figure and what it may be at most.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    pub(super) what: String,
    pub(super) measured: f64,
    pub(super) allowed: f64,
}

/// Those whose rows were measured.
pub(super) fn all(rows: &[Row]) -> Vec<Budget> {
    let mut budgets = Vec::new();
    for row in rows.iter().filter(|row| row.missing.is_none()) {
        let name = format!("{}, {} subscribers", row.scenario, row.subscribers);
        let mut budget = |what: &str, measured: Option<f64>, allowed: Option<f64>| {
            if let (Some(measured), Some(allowed)) = (measured, allowed) {
                budgets.push(Budget {
                    what: format!("{name}: {what}"),
                    measured,
                    allowed,
                });
            }
        };
        if row.contender != "driftless" {
            continue;
        }
        let share = |figure: &str, own: &str, of: &str| {
            let other = find(rows, of, &row.scenario, row.subscribers)?;
            Some(row.get(own)? / other.get(figure)?)
        };
        let cpu = |of: &str| share(row::CPU, row::SERVER_CPU, of);
        match row.scenario.as_str() {
            // With a hundred, what etcd does for a put weighs more than the deliveries.
            "small" if row.subscribers >= 1000 => {
                budget("CPU of the server, × etcd", cpu("etcd"), Some(0.45));
                budget("CPU of the server, × floor", cpu("floor"), Some(1.6));
                let p99 = share(row::P99, row::P99, "etcd");
                budget("p99, × etcd", p99, Some(0.6));
                let idle = share(row::RSS_IDLE, row::SERVER_RSS_IDLE, "etcd");
                budget("memory of an idle subscriber, × etcd", idle, Some(0.25));
                let after = share(row::RSS_AFTER, row::SERVER_RSS_AFTER, "etcd");
                budget("memory after the changes, × etcd", after, Some(0.13));
                budget("etcd watches", row.get("etcd_watchers"), Some(1.0));
            }
            "64k" => {
                budget("CPU of the server, × etcd", cpu("etcd"), Some(0.15));
                budget("CPU of the server, × floor", cpu("floor"), Some(1.0));
                budget("bytes on the wire", row.get(row::WIRE), Some(300.0));
            }
            "multiplexed" => {
                let own = find(rows, "driftless", "small", row.subscribers);
                let connection = own.and_then(|own| own.get(row::SERVER_RSS_IDLE));
                // A tenth of a connection is in each stream's share.
                let further = row.get(row::SERVER_RSS_IDLE).zip(connection);
                let further = further.map(|(each, connection)| (each * 10.0 - connection) / 9.0);
                budget("KiB for a further stream", further, Some(4.0));
            }
            "cold" => {
                let peak = row.get("server_rss_kib_per_subscriber_peak");
                budget("KiB for a client at the peak", peak, Some(64.0));
                let chunks = row.get("snapshot_chunks_encoded");
                // What one encoding of 1 MiB in chunks of 64 KiB comes to, entries' heads included.
                budget("chunks encoded", chunks, Some(20.0));
            }
            "restart" => {
                budget("bytes of an answer", row.get(row::WIRE), Some(200.0));
                let chunks = row.get("snapshot_chunks_encoded");
                budget("snapshot chunks encoded", chunks, Some(20.0));
            }
            "keys-1000000" | "keys-100000" => {
                let few = find(rows, "driftless", "keys-1000", row.subscribers);
                let few = few.and_then(|few| few.get(row::SERVER_CPU));
                let ratio = row
                    .get(row::SERVER_CPU)
                    .zip(few)
                    .map(|(own, few)| own / few);
                budget("CPU of a change, × that with 1,000 keys", ratio, Some(2.0));
            }
            "scopes-10000" => {
                let few = find(rows, "driftless", "scopes-1", row.subscribers);
                let few = few.and_then(|few| few.get(row::SERVER_CPU));
                let ratio = row
                    .get(row::SERVER_CPU)
                    .zip(few)
                    .map(|(own, few)| own / few);
                budget("CPU of a change, × that with one range", ratio, Some(2.0));
            }
            "read" => {
                let locked = find(rows, "rwlock-arc-clone", "read", row.subscribers);
                let locked = locked.and_then(|locked| locked.get("ns_per_read"));
                let ratio = row
                    .get("ns_per_read")
                    .zip(locked)
                    .map(|(own, other)| own / other);
                budget(
                    "a read, × RwLock<Arc<T>> read and cloned",
                    ratio,
                    Some(0.25),
                );
            }
            _ => {}
        }
    }
    budgets
}
