//! Streams over a model of etcd. Here are the model's ends; the tests are in the modules below.

mod deltas;
mod lifetimes;
mod log;
mod model;
mod responses;
mod wake_ups;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use driftless_proto::digest::Digest;
use driftless_proto::v1::{change::Change, watch_response::Frame};
use driftless_proto::{Entry, KeyRange, Revision};
use proptest::prelude::*;
use tokio::sync::watch;
use tokio::time::Instant;

use super::pace::BURST;
use super::responses::{IDLE_FOR, SHARED_FOR};
use super::*;
use crate::delta::JobPool;
use crate::encode::{Chunk, PinnedStates, SyncKind, SyncReader, SyncResponse};
use crate::ingest;
use crate::metrics::Metrics;
use crate::source::scripted::{Op, Script, ScriptedEtcd, ScriptedSource};
use crate::source::{SourceHandle, Update};
use crate::store::{History, Proof, Replaced, State, Writer};
use crate::testing::{Replica, edits, entry, frames, prefix};

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Both ends of the prefix `/c/`.
fn ends(log_bytes: usize, progress_interval: Duration) -> (Publisher, Fanout) {
    let metrics = Metrics::new();
    let limits = Limits {
        log_bytes,
        progress_interval,
        pinned: PinnedStates::new(usize::MAX, metrics.clone()),
    };
    fanout(prefix("/c/"), limits, metrics, Instant::now())
}

/// An etcd, and the publishing side of its prefix `/c/`, without the loop between them.
struct Prefix {
    etcd: ScriptedEtcd,
    writer: Writer,
    publisher: Publisher,
    fanout: Fanout,
    /// Batches whose deltas streams wait for.
    pending: Vec<PendingDelta>,
}

fn state_of(etcd: &ScriptedEtcd, history: History) -> State {
    State {
        epoch: etcd.epoch(),
        revision: etcd.revision(),
        entries: etcd.state(&prefix("/c/")),
        history,
        asked_at: Some(Instant::now()),
    }
}

impl Prefix {
    fn with(etcd: ScriptedEtcd, budget: usize) -> Self {
        let hour = Duration::from_secs(3600);
        let (mut publisher, fanout) = ends(budget, hour);
        let writer = Writer::new(state_of(&etcd, History::Continues));
        publisher.publish_anew(writer.snapshot().clone(), Some(Instant::now()));
        Self {
            etcd,
            writer,
            publisher,
            fanout,
            pending: Vec::new(),
        }
    }

    fn new() -> Self {
        let etcd = ScriptedEtcd::default();
        etcd.put("/c/a", "first");
        Self::with(etcd, 1024 * 1024)
    }

    /// Publishes one transaction. Returns whether changes are held back.
    fn txn(&mut self, ops: Vec<Op>) -> bool {
        let (was, before) = (self.etcd.revision(), self.etcd.state(&prefix("/c/")));
        let at = self.etcd.txn(ops);
        if at == was {
            return false;
        }
        let edits = edits(before, self.etcd.state(&prefix("/c/")), at);
        if edits.is_empty() {
            self.writer.advance(at);
            self.publisher.advance(self.writer.snapshot().clone());
            return false;
        }
        let batch = self.writer.apply(at, edits).expect("newer");
        self.publisher
            .publish(self.writer.snapshot().clone(), batch);
        self.pending.extend(self.publisher.take_pending());
        self.publisher.has_paced()
    }

    /// Resolves one of the pending deltas: computes it, or gives up.
    fn resolve(&mut self, which: usize, work: bool) {
        if which >= self.pending.len() {
            return;
        }
        let mut pending = self.pending.remove(which);
        let (pairs, encoder) = pending.take_work();
        let metrics = self.fanout.metrics().clone();
        let encode = |pair, ops| encoder.encode(pair, ops, &metrics);
        let pool = JobPool::new(metrics.clone());
        let patches = match work {
            true => pool.run(&pairs, encode, &Default::default()),
            false => Vec::new(),
        };
        self.publisher.resolve(pending, patches);
    }

    fn resolve_all(&mut self) {
        while !self.pending.is_empty() {
            self.resolve(0, true);
        }
    }

    fn put(&mut self, key: &str, value: &str) -> bool {
        self.txn(vec![Op::put(key, value)])
    }

    /// Publishes the whole state, as after a compaction or a restore.
    fn relist(&mut self, history: History) {
        match self.writer.replace(state_of(&self.etcd, history)) {
            Replaced::Anew => {
                let now = self.writer.snapshot().clone();
                self.publisher.publish_anew(now, Some(Instant::now()));
            }
            Replaced::Continued(batch) => {
                let now = self.writer.snapshot().clone();
                self.publisher.publish(now, batch);
            }
            Replaced::Unchanged => self.publisher.advance(self.writer.snapshot().clone()),
        }
    }

    /// Tells all scopes of a progress.
    fn progress(&self) {
        let mut scopes = self.publisher.scopes();
        while self.publisher.progress(&mut scopes) {}
    }

    async fn subscribe(&self, range: KeyRange) -> Subscriber {
        let subscriber = self.fanout.subscribe(range).unwrap();
        subscriber.view().unwrap();
        subscriber
    }

    fn frames_kept(&self) -> usize {
        let published = self.fanout.0.published.lock();
        let state = published.state.as_ref().unwrap();
        let floor = state.log.floor();
        let batches = state
            .log
            .batches_since(&prefix("/c/"), floor, usize::MAX)
            .unwrap();
        batches.iter().map(|batch| batch.diff_count()).sum()
    }
}

/// A stream: what a response body does, and the client that reads it.
struct Stream {
    subscriber: Subscriber,
    cursor: Revision,
    progress: u64,
    woken: Arc<Woken>,
    waker: Waker,
    replica: Replica,
    ended: Option<Ending>,
    /// How many patches were applied; `None` for a client that does not take them.
    patches: Option<usize>,
}

impl Stream {
    /// Starts with nothing.
    async fn cold(prefix: &Prefix, range: KeyRange) -> Self {
        Self::start(prefix, Replica::new(range.clone()), range).await
    }

    /// Starts with what the replica holds.
    async fn start(prefix: &Prefix, replica: Replica, range: KeyRange) -> Self {
        Self::of(&prefix.fanout, replica, range, false).await
    }

    /// Starts with nothing, for a client that takes patches.
    async fn patched(prefix: &Prefix, range: KeyRange) -> Self {
        Self::of(&prefix.fanout, Replica::new(range.clone()), range, true).await
    }

    async fn of(fanout: &Fanout, mut replica: Replica, range: KeyRange, patches: bool) -> Self {
        let (subscriber, view) = loop {
            let subscriber = fanout.subscribe(range.clone()).unwrap();
            if patches {
                subscriber.take_patches();
            }
            // `None` if the history ended just now.
            if let Some(view) = subscriber.view() {
                break (subscriber, view);
            }
        };
        replica.applier.begin(view.root.epoch().clone());
        let (have, digest) = (replica.revision(), replica.applier.digest());
        let root = view.root.revision();
        let holds_what_was = have > Revision::NONE
            && have < root
            && view.root.floor() <= have
            && subscriber.digest_at(have, &view).await == Some(digest);
        let woken = Arc::new(Woken::default());
        let mut stream = Self {
            cursor: have,
            progress: subscriber.progress_number(),
            waker: Waker::from(Arc::clone(&woken)),
            woken,
            replica,
            ended: None,
            patches: patches.then_some(0),
            subscriber,
        };
        if !holds_what_was || !stream.subscriber.replays(have, &view) {
            let kind = match holds_what_was {
                true => SyncKind::Diff { since: have },
                false => SyncKind::Snapshot { reset: true },
            };
            // A reset may lower the client's revision.
            let held = match holds_what_was {
                true => have,
                false => Revision::NONE,
            };
            let response = stream.subscriber.sync_response(kind, held, view);
            stream.read(response);
        }
        stream
    }

    fn read(&mut self, response: Arc<SyncResponse>) {
        let mut reader = SyncReader::new(response);
        let metrics = self.subscriber.metrics().clone();
        let mut segments = Vec::new();
        loop {
            match reader.next(&metrics) {
                Chunk::Ready(frame) => segments.extend(frame.alone().to_vec()),
                Chunk::Scanning => {}
                Chunk::Done => break,
                Chunk::Revoked => panic!("there is no limit"),
            }
        }
        self.replica.take_all(frames(&segments));
        self.cursor = reader.revision();
    }

    fn next(&self) -> Next {
        let cx = Context::from_waker(&self.waker);
        self.subscriber.next(self.cursor, self.progress, &cx)
    }

    /// Takes the next item. Returns whether there was one.
    fn step(&mut self) -> bool {
        let next = self.next();
        self.take(next)
    }

    fn take(&mut self, next: Next) -> bool {
        match next {
            Next::Frame { frame, to } => {
                assert!(frame.len() >= 4096 || frame.alone().len() == 1);
                self.apply(frames(frame.alone()));
                self.cursor = to;
            }
            Next::Coalesced { bytes, to } => {
                assert!(bytes.len() >= 256);
                let joined = frames([&bytes]);
                assert!(joined.len() > 1);
                self.apply(joined);
                self.cursor = to;
            }
            Next::Progress { bytes, number, to } => {
                assert!(bytes.is_empty() || bytes.len() >= 256);
                assert!(number > self.progress && to >= self.cursor);
                self.replica.take_all(frames([&bytes]));
                (self.progress, self.cursor) = (number, to);
            }
            Next::Behind => {
                let Some(view) = self.subscriber.view() else {
                    // A body asks again, and has to get the reason.
                    assert!(matches!(self.next(), Next::Ending(_)), "or it would spin");
                    return true;
                };
                let kind = match view.root.floor() <= self.cursor {
                    true => SyncKind::Diff { since: self.cursor },
                    false => SyncKind::Snapshot { reset: false },
                };
                let response = self.subscriber.sync_response(kind, self.cursor, view);
                assert!(response.revision() > self.cursor, "or it would spin");
                self.read(response);
            }
            Next::Ending(ending) => {
                self.ended = Some(ending);
                return false;
            }
            Next::Nothing => return false,
        }
        true
    }

    fn drain(&mut self) {
        while self.step() {}
    }

    /// Applies diffs, and counts the patches in them.
    fn apply(&mut self, frames: Vec<Frame>) {
        for frame in &frames {
            let Frame::Diff(diff) = frame else {
                panic!("{frame:?}")
            };
            let changes = diff.changes.iter().map(|change| &change.change);
            let patches = changes.filter(|change| matches!(change, Some(Change::Patch(_))));
            match (&mut self.patches, patches.count()) {
                (_, 0) => {}
                (Some(applied), patches) if !diff.conflated => *applied += patches,
                _ => panic!("a patch for a client that does not know them, or where none may be"),
            }
        }
        self.replica.take_all(frames);
    }

    fn woken(&self) -> usize {
        self.woken.0.load(Ordering::Relaxed)
    }

    /// What was applied since the last call.
    fn applied(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.replica.applied)
    }
}

impl Stream {
    fn drain_is_quiet(&self) -> bool {
        matches!(self.next(), Next::Nothing)
    }
}

/// A prefix `/c/` with its ingest loop, which ends with the set, and the script of its source.
async fn ingesting(
    etcd: &ScriptedEtcd,
    progress_interval: Duration,
) -> (Fanout, Script, tokio::task::JoinSet<()>) {
    let (publisher, fanout) = ends(1024 * 1024, progress_interval);
    let (handle, requests) = SourceHandle::channel();
    let (script, source) = ScriptedSource::new(requests);
    let limits = ingest::Limits {
        audit_interval: None,
        jobs: JobPool::new(fanout.metrics().clone()),
    };
    let mut ingest = tokio::task::JoinSet::new();
    ingest.spawn(ingest::run(
        source,
        ingest::Handle::new(handle),
        publisher,
        limits,
    ));
    let state = state_of(etcd, History::Continues);
    assert!(script.send(Update::State(state)).await);
    fanout.synced().await;
    (fanout, script, ingest)
}

/// The source reports that a key was put.
async fn say_put(script: &Script, key: &str, revision: Revision) {
    let put = driftless_proto::apply::Edit::Put(entry(key, "v", revision.get()));
    let changes = vec![put];
    assert!(script.send(Update::Changes { revision, changes }).await);
}

const KEYS: [&str; 6] = ["/c/a", "/c/a/x", "/c/a/y", "/c/ab", "/c/b", "/elsewhere"];

fn ranges() -> Vec<KeyRange> {
    vec![
        prefix("/c/"),
        prefix("/c/a"),
        prefix("/c/a/"),
        KeyRange::key("/c/a").unwrap(),
        KeyRange::key("/c/a/x").unwrap(),
    ]
}

/// A large value that contains this line.
fn large(line: &str) -> String {
    let lines = |from: usize| (from..from + 100).map(|n| format!("setting {n} = {}\n", n * n));
    let all = lines(0).chain([format!("{line}\n")]).chain(lines(100));
    all.collect()
}

impl Stream {
    /// Checks that the client holds what etcd held at the client's revision.
    fn check(&self, etcd: &ScriptedEtcd) {
        let (range, at) = (self.subscriber.range(), self.replica.revision());
        if self.ended.is_none() && at > Revision::NONE {
            let expected: Vec<Entry> = etcd.state_at(range, at).expect("no future revision");
            assert_eq!(self.replica.entries(), expected, "{range} at {at}");
        }
    }
}
