//! Every future of the client's public API, dropped at every poll: nothing is left of it, and nothing
//! is lost.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../common/mod.rs"]
mod common;
mod list;

use std::collections::BTreeSet;
use std::future::{IntoFuture, poll_fn};
use std::path::Path;
use std::pin::Pin;
use std::sync::Mutex;

use common::{Server, alone};
use driftless_client::{Client, KeyRange, Resources, Status, WatchState, Watcher};
use driftless_test_support::{PATIENCE, in_time};
use futures_core::Stream;
use leak_tests::{Baseline, at_every_poll, poll_times};

use list::Listed;

/// A public future, and what proves that it can be dropped.
struct Case {
    /// As [`list::public_futures`] calls it.
    future: &'static str,
    proof: Proof,
}

type Proof = for<'a> fn(&'a World) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// To add one: its name as the list's test says it, and how it begins ([`begins`]), or how it waits on
/// a handle and what it waits for ([`waits`]).
const CASES: &[Case] = &[
    Case {
        future: "WatchBuilder::into_future",
        proof: |world| {
            Box::pin(begins(
                world,
                |client| client.watch::<u32>("/c/a"),
                |watcher| *watcher.unwrap().load() == 1,
            ))
        },
    },
    Case {
        future: "EntriesBuilder::into_future",
        proof: |world| {
            Box::pin(begins(
                world,
                |client| client.entries(KeyRange::prefix("/c/")),
                |watcher| watcher.unwrap().load().len() == 2,
            ))
        },
    },
    Case {
        future: "GetBuilder::into_future",
        proof: |world| {
            Box::pin(begins(
                world,
                |client| client.get(KeyRange::prefix("/c/")),
                |entries| entries.unwrap().len() == 2,
            ))
        },
    },
    Case {
        future: "Watcher::changed",
        proof: |world| {
            Box::pin(waits(
                world,
                async |client| client.watch::<u32>("/c/a").await.unwrap(),
                async |watcher| {
                    let revision = watcher.changed().await.unwrap().revision;
                    (revision, *watcher.load())
                },
                |server, round| (server.etcd.put("/c/a", round.to_string()), round),
                |seen, news| *seen == (news.0, u32::try_from(news.1).unwrap()),
            ))
        },
    },
    Case {
        future: "Watcher::status_changed",
        proof: |world| {
            Box::pin(waits(
                world,
                async |client| {
                    let mut watcher = client.watch::<u32>("/c/a").await.unwrap();
                    while settled(watcher.status(), watcher.status_changed()).await {}
                    watcher
                },
                async |watcher| loop {
                    // That an older refusal is over may be told late.
                    let status = watcher.status_changed().await;
                    if status.last_rejection.is_some() {
                        return status;
                    }
                },
                refused,
                |status, revision| {
                    let rejected = status.last_rejection.as_ref();
                    rejected.is_some_and(|rejected| rejected.revision == *revision)
                },
            ))
        },
    },
    Case {
        future: "StatusWatcher::changed",
        proof: |world| {
            Box::pin(waits(
                world,
                async |client| {
                    let watcher = client.watch::<u32>("/c/a").await.unwrap();
                    let mut status = watcher.watch_status();
                    while settled(watcher.status(), status.changed()).await {}
                    (watcher, status)
                },
                async |(_, status)| loop {
                    let status = status.changed().await;
                    if status.last_rejection.is_some() {
                        return status;
                    }
                },
                refused,
                |status, revision| {
                    let rejected = status.last_rejection.as_ref();
                    rejected.is_some_and(|rejected| rejected.revision == *revision)
                },
            ))
        },
    },
    Case {
        future: "EntriesWatcher::changed",
        proof: |world| {
            Box::pin(waits(
                world,
                async |client| client.entries(KeyRange::prefix("/c/")).await.unwrap(),
                async |watcher| watcher.changed().await.unwrap().revision,
                |server, round| server.etcd.put("/c/b", round.to_string()),
                |seen, news| seen == news,
            ))
        },
    },
    Case {
        future: "EntriesWatcher::status_changed",
        proof: |world| {
            Box::pin(waits(
                world,
                async |client| {
                    let range = KeyRange::prefix("/c/");
                    let mut watcher = client.entries(range).await.unwrap();
                    while settled(watcher.status(), watcher.status_changed()).await {}
                    watcher
                },
                async |watcher| watcher.status_changed().await,
                |server, _| server.break_connections(),
                |status, ()| status.last_error.is_some(),
            ))
        },
    },
    Case {
        future: "PartWatcher::changed",
        proof: |world| {
            Box::pin(waits(
                world,
                async |client| client.watch::<u32>("/c/a").await.unwrap().map(|all| all),
                async |part| (part.changed().await.unwrap(), *part.load()),
                |server, round| (server.etcd.put("/c/a", round.to_string()), round),
                |seen, news| *seen == (news.0, u32::try_from(news.1).unwrap()),
            ))
        },
    },
    Case {
        future: "ValueUpdates::poll_next",
        proof: |world| {
            Box::pin(waits(
                world,
                async |client| client.watch::<u32>("/c/a").await.unwrap().into_stream(),
                async |updates| {
                    let next = poll_fn(|cx| Pin::new(&mut *updates).poll_next(cx)).await;
                    let update = next.unwrap().unwrap();
                    (update.revision(), *update.previous(), *update.current())
                },
                |server, round| (server.etcd.put("/c/a", round.to_string()), round),
                |seen, news| *seen == (news.0, 1, u32::try_from(news.1).unwrap()),
            ))
        },
    },
    Case {
        future: "Resources::released",
        proof: |world| {
            Box::pin(waits(
                world,
                busy,
                async |resources| {
                    resources.released().await;
                    resources.active()
                },
                |_, _| drop(BUSY.lock().unwrap().take()),
                |held, ()| held.is_empty(),
            ))
        },
    },
    Case {
        future: "Resources::released_within",
        proof: |world| {
            Box::pin(waits(
                world,
                busy,
                async |resources| resources.released_within(PATIENCE).await,
                |_, _| drop(BUSY.lock().unwrap().take()),
                |done, ()| done.is_ok(),
            ))
        },
    },
    Case {
        future: "Shutdown::into_future",
        proof: |world| Box::pin(shuts_down(world)),
    },
];

/// Keeps the client busy while its resources are waited for.
static BUSY: Mutex<Option<Watcher<u32>>> = Mutex::new(None);

/// Makes it busy.
async fn busy(client: &Client) -> Resources {
    let watcher = client.watch::<u32>("/c/a").await.unwrap();
    *BUSY.lock().unwrap() = Some(watcher);
    client.resources()
}

/// A shutdown that is dropped at each poll has told everything to end all the same, and another one
/// waits for the rest. Each has a client of its own: there is no way back from it.
async fn shuts_down(world: &World) {
    has_to_wait(async |polls| {
        let client = world.server.client();
        let watcher = client.watch::<u32>("/c/a").await.unwrap();
        let output = poll_times(polls, client.shutdown().into_future()).await;
        let completed = output.is_some();
        assert!(
            output.is_none_or(|done| done.is_ok()),
            "after {polls} polls"
        );
        if polls > 0 {
            in_time("everything ends", client.resources().released()).await;
        }
        let again = in_time("another shutdown", client.shutdown().into_future()).await;
        assert_eq!(again, Ok(()), "after {polls} polls");
        assert_eq!(*watcher.load(), 1, "what was there can be read");
        drop((client, watcher));
        world.nothing_is_left(polls).await;
        completed
    })
    .await;
}

/// Futures that need no case, each with the reason.
const EXEMPT: &[(&str, &str)] = &[
    (
        "connect::Connecting",
        "a custom connector makes it, and the client awaits it",
    ),
    (
        "Connect::connect",
        "a custom connector implements it, and the client awaits what it returns",
    ),
];

/// Puts what is no number, for the status of those who watch one. Returns at which revision.
fn refused(server: &Server, _: usize) -> driftless_client::Revision {
    server.etcd.put("/c/a", "no number")
}

/// Takes what a status has to tell of the time before it is live. Whether there may be more.
async fn settled(now: Status, changed: impl Future<Output = Status>) -> bool {
    let told = poll_times(1, changed).await.is_some();
    if !told && now.state != WatchState::Live {
        tokio::task::yield_now().await;
    }
    told || now.state != WatchState::Live
}

/// Both ends, and what they hold while nobody watches.
struct World {
    server: Server,
    client: Client,
    before: Baseline,
}

impl World {
    async fn start() -> Self {
        let server = Server::start().await;
        Self {
            client: server.client(),
            before: server.baseline().await,
            server,
        }
    }

    async fn nothing_is_left(&self, polls: usize) {
        if let Err(leaked) = self.before.returned().await {
            panic!("dropped after {polls} polls: {leaked}");
        }
    }
}

/// As [`at_every_poll`], and again where the future did not have to wait: on a busy machine what it
/// waits for may be there before its first poll is over.
async fn has_to_wait(mut round: impl AsyncFnMut(usize) -> bool) {
    for _ in 0..20 {
        if at_every_poll(&mut round).await > 1 {
            return;
        }
    }
    panic!("it waits for nothing: no case for this proof");
}

/// A future that begins something: dropped at each poll, nothing is left; and the same once more
/// comes to its end, where `is_right` looks at what it gives.
async fn begins<F: IntoFuture>(
    world: &World,
    begin: impl Fn(&Client) -> F,
    is_right: impl Fn(F::Output) -> bool,
) {
    has_to_wait(async |polls| {
        let output = poll_times(polls, begin(&world.client).into_future()).await;
        let completed = output.is_some();
        assert!(output.is_none_or(&is_right), "after {polls} polls");
        world.nothing_is_left(polls).await;
        let output = in_time("the same once more", begin(&world.client).into_future()).await;
        assert!(is_right(output), "once more, after {polls} polls");
        world.nothing_is_left(polls).await;
        completed
    })
    .await;
}

/// A future that waits on a handle for news, which comes after its first poll: dropped at each poll,
/// the next call sees what it would have, `is_seen` says; and when the handle is dropped nothing is
/// left.
async fn waits<H, N, T>(
    world: &World,
    begin: impl AsyncFn(&Client) -> H,
    wait: impl AsyncFn(&mut H) -> T,
    news: impl Fn(&Server, usize) -> N,
    is_seen: impl Fn(&T, &N) -> bool,
) {
    has_to_wait(async |polls| {
        let start = world.server.etcd.put("/c/a", "1");
        // What there was before is not to be taken for news.
        while world.client.get("/c/a").await.unwrap().revision() < start {
            tokio::task::yield_now().await;
        }
        let mut handle = begin(&world.client).await;
        let (output, news) = tokio::join!(
            biased;
            poll_times(polls, wait(&mut handle)),
            async { news(&world.server, polls + 100) },
        );
        let completed = output.is_some();
        let mut seen = output;
        // What is older than the news may come before it.
        while !seen.is_some_and(|seen| is_seen(&seen, &news)) {
            let what = format!("the news, dropped after {polls} polls");
            seen = Some(in_time(&what, wait(&mut handle)).await);
        }
        drop(handle);
        world.nothing_is_left(polls).await;
        completed
    })
    .await;
}

#[test]
fn public_futures_can_be_dropped_at_every_poll() {
    alone(async {
        for case in CASES {
            let world = World::start().await;
            println!("{}", case.future);
            (case.proof)(&world).await;
        }
    });
}

fn client_sources() -> Vec<Listed> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/src");
    list::public_futures(&source)
}

#[test]
fn every_public_future_has_a_case() {
    let found = client_sources();
    let found: BTreeSet<&str> = found.iter().map(|found| found.name.as_str()).collect();
    let cases = CASES.iter().map(|case| case.future);
    let exempt = EXEMPT.iter().map(|(future, _)| *future);
    let cases: BTreeSet<&str> = cases.chain(exempt).collect();
    let missing: Vec<_> = found.difference(&cases).collect();
    assert!(
        missing.is_empty(),
        "the client has public futures that nobody drops half-way: {missing:?}; add a case for each \
         to CASES in leak-tests/tests/cancelled/main.rs"
    );
    let gone: Vec<_> = cases.difference(&found).collect();
    assert!(
        gone.is_empty(),
        "there are cases for futures that the client does not have: {gone:?}; remove or rename them \
         in leak-tests/tests/cancelled/main.rs"
    );
}

#[test]
fn every_public_future_documents_cancel_safety() {
    let found = client_sources().into_iter();
    let silent = found.filter(|found| !found.documents_cancellation);
    let silent: Vec<String> = silent.map(|found| found.to_string()).collect();
    assert!(
        silent.is_empty(),
        "these have no `# Cancel safety` in their documentation: {silent:?}; say what is kept and \
         what is lost when the future is dropped"
    );
}
