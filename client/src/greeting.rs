//! What a server's first bytes say: that it is there, that it speaks what was expected, or why not.
//!
//! An HTTP/2 connection counts as made before its server has said a word. With this in between, an
//! attempt can wait for that word, and a server that speaks something else, or turns a client's
//! certificate down, is found out then and there.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use crate::connect::Io;

/// The first byte of a server that speaks TLS: of an alert, or of a handshake.
const TLS: [u8; 2] = [0x15, 0x16];

/// What to say of it.
const SPEAKS_TLS: &str = "the server speaks TLS; write https:// in place of http://";

/// The first byte of a server that speaks HTTP/1, which no first frame of HTTP/2 begins with: it would
/// be one of more than 4 MiB.
const HTTP1: u8 = b'H';

/// What to say of it.
const SPEAKS_HTTP1: &str = "the server speaks HTTP/1 and not HTTP/2; what is there may be a proxy or \
                            another server";

/// What to say of a server that ends a connection over TLS before it has said anything.
const MUTE_OVER_TLS: &str = "the server closed the connection without a word once TLS was agreed on; it \
                             may not take this client, or not speak HTTP/2";

/// The same without TLS.
const MUTE: &str = "the server closed the connection without a word; it may not speak HTTP/2 here, or \
                    expect TLS (https://)";

/// Says what errors of reading mean, for people; `None` for those that it does not know.
pub(crate) type Words = Box<dyn Fn(&io::Error) -> Option<String> + Send + Sync>;

/// A byte stream that tells when its other end first spoke.
pub(crate) struct Greeted {
    io: Box<dyn Io>,
    /// Gone once the first bytes, or the end, were there.
    first: Option<oneshot::Sender<Result<(), String>>>,
    words: Option<Words>,
    plain: bool,
}

/// Waits for the first word.
pub(crate) struct Greeting {
    first: oneshot::Receiver<Result<(), String>>,
    plain: bool,
}

impl Greeting {
    /// Resolves when the server has spoken, or will not.
    ///
    /// # Cancel safety
    /// Loses nothing.
    pub(crate) async fn heard(&mut self) -> Result<(), String> {
        let first = (&mut self.first).await;
        // Dropped without a word from it: a write failed.
        first.unwrap_or_else(|_| Err(mute(self.plain).to_owned()))
    }
}

impl Greeted {
    /// Over what carries no TLS.
    pub(crate) fn plain(io: Box<dyn Io>) -> (Self, Greeting) {
        Self::new(io, None, true)
    }

    /// Over TLS, whose errors `words` explains.
    #[cfg(feature = "tls")]
    pub(crate) fn over_tls(io: Box<dyn Io>, words: Words) -> (Self, Greeting) {
        Self::new(io, Some(words), false)
    }

    fn new(io: Box<dyn Io>, words: Option<Words>, plain: bool) -> (Self, Greeting) {
        let (tell, first) = oneshot::channel();
        let greeted = Self {
            io,
            first: Some(tell),
            words,
            plain,
        };
        (greeted, Greeting { first, plain })
    }

    /// The same error, in words where there are any.
    fn explained(&self, error: io::Error) -> io::Error {
        let words = self.words.as_ref().and_then(|words| words(&error));
        match words {
            Some(words) => io::Error::new(error.kind(), words),
            None => error,
        }
    }

    /// Hears the first word: these bytes, none of them at the stream's end.
    fn hear(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(first) = self.first.take() else {
            return Ok(());
        };
        let word = match bytes.first() {
            None => Err(mute(self.plain)),
            Some(byte) if self.plain && TLS.contains(byte) => Err(SPEAKS_TLS),
            Some(byte) if *byte == HTTP1 => Err(SPEAKS_HTTP1),
            Some(_) => Ok(()),
        };
        // Nobody waits for it once the attempt was given up.
        let _ = first.send(word.map_err(str::to_owned));
        match word {
            Err(other) if !bytes.is_empty() => {
                Err(io::Error::new(io::ErrorKind::InvalidData, other))
            }
            // The end is no error of reading.
            _ => Ok(()),
        }
    }
}

const fn mute(plain: bool) -> &'static str {
    if plain { MUTE } else { MUTE_OVER_TLS }
}

impl AsyncRead for Greeted {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let room = buf.remaining() > 0;
        match std::task::ready!(Pin::new(&mut this.io).poll_read(cx, buf)) {
            Ok(()) if !room => Poll::Ready(Ok(())),
            Ok(()) => Poll::Ready(this.hear(&buf.filled()[before..])),
            Err(error) => {
                let error = this.explained(error);
                if let Some(first) = this.first.take() {
                    let _ = first.send(Err(crate::transport::innermost(&error)));
                }
                Poll::Ready(Err(error))
            }
        }
    }
}

impl AsyncWrite for Greeted {
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
    async fn a_server_that_speaks_is_heard_and_nothing_is_lost() {
        let (io, mut server) = duplex(64);
        let (mut io, mut greeting) = Greeted::plain(Box::new(io));
        server.write_all(b"\0\0\x06rest").await.unwrap();
        let mut read = [0; 7];
        io.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"\0\0\x06rest");
        assert_eq!(greeting.heard().await, Ok(()));
        // Later bytes may be any.
        server.write_all(&[0x15]).await.unwrap();
        assert_eq!(io.read_u8().await.unwrap(), 0x15);
    }

    #[tokio::test]
    async fn a_server_that_speaks_something_else_is_told_apart() {
        let alert = [0x15, 3, 3, 0, 2, 2, 50];
        for (said, expected) in [
            (&alert[..], SPEAKS_TLS),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", SPEAKS_HTTP1),
        ] {
            let (io, mut server) = duplex(64);
            let (mut io, mut greeting) = Greeted::plain(Box::new(io));
            server.write_all(said).await.unwrap();
            let error = io.read_u8().await.unwrap_err();
            assert_eq!(error.to_string(), expected);
            assert_eq!(greeting.heard().await, Err(expected.to_owned()));
        }
    }

    #[tokio::test]
    async fn one_that_ends_without_a_word_is_heard_too() {
        let (io, server) = duplex(64);
        let (mut io, mut greeting) = Greeted::plain(Box::new(io));
        drop(server);
        assert_eq!(io.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(greeting.heard().await, Err(MUTE.to_owned()));
        let (io, _server) = duplex(64);
        let (io, mut greeting) = Greeted::plain(Box::new(io));
        drop(io);
        assert_eq!(greeting.heard().await, Err(MUTE.to_owned()));
    }
}
