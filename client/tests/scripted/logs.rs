//! What is logged, and how often.

use std::cell::RefCell;
use std::io;
use std::sync::Once;
use std::time::Duration;

use driftless_client::{Client, KeyRange, WatchState, Watcher};
use driftless_proto::v1::watch_response::Frame;

use crate::etcd_model::EtcdModel;
use crate::server::{Call, Server, soon};

thread_local! {
    /// What was logged on this thread: each test has its own, and its runtime runs on it.
    static LOGGED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The lines that are logged on this thread at `info` and above.
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
    /// Begins to collect. The subscriber is the whole process's: with one for a thread, `tracing` may cache a call
    /// site as disabled if another thread reaches it first.
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

/// Waits until the newest state was published to the watcher.
async fn shown(watcher: &Watcher<Values>, etcd: &EtcdModel) {
    soon(async {
        while watcher.status().state != WatchState::Live
            || watcher.status().revision.get() != etcd.revision
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn lasting_problem_is_logged_once() {
    const REFUSED: &str = "a state was refused";
    let log = Log::begin();
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/p/a", "1"), ("/p/b", "1")]);
    let client = server.client();
    let (one, call): (_, Call) = tokio::join!(watch(&client), async {
        let call = server.next_call().await;
        call.send_state(&etcd).await;
        call
    });
    let two = watch(&client).await;
    assert!(log.lines("").is_empty());

    call.send(etcd.put("/p/a", "CANARY")).await;
    shown(&two, &etcd).await;
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

    // Other keys change, streams end, watchers come: the bad value is the same.
    for round in 0..20 {
        call.send(etcd.put("/p/b", &round.to_string())).await;
    }
    shown(&one, &etcd).await;
    drop(call);
    let call = server.next_call().await;
    call.send(EtcdModel::hello()).await;
    call.send(etcd.current()).await;
    shown(&one, &etcd).await;
    let three = watch(&client).await;
    assert!(three.status().last_rejection.is_some());
    assert!(one.status().last_rejection.is_some());
    assert_eq!(log.lines(REFUSED).len(), 1);

    // Put again, and still bad: somebody tried to fix it.
    call.send(etcd.put("/p/a", "CANARY")).await;
    shown(&one, &etcd).await;
    assert_eq!(log.lines(REFUSED).len(), 2);
    // Fixed, and bad again.
    call.send(etcd.put("/p/a", "2")).await;
    call.send(etcd.put("/p/a", "CANARY")).await;
    shown(&one, &etcd).await;
    assert_eq!(log.lines(REFUSED).len(), 3);
    assert_eq!(log.lines("CANARY").len(), 0);
}

/// Waits for the first value for an hour, and for this many logged lines that hold `text`.
async fn watch_until_logged<T>(client: &Client, range: &str, log: &Log, text: &str, lines: usize)
where
    T: serde::de::DeserializeOwned + Send + Sync + 'static,
{
    let watch = client.watch::<T>(range);
    let watch = watch.first_value_within(Duration::from_secs(3600));
    tokio::select! {
        biased;
        _ = watch.into_future() => panic!("there is no value"),
        () = async {
            // Only the watch's own timers let time pass.
            while log.lines(text).len() < lines {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        } => {}
    }
}

#[tokio::test(start_paused = true)]
async fn missing_first_value_is_logged_once_per_reason() {
    const WAITING: &str = "waiting for the first value";
    let log = Log::begin();
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[]);
    let client = server.client();
    let script = async {
        // Ten attempts, each with another error.
        for attempt in 0..10 {
            let status = tonic::Status::unavailable(format!("trouble {attempt}"));
            server.next_call().await.fail(status).await;
        }
        while log.lines(WAITING).is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let call = server.next_call().await;
        call.send_state(&etcd).await;
        while log.lines(WAITING).len() < 2 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        call.send(etcd.put("/a/", "CANARY")).await;
        while log.lines(WAITING).len() < 3 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for _ in 0..10 {
            call.send(etcd.progress()).await;
        }
        call.send(etcd.delete("/a/")).await;
        call
    };
    let (_call, ()) = tokio::join!(
        script,
        watch_until_logged::<u32>(&client, "/a/", &log, WAITING, 4)
    );
    let lines = log.lines(WAITING);
    let missing = "there is no such key; for the keys below it, use KeyRange::prefix";
    let reasons = [
        "no server has sent the whole state: http://scripted:7400: trouble",
        missing,
        "the value was refused: key /a/: expected an integer (u32), found text that is no number",
        missing,
    ];
    for (line, reason) in lines.iter().zip(reasons) {
        assert!(line.contains("INFO") && line.contains(reason), "{lines:?}");
    }
    assert_eq!(lines.len(), reasons.len(), "{lines:?}");
    assert_eq!(log.lines("CANARY").len(), 0);
}

#[tokio::test(start_paused = true)]
async fn quick_first_value_is_not_logged() {
    let log = Log::begin();
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[]);
    let client = server.client();
    let (watcher, _call) = tokio::join!(client.watch::<u32>("/a").into_future(), async {
        let call = server.next_call().await;
        call.send_state(&etcd).await;
        tokio::time::sleep(Duration::from_millis(900)).await;
        call.send(etcd.put("/a", "1")).await;
        call
    });
    assert_eq!(*watcher.unwrap().load(), 1);
    assert_eq!(log.lines(""), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn default_without_a_value_is_logged_as_a_warning() {
    let log = Log::begin();
    let mut server = Server::start();
    let client = server.client();
    let (watcher, call) = tokio::join!(watch(&client), server.next_call());
    let lines = log.lines("the default is used until there is one");
    assert_eq!(lines.len(), 1, "{lines:?}");
    for named in ["WARN", "/p/*", "within=1s", "no server has answered yet"] {
        assert!(lines[0].contains(named), "{named}: {lines:?}");
    }
    let status = watcher.status();
    assert_eq!((status.state, status.age()), (WatchState::Connecting, None));
    assert_eq!(status.revision.get(), 0);
    // A default for a key that does not exist is normal.
    let etcd = EtcdModel::with(&[]);
    call.send_state(&etcd).await;
    shown(&watcher, &etcd).await;
    let _other = watch(&client).await;
    assert_eq!(log.lines("WARN").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn empty_range_is_logged_where_it_is_unusual() {
    const PREFIX: &str = "there is no key under this prefix";
    const FOLDER: &str = "for the keys below it, use KeyRange::prefix";
    let log = Log::begin();
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[]);
    let client = server.client();
    // Untyped watchers log nothing.
    let (entries, call) = tokio::join!(
        client.entries(KeyRange::prefix("/p/")).into_future(),
        async {
            let call = server.next_call().await;
            call.send_state(&etcd).await;
            call
        }
    );
    let _entries = entries.unwrap();
    assert_eq!(log.lines(""), [""; 0]);
    let one = watch(&client).await;
    let lines = log.lines(PREFIX);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("INFO") && lines[0].contains("/p/*"));
    let _two = watch(&client).await;
    call.send(etcd.progress()).await;
    shown(&one, &etcd).await;
    assert_eq!(log.lines(PREFIX).len(), 1);
    call.send(etcd.put("/p/a", "1")).await;
    call.send(etcd.delete("/p/a")).await;
    shown(&one, &etcd).await;
    assert_eq!(log.lines(PREFIX).len(), 2, "it is empty again");

    for (key, expected) in [("/a", 0), ("/a/", 1)] {
        let etcd = EtcdModel::with(&[]);
        let (watcher, _call) =
            tokio::join!(client.watch::<Option<u32>>(key).into_future(), async {
                let call = server.next_call().await;
                call.send_state(&etcd).await;
                call
            });
        assert_eq!(*watcher.unwrap().load(), None);
        assert_eq!(log.lines(FOLDER).len(), expected, "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn outage_is_logged_in_two_lines() {
    let log = Log::begin();
    let mut server = Server::start();
    let etcd = EtcdModel::with(&[("/p/a", "1")]);
    let client = server.client();
    let (watcher, call) = tokio::join!(watch(&client), async {
        let call = server.next_call().await;
        call.send_state(&etcd).await;
        call
    });
    // A stream that ends and begins again is not logged.
    drop(call);
    let call = server.next_call().await;
    call.send_state(&etcd).await;
    shown(&watcher, &etcd).await;
    assert!(log.lines("").is_empty());

    drop(call);
    for _ in 0..20 {
        let status = tonic::Status::unavailable("not in sync");
        server.next_call().await.fail(status).await;
    }
    let call = server.next_call().await;
    let lines = log.lines("");
    assert_eq!(lines.len(), 1, "{lines:?}");
    for named in ["WARN", "/p/*", "http://scripted:7400: not in sync"] {
        assert!(lines[0].contains(named), "{named}: {lines:?}");
    }
    call.send_state(&etcd).await;
    shown(&watcher, &etcd).await;
    assert_eq!(log.lines("").len(), 2);
    assert_eq!(log.lines("INFO").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn reset_to_an_older_revision_is_logged() {
    const REPLACED: &str = "the server has another history of etcd";
    let log = Log::begin();
    let mut server = Server::start();
    let etcd = EtcdModel::with(&[("/p/a", "1"), ("/p/b", "1"), ("/p/c", "1")]);
    let client = server.client();
    let (watcher, call) = tokio::join!(watch(&client), async {
        let call = server.next_call().await;
        call.send_state(&etcd).await;
        call
    });
    let watcher = watcher;
    drop(call);
    // A server whose etcd is behind may not move the state back without the flag.
    let older = EtcdModel::with(&[("/p/a", "old")]);
    let call = server.next_call().await;
    call.send_state(&older).await;
    call.wait_until_ended().await;
    assert_eq!(watcher.load().len(), 3);
    assert!(log.lines(REPLACED).is_empty());
    // With the flag, it may.
    let older = EtcdModel::with(&[("/p/a", "5")]);
    let call = server.next_call().await;
    call.send(EtcdModel::hello()).await;
    let Frame::Snapshot(mut snapshot) = older.snapshot() else {
        unreachable!()
    };
    snapshot.reset = true;
    call.send(Frame::Snapshot(snapshot)).await;
    shown(&watcher, &older).await;
    assert_eq!(watcher.load().len(), 1);
    let lines = log.lines(REPLACED);
    assert_eq!(lines.len(), 1, "{lines:?}");
    for named in ["WARN", "/p/*", "http://scripted:7400", "from=13", "to=11"] {
        assert!(lines[0].contains(named), "{named}: {lines:?}");
    }
}
