//! A transport that stops at its j-th operation, for ever.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use driftless_client::{Connect, Connecting, Endpoint, Io};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

/// The most operations that a scenario may take: one that takes more does not end.
const MOST_OPERATIONS: u64 = 10_000;

/// How long one round of [`at_every_operation`] may take, so that a round that hangs fails with its
/// number. Generous on purpose.
const ROUND_WITHIN: Duration = Duration::from_secs(60);

/// Lets a client's first operations through, and none after them: connects, reads, writes, flushes
/// and shutdowns, counted in the order in which they are completed, on all connections together.
///
/// An operation that stalls never completes and wakes nobody, as on a network that was cut. Clones share
/// one count.
#[derive(Clone, Debug)]
pub struct Stall(Arc<Plan>);

#[derive(Debug)]
struct Plan {
    /// How many operations are let through.
    through: AtomicU64,
    done: AtomicU64,
    happened: watch::Sender<bool>,
}

impl Stall {
    /// Stalls after `through` operations.
    pub fn after(through: u64) -> Self {
        Self(Arc::new(Plan {
            through: AtomicU64::new(through),
            done: AtomicU64::new(0),
            happened: watch::Sender::new(false),
        }))
    }

    /// Never stalls, and counts.
    pub fn never() -> Self {
        Self::after(u64::MAX)
    }

    /// Stalls from now on.
    pub fn begin(&self) {
        self.0.through.store(0, Ordering::Release);
    }

    /// How many operations have been completed.
    pub fn operations(&self) -> u64 {
        self.0.done.load(Ordering::Acquire)
    }

    /// Whether an operation stalls.
    pub fn has_happened(&self) -> bool {
        *self.0.happened.borrow()
    }

    /// Waits until an operation stalls.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn happened(&self) {
        let mut happened = self.0.happened.subscribe();
        // Its sender is held here.
        let _ = happened.wait_for(|happened| *happened).await;
    }

    /// A connector for a client, through which the operations of `connector` go.
    pub fn over(&self, connector: impl Connect) -> impl Connect {
        Stalling {
            stall: self.clone(),
            connector,
        }
    }

    /// The same over TCP.
    pub fn over_tcp(&self) -> impl Connect {
        self.over(|endpoint: &Endpoint| -> Connecting {
            let (host, port) = (endpoint.host().to_owned(), endpoint.port());
            Box::pin(async move {
                let stream = TcpStream::connect((host.as_str(), port)).await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream) as Box<dyn Io>)
            })
        })
    }

    /// Whether the next operation stalls.
    fn stalls(&self) -> bool {
        let stalls = self.operations() >= self.0.through.load(Ordering::Acquire);
        if stalls {
            self.0
                .happened
                .send_if_modified(|happened| !std::mem::replace(happened, true));
        }
        stalls
    }

    fn completed(&self) {
        self.0.done.fetch_add(1, Ordering::AcqRel);
    }

    fn operation<T>(&self, poll: impl FnOnce() -> Poll<T>) -> Poll<T> {
        if self.stalls() {
            return Poll::Pending;
        }
        let polled = poll();
        if polled.is_ready() {
            self.completed();
        }
        polled
    }
}

struct Stalling<C> {
    stall: Stall,
    connector: C,
}

impl<C: Connect> Connect for Stalling<C> {
    fn connect(&self, endpoint: &Endpoint) -> Connecting {
        let stall = self.stall.clone();
        let connecting = self.connector.connect(endpoint);
        Box::pin(async move {
            if stall.stalls() {
                std::future::pending::<()>().await;
            }
            let io = connecting.await?;
            stall.completed();
            Ok(Box::new(StallingIo { stall, io }) as Box<dyn Io>)
        })
    }
}

struct StallingIo {
    stall: Stall,
    io: Box<dyn Io>,
}

impl AsyncRead for StallingIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stall, io } = &mut *self;
        stall.operation(|| Pin::new(io).poll_read(context, buffer))
    }
}

impl AsyncWrite for StallingIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stall, io } = &mut *self;
        stall.operation(|| Pin::new(io).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { stall, io } = &mut *self;
        stall.operation(|| Pin::new(io).poll_write_vectored(context, pieces))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stall, io } = &mut *self;
        stall.operation(|| Pin::new(io).poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stall, io } = &mut *self;
        stall.operation(|| Pin::new(io).poll_shutdown(context))
    }
}

/// Calls `round` with a transport that stalls after 0, 1, 2, … operations, until one does not stall,
/// and returns how many operations that let through.
///
/// A round makes a client with [`Stall::over_tcp`], or [`Stall::over`], does its work until that is
/// done or the [stall has happened](Stall::happened), drops everything, and fails where something is
/// left.
///
/// # Panics
/// When a round does not end within a minute, or the scenario still stalls after ten thousand
/// operations.
///
/// # Cancel safety
/// Dropping it ends the round at hand.
pub async fn at_every_operation(mut round: impl AsyncFnMut(Stall)) -> u64 {
    for through in 0..MOST_OPERATIONS {
        let stall = Stall::after(through);
        if timeout(ROUND_WITHIN, round(stall.clone())).await.is_err() {
            panic!(
                "stalled after {through} operations: the round is not over within {ROUND_WITHIN:?}"
            );
        }
        if !stall.has_happened() {
            return through;
        }
    }
    panic!("the scenario still stalls after {MOST_OPERATIONS} operations");
}
