//! A stage on which one server follows another, and the play that each hostile one has a part in.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use driftless_client::{Client, Endpoint, Io, KeyRange, Status, WatchState, Watcher};
use tokio::io::DuplexStream;
use tokio::task::JoinSet;

use crate::ALLOCATOR;
use crate::etcd_model::EtcdModel;
use crate::grpc;

/// What the pipes hold, in bytes.
const PIPE: usize = 64 * 1024;

/// The client's limit of a range, in bytes: what it may spend on a server that sends without end.
pub(crate) const LIMIT: usize = 4 * 1024 * 1024;

/// How long a play may take on a real clock. The clock of the play stands still while something runs, so a
/// client that spins never comes to its end.
const REAL_TIME: Duration = Duration::from_secs(120);

/// What the runtime, the pipes and the server itself may take, in bytes.
pub(crate) const SLACK: usize = 1024 * 1024;

/// What may be left of a play, in bytes: tables of threads and of `tracing` that are made once.
const LEFT: usize = 16 * 1024;

pub(crate) type Playing = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a server does with each connection.
pub(crate) type Act = Arc<dyn Fn(DuplexStream, Arc<Seen>) -> Playing + Send + Sync>;

/// What servers saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) dials: AtomicUsize,
    pub(crate) calls: AtomicUsize,
}

/// The server of the moment, and its connections.
#[derive(Clone)]
struct Stage(Arc<Inner>);

struct Inner {
    act: parking_lot::Mutex<Act>,
    seen: Arc<Seen>,
    connections: parking_lot::Mutex<JoinSet<()>>,
}

impl Stage {
    fn new(act: Act) -> Self {
        Self(Arc::new(Inner {
            act: parking_lot::Mutex::new(act),
            seen: Arc::default(),
            connections: parking_lot::Mutex::default(),
        }))
    }

    /// The server of the moment is gone, and another one takes its place.
    fn follow_with(&self, act: Act) {
        *self.0.act.lock() = act;
        self.0.connections.lock().abort_all();
        self.0.seen.dials.store(0, Ordering::Relaxed);
        self.0.seen.calls.store(0, Ordering::Relaxed);
    }

    fn client(&self, url: &str) -> Client {
        let inner = Arc::clone(&self.0);
        Client::builder()
            .endpoint(url)
            .range_limit(LIMIT)
            .connector(move |_: &Endpoint| -> driftless_client::Connecting {
                let (client, server) = tokio::io::duplex(PIPE);
                inner.seen.dials.fetch_add(1, Ordering::Relaxed);
                let act = inner.act.lock().clone();
                let mut connections = inner.connections.lock();
                while connections.try_join_next().is_some() {}
                connections.spawn(act(server, Arc::clone(&inner.seen)));
                Box::pin(async move { Ok(Box::new(client) as Box<dyn Io>) })
            })
            .build()
            .unwrap()
    }
}

/// A hostile server, and what it must not achieve.
pub(crate) struct Play {
    pub(crate) name: &'static str,
    pub(crate) url: &'static str,
    pub(crate) act: Act,
    /// How long it plays, on a clock that stands still while something runs.
    pub(crate) lasts: Duration,
    /// What the status says at the end. Empty: the client has found nothing wrong.
    pub(crate) says: &'static str,
    /// The most dials and calls.
    pub(crate) dials: usize,
    pub(crate) calls: usize,
    /// The most bytes that the process may allocate meanwhile, the server's own included.
    pub(crate) bytes: usize,
}

impl Play {
    /// One that plays for a minute, and is met with a backoff.
    pub(crate) fn new(name: &'static str, act: Act, says: &'static str) -> Self {
        Self {
            name,
            url: "http://hostile:7400",
            act,
            lasts: Duration::from_secs(60),
            says,
            // Full jitter up to five seconds, after some quick ones: some thirty, were it not for chance.
            dials: 50,
            calls: 50,
            bytes: SLACK,
        }
    }

    pub(crate) fn lasts(self, secs: u64) -> Self {
        Self {
            lasts: Duration::from_secs(secs),
            ..self
        }
    }

    pub(crate) fn bytes(self, bytes: usize) -> Self {
        Self { bytes, ..self }
    }

    pub(crate) fn dials(self, dials: usize) -> Self {
        Self { dials, ..self }
    }

    pub(crate) fn calls(self, calls: usize) -> Self {
        Self { calls, ..self }
    }

    pub(crate) fn url(self, url: &'static str) -> Self {
        Self { url, ..self }
    }
}

/// What was seen of a play.
pub(crate) struct Played {
    pub(crate) status: Status,
    pub(crate) dials: usize,
    pub(crate) calls: usize,
    pub(crate) bytes: usize,
}

/// One test at a time: all share the allocator.
static ALONE: parking_lot::Mutex<bool> = parking_lot::Mutex::new(false);

/// That no other test runs. Taken before anything is allocated.
pub(crate) struct Alone(parking_lot::MutexGuard<'static, bool>);

pub(crate) fn alone() -> Alone {
    let mut warm = ALONE.lock();
    if !std::mem::replace(&mut *warm, true) {
        // Makes what is made once.
        perform(&Play::new("nothing hostile", good(&model()), ""));
    }
    Alone(warm)
}

impl Alone {
    /// Plays it, and checks what holds for every play: readers keep the last good value, the limits hold, the
    /// client recovers with the next good server, and nothing is left.
    pub(crate) fn play(&self, play: &Play) -> Played {
        let before = ALLOCATOR.current_usage();
        let played = perform(play);
        let left = ALLOCATOR.current_usage().saturating_sub(before);
        println!("{}: {left} bytes left", play.name);
        assert!(left <= LEFT, "{}: {left} bytes are left", play.name);
        played
    }
}

fn perform(play: &Play) -> Played {
    let name = play.name;
    let (done, waiting) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if waiting.recv_timeout(REAL_TIME) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{name}: does not end");
            std::process::abort();
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let played = runtime.block_on(on_stage(play));
    drop(runtime);
    drop(done);
    watchdog.join().unwrap();
    played
}

/// A client of this server alone.
pub(crate) fn client(act: Act) -> Client {
    Stage::new(act).client("http://hostile:7400")
}

/// A history that has the first value.
pub(crate) fn model() -> EtcdModel {
    EtcdModel::with(&[("/c/a", "1")])
}

pub(crate) fn good(model: &EtcdModel) -> Act {
    let model = model.clone();
    grpc::act(move |call| {
        let model = model.clone();
        Box::pin(async move { call.serve(&model).await })
    })
}

type Value = BTreeMap<String, u32>;

async fn on_stage(play: &Play) -> Played {
    let name = play.name;
    let idle = tasks();
    let mut model = model();
    let stage = Stage::new(good(&model));
    let client = stage.client("http://hostile:7400");
    // With TLS there is no good server here: only the limits are checked.
    let hostile_client = (play.url != "http://hostile:7400").then(|| stage.client(play.url));
    let range = || KeyRange::prefix("/c/").unwrap();
    let mut watcher: Watcher<Value> = client.watch(range()).await.unwrap();
    assert_eq!(watcher.load()["a"], 1);

    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    stage.follow_with(Arc::clone(&play.act));
    let other = match &hostile_client {
        Some(client) => {
            let watch = client.watch::<Value>(range()).default_value(Value::new());
            Some(watch.first_value_within(Duration::ZERO).await.unwrap())
        }
        None => None,
    };
    let end = tokio::time::Instant::now() + play.lasts;
    while tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(watcher.load()["a"], 1, "{name}: the last good value stays");
    }
    let status = other.as_ref().unwrap_or(&watcher).status();
    let bytes = ALLOCATOR.peak_usage() - before;
    let seen = &stage.0.seen;
    let (dials, calls) = (
        seen.dials.load(Ordering::Relaxed),
        seen.calls.load(Ordering::Relaxed),
    );
    drop((other, hostile_client));
    println!(
        "{name}: {bytes} bytes, {dials} dials, {calls} calls, {:?}: {}",
        status.state,
        status.last_error.as_deref().unwrap_or_default()
    );
    assert!(dials <= play.dials, "{name}: {dials} dials");
    assert!(calls <= play.calls, "{name}: {calls} calls");
    assert!(bytes <= play.bytes, "{name}: {bytes} bytes");
    let error = status.last_error.clone().unwrap_or_default();
    if play.says.is_empty() {
        assert_eq!(status.state, WatchState::Live, "{name}: {error}");
    } else {
        assert!(error.contains(play.says), "{name}: {error}");
        assert!(error.len() < 2048, "{name}: {} bytes of text", error.len());
        assert!(!error.contains(char::is_control), "{name}: {error}");
    }

    let _ = model.put("/c/a", "2");
    stage.follow_with(good(&model));
    // As long as a server may ask to wait, and a backoff.
    let recovered = tokio::time::timeout(Duration::from_secs(75), async {
        while watcher.load()["a"] != 2 {
            watcher.changed().await.unwrap();
        }
    });
    assert!(recovered.await.is_ok(), "{name}: the client recovers");
    assert_eq!(watcher.status().state, WatchState::Live, "{name}");

    drop(watcher);
    client.shutdown().await.unwrap();
    stage.0.connections.lock().abort_all();
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(tasks(), idle, "{name}: tasks are left");
    Played {
        status,
        dials,
        calls,
        bytes,
    }
}

fn tasks() -> usize {
    tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks()
}
