//! The server's first bytes: they show that it is there and speaks HTTP/2, or why not.
//!
//! hyper reports an HTTP/2 connection as ready before the server has sent anything. With this stream in
//! between, an attempt can wait for the first bytes; so a server that speaks another protocol, or rejects a
//! client's certificate, is found out before a call is made.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use super::connect::Io;
use super::error::root_cause;

/// The first byte of a server that speaks TLS: of an alert, or of a handshake.
const TLS: [u8; 2] = [0x15, 0x16];

/// The error for a server that speaks TLS.
const SPEAKS_TLS: &str = "the server speaks TLS; write https:// in place of http://";

/// The first byte of a server that speaks HTTP/1. An HTTP/2 server's first frame does not begin with it: the
/// frame would be longer than 4 MiB.
const HTTP1: u8 = b'H';

/// The error for a server that speaks HTTP/1.
const SPEAKS_HTTP1: &str = "the server speaks HTTP/1 and not HTTP/2; what is there may be a proxy or \
                            another server";

/// The error for a server that closes a connection over TLS before it has sent anything.
const CLOSED_OVER_TLS: &str = "the server closed the connection after the TLS handshake, before it sent \
                               anything; it may reject this client, or not speak HTTP/2";

/// The same without TLS.
const CLOSED: &str = "the server closed the connection before it sent anything; it may not speak HTTP/2 \
                      here, or expect TLS (https://)";

/// Explains errors of reading, for people; `None` for those that it does not know.
pub(super) type Explain = Box<dyn Fn(&io::Error) -> Option<String> + Send + Sync>;

/// A byte stream that tells its [`Preface`] when the server sent its first bytes.
pub(crate) struct PrefaceStream {
    io: Box<dyn Io>,
    /// `None` once the first bytes, or the end, were read.
    first: Option<oneshot::Sender<Result<(), String>>>,
    explain: Option<Explain>,
    plain: bool,
}

/// Waits for the server's first bytes.
pub(crate) struct Preface {
    first: oneshot::Receiver<Result<(), String>>,
    plain: bool,
}

impl Preface {
    /// Resolves when the first bytes were read, or none will come.
    ///
    /// # Cancel safety
    /// Loses nothing.
    pub(crate) async fn received(&mut self) -> Result<(), String> {
        let first = (&mut self.first).await;
        // The stream was dropped before a byte came: a write failed.
        first.unwrap_or_else(|_| Err(closed(self.plain).to_owned()))
    }
}

impl PrefaceStream {
    /// Over a stream without TLS.
    pub(crate) fn plain(io: Box<dyn Io>) -> (Self, Preface) {
        Self::new(io, None, true)
    }

    /// Over TLS, whose errors `explain` turns into texts.
    #[cfg(feature = "tls")]
    pub(crate) fn over_tls(io: Box<dyn Io>, explain: Explain) -> (Self, Preface) {
        Self::new(io, Some(explain), false)
    }

    fn new(io: Box<dyn Io>, explain: Option<Explain>, plain: bool) -> (Self, Preface) {
        let (sender, first) = oneshot::channel();
        let stream = Self {
            io,
            first: Some(sender),
            explain,
            plain,
        };
        (stream, Preface { first, plain })
    }

    /// The same error, with an explanation where there is one.
    fn explained(&self, error: io::Error) -> io::Error {
        let text = self.explain.as_ref().and_then(|explain| explain(&error));
        match text {
            Some(text) => io::Error::new(error.kind(), text),
            None => error,
        }
    }

    /// Checks the first bytes; empty at the stream's end. Later bytes are not checked.
    fn inspect(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(first) = self.first.take() else {
            return Ok(());
        };
        let verdict = match bytes.first() {
            None => Err(closed(self.plain)),
            Some(byte) if self.plain && TLS.contains(byte) => Err(SPEAKS_TLS),
            Some(byte) if *byte == HTTP1 => Err(SPEAKS_HTTP1),
            Some(_) => Ok(()),
        };
        // Nobody waits for it once the attempt was given up.
        let _ = first.send(verdict.map_err(str::to_owned));
        match verdict {
            Err(problem) if !bytes.is_empty() => {
                Err(io::Error::new(io::ErrorKind::InvalidData, problem))
            }
            // The end of a stream is no read error.
            _ => Ok(()),
        }
    }
}

const fn closed(plain: bool) -> &'static str {
    if plain { CLOSED } else { CLOSED_OVER_TLS }
}

impl AsyncRead for PrefaceStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let has_room = buf.remaining() > 0;
        match std::task::ready!(Pin::new(&mut this.io).poll_read(cx, buf)) {
            Ok(()) if !has_room => Poll::Ready(Ok(())),
            Ok(()) => Poll::Ready(this.inspect(&buf.filled()[before..])),
            Err(error) => {
                let error = this.explained(error);
                if let Some(first) = this.first.take() {
                    let _ = first.send(Err(root_cause(&error)));
                }
                Poll::Ready(Err(error))
            }
        }
    }
}

impl AsyncWrite for PrefaceStream {
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn first_bytes_are_reported_and_not_lost() {
        let (io, mut server) = duplex(64);
        let (mut io, mut preface) = PrefaceStream::plain(Box::new(io));
        server.write_all(b"\0\0\x06rest").await.unwrap();
        let mut read = [0; 7];
        io.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"\0\0\x06rest");
        assert_eq!(preface.received().await, Ok(()));
        // Later bytes may be any.
        server.write_all(&[0x15]).await.unwrap();
        assert_eq!(io.read_u8().await.unwrap(), 0x15);
    }

    #[tokio::test]
    async fn other_protocols_are_recognised() {
        let alert = [0x15, 3, 3, 0, 2, 2, 50];
        for (sent, expected) in [
            (&alert[..], SPEAKS_TLS),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", SPEAKS_HTTP1),
        ] {
            let (io, mut server) = duplex(64);
            let (mut io, mut preface) = PrefaceStream::plain(Box::new(io));
            server.write_all(sent).await.unwrap();
            let error = io.read_u8().await.unwrap_err();
            assert_eq!(error.to_string(), expected);
            assert_eq!(preface.received().await, Err(expected.to_owned()));
        }
    }

    #[tokio::test]
    async fn close_before_the_first_byte_is_reported() {
        let (io, server) = duplex(64);
        let (mut io, mut preface) = PrefaceStream::plain(Box::new(io));
        drop(server);
        assert_eq!(io.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(preface.received().await, Err(CLOSED.to_owned()));
        let (io, _server) = duplex(64);
        let (io, mut preface) = PrefaceStream::plain(Box::new(io));
        drop(io);
        assert_eq!(preface.received().await, Err(CLOSED.to_owned()));
    }
}
