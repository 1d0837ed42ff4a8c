//! Measures the heap that slow readers of a changing state keep. It must not grow with their number.
//!
//! The process has one test, one thread, a paused clock and a counting allocator, so the result does not
//! depend on the machine.

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

/// How many begin to read, each at a state that shares nothing with the one before.
const READERS: usize = 50;

/// The state: 2 MiB.
const KEYS: usize = 32;
const VALUE: usize = 64 * 1024;

/// What may be kept for them, in bytes: four states.
const BUDGET: usize = 4 * KEYS * VALUE;

/// The limit of the change log, the lowest that a server allows, in bytes.
const LOG: usize = 1024 * 1024;

/// What a connection may have unread at both ends, and the chunks in hand, in bytes.
const CONNECTION: usize = 256 * 1024;

/// The encoded chunks that are kept for later readers of the current state, and what else there is.
const SLACK: usize = 4 * KEYS * VALUE;

/// One stream that is read only when somebody asks for it.
struct Read {
    body: RecvStream,
    buffer: Vec<u8>,
    _sender: SendRequest<Bytes>,
}

impl Read {
    async fn begin(
        engine: &Engine,
        call: &str,
        connections: &mut JoinSet<Result<(), h2::Error>>,
    ) -> Self {
        let (client, server) = duplex(64 * 1024);
        engine.serve(server);
        let (sender, connection) = h2::client::handshake(client).await.unwrap();
        connections.spawn(connection);
        let request = http::Request::post(format!("http://server/driftless.v1.Config/{call}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let mut sender = sender.ready().await.unwrap();
        let (response, mut sending) = sender.send_request(request, false).unwrap();
        // Both have their range in the same field.
        let range = KeyRange::prefix("/c/").unwrap();
        let message = v1::GetRequest {
            range: Some((&range).into()),
            client: None,
        }
        .encode_to_vec();
        let mut framed = vec![0];
        framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        framed.extend_from_slice(&message);
        sending.send_data(framed.into(), true).unwrap();
        let body = response.await.unwrap().into_body();
        Self {
            body,
            buffer: Vec::new(),
            _sender: sender,
        }
    }

    /// Reads to the end, or to this many bytes.
    async fn read(&mut self, most: usize) {
        while self.buffer.len() < most
            && let Some(data) = self.body.data().await
        {
            let data = data.expect("the connection lives");
            self.body
                .flow_control()
                .release_capacity(data.len())
                .unwrap();
            self.buffer.extend_from_slice(&data);
        }
    }
}

/// Writes every value anew, and waits until that is published.
async fn rewrite(script: &Script, metrics: &Metrics, round: usize) {
    let before = metrics.changes.get();
    let revision = Revision::new(i64::try_from(round).unwrap() + 2);
    let changes = (0..KEYS).map(|key| {
        Edit::Put(Entry {
            key: Key::new(format!("/c/{key:02}")).unwrap(),
            value: vec![b'x'; VALUE].into(),
            create_revision: Revision::new(2),
            mod_revision: revision,
            version: revision.get(),
        })
    });
    let changes = changes.collect();
    let update = Update::Changes { revision, changes };
    assert!(script.send(update).await);
    let published = async {
        while metrics.changes.get() < before + KEYS as u64 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(60), published).await.unwrap();
    // Longer than a transaction waits for the one before.
    sleep(Duration::from_secs(2)).await;
}

#[test]
fn slow_readers_of_a_changing_state_keep_no_more_than_a_budget() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let settings = Settings::builder()
            .etcd("http://127.0.0.1:2379")
            .prefix("/c/")
            .log_bytes(LOG)
            .pinned_bytes(BUDGET)
            .audit_interval(None)
            .stall_timeout(Duration::from_secs(24 * 3600));
        let (handle, requests) = SourceHandle::channel();
        let range = KeyRange::prefix("/c/").unwrap();
        let (script, source) = ScriptedSource::new(requests);
        let metrics = Metrics::new();
        let engine = Engine::start(
            &settings.build().unwrap(),
            metrics.clone(),
            [(range, source, handle)],
        );
        let empty = State {
            epoch: Epoch::of_cluster(1, ""),
            revision: Revision::new(1),
            entries: Vec::new(),
            history: History::Continues,
            asked_at: None,
        };
        assert!(script.send(Update::State(empty)).await);
        engine.ready().await;
        rewrite(&script, &metrics, 0).await;
        let before = ALLOCATOR.current_usage();
        let mut connections = JoinSet::new();
        let mut reads = Vec::new();
        for round in 0..READERS {
            let call = ["Watch", "Get"][round % 2];
            let mut read = Read::begin(&engine, call, &mut connections).await;
            // Some of it, so that it has begun.
            read.read(VALUE).await;
            reads.push(read);
            rewrite(&script, &metrics, round + 1).await;
            let pinned = metrics.pinned_bytes.get();
            assert!(pinned <= BUDGET as i64, "{pinned} bytes after {round}");
        }
        let grown = ALLOCATOR.current_usage().saturating_sub(before);
        let states = grown as f64 / (KEYS * VALUE) as f64;
        eprintln!("{grown} bytes for {READERS} readers: {states:.1} states");
        let most = BUDGET + LOG + READERS * CONNECTION + SLACK;
        assert!(grown < most, "{grown} bytes, more than {most}");
        assert_eq!(metrics.syncs_cut_off.get(), 0, "nobody was asked for more");

        // Those that began first are told to come back when they read on, and the last has it all.
        let last = reads.len() - 1;
        for (n, read) in reads.iter_mut().enumerate() {
            if n < 2 || n == last {
                read.read(usize::MAX).await;
            }
        }
        assert_eq!(metrics.syncs_cut_off.get(), 2);
        let mut bytes = &reads[0].buffer[..];
        let mut goodbye = None;
        while !bytes.is_empty() {
            let len = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
            let message = v1::WatchResponse::decode(&bytes[5..5 + len]).unwrap();
            goodbye = message.frame;
            bytes = &bytes[5 + len..];
        }
        let Some(v1::watch_response::Frame::Goodbye(goodbye)) = goodbye else {
            panic!("a watch ends with a goodbye: {goodbye:?}");
        };
        assert_eq!(goodbye.reason(), v1::goodbye::Reason::Stalled);
        let status = |trailers: Option<http::HeaderMap>| {
            trailers.unwrap()["grpc-status"]
                .to_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(status(reads[0].body.trailers().await.unwrap()), "0");
        assert_eq!(status(reads[1].body.trailers().await.unwrap()), "4");
        assert_eq!(status(reads[last].body.trailers().await.unwrap()), "0");
        assert!(reads[last].buffer.len() > KEYS * VALUE);

        drop((reads, connections));
        let gone = async {
            while metrics.pinned_bytes.get() > 0 || metrics.streams.get() > 0 {
                sleep(Duration::from_secs(1)).await;
            }
        };
        timeout(Duration::from_secs(600), gone).await.unwrap();
        engine.shut_down(Duration::from_secs(5)).await;
    });
}
