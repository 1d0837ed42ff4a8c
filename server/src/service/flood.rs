//! Closes connections whose clients send too many frames of a kind that costs the server more than the
//! client, or that nobody needs so often.
//!
//! hyper and h2 answer each such frame, however many come. Calls and what they carry are not counted
//! here: they have limits of their own.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::frames::{Head, Heads, kind};
use crate::metrics::Metrics;

/// What the limits are counted in. A client may use up two windows' frames at once after a quiet time.
pub(super) const WINDOW: Duration = Duration::from_secs(1);

/// SETTINGS and GOAWAY in a window. Each makes h2 look at all streams of the connection, some 10 µs
/// for a thousand. Clients send one of each, and those that estimate the bandwidth (gRPC in Go and C++)
/// double their windows some ten times.
pub(super) const SETTINGS: u32 = 20;

/// Answers to our pings in a window. We ping ten times a second at most.
pub(super) const PING_ACKS: u32 = 50;

/// Pings in a window. gRPC in Go sends one for each message that it receives, one at a time, while it
/// estimates the bandwidth: thousands a second on a fast network.
pub(super) const PINGS: u32 = 10_000;

/// Resets in a window, besides one for each call that may be open: a client may cancel all of them at
/// once.
pub(super) const RESETS: u32 = 200;

/// Updates of windows in a window. A client that reads at full speed sends one or two for each frame
/// that it receives.
pub(super) const WINDOW_UPDATES: u32 = 50_000;

/// Frames that HTTP/2 lets a server ignore, in a window: PRIORITY, and kinds that it does not know.
pub(super) const IGNORED: u32 = 1_000;

/// What is counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    Settings,
    PingAcks,
    Pings,
    Resets,
    WindowUpdates,
    Ignored,
}

impl Counted {
    const ALL: [Self; 6] = [
        Self::Settings,
        Self::PingAcks,
        Self::Pings,
        Self::Resets,
        Self::WindowUpdates,
        Self::Ignored,
    ];

    const fn of(head: Head) -> Option<Self> {
        match head.kind {
            // What answers our SETTINGS closes the connection by itself, when we sent none.
            kind::SETTINGS if head.is_ack() => None,
            kind::SETTINGS | kind::GOAWAY => Some(Self::Settings),
            kind::PING if head.is_ack() => Some(Self::PingAcks),
            kind::PING => Some(Self::Pings),
            kind::RST_STREAM => Some(Self::Resets),
            kind::WINDOW_UPDATE => Some(Self::WindowUpdates),
            // Calls and their messages. h2 limits CONTINUATION and DATA that is empty or small, and
            // closes connections for PUSH_PROMISE.
            kind::DATA | kind::HEADERS | kind::CONTINUATION | kind::PUSH_PROMISE => None,
            _ => Some(Self::Ignored),
        }
    }

    /// For the metric's label and the log.
    const fn name(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::PingAcks => "ping_ack",
            Self::Pings => "ping",
            Self::Resets => "reset",
            Self::WindowUpdates => "window_update",
            Self::Ignored => "other",
        }
    }

    const fn limit(self, max_streams: u32) -> u32 {
        match self {
            Self::Settings => SETTINGS,
            Self::PingAcks => PING_ACKS,
            Self::Pings => PINGS,
            Self::Resets => max_streams.saturating_add(RESETS),
            Self::WindowUpdates => WINDOW_UPDATES,
            Self::Ignored => IGNORED,
        }
    }
}

/// A client sent too many frames of this kind.
#[derive(Debug)]
struct Flood(Counted);

impl fmt::Display for Flood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "too many frames within a second: {}", self.0.name())
    }
}

impl std::error::Error for Flood {}

/// A connection whose client may not flood it. Reading it fails when the client does.
#[derive(Debug)]
pub(super) struct FloodGuard<S> {
    io: S,
    heads: Heads,
    counts: [u32; Counted::ALL.len()],
    /// When the counts began.
    since: Instant,
    max_streams: u32,
    peer: Option<SocketAddr>,
    metrics: Metrics,
}

impl<S> FloodGuard<S> {
    /// Around a connection of which nothing was read yet, and which may have so many streams.
    pub(super) fn new(io: S, max_streams: u32, peer: Option<SocketAddr>, metrics: Metrics) -> Self {
        Self {
            io,
            heads: Heads::new(),
            counts: [0; Counted::ALL.len()],
            since: Instant::now(),
            max_streams,
            peer,
            metrics,
        }
    }

    fn count(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while let Some(head) = self.heads.next(&mut bytes) {
            let Some(counted) = Counted::of(head) else {
                continue;
            };
            let count = &mut self.counts[counted as usize];
            *count += 1;
            if *count > counted.limit(self.max_streams) {
                // The clock is read only now. All counts are of the same time, which is a whole
                // window or more if there is no flood.
                let now = Instant::now();
                if now.duration_since(self.since) < WINDOW {
                    return Err(Flood(counted));
                }
                (self.counts, self.since) = ([0; Counted::ALL.len()], now);
            }
        }
        Ok(())
    }

    fn report(&self, flood: &Flood) {
        let name = flood.0.name();
        let closed = &self.metrics.floods_closed;
        closed.get_or_create(&[("frame", name)]).inc();
        let peer = self.peer.map(tracing::field::display);
        tracing::debug!(
            peer,
            frame = name,
            "closing a connection: its client sends too many frames of this kind"
        );
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FloodGuard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        if matches!(polled, Poll::Ready(Ok(())))
            && let Err(flood) = this.count(&buf.filled()[before..])
        {
            this.report(&flood);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, flood)));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FloodGuard<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
