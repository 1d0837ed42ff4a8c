//! No request is handed to hyper's connection while that is being dropped, so that each is answered.
//!
//! Between the two is a channel of tokio's without a bound. One that is put into it at the very moment
//! at which the other side is dropped can be overlooked: it is in nobody's hands then, and its answer
//! would be waited for as long as anything refers to the channel. Hence they take turns.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use hyper::client::conn::http2::SendRequest;
use tonic::body::Body;

/// Whose turn it is. Held while one request is handed over, and while the connection is dropped; never
/// across an await.
#[derive(Clone, Default)]
struct Turn(Arc<Mutex<()>>);

impl Turn {
    fn take(&self) -> MutexGuard<'_, ()> {
        // It guards no data that a panic could have left half-done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Both sides of a connection: what makes requests, and what has to be polled for them to go on.
pub(super) fn in_turn<C>(sender: SendRequest<Body>, connection: C) -> (Requests, Driver<C>) {
    let turn = Turn::default();
    let driver = Driver {
        connection: Some(Box::pin(connection)),
        turn: turn.clone(),
    };
    (Requests { sender, turn }, driver)
}

/// Makes requests; the service that tonic's client calls. Cheap to clone.
#[derive(Clone)]
pub(super) struct Requests {
    sender: SendRequest<Body>,
    turn: Turn,
}

impl Requests {
    /// Whether the connection takes no requests any more.
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
        let _turn = self.turn.take();
        // Handed over here, and not when the answer is waited for.
        Box::pin(self.sender.send_request(request))
    }
}

/// The connection. What was not sent by the time that this is dropped fails.
pub(super) struct Driver<C> {
    /// `None` only while this is dropped.
    connection: Option<Pin<Box<C>>>,
    turn: Turn,
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
        let _turn = self.turn.take();
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

    /// Notes whether it was dropped during a turn.
    struct Dropped {
        turn: Turn,
        in_turn: Arc<AtomicBool>,
    }

    impl Drop for Dropped {
        fn drop(&mut self) {
            let in_turn = self.turn.0.try_lock().is_err();
            self.in_turn.store(in_turn, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_connection_is_dropped_in_its_turn() {
        let (turn, in_turn) = (Turn::default(), Arc::new(AtomicBool::new(false)));
        let connection = Dropped {
            turn: turn.clone(),
            in_turn: Arc::clone(&in_turn),
        };
        drop(Driver {
            connection: Some(Box::pin(connection)),
            turn,
        });
        assert!(in_turn.load(Ordering::Relaxed));
    }

    /// Without turns, a request is overlooked within some hundreds of them, where two processors are
    /// free.
    const ROUNDS: usize = 2_000;

    /// Of one round: the other thread is some microseconds late, or has no processor for a while.
    const MOST_REQUESTS: usize = 10_000;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn requests_that_are_made_as_the_connection_ends_are_answered() {
        for _ in 0..ROUNDS {
            let (client, _server) = tokio::io::duplex(1024);
            let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(client))
                .await
                .unwrap();
            let (mut requests, driver) = in_turn(sender, connection);
            let begun = Arc::new(AtomicBool::new(false));
            let told = Arc::clone(&begun);
            let ending = tokio::task::spawn_blocking(move || {
                while !told.load(Ordering::Acquire) {
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
                assert!(answer.expect("it is answered").is_err(), "nobody is there");
            }
            ending.await.unwrap();
        }
    }
}
