//! gRPC's framing: reads a request's message and token, builds responses and trailers.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prost::Message;
use tonic::Status;
use tonic::body::Body;

use crate::auth::BearerToken;
use crate::encode;
use crate::session::Connection;

/// Largest request for a range, in bytes: twice what the contract's limits come to, which are 4 KiB
/// each for the range, the token, and the key and path of a rejection, and 16 KiB of labels.
pub(super) const MAX_RANGE_REQUEST: usize = 64 * 1024;

/// Largest report, in bytes: 1 KiB for each of a thousand watches, a rejection included.
pub(super) const MAX_REPORT: usize = 1024 * 1024;

/// How long a client should wait whose connection has too many large requests arriving.
const RETRY_BUSY: Duration = Duration::from_secs(1);

/// How long a request may take to arrive: it is one small message, sent with its headers.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// gRPC's prefix: a flag and a length.
const PREFIX: usize = 5;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// Whether a request's content type is gRPC, with messages in protobuf.
pub(super) fn is_grpc<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE);
    kind.and_then(|kind| kind.as_bytes().strip_prefix(GRPC.as_bytes()))
        .is_some_and(|rest| {
            matches!(rest.first(), None | Some(b';')) || rest.starts_with(b"+proto")
        })
}

/// Answers a request that is not gRPC with an HTTP status, which its sender understands.
pub(super) fn not_grpc() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

/// Reads the one message of a request, of at most `most` bytes.
///
/// # Errors
/// When the request is compressed, too large or too slow, or cannot be decoded, or when too much
/// arrives on its connection at once.
pub(super) async fn request<M: Message + Default>(
    request: Request<Incoming>,
    connection: &Connection,
    most: usize,
) -> Result<M, Status> {
    let body = collect(request.into_body(), connection, most);
    let body = tokio::time::timeout(REQUEST_TIMEOUT, body).await;
    let body = body.map_err(|_| {
        Status::deadline_exceeded(format!(
            "the request did not arrive within {REQUEST_TIMEOUT:?}"
        ))
    })??;
    message(body)
}

async fn collect(
    mut body: Incoming,
    connection: &Connection,
    most: usize,
) -> Result<Bytes, Status> {
    let mut arriving = connection.arriving();
    let mut collected = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Status::invalid_argument(format!("the request could not be read: {error}"))
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if collected.len() + data.len() > most {
            return Err(Status::invalid_argument(format!(
                "the request is longer than {most} bytes"
            )));
        }
        if !arriving.add(data.len()) {
            return Err(retry_after(
                RETRY_BUSY,
                Status::resource_exhausted(
                    "too many large requests at a time on one connection; retry",
                ),
            ));
        }
        collected.extend_from_slice(&data);
    }
    Ok(collected.freeze())
}

/// Decodes the one message in a request's body.
pub(super) fn message<M: Message + Default>(mut message: Bytes) -> Result<M, Status> {
    if message.len() < PREFIX {
        return Err(Status::invalid_argument("the request holds no message"));
    }
    if message.get_u8() != 0 {
        return Err(Status::unimplemented(
            "compressed requests are not supported; send them as they are",
        ));
    }
    if message.get_u32() as usize != message.len() {
        return Err(Status::invalid_argument(
            "the request does not hold exactly one message",
        ));
    }
    // From a slice, so that fields are copies: fields that share the body would keep all of it alive,
    // and with it the connection's read buffer.
    M::decode(&message[..])
        .map_err(|_| Status::invalid_argument("the request cannot be decoded as its message"))
}

/// A response that streams `body`.
pub(super) fn streaming(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

/// A response of one message.
pub(super) fn unary(message: &impl Message) -> Response<Body> {
    let body = http_body_util::Full::new(encode::unary(message));
    let body = body.with_trailers(async { Some(Ok(ok_trailers())) });
    streaming(Body::new(body))
}

/// The trailers of a successful call.
pub(super) fn ok_trailers() -> HeaderMap {
    HeaderMap::from_iter([(tonic::Status::GRPC_STATUS, HeaderValue::from_static("0"))])
}

/// The trailers of a call that failed after its headers were sent.
pub(super) fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    // Cannot fail: its message and metadata are ours, and valid in headers.
    let _ = status.add_header(&mut trailers);
    trailers
}

/// Tells the client when to retry, by the pushback of gRPC's retry design.
pub(super) fn retry_after(delay: Duration, mut status: Status) -> Status {
    let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    status
        .metadata_mut()
        .insert("grpc-retry-pushback-ms", millis.into());
    status
}

/// The bearer token of a request, if it has one that can be kept.
pub(super) fn bearer_token<B>(request: &Request<B>) -> Option<BearerToken> {
    let value = request.headers().get(AUTHORIZATION)?;
    BearerToken::from_authorization(value.as_bytes())
}
