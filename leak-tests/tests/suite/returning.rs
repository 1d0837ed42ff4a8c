//! Clients that come back with what they had, clients that know less than ours, and clients beside others
//! that stay: what the server makes for them goes with them.

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
use crate::scenario::{Pace, Scenario, WATCHER};

/// More changes than are told one by one.
const MANY_CHANGES: u64 = 300;

/// From so many revisions clients come back: with those changes, not more than a range remembers.
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
        run: |rounds| Box::pin(before_a_change(rounds)),
    },
    Scenario {
        name: "clients come back from revisions of their own",
        about: "In each round a client resumes that has missed much, from a revision that no \
                other client is at; the range is watched all the time.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(own_revisions(rounds)),
    },
    Scenario {
        name: "nobody is left who takes patches",
        about: "A client without support for patches stays; one with it is dropped, and then a \
                large value changes.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(no_patches(rounds)),
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

/// A connection of a client that is not ours.
async fn connected(server: &Server) -> ConfigClient<Channel> {
    let endpoint = Endpoint::from_shared(server.url()).unwrap();
    ConfigClient::new(endpoint.connect().await.unwrap())
}

/// A stream of somebody who has this, and knows nothing beyond the basic contract.
async fn watch(
    client: &mut ConfigClient<Channel>,
    range: &KeyRange,
    had: Option<(&ScriptedEtcd, Had)>,
) -> Streaming<v1::WatchResponse> {
    let have = had.map(|(etcd, had)| v1::Have {
        epoch: etcd.epoch().as_bytes().clone(),
        revision: had.revision.get(),
        digest: had.digest.to_bytes(),
        ..Default::default()
    });
    let request = v1::WatchRequest {
        range: Some(range.into()),
        have,
        ..Default::default()
    };
    client.watch(request).await.unwrap().into_inner()
}

/// What somebody has.
#[derive(Clone, Copy)]
struct Had {
    revision: Revision,
    digest: Digest,
}

impl Had {
    /// Who left at this revision.
    fn at(etcd: &ScriptedEtcd, range: &KeyRange, revision: Revision) -> Self {
        let digest = etcd.state_at(range, revision).unwrap().iter().collect();
        Self { revision, digest }
    }
}

/// Waits for a change to this revision.
async fn told(stream: &mut Streaming<v1::WatchResponse>, revision: Revision) -> v1::Diff {
    let told = async {
        loop {
            let message = stream.message().await.unwrap();
            match message.expect("the stream goes on").frame {
                Some(Frame::Diff(diff)) if diff.to == revision.get() => return diff,
                _ => {}
            }
        }
    };
    in_time("a change is told", told).await
}

async fn before_a_change(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let range = KeyRange::key("/c/a").unwrap();
    let before = server.etcd.revision();
    let after = server.etcd.put("/c/a", "7");
    let had = (&server.etcd, Had::at(&server.etcd, &range, before));
    let mut client = connected(&server).await;
    rounds
        .and(&server.gauges())
        .promised(WATCHER)
        .run(async |_| {
            let mut stream = watch(&mut client, &range, Some(had)).await;
            assert!(!told(&mut stream, after).await.conflated);
        })
        .await
}

async fn own_revisions(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let range = KeyRange::prefix("/c/").unwrap();
    let mut stays = server.client().entries(range.clone()).await.unwrap();
    let mut left = Vec::new();
    for number in 0..REVISIONS {
        let revision = server.etcd.put("/c/a", number.to_string());
        left.push(Had::at(&server.etcd, &range, revision));
    }
    for number in 0..MANY_CHANGES {
        server.etcd.put("/c/a", number.to_string());
    }
    let now = server.etcd.revision();
    let there = async { while stays.changed().await.unwrap().revision < now {} };
    in_time("all changes arrive", there).await;
    let mut client = connected(&server).await;
    rounds
        .and(&server.gauges())
        .promised(WATCHER)
        .run(async |round| {
            let at = usize::try_from(round).unwrap() % REVISIONS;
            let mut stream = watch(&mut client, &range, Some((&server.etcd, left[at]))).await;
            assert!(told(&mut stream, now).await.conflated);
        })
        .await
}

async fn no_patches(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let range = KeyRange::key("/c/large").unwrap();
    let mut value = vec![b'x'; LARGE];
    server.etcd.put("/c/large", &value);
    let mut stays = watch(&mut connected(&server).await, &range, None).await;
    let client = server.client();
    let metrics = &server.metrics;
    rounds
        // The model of etcd remembers every value: bytes say nothing here.
        .only(server.witnesses())
        .promised(WATCHER)
        .run(async |round| {
            let takes_patches = client.entries("/c/large").await.unwrap();
            drop(takes_patches);
            let left = async {
                while metrics.streams.get() > 1 {
                    tokio::task::yield_now().await;
                }
            };
            in_time("a stream ends", left).await;
            let at = usize::try_from(round).unwrap() * 101 % (LARGE - 32);
            value[at..at + 20].copy_from_slice(format!("{round:020}").as_bytes());
            told(&mut stays, server.etcd.put("/c/large", &value)).await;
            let deltas = metrics.deltas_computed.get() + metrics.deltas_dropped.get();
            assert_eq!(deltas, 0, "a delta for nobody");
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
            // Of a connection of its own, which goes with it.
            let watcher = client.entries(range.clone()).await.unwrap();
            assert_eq!(watcher.load().len(), 2);
        })
        .await
}
