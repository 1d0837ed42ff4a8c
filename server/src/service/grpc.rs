//! gRPC's framing: what of a request is in its headers, responses and trailers.

use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use prost::Message;
use tonic::Status;
use tonic::body::Body;

use crate::auth::BearerToken;
use crate::encode;

/// gRPC's prefix: a flag and a length.
pub(super) const PREFIX: usize = 5;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// The longest message of a status, in bytes as it is sent. Ours are far shorter; others repeat what a
/// client asked for, and clients refuse headers of more than 8 KiB.
const MAX_STATUS_MESSAGE: usize = 1024;

/// Whether a request is a call of gRPC, with messages in protobuf.
pub(super) fn is_grpc<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE);
    request.method() == Method::POST
        && kind
            .and_then(|kind| kind.as_bytes().strip_prefix(GRPC.as_bytes()))
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

/// Cuts the message of the status in these headers or trailers, if there is one and it is too long.
pub(super) fn cut_status(headers: &mut HeaderMap) {
    let message = headers.get(Status::GRPC_MESSAGE);
    if message.is_none_or(|message| message.len() <= MAX_STATUS_MESSAGE) {
        return;
    }
    if let Some(status) = Status::from_header_map(headers) {
        // A character is three times as long on the way, at the worst.
        let message = cut(status.message(), MAX_STATUS_MESSAGE / 3);
        let _ = Status::new(status.code(), message).add_header(headers);
    }
}

/// The start of a text, at most this many bytes.
pub(super) fn cut(text: &str, most: usize) -> &str {
    let ends = (0..=most.min(text.len())).rev();
    let end = ends.into_iter().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
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
