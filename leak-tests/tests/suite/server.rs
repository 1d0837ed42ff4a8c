//! What the server keeps for ranges, changes, sync responses and slow clients is released.

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
use crate::on_etcd::{ServerOnEtcd, etcd_watch_counts, settings, wait_for_entries};
use crate::scenario::{CLIENT, Pace, Scenario, WATCHER, prefix};
use crate::whole_server::WholeServer;
use crate::writer::EtcdWriter;

/// How many different lengths the watched prefixes have: nearly as many as a key may have.
const PREFIX_LENGTHS: u64 = 4_000;

/// The step from one length to the next. It has no common divisor with the number of lengths, so that no
/// length repeats before all others were used.
const LENGTH_STEP: u64 = 1_237;

/// The size of a value that pushes everything else out of the change log, in bytes.
const HUGE: usize = 700 * 1024;

/// How many changes at once are more than the server sends one by one: it holds back the later ones.
const MORE_THAN_A_BURST: usize = 80;

/// How many reads are more than a new server gives permits to.
const MORE_THAN_PERMITS: usize = 100;

/// How many reads take all permits of a new server.
const ALL_PERMITS: usize = 20;

/// How many permits a new server gives at the same time, at least.
const FIRST_PERMITS: i64 = 8;

/// How many connections a server with few of them accepts.
const FEW_CONNECTIONS: usize = 4;

/// How long a shutdown waits for clients that do not read: the shortest time that a server accepts.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(100);

/// How long a client may leave its stream unread, in the scenario where the shutdown has to cut it off:
/// longer than a round takes.
const STALL_ALLOWED: Duration = Duration::from_secs(120);

/// How long a shutdown that cuts off a client may take: much less than the client needs to detect an
/// unanswered ping and to close the connection itself.
const CUT_OFF_WITHIN: Duration = Duration::from_secs(10);

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "prefixes of every length come and go",
        about: "In each round a client watches a prefix of a length that nobody watched \
                lately.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(prefix_lengths(rounds)),
    },
    Scenario {
        name: "etcd's history is replaced",
        about: "A key is put, and etcd goes back to an earlier state, as from a backup; the \
                server resynchronises, and so does a watcher.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(history_replaced(rounds)),
    },
    Scenario {
        name: "strangers call and are gone",
        about: "Peers send the preface, a call, and the end of the connection, all at once.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(stray_peers(rounds)),
    },
    Scenario {
        name: "a crowd is dropped while it waits for its turn",
        about: "A hundred large reads start and stop reading: most never get a permit.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(waiting_crowd_dropped(rounds)),
    },
    Scenario {
        name: "a crowd that does not read holds up nobody",
        about: "Large reads hold all permits and stop reading; another client reads all the \
                same.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(unread_crowd_blocks_nobody(rounds)),
    },
    Scenario {
        name: "a watcher is dropped while changes are held back",
        about: "More changes come than are sent one by one, and the watcher is dropped after \
                the first.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(dropped_while_held_back(rounds)),
    },
    Scenario {
        name: "a server of few connections",
        about: "Clients come and go at a server that takes four connections at a time.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(few_connections(rounds)),
    },
    Scenario {
        name: "the server is shut down while a client does not read",
        about: "A client stalls, more than a window is written for it, and the server is shut \
                down: it cuts the client off in time.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(client_cut_off(rounds)),
    },
];

async fn prefix_lengths(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let client = server.client();
    let rounds = rounds.and(&server.gauges()).promised(WATCHER);
    rounds
        .run(async |round| {
            let length = usize::try_from(round * LENGTH_STEP % PREFIX_LENGTHS).unwrap();
            let range = KeyRange::prefix(format!("/c/{}", "x".repeat(length))).unwrap();
            drop(client.entries(range).await.unwrap());
        })
        .await
}

async fn history_replaced(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    // Exact to the byte: a replaced history empties the change log.
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
            let wait_for = async |watcher: &mut driftless_client::Watcher<u32>, value| {
                while *watcher.load() != value {
                    watcher.changed().await.unwrap();
                }
            };
            in_time("a value arrives", wait_for(&mut watcher, 3)).await;
            server.etcd.restore(before);
            in_time("the earlier value is back", wait_for(&mut watcher, 1)).await;
        })
        .await
}

/// The bytes that begin a call of `Watch`: the preface of HTTP/2, empty settings, and the headers of a
/// request that does not end.
pub(crate) fn watch_call() -> Vec<u8> {
    let text = |text: &str| {
        let length = u8::try_from(text.len()).unwrap();
        [&[length], text.as_bytes()].concat()
    };
    let headers = [
        // From HPACK's static table: POST, http, and the names of further headers.
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
        let header = [0, 0, length, kind, flags, 0, 0, 0, stream];
        [&header, payload].concat()
    };
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(1, 4, 1, &headers),
    ]
    .concat()
}

/// A connection that ends while the server still processes what it sent. With a socket this happens, but
/// rarely.
struct AbruptPeer {
    unread: Vec<u8>,
    empty_reads: usize,
}

impl AsyncRead for AbruptPeer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let some = self.unread.len().min(buffer.remaining());
        if some > 0 {
            buffer.put_slice(&self.unread[..some]);
            self.unread.drain(..some);
            return Poll::Ready(Ok(()));
        }
        self.empty_reads += 1;
        match self.empty_reads {
            1 => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for AbruptPeer {
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

async fn stray_peers(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let call = watch_call();
    let rounds = rounds.and(&server.gauges()).promised(WATCHER);
    rounds
        .run(async |round| {
            if round % 2 == 0 {
                let mut peer = TcpStream::connect(server.address).await.unwrap();
                peer.write_all(&call).await.unwrap();
            } else {
                server.serve(AbruptPeer {
                    unread: call.clone(),
                    empty_reads: 0,
                });
            }
        })
        .await
}

type Read = Pin<Box<dyn Future<Output = Result<Entries, GetError>> + Send>>;

/// Starts large reads of a connected client, and never polls them again, so that nobody reads what the
/// server sends. Returns when this many of them have a permit.
///
/// A busy server refuses a read if it expects a long wait. Its response may arrive before the first poll;
/// such a read has ended, and is left out.
async fn start_reads(server: &Server, client: &Client, reads: usize, permits: i64) -> Vec<Read> {
    let start = |_| {
        let mut read = Box::pin(client.get("/c/huge").into_future()) as Read;
        let mut context = Context::from_waker(Waker::noop());
        match read.as_mut().poll(&mut context) {
            Poll::Pending => Some(read),
            Poll::Ready(Err(refused)) if refused.is_retryable() => None,
            Poll::Ready(ended) => panic!("a read ended at once: {:?}", ended.map(|_| "entries")),
        }
    };
    let reads: Vec<Read> = (0..reads).filter_map(start).collect();
    eventually("reads have permits", async || {
        server.metrics.syncs_in_progress.get() >= permits
    })
    .await;
    reads
}

async fn waiting_crowd_dropped(rounds: Rounds) -> Outcome {
    let server = Server::with_value("/c/huge", vec![b'x'; HUGE]).await;
    let client = server.client();
    rounds
        .and(&server.gauges())
        .run(async |_| {
            let connected = client.watch::<u32>("/c/a").await.unwrap();
            drop(start_reads(&server, &client, MORE_THAN_PERMITS, FIRST_PERMITS).await);
            drop(connected);
            // The server has much to do before it reads from the connection again. Without this wait the
            // baseline would contain the connection.
            eventually("the server closes the connection", async || {
                server.metrics.connections.get() == 0
            })
            .await;
        })
        .await
}

async fn unread_crowd_blocks_nobody(rounds: Rounds) -> Outcome {
    rounds
        .promised(CLIENT)
        .run(async |_| {
            // A new server in each round: the number of permits grows when reads are quick.
            let server = Server::with_value("/c/huge", vec![b'x'; HUGE]).await;
            let client = server.client();
            let _connected = client.watch::<u32>("/c/a").await.unwrap();
            let reads = start_reads(&server, &client, ALL_PERMITS, FIRST_PERMITS).await;
            let other = server.client().get("/c/huge").into_future();
            let other = in_time("another client reads", other).await;
            assert_eq!(other.unwrap().len(), 1);
            drop(reads);
        })
        .await
}

/// Puts a value that pushes everything else out of the change log.
async fn empty_log(writer: &mut EtcdWriter, round: u64) -> Revision {
    let value = vec![u8::try_from(round % 250).unwrap(); HUGE];
    writer.put("/c/huge", value).await
}

async fn dropped_while_held_back(rounds: Rounds) -> Outcome {
    let mut server = ServerOnEtcd::start().await;
    let client = server.client();
    let gauges = server.gauges();
    rounds
        .and(&gauges)
        .promised(WATCHER)
        .run(async |round| {
            let received = server.changes_received();
            let mut watcher = client.entries(prefix()).await.unwrap();
            let (burst, first) = tokio::join!(
                server.writer.put_concurrently(MORE_THAN_A_BURST),
                in_time("a change arrives", watcher.changed())
            );
            ((), _) = (burst, first.unwrap());
            drop(watcher);
            empty_log(&mut server.writer, round).await;
            let changes = MORE_THAN_A_BURST as u64 + 1;
            server.wait_for_changes(received + changes).await;
        })
        .await
}

async fn few_connections(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    let settings = settings(&etcd.url()).max_connections(FEW_CONNECTIONS);
    let server = WholeServer::start(settings).await;
    let outcome = rounds
        .promised(CLIENT)
        .run(async |_| {
            let client = Client::connect(server.url()).unwrap();
            let watching = client.entries(prefix()).into_future();
            drop(
                in_time("the server accepts the connection", watching)
                    .await
                    .unwrap(),
            );
        })
        .await;
    server.stop().await;
    outcome
}

async fn client_cut_off(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    let mut writer = EtcdWriter::new(&etcd).await;
    rounds
        .at_the_end(etcd_watch_counts(&etcd))
        .promised(CLIENT)
        .run(async |round| {
            let settings = settings(&etcd.url()).drain_timeout(DRAIN_TIMEOUT);
            let server = WholeServer::start(settings.stall_timeout(STALL_ALLOWED)).await;
            let stall = Stall::never();
            let client = Client::builder().endpoint(server.url());
            let client = client.connector(stall.over_tcp()).build().unwrap();
            let watching = client.entries(prefix()).into_future();
            let _watcher = in_time("the first state", watching).await.unwrap();
            let other = Client::connect(server.url()).unwrap();
            let reading = other.entries("/c/huge").into_future();
            let mut reader = in_time("the first state", reading).await.unwrap();
            stall.begin();
            // More than the server sends ahead, and more than the kernel buffers for a connection.
            for part in 0..4 {
                let revision = empty_log(&mut writer, 4 * round + part).await;
                wait_for_entries(&mut reader, revision).await;
            }
            drop((reader, other));
            let ended = timeout(CUT_OFF_WITHIN, server.shut_down()).await.unwrap();
            assert!(
                matches!(ended, Err(ServeError::CutOff { connections: 1 })),
                "{ended:?}"
            );
        })
        .await
}
