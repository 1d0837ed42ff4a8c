//! What the server keeps of ranges, changes and answers, and for those who are slow: all of it goes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use driftless_client::{Client, Entries, GetError, KeyRange, Revision};
use driftless_server::ServeError;
use driftless_test_support::{Etcd, eventually, in_time};
use leak_tests::{Outcome, Rounds, Stall, gauge};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::common::Server;
use crate::scenario::{CLIENT, Pace, Scenario, WATCHER, prefix};
use crate::world::{Keys, Real, Running, etcds_watches, settings};

/// Prefixes of so many lengths are watched: nearly as many as there can be.
const LENGTHS: u64 = 4_000;

/// A number that has no divisor in common with that, so that no length comes again before all others
/// did.
const SCATTERED: u64 = 1_237;

/// A value that takes the place of all else in the change log, in bytes.
const HUGE: usize = 700 * 1024;

/// How many changes are more than those that go out one by one, and the next ones are held back.
const MORE_THAN_A_BURST: usize = 80;

/// How many reads are more than those that have their turn at first.
const MORE_THAN_TURNS: usize = 100;

/// How many reads have all the turns there are at first.
const ALL_TURNS: usize = 20;

/// How many have their turn at once at first, at least.
const FIRST_TURNS: i64 = 8;

/// How many connections a server of few takes.
const FEW: usize = 4;

/// How long a server waits for those who do not read, when it is shut down: the least that it takes.
const DRAIN: Duration = Duration::from_millis(100);

/// How long a client that does not read is borne with where the shutdown has to end it: longer than
/// a round takes.
const BORNE: Duration = Duration::from_secs(120);

/// How soon a server is gone that cuts off who is left: long before such a client misses the answer
/// to a ping, and ends its connection by itself.
const CUT_OFF_WITHIN: Duration = Duration::from_secs(10);

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "prefixes of every length come and go",
        about: "In each round a client watches a prefix of a length that nobody watched \
                lately.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(lengths(rounds)),
    },
    Scenario {
        name: "etcd's history is replaced",
        about: "A key is put, and etcd goes back to an earlier state, as from a backup; the \
                server resynchronises, and so does a watcher.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(replaced(rounds)),
    },
    Scenario {
        name: "strangers call and are gone",
        about: "Peers send the preface, a call, and the end of the connection, all at once.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(strangers(rounds)),
    },
    Scenario {
        name: "a crowd is dropped while it waits for its turn",
        about: "A hundred large reads start and stop reading: most never get a permit.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(waits(rounds)),
    },
    Scenario {
        name: "a crowd that does not read holds up nobody",
        about: "Large reads hold all permits and stop reading; another client reads all the \
                same.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(holds_up_nobody(rounds)),
    },
    Scenario {
        name: "a watcher is dropped while changes are held back",
        about: "More changes come than are sent one by one, and the watcher is dropped after \
                the first.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(held_back(rounds)),
    },
    Scenario {
        name: "a server of few connections",
        about: "Clients come and go at a server that takes four connections at a time.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(few(rounds)),
    },
    Scenario {
        name: "the server is shut down while a client does not read",
        about: "A client stalls, more than a window is written for it, and the server is shut \
                down: it cuts the client off in time.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(cut_off(rounds)),
    },
];

async fn lengths(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let client = server.client();
    let rounds = rounds.and(&server.gauges()).promised(WATCHER);
    rounds
        .run(async |round| {
            let length = usize::try_from(round * SCATTERED % LENGTHS).unwrap();
            let range = KeyRange::prefix(format!("/c/{}", "x".repeat(length))).unwrap();
            drop(client.entries(range).await.unwrap());
        })
        .await
}

async fn replaced(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    // To the byte: the log is always empty afterwards.
    let metrics = server.metrics.clone();
    let log = gauge("log_bytes", move || metrics.log_bytes.get());
    let client = server.client();
    rounds
        .and(&server.gauges().and(log))
        .promised(WATCHER)
        .run(async |_| {
            let mut watcher = client.watch::<u32>("/c/a").await.unwrap();
            let before = server.etcd.revision();
            server.etcd.put("/c/a", "3");
            let moves = async |watcher: &mut driftless_client::Watcher<u32>, to| {
                while *watcher.load() != to {
                    watcher.changed().await.unwrap();
                }
            };
            in_time("a value arrives", moves(&mut watcher, 3)).await;
            server.etcd.restore(before);
            in_time("the value of before is back", moves(&mut watcher, 1)).await;
        })
        .await
}

/// All that a connection has to say until it has begun to call `Watch`: how it begins, no settings, and
/// the headers of a request without an end.
pub(crate) fn call() -> Vec<u8> {
    let text = |text: &str| {
        let length = u8::try_from(text.len()).unwrap();
        [&[length], text.as_bytes()].concat()
    };
    let headers = [
        // Those that HTTP/2 has numbers for: POST, http, and the names of others.
        vec![0x83, 0x86, 0x04],
        text("/driftless.v1.Config/Watch"),
        vec![0x01],
        text("server"),
        vec![0x0f, 0x10],
        text("application/grpc"),
        vec![0x00],
        text("te"),
        text("trailers"),
    ]
    .concat();
    let frame = |kind, flags, stream: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).unwrap();
        let head = [0, 0, length, kind, flags, 0, 0, 0, stream];
        [&head, payload].concat()
    };
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(1, 4, 1, &headers),
    ]
    .concat()
}

/// A connection whose end arrives while what it said before is still being looked at, which happens
/// with a socket, and rarely.
struct Abrupt {
    words: Vec<u8>,
    reads: usize,
}

impl AsyncRead for Abrupt {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let some = self.words.len().min(buffer.remaining());
        if some > 0 {
            buffer.put_slice(&self.words[..some]);
            self.words.drain(..some);
            return Poll::Ready(Ok(()));
        }
        self.reads += 1;
        match self.reads {
            1 => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Abrupt {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

async fn strangers(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let call = call();
    let rounds = rounds.and(&server.gauges()).promised(WATCHER);
    rounds
        .run(async |round| {
            if round % 2 == 0 {
                let mut stranger = TcpStream::connect(server.address).await.unwrap();
                stranger.write_all(&call).await.unwrap();
            } else {
                let words = call.clone();
                server.serve(Abrupt { words, reads: 0 });
            }
        })
        .await
}

type Read = Pin<Box<dyn Future<Output = Result<Entries, GetError>> + Send>>;

/// Large reads of a client that is connected, begun and then left alone: what they are sent is not
/// taken. Returns when so many have their turn.
///
/// On a busy machine the server may expect a long wait and refuse a read, and its answer may be there
/// when the read is polled for the first time. Such a read has ended.
async fn begun(server: &Server, client: &Client, reads: usize, turns: i64) -> Vec<Read> {
    let begin = |_| {
        let mut read = Box::pin(client.get("/c/huge").into_future()) as Read;
        let mut nobody = Context::from_waker(Waker::noop());
        match read.as_mut().poll(&mut nobody) {
            Poll::Pending => Some(read),
            Poll::Ready(Err(refused)) if refused.is_retryable() => None,
            Poll::Ready(ended) => panic!("it ended at once: {:?}", ended.map(|_| "it was read")),
        }
    };
    let reads: Vec<Read> = (0..reads).filter_map(begin).collect();
    eventually("reads have their turn", async || {
        server.metrics.syncs_in_progress.get() >= turns
    })
    .await;
    reads
}

async fn waits(rounds: Rounds) -> Outcome {
    let server = Server::holding("/c/huge", vec![b'x'; HUGE]).await;
    let client = server.client();
    rounds
        .and(&server.gauges())
        .run(async |_| {
            let connected = client.watch::<u32>("/c/a").await.unwrap();
            drop(begun(&server, &client, MORE_THAN_TURNS, FIRST_TURNS).await);
            drop(connected);
            // It has much to do until it looks at the connection again: what is counted before the
            // first round is not to be that.
            eventually("the server has noticed", async || {
                server.metrics.connections.get() == 0
            })
            .await;
        })
        .await
}

async fn holds_up_nobody(rounds: Rounds) -> Outcome {
    rounds
        .promised(CLIENT)
        .run(async |_| {
            // A new one has few turns; they become more where reads are quick.
            let server = Server::holding("/c/huge", vec![b'x'; HUGE]).await;
            let client = server.client();
            let _connected = client.watch::<u32>("/c/a").await.unwrap();
            let reads = begun(&server, &client, ALL_TURNS, FIRST_TURNS).await;
            let other = server.client().get("/c/huge").into_future();
            let other = in_time("another client has its turn", other).await;
            assert_eq!(other.unwrap().len(), 1);
            drop(reads);
        })
        .await
}

/// Puts a value that takes the place of all else in the log.
async fn empty_log(keys: &mut Keys, round: u64) -> Revision {
    let value = vec![u8::try_from(round % 250).unwrap(); HUGE];
    keys.put("/c/huge", value).await
}

async fn held_back(rounds: Rounds) -> Outcome {
    let mut world = Real::start().await;
    let client = world.client();
    let gauges = world.gauges();
    rounds
        .and(&gauges)
        .promised(WATCHER)
        .run(async |round| {
            let heard = world.heard();
            let mut watcher = client.entries(prefix()).await.unwrap();
            let (burst, first) = tokio::join!(
                world.keys.burst(MORE_THAN_A_BURST),
                in_time("a change arrives", watcher.changed())
            );
            ((), _) = (burst, first.unwrap());
            drop(watcher);
            empty_log(&mut world.keys, round).await;
            world.hears(heard + MORE_THAN_A_BURST as u64 + 1).await;
        })
        .await
}

async fn few(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    let settings = settings(&etcd.url()).max_connections(FEW);
    let server = Running::start(settings).await;
    let outcome = rounds
        .promised(CLIENT)
        .run(async |_| {
            let client = Client::connect(server.url()).unwrap();
            let watching = client.entries(prefix()).into_future();
            drop(in_time("there is a place", watching).await.unwrap());
        })
        .await;
    server.stop().await;
    outcome
}

async fn cut_off(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    let mut keys = Keys::of(&etcd).await;
    rounds
        .at_the_end(etcds_watches(&etcd))
        .promised(CLIENT)
        .run(async |round| {
            let settings = settings(&etcd.url()).drain_timeout(DRAIN);
            let server = Running::start(settings.stall_timeout(BORNE)).await;
            let stall = Stall::never();
            let client = Client::builder().endpoint(server.url());
            let client = client.connector(stall.over_tcp()).build().unwrap();
            let watching = client.entries(prefix()).into_future();
            let _watcher = in_time("the first state", watching).await.unwrap();
            let other = Client::connect(server.url()).unwrap();
            let reading = other.entries("/c/huge").into_future();
            let mut reads = in_time("the first state", reading).await.unwrap();
            stall.begin();
            // More than is sent ahead, and than the kernel takes of a connection.
            for part in 0..4 {
                let revision = empty_log(&mut keys, 4 * round + part).await;
                let there = async { while reads.changed().await.unwrap().revision < revision {} };
                in_time("a change arrives", there).await;
            }
            drop((reads, other));
            let ended = timeout(CUT_OFF_WITHIN, server.ended()).await.unwrap();
            assert!(
                matches!(ended, Err(ServeError::CutOff { connections: 1 })),
                "{ended:?}"
            );
        })
        .await
}
