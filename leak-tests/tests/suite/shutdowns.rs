//! The server is shut down while somebody does what could keep it from its end.

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

use crate::scenario::{CLIENT, Pace, Scenario};
use crate::world::{PREFIX, Running, settings};

/// Long enough for what waits for nobody, on a busy machine.
const SOON: Duration = Duration::from_secs(5);

/// A deadline that nobody here should have to wait for.
const LATE: Duration = Duration::from_secs(60);

/// A value that travels in parts, and is more than a window, in bytes.
const HUGE: usize = 700 * 1024;

/// What is sent ahead to who does not read, in bytes.
const WINDOW: u32 = 65_535;

/// How many read it at a time: more than have their turn.
const CROWD: usize = 40;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "the server is shut down while a stranger stays connected",
        about: "A refused peer keeps its connection; the shutdown does not wait for it.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(stranger(rounds)),
    },
    Scenario {
        name: "the server is shut down while a crowd waits for its turn",
        about: "Forty calls read large values; those that wait for a permit are answered at \
                once.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(crowd(rounds)),
    },
    Scenario {
        name: "the server is shut down while it is asked how it is",
        about: "A peer has sent a part of a request to the admin endpoint; its connection ends \
                with the server.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(half_a_question(rounds)),
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

/// A server of this, and a client of it that is not ours.
async fn connected(etcd: &ScriptedEtcd) -> (Engine, ConfigClient<Channel>) {
    let (handle, requests) = SourceHandle::channel();
    let source = etcd.source(prefix(), requests);
    // etcd is the model. Who does not read is put up with.
    let settings = settings("http://127.0.0.1:2379").stall_timeout(LATE);
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

async fn soon<F: Future>(what: &str, work: F) -> F::Output {
    let done = timeout(SOON, work).await;
    done.unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"))
}

async fn stranger(rounds: Rounds) -> Outcome {
    let etcd = ScriptedEtcd::default();
    let elsewhere = KeyRange::prefix("/elsewhere/").unwrap();
    rounds
        .promised(CLIENT)
        .run(async |_| {
            let (engine, mut client) = connected(&etcd).await;
            let refused = client.get(get(&elsewhere)).await.unwrap_err();
            assert_eq!(refused.code(), Code::NotFound);
            assert_eq!(soon("a shutdown", engine.shut_down(LATE)).await, 0);
            drop(client);
        })
        .await
}

async fn crowd(rounds: Rounds) -> Outcome {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/huge", vec![b'x'; HUGE]);
    rounds
        .promised(CLIENT)
        .run(async |_| {
            let (engine, mut client) = connected(&etcd).await;
            let mut calls = Vec::new();
            for _ in 0..CROWD {
                calls.push(client.get(get(&prefix())).await.unwrap().into_inner());
            }
            let reading = engine.metrics().syncs_in_progress.get();
            let crowd = async {
                // Of those who read, the first part arrives, and they read no more.
                let mut parts = JoinSet::new();
                for mut call in calls {
                    parts.spawn(async move {
                        let part = call.message().await;
                        (part.err().map(|status| status.code()), call)
                    });
                }
                let told = parts.join_all().await.into_iter();
                told.filter(|(code, _)| *code == Some(Code::Unavailable))
                    .count()
            };
            let both = async { tokio::join!(engine.shut_down(LATE), crowd) };
            let (cut_off, told) = soon("a shutdown", both).await;
            assert!(told > 0, "nobody waited; {reading} read");
            assert_eq!(cut_off, 0);
        })
        .await
}

async fn half_a_question(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    rounds
        .promised(CLIENT)
        .run(async |_| {
            let server = Running::start(settings(&etcd.url())).await;
            let mut asks = TcpStream::connect(server.admin).await.unwrap();
            asks.write_all(b"GET /he").await.unwrap();
            server.stop().await;
            // The end, in whatever way.
            let _ = soon("the server hangs up", asks.read(&mut [0])).await;
        })
        .await
}
