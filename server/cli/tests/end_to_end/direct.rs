//! Talks to etcd directly: for writes where etcdctl is too slow, and for the state to compare with.
//! The only user of etcd-client here.

use std::time::Duration;

use driftless_client::{Entry, Key, KeyRange, Revision};
use driftless_test_support::PATIENCE;
use etcd_client::{
    Client, CompactionOptions, Error, EventType, GetOptions, KeyValue, Txn, TxnOp, WatchOptions,
};

/// How long a write may take while etcd may be away. A write that timed out may have been done.
const WRITE_WITHIN: Duration = Duration::from_secs(1);

/// A client of etcd. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Direct(Client);

/// A part of a transaction.
pub(crate) enum Op {
    Put(String, Vec<u8>),
    Delete(String),
}

impl Op {
    pub(crate) fn put(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put(key.into(), value.into())
    }

    pub(crate) fn delete(key: impl Into<String>) -> Self {
        Self::Delete(key.into())
    }
}

/// The change of one key.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) revision: Revision,
    pub(crate) key: Key,
    /// `None`: it was deleted.
    pub(crate) entry: Option<Entry>,
}

impl Direct {
    pub(crate) async fn connect(url: &str) -> Self {
        Self(Client::connect([url], None).await.expect("a valid URL"))
    }

    /// Puts a key and returns the revision.
    pub(crate) async fn put(&mut self, key: &str, value: impl Into<Vec<u8>>) -> Revision {
        self.txn([Op::put(key, value)]).await
    }

    /// Deletes a key.
    pub(crate) async fn delete(&mut self, key: &str) -> Revision {
        self.txn([Op::delete(key)]).await
    }

    /// Writes all of it in one transaction and returns the revision.
    pub(crate) async fn txn(&mut self, ops: impl IntoIterator<Item = Op>) -> Revision {
        self.within(PATIENCE, ops).await.expect("etcd is there")
    }

    /// The same while etcd may be away. `None` if it is unknown whether the write was done.
    pub(crate) async fn try_txn(&mut self, ops: impl IntoIterator<Item = Op>) -> Option<Revision> {
        self.within(WRITE_WITHIN, ops).await
    }

    async fn within(
        &mut self,
        limit: Duration,
        ops: impl IntoIterator<Item = Op>,
    ) -> Option<Revision> {
        let ops: Vec<TxnOp> = ops
            .into_iter()
            .map(|op| match op {
                Op::Put(key, value) => TxnOp::put(key, value, None),
                Op::Delete(key) => TxnOp::delete(key, None),
            })
            .collect();
        let write = self.0.txn(Txn::new().and_then(ops));
        let done = tokio::time::timeout(limit, write).await.ok()?.ok()?;
        Some(Revision::new(done.header()?.revision()))
    }

    /// The entries of a range now, by a linearizable read, and their revision.
    pub(crate) async fn list(&mut self, range: &KeyRange) -> (Revision, Vec<Entry>) {
        self.try_list(range).await.expect("etcd is there")
    }

    async fn try_list(&mut self, range: &KeyRange) -> Result<(Revision, Vec<Entry>), Error> {
        let options = match range {
            KeyRange::Key(_) => GetOptions::new(),
            KeyRange::Prefix(_) => GetOptions::new().with_prefix(),
        };
        let start = range.start().as_ref();
        let mut listed = self.0.get(start, Some(options)).await?;
        let revision = listed.header().expect("it has one").revision();
        let entries = listed.take_kvs().iter().map(entry).collect();
        Ok((Revision::new(revision), entries))
    }

    /// Compacts the history before `revision`.
    pub(crate) async fn compact(&mut self, revision: Revision) {
        let options = CompactionOptions::new().with_physical();
        self.0
            .compact(revision.get(), Some(options))
            .await
            .expect("etcd is there");
    }

    /// All changes under `prefix` after `from`, up to `to`, in order. There must be a change at `to`.
    pub(crate) async fn history(
        &mut self,
        prefix: &str,
        from: Revision,
        to: Revision,
    ) -> Vec<Event> {
        tokio::time::timeout(PATIENCE, async {
            loop {
                match self.try_history(prefix, from, to).await {
                    Ok(events) => return events,
                    // etcd was restarted under it.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        })
        .await
        .expect("etcd tells its history")
    }

    async fn try_history(
        &mut self,
        prefix: &str,
        from: Revision,
        to: Revision,
    ) -> Result<Vec<Event>, Error> {
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(from.next().get());
        let mut watch = self.0.watch(prefix, Some(options)).await?;
        let mut events = Vec::new();
        while let Some(response) = watch.message().await? {
            assert!(!response.canceled(), "{}", response.cancel_reason());
            for event in response.events() {
                let kv = event.kv().expect("an event has a key");
                let entry = entry(kv);
                events.push(Event {
                    revision: entry.mod_revision,
                    key: entry.key.clone(),
                    entry: (event.event_type() == EventType::Put).then_some(entry),
                });
            }
            // A response holds whole transactions.
            if events.last().is_some_and(|last| last.revision >= to) {
                events.retain(|event| event.revision <= to);
                break;
            }
        }
        Ok(events)
    }
}

fn entry(kv: &KeyValue) -> Entry {
    Entry {
        key: Key::new(kv.key().to_vec()).expect("etcd has no empty key"),
        value: kv.value().to_vec().into(),
        create_revision: Revision::new(kv.create_revision()),
        mod_revision: Revision::new(kv.mod_revision()),
        version: kv.version(),
    }
}
