//! A source under test, and what the tests write to etcd.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use driftless_proto::apply::Edit;
use driftless_proto::{Entry, Key, KeyRange, Revision};
use driftless_server::metrics::Metrics;
use driftless_server::source::etcd::{EtcdConfig, EtcdSource};
use driftless_server::source::{
    BackfillEvent, History, PastTransaction, Source, SourceHandle, Span, State, Update,
};
use driftless_test_support::PATIENCE;
use etcd_client::{Client, GetOptions, Txn, TxnOp};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

/// Short, so that silence is detected soon, but long enough for a busy etcd.
pub(crate) const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// A source under test, and the state that its updates lead to.
pub(crate) struct Subject {
    pub(crate) source: EtcdSource,
    pub(crate) handle: SourceHandle,
    pub(crate) metrics: Metrics,
    pub(crate) held: BTreeMap<Key, Entry>,
    pub(crate) revision: Revision,
    /// True from the first reason of a loss until the next sign of life.
    is_lost: bool,
}

impl Subject {
    pub(crate) fn new(endpoints: &[String]) -> Self {
        Self::with_interval(endpoints, PROGRESS_INTERVAL)
    }

    pub(crate) fn with_interval(endpoints: &[String], progress_interval: Duration) -> Self {
        Self::with(EtcdConfig {
            progress_interval,
            ..EtcdConfig::new(endpoints)
        })
    }

    pub(crate) fn with(config: EtcdConfig) -> Self {
        let metrics = Metrics::new();
        let (handle, requests) = SourceHandle::channel();
        let range = KeyRange::prefix("/c/").unwrap();
        let source = EtcdSource::new(range, config, metrics.clone(), requests).unwrap();
        Self {
            source,
            handle,
            metrics,
            held: BTreeMap::new(),
            revision: Revision::NONE,
            is_lost: false,
        }
    }

    /// Applies the next update and checks the rules for updates.
    pub(crate) async fn next(&mut self) -> Update {
        let update = tokio::time::timeout(PATIENCE, self.source.next()).await;
        let update = update.expect("an update in time");
        match &update {
            Update::State(state) => {
                assert!(
                    state.entries.is_sorted_by(|a, b| a.key < b.key),
                    "ascending, once"
                );
                assert!(
                    state
                        .entries
                        .iter()
                        .all(|entry| entry.mod_revision <= state.revision)
                );
                if state.history == History::Continues {
                    assert!(state.revision >= self.revision);
                }
                self.revision = state.revision;
                let entries = state.entries.iter().cloned();
                self.held = entries.map(|entry| (entry.key.clone(), entry)).collect();
            }
            Update::Changes { revision, changes } => {
                assert!(
                    *revision > self.revision,
                    "{revision} after {}",
                    self.revision
                );
                assert!(!changes.is_empty());
                assert!(
                    changes.is_sorted_by(|a, b| a.key() < b.key()),
                    "ascending, once"
                );
                self.revision = *revision;
                for change in changes {
                    match change.clone() {
                        Edit::Put(entry) => {
                            assert_eq!(entry.mod_revision, *revision);
                            self.held.insert(entry.key.clone(), entry);
                        }
                        Edit::Delete { key, mod_revision } => {
                            assert_eq!(mod_revision, *revision);
                            self.held.remove(&key);
                        }
                    }
                }
            }
            Update::Progress { revision } => {
                assert!(*revision >= self.revision);
                self.revision = *revision;
            }
            Update::Proof(_)
            | Update::Lost { .. }
            | Update::Backfill(_)
            | Update::Audited { .. } => {}
        }
        update
    }

    /// The next update except progress, proofs, and further reasons of a loss.
    pub(crate) async fn change(&mut self) -> Update {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "no change within {PATIENCE:?}");
            let update = self.next().await;
            let is_lost = matches!(update, Update::Lost { .. });
            let was_lost = std::mem::replace(&mut self.is_lost, is_lost);
            match update {
                Update::Progress { .. } | Update::Proof(_) => {}
                Update::Lost { .. } if was_lost => {}
                update => return update,
            }
        }
    }

    pub(crate) async fn state(&mut self) -> State {
        match self.change().await {
            Update::State(state) => state,
            other => panic!("no state but {other:?}"),
        }
    }

    pub(crate) async fn changes(&mut self) -> Vec<Edit> {
        match self.change().await {
            Update::Changes { changes, .. } => changes,
            other => panic!("no changes but {other:?}"),
        }
    }

    pub(crate) async fn lost(&mut self) -> String {
        match self.change().await {
            Update::Lost { reason } => reason,
            other => panic!("not lost but {other:?}"),
        }
    }

    /// Takes updates until the condition holds.
    pub(crate) async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !is_so(self) {
            assert!(
                start.elapsed() < PATIENCE,
                "not within {PATIENCE:?}: {what}"
            );
            self.next().await;
        }
    }

    /// Takes updates until the future is done.
    pub(crate) async fn during<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        loop {
            tokio::select! {
                biased;
                done = &mut future => return done,
                _ = self.next() => {}
            }
        }
    }

    /// Requests a span. Returns where the answer begins, and its transactions.
    pub(crate) async fn backfill(
        &mut self,
        span: Span,
    ) -> Result<(Revision, Vec<PastTransaction>), String> {
        assert!(self.handle.backfill(span));
        let (mut from, mut transactions) = (None, Vec::new());
        loop {
            match self.next().await {
                Update::Backfill(BackfillEvent::Begin { after }) => {
                    from = Some(after);
                    transactions.clear();
                }
                Update::Backfill(BackfillEvent::Transactions(more)) => transactions.extend(more),
                Update::Backfill(BackfillEvent::End) => return Ok((from.unwrap(), transactions)),
                Update::Backfill(BackfillEvent::Failed { reason }) => return Err(reason),
                other => assert!(!matches!(other, Update::State(_) | Update::Lost { .. })),
            }
        }
    }

    pub(crate) fn value(&self, key: &str) -> Option<&[u8]> {
        self.held.get(key.as_bytes()).map(|entry| &entry.value[..])
    }
}

/// The entries under the prefix in etcd.
pub(crate) async fn held_by(client: &Client) -> BTreeMap<Key, Entry> {
    read(client, GetOptions::new().with_prefix()).await
}

async fn read(client: &Client, options: GetOptions) -> BTreeMap<Key, Entry> {
    let mut client = client.kv_client().max_decoding_message_size(usize::MAX);
    let response = client.get("/c/", Some(options)).await.unwrap();
    let entries = response.kvs().iter().map(|kv| Entry {
        key: Key::new(kv.key().to_vec()).unwrap(),
        value: kv.value().to_vec().into(),
        create_revision: Revision::new(kv.create_revision()),
        mod_revision: Revision::new(kv.mod_revision()),
        version: kv.version(),
    });
    entries.map(|entry| (entry.key.clone(), entry)).collect()
}

pub(crate) async fn put(
    client: &mut Client,
    key: impl Into<Vec<u8>>,
    value: impl Into<Vec<u8>>,
) -> Revision {
    let response = client.put(key, value, None).await.unwrap();
    Revision::new(response.header().unwrap().revision())
}

pub(crate) async fn delete(client: &mut Client, key: &str) -> Revision {
    let response = client.delete(key, None).await.unwrap();
    Revision::new(response.header().unwrap().revision())
}

pub(crate) async fn txn(client: &mut Client, ops: Vec<TxnOp>) {
    let response = client.txn(Txn::new().and_then(ops)).await.unwrap();
    assert!(response.succeeded());
}

/// The entries under the prefix in etcd at a revision.
pub(crate) async fn held_at(client: &Client, revision: Revision) -> BTreeMap<Key, Entry> {
    let options = GetOptions::new().with_prefix();
    let options = options.with_revision(revision.get());
    read(client, options).await
}

/// Writes at random, sometimes several keys in a transaction.
pub(crate) async fn write(client: &mut Client, random: &mut StdRng) {
    for _ in 0..random.random_range(1..40) {
        let mut keys: Vec<u8> = (0..8).collect();
        keys.shuffle(random);
        let ops = keys[..random.random_range(1..5)].iter().map(|key| {
            let key = format!("/{}/{key}", if random.random_bool(0.2) { "b" } else { "c" });
            if random.random_bool(0.3) {
                TxnOp::delete(key, None)
            } else {
                TxnOp::put(key, random.random::<u32>().to_string(), None)
            }
        });
        txn(client, ops.collect()).await;
    }
}
