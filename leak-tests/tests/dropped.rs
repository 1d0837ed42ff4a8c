//! Dropping the last watcher leaves nothing behind, at the client and at the server: both ends are in
//! this process, over real sockets, so both ends' tasks and descriptors are counted.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use driftless_client::{Client, KeyRange};
use driftless_server::metrics::Metrics;
use driftless_server::source::CatchUp;
use driftless_server::source::scripted::ScriptedEtcd;
use driftless_server::{Engine, Settings};
use leak_tests::Counts;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How often each thing is done. A leak of one descriptor a round shows in the first.
const ROUNDS: usize = 50;

/// Runs a test in a runtime of its own while no other runs: descriptors are counted for the whole
/// process.
fn alone(test: impl Future<Output = ()>) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test);
}

struct Server {
    etcd: ScriptedEtcd,
    metrics: Metrics,
    address: SocketAddr,
    /// The accept loop; ends with the server.
    _serving: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        let etcd = ScriptedEtcd::default();
        etcd.put("/c/a", "1");
        etcd.put("/c/b", "2");
        let prefix = KeyRange::prefix("/c/").unwrap();
        let settings = Settings::builder()
            .etcd("http://127.0.0.1:2379")
            .prefix("/c/")
            .build()
            .unwrap();
        let (catch_up, questions) = CatchUp::channel();
        let source = etcd.source(prefix.clone(), questions);
        let metrics = Metrics::new();
        let engine = Engine::start(&settings, metrics.clone(), [(prefix, source, catch_up)]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                engine.serve(stream);
            }
        });
        Self {
            etcd,
            metrics,
            address,
            _serving: serving,
        }
    }

    fn client(&self) -> Client {
        Client::connect(format!("http://{}", self.address)).unwrap()
    }

    /// What the other side says is left.
    fn assert_nothing_is_left(&self) {
        assert_eq!(
            (self.metrics.streams.get(), self.metrics.scopes.get()),
            (0, 0),
            "streams and scopes at the server"
        );
    }
}

#[test]
fn a_dropped_watcher_takes_its_stream_scope_tasks_and_socket_with_it() {
    alone(async {
        let server = Server::start().await;
        let before = Counts::now();
        let client = server.client();
        for _ in 0..ROUNDS {
            let one = client.watch::<u32>("/c/a").await.unwrap();
            let all = client.entries(KeyRange::prefix("/c/")).await.unwrap();
            assert_eq!((*one.load(), all.load().len()), (1, 2));
            let during = Counts::now();
            assert!(during.tasks > before.tasks && during.descriptors > before.descriptors);
            drop((one, all));
            Counts::returned_to(before).await.unwrap();
            server.assert_nothing_is_left();
        }
    });
}

/// A future that is dropped after `n` milliseconds, whatever it has come to by then: connecting,
/// syncing, waiting for a value, or done.
async fn dropped_half_way(client: &Client, key: &str, n: u64) {
    let _ = timeout(Duration::from_millis(n), client.watch::<u32>(key)).await;
}

#[test]
fn a_watch_that_is_dropped_half_way_leaves_nothing() {
    alone(async {
        let server = Server::start().await;
        // Accepts, by way of its backlog, and never says a word.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = Client::connect(format!("http://{}", listener.local_addr().unwrap())).unwrap();
        // Nobody listens there: it goes from one attempt to the next.
        let nobody = Client::connect("http://127.0.0.1:1").unwrap();
        let client = server.client();
        let before = Counts::now();
        for n in 0..12 {
            for (client, key) in [
                (&client, "/c/a"),
                (&client, "/c/none"),
                (&silent, "/c/a"),
                (&nobody, "/c/a"),
            ] {
                dropped_half_way(client, key, n).await;
            }
            // A change meanwhile reaches nobody, and nothing waits for one.
            server.etcd.put("/c/a", n.to_string());
            Counts::returned_to(before).await.unwrap();
            server.assert_nothing_is_left();
        }
    });
}

#[test]
fn a_leak_is_noticed() {
    alone(async {
        let server = Server::start().await;
        let before = Counts::now();
        let kept = server.client().watch::<u32>("/c/a").await.unwrap();
        let leaked = Counts::returned_to(before).await.unwrap_err();
        assert!(
            leaked.after.tasks > before.tasks && leaked.after.descriptors > before.descriptors,
            "{leaked}"
        );
        drop(kept);
        Counts::returned_to(before).await.unwrap();
    });
}
