//! A request that a shutdown ends.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::Frame;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A request body that ends once the server shuts down. Reflection clients keep their requests open;
/// without this their calls would hold up the shutdown.
pub(super) struct UntilDrained<B> {
    body: B,
    drained: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<B> UntilDrained<B> {
    pub(super) fn new(body: B, draining: &CancellationToken) -> Self {
        Self {
            body,
            drained: Box::pin(draining.clone().cancelled_owned()),
        }
    }
}

impl<B: http_body::Body + Unpin> http_body::Body for UntilDrained<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        // What has arrived is still answered.
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Pending => this.drained.as_mut().poll(cx).map(|()| None),
            ready => ready,
        }
    }
}
