//! Clients that do not read: their connections stay open, the server does not grow, and they reach the
//! right state when they read again.
//!
//! The clients are bare HTTP/2 clients, so that nothing reads their streams.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
// The output explains a failure.
#![allow(clippy::print_stderr)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use driftless_proto::apply::{Action, Applier, Edit};
use driftless_proto::{Entry, Epoch, Key, KeyRange, Revision, v1};
use driftless_test_support::{Driftless, Etcd};
use etcd_client::{Txn, TxnOp};
use h2::RecvStream;
use prost::Message;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// The program under test.
const DRIFTLESS: Driftless = Driftless::at(env!("CARGO_BIN_EXE_driftless"));

/// How many transactions nobody reads, but for one client.
const TRANSACTIONS: usize = 1_000;

/// How many small changes one makes, each of another key: 100,000 in all. etcd takes 128 at most.
const KEYS: usize = 100;

/// How many transactions come before the server's growth is measured: what it fills once, such as the
/// change log with its budget of 1 MiB, it has filled by then.
const WARM_UP: usize = TRANSACTIONS / 2;

/// How many clients do not read. A queue for each would be far more than [`MAY_GROW`].
const STALLED: usize = 40;

/// What the server's memory may grow by while it serves them, in bytes: 6 MiB, for what an allocator
/// does. 40 queues of 50,000 changes would be some 200 MiB.
const MAY_GROW: usize = 6 * 1024 * 1024;

/// What a client allows the server to send before it reads: (a stream, the connection). HTTP/2's own
/// default, and hyper's for clients, which tonic takes over.
const WINDOWS: [(u32, u32); 2] = [(65_535, 65_535), (2 * 1024 * 1024, 5 * 1024 * 1024)];

/// One stream that is read only when [`Stalled::read_to`] is called.
struct Stalled {
    body: RecvStream,
    buffer: BytesMut,
    applier: Applier,
    entries: BTreeMap<Key, Entry>,
    /// How many diffs came, of one transaction and of many.
    single: usize,
    conflated: usize,
}

impl Stalled {
    async fn watch(
        server: SocketAddr,
        windows: (u32, u32),
        tasks: &mut JoinSet<Result<(), h2::Error>>,
    ) -> Self {
        let range = KeyRange::prefix("/config/").unwrap();
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(windows.0)
            .initial_connection_window_size(windows.1);
        let socket = TcpStream::connect(server).await.unwrap();
        let (sender, connection) = builder.handshake::<_, Bytes>(socket).await.unwrap();
        tasks.spawn(connection);
        let request = http::Request::post(format!("http://{server}/driftless.v1.Config/Watch"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (response, mut body) = sender
            .ready()
            .await
            .unwrap()
            .send_request(request, false)
            .unwrap();
        let message = v1::WatchRequest {
            range: Some((&range).into()),
            ..Default::default()
        }
        .encode_to_vec();
        let mut framed = vec![0];
        framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        framed.extend_from_slice(&message);
        body.send_data(framed.into(), true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        let applier = Applier::new(range, usize::MAX);
        Self {
            body: response.into_body(),
            buffer: BytesMut::new(),
            applier,
            entries: BTreeMap::new(),
            single: 0,
            conflated: 0,
        }
    }

    /// Reads up to a revision.
    async fn read_to(&mut self, revision: Revision) {
        while self.applier.revision() < revision {
            let data = self
                .body
                .data()
                .await
                .expect("the stream goes on")
                .expect("the connection lives");
            self.body
                .flow_control()
                .release_capacity(data.len())
                .unwrap();
            self.buffer.extend_from_slice(&data);
            while let Some(message) = self.message() {
                self.apply(message);
            }
        }
    }

    fn message(&mut self) -> Option<v1::WatchResponse> {
        let len = self
            .buffer
            .get(1..5)
            .map(|mut len| len.get_u32() as usize)?;
        if self.buffer.len() < 5 + len {
            return None;
        }
        self.buffer.advance(5);
        Some(v1::WatchResponse::decode(self.buffer.split_to(len)).unwrap())
    }

    fn apply(&mut self, message: v1::WatchResponse) {
        use v1::watch_response::Frame;
        let action = match message.frame.unwrap() {
            Frame::Hello(hello) => return self.applier.begin(Epoch::new(hello.epoch)),
            Frame::Snapshot(snapshot) => self.applier.snapshot(snapshot),
            Frame::Diff(diff) => {
                // Of several chunks, the last counts.
                let last = usize::from(!diff.more);
                match diff.conflated {
                    true => self.conflated += last,
                    false => self.single += last,
                }
                self.applier.diff(diff, &self.entries)
            }
            Frame::Current(current) => self.applier.current(&current),
            Frame::Progress(progress) => self.applier.progress(&progress),
            Frame::Goodbye(goodbye) => panic!("the server wants it gone: {goodbye:?}"),
        };
        match action.expect("every frame applies") {
            Action::Replace { entries, .. } => {
                self.entries = entries
                    .into_iter()
                    .map(|entry| (entry.key.clone(), entry))
                    .collect();
            }
            Action::Edit { edits, .. } => edits.into_iter().for_each(|edit| {
                match edit {
                    Edit::Put(entry) => self.entries.insert(entry.key.clone(), entry),
                    Edit::Delete { key, .. } => self.entries.remove(&key),
                };
            }),
            Action::Incomplete | Action::Skipped | Action::Confirm { .. } => {}
        }
    }
}

/// Changes every key in one transaction; its revision.
async fn change(etcd: &mut etcd_client::Client, round: usize) -> Revision {
    let puts = (0..KEYS)
        .map(|key| TxnOp::put(format!("/config/{key:02}"), round.to_string(), None))
        .collect::<Vec<_>>();
    let done = etcd.txn(Txn::new().and_then(puts)).await.unwrap();
    Revision::new(done.header().unwrap().revision())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_consumers_lose_nothing_and_delay_nobody() {
    let etcd = Etcd::started_blocking();
    let flags = ["--log-bytes", "1MiB", "--stall-timeout", "1h"];
    let server = DRIFTLESS.serve_at(&etcd.url(), &["/config/"], 0, &flags);
    server.wait_ready();
    let mut connections = JoinSet::new();
    let mut stalled = Vec::new();
    for n in 0..STALLED {
        stalled.push(
            Stalled::watch(server.addr(), WINDOWS[n % WINDOWS.len()], &mut connections).await,
        );
    }
    let mut reader = Stalled::watch(server.addr(), WINDOWS[1], &mut connections).await;
    reader.read_to(Revision::new(1)).await;

    let mut writer = etcd_client::Client::connect([etcd.url()], None)
        .await
        .unwrap();
    let (mut last, mut before) = (Revision::NONE, 0);
    for round in 0..TRANSACTIONS {
        if round == WARM_UP {
            before = resident(server.process.pid());
        }
        last = change(&mut writer, round).await;
        timeout(Duration::from_secs(20), reader.read_to(last))
            .await
            .expect("whoever reads is not held up");
    }
    let grown = resident(server.process.pid()).saturating_sub(before);
    eprintln!(
        "grown by {} KiB over {} changes",
        grown / 1024,
        (TRANSACTIONS - WARM_UP) * KEYS
    );
    assert!(grown < MAY_GROW, "the server grew by {grown} bytes");
    assert_eq!((reader.single, reader.conflated), (TRANSACTIONS, 0));

    for (client, windows) in stalled.iter_mut().zip(WINDOWS.into_iter().cycle()) {
        timeout(Duration::from_secs(20), client.read_to(last))
            .await
            .expect("a client that reads again comes to the newest revision");
        // What fitted into its window and two segments, and then one difference: nothing was kept
        // for it. A diff of a hundred keys has more than 25 bytes for each.
        assert_eq!(client.conflated, 1);
        let lay = windows.0 as usize + 2 * 64 * 1024;
        assert!(client.single <= lay / (25 * KEYS), "{}", client.single);
        assert_eq!(client.entries, reader.entries);
    }
    assert_eq!(reader.entries.len(), KEYS);
    let versions = reader.entries.values().map(|entry| entry.version);
    assert_eq!(versions.sum::<i64>(), (TRANSACTIONS * KEYS) as i64);
    assert!(connections.try_join_next().is_none(), "no connection ended");
}

/// The resident memory of a process, in bytes.
fn resident(pid: i32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim()
        .trim_end_matches(" kB")
        .parse::<usize>()
        .unwrap()
        * 1024
}
