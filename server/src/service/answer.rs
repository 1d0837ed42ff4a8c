//! Answers on their way to the client, but for those of `Watch` and `Get`, whose bodies see to it
//! themselves.
//!
//! What a client does not take stays in memory, as much of it as there are calls. So each piece counts
//! among the bytes that the calls of its connection hold, and the answer's clock runs, until HTTP/2 has
//! written the piece and drops it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body as _, Frame};
use tonic::Status;
use tonic::body::Body;

use super::arrival::{Refusal, busy};
use super::grpc;
use crate::session::{Answer, Connection, HeldBytes};

/// Guards an answer. It counts its pieces on the connection; `call` is what else the call holds until
/// the answer is over, and `refusal` may say meanwhile why it ends.
pub(super) fn guarded(
    response: Response<Body>,
    connection: &Connection,
    call: Option<HeldBytes>,
    refusal: Refusal,
) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    grpc::cut_status(&mut head.headers);
    // Only headers: they wait for nothing but the network.
    if body.is_end_stream() {
        return Response::from_parts(head, body);
    }
    let body = AnswerBody {
        body: Some(body),
        answer: Arc::new(Answer::new(connection)),
        refusal,
        _call: call,
    };
    Response::from_parts(head, Body::new(body))
}

#[derive(Debug)]
struct AnswerBody {
    /// `None` after the end.
    body: Option<Body>,
    answer: Arc<Answer>,
    refusal: Refusal,
    _call: Option<HeldBytes>,
}

impl AnswerBody {
    /// Ends the answer with this status instead.
    fn fail(&mut self, status: &Status) -> Frame<Bytes> {
        self.end(grpc::trailers(status))
    }

    fn end(&mut self, mut trailers: HeaderMap) -> Frame<Bytes> {
        self.body = None;
        grpc::cut_status(&mut trailers);
        Frame::trailers(trailers)
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(cx);
        if polled.is_pending() {
            this.answer.idle();
        }
        let polled = ready!(polled);
        this.answer.piece_handed();
        let frame = polled.transpose()?.map(Frame::into_data);
        Poll::Ready(Some(Ok(match (frame, this.refusal.get().cloned()) {
            (Some(Ok(data)), _) => match Piece::counted(data, &this.answer) {
                Some(piece) => Frame::data(piece),
                None => this.fail(&busy()),
            },
            (_, Some(refusal)) => this.fail(&refusal),
            (Some(Err(other)), None) => match other.into_trailers() {
                Ok(trailers) => this.end(trailers),
                Err(other) => other,
            },
            (None, None) => return Poll::Ready(None),
        })))
    }
}

/// A piece of an answer, until it is written.
struct Piece {
    bytes: Bytes,
    _held: HeldBytes,
    /// Its clock runs on after the last piece was handed over.
    _answer: Arc<Answer>,
}

impl Piece {
    /// `None` when the connection's calls hold too much.
    fn counted(bytes: Bytes, answer: &Arc<Answer>) -> Option<Bytes> {
        let mut held = HeldBytes::of(answer.connection());
        held.add(bytes.len()).then(|| {
            Bytes::from_owner(Self {
                bytes,
                _held: held,
                _answer: Arc::clone(answer),
            })
        })
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}
