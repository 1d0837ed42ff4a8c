//! Clients that resume with their old state, clients that support less than ours, and clients beside others
//! that stay: the server keeps nothing that it made for them.

use driftless_client::{KeyRange, Revision};
use driftless_proto::digest::Digest;
use driftless_proto::v1::config_client::ConfigClient;
use driftless_proto::v1::{self, watch_response::Frame};
use driftless_server::source::scripted::ScriptedEtcd;
use driftless_test_support::in_time;
use leak_tests::{Outcome, Rounds};
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::common::Server;
use crate::on_etcd::wait_for_entries;
use crate::scenario::{Pace, Scenario, WATCHER};

/// More changes than the server sends one by one.
const MANY_CHANGES: u64 = 300;

/// How many different revisions clients resume from. With the changes after them, these are no more than the
/// server remembers of a range.
const REVISIONS: usize = 700;

/// A value that is large enough for its changes to travel as deltas, in bytes.
const LARGE: usize = 64 * 1024;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "clients from before a change come back",
        about: "In each round a client resumes a range that nobody watches, gets the one \
                change that it missed, and is dropped.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(resume_before_a_change(rounds)),
    },
    Scenario {
        name: "clients come back from revisions of their own",
        about: "In each round a client resumes that has missed much, from a revision that no \
                other client is at; the range is watched all the time.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(resume_from_own_revisions(rounds)),
    },
    Scenario {
        name: "nobody is left who takes patches",
        about: "A client without support for patches stays; one with it is dropped, and then a \
                large value changes.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(no_client_takes_patches(rounds)),
    },
    Scenario {
        name: "one watcher stays and others come and go",
        about: "A range is watched all the time, and another client watches it in each round.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(one_stays(rounds)),
    },
];

/// A raw gRPC client that is connected to the server.
async fn raw_client(server: &Server) -> ConfigClient<Channel> {
    let endpoint = Endpoint::from_shared(server.url()).unwrap();
    ConfigClient::new(endpoint.connect().await.unwrap())
}

/// Opens a stream for a client with this old state, which supports only the basic protocol.
async fn watch(
    client: &mut ConfigClient<Channel>,
    range: &KeyRange,
    old: Option<(&ScriptedEtcd, OldState)>,
) -> Streaming<v1::WatchResponse> {
    let have = old.map(|(etcd, old)| v1::Have {
        epoch: etcd.epoch().as_bytes().clone(),
        revision: old.revision.get(),
        digest: old.digest.to_bytes(),
        ..Default::default()
    });
    let request = v1::WatchRequest {
        range: Some(range.into()),
        have,
        ..Default::default()
    };
    client.watch(request).await.unwrap().into_inner()
}

/// The state that a client resumes with.
#[derive(Clone, Copy)]
struct OldState {
    revision: Revision,
    digest: Digest,
}

impl OldState {
    /// The state of a range at this revision.
    fn at(etcd: &ScriptedEtcd, range: &KeyRange, revision: Revision) -> Self {
        let digest = etcd.state_at(range, revision).unwrap().iter().collect();
        Self { revision, digest }
    }
}

/// Receives the change to this revision.
async fn receive(stream: &mut Streaming<v1::WatchResponse>, revision: Revision) -> v1::Diff {
    let received = async {
        loop {
            let message = stream.message().await.unwrap();
            match message.expect("the stream goes on").frame {
                Some(Frame::Diff(diff)) if diff.to == revision.get() => return diff,
                _ => {}
            }
        }
    };
    in_time("a change arrives", received).await
}

async fn resume_before_a_change(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let range = KeyRange::key("/c/a").unwrap();
    let before = server.etcd.revision();
    let after = server.etcd.put("/c/a", "7");
    let old = (&server.etcd, OldState::at(&server.etcd, &range, before));
    let mut client = raw_client(&server).await;
    rounds
        .and(&server.gauges())
        .promised(WATCHER)
        .run(async |_| {
            let mut stream = watch(&mut client, &range, Some(old)).await;
            assert!(!receive(&mut stream, after).await.conflated);
        })
        .await
}

async fn resume_from_own_revisions(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let range = KeyRange::prefix("/c/").unwrap();
    let mut stays = server.client().entries(range.clone()).await.unwrap();
    let mut old_states = Vec::new();
    for number in 0..REVISIONS {
        let revision = server.etcd.put("/c/a", number.to_string());
        old_states.push(OldState::at(&server.etcd, &range, revision));
    }
    for number in 0..MANY_CHANGES {
        server.etcd.put("/c/a", number.to_string());
    }
    let now = server.etcd.revision();
    wait_for_entries(&mut stays, now).await;
    let mut client = raw_client(&server).await;
    rounds
        .and(&server.gauges())
        .promised(WATCHER)
        .run(async |round| {
            let at = usize::try_from(round).unwrap() % REVISIONS;
            let mut stream = watch(&mut client, &range, Some((&server.etcd, old_states[at]))).await;
            assert!(receive(&mut stream, now).await.conflated);
        })
        .await
}

async fn no_client_takes_patches(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let range = KeyRange::key("/c/large").unwrap();
    let mut value = vec![b'x'; LARGE];
    server.etcd.put("/c/large", &value);
    let mut stays = watch(&mut raw_client(&server).await, &range, None).await;
    let client = server.client();
    let metrics = &server.metrics;
    rounds
        // The scripted etcd keeps every value, so allocated bytes grow.
        .only(server.witnesses())
        .promised(WATCHER)
        .run(async |round| {
            let takes_patches = client.entries("/c/large").await.unwrap();
            drop(takes_patches);
            let one_left = async {
                while metrics.streams.get() > 1 {
                    tokio::task::yield_now().await;
                }
            };
            in_time("a stream ends", one_left).await;
            let at = usize::try_from(round).unwrap() * 101 % (LARGE - 32);
            value[at..at + 20].copy_from_slice(format!("{round:020}").as_bytes());
            receive(&mut stays, server.etcd.put("/c/large", &value)).await;
            let deltas = metrics.deltas_computed.get() + metrics.deltas_dropped.get();
            assert_eq!(
                deltas, 0,
                "the server computed a delta that no client supports"
            );
        })
        .await
}

async fn one_stays(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let range = KeyRange::prefix("/c/").unwrap();
    let _stays = server.client().entries(range.clone()).await.unwrap();
    let client = server.client();
    rounds
        .and(&server.gauges())
        .promised(WATCHER)
        .run(async |_| {
            // A client closes its connection with its last watcher.
            let watcher = client.entries(range.clone()).await.unwrap();
            assert_eq!(watcher.load().len(), 2);
        })
        .await
}
