//! A whole server as it is deployed, and its metrics.

use std::time::Duration;

use driftless_client::{Client, KeyRange};
use driftless_test_support::{Etcd, in_time};
use leak_tests::{Outcome, Rounds};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::on_etcd::settings;
use crate::scenario::{CLIENT, Pace, Scenario};
use crate::server::watch_call;
use crate::whole_server::WholeServer;

/// Long enough for a client to connect if the server accepted it.
const SHORT_WAIT: Duration = Duration::from_millis(3);

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "clients leave no metrics behind",
        about: "Clients with a new name each time, ranges that nobody watched before, refused \
                ranges, peers that are no clients; the server's metrics page does not grow.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(no_metrics_left(rounds)),
    },
    Scenario {
        name: "a server has no place",
        about: "The server has as many connections as it takes; another client waits, and is \
                dropped.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(server_full(rounds)),
    },
    Scenario {
        name: "probes come and go",
        about: "In each round a probe asks whether the server is ready, over a new connection.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(probes(rounds)),
    },
];

async fn no_metrics_left(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    etcd.client().await.put("/c/a", "1", None).await.unwrap();
    let server = WholeServer::start(settings(&etcd.url())).await;
    let outcome = rounds
        .at_the_end(server.scraped())
        .promised(CLIENT)
        .run(async |round| {
            let client = Client::builder()
                .endpoint(server.url())
                .instance(format!("{round:020}"))
                .label("service", format!("service {round:020}"))
                .label(format!("label {round:020}"), "")
                .build()
                .unwrap();
            let one = client.watch::<u32>("/c/a").into_future();
            let range = KeyRange::prefix(format!("/c/{round:020}/")).unwrap();
            let none = client.entries(range).into_future();
            let range = format!("/elsewhere/{round:020}");
            let refused = client.watch::<u32>(range.as_str()).into_future();
            let (one, none, refused) = tokio::join!(one, none, refused);
            assert_eq!((*one.unwrap().load(), none.unwrap().load().len()), (1, 0));
            refused.unwrap_err();
            let mut peer = TcpStream::connect(server.address).await.unwrap();
            peer.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        })
        .await;
    server.stop().await;
    outcome
}

async fn server_full(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    etcd.client().await.put("/c/a", "1", None).await.unwrap();
    let server = WholeServer::start(settings(&etcd.url()).max_connections(1)).await;
    let outcome = rounds
        .at_the_end(server.scraped())
        .promised(CLIENT)
        .run(async |_| {
            let admitted = Client::connect(server.url()).unwrap();
            let watching = admitted.watch::<u32>("/c/a").into_future();
            let admitted = in_time("the first client is accepted", watching)
                .await
                .unwrap();
            let other = Client::connect(server.url()).unwrap();
            let waiting = other.watch::<u32>("/c/a").into_future();
            let mut waiting = std::pin::pin!(waiting);
            assert!(timeout(SHORT_WAIT, waiting.as_mut()).await.is_err());
            drop(admitted);
            in_time("the other client is accepted", waiting)
                .await
                .unwrap();
        })
        .await;
    server.stop().await;
    outcome
}

async fn probes(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    let server = WholeServer::start(settings(&etcd.url())).await;
    let outcome = rounds
        .promised(CLIENT)
        .run(async |round| {
            if round % 2 == 0 {
                assert!(in_time("a response", server.is_ready()).await);
            } else {
                // A client that calls the admin endpoint by mistake gets an error.
                let mut client = TcpStream::connect(server.admin).await.unwrap();
                client.write_all(&watch_call()).await.unwrap();
                in_time("a response", receive_headers(&mut client)).await;
            }
        })
        .await;
    server.stop().await;
    outcome
}

/// Waits for the headers of a response. The frames before it begin the connection, and every client gets
/// them.
async fn receive_headers(stream: &mut TcpStream) {
    const FRAME_HEADER: usize = 9;
    const HEADERS: u8 = 1;
    loop {
        let mut frame = [0; FRAME_HEADER];
        stream.read_exact(&mut frame).await.unwrap();
        let [high, middle, low, kind, ..] = frame;
        if kind == HEADERS {
            return;
        }
        let length = u32::from_be_bytes([0, high, middle, low]).into();
        let mut payload = stream.take(length);
        tokio::io::copy(&mut payload, &mut tokio::io::sink())
            .await
            .unwrap();
    }
}
