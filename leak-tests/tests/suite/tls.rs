//! TLS: clients and servers that agree on it, that do not, and that never finish.

use std::time::Duration;

use driftless_client::{Client, ClientBuilder, Resource};
use driftless_test_support::certificates::{Ca, Folder};
use driftless_test_support::{Etcd, in_time};
use leak_tests::{Outcome, Rounds, Witnesses, gauge, poll_times};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::client::silent;
use crate::scenario::{CLIENT, Pace, Scenario};
use crate::world::{Running, settings};

/// How many polls a first value over TLS takes, with some to spare: files are read on the way.
const POLLS: u64 = 16;

/// Long enough to be on the way, and short beside what it waits for.
const A_MOMENT: Duration = Duration::from_millis(5);

/// How long the server waits for a client that does nothing.
const PATIENCE: Duration = Duration::from_millis(100);

/// How a client begins, as far as it comes: a record of a handshake of 512 bytes, with a ClientHello in
/// it, TLS 1.2 by its name, and then nothing.
const HALF_A_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a client comes and goes over TLS",
        about: "A new client watches a value over TLS; some are dropped after 0, 1, 2, … polls.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(comes_and_goes(rounds)),
    },
    Scenario {
        name: "a certificate is refused",
        about: "A client that trusts another CA, and one without the required client \
                certificate, try to connect and are dropped.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(refused(rounds)),
    },
    Scenario {
        name: "clients never agree on TLS",
        about: "Clients send nothing, half a ClientHello, or something else, and stay: the \
                server closes their connections.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(never_agreed(rounds)),
    },
    Scenario {
        name: "a watch is dropped while TLS is agreed on",
        about: "The client sends its ClientHello to a peer that never answers.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(silence(rounds)),
    },
];

/// The files of both ends: certificates of one CA.
struct Files {
    server: Folder,
    client: Folder,
}

impl Files {
    fn new() -> Self {
        let ca = Ca::new("ca");
        Self {
            server: Folder::with(&ca, &ca.server()),
            client: Folder::with(&ca, &ca.client()),
        }
    }

    /// A client that trusts this CA's servers.
    fn trusting(&self, url: &str) -> ClientBuilder {
        let builder = Client::builder().endpoint(url);
        builder.tls_ca_file(self.client.path("ca.pem"))
    }
}

/// A server of `/c/` that asks every client for a certificate of its own CA.
async fn strict(files: &Files) -> (Etcd, Running) {
    let etcd = Etcd::started().await;
    etcd.client().await.put("/c/a", "1", None).await.unwrap();
    let settings = settings(&etcd.url())
        .tls_cert(files.server.path("cert.pem"))
        .tls_key(files.server.path("key.pem"))
        .tls_client_ca(files.server.path("ca.pem"))
        .client_timeouts(PATIENCE);
    let server = Running::start(settings).await;
    (etcd, server)
}

async fn comes_and_goes(rounds: Rounds) -> Outcome {
    let files = Files::new();
    let (_etcd, server) = strict(&files).await;
    let outcome = rounds
        .at_the_end(server.shows())
        .promised(CLIENT)
        .run(async |round| {
            let builder = files.trusting(&server.url());
            let identity = (files.client.path("cert.pem"), files.client.path("key.pem"));
            let builder = builder.tls_client_files(identity.0, identity.1);
            let client = builder.build().unwrap();
            let polls = usize::try_from(round / 2 % POLLS).unwrap();
            let watching = client.watch::<u32>("/c/a").into_future();
            if round % 2 == 0 {
                let _ = poll_times(polls, watching).await;
            } else {
                let watcher = in_time("a value", watching).await.unwrap();
                assert_eq!(*watcher.load(), 1);
            }
        })
        .await;
    server.stop().await;
    outcome
}

async fn refused(rounds: Rounds) -> Outcome {
    let (files, others) = (Files::new(), Files::new());
    let (_etcd, server) = strict(&files).await;
    let outcome = rounds
        .at_the_end(server.shows())
        .promised(CLIENT)
        .run(async |round| {
            let (who, says) = match round % 2 {
                0 => (&others, "certificate"),
                _ => (&files, "requires a client certificate"),
            };
            let client = who.trusting(&server.url()).build().unwrap();
            let refused = client.get("/c/a").await.unwrap_err();
            let said = refused.to_string();
            assert!(said.contains(says), "{said}");
        })
        .await;
    server.stop().await;
    outcome
}

async fn never_agreed(rounds: Rounds) -> Outcome {
    let files = Files::new();
    let (_etcd, server) = strict(&files).await;
    let outcome = rounds
        .at_the_end(server.shows())
        .run(async |_| {
            let mut strangers = Vec::new();
            for said in [b"".as_slice(), HALF_A_HELLO, b"GET / HTTP/1.1\r\n\r\n"] {
                let mut stranger = TcpStream::connect(server.address).await.unwrap();
                stranger.write_all(said).await.unwrap();
                strangers.push(stranger);
            }
            for mut stranger in strangers {
                let mut answer = Vec::new();
                let ended = stranger.read_to_end(&mut answer);
                let _ = in_time("the server hangs up", ended).await;
            }
        })
        .await;
    server.stop().await;
    outcome
}

async fn silence(rounds: Rounds) -> Outcome {
    let files = Files::new();
    let (url, _silent) = silent("https").await;
    let client = files.trusting(&url).build().unwrap();
    let resources = client.resources();
    let read = gauge("files", move || {
        let held = resources.active();
        let files = held.iter().filter(|held| matches!(held, Resource::File(_)));
        i64::try_from(files.count()).unwrap()
    });
    rounds
        .and(&Witnesses::new().and(read))
        .promised(CLIENT)
        .run(async |round| {
            let moment = A_MOMENT + Duration::from_millis(round % 3);
            let watching = client.watch::<u32>("/c/a").into_future();
            assert!(timeout(moment, watching).await.is_err());
        })
        .await
}
