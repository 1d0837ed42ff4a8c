//! Streams over a model of etcd: who is woken when, what is shared, and what is left behind.

mod deltas;

use std::pin::pin;
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
use crate::encode::{Chunk, SyncKind, SyncReader, SyncResponse};
use crate::ingest;
use crate::metrics::Metrics;
use crate::source::scripted::{Op, Script, ScriptedEtcd, ScriptedSource};
use crate::source::{SourceHandle, Update};
use crate::store::{History, Replaced, State, Writer};
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
    let limits = Limits {
        log_bytes,
        progress_interval,
    };
    fanout(prefix("/c/"), limits, Metrics::new(), Instant::now())
}

/// An etcd, and the publishing side of its prefix `/c/`, without the loop between them.
struct Prefix {
    etcd: ScriptedEtcd,
    writer: Writer,
    publisher: Publisher,
    fanout: Fanout,
    /// What streams wait for.
    pending: Vec<PendingDelta>,
}

fn state_of(etcd: &ScriptedEtcd, history: History) -> State {
    State {
        epoch: etcd.epoch(),
        revision: etcd.revision(),
        entries: etcd.state(&prefix("/c/")),
        history,
    }
}

impl Prefix {
    fn with(etcd: ScriptedEtcd, budget: usize) -> Self {
        let hour = Duration::from_secs(3600);
        let (publisher, fanout) = ends(budget, hour);
        let writer = Writer::new(state_of(&etcd, History::Continues));
        publisher.contact();
        publisher.publish_anew(writer.snapshot().clone());
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

    /// One transaction, heard at once. Whether something is held back.
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
        self.publisher.contact();
        let batch = self.writer.apply(at, edits).expect("newer");
        self.publisher
            .publish(self.writer.snapshot().clone(), batch);
        self.pending.extend(self.publisher.take_pending());
        self.publisher.has_paced()
    }

    /// Does the work for one of those that wait, or gives it up.
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

    /// The whole state anew, as after a compaction or a restore.
    fn relist(&mut self, history: History) {
        match self.writer.replace(state_of(&self.etcd, history)) {
            Replaced::Anew => {
                let now = self.writer.snapshot().clone();
                self.publisher.publish_anew(now);
            }
            Replaced::Continued(batch) => {
                let now = self.writer.snapshot().clone();
                self.publisher.publish(now, batch);
            }
            Replaced::Unchanged => self.publisher.advance(self.writer.snapshot().clone()),
        }
    }

    /// Everybody's, in one go.
    fn progress(&self) {
        let mut scopes = self.publisher.scopes();
        while self.publisher.progress(&mut scopes) {}
    }

    async fn subscribe(&self, range: KeyRange) -> Subscriber {
        let subscriber = self.fanout.subscribe(range).unwrap();
        subscriber.view().await.unwrap();
        subscriber
    }

    fn frames_kept(&self) -> usize {
        let published = self.fanout.0.published.lock();
        let state = published.state.as_ref().unwrap();
        let floor = state.log.floor();
        let past = state.log.since(&prefix("/c/"), floor).unwrap();
        past.batches.iter().map(|batch| batch.diff_count()).sum()
    }
}

/// A stream: what a response's body does, and the client that reads it.
struct Stream {
    subscriber: Subscriber,
    cursor: Revision,
    progress: u64,
    woken: Arc<Woken>,
    waker: Waker,
    replica: Replica,
    ended: Option<Ending>,
    /// How many patches came; `None` for a client that does not know them.
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

    /// Starts with nothing, of a client that knows patches.
    async fn patched(prefix: &Prefix, range: KeyRange) -> Self {
        Self::of(&prefix.fanout, Replica::new(range.clone()), range, true).await
    }

    async fn of(fanout: &Fanout, mut replica: Replica, range: KeyRange, patches: bool) -> Self {
        let (subscriber, view) = loop {
            let subscriber = fanout.subscribe(range.clone()).unwrap();
            if patches {
                subscriber.take_patches();
            }
            // None when the history ended just now.
            if let Some(view) = subscriber.view().await {
                break (subscriber, view);
            }
        };
        replica.applier.begin(view.root.epoch().clone());
        let (have, digest) = (replica.revision(), replica.applier.digest());
        let root = view.root.revision();
        let holds_what_was = have > Revision::NONE
            && have < root
            && view.root.floor() <= have
            && subscriber.digest_at(have, &view) == Some(digest);
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
        if !holds_what_was || !stream.subscriber.replays(have) {
            let kind = match holds_what_was {
                true => SyncKind::Diff { since: have },
                false => SyncKind::Snapshot { reset: true },
            };
            // A reset may take a client back.
            let held = match holds_what_was {
                true => have,
                false => Revision::NONE,
            };
            let answer = stream.subscriber.sync_response(kind, held, view);
            stream.read(answer);
        }
        stream
    }

    fn read(&mut self, answer: Arc<SyncResponse>) {
        let mut reader = SyncReader::new(answer);
        let metrics = self.subscriber.metrics().clone();
        let mut segments = Vec::new();
        loop {
            match reader.next(&metrics) {
                Chunk::Ready(frame) => segments.extend(frame.alone().to_vec()),
                Chunk::Scanning => {}
                Chunk::Done => break,
            }
        }
        self.replica.take_all(frames(&segments));
        self.cursor = reader.revision();
    }

    fn next(&self) -> Next {
        let cx = Context::from_waker(&self.waker);
        self.subscriber.next(self.cursor, self.progress, &cx)
    }

    /// Takes one thing; whether there was one.
    fn step(&mut self) -> bool {
        let next = self.next();
        self.take(next)
    }

    fn take(&mut self, next: Next) -> bool {
        match next {
            Next::Frame { frame, to } => {
                assert!(frame.len() >= 4096 || frame.alone().len() == 1);
                self.hear(frames(frame.alone()));
                self.cursor = to;
            }
            Next::Coalesced { bytes, to } => {
                assert!(bytes.len() >= 256);
                let joined = frames([&bytes]);
                assert!(joined.len() > 1);
                self.hear(joined);
                self.cursor = to;
            }
            Next::Progress { bytes, number, to } => {
                assert!(bytes.is_empty() || bytes.len() >= 256);
                assert!(number > self.progress && to >= self.cursor);
                self.replica.take_all(frames([&bytes]));
                (self.progress, self.cursor) = (number, to);
            }
            Next::Behind => {
                let Some(view) = self.subscriber.view_now() else {
                    // Asked again, as a body does, it has to say why.
                    assert!(matches!(self.next(), Next::Ending(_)), "or it would spin");
                    return true;
                };
                let kind = match view.root.floor() <= self.cursor {
                    true => SyncKind::Diff { since: self.cursor },
                    false => SyncKind::Snapshot { reset: false },
                };
                let answer = self.subscriber.sync_response(kind, self.cursor, view);
                assert!(answer.revision() > self.cursor, "or it would spin");
                self.read(answer);
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
    fn hear(&mut self, frames: Vec<Frame>) {
        for frame in &frames {
            let Frame::Diff(diff) = frame else {
                panic!("{frame:?}")
            };
            let changes = diff.changes.iter().map(|change| &change.change);
            let patches = changes.filter(|change| matches!(change, Some(Change::Patch(_))));
            match (&mut self.patches, patches.count()) {
                (_, 0) => {}
                (Some(heard), patches) if !diff.conflated => *heard += patches,
                _ => panic!("a patch for a client that does not know them, or where none may be"),
            }
        }
        self.replica.take_all(frames);
    }

    fn woken(&self) -> usize {
        self.woken.0.load(Ordering::Relaxed)
    }

    /// What was applied since the last call.
    fn heard(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.replica.heard)
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_wakes_the_streams_that_it_touches_and_no_others() {
    let mut prefix_c = Prefix::new();
    let ranges = [
        prefix("/c/"),
        prefix("/c/a"),
        prefix("/c/a/"),
        KeyRange::key("/c/a").unwrap(),
        KeyRange::key("/c/b").unwrap(),
        prefix("/c/none"),
    ];
    let mut streams = Vec::new();
    for range in ranges {
        let mut stream = Stream::cold(&prefix_c, range).await;
        stream.drain();
        streams.push(stream);
    }
    let mut woken_by = |ops: Vec<Op>| {
        let before: Vec<usize> = streams.iter().map(Stream::woken).collect();
        prefix_c.txn(ops);
        let woken = streams.iter_mut().zip(before).map(|(stream, before)| {
            let woken = stream.woken() - before;
            stream.drain();
            assert!(stream.drain_is_quiet());
            woken
        });
        woken.collect::<Vec<_>>()
    };
    assert_eq!(woken_by(vec![Op::put("/c/a", "1")]), [1, 1, 0, 1, 0, 0]);
    assert_eq!(woken_by(vec![Op::put("/c/a/b", "1")]), [1, 1, 1, 0, 0, 0]);
    assert_eq!(woken_by(vec![Op::put("/c/b", "1")]), [1, 0, 0, 0, 1, 0]);
    assert_eq!(woken_by(vec![Op::put("/elsewhere", "1")]), [0; 6]);
    let both = vec![Op::delete("/c/a"), Op::put("/c/b", "2")];
    assert_eq!(woken_by(both), [1, 1, 0, 1, 1, 0], "once each");
}

impl Stream {
    fn drain_is_quiet(&self) -> bool {
        matches!(self.next(), Next::Nothing)
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_burst_changes_are_held_back_and_joined() {
    let mut prefix_c = Prefix::new();
    let mut stream = Stream::cold(&prefix_c, prefix("/c/")).await;
    stream.drain();
    stream.heard();
    for n in 0..BURST {
        assert!(!prefix_c.put("/c/a", &n.to_string()));
        assert_eq!(stream.woken(), n as usize + 1, "at once");
        stream.drain();
        assert_eq!(stream.heard(), ["diff"]);
    }
    let woken = stream.woken();
    for n in 0..5 {
        assert!(prefix_c.put("/c/b", &n.to_string()), "held back");
        assert!(stream.drain_is_quiet());
    }
    assert_eq!(stream.woken(), woken);
    prefix_c.publisher.flush();
    assert_eq!(stream.woken(), woken + 1);
    assert!(matches!(stream.next(), Next::Coalesced { .. }));
    stream.drain();
    assert_eq!(stream.heard(), ["diff"; 5]);
    assert_eq!(
        stream.replica.entries(),
        prefix_c.etcd.state(&prefix("/c/"))
    );
}

/// Two messages went out a pace: one by the flush, one by the token that was earned until then.
#[tokio::test(start_paused = true)]
async fn a_flood_leads_to_one_message_a_pace_and_not_two() {
    let mut prefix_c = Prefix::new();
    let mut stream = Stream::cold(&prefix_c, prefix("/c/")).await;
    stream.drain();
    for n in 0..2000 {
        prefix_c.put("/c/a", &n.to_string());
        tokio::time::advance(Duration::from_millis(1)).await;
        if prefix_c.publisher.due() <= Instant::now() {
            prefix_c.publisher.tick();
        }
        stream.drain();
    }
    let paced = stream.woken() - BURST as usize;
    assert!(
        (90..=100).contains(&paced),
        "{paced} messages in two seconds"
    );
}

/// A prefix `/c/` with its loop, which ends with the set, and the script of what etcd says.
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
    ingest.spawn(ingest::run(source, handle, publisher, limits));
    let state = state_of(etcd, History::Continues);
    assert!(script.send(Update::State(state)).await);
    fanout.synced().await;
    (fanout, script, ingest)
}

/// Says that a key was put.
async fn say_put(script: &Script, key: &str, revision: Revision) {
    let put = driftless_proto::apply::Edit::Put(entry(key, "v", revision.get()));
    let changes = vec![put];
    assert!(script.send(Update::Changes { revision, changes }).await);
}

#[tokio::test(start_paused = true)]
async fn what_is_held_back_goes_out_within_a_pace() {
    let interval = Duration::from_secs(10);
    let (fanout, script, _ingest) = ingesting(&ScriptedEtcd::default(), interval).await;
    let subscriber = fanout.subscribe(prefix("/c/")).unwrap();
    let start = subscriber.view().await.unwrap().root.revision();
    let mut revision = start;
    for _ in 0..2 * BURST {
        revision = revision.next();
        say_put(&script, "/c/a", revision).await;
    }
    fanout.reached(revision).await;
    let published = Instant::now();
    let mut cursor = start;
    let caught_up = std::future::poll_fn(|cx| {
        loop {
            match subscriber.next(cursor, 0, cx) {
                Next::Frame { to, .. } | Next::Coalesced { to, .. } => cursor = to,
                Next::Nothing => return Poll::Pending,
                other => panic!("{other:?}"),
            }
            if cursor == revision {
                return Poll::Ready(());
            }
        }
    });
    caught_up.await;
    let held = published.elapsed();
    assert!(
        Duration::ZERO < held && held <= PACE + Duration::from_millis(1),
        "{held:?}"
    );

    // Progress comes by the clock, whatever else does not happen.
    let mut seen = 0;
    for _ in 0..3 {
        let asked = Instant::now();
        let progress = std::future::poll_fn(|cx| match subscriber.next(cursor, seen, cx) {
            Next::Progress { number, to, .. } => {
                (cursor, seen) = (to, number);
                Poll::Ready(())
            }
            Next::Nothing => Poll::Pending,
            other => panic!("{other:?}"),
        });
        progress.await;
        assert!(asked.elapsed() <= interval);
    }
    assert_eq!(seen, 3);
}

/// The loop told all ranges of a progress before it took the next change.
#[tokio::test(start_paused = true)]
async fn a_change_does_not_wait_until_many_ranges_are_told_of_a_progress() {
    const RANGES: usize = 10_000;
    let interval = Duration::from_secs(10);
    let (fanout, script, _ingest) = ingesting(&ScriptedEtcd::default(), interval).await;
    let mut streams = Vec::new();
    for n in 0..RANGES {
        let stream = fanout.subscribe(prefix(&format!("/c/{n:04}/"))).unwrap();
        stream.view().await.unwrap();
        streams.push(stream);
    }
    let start = fanout.revision();
    let told = || {
        let told = streams.iter().filter(|stream| stream.progress_number() > 0);
        told.count()
    };
    assert_eq!(told(), 0);
    let first = std::future::poll_fn(|cx| match streams[0].next(start, 0, cx) {
        Next::Progress { .. } => Poll::Ready(()),
        Next::Nothing => Poll::Pending,
        other => panic!("{other:?}"),
    });
    first.await;
    assert!(told() < RANGES, "it is under way");
    let revision = start.next();
    say_put(&script, "/c/9999/a", revision).await;
    let change = std::future::poll_fn(|cx| match streams[RANGES - 1].next(start, 0, cx) {
        Next::Frame { to, .. } => Poll::Ready(to),
        Next::Nothing => Poll::Pending,
        other => panic!("{other:?}"),
    });
    assert_eq!(change.await, revision);
    assert!(told() < RANGES, "the change did not wait for its end");
    // Those that were told later were told of the newer revision; nobody was left out.
    let all = async {
        while told() < RANGES {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(interval, all).await.expect("all are");
    assert!(streams.iter().all(|stream| stream.progress_number() == 1));
    let cx = Context::from_waker(Waker::noop());
    let last = streams[RANGES - 1].next(revision, 0, &cx);
    assert!(matches!(last, Next::Progress { to, .. } if to == revision));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_behind_gets_one_diff() {
    let mut prefix_c = Prefix::new();
    let mut stream = Stream::cold(&prefix_c, prefix("/c/")).await;
    stream.drain();
    stream.heard();
    for n in 0..5000 {
        prefix_c.put(&format!("/c/{}", n % 7), &n.to_string());
    }
    prefix_c.publisher.flush();
    assert!(matches!(stream.next(), Next::Behind));
    assert!(stream.step());
    assert!(stream.drain_is_quiet());
    assert_eq!(stream.heard(), ["conflated"]);
    assert_eq!(
        stream.replica.entries(),
        prefix_c.etcd.state(&prefix("/c/"))
    );
    assert_eq!(prefix_c.fanout.metrics().changes_encoded.get(), 0);
    assert!(stream.subscriber.scope_changes() <= 1024);
}

/// It was copied for each stream, as if others had been joined to it.
#[tokio::test(start_paused = true)]
async fn a_change_that_fits_with_no_other_is_shared() {
    let mut prefix_c = Prefix::new();
    let mut one = Stream::cold(&prefix_c, prefix("/c/")).await;
    let mut two = Stream::cold(&prefix_c, prefix("/c/")).await;
    for n in 0..3 {
        // Two of them are more than one piece.
        prefix_c.put("/c/a", &n.to_string().repeat(10_000));
    }
    for _ in 0..3 {
        let (from_one, from_two) = (one.next(), two.next());
        match (&from_one, &from_two) {
            (Next::Frame { frame: one, .. }, Next::Frame { frame: two, .. }) => {
                assert!(Arc::ptr_eq(one, two));
            }
            other => panic!("{other:?}"),
        }
        assert!(one.take(from_one) && two.take(from_two));
    }
    assert!(one.drain_is_quiet() && two.drain_is_quiet());
    assert_eq!(one.replica.entries(), prefix_c.etcd.state(&prefix("/c/")));
}

#[tokio::test(start_paused = true)]
async fn a_log_that_let_go_of_a_change_leads_to_one_diff() {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "first");
    let mut prefix_c = Prefix::with(etcd, 4096);
    let mut stream = Stream::cold(&prefix_c, prefix("/c/")).await;
    stream.drain();
    stream.heard();
    for n in 0..20 {
        prefix_c.put("/c/a", &n.to_string());
    }
    let log_bytes = prefix_c.fanout.metrics().log_bytes.get();
    assert!(0 < log_bytes && log_bytes <= 4096);
    stream.drain();
    assert_eq!(stream.heard(), ["conflated"]);
    assert_eq!(
        stream.replica.entries(),
        prefix_c.etcd.state(&prefix("/c/"))
    );
    // A change that is larger than the log is not in it at all.
    prefix_c.put("/c/a", &"v".repeat(5000));
    stream.drain();
    assert_eq!(stream.heard(), ["conflated"]);
    assert_eq!(
        stream.replica.entries(),
        prefix_c.etcd.state(&prefix("/c/"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_first_subscriber_that_goes_leaves_the_digest_to_the_next() {
    let etcd = ScriptedEtcd::default();
    etcd.txn((0..10_000).map(|n| Op::put(format!("/c/{n:05}"), "v")));
    let mut prefix_c = Prefix::with(etcd, 1024 * 1024);
    let first = prefix_c.fanout.subscribe(prefix("/c/")).unwrap();
    let second = prefix_c.fanout.subscribe(prefix("/c/")).unwrap();
    {
        let mut cx = Context::from_waker(Waker::noop());
        let mut waiting = pin!(second.view());
        let mut half_way = pin!(first.view());
        assert!(half_way.as_mut().poll(&mut cx).is_pending());
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        assert!(second.view_now().is_none());
    }
    drop(first);
    // What changes meanwhile counts too.
    prefix_c.put("/c/00007", "w");
    prefix_c.txn(vec![Op::delete("/c/00008")]);
    let view = second.view().await.unwrap();
    let expected: Digest = prefix_c.etcd.state(&prefix("/c/")).iter().collect();
    assert!(view.digest == expected);
    assert_eq!(view.root.revision(), prefix_c.etcd.revision());
}

#[tokio::test(start_paused = true)]
async fn dropped_streams_leave_nothing_behind() {
    let mut prefix_c = Prefix::new();
    let scopes = prefix_c.fanout.metrics().scopes.clone();
    for _ in 0..3 {
        let mut streams = Vec::new();
        for _ in 0..3 {
            streams.push(Stream::cold(&prefix_c, prefix("/c/")).await);
            streams.push(Stream::cold(&prefix_c, KeyRange::key("/c/a").unwrap()).await);
        }
        assert_eq!(scopes.get(), 2, "one a range");
        streams.iter_mut().for_each(Stream::drain);
        prefix_c.put("/c/a", "1");
        streams.iter_mut().for_each(Stream::drain);
        assert_eq!(prefix_c.frames_kept(), 2, "one a range");
        let waiting = streams[0].subscriber.scope_streams();
        assert_eq!(waiting, 3);
        streams.remove(0);
        assert_eq!(streams[1].subscriber.scope_streams(), 2);
        // One that never waited, and one that was never polled.
        drop(prefix_c.fanout.subscribe(prefix("/c/b")));
        drop(Stream::cold(&prefix_c, prefix("/c/")).await);
        drop(streams);
        assert_eq!(scopes.get(), 0);
        assert_eq!(prefix_c.frames_kept(), 0);
        assert!(prefix_c.fanout.0.published.lock().scopes.is_empty());
    }
}

/// They were let go of with the next progress, which may be an hour away.
#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_asks_for_any_more_goes_however_rare_progress_is() {
    let etcd = ScriptedEtcd::default();
    etcd.txn((0..100).map(|n| Op::put(format!("/c/{n:02}"), vec![n; 2000])));
    let hour = Duration::from_secs(3600);
    let (fanout, _script, _ingest) = ingesting(&etcd, hour).await;
    let stream = fanout.subscribe(prefix("/c/")).unwrap();
    let room = fanout.0.chunk_cache.room();
    let ask = || {
        let view = stream.view_now().unwrap();
        stream.sync_response(SyncKind::Snapshot { reset: false }, Revision::NONE, view)
    };
    stream.view().await.unwrap();
    let answer = ask();
    let mut reader = SyncReader::new(Arc::clone(&answer));
    while !matches!(reader.next(fanout.metrics()), Chunk::Done) {}
    let kept = Arc::downgrade(&answer);
    drop((reader, answer));
    let taken = room - fanout.0.chunk_cache.room();
    assert!(taken >= 100 * 2000, "{taken}");

    // Kept for as long as somebody may come for it, and a little longer.
    for _ in 0..3 {
        tokio::time::sleep(IDLE_FOR - Duration::from_secs(1)).await;
        assert!(std::ptr::eq(Arc::as_ptr(&ask()), kept.as_ptr()));
    }
    tokio::time::sleep(IDLE_FOR + EVICT_EVERY + Duration::from_millis(1)).await;
    assert!(kept.upgrade().is_none());
    assert_eq!(fanout.0.chunk_cache.room(), room);
    assert_eq!(stream.progress_number(), 0, "that hour is not over");
    assert!(stream.view_now().is_some(), "the range is watched still");
}

/// Somebody always comes for it, and it pins the state that it is of.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_asked_for_again_and_again_gives_way_to_a_newer_one() {
    let hour = Duration::from_secs(3600);
    let (fanout, _script, _ingest) = ingesting(&ScriptedEtcd::default(), hour).await;
    let stream = fanout.subscribe(prefix("/c/")).unwrap();
    stream.view().await.unwrap();
    let ask = || {
        let view = stream.view_now().unwrap();
        stream.sync_response(SyncKind::Snapshot { reset: false }, Revision::NONE, view)
    };
    let first = Arc::downgrade(&ask());
    // So often that it is never idle.
    let every = IDLE_FOR / 2;
    let most = SHARED_FOR.div_duration_f64(every) as usize;
    for asked in 1..=most {
        tokio::time::sleep(every).await;
        let is_first = std::ptr::eq(Arc::as_ptr(&ask()), first.as_ptr());
        assert_eq!(is_first, asked < most, "asked for {asked} times");
    }
    assert!(first.upgrade().is_none());
}

/// Clients from moments that nobody else was away at: each answer pins a state.
#[tokio::test(start_paused = true)]
async fn a_range_keeps_so_many_answers_at_most() {
    let hour = Duration::from_secs(3600);
    let (fanout, script, _ingest) = ingesting(&ScriptedEtcd::default(), hour).await;
    let stream = fanout.subscribe(prefix("/c/")).unwrap();
    stream.view().await.unwrap();
    let mut answers = Vec::new();
    for revision in 2..50 {
        say_put(&script, "/c/a", Revision::new(revision)).await;
        fanout.reached(Revision::new(revision)).await;
        let since = Revision::new(revision - 1);
        let view = stream.view_now().unwrap();
        let answer = stream.sync_response(SyncKind::Diff { since }, Revision::NONE, view);
        answers.push(Arc::downgrade(&answer));
    }
    let kept = answers.iter().filter(|answer| answer.upgrade().is_some());
    assert_eq!(kept.count(), 8);
}

/// Neither the state that was there when its range was first watched keeps it, nor the change that
/// replaced it, for a delta that nobody wants.
#[tokio::test(start_paused = true)]
async fn a_value_that_was_replaced_is_not_kept() {
    let hour = Duration::from_secs(3600);
    let (fanout, script, _ingest) = ingesting(&ScriptedEtcd::default(), hour).await;
    let put = async |key: &str, value: Bytes, revision: i64| {
        let put = driftless_proto::apply::Edit::Put(entry(key, value, revision));
        let (revision, changes) = (Revision::new(revision), vec![put]);
        assert!(script.send(Update::Changes { revision, changes }).await);
        fanout.reached(revision).await;
    };
    let value = Bytes::from(vec![b'1'; 4096]);
    put("/c/a", value.clone(), 2).await;
    // Too large for the log, which holds nothing else then.
    put("/c/large", Bytes::from(vec![b'v'; 1024 * 1024]), 3).await;
    let subscriber = fanout.subscribe(prefix("/c/")).unwrap();
    subscriber.view().await.unwrap();
    assert!(!value.is_unique());
    put("/c/a", Bytes::from(vec![b'2'; 4096]), 4).await;
    assert!(value.is_unique());
}

/// The log has a budget of bytes, and a range remembers hundreds of changes, however large.
#[tokio::test(start_paused = true)]
async fn a_range_keeps_no_change_that_the_log_let_go_of() {
    let mut prefix_c = Prefix::new();
    let _watched = prefix_c.subscribe(prefix("/c/")).await;
    let kept = |prefix_c: &Prefix| {
        let published = prefix_c.fanout.0.published.lock();
        let log = &published.state.as_ref().unwrap().log;
        let past = log.since(&prefix("/c/"), log.floor()).unwrap();
        past.batches.last().map(Arc::downgrade)
    };
    prefix_c.put("/c/a", "1");
    let change = kept(&prefix_c).unwrap();
    assert!(change.upgrade().is_some());
    // Too large for the log, which holds nothing else then.
    prefix_c.put("/c/large", &"v".repeat(2 * 1024 * 1024));
    assert!(change.upgrade().is_none());
}

/// Each scope left its frames in the log's batches, whose budget does not know of them.
#[tokio::test(start_paused = true)]
async fn a_client_that_comes_back_again_and_again_does_not_fill_the_log_with_its_frames() {
    let mut prefix_c = Prefix::new();
    let start = prefix_c.etcd.revision();
    let held = prefix_c.etcd.state(&prefix("/c/"));
    for n in 0..50 {
        prefix_c.put("/c/a", &n.to_string());
    }
    for _ in 0..10 {
        let replica = Replica::holding(prefix("/c/"), &prefix_c.etcd.epoch(), start, held.clone());
        let mut stream = Stream::start(&prefix_c, replica, prefix("/c/")).await;
        stream.drain();
        assert_eq!(stream.heard(), ["diff"; 50]);
        assert!(prefix_c.frames_kept() <= 50);
    }
    assert_eq!(prefix_c.frames_kept(), 0);
    // Those that a scope no longer refers to go at once.
    let mut stream = Stream::cold(&prefix_c, prefix("/c/")).await;
    for n in 0..2000 {
        prefix_c.put("/c/a", &n.to_string());
        prefix_c.publisher.flush();
        stream.drain();
    }
    assert!(prefix_c.frames_kept() <= 256, "{}", prefix_c.frames_kept());
}

/// The client was sent an empty conflated diff after the changes that it had missed, made from a
/// walk through everything that had changed in the prefix.
#[tokio::test(start_paused = true)]
async fn a_replay_ends_with_its_last_change() {
    let mut prefix_c = Prefix::new();
    let range = KeyRange::key("/c/a").unwrap();
    let start = prefix_c.etcd.revision();
    let replica = Replica::holding(
        range.clone(),
        &prefix_c.etcd.epoch(),
        start,
        prefix_c.etcd.state(&range),
    );
    prefix_c.put("/c/a", "2");
    prefix_c.put("/c/b", "2");
    let mut stream = Stream::start(&prefix_c, replica, range.clone()).await;
    stream.drain();
    assert_eq!(stream.heard(), ["diff"]);
    prefix_c.progress();
    stream.drain();
    assert_eq!(stream.heard(), ["progress"]);
    assert_eq!(stream.replica.revision(), prefix_c.etcd.revision());
    prefix_c.put("/c/a", "3");
    stream.drain();
    assert_eq!(stream.heard(), ["diff"]);
    assert_eq!(stream.replica.entries(), prefix_c.etcd.state(&range));
}

#[tokio::test(start_paused = true)]
async fn heads_reach_back_as_far_as_older_and_older_clients_need() {
    let mut prefix_c = Prefix::new();
    let range = prefix("/c/a");
    let mut clients = Vec::new();
    for n in 0..5 {
        clients.push(Replica::holding(
            range.clone(),
            &prefix_c.etcd.epoch(),
            prefix_c.etcd.revision(),
            prefix_c.etcd.state(&range),
        ));
        prefix_c.put("/c/a", &n.to_string());
        prefix_c.put("/c/b", "unrelated");
        prefix_c.txn(vec![Op::put(format!("/c/a{n}"), ""), Op::delete("/c/b")]);
    }
    // A scope that has a head of its own already.
    let mut live = Stream::cold(&prefix_c, range.clone()).await;
    prefix_c.put("/c/a", "live");
    live.drain();
    live.heard();
    let mut streams = vec![live];
    for (n, replica) in clients.into_iter().enumerate().rev() {
        let mut stream = Stream::start(&prefix_c, replica, range.clone()).await;
        stream.drain();
        assert_eq!(stream.heard(), vec!["diff"; 2 * (5 - n) + 1]);
        streams.push(stream);
    }
    prefix_c.put("/c/a", "for all");
    for stream in &mut streams {
        stream.drain();
        assert_eq!(stream.heard(), ["diff"]);
        assert_eq!(stream.replica.entries(), prefix_c.etcd.state(&range));
    }
}

#[tokio::test(start_paused = true)]
async fn the_inside_of_a_difference_of_states_is_unknown() {
    let mut prefix_c = Prefix::new();
    let stream = Stream::cold(&prefix_c, prefix("/c/")).await;
    let before = prefix_c.etcd.revision();
    let digest_before: Digest = prefix_c.etcd.state(&prefix("/c/")).iter().collect();
    let inside = prefix_c.etcd.put("/c/a", "2");
    prefix_c.etcd.put("/c/a", "3");
    prefix_c.relist(History::Continues);
    let after = prefix_c.etcd.put("/c/b", "1");
    let subscriber = &stream.subscriber;
    let late = prefix_c.subscribe(prefix("/c/a")).await;
    for subscriber in [subscriber, &late] {
        let view = subscriber.view_now().unwrap();
        assert!(subscriber.digest_at(inside, &view).is_none());
        let digest = subscriber.digest_at(before, &view);
        assert!(digest == Some(digest_before), "its start is known");
        let digest = subscriber.digest_at(after, &view);
        assert!(digest == Some(view.digest), "so is what comes after it");
    }
}

#[tokio::test(start_paused = true)]
async fn progress_is_encoded_once_for_all_streams_of_a_range() {
    let mut prefix_c = Prefix::new();
    let mut one = Stream::cold(&prefix_c, prefix("/c/")).await;
    let mut two = Stream::cold(&prefix_c, prefix("/c/")).await;
    let bytes = |stream: &mut Stream| match stream.next() {
        Next::Progress { bytes, number, to } => {
            (stream.progress, stream.cursor) = (number, to);
            bytes
        }
        other => panic!("{other:?}"),
    };
    one.drain();
    two.drain();
    let (woken_one, woken_two) = (one.woken(), two.woken());
    prefix_c.progress();
    assert_eq!((one.woken(), two.woken()), (woken_one + 1, woken_two + 1));
    let (from_one, from_two): (Bytes, Bytes) = (bytes(&mut one), bytes(&mut two));
    assert_eq!(from_one.as_ptr(), from_two.as_ptr(), "shared");
    assert!(one.drain_is_quiet() && two.drain_is_quiet());
    // A stream that missed one gets the latest.
    prefix_c.progress();
    prefix_c.progress();
    bytes(&mut one);
    assert!(one.drain_is_quiet());
    // One that has newer things to say than the progress says those.
    prefix_c.put("/c/a", "2");
    two.drain();
    assert_eq!(two.replica.entries(), prefix_c.etcd.state(&prefix("/c/")));
    assert!(two.heard().ends_with(&["diff"]));
}

#[tokio::test(start_paused = true)]
async fn another_history_ends_streams_and_their_successors_stay() {
    let mut prefix_c = Prefix::new();
    prefix_c.etcd.put("/c/a", "2");
    prefix_c.relist(History::Continues);
    let mut old = Stream::cold(&prefix_c, prefix("/c/")).await;
    let behind = prefix_c.subscribe(prefix("/c/")).await;
    old.drain();
    let woken = old.woken();
    prefix_c.etcd.restore(Revision::new(2));
    prefix_c.relist(History::Replaced);
    assert_eq!(old.woken(), woken + 1);
    old.drain();
    assert_eq!(old.ended, Some(Ending::History));
    assert!(old.subscriber.view_now().is_none());
    assert!(behind.view().await.is_none());
    let cx = Context::from_waker(Waker::noop());
    let next = behind.next(Revision::NONE, 0, &cx);
    assert!(matches!(next, Next::Ending(Ending::History)));

    let mut new = Stream::cold(&prefix_c, prefix("/c/")).await;
    new.drain();
    drop((old, behind));
    assert_eq!(prefix_c.fanout.metrics().scopes.get(), 1);
    prefix_c.put("/c/a", "3");
    new.drain();
    assert_eq!(new.replica.entries(), prefix_c.etcd.state(&prefix("/c/")));

    prefix_c.fanout.drain();
    new.drain();
    assert_eq!(new.ended, Some(Ending::Drain));
    let refused = prefix_c.fanout.subscribe(prefix("/c/"));
    assert_eq!(refused.unwrap_err(), Unavailable::Draining);
    drop(new);
    assert_eq!(prefix_c.fanout.metrics().scopes.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn another_history_lets_go_of_what_was_held_back() {
    let mut prefix_c = Prefix::new();
    let stream = Stream::cold(&prefix_c, prefix("/c/")).await;
    while !prefix_c.put("/c/a", "v") {}
    drop(stream);
    prefix_c.etcd.restore(Revision::new(2));
    prefix_c.relist(History::Replaced);
    assert_eq!(prefix_c.fanout.metrics().scopes.get(), 0);
    assert_eq!(prefix_c.fanout.metrics().log_bytes.get(), 0);
}

/// Publishes from one thread while streams of others come, read, lag and go: nobody diverges, misses a
/// wake-up or leaves anything behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn streams_of_many_threads_stay_true() {
    const ROUNDS: usize = 1500;
    const READERS: usize = 8;
    let mut prefix_c = Prefix::new();
    let fanout = prefix_c.fanout.clone();
    let (done, ended) = watch::channel(false);
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..READERS {
        let (fanout, ended) = (fanout.clone(), ended.clone());
        readers.spawn(async move {
            let range = ranges().swap_remove(reader % ranges().len());
            let mut replica = Replica::new(range.clone());
            for life in 1.. {
                let mut stream = Stream::of(&fanout, replica, range.clone(), reader % 2 == 0).await;
                for _ in 0..life * 7 % 40 {
                    if *ended.borrow() {
                        break;
                    }
                    let next = std::future::poll_fn(|cx| {
                        let next = stream.subscriber.next(stream.cursor, stream.progress, cx);
                        match next {
                            Next::Nothing if *ended.borrow() => Poll::Ready(next),
                            Next::Nothing => Poll::Pending,
                            next => Poll::Ready(next),
                        }
                    });
                    if !stream.take(next.await) {
                        break;
                    }
                }
                if *ended.borrow() {
                    stream.drain();
                    if stream.ended.is_none() {
                        return (range, stream.replica.entries());
                    }
                }
                replica = stream.replica;
            }
            unreachable!("it lives until the end")
        });
    }
    let publish = async move {
        for round in 0..ROUNDS {
            let key = KEYS[round % KEYS.len()];
            let held = match round % 3 {
                0 => prefix_c.put(key, &large(&round.to_string())),
                _ => prefix_c.put(key, &round.to_string()),
            };
            prefix_c.resolve(round % 2, round % 7 != 0);
            if held && round % 5 == 0 {
                prefix_c.publisher.flush();
            }
            if round % 50 == 0 {
                prefix_c.progress();
            }
            if round % 400 == 399 {
                let back = prefix_c.etcd.revision().get() - 3;
                prefix_c.etcd.restore(Revision::new(back));
                prefix_c.relist(History::Replaced);
            }
            tokio::task::yield_now().await;
        }
        prefix_c.publisher.flush();
        prefix_c.resolve_all();
        done.send_replace(true);
        // Whoever waits is woken by this, and sees that it is over.
        prefix_c.progress();
        prefix_c
    };
    let all = async { tokio::join!(publish, readers.join_all()) };
    let (mut prefix_c, replicas) = tokio::time::timeout(Duration::from_secs(60), all)
        .await
        .expect("no wake-up is missed");
    for (range, entries) in replicas {
        assert_eq!(entries, prefix_c.etcd.state(&range), "{range}");
    }
    prefix_c.publisher.flush();
    assert_eq!(prefix_c.fanout.metrics().scopes.get(), 0);
    assert_eq!(prefix_c.frames_kept(), 0);
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

#[derive(Clone, Debug)]
enum Event {
    Txn(Vec<(usize, Option<u8>)>),
    Burst(u16),
    /// These happen unheard, then the state is read.
    Missed(Vec<(usize, Option<u8>)>),
    Restored(i64),
    Progress,
    Flush,
    Wait(u64),
    /// A new stream of a range, of a client that was there so many revisions ago.
    Join(usize, Option<u8>, bool),
    /// One of the batches that streams wait for need not be waited for any longer.
    Resolve(usize, bool),
    /// A stream's connection has room for one thing.
    Step(usize),
    /// It has room for everything.
    Drain(usize),
    Leave(usize),
}

/// A value of which this is one line.
fn large(line: &str) -> String {
    let lines = |from: usize| (from..from + 100).map(|n| format!("setting {n} = {}\n", n * n));
    let all = lines(0).chain([format!("{line}\n")]).chain(lines(100));
    all.collect()
}

fn op((key, value): (usize, Option<u8>)) -> Op {
    match value {
        Some(value) if value % 8 == 0 => Op::put(KEYS[key], vec![value; 5000]),
        Some(value) if value % 2 == 0 => Op::put(KEYS[key], large(&value.to_string())),
        Some(value) => Op::put(KEYS[key], [value]),
        None => Op::delete(KEYS[key]),
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let edit = (0..KEYS.len(), proptest::option::weighted(0.7, any::<u8>()));
    let edits = proptest::collection::vec(edit, 1..4);
    let stream = 0usize..6;
    let event = prop_oneof![
        12 => edits.clone().prop_map(Event::Txn),
        1 => (1u16..400).prop_map(Event::Burst),
        1 => edits.prop_map(Event::Missed),
        1 => (1i64..20).prop_map(Event::Restored),
        2 => Just(Event::Progress),
        2 => Just(Event::Flush),
        1 => (1u64..100).prop_map(Event::Wait),
        5 => (0..ranges().len(), proptest::option::of(0u8..30), any::<bool>())
            .prop_map(|(range, back, patches)| Event::Join(range, back, patches)),
        8 => (0usize..3, proptest::bool::weighted(0.8))
            .prop_map(|(which, work)| Event::Resolve(which, work)),
        6 => stream.clone().prop_map(Event::Step),
        2 => stream.clone().prop_map(Event::Drain),
        2 => stream.prop_map(Event::Leave),
    ];
    proptest::collection::vec(event, 1..80)
}

impl Stream {
    /// What the client holds is what etcd held at the client's revision.
    fn check(&self, etcd: &ScriptedEtcd) {
        let (range, at) = (self.subscriber.range(), self.replica.revision());
        if self.ended.is_none() && at > Revision::NONE {
            let expected: Vec<Entry> = etcd.state_at(range, at).expect("no future revision");
            assert_eq!(self.replica.entries(), expected, "{range} at {at}");
        }
    }
}

async fn scenario(events: Vec<Event>) {
    let mut prefix_c = Prefix::with(ScriptedEtcd::default(), 64 * 1024);
    let mut streams: Vec<Stream> = Vec::new();
    for event in events {
        match event {
            Event::Txn(edits) => drop(prefix_c.txn(edits.into_iter().map(op).collect())),
            Event::Burst(puts) => {
                for n in 0..usize::from(puts) {
                    prefix_c.put(KEYS[n % KEYS.len()], &n.to_string());
                }
            }
            Event::Missed(edits) => {
                edits.into_iter().for_each(|edit| {
                    prefix_c.etcd.txn([op(edit)]);
                });
                prefix_c.relist(History::Continues);
            }
            Event::Restored(by) => {
                let to = (prefix_c.etcd.revision().get() - by).max(1);
                prefix_c.etcd.restore(Revision::new(to));
                prefix_c.relist(History::Replaced);
                for mut stream in streams.drain(..) {
                    stream.drain();
                    assert_eq!(stream.ended, Some(Ending::History));
                }
            }
            Event::Progress => prefix_c.progress(),
            Event::Flush => prefix_c.publisher.flush(),
            Event::Wait(millis) => tokio::time::advance(Duration::from_millis(millis)).await,
            Event::Resolve(which, work) => prefix_c.resolve(which, work),
            Event::Join(range, back, patches) => {
                let range = ranges().swap_remove(range);
                let etcd = &prefix_c.etcd;
                let replica = match back {
                    None => Replica::new(range.clone()),
                    Some(back) => {
                        let at = (etcd.revision().get() - i64::from(back)).max(1);
                        let at = Revision::new(at);
                        let held = etcd.state_at(&range, at).unwrap();
                        Replica::holding(range.clone(), &etcd.epoch(), at, held)
                    }
                };
                streams.push(Stream::of(&prefix_c.fanout, replica, range, patches).await);
            }
            Event::Step(at) => {
                if let Some(stream) = streams.get_mut(at) {
                    stream.step();
                }
            }
            Event::Drain(at) => {
                if let Some(stream) = streams.get_mut(at) {
                    stream.drain();
                }
            }
            Event::Leave(at) if at < streams.len() => drop(streams.remove(at)),
            Event::Leave(_) => {}
        }
        streams
            .iter()
            .for_each(|stream| stream.check(&prefix_c.etcd));
    }
    prefix_c.publisher.flush();
    prefix_c.resolve_all();
    for stream in &mut streams {
        stream.drain();
        stream.check(&prefix_c.etcd);
        let range = stream.subscriber.range();
        assert_eq!(stream.replica.entries(), prefix_c.etcd.state(range));
    }
    prefix_c.progress();
    for stream in &mut streams {
        stream.drain();
        assert_eq!(stream.replica.revision(), prefix_c.etcd.revision());
    }
    drop(streams);
    prefix_c.publisher.flush();
    assert_eq!(prefix_c.fanout.metrics().scopes.get(), 0);
    assert_eq!(prefix_c.frames_kept(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_stream_is_at_a_state_that_etcd_had(events in events()) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().start_paused(true).build().unwrap();
        runtime.block_on(scenario(events));
    }
}
