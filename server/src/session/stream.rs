//! One open call of `Watch` or `Get`: what is known of it, and the guard that its response owns.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use driftless_proto::{KeyRange, Revision, v1};
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::admission::{Permit, Refused, Requester};
use super::calls::HeldBytes;
use super::connection::Connection;
use super::kept::Kept;
use super::registry::{Clock, Registry};
use super::slow_consumers::SYNC_PINNED_AT_MOST;
use crate::auth::{BearerToken, Identity};
use crate::metrics::GaugeGuard;

/// Names a stream among all that a server ever had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub(super) u64);

/// `Hello.watch_id`: the name under which a client reports about a stream. Random, so that nobody
/// reports about another's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct WatchId([u8; Self::LEN]);

impl fmt::Debug for WatchId {
    /// Without the id: whoever knows it can report about the stream.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WatchId(..)")
    }
}

impl WatchId {
    /// How long one is on the wire, in bytes.
    pub(crate) const LEN: usize = 16;

    fn random() -> Self {
        Self(rand::random())
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// As it is on the wire.
    pub fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }
}

/// Which call a stream is the response of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// `Watch`: open until one end closes it.
    Watch,
    /// `Get`: open until the snapshot was read.
    Get,
}

/// What a client reported last about a stream.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// Its place among the client's reports about this stream. 0: it came with the request.
    pub sequence: u64,
    /// What the client did with what it got. `None` when the report does not say, or the connection's
    /// calls hold too much already.
    pub outcome: Option<v1::Outcome>,
}

/// What a request says about the stream that it opens.
#[derive(Debug)]
pub(crate) struct NewStream {
    pub(crate) kind: CallKind,
    pub(crate) range: KeyRange,
    pub(crate) client: Option<v1::ClientInfo>,
    pub(crate) token: Option<BearerToken>,
    /// What the client has already.
    pub(crate) resumed_from: Revision,
    /// What it did with that.
    pub(crate) outcome: Option<v1::Outcome>,
    /// What the request counts for on its connection: at least what the stream keeps of it.
    pub(crate) held: HeldBytes,
}

/// One open stream. Cheap to clone; it says what is true when it is asked. Reading from it after the
/// stream has ended is harmless.
#[derive(Clone, Debug)]
pub struct Stream(Arc<Inner>);

/// Moments that change with each frame are in milliseconds on the registry's [`Clock`]; 0 is none.
#[derive(Debug)]
struct Inner {
    id: StreamId,
    watch_id: Option<WatchId>,
    kind: CallKind,
    connection: Connection,
    range: KeyRange,
    client: OnceLock<Arc<Kept<v1::ClientInfo>>>,
    token: Option<Arc<Kept<BearerToken>>>,
    since: Instant,
    resumed_from: Revision,
    clock: Clock,
    cursor: AtomicI64,
    /// When the piece that it has in hand was handed over.
    unread_since: AtomicU64,
    /// When the snapshot or conflated diff that it reads has to be over.
    sync_until: AtomicU64,
    report: Mutex<Reported>,
    /// Set once, by whoever ends the stream.
    goodbye: OnceLock<v1::Goodbye>,
    ended_at: AtomicU64,
    /// Wakes the stream's response, wherever it waits.
    waker: AtomicWaker,
}

/// The latest report.
#[derive(Debug)]
struct Reported {
    latest: Option<Report>,
    /// Counts its outcome, and the stream's range.
    held: HeldBytes,
}

/// The texts of an outcome, in bytes.
fn texts(outcome: Option<&v1::Outcome>) -> usize {
    let rejection = outcome.and_then(|outcome| outcome.rejection.as_ref());
    rejection.map_or(0, |it| it.kind.len() + it.key.len() + it.path.len())
}

impl Stream {
    pub(super) fn new(id: StreamId, connection: &Connection, new: NewStream, clock: Clock) -> Self {
        let kept = connection.kept();
        let mut held = new.held;
        held.set(new.range.start().as_bytes().len() + texts(new.outcome.as_ref()));
        let latest = new.outcome.map(|outcome| Report {
            sequence: 0,
            outcome: Some(outcome),
        });
        Self(Arc::new(Inner {
            id,
            watch_id: (new.kind == CallKind::Watch).then(WatchId::random),
            kind: new.kind,
            range: new.range,
            client: new
                .client
                .and_then(|client| kept.client(&client))
                .map_or_else(OnceLock::new, OnceLock::from),
            token: new.token.and_then(|token| kept.token(&token)),
            since: Instant::now(),
            resumed_from: new.resumed_from,
            clock,
            cursor: AtomicI64::new(new.resumed_from.get()),
            unread_since: AtomicU64::new(0),
            sync_until: AtomicU64::new(0),
            report: Mutex::new(Reported { latest, held }),
            goodbye: OnceLock::new(),
            ended_at: AtomicU64::new(0),
            waker: AtomicWaker::new(),
            connection: connection.clone(),
        }))
    }

    /// Its name on this server.
    pub fn id(&self) -> StreamId {
        self.0.id
    }

    /// Its name in reports. `None` for a `Get`, about which nobody reports.
    pub fn watch_id(&self) -> Option<WatchId> {
        self.0.watch_id
    }

    /// Which call it is the response of.
    pub fn kind(&self) -> CallKind {
        self.0.kind
    }

    /// The connection that it is on.
    pub fn connection(&self) -> &Connection {
        &self.0.connection
    }

    /// What its range is.
    pub fn range(&self) -> &KeyRange {
        &self.0.range
    }

    /// Which view of the range it is sent, as in `Hello.view`. Empty: the base, the only one there is.
    pub fn view(&self) -> &'static str {
        ""
    }

    /// Who is at the other end, as far as it was proven. Not judged yet.
    pub fn identity(&self) -> Identity<'_> {
        let token = self.0.token.as_ref().map(|token| &***token);
        Identity::new(self.0.connection.certificates(), token)
    }

    /// Who the client says it is, in its request or else in its first report. `None` when it did not say,
    /// or the connection's streams keep too much already.
    pub fn client(&self) -> Option<&v1::ClientInfo> {
        self.0.client.get().map(|client| &***client)
    }

    /// When it began.
    pub fn since(&self) -> Instant {
        self.0.since
    }

    /// The revision that the client had when it began; [`Revision::NONE`] for nothing.
    pub fn resumed_from(&self) -> Revision {
        self.0.resumed_from
    }

    /// The revision that the client is at when it has read everything that was begun for it.
    pub fn cursor(&self) -> Revision {
        Revision::new(self.0.cursor.load(Ordering::Relaxed))
    }

    /// What the client reported last. `None` when it did not report yet.
    pub fn report(&self) -> Option<Report> {
        self.0.report.lock().latest.clone()
    }

    /// When the piece that is in hand was handed to the connection, which has not taken it yet. `None`
    /// when there is nothing to send.
    pub fn unread_since(&self) -> Option<Instant> {
        self.0
            .clock
            .instant(self.0.unread_since.load(Ordering::Relaxed))
    }

    /// Takes what a client says of itself, unless that is known already.
    pub(super) fn take_client(&self, client: &v1::ClientInfo) {
        if self.0.client.get().is_none()
            && let Some(client) = self.0.connection.kept().client(client)
        {
            let _ = self.0.client.set(client);
        }
    }

    /// Takes a report, unless there is a later one.
    pub(super) fn take_report(&self, sequence: u64, outcome: Option<&v1::Outcome>) {
        let mut report = self.0.report.lock();
        let before = report.latest.as_ref().map_or(0, |report| report.sequence);
        if sequence > before {
            let range = self.0.range.start().as_bytes().len();
            let fits = report.held.set(range + texts(outcome));
            if !fits {
                report.held.set(range);
            }
            let outcome = outcome.filter(|_| fits).cloned();
            report.latest = Some(Report { sequence, outcome });
        }
    }

    /// Ends it with this goodbye; the first one counts. Wakes its response.
    pub(super) fn end(&self, goodbye: v1::Goodbye) {
        if self.0.goodbye.set(goodbye).is_ok() {
            self.0.ended_at.store(self.0.clock.now(), Ordering::Relaxed);
            self.0.waker.wake();
        }
    }

    /// When it was told to end, in milliseconds on the clock.
    pub(super) fn ended_at(&self) -> Option<u64> {
        match self.0.ended_at.load(Ordering::Relaxed) {
            0 => None,
            at => Some(at),
        }
    }

    /// Whether it reads a snapshot or conflated diff, or has left a piece unread for so many milliseconds.
    /// Not once it was told to end.
    pub(super) fn is_slow(&self, now: u64, behind: u64) -> bool {
        let unread = self.0.unread_since.load(Ordering::Relaxed);
        let is_behind = unread > 0 && now.saturating_sub(unread) >= behind;
        let is_syncing = self.0.sync_until.load(Ordering::Relaxed) > 0;
        (is_behind || is_syncing) && self.ended_at().is_none()
    }

    /// Whether the connection has to be closed because of it. A stream whose snapshot takes too long
    /// ends by itself when it is asked for more, and is given one more `check` to be asked.
    pub(super) fn is_stalled(&self, now: u64, timeout: u64, check: u64) -> bool {
        let unread = self.0.unread_since.load(Ordering::Relaxed);
        if unread == 0 {
            return false;
        }
        let until = self.0.sync_until.load(Ordering::Relaxed);
        let since = |moment: u64| now.saturating_sub(moment);
        since(unread) >= timeout || (until > 0 && since(until.max(unread)) >= check)
    }
}

/// Keeps a stream in the registry, with all that it has on the server. Its response owns it.
///
/// Dropping it removes the stream from the registry, so that reports about it are unknown and nobody
/// closes its connection for it, gives its permit or place in the queue back, and drops its
/// `subscription`: its place in the scope of its range, for a `Watch`.
#[derive(Debug)]
pub(crate) struct StreamGuard<S> {
    registry: Registry,
    stream: Stream,
    subscription: S,
    permit: Option<Permit>,
    /// Whether a snapshot or conflated diff is being read, for which the permit is.
    syncing: bool,
    /// Whether that has to end, because it is read too slowly.
    revoked: bool,
    /// The waker that is registered with the stream.
    waker: Option<Waker>,
    _counted: Option<GaugeGuard>,
}

impl<S> StreamGuard<S> {
    pub(super) fn new(registry: Registry, stream: Stream, subscription: S) -> Self {
        let counted = match stream.kind() {
            CallKind::Watch => Some(GaugeGuard::new(&registry.metrics().streams)),
            CallKind::Get => None,
        };
        Self {
            registry,
            stream,
            subscription,
            permit: None,
            syncing: false,
            revoked: false,
            waker: None,
            _counted: counted,
        }
    }

    pub(crate) const fn stream(&self) -> &Stream {
        &self.stream
    }

    pub(crate) const fn subscription(&self) -> &S {
        &self.subscription
    }

    /// The response is polled: from now on the stream's end wakes this task. To be called before
    /// [`StreamGuard::goodbye`] is looked at.
    pub(crate) fn polled_by(&mut self, cx: &Context<'_>) {
        let known = self.waker.as_ref();
        if !known.is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.stream.0.waker.register(cx.waker());
            self.waker = Some(cx.waker().clone());
        }
    }

    /// What to end with, once somebody has ended the stream.
    pub(crate) fn goodbye(&self) -> Option<&v1::Goodbye> {
        self.stream.0.goodbye.get()
    }

    /// All that was begun leads the client to this revision.
    pub(crate) fn set_cursor(&self, cursor: Revision) {
        self.stream.0.cursor.store(cursor.get(), Ordering::Relaxed);
    }

    /// Asks for a permit to read a snapshot or conflated diff, for a client that gives up after
    /// `patience`.
    ///
    /// # Errors
    /// When the wait would be too long, or the server shuts down.
    pub(crate) fn request_permit(&mut self, patience: Duration) -> Result<(), Refused> {
        let who = Requester::of(self.stream.connection());
        self.permit = Some(self.registry.admission().request(who, patience)?);
        Ok(())
    }

    /// Whether the permit is there.
    ///
    /// # Errors
    /// When the wait was too long, or the server shuts down.
    pub(crate) fn poll_permit(&self, cx: &Context<'_>) -> Poll<Result<(), Refused>> {
        match &self.permit {
            Some(permit) => permit.poll(cx),
            None => Poll::Ready(Err(Refused::Closed)),
        }
    }

    /// A snapshot or conflated diff begins, which pins the state that it is of.
    pub(crate) fn begin_sync(&mut self) {
        let until = self.now() + Clock::millis(SYNC_PINNED_AT_MOST);
        self.stream.0.sync_until.store(until, Ordering::Relaxed);
        self.syncing = true;
    }

    /// It is over, or cut off; the permit is given back.
    pub(crate) fn end_sync(&mut self) {
        self.stream.0.sync_until.store(0, Ordering::Relaxed);
        self.syncing = false;
        self.revoked = false;
        self.permit = None;
    }

    /// Whether the snapshot or conflated diff takes longer than it may.
    pub(crate) fn is_sync_overdue(&self) -> bool {
        let until = self.stream.0.sync_until.load(Ordering::Relaxed);
        self.revoked || (until > 0 && self.now() >= until)
    }

    /// The connection asks for the next piece, so it has taken the one before.
    pub(crate) fn piece_taken(&mut self) {
        if let Some(permit) = self.permit.as_ref().filter(|_| self.syncing) {
            self.revoked = !permit.piece_taken();
        }
    }

    /// A piece is handed to the connection.
    pub(crate) fn piece_handed(&self) {
        if let Some(permit) = self.permit.as_ref().filter(|_| self.syncing) {
            permit.piece_handed();
        }
        self.busy();
    }

    /// The next piece is being looked for.
    pub(crate) fn busy(&self) {
        self.stream
            .0
            .unread_since
            .store(self.now(), Ordering::Relaxed);
    }

    /// There is nothing to send.
    pub(crate) fn idle(&self) {
        self.stream.0.unread_since.store(0, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.stream.0.clock.now()
    }
}

impl<S> Drop for StreamGuard<S> {
    fn drop(&mut self) {
        // Somebody may still look at the stream.
        self.stream.0.report.lock().held.set(0);
        self.registry.remove_stream(&self.stream);
    }
}
