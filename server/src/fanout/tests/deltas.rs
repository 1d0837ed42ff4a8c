//! Patches: which streams get them, and which wait for them.

use tokio::task::{JoinSet, yield_now};

use super::*;
use crate::delta::WITHIN;
use crate::source::scripted::ScriptedEtcdSource;

#[tokio::test(start_paused = true)]
async fn change_is_encoded_once_per_variant() {
    let mut prefix_c = Prefix::new();
    prefix_c.put("/c/a", &large("1"));
    let mut streams = Vec::new();
    for range in [
        prefix("/c/"),
        prefix("/c/a"),
        KeyRange::key("/c/a").unwrap(),
    ] {
        for _ in 0..3 {
            streams.push(Stream::cold(&prefix_c, range.clone()).await);
            streams.push(Stream::patched(&prefix_c, range.clone()).await);
        }
    }
    streams.iter_mut().for_each(Stream::drain);
    let metrics = prefix_c.fanout.metrics().clone();
    prefix_c.put("/c/a", &large("2"));
    prefix_c.resolve_all();
    let mut lengths = Vec::new();
    for stream in &mut streams {
        let next = stream.next();
        let Next::Frame { frame, .. } = &next else {
            panic!("{next:?}")
        };
        lengths.push((stream.patches.is_some(), frame.len()));
        assert!(stream.take(next));
        assert_eq!(stream.patches.unwrap_or(1), 1);
        stream.check(&prefix_c.etcd);
    }
    assert!(lengths.iter().all(|(patched, len)| match patched {
        true => *len < 256,
        false => *len > 3000,
    }));
    assert_eq!(metrics.changes_encoded.get(), 2, "whole, and as a patch");
    assert_eq!(metrics.frames_encoded.get(), 2 * 3, "twice a range");
    assert_eq!(prefix_c.frames_kept(), 6);

    // If no patch pays, both variants are the same.
    prefix_c.put("/c/a", &"another value altogether\n".repeat(200));
    prefix_c.resolve_all();
    streams.iter_mut().for_each(Stream::drain);
    assert_eq!(metrics.changes_encoded.get(), 3);
    assert_eq!(metrics.frames_encoded.get(), 2 * 3 + 3);
    assert_eq!(metrics.deltas_computed.get(), 1);
    assert_eq!(metrics.deltas_dropped.get(), 1);

    // No patch is made if no stream takes patches.
    streams.retain(|stream| stream.patches.is_none());
    prefix_c.put("/c/a", &"another value all together\n".repeat(200));
    assert!(prefix_c.pending.is_empty());
    streams.iter_mut().for_each(Stream::drain);
    assert!(streams.iter().all(|stream| {
        stream.check(&prefix_c.etcd);
        stream.replica.revision() == prefix_c.etcd.revision()
    }));
    drop(streams);
    assert_eq!(prefix_c.frames_kept(), 0);
}

#[tokio::test(start_paused = true)]
async fn only_scopes_with_patching_streams_wait() {
    let mut prefix_c = Prefix::new();
    prefix_c.txn(vec![
        Op::put("/c/a", large("1")),
        Op::put("/c/b", large("1")),
    ]);
    let mut patched = Stream::patched(&prefix_c, prefix("/c/a")).await;
    let mut beside = Stream::cold(&prefix_c, prefix("/c/a")).await;
    let mut plain = Stream::cold(&prefix_c, prefix("/c/")).await;
    let mut other = Stream::patched(&prefix_c, prefix("/c/b")).await;
    for stream in [&mut patched, &mut beside, &mut plain, &mut other] {
        stream.drain();
        stream.applied();
    }
    let before = prefix_c.etcd.revision();
    prefix_c.put("/c/a", &large("2"));
    // Later changes, although small, wait behind it.
    prefix_c.put("/c/a", "3");
    prefix_c.put("/c/b", "3");
    assert_eq!(prefix_c.pending.len(), 1);
    assert_eq!((patched.woken(), beside.woken()), (0, 0));
    plain.drain();
    other.drain();
    assert_eq!(plain.applied(), ["diff"; 3]);
    assert_eq!(other.applied(), ["diff"]);
    assert!(patched.drain_is_quiet() && beside.drain_is_quiet());

    // Progress does not overtake it either.
    prefix_c.progress();
    for stream in [&mut patched, &mut beside] {
        stream.drain();
        assert_eq!(stream.applied(), ["progress"]);
        assert_eq!(stream.replica.revision(), before);
    }
    // A client that has the change already, from another server, does not wait and is not set back.
    let range = prefix("/c/a");
    let mut ahead = Stream::patched(&prefix_c, range.clone()).await;
    let (epoch, now) = (prefix_c.etcd.epoch(), prefix_c.etcd.revision());
    ahead.replica = Replica::holding(range.clone(), &epoch, now, prefix_c.etcd.state(&range));
    ahead.cursor = now;
    prefix_c.progress();
    ahead.drain();
    assert!(ahead.applied().is_empty());

    let woken = (patched.woken(), beside.woken());
    patched.drain();
    beside.drain();
    prefix_c.resolve(0, true);
    assert_eq!(
        (patched.woken(), beside.woken()),
        (woken.0 + 1, woken.1 + 1)
    );
    for stream in [&mut patched, &mut beside, &mut ahead] {
        stream.drain();
        stream.check(&prefix_c.etcd);
        assert_eq!(stream.replica.entries(), prefix_c.etcd.state(&range));
    }
    assert_eq!((patched.patches, ahead.patches), (Some(1), Some(0)));
}

/// The second delta is computed before the first.
#[tokio::test(start_paused = true)]
async fn changes_keep_order_whichever_delta_is_first() {
    let mut prefix_c = Prefix::new();
    prefix_c.put("/c/a", &large("1"));
    let mut stream = Stream::patched(&prefix_c, prefix("/c/")).await;
    stream.drain();
    prefix_c.put("/c/a", &large("2"));
    prefix_c.put("/c/a", &large("3"));
    let woken = stream.woken();
    prefix_c.resolve(1, true);
    assert_eq!(stream.woken(), woken);
    assert!(stream.drain_is_quiet());
    // Given up: this value is sent whole, and the next one as a patch of it.
    prefix_c.resolve(0, false);
    assert_eq!(stream.woken(), woken + 1);
    stream.drain();
    stream.check(&prefix_c.etcd);
    assert_eq!(stream.patches, Some(1));
    assert_eq!(stream.replica.revision(), prefix_c.etcd.revision());
}

#[tokio::test(start_paused = true)]
async fn stream_gets_no_patch_of_a_value_it_missed() {
    let mut prefix_c = Prefix::new();
    prefix_c.put("/c/a", &large("0"));
    let mut behind = Stream::patched(&prefix_c, prefix("/c/")).await;
    behind.drain();
    let held = (
        prefix_c.etcd.revision(),
        prefix_c.etcd.state(&prefix("/c/")),
    );
    for n in 1..400 {
        prefix_c.put("/c/a", &large(&n.to_string()));
        prefix_c.resolve_all();
    }
    prefix_c.publisher.flush();
    assert!(matches!(behind.next(), Next::Behind));
    behind.drain();
    behind.check(&prefix_c.etcd);
    assert_eq!(behind.patches, Some(0));
    // A value that was not published, as after a compaction, is no base either.
    prefix_c.etcd.put("/c/a", large("not published"));
    prefix_c.etcd.put("/c/b", large("not published"));
    prefix_c.relist(History::Continues);
    assert!(prefix_c.publisher.take_pending().is_empty());
    behind.drain();
    prefix_c.put("/c/a", &large("published"));
    prefix_c.resolve_all();
    prefix_c.publisher.flush();
    behind.drain();
    behind.check(&prefix_c.etcd);
    assert_eq!(behind.patches, Some(1));
    // Nor is the value before a delete.
    prefix_c.txn(vec![Op::delete("/c/a")]);
    prefix_c.put("/c/a", &large("anew"));
    assert!(prefix_c.pending.is_empty());
    // A client that was away too long for single changes.
    let epoch = prefix_c.etcd.epoch();
    let replica = Replica::holding(prefix("/c/"), &epoch, held.0, held.1);
    let mut returned = Stream::of(&prefix_c.fanout, replica, prefix("/c/"), true).await;
    returned.drain();
    prefix_c.publisher.flush();
    returned.drain();
    returned.check(&prefix_c.etcd);
    assert_eq!(returned.replica.revision(), prefix_c.etcd.revision());
}

/// Returning clients get patches that were computed for others.
#[tokio::test(start_paused = true)]
async fn patches_are_replayed_and_counted_by_the_budget() {
    let mut prefix_c = Prefix::new();
    prefix_c.put("/c/a", &large("0"));
    let watching = Stream::patched(&prefix_c, prefix("/c/a")).await;
    let (at, held) = (
        prefix_c.etcd.revision(),
        prefix_c.etcd.state(&prefix("/c/")),
    );
    let log_bytes = prefix_c.fanout.metrics().log_bytes.clone();
    for n in 1..5 {
        prefix_c.put("/c/a", &large(&n.to_string()));
        let before = log_bytes.get();
        prefix_c.resolve_all();
        assert!((50..600).contains(&(log_bytes.get() - before)));
    }
    for patches in [true, false] {
        let epoch = prefix_c.etcd.epoch();
        let replica = Replica::holding(prefix("/c/"), &epoch, at, held.clone());
        let mut back = Stream::of(&prefix_c.fanout, replica, prefix("/c/"), patches).await;
        back.drain();
        back.check(&prefix_c.etcd);
        assert_eq!(back.applied(), ["diff"; 4]);
        assert_eq!(back.patches, patches.then_some(4));
    }
    drop(watching);
    prefix_c.etcd.restore(at);
    prefix_c.relist(History::Replaced);
    assert_eq!(log_bytes.get(), 0);
}

/// Small changes of large values: the patches alone fill the log.
#[tokio::test(start_paused = true)]
async fn patches_push_old_batches_out_of_the_log() {
    let budget = 60_000;
    let mut prefix_c = Prefix::with(ScriptedEtcd::default(), budget);
    prefix_c.put("/c/a", &large("0"));
    let mut stream = Stream::patched(&prefix_c, prefix("/c/")).await;
    for n in 1..50 {
        prefix_c.put("/c/a", &large(&"more ".repeat(n % 40 * 10)));
        prefix_c.resolve_all();
        let bytes = prefix_c.fanout.metrics().log_bytes.get();
        assert!(bytes <= budget as i64);
        if n % 3 == 0 {
            prefix_c.publisher.flush();
            stream.drain();
            stream.check(&prefix_c.etcd);
        }
    }
}

/// In a flood of large values, only some deltas are computed and waited for.
#[tokio::test(start_paused = true)]
async fn pending_deltas_are_bounded() {
    let mut prefix_c = Prefix::with(ScriptedEtcd::default(), 100 << 20);
    let metrics = prefix_c.fanout.metrics().clone();
    prefix_c.put("/c/a", &large("0"));
    let mut stream = Stream::patched(&prefix_c, prefix("/c/")).await;
    stream.drain();
    for n in 1..=300 {
        prefix_c.put("/c/a", &large(&n.to_string()));
    }
    assert_eq!(prefix_c.pending.len(), 256);
    assert_eq!(metrics.deltas_late.get(), 300 - 256);
    prefix_c.resolve_all();
    prefix_c.publisher.flush();
    stream.drain();
    stream.check(&prefix_c.etcd);
    assert_eq!(stream.replica.revision(), prefix_c.etcd.revision());

    let huge = |n: u8| [vec![b'v'; 3 << 20], vec![n]].concat();
    prefix_c.txn(
        (0..8)
            .map(|key| Op::put(format!("/c/{key}"), huge(0)))
            .collect(),
    );
    prefix_c.txn(
        (0..8)
            .map(|key| Op::put(format!("/c/{key}"), huge(1)))
            .collect(),
    );
    assert_eq!(prefix_c.pending[0].batch.changes.len(), 8);
    let (pairs, _) = prefix_c.pending[0].take_work();
    assert_eq!(pairs.len(), 5, "32 MiB");
    assert_eq!(metrics.deltas_late.get(), 300 - 256 + 1);
    prefix_c.resolve_all();
    prefix_c.txn(
        (0..8)
            .map(|key| Op::put(format!("/c/{key}"), huge(2)))
            .collect(),
    );
    assert_eq!(prefix_c.pending.len(), 1, "there is room again");
    prefix_c.resolve_all();
}

/// Old values are dropped if no delta is wanted, and with the work otherwise.
#[tokio::test(start_paused = true)]
async fn old_values_are_kept_only_for_pending_work() {
    let mut prefix_c = Prefix::new();
    let keys = ["/c/a", "/c/b", "/c/c"];
    let all = |line: &str| keys.map(|key| Op::put(key, large(line))).to_vec();
    prefix_c.txn(all("1"));
    let mut stream = Stream::patched(&prefix_c, prefix("/c/b")).await;
    stream.drain();
    prefix_c.txn(all("2"));
    let keys: Vec<_> = prefix_c.pending[0].keys().collect();
    assert_eq!(keys, ["/c/b"]);
    let (pairs, _) = prefix_c.pending[0].take_work();
    assert_eq!(pairs.len(), 1);
    drop(pairs);
    let (left, _) = prefix_c.pending[0].take_work();
    assert!(left.is_empty(), "they went with the work");
    // Without them no delta is found.
    prefix_c.resolve_all();
    stream.drain();
    stream.check(&prefix_c.etcd);
    assert_eq!(stream.patches, Some(0));
}

#[tokio::test(start_paused = true)]
async fn scope_is_dropped_while_its_delta_is_pending() {
    let mut prefix_c = Prefix::new();
    prefix_c.put("/c/a", &large("1"));
    let stream = Stream::patched(&prefix_c, prefix("/c/")).await;
    prefix_c.put("/c/a", &large("2"));
    assert_eq!(prefix_c.pending.len(), 1);
    drop(stream);
    assert_eq!(prefix_c.fanout.metrics().scopes.get(), 0);
    prefix_c.resolve_all();
}

/// The ingest loop, with a gate before its jobs.
struct Running {
    etcd: ScriptedEtcd,
    fanout: Fanout,
    pool: JobPool,
    ingest: JoinSet<()>,
}

impl Running {
    async fn start(etcd: ScriptedEtcd) -> Self {
        let (publisher, fanout) = ends(64 << 20, Duration::from_secs(10));
        let (handle, requests) = SourceHandle::channel();
        let source: ScriptedEtcdSource = etcd.source(prefix("/c/"), requests);
        let pool = JobPool::new(fanout.metrics().clone());
        let limits = ingest::Limits {
            audit_interval: None,
            jobs: pool.clone(),
        };
        let mut ingest = JoinSet::new();
        ingest.spawn(ingest::run(
            source,
            ingest::Handle::new(handle),
            publisher,
            limits,
        ));
        fanout.synced().await;
        Self {
            etcd,
            fanout,
            pool,
            ingest,
        }
    }

    async fn stream(&self, range: &str) -> Stream {
        let range = prefix(range);
        let mut stream = Stream::of(&self.fanout, Replica::new(range.clone()), range, true).await;
        stream.drain();
        stream.applied();
        stream
    }

    async fn put(&self, key: &str, value: impl AsRef<[u8]>) {
        self.fanout.reached(self.etcd.put(key, value)).await;
    }

    fn jobs(&self) -> i64 {
        self.fanout.metrics().delta_jobs.get()
    }
}

/// Waits for other threads. The clock is paused.
async fn until(mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "it comes about");
        yield_now().await;
    }
}

async fn goes_on_while_the_delta_is_computed(old: Vec<u8>, new: Vec<u8>) {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/large", old);
    etcd.put("/c/small", "1");
    let running = Running::start(etcd).await;
    let mut large = running.stream("/c/large").await;
    let mut small = running.stream("/c/small").await;
    let gate = Arc::clone(&running.pool.gate);
    let closed = gate.lock().await;
    running.put("/c/large", new).await;
    until(|| running.jobs() == 1).await;
    for n in 0..20 {
        running.put("/c/small", n.to_string()).await;
        small.drain();
        assert_eq!(small.applied(), ["diff"]);
        assert_eq!(
            small.replica.entries(),
            running.etcd.state(&prefix("/c/small"))
        );
    }
    assert!(large.drain_is_quiet());
    drop(closed);
    let after = running.etcd.state(&prefix("/c/large"));
    until(|| {
        large.drain();
        large.replica.entries() == after
    })
    .await;
    assert_eq!(large.applied(), ["diff"]);
    until(|| running.jobs() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn rewritten_value_delays_no_other_range() {
    let letters = |from: u8| (0..1_u64 << 20).map(move |n| from + (n * n / 7 % 23) as u8);
    goes_on_while_the_delta_is_computed(letters(b'a').collect(), letters(b'A').collect()).await;
}

#[tokio::test(start_paused = true)]
async fn million_identical_lines_delay_no_other_range() {
    let mut new = b"on\n".repeat(1 << 20);
    new[3000] = b'i';
    new[3_000_000] = b'i';
    goes_on_while_the_delta_is_computed(b"on\n".repeat(1 << 20), new).await;
}

#[tokio::test(start_paused = true)]
async fn value_without_delta_in_time_is_sent_whole() {
    let running = Running::start(ScriptedEtcd::default()).await;
    running.put("/c/a", large("1")).await;
    let mut stream = running.stream("/c/").await;
    let gate = Arc::clone(&running.pool.gate);
    {
        let _closed = gate.lock().await;
        running.put("/c/a", large("2")).await;
        // Two run at a time; the third gets no permit.
        running.put("/c/a", large("3")).await;
        running.put("/c/a", large("4")).await;
        until(|| running.jobs() == 2).await;
        assert!(stream.drain_is_quiet());
        tokio::time::advance(WITHIN).await;
        until(|| {
            stream.drain();
            stream.replica.revision() == running.etcd.revision()
        })
        .await;
        stream.check(&running.etcd);
        assert_eq!(stream.patches, Some(0));
        assert_eq!(running.fanout.metrics().deltas_late.get(), 3);
        assert_eq!(running.jobs(), 2, "they are not over");
    }
    until(|| running.jobs() == 0).await;
    running.put("/c/a", large("5")).await;
    until(|| {
        stream.drain();
        stream.patches == Some(1)
    })
    .await;
    stream.check(&running.etcd);
    // The job without a permit is not run later, since nobody waits for it.
    let metrics = running.fanout.metrics();
    let looked_at = metrics.deltas_computed.get() + metrics.deltas_dropped.get();
    assert_eq!(looked_at, 3);
}

#[tokio::test(start_paused = true)]
async fn panicking_job_finds_nothing() {
    let running = Running::start(ScriptedEtcd::default()).await;
    running.put("/c/a", large("1")).await;
    let mut stream = running.stream("/c/").await;
    *running.pool.gate.lock().await = true;
    running.put("/c/a", large("2")).await;
    until(|| {
        stream.drain();
        stream.replica.revision() == running.etcd.revision()
    })
    .await;
    stream.check(&running.etcd);
    assert_eq!((stream.patches, running.jobs()), (Some(0), 0));
}

#[tokio::test(start_paused = true)]
async fn jobs_end_with_ingest() {
    let mut running = Running::start(ScriptedEtcd::default()).await;
    let some = |n: u8| (0..10).map(move |key| Op::put(format!("/c/{key}"), large(&n.to_string())));
    running.fanout.reached(running.etcd.txn(some(1))).await;
    let _stream = running.stream("/c/").await;
    let metrics = running.fanout.metrics().clone();
    let gate = Arc::clone(&running.pool.gate);
    {
        let _closed = gate.lock().await;
        for n in 2..6 {
            running.fanout.reached(running.etcd.txn(some(n))).await;
        }
        until(|| running.jobs() == 2).await;
        running.ingest.shutdown().await;
        assert_eq!(running.jobs(), 2, "a thread cannot be stopped");
    }
    until(|| running.jobs() == 0).await;
    let looked_at = metrics.deltas_computed.get() + metrics.deltas_dropped.get();
    assert_eq!(looked_at, 2, "each saw it after its first value");
}
