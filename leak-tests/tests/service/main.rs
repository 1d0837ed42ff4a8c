//! A service's own mistake, found by its own test: what `README.md` shows, run.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../common/mod.rs"]
mod common;
mod leaks;

use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use common::Server;
use driftless_client::{Client, Watcher};
use leak_tests::rounds;
use tokio::task::LocalSet;

/// What differs between the README's test and the one that is run here: who calls it, how often, which
/// server, and which key.
const DIFFERENCES: [[&str; 2]; 4] = [
    [
        "#[tokio::main]\nasync fn main()",
        "pub(crate) async fn main()",
    ],
    ["rounds(1000)", "rounds(crate::ROUNDS)"],
    ["\"http://127.0.0.1:7400\"", "crate::url()"],
    ["\"/config/shop/limit\"", "\"/c/a\""],
];

/// Enough for a watcher a round to be found. Recording each allocation takes its time.
const ROUNDS: u64 = 150;

/// Tells jemalloc what to record.
const RECORDS: &str = "_RJEM_MALLOC_CONF";

/// Where the mistake is, in a stack.
const IN_THE_MISTAKE: &str = "/service/leaks.rs:";

/// Which test finds it.
const FINDS: &str = "readme_test_finds_its_mistake";

/// How long a count is waited for that does not return.
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

static URL: OnceLock<String> = OnceLock::new();

/// Where the README's test finds a server.
fn url() -> String {
    URL.get().unwrap().clone()
}

#[test]
fn readme_test_is_the_one_that_runs() {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("And `tests/leaks.rs`").unwrap();
    let (_, rest) = rest.split_once("```rust,no_run\n").unwrap();
    let (mut there, _) = rest
        .split_once("```")
        .map(|(a, b)| (a.to_owned(), b))
        .unwrap();
    for [there_is, here_is] in DIFFERENCES {
        assert_eq!(there.matches(there_is).count(), 1, "{there_is}");
        there = there.replace(there_is, here_is);
    }
    let (_, here) = include_str!("leaks.rs").split_once("\n\n").unwrap();
    assert_eq!(there, here);
    // Otherwise nobody would call its `main`, and it passed.
    assert!(readme.contains("[[test]]\nname = \"leaks\"\nharness = false\n"));
}

#[test]
fn watcher_in_a_static_is_a_leak_and_a_dropped_one_is_not() {
    common::alone(async {
        let server = Server::start().await;
        let client = Client::connect(server.url()).unwrap();
        let outcome = rounds(200)
            .named("a tenant is served")
            .run(async |_| assert_eq!(serve(&client, "/c/a").await, 1))
            .await;
        outcome.assert_no_leak();

        // One watcher of a range is kept: its stream, tasks and socket are, too.
        let outcome = rounds(200)
            .named("a tenant is served, and its limit is kept")
            .warm_up(0)
            .return_within(A_MOMENT)
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

/// What the README's test says, run against a server of its own.
async fn what_the_readmes_test_finds() -> String {
    let server = Server::start().await;
    URL.set(server.url()).unwrap();
    let tasks = LocalSet::new();
    let found = tasks.run_until(async { tokio::task::spawn_local(leaks::main()).await });
    let found = found.await.unwrap_err().into_panic();
    found.downcast_ref::<String>().unwrap().clone()
}

#[test]
fn readme_test_finds_its_mistake() {
    common::alone(async {
        let found = what_the_readmes_test_finds().await;
        assert!(found.contains(": allocated bytes grew from "), "{found}");
        let recorded = std::env::var(RECORDS).is_ok_and(|how| how.contains("prof:true"));
        assert_eq!(found.contains(IN_THE_MISTAKE), recorded, "{found}");
    });
}

/// What the README says to run for the stacks, but for the program.
#[test]
fn recorded_allocations_name_the_leaking_line() {
    let readme = include_str!("../../README.md");
    let is_said =
        |line: &&str| line.starts_with(RECORDS) && line.ends_with(" cargo test --test leaks");
    let said = readme.lines().find(is_said).unwrap();
    let (_, how) = said.split(' ').next().unwrap().split_once('=').unwrap();
    let this = std::env::current_exe().unwrap();
    let mut again = std::process::Command::new(this);
    again.args(["--exact", FINDS]).env(RECORDS, how);
    let mut ended = None;
    // Its pipes are descriptors of this process.
    common::alone(async { ended = Some(again.output().unwrap()) });
    let again = ended.unwrap();
    let said = String::from_utf8_lossy(&again.stdout);
    let warned = String::from_utf8_lossy(&again.stderr);
    assert!(
        again.status.success() && said.contains("1 passed"),
        "stacks need line tables:\n{said}{warned}"
    );
}
