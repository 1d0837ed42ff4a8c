//! The few bytes of gRPC around a message: reading a request, answering with one message.

use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use prost::Message;
use tonic::Status;
use tonic::body::Body;

use crate::encode;

/// Largest request, in bytes. The largest that makes sense is a report on a thousand watches.
const MAX_REQUEST: usize = 1024 * 1024;

/// How long a request may take to arrive: it is one small message, sent with its headers.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);

/// gRPC's prefix: a flag and a length.
const PREFIX: usize = 5;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// The message of a call with one request message.
///
/// # Errors
/// When the request is not gRPC, is compressed, too large or too slow, or cannot be decoded.
pub(super) async fn request<M: Message + Default>(request: Request<Incoming>) -> Result<M, Status> {
    let is_grpc = request
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(GRPC.as_bytes()));
    if !is_grpc {
        return Err(Status::invalid_argument(
            "this is a gRPC service: the content type has to be application/grpc",
        ));
    }
    let body = Limited::new(request.into_body(), MAX_REQUEST).collect();
    let body = match tokio::time::timeout(REQUEST_WITHIN, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => {
            return Err(Status::invalid_argument(format!(
                "the request could not be read: {error}"
            )));
        }
        Err(_) => {
            return Err(Status::deadline_exceeded(
                "the request did not arrive in time",
            ));
        }
    };
    message(body)
}

/// The message in a request's body.
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
    // From a slice, so that what is kept of the message is a copy of just that: fields that share the
    // body would keep all of it alive, and with it what the connection had read into one buffer.
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

/// What ends a successful call.
pub(super) fn ok_trailers() -> HeaderMap {
    HeaderMap::from_iter([(tonic::Status::GRPC_STATUS, HeaderValue::from_static("0"))])
}

/// Tells the client when to come back, in the way that gRPC's retry design gives.
pub(super) fn retry_after(delay: Duration, mut status: Status) -> Status {
    let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
    status
        .metadata_mut()
        .insert("grpc-retry-pushback-ms", millis.into());
    status
}
