//! Writes to a real etcd, as an operator does, and keeps etcd's disk small.

use driftless_client::Revision;
use driftless_test_support::Etcd;
use etcd_client::{Error, ResponseHeader, Txn, TxnOp};
use tokio::task::JoinSet;

/// How long a value of [`padded`] is, in bytes.
const PADDED_BYTES: usize = 512;

/// A value that is large enough for its changes to travel as deltas, in bytes.
pub(crate) const LARGE: usize = 64 * 1024;

/// How much etcd writes for an operation of a transaction, in bytes, about.
const OPERATION_BYTES: usize = 256;

/// How many deleted keys a server remembers, with some to spare.
const TOMBSTONES: u64 = 70_000;

/// How many calls of [`EtcdWriter::put_and_delete`] fill the server's memory of deleted keys.
pub(crate) const ROUNDS_TO_FILL_TOMBSTONES: u64 = TOMBSTONES / KEYS_PER_TRANSACTION;

/// How many keys a transaction puts or deletes: a little below the 128 operations that etcd allows.
const KEYS_PER_TRANSACTION: u64 = 120;

/// After this many written bytes, etcd is told to forget overwritten values: etcd refuses writes above
/// 2 GiB, and the scenarios do not measure its disk.
const COMPACT_EVERY: usize = 64 * 1024 * 1024;

/// How many revisions etcd keeps then: more than any watcher here is behind.
const REVISIONS_KEPT: i64 = 2_000;

/// A value as a service declares it.
#[derive(serde::Deserialize)]
pub(crate) struct Padded {
    pub(crate) number: u64,
}

/// The text of a [`Padded`] with this number. All of these texts have the same length, so one takes as much
/// memory as another.
pub(crate) fn padded(number: &str) -> String {
    let start = format!("{{\"number\":{number},\"pad\":\"");
    let pad = PADDED_BYTES - start.len() - 2;
    format!("{start}{:pad$}\"}}", "")
}

/// Writes to etcd.
pub(crate) struct EtcdWriter {
    client: etcd_client::Client,
    /// Bytes since the last compaction.
    written: usize,
}

impl EtcdWriter {
    pub(crate) async fn new(etcd: &Etcd) -> Self {
        Self {
            client: etcd.client().await,
            written: 0,
        }
    }

    /// Puts a value, and returns its revision.
    pub(crate) async fn put(&mut self, key: &str, value: impl Into<Vec<u8>>) -> Revision {
        self.try_put(key, value).await.unwrap()
    }

    /// As [`Self::put`], for an etcd that may be away.
    pub(crate) async fn try_put(
        &mut self,
        key: &str,
        value: impl Into<Vec<u8>>,
    ) -> Result<Revision, Error> {
        let value = value.into();
        self.written += value.len();
        let response = self.client.put(key, value, None).await?;
        Ok(self.finish_write(response.header()).await)
    }

    /// Returns the revision of a write, and compacts etcd when much has been written: otherwise its disk
    /// would be full.
    async fn finish_write(&mut self, header: Option<&ResponseHeader>) -> Revision {
        let revision = header.map(ResponseHeader::revision).unwrap();
        if self.written > COMPACT_EVERY {
            self.written = 0;
            // This fails if etcd is away by now or has fewer revisions. The next compaction makes up for it.
            let _ = self.client.compact(revision - REVISIONS_KEPT, None).await;
        }
        Revision::new(revision)
    }

    /// Puts this many large values. Each has a key of its own, because the server sends only the last value
    /// of a key.
    pub(crate) async fn put_large_values(&mut self, round: u64, values: u64) {
        for number in 0..values {
            // Random bytes, which no delta makes smaller.
            let mut seed = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number;
            let mut value = Vec::with_capacity(LARGE);
            while value.len() < LARGE {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // The upper half is more random than the lower.
                value.extend_from_slice(&seed.to_be_bytes()[..4]);
            }
            self.put(&format!("/c/much/{number:03}"), value).await;
        }
    }

    /// Deletes a key. etcd may be away.
    pub(crate) async fn try_delete(&mut self, key: &str) -> Result<(), Error> {
        self.client.delete(key, None).await.map(drop)
    }

    /// Puts keys in one transaction and deletes them in another; returns the revision of the second. The
    /// keys' names are equally long for every number.
    pub(crate) async fn put_and_delete(&mut self, number: u64) -> Revision {
        self.try_put_and_delete(number).await.unwrap()
    }

    /// As [`Self::put_and_delete`], for an etcd that may be away.
    pub(crate) async fn try_put_and_delete(&mut self, number: u64) -> Result<Revision, Error> {
        let name = |n| format!("/c/passing/{number:020}/{n:03}");
        let puts = (0..KEYS_PER_TRANSACTION).map(|n| TxnOp::put(name(n), "v", None));
        self.transaction(puts).await?;
        let deletes = (0..KEYS_PER_TRANSACTION).map(|n| TxnOp::delete(name(n), None));
        // A watcher that received neither transaction still has a change to receive.
        let marker = TxnOp::put("/c/passed", format!("{number:020}"), None);
        self.transaction(deletes.chain([marker])).await
    }

    /// Puts this many small values at the same time, each in a change of its own.
    pub(crate) async fn put_concurrently(&self, changes: usize) {
        let mut putting = JoinSet::new();
        for number in 0..changes {
            let mut client = self.client.clone();
            putting.spawn(async move {
                let key = format!("/c/burst/{number:03}");
                client.put(key, "v", None).await.unwrap();
            });
        }
        putting.join_all().await;
    }

    async fn transaction(
        &mut self,
        operations: impl IntoIterator<Item = TxnOp>,
    ) -> Result<Revision, Error> {
        let operations: Vec<_> = operations.into_iter().collect();
        self.written += operations.len() * OPERATION_BYTES;
        let transaction = Txn::new().and_then(operations);
        let response = self.client.txn(transaction).await?;
        Ok(self.finish_write(response.header()).await)
    }
}
