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

/// How often a network that has delivered all it may checks whether it may deliver more.
const RECHECK_EVERY: Duration = Duration::from_millis(1);

/// How slowly a network delivers.
#[derive(Clone, Copy)]
pub(crate) struct SlowNetwork {
    /// The most bytes that a read returns.
    pub(crate) chunk: usize,
    /// The pause after each read.
    pub(crate) pause: Duration,
    /// How many bytes it delivers in all, unless [`Delivered::allow`] allows more.
    pub(crate) limit: usize,
}

/// How much a [`SlowNetwork`] has delivered, in bytes.
#[derive(Clone, Default)]
pub(crate) struct Delivered {
    bytes: Arc<watch::Sender<usize>>,
    allowed: Arc<AtomicUsize>,
}

impl Delivered {
    /// How many bytes have been delivered until now.
    pub(crate) fn bytes(&self) -> usize {
        *self.bytes.borrow()
    }

    /// Waits until this many bytes have been delivered.
    pub(crate) async fn wait_for(&self, bytes: usize) {
        let mut delivered = self.bytes.subscribe();
        // Cannot fail: `self` owns a sender.
        let _ = delivered.wait_for(|delivered| *delivered >= bytes).await;
    }

    /// Lets the network deliver this many bytes more.
    pub(crate) fn allow(&self, more: usize) {
        self.allowed.fetch_add(more, Ordering::SeqCst);
    }
}

impl SlowNetwork {
    /// A client that reaches the server at `url` over this network.
    pub(crate) fn client(self, url: &str) -> Client {
        self.client_with_count(url).0
    }

    /// The same, with the count of what was delivered to it.
    pub(crate) fn client_with_count(self, url: &str) -> (Client, Delivered) {
        let delivered = Delivered::default();
        let count = delivered.clone();
        let connect = move |endpoint: &Endpoint| -> Connecting {
            let delivered = count.clone();
            let (host, port) = (endpoint.host().to_owned(), endpoint.port());
            Box::pin(async move {
                let stream = TcpStream::connect((host.as_str(), port)).await?;
                stream.set_nodelay(true)?;
                let slow = SlowIo {
                    network: self,
                    stream,
                    pause: Box::pin(sleep(Duration::ZERO)),
                    delivered,
                };
                Ok(Box::new(slow) as Box<dyn Io>)
            })
        };
        let builder = Client::builder().endpoint(url);
        (builder.connector(connect).build().unwrap(), delivered)
    }
}

struct SlowIo {
    network: SlowNetwork,
    stream: TcpStream,
    pause: Pin<Box<Sleep>>,
    delivered: Delivered,
}

impl AsyncRead for SlowIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self {
            network,
            stream,
            pause,
            delivered,
        } = &mut *self;
        ready!(pause.as_mut().poll(context));
        let allowed = delivered.allowed.load(Ordering::SeqCst);
        let left = network.limit.saturating_add(allowed) - delivered.bytes();
        if left == 0 {
            // Check again later: more may be allowed by then.
            pause.as_mut().reset(Instant::now() + RECHECK_EVERY);
            ready!(pause.as_mut().poll(context));
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let most = network.chunk.min(left).min(buffer.remaining());
        let mut chunk = ReadBuf::new(buffer.initialize_unfilled_to(most));
        ready!(Pin::new(stream).poll_read(context, &mut chunk))?;
        let read = chunk.filled().len();
        buffer.advance(read);
        delivered.bytes.send_modify(|bytes| *bytes += read);
        pause.as_mut().reset(Instant::now() + network.pause);
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
