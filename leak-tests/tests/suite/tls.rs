//! TLS handshakes that succeed, fail, or never end.

use std::time::Duration;

use driftless_client::{Client, ClientBuilder, Resource};
use driftless_test_support::certificates::{Ca, Folder};
use driftless_test_support::{Etcd, in_time};
use leak_tests::{Outcome, Rounds, Witnesses, gauge, poll_times};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::client::silent_server;
use crate::on_etcd::settings;
use crate::scenario::{CLIENT, Pace, Scenario};
use crate::whole_server::WholeServer;

/// How many polls of a watch's future give its first value over TLS, with some to spare: the client reads
/// files first.
const POLLS_TO_FIRST_VALUE: u64 = 16;

/// Long enough to begin the handshake, and much shorter than its timeout.
const SHORT_WAIT: Duration = Duration::from_millis(5);

/// How long the server waits for a silent client.
const CLIENT_TIMEOUT: Duration = Duration::from_millis(100);

/// The beginning of a TLS handshake: the header of a record of 512 bytes, that of a ClientHello, and TLS 1.2
/// as its version.
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
        run: |rounds| Box::pin(certificate_refused(rounds)),
    },
    Scenario {
        name: "clients never agree on TLS",
        about: "Clients send nothing, half a ClientHello, or something else, and stay: the \
                server closes their connections.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(unfinished_handshakes(rounds)),
    },
    Scenario {
        name: "a watch is dropped while TLS is agreed on",
        about: "The client sends its ClientHello to a peer that never answers.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(dropped_in_handshake(rounds)),
    },
];

/// The certificate files of a server and a client, from one CA.
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

    /// A client that trusts servers with a certificate of this CA.
    fn trusting(&self, url: &str) -> ClientBuilder {
        let builder = Client::builder().endpoint(url);
        builder.tls_ca_file(self.client.path("ca.pem"))
    }
}

/// A server that requires a client certificate of its own CA.
async fn strict_server(files: &Files) -> (Etcd, WholeServer) {
    let etcd = Etcd::started().await;
    etcd.client().await.put("/c/a", "1", None).await.unwrap();
    let settings = settings(&etcd.url())
        .tls_cert(files.server.path("cert.pem"))
        .tls_key(files.server.path("key.pem"))
        .tls_client_ca(files.server.path("ca.pem"))
        .client_timeouts(CLIENT_TIMEOUT);
    let server = WholeServer::start(settings).await;
    (etcd, server)
}

async fn comes_and_goes(rounds: Rounds) -> Outcome {
    let files = Files::new();
    let (_etcd, server) = strict_server(&files).await;
    let outcome = rounds
        .at_the_end(server.scraped())
        .promised(CLIENT)
        .run(async |round| {
            let builder = files.trusting(&server.url());
            let identity = (files.client.path("cert.pem"), files.client.path("key.pem"));
            let builder = builder.tls_client_files(identity.0, identity.1);
            let client = builder.build().unwrap();
            let polls = usize::try_from(round / 2 % POLLS_TO_FIRST_VALUE).unwrap();
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

async fn certificate_refused(rounds: Rounds) -> Outcome {
    let (files, other_files) = (Files::new(), Files::new());
    let (_etcd, server) = strict_server(&files).await;
    let outcome = rounds
        .at_the_end(server.scraped())
        .promised(CLIENT)
        .run(async |round| {
            let (files, expected) = match round % 2 {
                0 => (&other_files, "certificate"),
                _ => (&files, "requires a client certificate"),
            };
            let client = files.trusting(&server.url()).build().unwrap();
            let refused = client.get("/c/a").await.unwrap_err();
            let message = refused.to_string();
            assert!(message.contains(expected), "{message}");
        })
        .await;
    server.stop().await;
    outcome
}

async fn unfinished_handshakes(rounds: Rounds) -> Outcome {
    let files = Files::new();
    let (_etcd, server) = strict_server(&files).await;
    let outcome = rounds
        .at_the_end(server.scraped())
        .run(async |_| {
            let mut peers = Vec::new();
            for sent in [b"".as_slice(), HALF_A_HELLO, b"GET / HTTP/1.1\r\n\r\n"] {
                let mut peer = TcpStream::connect(server.address).await.unwrap();
                peer.write_all(sent).await.unwrap();
                peers.push(peer);
            }
            for mut peer in peers {
                let mut response = Vec::new();
                let ended = peer.read_to_end(&mut response);
                let _ = in_time("the server closes the connection", ended).await;
            }
        })
        .await;
    server.stop().await;
    outcome
}

async fn dropped_in_handshake(rounds: Rounds) -> Outcome {
    let files = Files::new();
    let (url, _serving) = silent_server("https").await;
    let client = files.trusting(&url).build().unwrap();
    let resources = client.resources();
    let open_files = gauge("files", move || {
        let active = resources.active();
        let files = active
            .iter()
            .filter(|resource| matches!(resource, Resource::File(_)));
        i64::try_from(files.count()).unwrap()
    });
    rounds
        .and(&Witnesses::new().and(open_files))
        .promised(CLIENT)
        .run(async |round| {
            let moment = SHORT_WAIT + Duration::from_millis(round % 3);
            let watching = client.watch::<u32>("/c/a").into_future();
            assert!(timeout(moment, watching).await.is_err());
        })
        .await
}
