//! A server that writes bytes of its own instead of speaking HTTP/2.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use crate::stage::{Act, Seen};

/// What an HTTP/2 client sends before its first frame.
const PREFACE: usize = 24;

/// Types of frames.
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const CONTINUATION: u8 = 9;

/// Flags.
pub(crate) const END_HEADERS: u8 = 4;

/// The most bytes that one frame may have, as the client's settings leave it.
const MAX_FRAME: usize = 16 * 1024;

/// The server's end of a connection.
pub(crate) struct Raw {
    io: WriteHalf<DuplexStream>,
    requests: mpsc::UnboundedReceiver<u32>,
}

/// A server that does this with each connection, and reads what the client sends.
pub(crate) fn act<F>(script: impl Fn(Raw) -> F + Send + Sync + 'static) -> Act
where
    F: Future<Output = ()> + Send + 'static,
{
    let script = Arc::new(script);
    Arc::new(move |io, seen| {
        let script = Arc::clone(&script);
        Box::pin(async move {
            let (read, io) = tokio::io::split(io);
            let (sender, requests) = mpsc::unbounded_channel();
            tokio::select! {
                () = script(Raw { io, requests }) => {}
                () = watch(read, sender, &seen) => {}
            }
        })
    })
}

/// Tells of each request, until the client has left.
async fn watch(mut io: ReadHalf<DuplexStream>, requests: mpsc::UnboundedSender<u32>, seen: &Seen) {
    let mut skipped = [0; MAX_FRAME];
    if io.read_exact(&mut skipped[..PREFACE]).await.is_err() {
        return;
    }
    let mut head = [0; 9];
    while io.read_exact(&mut head).await.is_ok() {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        if io.read_exact(&mut skipped[..length]).await.is_err() {
            return;
        }
        if head[3] == HEADERS {
            seen.calls.fetch_add(1, Ordering::Relaxed);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let _ = requests.send(stream);
        }
    }
}

impl Raw {
    /// Sends bytes; false when the client has left.
    pub(crate) async fn bytes(&mut self, bytes: &[u8]) -> bool {
        self.io.write_all(bytes).await.is_ok()
    }

    /// The next request's stream; never if there is none.
    pub(crate) async fn request(&mut self) -> u32 {
        match self.requests.recv().await {
            Some(stream) => stream,
            None => std::future::pending().await,
        }
    }

    pub(crate) async fn hold(self) {
        std::future::pending().await
    }
}

/// A frame of HTTP/2.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A setting of HTTP/2.
pub(crate) fn setting(id: u16, value: u32) -> Vec<u8> {
    let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &payload)
}

/// The settings of a server that has no wishes.
pub(crate) fn settings() -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[])
}

/// A header without compression.
pub(crate) fn header(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| {
        assert!(text.len() < 127);
        [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
    };
    [vec![0], text(name), text(value)].concat()
}
