//! Values are secrets: only `driftless get` and `watch` print them.
//!
//! Every value here contains a canary, in every format and with every kind of error, for a service whose
//! own code quotes its input. Then all output is searched: the logs of the library and its dependencies at
//! every level; errors, statuses and handles; reports; the server's logs, metrics and HTTP answers.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod search;
mod service;
mod wire;

use std::collections::BTreeSet;
use std::time::Duration;

use driftless_client::{Client, KeyRange, NoValue, WatchError, Watcher};
use driftless_test_support::{
    Driftless, Etcd, PATIENCE, ServerProcess, free_port, http, run, wait_until,
};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;

use search::{Canary, Output};
use service::{CANARY, Case, Config, Document, NUMBER, Target, cases};
use wire::Tap;

/// The program under test.
const DRIFTLESS: Driftless = Driftless::at(env!("CARGO_BIN_EXE_driftless"));

/// What the server serves.
const PREFIX: &str = "/s/";

/// How long to wait for a first value that does not arrive.
const FIRST: Duration = Duration::from_secs(2);

fn searched() -> [Canary; 2] {
    [Canary::new(CANARY), Canary::new(NUMBER)]
}

#[track_caller]
fn assert_clean(what: &str, text: &str) {
    for canary in searched() {
        if let Some(found) = canary.find(text) {
            panic!("{what} holds a value, {found}");
        }
    }
}

/// Calls a function with the type of a target.
macro_rules! with_target {
    ($target:expr, $function:ident($($argument:expr),*)) => {
        match $target {
            Target::Document => $function::<Document>($($argument),*).await,
            Target::Number => $function::<u32>($($argument),*).await,
            Target::Flag => $function::<bool>($($argument),*).await,
            Target::Letter => $function::<char>($($argument),*).await,
            Target::Text => $function::<String>($($argument),*).await,
            Target::Mode => $function::<service::Mode>($($argument),*).await,
            Target::Quoting => $function::<service::Quoting>($($argument),*).await,
            Target::Panicking => $function::<service::Panicking>($($argument),*).await,
            Target::Address => $function::<std::net::IpAddr>($($argument),*).await,
        }
    };
}

/// A watch whose first value is rejected.
async fn refused_at_first<T: Config>(client: &Client, key: &str, output: &Output) {
    // On a machine that is busy the state may take longer than a first value may.
    let rejection = timeout(PATIENCE, async {
        loop {
            let watch = client.watch::<T>(key).validate(T::check);
            let watch = watch.first_value_within(FIRST);
            output.debug(&watch);
            let error = watch.await.unwrap_err();
            output.note(&error);
            output.debug(&error);
            match error {
                WatchError::NoFirstValue {
                    why: NoValue::Rejected(rejection),
                    ..
                } => return rejection,
                other => assert!(other.is_retryable(), "{key}: {other}"),
            }
        }
    });
    let rejection = rejection.await.expect("the value is refused");
    output.note(&rejection);
    output.note(&rejection.kind());
    output.note(&rejection.path());
    output.debug(&rejection);
}

/// Adds everything that a watcher shows to the output. Returns its revision and whether it rejects its
/// state.
fn show<T>(watcher: &Watcher<T>, output: &Output) -> bool {
    output.debug(watcher);
    output.debug(&watcher.load());
    let status = watcher.status();
    output.debug(&status);
    if let Some(rejected) = &status.last_rejection {
        output.note(&rejected.rejection);
        output.debug(rejected);
    }
    status.last_rejection.is_some()
}

/// A watcher that has a good value, then receives a bad one, then a good one again.
async fn refused_later<T: Config>(client: &Client, key: &str, output: &Output) -> LiveWatcher {
    let watch = client.watch::<T>(key).validate(T::check);
    let mut watcher = watch.await.unwrap();
    let output = output.clone();
    let key = key.to_owned();
    LiveWatcher(Box::pin(async move {
        show(&watcher, &output);
        wait(&key, || show(&watcher, &output)).await;
        let changed = timeout(PATIENCE, watcher.changed()).await;
        output.debug(&changed.expect("a good value comes").unwrap());
        assert!(!show(&watcher, &output));
    }))
}

struct LiveWatcher(std::pin::Pin<Box<dyn Future<Output = ()> + Send>>);

async fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn put(etcd: &Etcd, key: &str, value: &[u8]) {
    // The value is passed on the standard input.
    etcd.ctl_with(["put", key], value);
}

#[test]
fn no_output_shows_a_value() {
    let output = Output::capture("secrets/service.rs");
    let etcd = Etcd::started_blocking();
    let flags = [
        "--log",
        "trace,h2=trace,hyper=trace",
        "--report-interval",
        "1s",
    ];
    let server = DRIFTLESS.serve_at(&etcd.url(), &[PREFIX], 0, &flags);
    server.wait_ready();
    let runtime = Runtime::new().unwrap();
    let cases: Vec<(String, Case)> = cases()
        .into_iter()
        .enumerate()
        .map(|(number, case)| {
            let dot = if case.suffix.is_empty() { "" } else { "." };
            (format!("{PREFIX}{number}{dot}{}", case.suffix), case)
        })
        .collect();

    let tap = Tap::default();
    let builder = Client::builder()
        .endpoint(server.url())
        .connector(tap.clone())
        .label("service", "careless");
    output.debug(&builder);
    let client = builder.build().unwrap();
    output.debug(&client);

    // Refused from the start.
    for (key, case) in &cases {
        put(&etcd, key, &case.bad);
    }
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for (key, case) in &cases {
            let (client, output, key) = (client.clone(), output.clone(), key.clone());
            let target = case.target;
            tasks.spawn(async move {
                with_target!(target, refused_at_first(&client, &key, &output));
            });
        }
        tasks.join_all().await;
    });

    // Good, then bad, then good.
    let live = || cases.iter().filter(|(_, case)| case.good.is_some());
    let put_good = || {
        live().for_each(|(key, case)| {
            put(&etcd, key, case.good.as_ref().unwrap().as_bytes());
        })
    };
    put_good();
    let mut watchers = JoinSet::new();
    for (key, case) in live() {
        let watcher = runtime
            .block_on(async { with_target!(case.target, refused_later(&client, key, &output)) });
        watchers.spawn_on(watcher.0, runtime.handle());
    }
    // Keys and values as they are, and everything as one value.
    let all = || KeyRange::prefix(PREFIX);
    let mut entries = runtime.block_on(async {
        let builder = client.entries(all());
        output.debug(&builder);
        builder.await.unwrap()
    });
    let tree = runtime.block_on(async {
        let watch = client.watch::<Document>(all()).validate(Document::check);
        watch.first_value_within(FIRST).await
    });
    let refused = tree.expect_err("its keys are no fields");
    output.debug(&refused);
    output.note(&refused);
    for (key, case) in live() {
        put(&etcd, key, &case.bad);
    }
    runtime.block_on(async {
        let reports = || {
            let reported = tap.reported();
            let kinds: BTreeSet<String> = reported.into_iter().map(|r| r.kind).collect();
            let expected = [
                "conflict",
                "invalid",
                "panic",
                "syntax",
                "type",
                "unknown-field",
                "utf8",
            ];
            expected.iter().all(|kind| kinds.contains(*kind))
        };
        wait("rejections of all kinds are reported", reports).await;
    });
    put_good();
    runtime.block_on(async {
        timeout(PATIENCE * 2, async {
            while let Some(ended) = watchers.join_next().await {
                ended.unwrap();
            }
        })
        .await
        .expect("all watchers see it through");
        let change = timeout(PATIENCE, entries.changed()).await.unwrap().unwrap();
        output.debug(&change);
        output.debug(&entries);
        output.debug(&entries.load());
        output.debug(&entries.load().iter().collect::<Vec<_>>());
        output.debug(&entries.status());
        output.debug(&entries.watch_status());
        let get = client.get(all());
        output.debug(&get);
        output.debug(&get.await.unwrap());
    });

    // Failures on the way.
    runtime.block_on(failures(&server, &output));

    // What makes a server talk: large values and changes to them, deletes, an etcd that forgets its
    // history and is gone for a while.
    let large = |end: &str| format!("{}{CANARY}{end}", "0123456789abcdef ".repeat(10_000));
    put(&etcd, "/s/large", large("1").as_bytes());
    put(&etcd, "/s/large", large("2").as_bytes());
    etcd.delete("/s/0");
    etcd.ctl(["compact", &etcd.revision().to_string()]);
    let mut etcd = etcd;
    etcd.kill();
    wait_until("the server misses etcd", || {
        server.process.stderr().contains("etcd cannot be reached")
    });
    etcd.start_blocking();
    put(&etcd, "/s/after", CANARY.as_bytes());
    wait_until("the server has what came after", || {
        let get = run(DRIFTLESS.command().args([
            "--log",
            "trace,h2=trace,hyper=trace",
            "get",
            "--server",
            &server.url(),
            "/s/after",
        ]));
        assert_clean("the standard error of get", &get.stderr);
        get.stdout.contains(CANARY)
    });
    for path in ["/metrics", "/readyz", "/healthz", "/", "/debug"] {
        let (_, body) = http::get(server.admin(), path).unwrap();
        assert_clean(path, &body);
    }
    drop(client);
    runtime.shutdown_timeout(PATIENCE);
    let server = server.stop();

    // All of this did happen.
    for target in ["h2::", "driftless_server"] {
        assert!(server.stderr.contains(target), "{target} logged nothing");
    }
    assert!(server.stderr.contains("TRACE"));
    let said = output.text();
    for part in [
        "TRACE",
        "h2::",
        "a state was refused",
        "NoFirstValue",
        "ValueChange {",
    ] {
        assert!(said.contains(part), "{part} was not captured");
    }

    assert_clean("the library's output", &said);
    for sent in tap.sent() {
        assert_clean("what the client sends", &String::from_utf8_lossy(&sent));
    }
    assert_clean("the server's standard output", &server.stdout);
    assert_clean("the server's standard error", &server.stderr);
}

/// Errors that are not about values, of clients that have values.
async fn failures(server: &ServerProcess, output: &Output) {
    let client = Client::connect(server.url()).unwrap();
    let small = Client::builder().endpoint(server.url()).range_limit(100);
    let small = small.build().unwrap();
    let nobody = Client::connect(format!("http://127.0.0.1:{}", free_port())).unwrap();
    let all = || KeyRange::prefix(PREFIX);
    let short = Duration::from_millis(200);
    for (client, range) in [
        (&client, KeyRange::key("/elsewhere")),
        (&client, KeyRange::key("")),
        (&small, all()),
        (&nobody, all()),
    ] {
        let get = client
            .get(range.clone())
            .timeout(PATIENCE)
            .await
            .unwrap_err();
        output.note(&get);
        output.debug(&get);
        let watch = client.watch::<Document>(range.clone());
        let watch = watch.first_value_within(short).await.err().unwrap();
        output.note(&watch);
        output.debug(&watch);
        let entries = client.entries(range).first_state_within(short).await;
        let entries = entries.err().unwrap();
        output.note(&entries);
        output.debug(&entries);
    }
}

/// The search finds a value in any output.
#[test]
fn search_finds_a_shown_value() {
    const SHOWN: &str = "sHoWnCaNaRy";
    let output = Output::capture("secrets/service.rs");
    let canary = Canary::new(SHOWN);
    for show in [
        (|output| output.note(&SHOWN)) as fn(&Output),
        |output| output.debug(&Some(SHOWN)),
        |_| tracing::trace!(target: "h2::codec", bytes = ?SHOWN.as_bytes(), "sent"),
        |_| tracing::trace!(value = SHOWN),
        |_| {
            let _span = tracing::trace_span!("decoding", value = SHOWN).entered();
        },
        |_| drop(std::panic::catch_unwind(|| panic!("over {SHOWN}"))),
    ] {
        let before = output.text().len();
        show(&output);
        let said = output.text()[before..].to_owned();
        assert!(canary.find(&said).is_some(), "{said}");
    }
    // From another process, on its standard error.
    let told = run(DRIFTLESS.command().args(["get", "--server", SHOWN, "/a"]));
    assert!(canary.find(&told.stderr).is_some(), "{told:?}");
}
