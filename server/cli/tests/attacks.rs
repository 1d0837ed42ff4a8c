//! What a stranger can make a server hold. Each attack is one that grew a server to hundreds of
//! megabytes, from one connection and without reading anything.
//!
//! The attackers write bare HTTP/2 frames, as many as the server's windows allow. Beside them a client
//! watches, and sees each change.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
// The figures are for the table in SECURITY.md.
#![allow(clippy::print_stderr)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use driftless_client::{Client, Watcher};
use driftless_test_support::frames::{
    Frame, FrameWriter, connect, flags, message, settings, types,
};
use driftless_test_support::{Driftless, Etcd, ServerProcess, in_time, proc};
use prost::encoding::encode_varint;
use tokio::io::WriteHalf;
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// The program under test.
const DRIFTLESS: Driftless = Driftless::at(env!("CARGO_BIN_EXE_driftless"));

/// How many connections attack at a time. Several, so that what the allocator rounds up is little beside
/// what they may cost.
const CONNECTIONS: usize = 4;

/// What one connection may cost, in KiB: 4 MiB.
const MAY_COST_KIB: f64 = 4.0 * 1024.0;

/// How many changes the client beside an attack sees.
const CHANGES: u32 = 20;

const MEGABYTE: usize = 1024 * 1024;

const HEALTH: &str = "/grpc.health.v1.Health/Check";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const WATCH: &str = "/driftless.v1.Config/Watch";
const REPORT: &str = "/driftless.v1.Config/Report";

/// What one connection sends in an attack: calls, one after the other.
#[derive(Clone, Copy, Debug)]
enum Attack {
    /// Prefixes that announce 4 MiB, and the first bytes of it.
    Announcements,
    /// Calls of health and reflection with half of a message.
    HalfMessages,
    /// Reports with a large unknown id, whose answers are not read.
    UnreadLargeAnswers,
    /// Reports with as many unknown ids as one may have, whose answers are not read.
    UnreadAnswers,
    /// Reports of a megabyte of empty entries.
    EmptyEntries,
    /// As many watches as one connection may have, each with the longest range, another token and other
    /// labels, of which nothing is read.
    Watches,
}

const ATTACKS: [Attack; 6] = [
    Attack::Announcements,
    Attack::HalfMessages,
    Attack::UnreadLargeAnswers,
    Attack::UnreadAnswers,
    Attack::EmptyEntries,
    Attack::Watches,
];

impl Attack {
    /// How many calls a connection makes. What a server keeps of them is far more than it may.
    const fn calls(self) -> u32 {
        match self {
            Self::Announcements | Self::Watches => 1000,
            Self::UnreadAnswers => 400,
            Self::HalfMessages | Self::UnreadLargeAnswers => 50,
            Self::EmptyEntries => 10,
        }
    }

    /// The path of the call with this number, its body, and whether that ends the request.
    fn call(self, number: u32) -> (&'static str, Vec<u8>, bool) {
        match self {
            Self::Announcements => (HEALTH, message(4 * MEGABYTE, &[0; 4096]), false),
            Self::HalfMessages => {
                let path = if number.is_multiple_of(2) {
                    HEALTH
                } else {
                    REFLECTION
                };
                (path, message(4 * MEGABYTE, &vec![0; 900_000]), false)
            }
            Self::UnreadLargeAnswers => {
                // A watch with an id and nothing else.
                let watch = bytes_field(1, &vec![7; 1_000_000]);
                let report = bytes_field(2, &watch);
                (REPORT, message(report.len(), &report), true)
            }
            Self::UnreadAnswers => {
                let report = bytes_field(2, &bytes_field(1, &[7; 16])).repeat(1024);
                (REPORT, message(report.len(), &report), true)
            }
            Self::EmptyEntries => {
                let report = [0x12, 0].repeat(500_000);
                (REPORT, message(report.len(), &report), true)
            }
            Self::Watches => {
                let prefix = format!("/config/{number:04}/{}", "k".repeat(4000));
                let labels = (0..32).map(|n| {
                    let name = bytes_field(1, format!("{n}-{number:0250}").as_bytes());
                    let value = bytes_field(2, &[b'v'; 256]);
                    bytes_field(2, &[name, value].concat())
                });
                let range = bytes_field(1, &bytes_field(2, prefix.as_bytes()));
                let client = bytes_field(3, &labels.collect::<Vec<_>>().concat());
                let watch = [range, client].concat();
                (WATCH, message(watch.len(), &watch), true)
            }
        }
    }
}

/// How long the server may take to give room for more, or to be through with what was sent. One that
/// gives no room has ended the attack.
const WITHIN: Duration = Duration::from_secs(10);

/// How many bytes a connection takes at first, and a call: HTTP/2's default.
const WINDOW: usize = 65_535;

/// A field of bytes, as protobuf has it.
fn bytes_field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    encode_varint(content.len() as u64, &mut field);
    field.extend_from_slice(content);
    field
}

/// The window of one call. Closed when the server has ended the call.
struct CallWindow {
    stream: u32,
    room: Arc<Semaphore>,
}

impl CallWindow {
    fn of(stream: u32) -> Self {
        let room = Arc::new(Semaphore::new(WINDOW));
        Self { stream, room }
    }
}

/// A connection that attacks until it is dropped.
struct Attacker {
    writer: FrameWriter<WriteHalf<TcpStream>>,
    /// How many bytes the server takes, by its updates of the connection's window.
    window: Arc<Semaphore>,
    /// The same for the call that is being sent.
    call: Arc<Mutex<CallWindow>>,
    /// Calls that the server has ended.
    ended: Arc<AtomicUsize>,
    /// Told when a ping was answered.
    answered: Arc<Notify>,
    _reading: JoinSet<()>,
}

impl Attacker {
    async fn connect(server: &ServerProcess) -> Self {
        let io = TcpStream::connect(server.addr()).await.unwrap();
        io.set_nodelay(true).unwrap();
        // Nothing of an answer is read, but for its headers.
        let no_window = [(settings::INITIAL_WINDOW_SIZE, 0)];
        let (writer, mut reader) = connect(io, &no_window).await.unwrap();
        let window = Arc::new(Semaphore::new(WINDOW));
        let call = Arc::new(Mutex::new(CallWindow::of(0)));
        let ended = Arc::new(AtomicUsize::new(0));
        let mut reading = JoinSet::new();
        let answered = Arc::new(Notify::new());
        let (more, count, pong) = (window.clone(), ended.clone(), answered.clone());
        let of_call = call.clone();
        reading.spawn(async move {
            while let Ok(Some(frame)) = reader.next().await {
                if frame.is_end() && frame.stream == of_call.lock().unwrap().stream {
                    of_call.lock().unwrap().room.close();
                }
                if frame.kind == types::WINDOW_UPDATE {
                    let by = u32::from_be_bytes(frame.payload.try_into().unwrap()) as usize;
                    let call = of_call.lock().unwrap();
                    if frame.stream == 0 {
                        more.add_permits(by);
                    } else if frame.stream == call.stream {
                        call.room.add_permits(by);
                    }
                } else if frame.kind == types::HEADERS && frame.is_end() {
                    count.fetch_add(1, Ordering::Relaxed);
                } else if frame.kind == types::PING && frame.flags & flags::ACK != 0 {
                    pong.notify_one();
                }
            }
            more.close();
            of_call.lock().unwrap().room.close();
        });
        Self {
            writer,
            window,
            call,
            ended,
            answered,
            _reading: reading,
        }
    }

    /// Sends all calls, or what the server takes of them, and waits until it has seen them.
    async fn attack(&mut self, attack: Attack) {
        self.send(attack).await;
        if self.writer.write(&[Frame::ping([0; 8])]).await.is_ok() {
            let _ = timeout(WITHIN, self.answered.notified()).await;
        }
    }

    async fn send(&mut self, attack: Attack) {
        const PIECE: usize = 16 * 1024;
        for number in 0..attack.calls() {
            let stream = 2 * number + 1;
            let (path, body, end) = attack.call(number);
            let pieces: Vec<_> = body.chunks(PIECE).collect();
            let call = CallWindow::of(stream);
            let of_call = Arc::clone(&call.room);
            *self.call.lock().unwrap() = call;
            if self
                .writer
                .write(&[Frame::call(stream, path)])
                .await
                .is_err()
            {
                return;
            }
            for (n, piece) in pieces.iter().enumerate() {
                let len = u32::try_from(piece.len()).unwrap();
                match timeout(WITHIN, of_call.acquire_many(len)).await {
                    Ok(Ok(room)) => room.forget(),
                    // The server has ended the call.
                    // The server has ended the call.
                    Ok(Err(_)) => break,
                    Err(_) => return,
                }
                let Ok(Ok(room)) = timeout(WITHIN, self.window.acquire_many(len)).await else {
                    return;
                };
                room.forget();
                let data = Frame::data(stream, *piece);
                let last = end && n + 1 == pieces.len();
                let data = if last { data.end() } else { data };
                if self.writer.write(&[data]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// What an attack did.
struct Cost {
    /// The most memory more than before, for one connection, in KiB.
    peak_kib: f64,
    /// The same once everything was sent.
    left_kib: f64,
    /// How long the client beside it waited for its changes, at the most.
    slowest: Duration,
}

/// Puts values and waits until the client has each.
async fn changes(etcd: &mut etcd_client::Client, watcher: &mut Watcher<u32>) -> Duration {
    let mut slowest = Duration::ZERO;
    for _ in 0..CHANGES {
        let next = *watcher.load() + 1;
        let start = Instant::now();
        etcd.put("/config/n", next.to_string(), None).await.unwrap();
        while *watcher.load() != next {
            in_time("the change arrives", watcher.changed())
                .await
                .unwrap();
        }
        slowest = slowest.max(start.elapsed());
        sleep(Duration::from_millis(20)).await;
    }
    slowest
}

async fn measure(server: &ServerProcess, etcd: &Etcd, attack: Attack) -> Cost {
    let pid = server.process.pid();
    let mut puts = etcd.client().await;
    puts.put("/config/n", "0", None).await.unwrap();
    let client = Client::connect(server.url()).unwrap();
    let mut watcher: Watcher<u32> = client.watch("/config/n").await.unwrap();
    changes(&mut puts, &mut watcher).await;
    let mut attackers = Vec::new();
    for _ in 0..CONNECTIONS {
        attackers.push(Attacker::connect(server).await);
    }
    proc::forget_peak(pid).unwrap();
    let before = proc::usage(pid).unwrap().rss_kib;
    let mut attacking = JoinSet::new();
    for mut attacker in attackers {
        attacking.spawn(async move {
            attacker.attack(attack).await;
            attacker
        });
    }
    let slowest = changes(&mut puts, &mut watcher).await;
    let attackers = attacking.join_all().await;
    let ended: usize = attackers
        .iter()
        .map(|it| it.ended.load(Ordering::Relaxed))
        .sum();
    let after = proc::usage(pid).unwrap();
    let each = |kib: f64| (kib - before) / CONNECTIONS as f64;
    let cost = Cost {
        peak_kib: each(after.peak_kib),
        left_kib: each(after.rss_kib),
        slowest,
    };
    eprintln!(
        "{attack:?}: {:.0} KiB for each connection at the most, {:.0} KiB at the end; {ended} calls \
         ended; the slowest of {CHANGES} changes beside it took {:?}",
        cost.peak_kib, cost.left_kib, cost.slowest
    );
    client.shutdown().await.unwrap();
    cost
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_costs_more_than_four_mebibytes() {
    let etcd = Etcd::started_blocking();
    for attack in ATTACKS {
        let server = DRIFTLESS.serve(&etcd, &["/config/"]);
        let cost = measure(&server, &etcd, attack).await;
        assert!(
            cost.peak_kib <= MAY_COST_KIB,
            "{attack:?} cost {:.0} KiB for each connection",
            cost.peak_kib
        );
        let finished = server.stop();
        assert!(finished.status.success(), "{}", finished.stderr);
    }
}
