//! The few bytes of gRPC around messages, as a client sees them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, StatusCode};
use prost::Message;

use crate::Failure;

/// gRPC's prefix of a message: a flag and a length.
const PREFIX: usize = 5;

/// Whether the request has more to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Requests {
    One,
    Open,
}

/// A call whose response is a stream of messages.
pub(super) struct Call {
    /// Held so that a request that stays open is not cut off.
    _request: SendStream<Bytes>,
    body: RecvStream,
    buffer: BytesMut,
}

impl Call {
    /// Calls `path` with one message, and waits for the head of the response.
    pub(super) async fn start(
        send: SendRequest<Bytes>,
        to: SocketAddr,
        path: &str,
        message: &impl Message,
        requests: Requests,
    ) -> Result<Self, Failure> {
        let mut send = send.ready().await?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{to}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let (response, mut out) = send.send_request(request, false)?;
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(u32::try_from(message.encoded_len())?);
        message.encode(&mut body)?;
        out.send_data(body.freeze(), requests == Requests::One)?;
        let (head, body) = response.await?.into_parts();
        if head.status != StatusCode::OK || head.headers.contains_key("grpc-status") {
            return Err(refused(&head.headers));
        }
        Ok(Self {
            _request: out,
            body,
            buffer: BytesMut::new(),
        })
    }

    /// The next message, and when the last of it came.
    pub(super) async fn next(&mut self) -> Result<(Bytes, Instant), Failure> {
        let mut at = Instant::now();
        loop {
            if let Some(message) = self.take() {
                return Ok((message, at));
            }
            match self.body.data().await {
                Some(data) => {
                    at = Instant::now();
                    let data = data?;
                    self.body.flow_control().release_capacity(data.len())?;
                    self.buffer.extend_from_slice(&data);
                }
                None => {
                    let trailers = self.body.trailers().await?.unwrap_or_default();
                    return Err(refused(&trailers));
                }
            }
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        let mut head = self.buffer.get(..PREFIX)?;
        head.advance(1);
        let end = PREFIX + head.get_u32() as usize;
        if self.buffer.len() < end {
            return None;
        }
        let mut message = self.buffer.split_to(end);
        message.advance(PREFIX);
        Some(message.freeze())
    }
}

/// A call that ended, and when it may be made again, where the server says so.
#[derive(Debug)]
pub(super) struct Ended {
    status: String,
    message: String,
    pub(super) retry_after: Option<Duration>,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            status, message, ..
        } = self;
        write!(f, "a call ended with status {status}, message: {message}")
    }
}

impl std::error::Error for Ended {}

fn refused(headers: &HeaderMap) -> Failure {
    let text = |name| Some(headers.get(name)?.to_str().ok()?.to_owned());
    let none = || "none".to_owned();
    let retry_after = text("grpc-retry-pushback-ms").and_then(|millis| millis.parse().ok());
    Box::new(Ended {
        status: text("grpc-status").unwrap_or_else(none),
        message: text("grpc-message").unwrap_or_else(none),
        retry_after: retry_after.map(Duration::from_millis),
    })
}
