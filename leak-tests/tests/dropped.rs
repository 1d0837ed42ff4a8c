//! Dropping the last watcher leaves nothing behind, at the client and at the server.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::time::Duration;

use common::{Server, alone};
use driftless_client::{Client, KeyRange};
use tokio::net::TcpListener;
use tokio::time::timeout;

/// How often each thing is done. A leak of one descriptor a round shows in the first.
const ROUNDS: usize = 50;

#[test]
fn dropped_watcher_leaves_no_stream_scope_task_or_socket() {
    alone(async {
        let server = Server::start().await;
        let before = server.baseline().await;
        let client = server.client();
        for _ in 0..ROUNDS {
            let one = client.watch::<u32>("/c/a").await.unwrap();
            let all = client.entries(KeyRange::prefix("/c/")).await.unwrap();
            assert_eq!((*one.load(), all.load().len()), (1, 2));
            let during = server.witnesses().read().await.unwrap();
            for (index, witness) in server.witnesses().iter().enumerate() {
                let name = witness.name();
                // First states have been read by now.
                let is_more = Some(during[index]) > before.before(name);
                assert!(is_more || name == "answers", "{name}");
            }
            drop((one, all));
            before.returned().await.unwrap();
        }
    });
}

/// A future that is dropped after `n` milliseconds, whatever it has come to by then: connecting,
/// syncing, waiting for a value, or done.
async fn dropped_half_way(client: &Client, key: &str, n: u64) {
    let _ = timeout(Duration::from_millis(n), client.watch::<u32>(key)).await;
}

#[test]
fn watch_dropped_half_way_leaves_nothing() {
    alone(async {
        let server = Server::start().await;
        // Accepts, by way of its backlog, and never says a word.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = Client::connect(format!("http://{}", listener.local_addr().unwrap())).unwrap();
        // Nobody listens there: it goes from one attempt to the next.
        let nobody = Client::connect("http://127.0.0.1:1").unwrap();
        let client = server.client();
        let before = server.baseline().await;
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
            before.returned().await.unwrap();
        }
    });
}

#[test]
fn leak_is_noticed_by_every_witness() {
    alone(async {
        let server = Server::start().await;
        let before = server.baseline().await;
        let kept = server.client().watch::<u32>("/c/a").await.unwrap();
        let leaked = before.returned().await.unwrap_err();
        assert_eq!(
            leaked.witnesses(),
            ["tasks", "descriptors", "streams", "scopes", "connections"],
            "{leaked}"
        );
        drop(kept);
        before.returned().await.unwrap();
    });
}
