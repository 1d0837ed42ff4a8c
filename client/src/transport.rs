//! Connections to servers, and the calls on them: the only user of tonic and hyper.
//!
//! One connection is shared by all that a client does at the same time. It is owned by those who
//! use it (an `Arc` each); the transport itself refers to it weakly, so a client that does nothing
//! holds no socket. A connection owns its tasks and aborts them when its last user lets go.

use std::error::Error as _;
use std::fmt;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use driftless_proto::v1::config_client::ConfigClient;
use driftless_proto::{KeyRange, MAX_CHUNK_BYTES, v1};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::{Code, Status, Streaming};

use crate::connect::{Connect, Endpoint};
use crate::dice::Dice;
use crate::error::RefusedReason;
use crate::report::Reports;

/// How long one endpoint may take to be connected to. Several round trips on any network that
/// configuration is served over; the next endpoint is tried after it.
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

/// The largest message that is taken, in bytes: the values that one may hold, and room for their
/// keys and whatever else it says.
const MAX_MESSAGE: usize = MAX_CHUNK_BYTES + 4 * 1024 * 1024;

/// The longest pause that a server may ask for: one that asks for more is mistaken.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// The longest text of a server that is kept, in bytes.
const MAX_MESSAGE_TEXT: usize = 1024;

/// The trailer in which a server says how long to wait, in milliseconds.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Why a call failed or ended.
#[derive(Clone, Debug)]
pub(crate) struct CallError {
    /// The server's refusal, where it is one.
    pub(crate) refused: Option<RefusedReason>,
    /// What happened, for people.
    pub(crate) message: String,
    /// How long the server asks to wait at least.
    pub(crate) at_least: Duration,
    /// The connection was lost, in contrast to: the server answered.
    pub(crate) lost: bool,
}

/// Dials, and shares what it has dialled.
pub(crate) struct Transport {
    endpoints: Vec<Endpoint>,
    connector: Box<dyn Connect>,
    info: v1::ClientInfo,
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
    ) -> Self {
        Self {
            endpoints,
            connector,
            info,
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

    /// With chances of another origin.
    pub(crate) fn with_dice(self, dice: Dice) -> Self {
        Self { dice, ..self }
    }

    /// The chances of one of its users.
    pub(crate) fn dice_of(&self, range: &KeyRange) -> Dice {
        self.dice.apart(range)
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
    pub(crate) async fn connection(&self) -> Result<Arc<Connection>, CallError> {
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
            let attempt = self.handshake(index, endpoint);
            let why = match tokio::time::timeout(CONNECT_TIMEOUT, attempt).await {
                Ok(Ok(connection)) => return Ok(Arc::new(connection)),
                Ok(Err(why)) => why,
                Err(_) => format!("no connection within {CONNECT_TIMEOUT:?}"),
            };
            tracing::debug!(%endpoint, %why, "cannot connect");
            failures.push((index, format!("{endpoint}: {why}")));
        }
        // In the order in which they were given, so that the same failure reads the same.
        failures.sort_unstable();
        let failures: Vec<String> = failures.into_iter().map(|(_, failure)| failure).collect();
        Err(CallError::lost(cut(failures.join(", "), MAX_MESSAGE_TEXT)))
    }

    async fn handshake(&self, index: usize, endpoint: &Endpoint) -> Result<Connection, String> {
        let io = self.connector.connect(endpoint);
        let io = io.await.map_err(|error| error.to_string())?;
        let tasks = Tasks::default();
        let (sender, connection) = http2::Builder::new(tasks.executor())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(self.keepalive.interval())
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| innermost(&error))?;
        tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = %innermost(&error), "a connection ended");
            }
        });
        let service = Http2(sender.clone());
        let client = ConfigClient::with_origin(service, endpoint.uri().clone())
            .max_decoding_message_size(MAX_MESSAGE);
        Ok(Connection {
            endpoint: endpoint.clone(),
            caller: Caller { sender, client },
            reports: Reports::new(self.info.clone(), self.dice.apart(&"reports")),
            retired: AtomicBool::new(false),
            index,
            avoid: Arc::clone(&self.avoid),
            tasks,
        })
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

/// A connection to one server. Dropping the last reference closes it and ends its tasks.
pub(crate) struct Connection {
    endpoint: Endpoint,
    caller: Caller,
    reports: Reports,
    retired: AtomicBool,
    index: usize,
    avoid: Arc<AtomicUsize>,
    tasks: Tasks,
}

impl Connection {
    pub(crate) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whether new calls may be made on it.
    pub(crate) fn is_usable(&self) -> bool {
        !self.retired.load(Ordering::Relaxed) && !self.caller.sender.is_closed()
    }

    /// No new calls are to be made on it, and its endpoint is the last to be tried next. Calls that
    /// are under way go on.
    pub(crate) fn retire(&self) {
        self.avoid.store(self.index, Ordering::Relaxed);
        self.retired.store(true, Ordering::Relaxed);
    }

    /// Begins a watch. The call ends when the frames are dropped.
    pub(crate) async fn watch(&self, request: v1::WatchRequest) -> Result<Frames, CallError> {
        let mut client = self.caller.client.clone();
        match client.watch(request).await {
            Ok(response) => Ok(Messages(response.into_inner())),
            Err(status) => Err(self.caller.failed(&status)),
        }
    }

    /// Asks for the state of a range, now.
    pub(crate) async fn get(&self, request: v1::GetRequest) -> Result<Chunks, CallError> {
        let mut client = self.caller.client.clone();
        match client.get(request).await {
            Ok(response) => Ok(Messages(response.into_inner())),
            Err(status) => Err(self.caller.failed(&status)),
        }
    }

    /// The reports of all the watches on this connection. Its task is started with the first.
    pub(crate) fn reports(&self) -> &Reports {
        self.reports
            .start_once(|reporter| self.tasks.spawn(reporter.run(self.caller.clone())));
        &self.reports
    }
}

/// Makes calls; does not keep the connection open.
#[derive(Clone)]
pub(crate) struct Caller {
    sender: http2::SendRequest<Body>,
    client: ConfigClient<Http2>,
}

impl Caller {
    pub(crate) async fn report(&self, request: v1::ReportRequest) -> Result<(), CallError> {
        match self.client.clone().report(request).await {
            Ok(_) => Ok(()),
            Err(status) => Err(self.failed(&status)),
        }
    }

    fn failed(&self, status: &Status) -> CallError {
        let mut error = CallError::from(status);
        error.lost |= self.sender.is_closed();
        error
    }
}

/// What a server streams. Dropping it ends the call, which the server sees at once.
pub(crate) struct Messages<M>(Streaming<M>);

/// The frames of a watch.
pub(crate) type Frames = Messages<v1::WatchResponse>;

/// The chunks of an answer to `get`.
pub(crate) type Chunks = Messages<v1::GetResponse>;

impl<M> Messages<M> {
    /// The next one; `None` when the server ended the stream well.
    ///
    /// # Cancel safety
    /// Loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<M>, CallError> {
        self.0
            .message()
            .await
            .map_err(|status| CallError::from(&status))
    }
}

impl CallError {
    pub(crate) const fn lost(message: String) -> Self {
        Self {
            refused: None,
            message,
            at_least: Duration::ZERO,
            lost: true,
        }
    }
}

impl From<&Status> for CallError {
    fn from(status: &Status) -> Self {
        // A status that has a source was not sent by the server: it stands for what went wrong on
        // the way.
        let source = status.source();
        let refused = match status.code() {
            _ if source.is_some() => None,
            Code::InvalidArgument => Some(RefusedReason::Invalid),
            Code::NotFound => Some(RefusedReason::NotServed),
            Code::PermissionDenied => Some(RefusedReason::Denied),
            Code::Unauthenticated => Some(RefusedReason::Unauthenticated),
            Code::FailedPrecondition | Code::Unimplemented => Some(RefusedReason::Incompatible),
            _ => None,
        };
        let text = match source {
            Some(source) => innermost(source),
            // The words are of this library's make, or of a server that has never heard of this one.
            None if status.code() == Code::Unimplemented => {
                "this is not where a driftless server of this version serves gRPC".to_owned()
            }
            None => status.message().to_owned(),
        };
        let text = if text.is_empty() {
            status.code().description().to_owned()
        } else {
            text
        };
        // What is not a number is ignored; a negative one asks not to come back, which for a
        // subscription means: not soon.
        let at_least = status
            .metadata()
            .get(PUSHBACK)
            .and_then(|value| value.to_str().ok()?.parse::<i64>().ok())
            .map_or(Duration::ZERO, |pause| {
                u64::try_from(pause).map_or(MAX_PAUSE, Duration::from_millis)
            });
        Self {
            refused,
            message: cut(text, MAX_MESSAGE_TEXT),
            at_least: at_least.min(MAX_PAUSE),
            lost: source.is_some(),
        }
    }
}

/// A pause that a server asks for in milliseconds, within reason.
pub(crate) fn pause(millis: u32) -> Duration {
    Duration::from_millis(u64::from(millis)).min(MAX_PAUSE)
}

/// At most the first `most` bytes of a text, in whole characters.
pub(crate) fn cut(mut text: String, most: usize) -> String {
    if let Some((end, _)) = text
        .char_indices()
        .find(|(at, char)| at + char.len_utf8() > most)
    {
        text.truncate(end);
    }
    text
}

/// The text of the error at the root: those around it say "transport error".
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    let h2 = || root.downcast_ref().and_then(h2::Error::get_io);
    match root.downcast_ref().or_else(h2).map(io::Error::kind) {
        // Which of them is a matter of chance.
        Some(
            ErrorKind::BrokenPipe
            | ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::NotConnected
            | ErrorKind::UnexpectedEof,
        ) => "the connection was closed".to_owned(),
        _ => root.to_string(),
    }
}

/// The tasks of a connection: hyper's, and the reporter. They end with their owner.
#[derive(Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        spawn(&self.0, task);
    }

    fn executor(&self) -> Executor {
        Executor(Arc::downgrade(&self.0))
    }
}

fn spawn(tasks: &Mutex<JoinSet<()>>, task: impl Future<Output = ()> + Send + 'static) {
    let mut tasks: MutexGuard<'_, _> = tasks.lock().unwrap_or_else(PoisonError::into_inner);
    // Those that ended are let go here: there is one spawn per call, so they never pile up.
    while tasks.try_join_next().is_some() {}
    tasks.spawn(task);
}

/// Where hyper spawns. Weak, because the tasks hold it themselves.
#[derive(Clone)]
struct Executor(Weak<Mutex<JoinSet<()>>>);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        // Without an owner the connection is gone, and so is the need for the task.
        if let Some(tasks) = self.0.upgrade() {
            spawn(&tasks, task);
        }
    }
}

/// hyper's sender as the service that tonic's client calls.
#[derive(Clone)]
struct Http2(http2::SendRequest<Body>);

impl tower_service::Service<http::Request<Body>> for Http2 {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: &Status) -> CallError {
        CallError::from(status)
    }

    #[test]
    fn statuses_that_refuse() {
        for (code, reason) in [
            (Code::InvalidArgument, Some(RefusedReason::Invalid)),
            (Code::NotFound, Some(RefusedReason::NotServed)),
            (Code::PermissionDenied, Some(RefusedReason::Denied)),
            (Code::Unauthenticated, Some(RefusedReason::Unauthenticated)),
            (Code::FailedPrecondition, Some(RefusedReason::Incompatible)),
            (Code::Unimplemented, Some(RefusedReason::Incompatible)),
            (Code::Unavailable, None),
            (Code::ResourceExhausted, None),
            (Code::Internal, None),
            (Code::Unknown, None),
        ] {
            let status = Status::new(code, "why");
            assert_eq!(error(&status).refused, reason, "{code:?}");
            if code != Code::Unimplemented {
                assert_eq!(error(&status).message, "why");
            }
        }
    }

    #[test]
    fn pauses_are_read_and_bounded() {
        for (text, millis) in [
            ("250", 250),
            ("0", 0),
            ("-1", 60_000),
            ("99999999", 60_000),
            ("soon", 0),
        ] {
            let mut status = Status::unavailable("");
            status
                .metadata_mut()
                .insert(PUSHBACK, text.parse().unwrap());
            assert_eq!(error(&status).at_least, Duration::from_millis(millis));
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

    #[test]
    fn long_texts_are_cut_between_characters() {
        let status = Status::internal("\u{fc}".repeat(2000));
        let message = error(&status).message;
        assert_eq!(message.len(), MAX_MESSAGE_TEXT);
        assert_eq!(
            error(&Status::internal("x".repeat(1024))).message.len(),
            1024
        );
    }
}
