//! A server's shutdown while a peer does something that could delay it.

use std::net::Ipv4Addr;
use std::time::Duration;

use driftless_client::KeyRange;
use driftless_proto::v1::{self, config_client::ConfigClient};
use driftless_server::Engine;
use driftless_server::metrics::Metrics;
use driftless_server::source::SourceHandle;
use driftless_server::source::scripted::ScriptedEtcd;
use driftless_test_support::{Etcd, in_time};
use leak_tests::{Outcome, Rounds};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::on_etcd::{PREFIX, settings};
use crate::scenario::{CLIENT, Pace, Scenario};
use crate::whole_server::WholeServer;

/// The longest that a shutdown without waiting may take on a busy machine.
const SOON: Duration = Duration::from_secs(5);

/// A deadline that no shutdown here should reach.
const DEADLINE: Duration = Duration::from_secs(60);

/// The size of a value that is larger than an HTTP/2 window, so that it travels in parts, in bytes.
const HUGE: usize = 700 * 1024;

/// How much the server sends ahead to a client that does not read, in bytes.
const WINDOW: u32 = 65_535;

/// How many calls read it at the same time: more than the server gives permits to.
const CROWD: usize = 40;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "the server is shut down while a stranger stays connected",
        about: "A refused peer keeps its connection; the shutdown does not wait for it.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(refused_peer_stays(rounds)),
    },
    Scenario {
        name: "the server is shut down while a crowd waits for its turn",
        about: "Forty calls read large values; those that wait for a permit are answered at \
                once.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(crowd_waits(rounds)),
    },
    Scenario {
        name: "the server is shut down while it is asked how it is",
        about: "A peer has sent a part of a request to the admin endpoint; its connection ends \
                with the server.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(half_a_request(rounds)),
    },
];

fn prefix() -> KeyRange {
    KeyRange::prefix(PREFIX).unwrap()
}

fn get(range: &KeyRange) -> v1::GetRequest {
    v1::GetRequest {
        range: Some(range.into()),
        client: None,
    }
}

/// A server on this scripted etcd, and a raw gRPC client that is connected to it.
async fn server_and_client(etcd: &ScriptedEtcd) -> (Engine, ConfigClient<Channel>) {
    let (handle, requests) = SourceHandle::channel();
    let source = etcd.source(prefix(), requests);
    // The address is not used: etcd is scripted. The long stall timeout keeps clients that do not read.
    let settings = settings("http://127.0.0.1:2379").stall_timeout(DEADLINE);
    let settings = settings.build().unwrap();
    let engine = Engine::start(&settings, Metrics::new(), [(prefix(), source, handle)]);
    in_time("the server is in sync", engine.ready()).await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let endpoint = Endpoint::from_shared(url)
        .unwrap()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    let accepting = async {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        engine.serve(stream);
    };
    let (connected, ()) = tokio::join!(endpoint.connect(), accepting);
    (engine, ConfigClient::new(connected.unwrap()))
}

/// Runs something that must end within [`SOON`].
async fn soon<F: Future>(what: &str, work: F) -> F::Output {
    let done = timeout(SOON, work).await;
    done.unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"))
}

async fn refused_peer_stays(rounds: Rounds) -> Outcome {
    let etcd = ScriptedEtcd::default();
    let elsewhere = KeyRange::prefix("/elsewhere/").unwrap();
    rounds
        .promised(CLIENT)
        .run(async |_| {
            let (engine, mut client) = server_and_client(&etcd).await;
            let refused = client.get(get(&elsewhere)).await.unwrap_err();
            assert_eq!(refused.code(), Code::NotFound);
            assert_eq!(soon("a shutdown", engine.shut_down(DEADLINE)).await, 0);
            drop(client);
        })
        .await
}

async fn crowd_waits(rounds: Rounds) -> Outcome {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/huge", vec![b'x'; HUGE]);
    rounds
        .promised(CLIENT)
        .run(async |_| {
            let (engine, mut client) = server_and_client(&etcd).await;
            let mut calls = Vec::new();
            for _ in 0..CROWD {
                calls.push(client.get(get(&prefix())).await.unwrap().into_inner());
            }
            let with_permit = engine.metrics().syncs_in_progress.get();
            let crowd = async {
                // A call with a permit receives its first part, and reads no more.
                let mut parts = JoinSet::new();
                for mut call in calls {
                    parts.spawn(async move {
                        let part = call.message().await;
                        (part.err().map(|status| status.code()), call)
                    });
                }
                let results = parts.join_all().await.into_iter();
                results
                    .filter(|(code, _)| *code == Some(Code::Unavailable))
                    .count()
            };
            let both = async { tokio::join!(engine.shut_down(DEADLINE), crowd) };
            let (cut_off, refused) = soon("a shutdown", both).await;
            assert!(
                refused > 0,
                "no call waited for a permit; {with_permit} had one"
            );
            assert_eq!(cut_off, 0);
        })
        .await
}

async fn half_a_request(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    rounds
        .promised(CLIENT)
        .run(async |_| {
            let server = WholeServer::start(settings(&etcd.url())).await;
            let mut peer = TcpStream::connect(server.admin).await.unwrap();
            peer.write_all(b"GET /he").await.unwrap();
            server.stop().await;
            // The connection ends, with or without an error.
            let _ = soon("the server closes the connection", peer.read(&mut [0])).await;
        })
        .await
}
