//! A random campaign: peers write random frames to a server's process, in any order, of any size, while
//! one client watches a key. The server's memory stays under a ceiling, the client misses no value, and
//! nothing is left of the peers when they are gone.
//!
//! Five seconds here; `make campaign` takes ten minutes. Each peer's frames follow from the seed that is
//! printed, and `DRIFTLESS_SEED` repeats them; how they interleave is left to the machine.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
// The output explains a failure.
#![allow(clippy::print_stderr)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use driftless_client::Client;
use driftless_proto::{KeyRange, v1};
use driftless_test_support::frames::{self, Frame, FrameWriter, PREFACE, settings, types};
use driftless_test_support::{Driftless, Etcd, eventually, http, in_time, proc};
use prost::Message;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// The program under test.
const DRIFTLESS: Driftless = Driftless::at(env!("CARGO_BIN_EXE_driftless"));

/// How long it takes, unless `DRIFTLESS_MINUTES` says it.
const SHORT: Duration = Duration::from_secs(5);

/// How many peers there are at a time.
const PEERS: usize = 16;

/// What one connection may cost the server, in KiB.
const CONNECTION: f64 = 4.0 * 1024.0;

/// What the server may take beside that, in KiB: what an allocator keeps, and the change log.
const BESIDE: f64 = 48.0 * 1024.0;

/// How many bursts of frames a peer writes at most before it leaves.
const BURSTS: usize = 200;

/// Bytes of the values under the prefix: enough for snapshots of many chunks.
const VALUE: usize = 64 * 1024;
const VALUES: usize = 64;

/// Every path that is served, and some that are not.
const PATHS: [&str; 8] = [
    "/driftless.v1.Config/Watch",
    "/driftless.v1.Config/Get",
    "/driftless.v1.Config/Report",
    "/driftless.v1.Config/None",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/",
];

/// What goes on beside the peers, counted.
#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    refused: AtomicU64,
    frames: AtomicU64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_frames_cost_no_more_than_their_bound() {
    let minutes = std::env::var("DRIFTLESS_MINUTES").ok();
    let minutes = minutes.map(|minutes| minutes.parse::<f64>().unwrap());
    let length = minutes.map_or(SHORT, |minutes| Duration::from_secs_f64(minutes * 60.0));
    let seed = std::env::var("DRIFTLESS_SEED").ok();
    let seed = seed.map_or_else(rand::random, |seed| seed.parse::<u64>().unwrap());
    eprintln!("DRIFTLESS_SEED={seed}, {length:?}");

    let etcd = Etcd::started().await;
    let mut keys = etcd.client().await;
    for n in 0..VALUES {
        keys.put(format!("/c/large/{n}"), vec![b'x'; VALUE], None)
            .await
            .unwrap();
    }
    keys.put("/c/count", "0", None).await.unwrap();
    let server = tokio::task::block_in_place(|| DRIFTLESS.serve(&etcd, &["/c/"]));
    let pid = server.process.pid();
    let client = Client::connect(server.url()).unwrap();
    let mut watcher = client.watch::<u64>("/c/count").await.unwrap();
    let large = || client.get(KeyRange::prefix("/c/large/").unwrap());
    assert_eq!(large().await.unwrap().len(), VALUES);

    let counts = Arc::new(Counts::default());
    let until = Instant::now() + length;
    let before = proc::usage(pid).unwrap().rss_kib;
    proc::forget_peak(pid).unwrap();
    let mut peers = JoinSet::new();
    for n in 0..PEERS {
        let rng = StdRng::seed_from_u64(seed.wrapping_add(n as u64));
        peers.spawn(attack(server.addr(), rng, until, Arc::clone(&counts)));
    }
    let mut slowest = Duration::ZERO;
    let mut count = 0_u64;
    while Instant::now() < until {
        count += 1;
        let put = Instant::now();
        keys.put("/c/count", count.to_string(), None).await.unwrap();
        let arrives = async {
            while *watcher.load() < count {
                watcher.changed().await.unwrap();
            }
        };
        in_time("the client sees the next value", arrives).await;
        slowest = slowest.max(put.elapsed());
        sleep(Duration::from_millis(20)).await;
    }
    while let Some(ended) = peers.join_next().await {
        ended.unwrap();
    }
    let peak = proc::usage(pid).unwrap().peak_kib;
    let [connections, refused, sent] =
        [&counts.connections, &counts.refused, &counts.frames].map(|it| it.load(Ordering::Relaxed));
    eprintln!(
        "{connections} connections ({refused} closed by the server), {sent} frames; {count} values \
         arrived, the slowest after {slowest:?}; {before} KiB resident before, {peak} at most"
    );
    assert!(connections > 0 && sent > 0, "nobody attacked");
    let ceiling = before + PEERS as f64 * CONNECTION + BESIDE;
    assert!(peak < ceiling, "{peak} KiB are more than {ceiling}");

    // The peers are gone, and what they began is.
    let page = async || {
        let page = http::get_async(server.admin(), "/metrics").await;
        page.filter(|(status, _)| *status == 200).unwrap().1
    };
    eventually("only the client is connected", async || {
        let page = page().await;
        let is = |name, value| http::metric(&page, name) == Some(value);
        is("driftless_connections", 1.0)
            && is("driftless_streams", 1.0)
            && is("driftless_syncs_in_progress", 0.0)
    })
    .await;
    assert_eq!(large().await.unwrap().len(), VALUES);
    drop(watcher);
    tokio::task::block_in_place(|| server.stop());
}

/// One peer after another, until the time is over.
async fn attack(server: SocketAddr, mut rng: StdRng, until: Instant, counts: Arc<Counts>) {
    while Instant::now() < until {
        counts.connections.fetch_add(1, Ordering::Relaxed);
        let peer = Peer {
            rng: StdRng::from_rng(&mut rng),
            is_wild: false,
            open: Vec::new(),
            next_stream: 1,
            counts: Arc::clone(&counts),
        };
        if timeout(until - Instant::now(), peer.run(server))
            .await
            .is_ok_and(|kept| !kept)
        {
            counts.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
    sleep_until(until).await;
}

/// One hostile connection.
struct Peer {
    rng: StdRng,
    /// Whether it breaks HTTP/2's rules, which ends its connection soon. The others keep them, and are
    /// hostile in what they ask for, and when.
    is_wild: bool,
    /// The calls that it has not ended.
    open: Vec<u32>,
    next_stream: u32,
    counts: Arc<Counts>,
}

impl Peer {
    /// Returns whether the server left the connection open.
    async fn run(mut self, server: SocketAddr) -> bool {
        let Ok(io) = TcpStream::connect(server).await else {
            return false;
        };
        self.is_wild = self.rng.random_ratio(1, 4);
        let (mut read, write) = io.into_split();
        let mut writer = FrameWriter::new(write);
        // Some read what comes, some a little of it, and some nothing.
        let appetite = *[0, 1, 100_000].choose(&mut self.rng).unwrap();
        let reading = async move {
            let mut buffer = vec![0; 16 * 1024];
            for _ in 0..appetite {
                if !matches!(read.read(&mut buffer).await, Ok(1..)) {
                    return;
                }
            }
            std::future::pending().await
        };
        let writing = async {
            self.greet(&mut writer).await?;
            for _ in 0..self.rng.random_range(1..=BURSTS) {
                let burst: Vec<Frame> = (0..self.rng.random_range(1..20))
                    .map(|_| self.frame())
                    .collect();
                self.counts
                    .frames
                    .fetch_add(burst.len() as u64, Ordering::Relaxed);
                let mut bytes: Vec<u8> = burst.iter().flat_map(Frame::to_bytes).collect();
                if self.is_wild && self.rng.random_ratio(1, 50) {
                    // Cut off in the middle of a frame, or garbage.
                    bytes.truncate(self.rng.random_range(0..=bytes.len()));
                }
                writer.write_bytes(&bytes).await?;
                sleep(Duration::from_millis(self.rng.random_range(0..5))).await;
            }
            // And then silence.
            sleep(Duration::from_millis(self.rng.random_range(0..2_000))).await;
            Ok::<_, std::io::Error>(())
        };
        tokio::select! {
            written = writing => written.is_ok(),
            () = reading => false,
        }
    }

    /// Most begin as a client does.
    async fn greet(
        &mut self,
        writer: &mut FrameWriter<impl AsyncWrite + Unpin>,
    ) -> std::io::Result<()> {
        if self.is_wild && self.rng.random_ratio(1, 10) {
            let mut garbage = vec![0; self.rng.random_range(1..2_000)];
            self.rng.fill_bytes(&mut garbage);
            return writer.write_bytes(&garbage).await;
        }
        writer.write_bytes(PREFACE).await?;
        let settings = self.settings();
        writer.write(&[settings, Frame::settings_ack()]).await
    }

    fn settings(&mut self) -> Frame {
        let some = [
            (settings::INITIAL_WINDOW_SIZE, self.size()),
            (settings::HEADER_TABLE_SIZE, self.size()),
            (settings::MAX_FRAME_SIZE, 16_384 + self.size() % 100_000),
            (settings::MAX_HEADER_LIST_SIZE, self.size()),
            (settings::MAX_CONCURRENT_STREAMS, self.size()),
        ];
        let count = self.rng.random_range(0..=2);
        let some: Vec<_> = some
            .choose_multiple(&mut self.rng, count)
            .copied()
            .collect();
        Frame::settings(&some)
    }

    /// Small, or a limit, or anything.
    fn size(&mut self) -> u32 {
        match self.rng.random_range(0..4) {
            0 => self.rng.random_range(0..10),
            1 => 65_535,
            2 => (1 << 31) - 1,
            _ => self.rng.random_range(0..1 << 31),
        }
    }

    /// An open call; any number, for a wild peer.
    fn stream(&mut self) -> Option<u32> {
        if self.is_wild && self.rng.random_ratio(1, 20) {
            return Some(self.rng.random_range(0..1 << 31));
        }
        self.open.choose(&mut self.rng).copied()
    }

    fn frame(&mut self) -> Frame {
        let Some(stream) = self.stream() else {
            return self.call();
        };
        match self.rng.random_range(0..1000) {
            0..300 => self.call(),
            300..650 => {
                let data = self.data();
                let frame = Frame::data(stream, data);
                if self.rng.random() {
                    self.open.retain(|open| *open != stream);
                    frame.end()
                } else {
                    frame
                }
            }
            650..800 => {
                self.open.retain(|open| *open != stream);
                Frame::rst_stream(stream, self.rng.random_range(0..14))
            }
            800..970 => {
                let stream = if self.rng.random() { 0 } else { stream };
                let by = self.size().max(1);
                Frame::window_update(stream, if self.is_wild { by } else { by % 10_000 + 1 })
            }
            970..973 => self.settings(),
            973..980 => Frame::ping(self.rng.random()),
            980..983 => Frame::ping_ack(self.rng.random()),
            983..990 => Frame::new(types::PRIORITY, stream, vec![0, 0, 0, 0, 16]),
            _ if !self.is_wild => self.call(),
            990..993 => Frame::new(types::CONTINUATION, stream, self.bytes(1_000)),
            993 => Frame::new(types::GOAWAY, 0, vec![0; 8]),
            _ => Frame {
                kind: self.rng.random(),
                flags: self.rng.random(),
                stream,
                payload: self.bytes(300),
            },
        }
    }

    /// A new call, whole or in part.
    fn call(&mut self) -> Frame {
        let stream = self.next_stream;
        self.next_stream = self.next_stream.wrapping_add(2).max(1);
        let path = *PATHS.choose(&mut self.rng).unwrap();
        if self.rng.random_ratio(1, 10) {
            let long = "x".repeat(self.rng.random_range(0..15_000));
            return Frame::headers(
                stream,
                &[(":method", "POST"), (":path", path), ("x", &long)],
            );
        }
        let call = Frame::call(stream, path);
        if self.rng.random_ratio(1, 10) {
            call.end()
        } else {
            call
        }
    }

    /// A message, good or bad.
    fn data(&mut self) -> Vec<u8> {
        let bytes = match self.rng.random_range(0..5) {
            0 => {
                let range = self.range();
                v1::WatchRequest {
                    range,
                    have: self.have(),
                    ..Default::default()
                }
                .encode_to_vec()
            }
            1 => v1::GetRequest {
                range: self.range(),
                ..Default::default()
            }
            .encode_to_vec(),
            2 => self.report().encode_to_vec(),
            3 => return self.bytes(16_000),
            _ => Vec::new(),
        };
        let announced = match self.rng.random_range(0..6) {
            0 => self.size() as usize,
            _ => bytes.len(),
        };
        let mut message = frames::message(announced, &bytes);
        message.truncate(16_384);
        message
    }

    fn range(&mut self) -> Option<v1::Range> {
        let range = match self.rng.random_range(0..4) {
            0 => KeyRange::prefix("/c/large/"),
            1 => KeyRange::prefix(format!("/c/{}", self.rng.random_range(0..100))),
            2 => KeyRange::prefix("/not/served/"),
            _ => KeyRange::key("/c/count"),
        };
        Some((&range.unwrap()).into())
    }

    /// A resume point that was never handed out.
    fn have(&mut self) -> Option<v1::Have> {
        self.rng.random::<bool>().then(|| v1::Have {
            epoch: Bytes::from(self.bytes(40)),
            revision: self.rng.random_range(-5..200),
            digest: Bytes::from(vec![self.rng.random(); 16]),
            ..Default::default()
        })
    }

    fn report(&mut self) -> v1::ReportRequest {
        let watches = (0..self.rng.random_range(0..300)).map(|_| v1::WatchReport {
            watch_id: Bytes::from(vec![7; *[0, 16, 40].choose(&mut self.rng).unwrap()]),
            ..Default::default()
        });
        v1::ReportRequest {
            watches: watches.collect(),
            ..Default::default()
        }
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.rng.random_range(0..most)];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }
}
