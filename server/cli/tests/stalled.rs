//! Clients that do not read: their connections live, the server does not grow, and when they read
//! again they come to the right state.
//!
//! The clients here are HTTP/2 and nothing else, so that it is certain that nothing drains them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
// What a test prints is for those who read why it failed.
#![allow(clippy::print_stderr)]

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use common::{EtcdProcess, ServerProcess};
use driftless_proto::apply::{Applier, Edit, Step};
use driftless_proto::{Entry, Epoch, Key, KeyRange, Revision, v1};
use h2::RecvStream;
use prost::Message;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How many small changes nobody reads.
const CHANGES: usize = 10_000;

/// How many of them fill the change log to its budget of 1 MiB, so that what the server still grows
/// by afterwards is not the log.
const WARM_UP: usize = 3_000;

/// How many clients do not read. A queue for each, of some 100 bytes a change, would be far more than
/// [`MAY_GROW`].
const STALLED: usize = 40;

/// What the server's memory may grow by while it serves them, in bytes: 6 MiB, for what an allocator
/// does. 40 queues of 7,000 changes would be some 30 MiB.
const MAY_GROW: usize = 6 * 1024 * 1024;

/// Distinct keys under the range.
const KEYS: usize = 10;

/// What a client allows the server to send before it reads: (a stream, the connection). HTTP/2's own
/// default, and hyper's for clients, which tonic takes over.
const WINDOWS: [(u32, u32); 2] = [(65_535, 65_535), (2 * 1024 * 1024, 5 * 1024 * 1024)];

/// One stream that is read only when [`Stalled::read_to`] is called.
struct Stalled {
    body: RecvStream,
    buffer: BytesMut,
    applier: Applier,
    entries: BTreeMap<Key, Entry>,
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
        }
    }

    /// Reads up to a revision. Returns how many messages that took.
    async fn read_to(&mut self, revision: Revision) -> usize {
        let mut messages = 0;
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
                messages += 1;
                self.apply(message);
            }
        }
        messages
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
        let step = match message.frame.unwrap() {
            Frame::Hello(hello) => return self.applier.begin(Epoch::new(hello.epoch)),
            Frame::Snapshot(snapshot) => self.applier.snapshot(snapshot),
            Frame::Diff(diff) => self.applier.diff(diff, &self.entries),
            Frame::Current(current) => self.applier.current(&current),
            Frame::Progress(progress) => self.applier.progress(&progress),
            Frame::Goodbye(goodbye) => panic!("the server wants it gone: {goodbye:?}"),
        };
        match step.expect("every frame applies") {
            Step::Replace { entries, .. } => {
                self.entries = entries
                    .into_iter()
                    .map(|entry| (entry.key.clone(), entry))
                    .collect();
            }
            Step::Edit { edits, .. } => edits.into_iter().for_each(|edit| {
                match edit {
                    Edit::Put(entry) => self.entries.insert(entry.key.clone(), entry),
                    Edit::Delete { key, .. } => self.entries.remove(&key),
                };
            }),
            Step::Incomplete | Step::Skipped | Step::Confirm { .. } => {}
        }
    }
}

/// Makes small changes as fast as etcd takes them; the revision of the last.
async fn change(etcd: &str, changes: std::ops::Range<usize>) -> Revision {
    /// How many are under way at a time.
    const AT_A_TIME: usize = 64;
    let client = etcd_client::Client::connect([etcd], None).await.unwrap();
    let mut puts = JoinSet::new();
    let mut last = Revision::NONE;
    for n in changes {
        if puts.len() == AT_A_TIME {
            last = last.max(puts.join_next().await.unwrap().unwrap());
        }
        let mut client = client.clone();
        puts.spawn(async move {
            let put = client
                .put(format!("/config/{}", n % KEYS), n.to_string(), None)
                .await
                .unwrap();
            Revision::new(put.header().unwrap().revision())
        });
    }
    puts.join_all().await.into_iter().fold(last, Revision::max)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_lose_nothing_and_cost_nothing() {
    let etcd = EtcdProcess::start();
    let server = ServerProcess::start_at(&etcd.url(), &["/config/"], 0, &["--log-bytes", "1MiB"]);
    server.wait_ready();
    let mut connections = JoinSet::new();
    let mut stalled = Vec::new();
    for n in 0..STALLED {
        stalled.push(
            Stalled::watch(server.addr(), WINDOWS[n % WINDOWS.len()], &mut connections).await,
        );
    }
    change(&etcd.url(), 0..WARM_UP).await;
    let before = resident(server.process.pid());
    let last = change(&etcd.url(), WARM_UP..CHANGES).await;
    let grown = resident(server.process.pid()).saturating_sub(before);
    eprintln!(
        "grown by {} KiB over {} changes",
        grown / 1024,
        CHANGES - WARM_UP
    );
    assert!(grown < MAY_GROW, "the server grew by {grown} bytes");

    let mut expected = None;
    for (client, windows) in stalled.iter_mut().zip(WINDOWS.into_iter().cycle()) {
        let reading = timeout(Duration::from_secs(20), client.read_to(last));
        let messages = reading
            .await
            .expect("a client that reads again comes to the newest revision");
        // What fitted into its window, and then one difference: nothing was kept for it.
        if windows == WINDOWS[0] {
            assert!(messages < CHANGES / 4, "{messages} messages");
        }
        let expected = expected.get_or_insert_with(|| client.entries.clone());
        assert_eq!(client.entries, *expected);
    }
    let expected = expected.unwrap();
    assert_eq!(expected.len(), KEYS);
    assert_eq!(
        expected.values().map(|entry| entry.version).sum::<i64>(),
        CHANGES as i64
    );
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
