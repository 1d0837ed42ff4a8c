//! A service's own mistake, found by its own test: what `README.md` shows, run.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::sync::Mutex;
use std::time::Duration;

use common::Server;
use driftless_client::{Client, Watcher};
use leak_tests::rounds;

leak_tests::use_jemalloc!();

/// Half of a second: what a test plants does not come back.
const A_MOMENT: Duration = Duration::from_millis(500);

/// Something that the service does over and over: a tenant is served by its limits.
async fn serve(client: &Client, tenant: &str) -> u32 {
    let limit = client.watch::<u32>(tenant).await.unwrap();
    *limit.load()
}

static LIMITS: Mutex<Vec<Watcher<u32>>> = Mutex::new(Vec::new());

/// The same, with a mistake: the watcher goes into a static, and nobody takes it out again.
async fn serve_and_keep(client: &Client, tenant: &str) -> u32 {
    let limit = client.watch::<u32>(tenant).await.unwrap();
    let now = *limit.load();
    LIMITS.lock().unwrap().push(limit);
    now
}

/// One test: what is counted is the whole process's.
#[test]
fn a_watcher_in_a_static_is_found_and_a_dropped_one_is_none() {
    common::alone(async {
        let server = Server::start().await;
        let url = server.url();

        let client = Client::connect(&url).unwrap();
        let outcome = rounds(200)
            .named("a tenant is served")
            .run(async |_| assert_eq!(serve(&client, "/c/a").await, 1))
            .await;
        outcome.assert_no_leak();

        // One watcher of a range is kept: its stream, tasks and socket are, too.
        let outcome = rounds(200)
            .named("a tenant is served, and its limit is kept")
            .warm_up(0)
            .patience(A_MOMENT)
            .run(async |_| assert_eq!(serve_and_keep(&client, "/c/a").await, 1))
            .await;
        assert_eq!(outcome.noticed_by(), ["tasks", "descriptors"], "{outcome}");
        LIMITS.lock().unwrap().clear();

        // Those after the first share all that with it, and cost memory only.
        let first = client.watch::<u32>("/c/a").await.unwrap();
        let outcome = rounds(200)
            .named("one more is kept each time")
            .run(async |_| assert_eq!(serve_and_keep(&client, "/c/a").await, 1))
            .await;
        assert_eq!(outcome.noticed_by(), ["allocated bytes"], "{outcome}");
        LIMITS.lock().unwrap().clear();
        drop(first);
    });
}
