//! The servers of a run, each on a host that outlives it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use driftless_client::KeyRange;
use driftless_server::metrics::Metrics;
use driftless_server::source::SourceHandle;
use driftless_server::source::scripted::Link;
use driftless_server::{Engine, Settings};
use tokio::sync::Notify;
use turmoil::net::TcpListener;

use crate::model::PREFIX;
use crate::plant::{Plant, Planted};

/// Where servers listen.
const PORT: u16 = 7400;

/// In proportion to the defaults, but much shorter, so that a run has many intervals.
const PROGRESS: Duration = Duration::from_secs(3);
const PING: Duration = Duration::from_secs(5);
const REPORT: Duration = Duration::from_secs(10);
const AUDIT: Duration = Duration::from_secs(7);
const STALL: Duration = Duration::from_secs(20);

/// How long a server that is told to stop waits for its clients.
const DRAIN: Duration = Duration::from_secs(2);

pub(crate) fn server_name(server: usize) -> &'static str {
    ["server-a", "server-b", "server-c"][server]
}

/// Where clients find it.
pub(crate) fn url(server: usize) -> String {
    format!("http://{}:{PORT}", server_name(server))
}

/// A server's host, seen from outside.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) etcd: Link,
    lives: Lives,
    orders: Orders,
    /// Its process is not there, or on its way out.
    down: bool,
}

/// What each process counts that ran on the host, the present one last.
#[derive(Clone, Default)]
struct Lives(Arc<Mutex<Vec<Metrics>>>);

/// What the process is told.
#[derive(Clone, Default)]
struct Orders {
    /// Begun on its host, it does nothing: the machine is there, and its process is not.
    absent: Arc<AtomicBool>,
    stop: Arc<Notify>,
}

impl Server {
    pub(crate) fn new(name: &'static str, etcd: Link) -> Self {
        Self {
            name,
            etcd,
            lives: Lives::default(),
            orders: Orders::default(),
            down: false,
        }
    }

    /// What runs on the host, each time that it is begun.
    pub(crate) fn software(
        &self,
        plant: Plant,
    ) -> impl Fn() -> std::pin::Pin<Box<dyn Future<Output = turmoil::Result>>> + 'static {
        let (link, lives, orders) = (self.etcd.clone(), self.lives.clone(), self.orders.clone());
        move || Box::pin(serve(link.clone(), lives.clone(), orders.clone(), plant))
    }

    /// What each of its processes counts, or counted last.
    pub(crate) fn lives(&self) -> Vec<Metrics> {
        self.lives.lock().clone()
    }

    /// It is to run. Whether its host has to be begun anew for that.
    pub(crate) fn start(&mut self) -> bool {
        self.orders.absent.store(false, Ordering::Relaxed);
        std::mem::take(&mut self.down)
    }

    /// Its process is to end at once. Whether it ran; its host has to be begun anew for that.
    pub(crate) fn kill(&mut self) -> bool {
        self.orders.absent.store(true, Ordering::Relaxed);
        !std::mem::replace(&mut self.down, true)
    }

    /// Its process is to end.
    pub(crate) fn stop(&mut self) {
        if !std::mem::replace(&mut self.down, true) {
            self.orders.stop.notify_one();
        }
    }
}

impl Lives {
    fn lock(&self) -> MutexGuard<'_, Vec<Metrics>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process's life.
async fn serve(link: Link, lives: Lives, orders: Orders, plant: Plant) -> turmoil::Result {
    if orders.absent.load(Ordering::Relaxed) {
        return std::future::pending().await;
    }
    let metrics = Metrics::new();
    lives.lock().push(metrics.clone());
    let prefix = KeyRange::prefix(PREFIX)?;
    let settings = Settings::builder()
        .etcd("http://127.0.0.1:2379")
        .prefix(PREFIX)
        .log_bytes(1024 * 1024)
        .progress_interval(PROGRESS)
        .ping_interval(PING)
        .report_interval(REPORT)
        .audit_interval(Some(AUDIT))
        .stall_timeout(STALL)
        .build()?;
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    let (handle, requests) = SourceHandle::channel();
    let source = Planted::new(link.source(prefix.clone(), requests), plant);
    let engine = Engine::start(&settings, metrics, [(prefix, source, handle)]);
    loop {
        tokio::select! {
            biased;
            () = orders.stop.notified() => break,
            accepted = listener.accept() => engine.serve(accepted?.0),
        }
    }
    drop(listener);
    engine.shut_down(DRAIN).await;
    // The machine stays.
    std::future::pending().await
}
