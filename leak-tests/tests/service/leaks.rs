//! What `README.md` shows, but for the server, the key and who calls it.

use std::sync::Mutex;
use std::time::Duration;

use driftless_client::{Client, Watcher};
use leak_tests::rounds;

leak_tests::use_jemalloc!(); // counts bytes exactly; in the root of the test

static LIMITS: Mutex<Vec<Watcher<u32>>> = Mutex::new(Vec::new());

async fn serve(client: &Client, key: &str) -> u32 {
    let watcher = client.watch::<u32>(key).await.unwrap();
    let limit = *watcher.load();
    LIMITS.lock().unwrap().push(watcher); // found: "allocated bytes grew from … to …"
    limit
}

pub(crate) async fn main() {
    let client = Client::connect(crate::url()).unwrap();
    let outcome = rounds(crate::ROUNDS)
        .named("a request is served")
        .within(Duration::from_secs(30))
        .run(async |_| {
            serve(&client, "/c/a").await;
        })
        .await;
    outcome.assert_no_leak();
}
