//! A slow network: a client behind it does read, but slowly.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use driftless_client::{Client, Connecting, Endpoint, Io};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep};

/// How often a network that has brought all it may looks whether it may bring more.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// How a network is slow.
#[derive(Clone, Copy)]
pub(crate) struct Slow {
    /// Bytes at a time.
    pub(crate) at_a_time: usize,
    /// How long it rests in between.
    pub(crate) rest: Duration,
    /// How many bytes it brings at all, unless more is allowed.
    pub(crate) most: usize,
}

/// How much a [`Slow`] network has brought, in bytes.
#[derive(Clone, Default)]
pub(crate) struct Brought {
    bytes: Arc<watch::Sender<usize>>,
    allowed: Arc<AtomicUsize>,
}

impl Brought {
    /// Until now.
    pub(crate) fn bytes(&self) -> usize {
        *self.bytes.borrow()
    }

    /// Waits until it is as much.
    pub(crate) async fn reaches(&self, bytes: usize) {
        let mut brought = self.bytes.subscribe();
        // Its sender is held here.
        let _ = brought.wait_for(|brought| *brought >= bytes).await;
    }

    /// Allows it to bring so many bytes more.
    pub(crate) fn allow(&self, more: usize) {
        self.allowed.fetch_add(more, Ordering::SeqCst);
    }
}

impl Slow {
    /// A client that has this one to the server at `url`.
    pub(crate) fn client(self, url: &str) -> Client {
        self.counted(url).0
    }

    /// The same, and how much it has got.
    pub(crate) fn counted(self, url: &str) -> (Client, Brought) {
        let brought = Brought::default();
        let counted = brought.clone();
        let connect = move |endpoint: &Endpoint| -> Connecting {
            let brought = counted.clone();
            let (host, port) = (endpoint.host().to_owned(), endpoint.port());
            Box::pin(async move {
                let stream = TcpStream::connect((host.as_str(), port)).await?;
                stream.set_nodelay(true)?;
                let rested = Box::pin(sleep(Duration::ZERO));
                let slow = SlowIo {
                    slow: self,
                    stream,
                    rested,
                    brought,
                };
                Ok(Box::new(slow) as Box<dyn Io>)
            })
        };
        let builder = Client::builder().endpoint(url);
        (builder.connector(connect).build().unwrap(), brought)
    }
}

struct SlowIo {
    slow: Slow,
    stream: TcpStream,
    rested: Pin<Box<Sleep>>,
    brought: Brought,
}

impl AsyncRead for SlowIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self {
            slow,
            stream,
            rested,
            brought,
        } = &mut *self;
        ready!(rested.as_mut().poll(context));
        let allowed = brought.allowed.load(Ordering::SeqCst);
        let left = slow.most.saturating_add(allowed) - brought.bytes();
        if left == 0 {
            // More may be allowed by then.
            rested.as_mut().reset(Instant::now() + LOOK_AGAIN);
            ready!(rested.as_mut().poll(context));
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let few = slow.at_a_time.min(left).min(buffer.remaining());
        let mut little = ReadBuf::new(buffer.initialize_unfilled_to(few));
        ready!(Pin::new(stream).poll_read(context, &mut little))?;
        let read = little.filled().len();
        buffer.advance(read);
        brought.bytes.send_modify(|brought| *brought += read);
        rested.as_mut().reset(Instant::now() + slow.rest);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SlowIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
