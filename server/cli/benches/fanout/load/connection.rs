//! One connection: a socket whose bytes are counted, h2 on it, and what its streams do, in one task.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use super::board::Board;
use crate::Failure;

/// How many clients may wait for their first answer: a quarter of each contender's backlog, so that no connect
/// is dropped. TCP would repeat it a second later, which would measure TCP.
pub(super) const CONNECTING: usize = 1024;

/// The window of a stream and of a connection, in bytes: more than any change here, so that no contender waits
/// for a window.
const WINDOW: u32 = 1024 * 1024;

/// A socket that counts what it receives.
pub(super) struct Counted {
    socket: TcpStream,
    board: Arc<Board>,
}

impl Counted {
    pub(super) async fn connect(to: SocketAddr, board: &Arc<Board>) -> io::Result<Self> {
        let socket = TcpStream::connect(to).await?;
        socket.set_nodelay(true)?;
        Ok(Self {
            socket,
            board: Arc::clone(board),
        })
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(cx, buf);
        let more = buf.filled().len() - before;
        self.board
            .received
            .fetch_add(more as u64, Ordering::Relaxed);
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// A client's place among those that are connecting. It is free when each of its streams has had an answer.
pub(super) type Place = Arc<OwnedSemaphorePermit>;

/// What a stream does until it fails; it does not end otherwise.
pub(super) type Stream = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// Opens a connection and does what its streams do, until one fails.
pub(super) async fn serve(
    io: Counted,
    streams: impl FnOnce(SendRequest<Bytes>) -> Vec<Stream>,
) -> Result<(), Failure> {
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(io)
        .await?;
    let mut connection = pin!(connection);
    let mut streams = streams(send);
    std::future::poll_fn(|cx| {
        for stream in &mut streams {
            if let Poll::Ready(done) = stream.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
        }
        match connection.as_mut().poll(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Err("the connection was closed".into())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            // What it read may be for a stream, which it has woken then.
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Does `work`, and nothing at all while the board says so.
pub(super) async fn stalling(
    work: impl Future<Output = Result<(), Failure>>,
    board: Arc<Board>,
) -> Result<(), Failure> {
    let mut work = pin!(work);
    let mut stall = board.stall.subscribe();
    loop {
        stall.wait_for(|stall| !stall).await?;
        tokio::select! {
            done = &mut work => return done,
            changed = stall.changed() => changed?,
        }
    }
}
