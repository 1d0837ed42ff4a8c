//! Measures the heap that clients cost which do not read. It must not grow with the number of changes.
//!
//! The process has one test, one thread, a paused clock and a counting allocator, so the result does not
//! depend on the machine. Both ends are in the process, so unread bytes at the client's end count too.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
// The output explains a failure.
#![allow(clippy::print_stderr)]

use std::time::Duration;

use bytes::Bytes;
use driftless_proto::apply::Edit;
use driftless_proto::{Entry, Epoch, Key, KeyRange, Revision, v1};
use driftless_server::metrics::Metrics;
use driftless_server::source::scripted::{Script, ScriptedSource};
use driftless_server::source::{History, SourceHandle, State, Update};
use driftless_server::{Engine, Settings};
use h2::RecvStream;
use h2::client::SendRequest;
use peak_alloc::PeakAlloc;
use prost::Message;
use tokio::io::duplex;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// How many clients do not read.
const STALLED: usize = 20;

/// The heap is measured after so many changes: once all buffers of a connection are full, and much later.
/// `make long-tests` goes on for longer.
const FEW: usize = 1_000;
const MANY: usize = 20_000;
const VERY_MANY: usize = 100_000;

fn is_long() -> bool {
    std::env::var_os("DRIFTLESS_LONG").is_some()
}

/// Changes made at a time: fewer than a stream that is behind receives one by one.
const BURST: usize = 100;

const KEYS: usize = 10;

/// The length of a value in bytes. [`FEW`] of them are far more than a connection buffers.
const VALUE: usize = 500;

/// The length of a value that is small beside the other costs of a change, in bytes.
const TINY: usize = 4;

/// The limit of the change log, by its own estimate, in bytes: the lowest that a server allows.
const LOG: usize = 1024 * 1024;

/// A larger limit, to measure the difference.
const LARGE_LOG: usize = 4 * LOG;

/// How much the server may send before the client reads, in bytes: HTTP/2's default.
const WINDOW: usize = 65_535;

/// What a stream holds: the segment that is being sent, and the next one.
const SEGMENTS: usize = 2 * 64 * 1024;

/// The capacity of the pipe between the two ends, in bytes.
const PIPE: usize = 64 * 1024;

/// What the rest of a connection may take at both ends: HTTP/2's state and buffers, the tasks, and the
/// allocator's rounding.
const SLACK: usize = 16 * 1024;

/// What a client may cost more after many changes than after [`FEW`].
const MAY_GROW: usize = 16 * 1024;

/// A server of `/c/`, and the script of its source.
struct World {
    engine: Engine,
    script: Script,
    metrics: Metrics,
    revision: Revision,
    changes: usize,
    /// How long the values are that are put, in bytes.
    value: usize,
    /// The clients' ends of the connections.
    connections: JoinSet<Result<(), h2::Error>>,
}

/// A stream that stays unread until someone reads from it.
struct Watch {
    body: RecvStream,
    _sender: SendRequest<Bytes>,
}

impl World {
    async fn start(value: usize, log: usize) -> Self {
        let prefix = KeyRange::prefix("/c/").unwrap();
        let settings = Settings::builder()
            .etcd("http://127.0.0.1:2379")
            .prefix("/c/")
            .log_bytes(log)
            .audit_interval(None)
            // Slow consumers are not disconnected.
            .stall_timeout(Duration::from_secs(24 * 3600));
        let (handle, requests) = SourceHandle::channel();
        let (script, source) = ScriptedSource::new(requests);
        let metrics = Metrics::new();
        let engine = Engine::start(
            &settings.build().unwrap(),
            metrics.clone(),
            [(prefix, source, handle)],
        );
        let revision = Revision::new(1);
        let empty = State {
            epoch: Epoch::of_cluster(1, ""),
            revision,
            entries: Vec::new(),
            history: History::Continues,
            asked_at: None,
        };
        assert!(script.send(Update::State(empty)).await);
        engine.ready().await;
        Self {
            engine,
            script,
            metrics,
            revision,
            changes: 0,
            value,
            connections: JoinSet::new(),
        }
    }

    /// A bare HTTP/2 client, so that nothing reads the stream.
    async fn watch(&mut self) -> Watch {
        let (client, server) = duplex(PIPE);
        self.engine.serve(server);
        let (sender, connection) = h2::client::handshake(client).await.unwrap();
        self.connections.spawn(connection);
        let request = http::Request::post("http://server/driftless.v1.Config/Watch")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let mut sender = sender.ready().await.unwrap();
        let (response, mut sending) = sender.send_request(request, false).unwrap();
        let range = KeyRange::prefix("/c/").unwrap();
        let message = v1::WatchRequest {
            range: Some((&range).into()),
            ..Default::default()
        }
        .encode_to_vec();
        let mut framed = vec![0];
        framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        framed.extend_from_slice(&message);
        sending.send_data(framed.into(), true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        Watch {
            body: response.into_body(),
            _sender: sender,
        }
    }

    /// Puts values until there were so many changes.
    async fn change_to(&mut self, changes: usize) {
        while self.changes < changes {
            for _ in 0..BURST {
                self.put().await;
            }
            self.settle().await;
        }
    }

    async fn put(&mut self) {
        self.revision = self.revision.next();
        self.changes += 1;
        let round = self.changes / KEYS;
        let put = Edit::Put(Entry {
            key: Key::new(format!("/c/{}", self.changes % KEYS)).unwrap(),
            value: vec![b'x'; self.value].into(),
            create_revision: Revision::new(1),
            mod_revision: self.revision,
            version: i64::try_from(round).unwrap() + 1,
        });
        let update = Update::Changes {
            revision: self.revision,
            changes: vec![put],
        };
        assert!(self.script.send(update).await);
    }

    /// Puts a new key and deletes it.
    async fn pass(&mut self, number: usize) {
        let key = Key::new(format!("/c/passing/{number:020}")).unwrap();
        self.revision = self.revision.next();
        let put = Edit::Put(Entry {
            key: key.clone(),
            value: vec![b'x'; self.value].into(),
            create_revision: self.revision,
            mod_revision: self.revision,
            version: 1,
        });
        let update = Update::Changes {
            revision: self.revision,
            changes: vec![put],
        };
        assert!(self.script.send(update).await);
        self.revision = self.revision.next();
        let delete = Edit::Delete {
            key,
            mod_revision: self.revision,
        };
        let update = Update::Changes {
            revision: self.revision,
            changes: vec![delete],
        };
        assert!(self.script.send(update).await);
        self.changes += 2;
    }

    /// Waits until the server and the client that reads have everything: the clock moves only when no
    /// task can run.
    async fn settle(&self) {
        let heard = async {
            while self.metrics.changes.get() < self.changes as u64 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(60), heard).await.unwrap();
        // Longer than changes are held back.
        sleep(Duration::from_millis(50)).await;
    }
}

/// The bytes on the heap after [`FEW`] and after `many` changes, with `stalled` clients that do not read
/// and one that does.
fn measure(stalled: usize, many: usize, value: usize, log: usize) -> [usize; 2] {
    let before = ALLOCATOR.current_usage();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let measured = runtime.block_on(async {
        let mut world = World::start(value, log).await;
        let mut reading = world.watch().await;
        let mut reader = JoinSet::new();
        reader.spawn(async move {
            while let Some(data) = reading.body.data().await {
                let data = data.expect("the connection lives");
                let flow = reading.body.flow_control();
                flow.release_capacity(data.len()).unwrap();
            }
        });
        let mut unread = Vec::new();
        for _ in 0..stalled {
            unread.push(world.watch().await);
        }
        let mut measured = [0; 2];
        for (measured, changes) in measured.iter_mut().zip([FEW, many]) {
            world.change_to(changes).await;
            // Caches for further clients expire.
            sleep(Duration::from_secs(60)).await;
            *measured = ALLOCATOR.current_usage() - before;
        }
        let metrics = &world.metrics;
        let (streams, encoded) = (metrics.streams.get(), metrics.frames_encoded.get());
        assert_eq!(streams, 1 + stalled as i64);
        assert!(encoded >= many as u64 / 2, "{encoded}: one reads");
        assert_eq!(metrics.slow_consumers_closed.get(), 0);
        assert!(reader.try_join_next().is_none() && world.connections.try_join_next().is_none());
        drop(unread);
        world.engine.shut_down(Duration::from_secs(5)).await;
        measured
    });
    drop(runtime);
    measured
}

#[test]
fn slow_consumer_costs_a_connection_and_no_queue() {
    // Allocates what is made once for the process.
    measure(1, FEW, VALUE, LOG);
    let changes = if is_long() { VERY_MANY } else { MANY };
    let none = measure(0, changes, VALUE, LOG);
    let some = measure(STALLED, changes, VALUE, LOG);
    let each = |at: usize| some[at].saturating_sub(none[at]) / STALLED;
    let (few, many) = (each(0), each(1));
    eprintln!(
        "{few} bytes each after {FEW} changes, {many} after {changes}; without them {none:?} in all"
    );
    assert!(many <= few + MAY_GROW, "{few} bytes became {many}");
    let bound = WINDOW + SEGMENTS + PIPE + SLACK;
    assert!(many <= bound, "{many} bytes, more than {bound}");
    // Unread bytes are counted, so it is not 0.
    assert!(many >= WINDOW, "{many}");
    let grown = none[1].saturating_sub(none[0]);
    assert!(grown <= LOG, "the log's budget, not {grown}");
    the_log_holds_what_it_says();
    a_deleted_key_costs_what_is_said();
}

/// With tiny changes, nearly all of the log is overhead. In the same test, because another would run at
/// the same time and be counted.
fn the_log_holds_what_it_says() {
    // Enough to fill the larger log.
    let held = |log| measure(0, MANY, TINY, log)[1];
    let (small, large) = (held(LOG), held(LARGE_LOG));
    let (held, said) = (large.saturating_sub(small), LARGE_LOG - LOG);
    eprintln!("{said} bytes of log, by its own estimate, are {held}");
    assert!((said / 2..=said).contains(&held), "{held} of {said}");
}

/// How many deleted keys are remembered of a prefix, and their cost according to `store/tombstones.rs`.
const TOMBSTONES: usize = 65_536;
const TOMBSTONE: usize = 320;

/// The number of remembered deletions is limited.
fn a_deleted_key_costs_what_is_said() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let (few, full, over) = runtime.block_on(async {
        let mut world = World::start(TINY, LOG).await;
        let mut passed = 0;
        let mut pass_to = async |keys| {
            while passed < keys {
                world.pass(passed).await;
                passed += 1;
            }
            world.settle().await;
            sleep(Duration::from_secs(60)).await;
            ALLOCATOR.current_usage()
        };
        // The log is full then, too.
        let few = pass_to(TOMBSTONES / 4).await;
        let full = pass_to(TOMBSTONES).await;
        // Trees from which the oldest are taken are less dense.
        let half_over = pass_to(TOMBSTONES * 3 / 2).await;
        // In a long run, a hash table would have doubled: it marks the places of what is removed.
        let over = pass_to(TOMBSTONES * if is_long() { 11 } else { 2 }).await;
        world.engine.shut_down(Duration::from_secs(5)).await;
        (few, full, [half_over, over])
    });
    let each = full.saturating_sub(few) / (TOMBSTONES - TOMBSTONES / 4);
    eprintln!("{each} bytes a deleted key; {few}, {full}, {over:?} in all");
    assert!((TOMBSTONE / 2..=TOMBSTONE).contains(&each), "{each}");
    assert!(over[1] <= over[0] + MAY_GROW, "{over:?}");
    assert!(over[1] <= full + full / 4, "{full} became {over:?}");
}
