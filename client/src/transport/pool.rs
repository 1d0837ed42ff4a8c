//! Shares one connection among everything that a client does at the same time.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use driftless_proto::{KeyRange, v1};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::dial::{Dialer, Security};
use super::error::CallError;
use super::keepalive::Keepalive;
use crate::jitter::Jitter;
use crate::net::{Connect, Endpoint};
use crate::resources::ResourceTracker;

/// The error of whoever asks for a connection after the transport was closed.
const CLOSED: &str = "the client was shut down";

/// How long after a dial began the next one may begin, if it failed or the other end closed its connection. Each
/// range backs off by itself; however many there are, a server that ends each connection at once is dialled ten times
/// a second at most.
const DIAL_SPACING: Duration = Duration::from_millis(100);

/// Dials, and shares the connection.
pub(crate) struct Transport {
    dialer: Dialer,
    /// Held while dialling, so that everyone who needs a connection waits for one dial.
    slot: tokio::sync::Mutex<Slot>,
    /// How many dials have failed.
    failures: AtomicU64,
}

struct Slot {
    connection: Weak<Connection>,
    failure: Option<CallError>,
    /// When the last dial began.
    dialled: Option<Instant>,
}

impl Transport {
    pub(crate) fn new(
        endpoints: Vec<Endpoint>,
        connector: Box<dyn Connect>,
        info: v1::ClientInfo,
        tracker: ResourceTracker,
    ) -> Self {
        Self {
            dialer: Dialer {
                endpoints,
                connector,
                info,
                security: Security::default(),
                tracker,
                closing: CancellationToken::new(),
                avoid: Arc::new(AtomicUsize::new(usize::MAX)),
                lost: Arc::new(AtomicBool::new(false)),
                keepalive: Keepalive::new(),
                jitter: Jitter::default(),
            },
            slot: tokio::sync::Mutex::new(Slot {
                connection: Weak::new(),
                failure: None,
                dialled: None,
            }),
            failures: AtomicU64::new(0),
        }
    }

    /// Adds TLS and a token. Default: neither.
    pub(crate) fn secured(mut self, security: Security) -> Self {
        self.dialer.security = security;
        self
    }

    /// Replaces the source of randomness.
    pub(crate) fn with_jitter(mut self, jitter: Jitter) -> Self {
        self.dialer.jitter = jitter;
        self
    }

    /// The randomness of the subscription to `range`.
    pub(crate) fn jitter_for(&self, range: &KeyRange) -> Jitter {
        self.dialer.jitter.derive(range)
    }

    /// Where everything that it causes is tracked.
    pub(crate) const fn tracker(&self) -> &ResourceTracker {
        &self.dialer.tracker
    }

    /// Closes it for good: no dial begins any more, and every connection ends at once with its tasks,
    /// however many use it. Their calls fail.
    pub(crate) fn close(&self) {
        self.dialer.closing.cancel();
    }

    /// Waits until it is [closed](Self::close).
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn closed(&self) {
        self.dialer.closing.cancelled().await;
    }

    /// Whether it was [closed](Self::close).
    pub(crate) fn is_closed(&self) -> bool {
        self.dialer.closing.is_cancelled()
    }

    /// Sets the keepalive interval that a server asked for; zero if it did not. It applies to the next
    /// connection: hyper sets HTTP/2's keepalive before a connection's first byte, and not later.
    pub(crate) fn set_keepalive(&self, interval: Duration) {
        self.dialer.keepalive.follow(interval);
    }

    /// The client's identity, as it travels.
    pub(crate) const fn info(&self) -> &v1::ClientInfo {
        &self.dialer.info
    }

    /// All endpoints, for an error message.
    pub(crate) fn endpoints(&self) -> String {
        let endpoints = self.dialer.endpoints.iter().map(Endpoint::to_string);
        endpoints.collect::<Vec<_>>().join(", ")
    }

    /// Whether there is more than one endpoint.
    pub(crate) const fn has_choice(&self) -> bool {
        self.dialer.endpoints.len() > 1
    }

    /// The shared connection, dialled when there is none that can be used.
    ///
    /// # Cancel safety
    /// Dropping it gives up a dial that it began; others who wait for that dial begin another.
    ///
    /// # Errors
    /// When no endpoint can be connected to, and always after [`close`](Self::close).
    pub(crate) async fn connection(&self) -> Result<Arc<Connection>, CallError> {
        tokio::select! {
            // Checked first, so that nothing begins after the end.
            biased;
            () = self.closed() => Err(CallError::lost(CLOSED.to_owned())),
            found = self.shared() => found,
        }
    }

    async fn shared(&self) -> Result<Arc<Connection>, CallError> {
        let failures = self.failures.load(Ordering::Acquire);
        let mut slot = self.slot.lock().await;
        if let Some(connection) = slot.connection.upgrade().filter(|found| found.is_usable()) {
            return Ok(connection);
        }
        // A dial that failed while this caller waited for it is this caller's failure too. If each
        // waiter dialled in turn, the last of many would wait for all of them.
        if self.failures.load(Ordering::Acquire) != failures
            && let Some(failure) = &slot.failure
        {
            return Err(failure.clone());
        }
        if self.dialer.lost.load(Ordering::Relaxed)
            && let Some(dialled) = slot.dialled
        {
            tokio::time::sleep_until(dialled + DIAL_SPACING).await;
            self.dialer.lost.store(false, Ordering::Relaxed);
        }
        slot.dialled = Some(Instant::now());
        match self.dialer.dial().await {
            Ok(connection) => {
                slot.connection = Arc::downgrade(&connection);
                slot.failure = None;
                Ok(connection)
            }
            Err(failure) => {
                slot.failure = Some(failure.clone());
                self.dialer.lost.store(true, Ordering::Relaxed);
                self.failures.fetch_add(1, Ordering::AcqRel);
                Err(failure)
            }
        }
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("endpoints", &self.dialer.endpoints)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::ErrorKind;
    use std::sync::Mutex;
    use std::task::Poll;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::net::{Connecting, Io};
    use crate::resources::Resource;

    /// A transport with this many endpoints, `http://e0`, `http://e1` and so on.
    fn transport(
        endpoints: usize,
        connect: impl Fn(&Endpoint) -> Connecting + Send + Sync + 'static,
    ) -> Transport {
        let endpoints = (0..endpoints).map(|n| Endpoint::parse(&format!("http://e{n}")).unwrap());
        let info = v1::ClientInfo::default();
        Transport::new(
            endpoints.collect(),
            Box::new(connect),
            info,
            ResourceTracker::new(),
        )
    }

    /// A transport with one endpoint; each dial connects to the next of `ends`.
    fn transport_to(ends: impl IntoIterator<Item = DuplexStream>) -> Transport {
        let ends: Mutex<VecDeque<_>> = Mutex::new(ends.into_iter().collect());
        transport(1, move |_| {
            let end = ends.lock().unwrap().pop_front();
            Box::pin(async move {
                let end = end.ok_or(ErrorKind::ConnectionRefused)?;
                Ok(Box::new(end) as Box<dyn Io>)
            })
        })
    }

    /// Sends an HTTP/2 server's first frame: empty settings.
    async fn send_preface(server: &mut DuplexStream) {
        server
            .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
            .await
            .unwrap();
    }

    fn name() -> String {
        "http://e0".to_owned()
    }

    async fn soon<F: Future>(work: F) -> F::Output {
        let work = tokio::time::timeout(Duration::from_secs(5), work);
        work.await.expect("within five seconds")
    }

    #[tokio::test]
    async fn connection_attempts_and_tasks_are_tracked() {
        let (client, mut server) = tokio::io::duplex(1024);
        let transport = transport_to([client]);
        let tracker = transport.tracker().clone();
        let mut count = tracker.count();
        {
            let mut attempt = std::pin::pin!(transport.connection());
            let polled = std::future::poll_fn(|cx| Poll::Ready(attempt.as_mut().poll(cx))).await;
            assert!(polled.is_pending(), "the server has sent nothing yet");
            let held = tracker.active();
            assert!(held.contains(&Resource::Connection(name())), "{held:?}");
            send_preface(&mut server).await;
            let connection = soon(attempt).await.unwrap();
            let held = tracker.active();
            assert!(held.contains(&Resource::Connection(name())), "{held:?}");
            assert!(held.contains(&Resource::ConnectionTask(name())), "{held:?}");
            drop(connection);
        }
        soon(count.wait_for(|count| *count == 0)).await.unwrap();
        // The same when an attempt is given up.
        let (client, _server) = tokio::io::duplex(1024);
        let transport = transport_to([client]);
        let mut count = transport.tracker().count();
        let attempt = tokio::time::timeout(Duration::from_millis(1), transport.connection());
        assert!(attempt.await.is_err());
        soon(count.wait_for(|count| *count == 0)).await.unwrap();
    }

    #[tokio::test]
    async fn close_ends_a_shared_connection_at_once() {
        let (client, mut server) = tokio::io::duplex(1024);
        let transport = transport_to([client]);
        send_preface(&mut server).await;
        let users = [
            transport.connection().await.unwrap(),
            transport.connection().await.unwrap(),
        ];
        assert!(Arc::ptr_eq(&users[0], &users[1]));
        transport.close();
        // The server sees the end.
        soon(server.read_to_end(&mut Vec::new())).await.unwrap();
        let mut count = transport.tracker().count();
        soon(count.wait_for(|count| *count == 1)).await.unwrap();
        assert_eq!(transport.tracker().active(), [Resource::Connection(name())]);
        assert!(!users[0].is_usable());
        let failed = users[0].watch(v1::WatchRequest::default()).await;
        assert!(failed.err().unwrap().lost);
        let error = transport.connection().await.err().unwrap();
        assert_eq!((&*error.message, error.lost), (CLOSED, true));
        drop(users);
        assert_eq!(*count.borrow(), 0);
    }

    #[tokio::test]
    async fn close_ends_a_dial_and_none_follows() {
        let dials = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&dials);
        let transport = transport(1, move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Box::pin(std::future::pending())
        });
        let (one, two, ()) = soon(async {
            tokio::join!(transport.connection(), transport.connection(), async {
                tokio::task::yield_now().await;
                transport.close();
            })
        })
        .await;
        for failed in [one, two, transport.connection().await] {
            assert_eq!(failed.err().unwrap().message, CLOSED);
        }
        assert_eq!(dials.load(Ordering::Relaxed), 1);
        assert_eq!(transport.tracker().active(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn dial_waits_only_after_a_lost_connection() {
        let pipes = [(); 3].map(|()| tokio::io::duplex(1024));
        let (clients, mut servers): (Vec<_>, Vec<_>) = pipes.into_iter().unzip();
        for server in &mut servers {
            send_preface(server).await;
        }
        let transport = transport_to(clients);
        let start = Instant::now();
        drop(transport.connection().await.unwrap());
        let second = transport.connection().await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        drop(servers.remove(1));
        while second.is_usable() {
            tokio::task::yield_now().await;
        }
        transport.connection().await.unwrap();
        assert!(start.elapsed() >= DIAL_SPACING);
    }

    #[tokio::test(start_paused = true)]
    async fn dial_error_names_the_missing_step() {
        let nowhere = transport(1, |_| Box::pin(std::future::pending()));
        let error = nowhere.connection().await.err().unwrap();
        assert_eq!(error.message, "http://e0: no connection within 5s");
        let (client, _server) = tokio::io::duplex(1024);
        let error = transport_to([client]).connection().await.err().unwrap();
        assert_eq!(
            error.message,
            "http://e0: connected, but the server sent nothing over HTTP/2 within 5s"
        );
        let (client, mut server) = tokio::io::duplex(1024);
        // A fatal alert of TLS.
        server.write_all(&[0x15, 3, 3, 0, 2, 2, 50]).await.unwrap();
        let error = transport_to([client]).connection().await.err().unwrap();
        assert_eq!(
            error.message,
            "http://e0: the server speaks TLS; write https:// in place of http://"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn slow_endpoint_is_reached_beside_a_dead_one() {
        for _ in 0..10 {
            let start = tokio::time::Instant::now();
            // Keeps the servers alive.
            let servers = Arc::new(Mutex::new(Vec::new()));
            let kept = Arc::clone(&servers);
            let transport = transport(2, move |endpoint| {
                if endpoint.host() == "e0" {
                    return Box::pin(std::future::pending());
                }
                let kept = Arc::clone(&kept);
                Box::pin(async move {
                    tokio::time::sleep(Duration::from_secs(4)).await;
                    let (client, mut server) = tokio::io::duplex(1024);
                    send_preface(&mut server).await;
                    kept.lock().unwrap().push(server);
                    Ok(Box::new(client) as Box<dyn Io>)
                })
            });
            let connection = transport.connection().await.unwrap();
            assert_eq!(connection.endpoint().host(), "e1");
            // Less than the default timeout of a `get`.
            assert!(start.elapsed() < Duration::from_secs(10));
        }
    }
}
