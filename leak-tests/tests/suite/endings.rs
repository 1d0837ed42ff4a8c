//! Further ways in which a client ends: shut down, refused, or during a name look-up. Against a server on a
//! scripted etcd.

use std::time::Duration;

use driftless_client::{Client, Resource};
use driftless_proto::v1::config_client::ConfigClient;
use driftless_proto::v1::{self, range};
use driftless_test_support::in_time;
use leak_tests::{Outcome, Rounds, Stall, Witnesses, gauge, poll_times};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Code;

use crate::common::Server;
use crate::scenario::{CLIENT, Pace, Scenario, prefix};

/// How many network operations two first states take, with some to spare.
const OPERATIONS_TO_FIRST_STATES: u64 = 64;

/// How many polls a shutdown takes, with some to spare.
const POLLS_OF_SHUTDOWN: usize = 4;

/// Long enough for a call to begin its work, and much shorter than the timeout that would end it.
const SHORT_WAIT: Duration = Duration::from_millis(3);

/// The longest key that the server accepts, in bytes.
const LONGEST_KEY: usize = 4096;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a client is shut down at each operation",
        about: "The client's network stops for ever at its 1st, 2nd, 3rd, … operation, and the \
                client is shut down; every other client is dropped during that.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(shut_down_at_each_operation(rounds)),
    },
    Scenario {
        name: "a client is shut down in its backoff",
        about: "Nobody listens at the client's endpoint; it is shut down between two attempts.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(shut_down_in_backoff(rounds)),
    },
    Scenario {
        name: "requests are no good",
        about: "A client that is not ours sends ranges that are missing, empty or too long, \
                reports for streams that do not exist, and a request that is too large.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(bad_requests(rounds)),
    },
    Scenario {
        name: "a server is not in sync",
        about: "etcd was never there: clients are told to retry, and dropped while they wait.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(server_not_in_sync(rounds)),
    },
    Scenario {
        name: "a server is named",
        about: "The server's name is looked up on a thread of the runtime; the watch is \
                dropped after 0, 1, 2, … polls.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(endpoint_with_name(rounds)),
    },
    Scenario {
        name: "a watch is dropped in a look-up that hangs",
        about: "The look-up of the server's name does not end before the client is dropped.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(look_up_hangs(rounds)),
    },
];

async fn shut_down_at_each_operation(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    rounds
        .and(&server.gauges())
        .promised(CLIENT)
        .run(async |round| {
            let stall = Stall::after(round / 2 % OPERATIONS_TO_FIRST_STATES);
            let client = server.stalling_client(&stall);
            let work = async {
                let one = client.watch::<u32>("/c/a").into_future();
                let all = client.entries(prefix()).into_future();
                let read = client.get(prefix()).into_future();
                tokio::join!(one, all, read)
            };
            let mut work = Box::pin(work);
            let done = tokio::select! {
                () = stall.happened() => None,
                done = in_time("two watchers and a read", work.as_mut()) => Some(done),
            };
            if round % 2 == 0 {
                // The shutdown ends the pending calls and closes the watchers.
                let pending = async {
                    if done.is_none() {
                        drop(work.await);
                    }
                };
                let (ended, ()) = tokio::join!(client.shutdown().into_future(), pending);
                ended.unwrap();
                assert!(client.resources().is_empty());
                drop(done);
            } else {
                let polls = usize::try_from(round / 2).unwrap() % POLLS_OF_SHUTDOWN;
                // Nobody polls the pending calls, and they still hold resources: the shutdown may not end.
                let shutdown = poll_times(polls, client.shutdown().into_future());
                let _ = timeout(SHORT_WAIT, shutdown).await;
            }
        })
        .await
}

async fn shut_down_in_backoff(rounds: Rounds) -> Outcome {
    rounds
        .run(async |round| {
            // Nothing listens on port 1.
            let client = Client::connect("http://127.0.0.1:1").unwrap();
            let mut watch = Box::pin(client.watch::<u32>("/c/a").into_future());
            let moment = Duration::from_millis(round % 5);
            assert!(timeout(moment, watch.as_mut()).await.is_err());
            client.shutdown().await.unwrap();
            assert!(client.resources().is_empty());
            in_time("the watch ends", watch).await.unwrap_err();
        })
        .await
}

async fn bad_requests(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    rounds
        .and(&server.gauges())
        .promised(CLIENT)
        .run(async |round| {
            // A new connection in each round: HTTP/2 remembers for a while which streams were reset.
            let channel = tonic::transport::Endpoint::from_shared(server.url()).unwrap();
            let channel = in_time("a connection", channel.connect()).await.unwrap();
            let mut client = ConfigClient::new(channel);
            let key = |length| range::Kind::Key(vec![b'k'; length].into());
            let (kind, code) = match round % 4 {
                0 => (None, Code::InvalidArgument),
                1 => (Some(key(0)), Code::InvalidArgument),
                2 => (Some(key(LONGEST_KEY + 1)), Code::InvalidArgument),
                _ => (Some(key(LONGEST_KEY)), Code::NotFound),
            };
            let range = Some(v1::Range { kind });
            let watched = client.watch(v1::WatchRequest {
                range: range.clone(),
                ..Default::default()
            });
            assert_eq!(watched.await.unwrap_err().code(), code);
            let got = client.get(v1::GetRequest {
                range,
                ..Default::default()
            });
            assert_eq!(got.await.unwrap_err().code(), code);
            let too_large = client.watch(v1::WatchRequest {
                range: Some(v1::Range {
                    kind: Some(key(70 * 1024)),
                }),
                ..Default::default()
            });
            too_large.await.unwrap_err();
            let id = format!("{round:016}");
            let reported = client.report(v1::ReportRequest {
                watches: vec![v1::WatchReport {
                    watch_id: id.into(),
                    ..Default::default()
                }],
                ..Default::default()
            });
            let unknown = reported.await.unwrap().into_inner().unknown_watch_ids;
            assert_eq!(unknown.len(), 1);
        })
        .await
}

async fn server_not_in_sync(rounds: Rounds) -> Outcome {
    let server = Server::without_etcd().await;
    rounds
        .and(&server.gauges())
        .promised(CLIENT)
        .run(async |round| {
            let client = server.client();
            let watch = client.watch::<u32>("/c/a").into_future();
            let moment = SHORT_WAIT + Duration::from_millis(round % 5);
            assert!(timeout(moment, watch).await.is_err());
        })
        .await
}

/// How many name look-ups of a client run on a thread.
fn look_ups(client: &Client) -> Witnesses {
    let resources = client.resources();
    let count = move || {
        let active = resources.active();
        let look_ups = active
            .iter()
            .filter(|resource| matches!(resource, Resource::Lookup(_)));
        i64::try_from(look_ups.count()).unwrap()
    };
    Witnesses::new().and(gauge("look-ups", count))
}

async fn endpoint_with_name(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let url = format!("http://localhost:{}", server.address.port());
    let long_lived = Client::connect(&url).unwrap();
    rounds
        .and(&server.gauges())
        .and(&look_ups(&long_lived))
        .promised(CLIENT)
        .run(async |round| {
            let polls = usize::try_from(round / 2 % 8).unwrap();
            let client = match round % 2 {
                0 => long_lived.clone(),
                _ => Client::connect(&url).unwrap(),
            };
            let watching = client.watch::<u32>("/c/a").into_future();
            let _ = poll_times(polls, watching).await;
            let watching = client.watch::<u32>("/c/a").into_future();
            let watcher = in_time("a value", watching).await.unwrap();
            assert_eq!(*watcher.load(), 1);
        })
        .await
}

async fn look_up_hangs(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let url = format!("http://localhost:{}", server.address.port());
    // A test cannot make the system's resolver hang. It can occupy the only thread that runs look-ups.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).max_blocking_threads(1);
    let runtime = runtime.enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    let client = Client::connect(&url).unwrap();
    let tasks = handle.metrics();
    let tasks = gauge("tasks of the client's runtime", move || {
        i64::try_from(tasks.num_alive_tasks()).unwrap()
    });
    let outcome = rounds
        .and(&server.gauges())
        .and(&look_ups(&client))
        .and(&Witnesses::new().and(tasks))
        .run(async |_| {
            let mut jobs = JoinSet::new();
            let (release, released) = std::sync::mpsc::channel::<()>();
            jobs.spawn_blocking_on(move || released.recv().unwrap_err(), &handle);
            let watcher = client.clone();
            let mut watching = JoinSet::new();
            let watch = async move {
                let watching = watcher.watch::<u32>("/c/a").into_future();
                assert!(timeout(SHORT_WAIT, watching).await.is_err());
            };
            watching.spawn_on(watch, &handle);
            in_time("a watch is dropped", watching.join_all()).await;
            let look_up = [Resource::Lookup("localhost".to_owned())];
            let resources = client.resources();
            let only_look_up = async {
                while resources.active() != look_up {
                    tokio::task::yield_now().await;
                }
            };
            in_time("only the look-up is left", only_look_up).await;
            drop(release);
            resources.released_within(CLIENT).await.unwrap();
            in_time("the thread is free", jobs.join_all()).await;
        })
        .await;
    runtime.shutdown_background();
    outcome
}
