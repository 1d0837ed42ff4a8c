//! A real etcd, the network to it, or a server goes away and comes back.

use std::sync::{Arc, Mutex};

use driftless_client::{Client, Connecting, Endpoint, EntriesWatcher, Io, WatchState};
use driftless_test_support::{Etcd, Proxy, in_time};
use leak_tests::{Outcome, Rounds};
use tokio::net::TcpStream;

use crate::on_etcd::{
    ServerOnEtcd, etcd_loss_detected, etcd_watch_counts, settings, wait_for_entries,
};
use crate::scenario::{CLIENT, Pace, Scenario, prefix};
use crate::whole_server::WholeServer;
use crate::writer::EtcdWriter;

/// The key of the values that a watcher receives after an outage.
const PROBE_KEY: &str = "/c/seen";

/// The size of such a value, in bytes: large, so that few fill the change log, and less than the first
/// window of a stream from etcd, so that each outage leaves the same amount unread.
const PROBE_BYTES: usize = 7 * 1024;

/// How many of these values fill the change log, with some to spare.
const PROBES_TO_FILL_LOG: u64 = 80;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a server takes another one's place",
        about: "A server dies or is shut down, and another one takes its place; it asks etcd \
                what a watcher missed, and sends that.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(successor(rounds)),
    },
    Scenario {
        name: "the network to etcd is cut",
        about: "Connections between server and etcd are lost, or nothing is forwarded on them; \
                then the network heals.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(etcd_cut_off(rounds)),
    },
    Scenario {
        name: "etcd is killed",
        about: "etcd is killed and started again on its data.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(etcd_killed(rounds)),
    },
    Scenario {
        name: "etcd is stopped",
        about: "etcd is stopped for longer than the server waits for it, and continues.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(etcd_paused(rounds)),
    },
    Scenario {
        name: "the server is shut down",
        about: "A server starts on a real etcd, clients watch, and it is shut down; half of \
                the clients are dropped during that, half afterwards.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(server_shut_down(rounds)),
    },
];

/// Watches the values that are put after an outage.
async fn watch_probes(server: &ServerOnEtcd) -> EntriesWatcher {
    let watching = server.client().entries(PROBE_KEY).into_future();
    in_time("the first state", watching).await.unwrap()
}

/// Fills the server's change log with such values.
async fn fill_log_with_probes(server: &mut ServerOnEtcd) {
    let mut watcher = watch_probes(server).await;
    for round in 0..PROBES_TO_FILL_LOG {
        let revision = server.writer.put(PROBE_KEY, probe(round)).await;
        wait_for_entries(&mut watcher, revision).await;
    }
}

fn probe(round: u64) -> Vec<u8> {
    vec![u8::try_from(round % 250).unwrap(); PROBE_BYTES]
}

/// Puts values after an outage, and waits until a watcher from before the outage has received them.
async fn probe_after_outage(server: &mut ServerOnEtcd, mut watcher: EntriesWatcher, round: u64) {
    let put = async {
        // The writer too has to detect that etcd is back.
        loop {
            if let Ok(revision) = server.writer.try_put(PROBE_KEY, probe(round)).await {
                return revision;
            }
            tokio::task::yield_now().await;
        }
    };
    let revision = in_time("etcd takes a put", put).await;
    wait_for_entries(&mut watcher, revision).await;
    // A new connection allocates its buffers as it is read. After a second value it has all of them.
    let revision = server.writer.put(PROBE_KEY, probe(round + 1)).await;
    wait_for_entries(&mut watcher, revision).await;
}

async fn etcd_cut_off(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    let proxy = Proxy::to(etcd.port()).await;
    let mut server = ServerOnEtcd::with_short_etcd_timeouts_at(etcd, &proxy.url()).await;
    fill_log_with_probes(&mut server).await;
    let (gauges, watches) = (server.gauges(), server.etcd_watch_counts());
    rounds
        .and(&gauges)
        .at_the_end(watches)
        .run(async |round| {
            let watcher = watch_probes(&server).await;
            let detected = etcd_loss_detected(&server);
            if round % 2 == 0 {
                proxy.cut();
            } else {
                proxy.stall();
            }
            detected.await;
            proxy.heal();
            probe_after_outage(&mut server, watcher, round).await;
        })
        .await
}

async fn etcd_killed(rounds: Rounds) -> Outcome {
    let mut server = ServerOnEtcd::with_short_etcd_timeouts().await;
    fill_log_with_probes(&mut server).await;
    let (gauges, watches) = (server.gauges(), server.etcd_watch_counts());
    rounds
        .and(&gauges)
        .at_the_end(watches)
        .run(async |round| {
            let watcher = watch_probes(&server).await;
            server.etcd.kill();
            server.etcd.start().await;
            probe_after_outage(&mut server, watcher, round).await;
        })
        .await
}

async fn etcd_paused(rounds: Rounds) -> Outcome {
    let mut server = ServerOnEtcd::with_short_etcd_timeouts().await;
    fill_log_with_probes(&mut server).await;
    let (gauges, watches) = (server.gauges(), server.etcd_watch_counts());
    rounds
        .and(&gauges)
        .at_the_end(watches)
        .run(async |round| {
            let watcher = watch_probes(&server).await;
            let detected = etcd_loss_detected(&server);
            server.etcd.pause();
            detected.await;
            server.etcd.resume();
            probe_after_outage(&mut server, watcher, round).await;
        })
        .await
}

async fn successor(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    let mut writer = EtcdWriter::new(&etcd).await;
    rounds
        .at_the_end(etcd_watch_counts(&etcd))
        .promised(CLIENT)
        .run(async |round| {
            let server = WholeServer::start(settings(&etcd.url())).await;
            // The client's endpoint is a name for the current server: somebody else may get the port of
            // the first one.
            let current = Arc::new(Mutex::new(server.address));
            let dialled = Arc::clone(&current);
            let connector = move |_: &Endpoint| -> Connecting {
                let address = *dialled.lock().unwrap();
                Box::pin(async move {
                    let stream = TcpStream::connect(address).await?;
                    Ok(Box::new(stream) as Box<dyn Io>)
                })
            };
            let client = Client::builder().endpoint("http://current:7400");
            let client = client.connector(connector).build().unwrap();
            let watching = client.entries(prefix()).into_future();
            let mut watcher = in_time("the first state", watching).await.unwrap();
            let before = writer.put("/c/a", round.to_string()).await;
            wait_for_entries(&mut watcher, before).await;
            match round % 2 {
                0 => drop(server),
                _ => server.stop().await,
            }
            let disconnected = async {
                while watcher.status().state == WatchState::Live {
                    watcher.status_changed().await;
                }
            };
            in_time("the watcher loses its server", disconnected).await;
            // No server receives this change, so the successor has to ask etcd for it.
            writer.put("/c/b", round.to_string()).await;
            let server = WholeServer::start(settings(&etcd.url())).await;
            *current.lock().unwrap() = server.address;
            let after = writer.put("/c/a", "after").await;
            wait_for_entries(&mut watcher, after).await;
            let page = server.metrics().await;
            let backfilled = page.contains("driftless_etcd_backfill_watches_total 1");
            assert!(
                backfilled,
                "the server did not ask etcd for earlier changes"
            );
            server.stop().await;
        })
        .await
}

async fn server_shut_down(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    let settings = settings(&etcd.url());
    rounds
        .at_the_end(etcd_watch_counts(&etcd))
        .run(async |_| {
            let server = WholeServer::start(settings.clone()).await;
            let url = server.url();
            let client = Client::connect(&url).unwrap();
            let dropped_after = client.entries(prefix()).await.unwrap();
            let other = Client::connect(&url).unwrap().entries(prefix()).await;
            let mut dropped_during = other.unwrap();
            let leaving = async {
                while dropped_during.status().state == WatchState::Live {
                    dropped_during.status_changed().await;
                }
                drop(dropped_during);
            };
            tokio::join!(server.stop(), in_time("a goodbye", leaving));
            drop(dropped_after);
        })
        .await
}
