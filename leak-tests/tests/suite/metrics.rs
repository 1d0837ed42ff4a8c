//! A whole server, as it is deployed, and what it shows of itself.

use std::time::Duration;

use driftless_client::{Client, KeyRange};
use driftless_test_support::{Etcd, in_time};
use leak_tests::{Outcome, Rounds};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::scenario::{CLIENT, Pace, Scenario};
use crate::server::call;
use crate::world::{Running, settings};

/// Long enough to be on the way, and short beside what it waits for.
const A_MOMENT: Duration = Duration::from_millis(3);

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "clients leave no metrics behind",
        about: "Clients with a new name each time, ranges that nobody watched before, refused \
                ranges, peers that are no clients; the server's metrics page does not grow.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(no_labels(rounds)),
    },
    Scenario {
        name: "a server has no place",
        about: "The server has as many connections as it takes; another client waits, and is \
                dropped.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(no_place(rounds)),
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

async fn no_labels(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    etcd.client().await.put("/c/a", "1", None).await.unwrap();
    let server = Running::start(settings(&etcd.url())).await;
    let outcome = rounds
        .at_the_end(server.shows())
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
            let mut stranger = TcpStream::connect(server.address).await.unwrap();
            stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        })
        .await;
    server.stop().await;
    outcome
}

async fn no_place(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    etcd.client().await.put("/c/a", "1", None).await.unwrap();
    let server = Running::start(settings(&etcd.url()).max_connections(1)).await;
    let outcome = rounds
        .at_the_end(server.shows())
        .promised(CLIENT)
        .run(async |_| {
            let guest = Client::connect(server.url()).unwrap();
            let watching = guest.watch::<u32>("/c/a").into_future();
            let guest = in_time("a place", watching).await.unwrap();
            let waits = Client::connect(server.url()).unwrap();
            let waiting = waits.watch::<u32>("/c/a").into_future();
            let mut waiting = std::pin::pin!(waiting);
            assert!(timeout(A_MOMENT, waiting.as_mut()).await.is_err());
            drop(guest);
            in_time("the place of the other", waiting).await.unwrap();
        })
        .await;
    server.stop().await;
    outcome
}

async fn probes(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    let server = Running::start(settings(&etcd.url())).await;
    let outcome = rounds
        .promised(CLIENT)
        .run(async |round| {
            if round % 2 == 0 {
                assert!(in_time("an answer", server.is_ready()).await);
            } else {
                // A client that took the address for the other one is told so.
                let mut lost = TcpStream::connect(server.admin).await.unwrap();
                lost.write_all(&call()).await.unwrap();
                in_time("an answer", has_headers(&mut lost)).await;
            }
        })
        .await;
    server.stop().await;
    outcome
}

/// Waits for the first answer to a call. What comes before it is the beginning of the connection, which
/// is said to everybody.
async fn has_headers(stream: &mut TcpStream) {
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
