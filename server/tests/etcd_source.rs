//! The etcd source against a real etcd: its updates lead to what etcd holds, across restarts,
//! compaction, silence and restores, and it leaves no watch behind at etcd.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use driftless_proto::apply::Edit;
use driftless_proto::digest::Digest;
use driftless_proto::{Entry, Key, KeyRange, Revision};
use driftless_server::metrics::Metrics;
use driftless_server::source::etcd::{EtcdConfig, EtcdSource};
use driftless_server::source::{
    BackfillEvent, History, PastTransaction, Source, SourceHandle, Span, State, Update,
};
use driftless_test_support::{Etcd, PATIENCE, Proxy, eventually, free_port};
use etcd_client::{Client, GetOptions, Txn, TxnOp};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Short, so that silence is detected soon, but long enough for a busy etcd.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// A source under test, and the state that its updates lead to.
struct Subject {
    source: EtcdSource,
    handle: SourceHandle,
    metrics: Metrics,
    held: BTreeMap<Key, Entry>,
    revision: Revision,
}

impl Subject {
    fn new(endpoints: &[String]) -> Self {
        Self::with_interval(endpoints, PROGRESS_INTERVAL)
    }

    fn with_interval(endpoints: &[String], progress_interval: Duration) -> Self {
        Self::with(EtcdConfig {
            progress_interval,
            ..EtcdConfig::new(endpoints)
        })
    }

    fn with(config: EtcdConfig) -> Self {
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
        }
    }

    /// Applies the next update and checks the rules for updates.
    async fn next(&mut self) -> Update {
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
            Update::Contact
            | Update::Lost { .. }
            | Update::Backfill(_)
            | Update::Audited { .. } => {}
        }
        update
    }

    /// The next update except progress and contact.
    async fn change(&mut self) -> Update {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "no change within {PATIENCE:?}");
            match self.next().await {
                Update::Progress { .. } | Update::Contact => {}
                update => return update,
            }
        }
    }

    async fn state(&mut self) -> State {
        match self.change().await {
            Update::State(state) => state,
            other => panic!("no state but {other:?}"),
        }
    }

    async fn changes(&mut self) -> Vec<Edit> {
        match self.change().await {
            Update::Changes { changes, .. } => changes,
            other => panic!("no changes but {other:?}"),
        }
    }

    async fn lost(&mut self) -> String {
        match self.change().await {
            Update::Lost { reason } => reason,
            other => panic!("not lost but {other:?}"),
        }
    }

    /// Takes updates until the condition holds.
    async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
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
    async fn during<T>(&mut self, future: impl Future<Output = T>) -> T {
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
    async fn backfill(&mut self, span: Span) -> Result<(Revision, Vec<PastTransaction>), String> {
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

    fn value(&self, key: &str) -> Option<&[u8]> {
        self.held.get(key.as_bytes()).map(|entry| &entry.value[..])
    }
}

/// The entries under the prefix in etcd.
async fn held_by(client: &Client) -> BTreeMap<Key, Entry> {
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

async fn put(client: &mut Client, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Revision {
    let response = client.put(key, value, None).await.unwrap();
    Revision::new(response.header().unwrap().revision())
}

async fn delete(client: &mut Client, key: &str) -> Revision {
    let response = client.delete(key, None).await.unwrap();
    Revision::new(response.header().unwrap().revision())
}

async fn txn(client: &mut Client, ops: Vec<TxnOp>) {
    let response = client.txn(Txn::new().and_then(ops)).await.unwrap();
    assert!(response.succeeded());
}

#[tokio::test]
async fn list_holds_the_prefix_at_one_revision() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    for batch in 0..25 {
        let puts = (0..100).map(|n| TxnOp::put(format!("/c/{batch:02}/{n:02}"), "value", None));
        txn(&mut client, puts.collect()).await;
    }
    put(&mut client, "/b/outside", "x").await;
    let last = put(&mut client, "/c0", "just behind the prefix").await;
    let mut subject = Subject::new(&[etcd.url()]);
    let state = subject.state().await;
    assert_eq!(state.revision, last);
    assert_eq!(state.history, History::Continues);
    assert_eq!(state.entries.len(), 2_500);
    assert_eq!(subject.held, held_by(&client).await);
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
}

#[tokio::test]
async fn each_transaction_is_one_update() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    let mut subject = Subject::new(&[etcd.url()]);
    assert!(subject.state().await.entries.is_empty());

    put(&mut client, "/c/a", "1").await;
    assert!(matches!(&subject.changes().await[..], [Edit::Put(entry)] if entry.version == 1));
    put(&mut client, "/c/a", "2").await;
    assert!(matches!(&subject.changes().await[..], [Edit::Put(entry)] if entry.version == 2));
    delete(&mut client, "/c/a").await;
    assert!(matches!(
        &subject.changes().await[..],
        [Edit::Delete { .. }]
    ));
    put(&mut client, "/c/a", "3").await;
    assert!(matches!(&subject.changes().await[..], [Edit::Put(entry)] if entry.version == 1));

    put(&mut client, "/outside", "x").await;
    let mut ops: Vec<TxnOp> = (0..99)
        .map(|n| TxnOp::put(format!("/c/many/{n:02}"), [0_u8, 255], None))
        .collect();
    ops.push(TxnOp::delete("/c/a", None));
    txn(&mut client, ops).await;
    assert_eq!(subject.changes().await.len(), 100);
    assert_eq!(subject.held, held_by(&client).await);

    let all = client.delete("/c/", Some(etcd_client::DeleteOptions::new().with_prefix()));
    assert_eq!(all.await.unwrap().deleted(), 99);
    assert_eq!(subject.changes().await.len(), 99);
    assert!(subject.held.is_empty());
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
    assert_eq!(subject.metrics.etcd_watches.get(), 1);
}

#[tokio::test]
async fn source_waits_until_etcd_starts() {
    let mut etcd = Etcd::new();
    let mut subject = Subject::new(&[etcd.url()]);
    let reason = subject.lost().await;
    assert!(reason.starts_with("http://127.0.0.1:"), "{reason}");
    let handle = subject.handle.clone();
    let answer = subject.during(handle.revision()).await;
    assert_eq!(answer, None, "nobody is there to answer");
    let (state, ()) = tokio::join!(subject.state(), etcd.start());
    assert!(state.entries.is_empty());
    assert_eq!(
        subject.metrics.etcd_lost.get(),
        1,
        "lost once, not once per attempt"
    );
}

#[tokio::test]
async fn next_endpoint_is_tried_after_a_dead_one() {
    let etcd = Etcd::started().await;
    let dead = format!("http://127.0.0.1:{}", free_port());
    let mut subject = Subject::new(&[dead, etcd.url()]);
    subject.lost().await;
    subject.state().await;
}

#[tokio::test]
async fn next_endpoint_is_tried_after_a_silent_one() {
    let etcd = Etcd::started().await;
    // The backlog accepts connections; nobody answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_at = format!("http://{}", silent.local_addr().unwrap());
    let mut subject = Subject::new(&[silent_at, etcd.url()]);
    // HTTP/2 pings alone would take fifteen seconds.
    let lost = tokio::time::timeout(Duration::from_secs(10), subject.lost());
    lost.await.unwrap();
    subject.state().await;
}

#[tokio::test]
async fn etcd_restart_needs_no_list() {
    let mut etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "1").await;
    let mut subject = Subject::new(&[etcd.url()]);
    subject.state().await;
    etcd.kill();
    subject.lost().await;
    etcd.start().await;
    let mut client = etcd.client().await;
    put(&mut client, "/c/b", "2").await;
    put(&mut client, "/c/b", "3").await;
    let ops = vec![TxnOp::delete("/c/a", None), TxnOp::put("/c/c", "4", None)];
    txn(&mut client, ops).await;
    assert_eq!(subject.changes().await.len(), 1);
    assert_eq!(subject.changes().await.len(), 1);
    assert_eq!(subject.changes().await.len(), 2);
    assert_eq!(subject.held, held_by(&client).await);
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
    assert_eq!(subject.metrics.etcd_watches.get(), 2);
    assert_eq!(subject.metrics.etcd_lost.get(), 1);
    assert_eq!(etcd.watches().await, (1, 1));
}

#[tokio::test]
async fn compaction_while_disconnected_leads_to_a_list() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "1").await;
    put(&mut client, "/c/b", "1").await;
    let proxy = Proxy::to(etcd.port()).await;
    let mut subject = Subject::new(&[proxy.url()]);
    subject.state().await;
    proxy.cut();
    subject.lost().await;
    delete(&mut client, "/c/a").await;
    put(&mut client, "/c/b", "2").await;
    let last = put(&mut client, "/c/d", "2").await;
    client.compact(last.get(), None).await.unwrap();
    proxy.heal();
    let state = subject.state().await;
    assert_eq!(state.history, History::Continues);
    assert_eq!(state.revision, last);
    assert_eq!(subject.held, held_by(&client).await);
    assert_eq!(subject.metrics.etcd_lists.get(), 2);
    put(&mut client, "/c/d", "3").await;
    subject.changes().await;
}

/// etcd (before 3.4.36 and 3.5.18) opens a watch at the revision that it was compacted at, but has lost
/// the deletes of that revision.
#[tokio::test]
async fn delete_at_the_compacted_revision_is_reported() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "1").await;
    let proxy = Proxy::to(etcd.port()).await;
    // Without progress, which would reveal it too.
    let mut subject = Subject::with_interval(&[proxy.url()], PATIENCE * 2);
    subject.state().await;
    proxy.cut();
    subject.lost().await;
    let gone = delete(&mut client, "/c/a").await;
    let physical = etcd_client::CompactionOptions::new().with_physical();
    client.compact(gone.get(), Some(physical)).await.unwrap();
    proxy.heal();
    assert!(subject.state().await.entries.is_empty());
}

#[tokio::test]
async fn stopped_etcd_is_lost() {
    let etcd = Etcd::started().await;
    let mut subject = Subject::new(&[etcd.url()]);
    subject.state().await;
    etcd.pause();
    let start = Instant::now();
    subject.lost().await;
    assert!(
        start.elapsed() < PROGRESS_INTERVAL * 20,
        "{:?}",
        start.elapsed()
    );
    etcd.resume();
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "1").await;
    subject.changes().await;
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
    // The silent watch does not stay.
    subject
        .during(eventually("one watch", async || {
            etcd.watches().await == (1, 1)
        }))
        .await;
}

/// As with SIGSTOP: by the clock, etcd has been silent for long.
#[tokio::test]
async fn stopped_server_does_not_count_as_silent_etcd() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    let mut subject = Subject::new(&[etcd.url()]);
    subject.state().await;
    for value in ["1", "2", "3"] {
        // It stops the whole test: there is one thread.
        std::thread::sleep(PROGRESS_INTERVAL * 5);
        subject.next().await;
        put(&mut client, "/c/a", value).await;
        subject.changes().await;
    }
    assert_eq!(subject.metrics.etcd_lost.get(), 0);
    assert_eq!(subject.metrics.etcd_watches.get(), 1);
}

#[tokio::test]
async fn older_backup_is_another_history() {
    let mut etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "1").await;
    etcd.kill();
    let backup = etcd.backup();
    etcd.start().await;
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "2").await;
    let known = put(&mut client, "/c/b", "2").await;
    let mut subject = Subject::new(&[etcd.url()]);
    let before = subject.state().await;
    assert_eq!(before.revision, known);

    etcd.kill();
    subject.lost().await;
    etcd.restore(backup.path());
    etcd.start().await;
    let after = subject.state().await;
    assert_eq!(after.history, History::Replaced);
    assert_eq!(
        after.epoch, before.epoch,
        "etcd keeps its id: the epoch cannot tell"
    );
    assert!(after.revision < known);
    assert_eq!(subject.value("/c/a"), Some(&b"1"[..]));
    assert_eq!(subject.metrics.etcd_history_replaced.get(), 1);
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "3").await;
    subject.changes().await;
    assert_eq!(subject.held, held_by(&client).await);
}

#[tokio::test]
async fn backup_past_the_known_revision_is_another_history() {
    let mut etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "1").await;
    etcd.kill();
    let backup = etcd.backup();
    etcd.start().await;
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "2").await;
    let proxy = Proxy::to(etcd.port()).await;
    let mut subject = Subject::new(&[proxy.url()]);
    let before = subject.state().await;
    proxy.cut();
    subject.lost().await;
    etcd.kill();
    etcd.restore(backup.path());
    etcd.start().await;
    let mut client = etcd.client().await;
    // The same key at the same revision and version, and then well past it.
    assert_eq!(put(&mut client, "/c/a", "3").await, before.revision);
    for _ in 0..20 {
        put(&mut client, "/outside", "x").await;
    }
    proxy.heal();
    let after = subject.state().await;
    assert_eq!(after.history, History::Replaced);
    assert!(after.revision > before.revision);
    assert_eq!(subject.value("/c/a"), Some(&b"3"[..]));
}

#[tokio::test]
async fn other_cluster_has_another_epoch() {
    let (first, second) = (Etcd::started().await, Etcd::started().await);
    put(&mut second.client().await, "/c/b", "2").await;
    let proxy = Proxy::to(first.port()).await;
    let mut subject = Subject::new(&[proxy.url(), second.url()]);
    let before = subject.state().await;
    proxy.cut();
    subject.lost().await;
    let after = subject.state().await;
    assert_eq!(after.history, History::Replaced);
    assert_ne!(after.epoch, before.epoch);
    assert_eq!(subject.held.len(), 1);
}

#[tokio::test]
async fn large_values_are_listed_and_watched() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    let value = |n: u8| vec![n; 1024 * 1024];
    for n in 0..50 {
        put(&mut client, format!("/c/{n:02}"), value(n)).await;
    }
    let mut subject = Subject::new(&[etcd.url()]);
    assert_eq!(subject.state().await.entries.len(), 50);
    for n in 50..60 {
        put(&mut client, format!("/c/{n:02}"), value(n)).await;
    }
    subject
        .until("all values", |subject| subject.held.len() == 60)
        .await;
    assert!(subject.held == held_by(&client).await);
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
}

#[tokio::test]
async fn fragmented_transaction_is_one_update() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    let proxy = Proxy::to(etcd.port()).await;
    let mut subject = Subject::new(&[proxy.url()]);
    subject.state().await;
    proxy.cut();
    subject.lost().await;
    // Each transaction has 1.2 MB. The watch catches up in fragments of 2 MiB, which end in the middle of
    // a transaction.
    let keys = ["/c/1", "/c/2", "/c/3"];
    for n in 0..12_u8 {
        let puts = keys.map(|key| TxnOp::put(key, vec![n; 400_000], None));
        txn(&mut client, puts.to_vec()).await;
    }
    proxy.heal();
    for n in 0..12_u8 {
        assert_eq!(subject.changes().await.len(), 3, "transaction {n}");
        assert!(keys.iter().all(|key| subject.value(key).unwrap()[0] == n));
    }
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
}

#[tokio::test]
async fn oversized_keys_are_left_out() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    let long = |end: &str| format!("/c/{}{end}", "k".repeat(1024 * 1024));
    put(&mut client, long("a"), "x").await;
    put(&mut client, "/c/z", "1").await;
    let mut subject = Subject::new(&[etcd.url()]);
    assert_eq!(subject.state().await.entries.len(), 1);
    put(&mut client, long("b"), "x").await;
    let ops = vec![
        TxnOp::delete(long("a"), None),
        TxnOp::put("/c/z", "2", None),
    ];
    txn(&mut client, ops).await;
    assert_eq!(subject.changes().await.len(), 1);
    // They count in the number of keys that proves that nothing changed.
    let outside = put(&mut client, "/outside", "x").await;
    let handle = subject.handle.clone();
    assert_eq!(subject.during(handle.revision()).await, Some(outside));
    subject
        .until("the revision", |subject| subject.revision >= outside)
        .await;
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
}

#[tokio::test]
async fn revision_request_advances_an_idle_prefix() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    let mut subject = Subject::new(&[etcd.url()]);
    subject.state().await;
    for _ in 0..20 {
        put(&mut client, "/c/a", "x").await;
        let outside = put(&mut client, "/outside", "x").await;
        let (one, other) = (subject.handle.clone(), subject.handle.clone());
        let both = async { tokio::join!(one.revision(), other.revision()) };
        let (one, other) = subject.during(both).await;
        assert!(one >= Some(outside) && other >= Some(outside));
        subject
            .until("the revision", |subject| Some(subject.revision) >= one)
            .await;
    }
    assert_eq!(subject.held, held_by(&client).await);
    assert_eq!(subject.metrics.etcd_lists.get(), 1, "no list was needed");
}

#[tokio::test]
async fn idle_prefix_advances_by_progress() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    let mut subject = Subject::new(&[etcd.url()]);
    subject.state().await;
    let outside = put(&mut client, "/outside", "x").await;
    subject
        .until("the revision", |subject| subject.revision >= outside)
        .await;
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
}

#[tokio::test]
async fn dropped_source_leaves_no_watch_at_etcd() {
    let etcd = Etcd::started().await;
    assert_eq!(etcd.watches().await, (0, 0));
    for _ in 0..10 {
        let mut subject = Subject::new(&[etcd.url()]);
        subject.state().await;
        subject
            .during(eventually("one watch", async || {
                etcd.watches().await == (1, 1)
            }))
            .await;
        drop(subject);
        eventually("no watch", async || etcd.watches().await == (0, 0)).await;
    }
}

/// Dropped at any await before its first updates: while it connects, lists, opens the watch, watches.
#[tokio::test]
async fn source_dropped_at_any_await_leaves_no_watch() {
    let etcd = Etcd::started().await;
    put(&mut etcd.client().await, "/c/a", "1").await;
    let mut watched = 0;
    for polls in 0.. {
        let mut subject = Subject::new(&[etcd.url()]);
        let mut polled = 0;
        let updates = async {
            loop {
                subject.next().await;
            }
        };
        let mut updates = std::pin::pin!(updates);
        let some_polls = std::future::poll_fn(|cx| {
            polled += 1;
            if polled > polls {
                return std::task::Poll::Ready(());
            }
            let _: std::task::Poll<()> = updates.as_mut().poll(cx);
            std::task::Poll::Pending
        });
        // Once nothing wakes it any more, it watches. A few more rounds, because polls differ.
        let some_polls = tokio::time::timeout(Duration::from_millis(50), some_polls);
        watched += usize::from(some_polls.await.is_err());
        if watched == 5 {
            break;
        }
    }
    eventually("no watch", async || etcd.watches().await == (0, 0)).await;
}

#[tokio::test]
async fn reconnects_leave_no_watch_behind() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    let proxy = Proxy::to(etcd.port()).await;
    let mut subject = Subject::new(&[proxy.url()]);
    subject.state().await;
    for n in 0..5 {
        proxy.cut();
        subject.lost().await;
        put(&mut client, "/c/a", n.to_string()).await;
        proxy.heal();
        assert_eq!(subject.changes().await.len(), 1);
    }
    subject
        .during(eventually("one watch", async || {
            etcd.watches().await == (1, 1)
        }))
        .await;
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
    assert_eq!(subject.metrics.etcd_lost.get(), 5);
    drop(subject);
    eventually("no watch", async || etcd.watches().await == (0, 0)).await;
}

/// The entries under the prefix in etcd at a revision.
async fn held_at(client: &Client, revision: Revision) -> BTreeMap<Key, Entry> {
    let options = GetOptions::new().with_prefix();
    let options = options.with_revision(revision.get());
    read(client, options).await
}

/// The highest mod revision of the state's keys.
fn last_put(state: &State) -> Option<Revision> {
    let puts = state.entries.iter().map(|entry| entry.mod_revision);
    Some(puts.max().unwrap_or(Revision::NONE))
}

/// Checks that these transactions lead from etcd's state at `from` to its state at `to`.
async fn assert_leads(
    client: &Client,
    from: Revision,
    to: Revision,
    transactions: &[PastTransaction],
) {
    let mut held = held_at(client, from).await;
    let mut at = from;
    for transaction in transactions {
        assert!(at < transaction.revision && transaction.revision <= to);
        at = transaction.revision;
        for change in &transaction.changes {
            let before = match &change.edit {
                Edit::Put(entry) => held.insert(entry.key.clone(), entry.clone()),
                Edit::Delete { key, .. } => held.remove(key),
            };
            assert_eq!(before, change.previous, "what was there before");
        }
        assert_eq!(held, held_at(client, at).await, "a whole transaction");
    }
    assert_eq!(held, held_at(client, to).await, "all of them");
}

#[tokio::test]
async fn backfill_reports_past_changes_with_previous_entries() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..5 {
        write(&mut client, &mut random).await;
    }
    // The last change is a delete, and nothing follows in the prefix: no event marks the end.
    put(&mut client, "/c/last", "1").await;
    delete(&mut client, "/c/last").await;
    for _ in 0..20 {
        put(&mut client, "/outside", "x").await;
    }
    let mut subject = Subject::new(&[etcd.url()]);
    let state = subject.state().await;
    let up_to = state.revision;
    for after in [1, 2, up_to.get() / 2, up_to.get() - 10] {
        let span = Span {
            after: Revision::new(after),
            up_to,
            last_put: last_put(&state),
        };
        let (from, transactions) = subject.backfill(span).await.unwrap();
        assert_eq!(from, span.after);
        assert_leads(&client, from, up_to, &transactions).await;
    }
    assert_eq!(subject.metrics.etcd_backfill_watches.get(), 4);

    // Changes that happen meanwhile are reported too, once.
    put(&mut client, "/c/new", "1").await;
    subject.changes().await;
    let span = Span {
        after: Revision::new(1),
        up_to,
        last_put: None,
    };
    let (_, transactions) = subject.backfill(span).await.unwrap();
    assert_leads(&client, span.after, up_to, &transactions).await;
    put(&mut client, "/c/new", "2").await;
    assert_eq!(subject.changes().await.len(), 1);
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
    subject
        .during(eventually("one watch", async || {
            etcd.watches().await == (1, 1)
        }))
        .await;

    // A source dropped during a backfill leaves no watch behind.
    assert!(subject.handle.backfill(span));
    subject
        .until("the backfill has started", |subject| {
            subject.metrics.etcd_backfill_watches.get() == 6
        })
        .await;
    drop(subject);
    eventually("no watch", async || etcd.watches().await == (0, 0)).await;
}

#[tokio::test]
async fn backfill_begins_at_the_compacted_revision() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "1").await;
    put(&mut client, "/c/b", "1").await;
    // etcd has lost the deletes of the compacted revision itself: the answer begins after it.
    let compacted = delete(&mut client, "/c/a").await;
    delete(&mut client, "/c/b").await;
    put(&mut client, "/c/c", "1").await;
    let physical = || Some(etcd_client::CompactionOptions::new().with_physical());
    client.compact(compacted.get(), physical()).await.unwrap();
    let mut subject = Subject::new(&[etcd.url()]);
    let state = subject.state().await;
    let span = |after, state: &State| Span {
        after: Revision::new(after),
        up_to: state.revision,
        last_put: last_put(state),
    };
    for after in [1, compacted.get() - 1, compacted.get()] {
        let (from, transactions) = subject.backfill(span(after, &state)).await.unwrap();
        assert_eq!((from, transactions.len()), (compacted, 2), "after {after}");
        assert_leads(&client, from, state.revision, &transactions).await;
    }
    // Compacted beyond the whole span.
    let last = put(&mut client, "/c/c", "2").await;
    subject.changes().await;
    client.compact(last.get(), physical()).await.unwrap();
    let error = subject.backfill(span(compacted.get(), &state)).await;
    assert!(error.unwrap_err().contains("compacted"));
    subject
        .during(eventually("one watch", async || {
            etcd.watches().await == (1, 1)
        }))
        .await;
}

#[tokio::test]
async fn backfill_above_its_byte_limit_fails() {
    const MAX_BYTES: usize = 10_000;
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    // Each change with its previous value.
    let mut after = Revision::NONE;
    for n in 0..12 {
        let revision = put(&mut client, "/c/a", vec![n; 1000]).await;
        if n == 8 {
            after = revision;
        }
    }
    let mut subject = Subject::with(EtcdConfig {
        progress_interval: PROGRESS_INTERVAL,
        backfill_bytes: MAX_BYTES,
        ..EtcdConfig::new([etcd.url()])
    });
    let state = subject.state().await;
    let span = |after| Span {
        after,
        up_to: state.revision,
        last_put: last_put(&state),
    };
    let error = subject.backfill(span(Revision::new(1))).await.unwrap_err();
    assert!(error.contains("more than 10000 bytes"), "{error}");
    // A span below the limit is read, and the watch continues.
    let (from, transactions) = subject.backfill(span(after)).await.unwrap();
    assert_leads(&client, from, state.revision, &transactions).await;
    put(&mut client, "/c/a", "new").await;
    assert_eq!(subject.changes().await.len(), 1);
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
    subject
        .during(eventually("one watch", async || {
            etcd.watches().await == (1, 1)
        }))
        .await;
}

#[tokio::test]
async fn audit_returns_the_digest_at_a_revision() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    for batch in 0..5 {
        let puts = (0..100).map(|n| TxnOp::put(format!("/c/{batch}/{n:02}"), "value", None));
        txn(&mut client, puts.collect()).await;
    }
    let mut subject = Subject::new(&[etcd.url()]);
    let state = subject.state().await;
    let audit = async |subject: &mut Subject, at: Revision| {
        assert!(subject.handle.audit(at));
        loop {
            if let Update::Audited { revision, digest } = subject.next().await {
                assert_eq!(revision, at);
                return digest;
            }
        }
    };
    let then: Digest = state.entries.iter().collect();
    assert_eq!(audit(&mut subject, state.revision).await, Some(then));
    let changed = put(&mut client, "/c/0/00", "changed").await;
    subject.changes().await;
    assert_eq!(audit(&mut subject, state.revision).await, Some(then));
    let now: Digest = subject.held.values().collect();
    assert_eq!(audit(&mut subject, changed).await, Some(now));
    client.compact(changed.get(), None).await.unwrap();
    assert_eq!(audit(&mut subject, state.revision).await, None);
    assert_eq!(audit(&mut subject, changed.next()).await, None, "not yet");

    assert!(subject.handle.relist());
    let state = subject.state().await;
    assert_eq!(state.history, History::Continues);
    assert_eq!(subject.metrics.etcd_lists.get(), 2);
    subject
        .during(eventually("one watch", async || {
            etcd.watches().await == (1, 1)
        }))
        .await;
}

/// Writes at random, sometimes several keys in a transaction.
async fn write(client: &mut Client, random: &mut StdRng) {
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

#[tokio::test]
async fn state_equals_etcd_after_random_faults() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut etcd = Etcd::started().await;
    let proxy = Proxy::to(etcd.port()).await;
    let mut subject = Subject::new(&[proxy.url()]);
    subject.state().await;
    for round in 0..12 {
        let breaking = async {
            let mut client = etcd.client().await;
            write(&mut client, &mut random).await;
            match round % 6 {
                0 => proxy.cut(),
                1 => {
                    etcd.kill();
                    etcd.start().await;
                    client = etcd.client().await;
                }
                2 => {
                    etcd.pause();
                    tokio::time::sleep(PROGRESS_INTERVAL * random.random_range(0..5)).await;
                    etcd.resume();
                }
                3 => {
                    proxy.cut();
                    write(&mut client, &mut random).await;
                    let last = put(&mut client, "/c/0", "compacted").await;
                    client.compact(last.get(), None).await.unwrap();
                }
                _ => {}
            }
            write(&mut client, &mut random).await;
            proxy.heal();
            write(&mut client, &mut random).await;
            held_by(&client).await
        };
        let expected = subject.during(breaking).await;
        let what = format!("the state of etcd in round {round} of seed {seed}");
        subject
            .until(&what, |subject| subject.held == expected)
            .await;
    }
    assert_eq!(
        subject.metrics.etcd_history_replaced.get(),
        0,
        "seed {seed}"
    );
    drop(subject);
    eventually("no watch", async || etcd.watches().await == (0, 0)).await;
}
