//! The guard of every request: how large it may be, how long it may take to arrive, and how much may
//! arrive on one connection at a time.
//!
//! A request has passed it before anything else looks at it. So a message is whole when it is decoded,
//! and what it announces is never reserved in advance.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;

use super::grpc::{self, PREFIX};
use super::repeated::{self, Request};
use crate::session::{Connection, HeldBytes};

/// How long a message may take to arrive. It is small, and clients send it at once.
const MESSAGE_WITHIN: Duration = Duration::from_secs(10);

/// How long a client that may send several messages may take to begin the next one. The call ends then,
/// without an error: who explores a server by hand may well take longer, and its tool calls again.
/// What an open call costs, its connection's other calls cannot have.
const NEXT_MESSAGE_WITHIN: Duration = Duration::from_secs(60);

/// How long a client should wait whose connection's calls hold too much.
const RETRY_BUSY: Duration = Duration::from_secs(1);

/// A request on its way.
#[derive(Debug)]
pub(super) struct Arriving {
    body: Incoming,
    message: Partial,
}

impl Arriving {
    /// A request on this connection. A message of it may be `most` bytes long, with gRPC's prefix.
    pub(super) fn new(body: Incoming, connection: &Connection, most: usize) -> Self {
        Self {
            body,
            message: Partial {
                bytes: Vec::new(),
                most,
                held: HeldBytes::of(connection),
            },
        }
    }

    /// Reads the one message that the request is.
    ///
    /// # Errors
    /// When it is compressed, too large, too slow, not exactly one, or when the connection's calls hold
    /// too much.
    pub(super) async fn message(self) -> Result<Arrived, Status> {
        let Self {
            mut body,
            mut message,
        } = self;
        let arrive = async {
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame.map_err(unreadable)?.into_data() {
                    message.push(&data)?;
                    if message.bytes.len() > message.len()?.unwrap_or(usize::MAX) {
                        return Err(not_one());
                    }
                }
            }
            message.len()
        };
        let len = timeout(MESSAGE_WITHIN, arrive)
            .await
            .map_err(|_| late())??;
        if message.bytes.is_empty() {
            return Err(Status::invalid_argument("the request holds no message"));
        }
        if len != Some(message.bytes.len()) {
            return Err(not_one());
        }
        Ok(Arrived {
            bytes: message.bytes.into(),
            held: message.held,
        })
    }

    /// The messages of the request, as a body: each of its pieces is one whole message. It ends when the
    /// server shuts down, so that a client that keeps its request open does not hold that up. Why it
    /// failed, if it did, is left in `refusal`.
    pub(super) fn messages(self, draining: &CancellationToken, refusal: &Refusal) -> Messages {
        Messages {
            arriving: Some(self),
            is_first: true,
            deadline: Box::pin(sleep(MESSAGE_WITHIN)),
            drained: Box::pin(draining.clone().cancelled_owned()),
            refusal: refusal.clone(),
        }
    }
}

/// A message that is arriving, or several of them when they come in one piece.
#[derive(Debug)]
struct Partial {
    bytes: Vec<u8>,
    most: usize,
    held: HeldBytes,
}

impl Partial {
    fn push(&mut self, data: &[u8]) -> Result<(), Status> {
        let needed = self.bytes.len() + data.len();
        if needed > self.bytes.capacity() {
            // Eight times as much, so that little is copied; but no more than is announced.
            let more = self.bytes.capacity() * 8;
            let capacity = more.min(self.len()?.unwrap_or(needed)).max(needed);
            if !self.held.add(capacity - self.bytes.capacity()) {
                return Err(busy());
            }
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(data);
        self.len().map(drop)
    }

    /// How long the first message is, with its prefix. `None` when its prefix is not there yet.
    fn len(&self) -> Result<Option<usize>, Status> {
        if self.bytes.first().is_some_and(|flag| *flag != 0) {
            return Err(Status::unimplemented(
                "compressed requests are not supported; send them as they are",
            ));
        }
        let Some(&[_, a, b, c, d]) = self.bytes.first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        let len = (u32::from_be_bytes([a, b, c, d]) as usize).saturating_add(PREFIX);
        if len > self.most {
            let most = self.most;
            return Err(Status::invalid_argument(format!(
                "the request is longer than {most} bytes"
            )));
        }
        Ok(Some(len))
    }

    /// The first message, once it is whole.
    fn take(&mut self) -> Result<Option<Bytes>, Status> {
        let whole = self.len()?.filter(|len| *len <= self.bytes.len());
        Ok(whole.map(|len| self.bytes.drain(..len).collect::<Vec<u8>>().into()))
    }
}

/// A request of one message, which has arrived.
#[derive(Debug)]
pub(super) struct Arrived {
    /// With gRPC's prefix.
    bytes: Bytes,
    held: HeldBytes,
}

impl Arrived {
    /// The message as it came, with gRPC's prefix.
    pub(super) fn into_bytes(self) -> (Bytes, HeldBytes) {
        (self.bytes, self.held)
    }

    /// The decoded message. What it holds counts among the connection's bytes until the guard is dropped.
    ///
    /// # Errors
    /// When it has too many entries, or cannot be decoded.
    pub(super) fn decode<M: Request>(self) -> Result<(M, HeldBytes), Status> {
        Ok((decode(&self.bytes[PREFIX..])?, self.held))
    }
}

/// Decodes a message, without gRPC's prefix.
pub(super) fn decode<M: Request>(message: &[u8]) -> Result<M, Status> {
    repeated::check(message, M::REPEATED)?;
    // From a slice, so that fields are copies: fields that share the body would keep all of it alive.
    M::decode(message)
        .map_err(|_| Status::invalid_argument("the request cannot be decoded as its message"))
}

/// Why a request of several messages failed. It is known where they are read, and told where they are
/// answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusal(Arc<OnceLock<Status>>);

impl Refusal {
    pub(super) fn get(&self) -> Option<&Status> {
        self.0.get()
    }
}

/// The body of a request of several messages.
#[derive(Debug)]
pub(super) struct Messages {
    /// `None` after the end.
    arriving: Option<Arriving>,
    /// No message has come yet.
    is_first: bool,
    /// Of the message that is arriving, or for the next one to begin.
    deadline: Pin<Box<Sleep>>,
    drained: Pin<Box<WaitForCancellationFutureOwned>>,
    refusal: Refusal,
}

impl Messages {
    /// The next message; `None` when there is none to come.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>> {
        let Some(Arriving { body, message }) = &mut self.arriving else {
            return Poll::Ready(Ok(None));
        };
        loop {
            if let Some(whole) = message.take()? {
                self.is_first = false;
                let within = if message.bytes.is_empty() {
                    NEXT_MESSAGE_WITHIN
                } else {
                    MESSAGE_WITHIN
                };
                self.deadline.as_mut().reset(Instant::now() + within);
                return Poll::Ready(Ok(Some(whole)));
            }
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(Some(frame)) => {
                    let Ok(data) = frame.map_err(unreadable)?.into_data() else {
                        continue;
                    };
                    if message.bytes.is_empty() && !self.is_first {
                        let deadline = Instant::now() + MESSAGE_WITHIN;
                        self.deadline.as_mut().reset(deadline);
                    }
                    message.push(&data)?;
                }
                Poll::Ready(None) if message.bytes.is_empty() => return Poll::Ready(Ok(None)),
                Poll::Ready(None) => return Poll::Ready(Err(not_one())),
                Poll::Pending => break,
            }
        }
        // What has arrived is still answered.
        if self.drained.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(None));
        }
        match self.deadline.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) if message.bytes.is_empty() && !self.is_first => Poll::Ready(Ok(None)),
            Poll::Ready(()) => Poll::Ready(Err(late())),
        }
    }
}

impl Body for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let polled = std::task::ready!(this.poll_message(cx));
        Poll::Ready(match polled {
            Ok(Some(message)) => Some(Ok(Frame::data(message))),
            Ok(None) => {
                this.arriving = None;
                None
            }
            Err(status) => {
                this.arriving = None;
                let _ = this.refusal.0.set(status.clone());
                Some(Err(status))
            }
        })
    }
}

fn late() -> Status {
    Status::deadline_exceeded(format!(
        "the request did not arrive within {MESSAGE_WITHIN:?}"
    ))
}

fn not_one() -> Status {
    Status::invalid_argument("the request does not hold exactly one message")
}

fn unreadable(error: hyper::Error) -> Status {
    Status::invalid_argument(format!("the request could not be read: {error}"))
}

/// Refuses a call because the calls of its connection hold too much.
pub(super) fn busy() -> Status {
    grpc::retry_after(
        RETRY_BUSY,
        Status::resource_exhausted(
            "too many bytes of requests, streams and unread answers on one connection; retry, or open another",
        ),
    )
}
