//! Makes sure that every request gets an answer, also one that is made while the connection is dropped.
//!
//! hyper hands requests to its connection through an unbounded channel of tokio's. A request that is sent at
//! the very moment at which the receiver is dropped can be lost in it, and its caller would wait for as long
//! as anything refers to the channel. So sending a request and dropping the connection exclude each other.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::client::conn::http2::SendRequest;
use parking_lot::Mutex;
use tonic::body::Body;

/// Held while a request is sent, and while the connection is dropped; never across an await.
type HandoverLock = Arc<Mutex<()>>;

/// Both sides of a connection: what makes requests, and what has to be polled for them to progress.
pub(super) fn serialize_handover<C>(
    sender: SendRequest<Body>,
    connection: C,
) -> (Requests, Driver<C>) {
    let lock = HandoverLock::default();
    let driver = Driver {
        connection: Some(Box::pin(connection)),
        lock: Arc::clone(&lock),
    };
    (Requests { sender, lock }, driver)
}

/// Makes requests; the service that tonic's client calls. Cheap to clone.
#[derive(Clone)]
pub(super) struct Requests {
    sender: SendRequest<Body>,
    lock: HandoverLock,
}

impl Requests {
    /// Whether the connection accepts no more requests.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

impl tower_service::Service<http::Request<Body>> for Requests {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let _lock = self.lock.lock();
        // Sent here, and not when the future is polled.
        Box::pin(self.sender.send_request(request))
    }
}

/// The connection. Requests that are not sent when it is dropped fail.
pub(super) struct Driver<C> {
    /// `None` only while this is dropped.
    connection: Option<Pin<Box<C>>>,
    lock: HandoverLock,
}

impl<C: Future> Future for Driver<C> {
    type Output = C::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let connection = self.get_mut().connection.as_mut();
        connection.expect("there until the drop").as_mut().poll(cx)
    }
}

impl<C> Drop for Driver<C> {
    fn drop(&mut self) {
        let _lock = self.lock.lock();
        self.connection = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use hyper::client::conn::http2;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tower_service::Service as _;

    use super::*;

    /// Stores whether the lock was held when it was dropped.
    struct Dropped {
        lock: HandoverLock,
        was_locked: Arc<AtomicBool>,
    }

    impl Drop for Dropped {
        fn drop(&mut self) {
            self.was_locked
                .store(self.lock.is_locked(), Ordering::Relaxed);
        }
    }

    #[test]
    fn connection_is_dropped_under_the_lock() {
        let (lock, was_locked) = (HandoverLock::default(), Arc::new(AtomicBool::new(false)));
        let connection = Dropped {
            lock: Arc::clone(&lock),
            was_locked: Arc::clone(&was_locked),
        };
        drop(Driver {
            connection: Some(Box::pin(connection)),
            lock,
        });
        assert!(was_locked.load(Ordering::Relaxed));
    }

    /// Without the lock, a request is lost within some hundreds of rounds, if two processors are idle.
    const ROUNDS: usize = 2_000;

    /// In one round: the other thread is some microseconds late, or has no processor for a while.
    const MOST_REQUESTS: usize = 10_000;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn request_is_answered_as_the_connection_ends() {
        for _ in 0..ROUNDS {
            let (client, _server) = tokio::io::duplex(1024);
            let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(client))
                .await
                .unwrap();
            let (mut requests, driver) = serialize_handover(sender, connection);
            let begun = Arc::new(AtomicBool::new(false));
            let has_begun = Arc::clone(&begun);
            let ending = tokio::task::spawn_blocking(move || {
                while !has_begun.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
                drop(driver);
            });
            // One after the other, so that one of them meets the end.
            let mut answers = Vec::new();
            while !requests.is_closed() && answers.len() < MOST_REQUESTS {
                answers.push(requests.call(http::Request::new(Body::empty())));
                begun.store(true, Ordering::Release);
            }
            for answer in answers {
                let answer = tokio::time::timeout(Duration::from_secs(5), answer).await;
                assert!(
                    answer.expect("it is answered").is_err(),
                    "the connection is gone"
                );
            }
            ending.await.unwrap();
        }
    }
}
