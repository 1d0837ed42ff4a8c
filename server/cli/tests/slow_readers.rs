//! Clients that read a large state slowly: they hold up nobody's cold start.
//!
//! The slow ones are bare HTTP/2 clients that take 64 KiB at a time.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
// The output explains a failure.
#![allow(clippy::print_stderr)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use driftless_client::Client;
use driftless_proto::{KeyRange, v1};
use driftless_test_support::{Driftless, Etcd, eventually, in_time};
use prost::Message;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// The program under test.
const DRIFTLESS: Driftless = Driftless::at(env!("CARGO_BIN_EXE_driftless"));

/// The state: 30 MiB in values of a piece each.
const KEYS: usize = 480;
const PIECE: usize = 64 * 1024;

/// More than have permits at first.
const SLOW: usize = 18;

/// A piece that often is 80 KB/s, and never a second without one.
const EVERY: Duration = Duration::from_millis(800);

/// Pieces that a slow reader has taken before others come: what lay in buffers, and a few that did not.
const TAKEN: usize = 6;

/// How many read the state beside them, one after the other.
const READS: usize = 3;

fn range() -> KeyRange {
    KeyRange::prefix("/config/").unwrap()
}

/// Reads the range slowly, by the call of this name, and counts its pieces.
async fn read_slowly(server: SocketAddr, call: &str, taken: Arc<AtomicUsize>) {
    let socket = TcpStream::connect(server).await.unwrap();
    let (sender, connection) = h2::client::handshake(socket).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let request = http::Request::post(format!("http://{server}/driftless.v1.Config/{call}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let mut sender = sender.ready().await.unwrap();
    let (response, mut sending) = sender.send_request(request, false).unwrap();
    // Both have their range in the same field.
    let message = v1::GetRequest {
        range: Some((&range()).into()),
        client: None,
    }
    .encode_to_vec();
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend_from_slice(&message);
    sending.send_data(Bytes::from(framed), true).unwrap();
    let mut body = response.await.unwrap().into_body();
    let mut unreleased = 0;
    while let Some(data) = body.data().await {
        let Ok(data) = data else { return };
        unreleased += data.len();
        if unreleased >= PIECE - 1 {
            sleep(EVERY).await;
            body.flow_control().release_capacity(unreleased).unwrap();
            unreleased = 0;
            taken.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_hold_up_no_cold_start() {
    let etcd = Etcd::started_blocking();
    let mut writer = etcd.client().await;
    for key in 0..KEYS {
        let value = vec![u8::try_from(key % 250).unwrap(); PIECE];
        writer
            .put(format!("/config/{key:03}"), value, None)
            .await
            .unwrap();
    }
    let server = DRIFTLESS.serve_at(&etcd.url(), &["/config/"], 0, &["--log-bytes", "1MiB"]);
    server.wait_ready();
    let mut slow = JoinSet::new();
    let taken: Vec<Arc<AtomicUsize>> = (0..SLOW).map(|_| Arc::default()).collect();
    for (n, taken) in taken.iter().enumerate() {
        let (call, taken) = (["Watch", "Get"][n % 2], Arc::clone(taken));
        slow.spawn(read_slowly(server.addr(), call, taken));
    }
    // Some may still wait for a permit, where that goes by the order of arrival.
    let have_begun = || {
        let taken = taken.iter().map(|taken| taken.load(Ordering::Relaxed));
        taken.filter(|taken| *taken >= TAKEN).count() >= SLOW / 3
    };
    eventually("the slow ones have begun", async || have_begun()).await;

    for _ in 0..READS {
        let client = Client::connect(server.url()).unwrap();
        let start = Instant::now();
        let read = client.get(range()).await;
        eprintln!("a get took {:?}", start.elapsed());
        assert_eq!(read.unwrap().len(), KEYS);
    }
    let client = Client::connect(server.url()).unwrap();
    let start = Instant::now();
    let watcher = in_time("a watch is in sync", client.entries(range()).into_future()).await;
    eprintln!("a watch was in sync after {:?}", start.elapsed());
    assert_eq!(watcher.unwrap().load().len(), KEYS);
    assert!(slow.try_join_next().is_none(), "the slow ones read on");
}
