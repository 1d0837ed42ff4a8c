//! What is logged, and how often.

use std::cell::RefCell;
use std::io;
use std::sync::Once;
use std::time::Duration;

use driftless_client::{Client, KeyRange, State, Watcher};

use crate::server::{Call, Server, soon};
use crate::world::World;

thread_local! {
    /// What was logged on this thread: each test has one of its own, and its runtime runs on it.
    static LOGGED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// All that is logged on this thread at `info` and above, line by line.
struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOGGED.with_borrow_mut(|logged| logged.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Begins to listen. For the whole process: with a subscriber for one thread, a line that
    /// another thread comes to first may be taken for one that nobody wants.
    fn begin() -> Self {
        static LISTENING: Once = Once::new();
        LISTENING.call_once(|| {
            tracing_subscriber::fmt()
                .with_writer(|| Log)
                .with_max_level(tracing::Level::INFO)
                .with_ansi(false)
                .init();
        });
        Self
    }

    /// The lines that hold `text`.
    fn lines(&self, text: &str) -> Vec<String> {
        let all = String::from_utf8(LOGGED.with_borrow(Vec::clone)).unwrap();
        let lines = all.lines().filter(|line| line.contains(text));
        lines.map(str::to_owned).collect()
    }
}

type Values = std::collections::BTreeMap<String, u32>;

async fn watch(client: &Client) -> Watcher<Values> {
    let watch = client.watch::<Values>(KeyRange::prefix("/p/"));
    let watch = watch.default_value(Values::new());
    watch
        .first_value_within(Duration::from_secs(1))
        .await
        .unwrap()
}

/// Waits until the watcher was shown the newest state.
async fn shown(watcher: &Watcher<Values>, world: &World) {
    soon(async {
        while watcher.status().state != State::Live
            || watcher.status().revision.get() != world.revision
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_stays_bad_is_logged_once() {
    const REFUSED: &str = "a state was refused";
    let log = Log::begin();
    let mut server = Server::start();
    let mut world = World::of(&[("/p/a", "1"), ("/p/b", "1")]);
    let client = server.client();
    let (one, call): (_, Call) = tokio::join!(watch(&client), async {
        let call = server.call().await;
        call.serve(&world).await;
        call
    });
    let two = watch(&client).await;
    assert!(log.lines("").is_empty());

    call.send(world.put("/p/a", "CANARY")).await;
    shown(&two, &world).await;
    let lines = log.lines(REFUSED);
    assert_eq!(lines.len(), 1, "two watchers, one line: {lines:?}");
    assert!(!lines[0].contains("CANARY"), "{lines:?}");
    for named in [
        "WARN",
        "/p/*",
        "/p/a",
        "revision=13",
        "expected an integer (u32)",
    ] {
        assert!(lines[0].contains(named), "{named}: {lines:?}");
    }

    // Other keys change, streams end, watchers come: it is the same value that is bad.
    for round in 0..20 {
        call.send(world.put("/p/b", &round.to_string())).await;
    }
    shown(&one, &world).await;
    drop(call);
    let call = server.call().await;
    call.send(World::hello()).await;
    call.send(world.current()).await;
    shown(&one, &world).await;
    let three = watch(&client).await;
    assert!(three.status().last_rejection.is_some());
    assert!(one.status().last_rejection.is_some());
    assert_eq!(log.lines(REFUSED).len(), 1);

    // Put again, and no better: somebody tried to mend it.
    call.send(world.put("/p/a", "CANARY")).await;
    shown(&one, &world).await;
    assert_eq!(log.lines(REFUSED).len(), 2);
    // Mended, and broken again.
    call.send(world.put("/p/a", "2")).await;
    call.send(world.put("/p/a", "CANARY")).await;
    shown(&one, &world).await;
    assert_eq!(log.lines(REFUSED).len(), 3);
    assert_eq!(log.lines("CANARY").len(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_two_lines_however_long_it_is() {
    let log = Log::begin();
    let mut server = Server::start();
    let world = World::of(&[("/p/a", "1")]);
    let client = server.client();
    let (watcher, call) = tokio::join!(watch(&client), async {
        let call = server.call().await;
        call.serve(&world).await;
        call
    });
    // A stream that ends and is there again is nothing to talk about.
    drop(call);
    let call = server.call().await;
    call.serve(&world).await;
    shown(&watcher, &world).await;
    assert!(log.lines("").is_empty());

    drop(call);
    for _ in 0..20 {
        let status = tonic::Status::unavailable("not in sync");
        server.call().await.fail(status).await;
    }
    let call = server.call().await;
    let lines = log.lines("");
    assert_eq!(lines.len(), 1, "{lines:?}");
    for named in ["WARN", "/p/*", "http://scripted:7400: not in sync"] {
        assert!(lines[0].contains(named), "{named}: {lines:?}");
    }
    call.serve(&world).await;
    shown(&watcher, &world).await;
    assert_eq!(log.lines("").len(), 2);
    assert_eq!(log.lines("INFO").len(), 1);
}
