//! Notes when the network takes no more of what a connection writes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::session::Connection;

/// The transport of a connection. While a write waits, the connection's clock for slow consumers runs,
/// which is the only one for headers, pings and what else has no window in HTTP/2.
#[derive(Debug)]
pub(super) struct WriteClock<I> {
    io: I,
    connection: Connection,
    blocked: bool,
}

impl<I> WriteClock<I> {
    pub(super) const fn new(io: I, connection: Connection) -> Self {
        Self {
            io,
            connection,
            blocked: false,
        }
    }

    fn note<T>(&mut self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if self.blocked != written.is_pending() {
            self.blocked = written.is_pending();
            if self.blocked {
                self.connection.write_blocked();
            } else {
                self.connection.write_unblocked();
            }
        }
        written
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for WriteClock<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for WriteClock<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.note(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut_down = Pin::new(&mut self.io).poll_shutdown(cx);
        self.note(shut_down)
    }
}
