//! Captures the bytes that a client sends, and finds the reports in them.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use driftless_client::{Connect, Connecting, Endpoint, Io};
use driftless_proto::v1;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

type Sent = Arc<Mutex<Vec<u8>>>;

/// Dials TCP, and keeps a copy of everything that is sent.
#[derive(Clone, Default)]
pub(crate) struct Tap(Arc<Mutex<Vec<Sent>>>);

impl Connect for Tap {
    fn connect(&self, endpoint: &Endpoint) -> Connecting {
        let sent = Sent::default();
        self.0.lock().unwrap().push(Arc::clone(&sent));
        let address = format!("{}:{}", endpoint.host(), endpoint.port());
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            Ok(Box::new(Tapped { stream, sent }) as Box<dyn Io>)
        })
    }
}

impl Tap {
    /// All that was sent, one connection after the other.
    pub(crate) fn sent(&self) -> Vec<Vec<u8>> {
        let connections = self.0.lock().unwrap();
        let sent = connections.iter().map(|sent| sent.lock().unwrap().clone());
        sent.collect()
    }

    /// The rejections that were reported.
    pub(crate) fn reported(&self) -> Vec<v1::Rejection> {
        let sent = self.sent();
        let messages = sent.iter().flat_map(|sent| messages(sent));
        messages
            .filter_map(|message| v1::ReportRequest::decode(message).ok())
            .flat_map(|report| report.watches)
            // Other requests may be taken for a report that says nothing.
            .filter(|watch| watch.watch_id.len() == 16)
            .filter_map(|watch| watch.outcome?.rejection)
            .collect()
    }
}

/// The gRPC messages in what an HTTP/2 client sent: each fits in one frame here.
fn messages(sent: &[u8]) -> Vec<&[u8]> {
    const PREFACE: usize = 24;
    const DATA: u8 = 0;
    let mut messages = Vec::new();
    let mut rest = sent.get(PREFACE..).unwrap_or_default();
    while let Some(([a, b, c, kind, ..], _)) = rest.split_first_chunk::<9>() {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let Some(payload) = rest.get(9..9 + length) else {
            break;
        };
        // A flag and four bytes of length.
        if *kind == DATA && payload.len() > 5 {
            messages.push(&payload[5..]);
        }
        rest = &rest[9 + length..];
    }
    messages
}

struct Tapped {
    stream: TcpStream,
    sent: Sent,
}

impl AsyncRead for Tapped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.sent
            .lock()
            .unwrap()
            .extend_from_slice(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
