//! Connections to servers, and the calls on them: the only user of tonic and hyper.
//!
//! One connection is shared by all that a client does at the same time. It is owned by those who
//! use it (an `Arc` each); the transport itself refers to it weakly, so a client that does nothing
//! holds no socket. A connection owns its tasks and aborts them when its last user lets go, or when
//! the transport is closed.

mod connection;
mod error;
mod requests;
mod tasks;

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use driftless_proto::{KeyRange, v1};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;

use crate::connect::{Connect, Endpoint, Io};
use crate::dice::Dice;
use crate::greeting::{Greeted, Greeting};
use crate::inventory::{Held, Inventory};
use crate::report::Reports;
#[cfg(feature = "tls")]
use crate::tls::Tls;
use crate::token::TokenFile;
use connection::Options;
pub(crate) use connection::{Caller, Connection, Frames};
use error::MAX_MESSAGE_TEXT;
pub(crate) use error::{CallError, cut, innermost, pause};
use tasks::Tasks;

/// How long one endpoint may take to be connected to, TLS and the server's first word included.
/// Several round trips on any network that configuration is served over; the next endpoint is tried
/// after it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What the server may send ahead on one stream, in bytes. HTTP/2 libraries end a connection on
/// which thousands of small frames lie unread; this bounds what can lie there. A stream is read at
/// once by a task of its own, so it costs no throughput that configuration would notice.
const STREAM_WINDOW: u32 = 256 * 1024;

/// What the server may send ahead on all streams together, in bytes: four that are read slowly do
/// not hold up the others, and a process holds no more than this of what it did not read.
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// How often a connection is checked while streams are open, until a server has said how often it
/// does: as often as servers do by default. Not more often than those that guard against it allow.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// Bounds of that, whatever a server says.
const KEEPALIVE_BOUNDS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);

/// How long a check may take before the connection counts as lost.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What to say to whoever wants a connection after the end.
const CLOSED: &str = "the client was shut down";

/// How connections are kept from others.
#[derive(Default)]
pub(crate) struct Security {
    /// For endpoints that ask for it. `None` only in tests that have no such endpoint.
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<Tls>,
    /// Whose content is sent with every call.
    pub(crate) token: Option<TokenFile>,
}

/// Dials, and shares what it has dialled.
pub(crate) struct Transport {
    endpoints: Vec<Endpoint>,
    connector: Box<dyn Connect>,
    info: v1::ClientInfo,
    security: Security,
    inventory: Inventory,
    /// No dial begins any more, and every task of a connection ends.
    closing: CancellationToken,
    /// Held while dialling, so that all who need a connection wait for one dial.
    slot: tokio::sync::Mutex<Slot>,
    /// How many dials have failed.
    failures: AtomicU64,
    /// Index of the endpoint that disappointed last; it is tried last.
    avoid: Arc<AtomicUsize>,
    keepalive: Keepalive,
    dice: Dice,
}

/// How often connections are checked, in milliseconds.
struct Keepalive(AtomicU64);

impl Keepalive {
    const fn new() -> Self {
        Self(AtomicU64::new(KEEPALIVE_INTERVAL.as_millis() as u64))
    }

    /// A server checks this often; zero: it does not say.
    fn follow(&self, interval: Duration) {
        let interval = match interval {
            Duration::ZERO => KEEPALIVE_INTERVAL,
            said => said.clamp(*KEEPALIVE_BOUNDS.start(), *KEEPALIVE_BOUNDS.end()),
        };
        let millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        self.0.store(millis, Ordering::Relaxed);
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

struct Slot {
    connection: Weak<Connection>,
    failure: Option<CallError>,
}

impl Transport {
    pub(crate) fn new(
        endpoints: Vec<Endpoint>,
        connector: Box<dyn Connect>,
        info: v1::ClientInfo,
        inventory: Inventory,
    ) -> Self {
        Self {
            endpoints,
            connector,
            info,
            security: Security::default(),
            inventory,
            closing: CancellationToken::new(),
            slot: tokio::sync::Mutex::new(Slot {
                connection: Weak::new(),
                failure: None,
            }),
            failures: AtomicU64::new(0),
            avoid: Arc::new(AtomicUsize::new(usize::MAX)),
            keepalive: Keepalive::new(),
            dice: Dice::default(),
        }
    }

    /// The same, with TLS and a token. Default: neither.
    pub(crate) fn secured(mut self, security: Security) -> Self {
        self.security = security;
        self
    }

    /// With chances of another origin.
    pub(crate) fn with_dice(mut self, dice: Dice) -> Self {
        self.dice = dice;
        self
    }

    /// The chances of one of its users.
    pub(crate) fn dice_of(&self, range: &KeyRange) -> Dice {
        self.dice.apart(range)
    }

    /// Where all that it causes is noted while it lasts.
    pub(crate) const fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Ends it: no dial begins any more, and the connections there are end at once, with their tasks,
    /// however many use them. Their calls fail. There is no way back.
    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    /// Waits until it is [closed](Self::close).
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn closed(&self) {
        self.closing.cancelled().await;
    }

    /// Whether it was [closed](Self::close).
    pub(crate) fn is_closed(&self) -> bool {
        self.closing.is_cancelled()
    }

    /// A server says how often it checks connections; zero: it does not say. The next connection
    /// keeps to it: HTTP/2's keepalive is set before a connection's first byte, and hyper has no way
    /// to set it later.
    pub(crate) fn check_every(&self, interval: Duration) {
        self.keepalive.follow(interval);
    }

    /// Who is asking, as it travels.
    pub(crate) const fn info(&self) -> &v1::ClientInfo {
        &self.info
    }

    /// All that it may dial, for people.
    pub(crate) fn endpoints(&self) -> String {
        let endpoints: Vec<String> = self.endpoints.iter().map(Endpoint::to_string).collect();
        endpoints.join(", ")
    }

    /// Whether there is more than one endpoint.
    pub(crate) const fn has_choice(&self) -> bool {
        self.endpoints.len() > 1
    }

    /// The shared connection, dialled when there is none that can be used.
    ///
    /// # Cancel safety
    /// Dropping it gives up a dial that it began; who waits for the same one begins another.
    ///
    /// # Errors
    /// When no endpoint can be connected to, and always after [`close`](Self::close).
    pub(crate) async fn connection(&self) -> Result<Arc<Connection>, CallError> {
        tokio::select! {
            // Looked at first, so that nothing begins after the end.
            biased;
            () = self.closing.cancelled() => Err(CallError::lost(CLOSED.to_owned())),
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
        match self.dial().await {
            Ok(connection) => {
                slot.connection = Arc::downgrade(&connection);
                slot.failure = None;
                Ok(connection)
            }
            Err(failure) => {
                slot.failure = Some(failure.clone());
                self.failures.fetch_add(1, Ordering::AcqRel);
                Err(failure)
            }
        }
    }

    /// Tries every endpoint once, in random order.
    async fn dial(&self) -> Result<Arc<Connection>, CallError> {
        let avoid = self.avoid.load(Ordering::Relaxed);
        let mut order: Vec<usize> = (0..self.endpoints.len()).collect();
        self.dice.shuffle(&mut order);
        order.sort_by_key(|index| *index == avoid);
        let mut failures = Vec::new();
        for index in order {
            let endpoint = &self.endpoints[index];
            let stage = Stage::new();
            let attempt = self.handshake(index, endpoint, &stage);
            tracing::debug!(%endpoint, "dialling");
            let why = match tokio::time::timeout(CONNECT_TIMEOUT, attempt).await {
                Ok(Ok(connection)) => return Ok(Arc::new(connection)),
                Ok(Err(why)) => why,
                Err(_) => format!("{} within {CONNECT_TIMEOUT:?}", stage.missing()),
            };
            tracing::debug!(%endpoint, %why, "cannot connect");
            failures.push((index, format!("{endpoint}: {why}")));
        }
        // In the order in which they were given, so that the same failure reads the same.
        failures.sort_unstable();
        let failures: Vec<String> = failures.into_iter().map(|(_, failure)| failure).collect();
        Err(CallError::lost(cut(failures.join(", "), MAX_MESSAGE_TEXT)))
    }

    async fn handshake(
        &self,
        index: usize,
        endpoint: &Endpoint,
        stage: &Stage,
    ) -> Result<Connection, String> {
        let name = endpoint.to_string();
        let held = self.inventory.hold(Held::Connection(name.clone()));
        let io = self.connector.connect(endpoint);
        let io = io.await.map_err(|error| error.to_string())?;
        let (io, mut greeting) = self.secure(endpoint, io, stage).await?;
        stage.reached(2);
        let tasks = Tasks::new(name, self.inventory.clone(), self.closing.clone());
        let (sender, connection) = http2::Builder::new(tasks.executor())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(self.keepalive.interval())
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| innermost(&error))?;
        let (requests, driver) = requests::in_turn(sender, connection);
        let ending = endpoint.clone();
        tasks.spawn(async move {
            match driver.await {
                Ok(()) => tracing::debug!(endpoint = %ending, "a connection ended"),
                Err(error) => {
                    let error = innermost(&error);
                    tracing::debug!(endpoint = %ending, %error, "a connection ended");
                }
            }
        });
        // Until then nobody knows whether HTTP/2 is spoken there, and, with TLS 1.3, whether the
        // client's certificate is taken.
        greeting.heard().await?;
        tracing::debug!(%endpoint, "connected");
        let options = Options {
            reports: Reports::new(self.info.clone(), self.dice.apart(&"reports")),
            token: self.security.token.clone(),
            index,
            avoid: Arc::clone(&self.avoid),
            held,
        };
        Ok(Connection::new(endpoint, requests, tasks, options))
    }

    /// Lays TLS over it, where the endpoint asks for that.
    #[cfg(feature = "tls")]
    async fn secure(
        &self,
        endpoint: &Endpoint,
        io: Box<dyn Io>,
        stage: &Stage,
    ) -> Result<(Greeted, Greeting), String> {
        match &self.security.tls {
            Some(tls) if endpoint.is_tls() => {
                stage.reached(1);
                let io = tls.connect(endpoint, io).await?;
                Ok(Greeted::over_tls(Box::new(io), tls.words_later()))
            }
            None if endpoint.is_tls() => Err("there is no TLS here".to_owned()),
            _ => Ok(Greeted::plain(io)),
        }
    }

    /// There is no endpoint that asks for TLS in a build without it.
    #[cfg(not(feature = "tls"))]
    #[allow(clippy::unused_async)] // As the other one is.
    async fn secure(
        &self,
        _endpoint: &Endpoint,
        io: Box<dyn Io>,
        _stage: &Stage,
    ) -> Result<(Greeted, Greeting), String> {
        Ok(Greeted::plain(io))
    }
}

/// How far an attempt has come, to say what it waited for in vain.
struct Stage(AtomicUsize);

impl Stage {
    /// What is missing at each stage.
    const MISSING: [&str; 3] = [
        "no connection",
        "a connection, but no end to agreeing on TLS",
        "a connection, but no word of HTTP/2 from the server",
    ];

    const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    fn reached(&self, stage: usize) {
        self.0.store(stage, Ordering::Relaxed);
    }

    fn missing(&self) -> &'static str {
        let stage = self.0.load(Ordering::Relaxed);
        Self::MISSING.get(stage).unwrap_or(&Self::MISSING[0])
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("endpoints", &self.endpoints)
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
    use crate::connect::Connecting;

    /// A transport to so many endpoints, `http://e0`, `http://e1` and so on.
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
            Inventory::new(),
        )
    }

    /// One to a single endpoint that is connected to each of these in turn.
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

    /// Says what an HTTP/2 server says first: that it has no settings of its own.
    async fn greet(server: &mut DuplexStream) {
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
    async fn attempts_connections_and_their_tasks_are_in_the_inventory() {
        let (client, mut server) = tokio::io::duplex(1024);
        let transport = transport_to([client]);
        let inventory = transport.inventory().clone();
        let mut count = inventory.count();
        {
            let mut attempt = std::pin::pin!(transport.connection());
            let polled = std::future::poll_fn(|cx| Poll::Ready(attempt.as_mut().poll(cx))).await;
            assert!(polled.is_pending(), "the server has said nothing yet");
            let held = inventory.items();
            assert!(held.contains(&Held::Connection(name())), "{held:?}");
            greet(&mut server).await;
            let connection = soon(attempt).await.unwrap();
            let held = inventory.items();
            assert!(held.contains(&Held::Connection(name())), "{held:?}");
            assert!(held.contains(&Held::ConnectionTask(name())), "{held:?}");
            drop(connection);
        }
        soon(count.wait_for(|count| *count == 0)).await.unwrap();
        // An attempt that is given up, too.
        let (client, _server) = tokio::io::duplex(1024);
        let transport = transport_to([client]);
        let mut count = transport.inventory().count();
        let attempt = tokio::time::timeout(Duration::from_millis(1), transport.connection());
        assert!(attempt.await.is_err());
        soon(count.wait_for(|count| *count == 0)).await.unwrap();
    }

    #[tokio::test]
    async fn closing_ends_a_connection_at_once_however_many_use_it() {
        let (client, mut server) = tokio::io::duplex(1024);
        let transport = transport_to([client]);
        greet(&mut server).await;
        let users = [
            transport.connection().await.unwrap(),
            transport.connection().await.unwrap(),
        ];
        assert!(Arc::ptr_eq(&users[0], &users[1]));
        transport.close();
        // The server sees the end.
        soon(server.read_to_end(&mut Vec::new())).await.unwrap();
        let mut count = transport.inventory().count();
        soon(count.wait_for(|count| *count == 1)).await.unwrap();
        assert_eq!(transport.inventory().items(), [Held::Connection(name())]);
        assert!(!users[0].is_usable());
        let failed = users[0].watch(v1::WatchRequest::default()).await;
        assert!(failed.err().unwrap().lost);
        let error = transport.connection().await.err().unwrap();
        assert_eq!((&*error.message, error.lost), (CLOSED, true));
        drop(users);
        assert_eq!(*count.borrow(), 0);
    }

    #[tokio::test]
    async fn closing_ends_a_dial_and_no_other_begins() {
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
        assert_eq!(transport.inventory().items(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_waited_for_in_vain_is_said() {
        let nowhere = transport(1, |_| Box::pin(std::future::pending()));
        let error = nowhere.connection().await.err().unwrap();
        assert_eq!(error.message, "http://e0: no connection within 5s");
        let (client, _server) = tokio::io::duplex(1024);
        let error = transport_to([client]).connection().await.err().unwrap();
        assert_eq!(
            error.message,
            "http://e0: a connection, but no word of HTTP/2 from the server within 5s"
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
    async fn beside_a_dead_endpoint_a_slow_one_is_reached_in_time() {
        for _ in 0..10 {
            let start = tokio::time::Instant::now();
            // Servers that stay.
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
                    greet(&mut server).await;
                    kept.lock().unwrap().push(server);
                    Ok(Box::new(client) as Box<dyn Io>)
                })
            });
            let connection = transport.connection().await.unwrap();
            assert_eq!(connection.endpoint().host(), "e1");
            // Less than a single read may take altogether.
            assert!(start.elapsed() < Duration::from_secs(10));
        }
    }

    #[test]
    fn connections_are_checked_as_often_as_the_server_does() {
        let keepalive = Keepalive::new();
        assert_eq!(keepalive.interval(), KEEPALIVE_INTERVAL);
        for (said, millis) in [
            (60_000, 60_000),
            (2_500, 2_500),
            (1, 1_000),
            (u64::from(u32::MAX), 3_600_000),
            (0, 20_000),
        ] {
            keepalive.follow(Duration::from_millis(said));
            assert_eq!(keepalive.interval(), Duration::from_millis(millis));
        }
    }
}
