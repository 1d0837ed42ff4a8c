//! What one change costs the server before anything is sent: the store, the log, the scopes. The cost
//! must not grow with the number of keys, nor with the number of watched ranges that it does not touch.
//!
//! `cargo bench -p driftless-server --bench change`, or with `-- publish` a part of it. A million keys take 1 GiB.

use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use driftless_proto::apply::Edit;
use driftless_proto::{Entry, Epoch, Key, KeyRange, Revision};
use driftless_server::internals::encode::PinnedStates;
use driftless_server::internals::fanout::{
    ChangeLog, Fanout, Limits, Publisher, RangeView, Subscriber, fanout,
};
use driftless_server::internals::store::{Batch, History, State, Writer};
use driftless_server::metrics::Metrics;
use tokio::time::Instant;

const KEYS: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];

const SCOPES: [usize; 5] = [1, 10, 100, 1_000, 10_000];

const LOG_BYTES: usize = 64 * 1024 * 1024;

/// Keys in the keyspace where something else is varied.
const SOME_KEYS: usize = 10_000;

fn key(index: usize) -> Key {
    // A hundred keys to a folder.
    let key = format!("/config/{:05}/{:02}", index / 100, index % 100);
    Key::new(key).expect("is not empty")
}

fn entry(index: usize, revision: i64) -> Entry {
    Entry {
        key: key(index),
        value: vec![b'x'; 128].into(),
        create_revision: Revision::new(2),
        mod_revision: Revision::new(revision),
        version: 1,
    }
}

fn prefix(prefix: &str) -> KeyRange {
    KeyRange::prefix(prefix).expect("is one")
}

/// Both ends of the prefix, with nothing published.
fn ends() -> (Publisher, Fanout) {
    let limits = Limits {
        log_bytes: LOG_BYTES,
        progress_interval: Duration::from_secs(10),
        pinned: PinnedStates::new(usize::MAX, Metrics::new()),
    };
    fanout(prefix("/config/"), limits, Metrics::new(), Instant::now())
}

/// A prefix of so many keys, and its next revision.
struct Prefix {
    writer: Writer,
    publisher: Publisher,
    fanout: Fanout,
    keys: usize,
    revision: i64,
}

impl Prefix {
    fn new(keys: usize) -> Self {
        // One revision each, as if put one by one.
        let entries = (0..keys).map(|index| entry(index, 2 + index as i64));
        let revision = 2 + keys as i64;
        let writer = Writer::new(State {
            epoch: Epoch::of_cluster(1, ""),
            revision: Revision::new(revision),
            entries: entries.collect(),
            history: History::Continues,
            asked_at: None,
        });
        let (mut publisher, fanout) = ends();
        publisher.publish_anew(writer.snapshot().clone(), None);
        Self {
            writer,
            publisher,
            fanout,
            keys,
            revision,
        }
    }

    /// An edit that puts another value under a key: a different key each time, all over the keyspace.
    fn next_edit(&mut self) -> Vec<Edit> {
        self.revision += 1;
        let index = self.revision as usize * 7919 % self.keys;
        vec![Edit::Put(entry(index, self.revision))]
    }

    fn apply(&mut self, edits: Vec<Edit>) -> Batch {
        let revision = Revision::new(self.revision);
        let batch = self.writer.apply(revision, edits);
        batch.expect("something changed")
    }

    fn publish(&mut self, batch: Batch) {
        let snapshot = self.writer.snapshot().clone();
        self.publisher.publish(snapshot, batch);
        if self.publisher.holds_back() {
            self.publisher.flush();
        }
    }

    fn change(&mut self) {
        let edits = self.next_edit();
        let batch = self.apply(edits);
        self.publish(batch);
    }

    fn subscribe(&self, range: KeyRange) -> Subscriber {
        let subscriber = self.fanout.subscribe(range);
        subscriber.expect("there is a state")
    }
}

fn poll<F: Future>(work: F) -> F::Output {
    let mut work = pin!(work);
    loop {
        let mut cx = Context::from_waker(Waker::noop());
        if let Poll::Ready(output) = work.as_mut().poll(&mut cx) {
            return output;
        }
    }
}

fn view(subscriber: &Subscriber) -> RangeView {
    subscriber.view().expect("there is a state")
}

/// As the keyspace grows.
fn keys(c: &mut Criterion) {
    for keys in KEYS {
        for (name, read) in [("apply", false), ("apply, read", true)] {
            let mut on = Prefix::new(keys);
            // Drops what the publisher holds.
            (on.publisher, on.fanout) = ends();
            c.bench_function(&format!("{name}/{keys} keys"), |b| {
                b.iter_custom(|count| {
                    let mut spent = Duration::ZERO;
                    for _ in 0..count {
                        let edits = on.next_edit();
                        // A reader holds the state before, so the changed paths have to be copied.
                        let held = read.then(|| on.writer.snapshot().clone());
                        let start = std::time::Instant::now();
                        let batch = on.apply(edits);
                        drop(held);
                        spent += start.elapsed();
                        drop(batch);
                    }
                    spent
                });
            });
        }
        let mut on = Prefix::new(keys);
        let subscriber = on.subscribe(prefix("/config/"));
        view(&subscriber);
        c.bench_function(&format!("change/{keys} keys"), |b| b.iter(|| on.change()));
        c.bench_function(&format!("snapshot clone/{keys} keys"), |b| {
            b.iter(|| on.writer.snapshot().clone());
        });
        c.bench_function(&format!("first view of 100 keys/{keys} keys"), |b| {
            b.iter(|| view(&on.subscribe(prefix("/config/00003/"))));
        });
        c.bench_function(&format!("first view of all/{keys} keys"), |b| {
            b.iter(|| view(&on.subscribe(prefix("/config/0"))));
        });
    }
}

/// As the number of watched ranges grows that a change does not touch.
fn scopes(c: &mut Criterion) {
    for scopes in SCOPES {
        let mut on = Prefix::new(SOME_KEYS);
        let touched = on.subscribe(prefix("/config/00000/"));
        view(&touched);
        // Half of them are keys, half prefixes; none holds the key that changes.
        let others: Vec<_> = (1..scopes)
            .map(|index| match index % 2 {
                0 => on.subscribe(KeyRange::key(key(100 + index)).expect("is one")),
                _ => on.subscribe(prefix(&format!("/config/z{index}/"))),
            })
            .collect();
        others.iter().for_each(|other| drop(view(other)));
        c.bench_function(&format!("publish/{scopes} scopes"), |b| {
            b.iter(|| {
                on.revision += 1;
                let batch = on.apply(vec![Edit::Put(entry(3, on.revision))]);
                on.publish(batch);
            });
        });
        c.bench_function(&format!("progress/{scopes} scopes"), |b| {
            b.iter(|| {
                let mut scopes = on.publisher.scopes();
                while on.publisher.progress(&mut scopes) {}
            });
        });
    }
}

/// The cost of a returning client, by how many changes it missed.
fn log(c: &mut Criterion) {
    for missed in [1, 100, 10_000] {
        let mut on = Prefix::new(SOME_KEYS);
        let since = Revision::new(on.revision);
        for _ in 0..missed {
            on.change();
        }
        let log: ChangeLog = view(&on.subscribe(prefix("/config/"))).log;
        for (name, range) in [
            ("all", prefix("/config/")),
            ("one key", KeyRange::Key(key(3))),
        ] {
            c.bench_function(&format!("log since, {name}/{missed} changes"), |b| {
                b.iter(|| poll(log.delta_since(&range, black_box(since))).expect("is covered"));
            });
        }
        let subscriber = on.subscribe(prefix("/config/00003/"));
        let view = view(&subscriber);
        c.bench_function(&format!("digest at/{missed} changes"), |b| {
            b.iter(|| poll(subscriber.digest_at(black_box(since), &view)));
        });
    }
}

criterion_group!(benches, keys, scopes, log);
criterion_main!(benches);
