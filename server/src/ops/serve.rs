//! The admin endpoint's connections: how many there are, and how long they live.
//!
//! hyper-util tells HTTP/1 from HTTP/2. What it does not do is here: it has no timeout for the first
//! bytes, none for an HTTP/2 connection without requests, and it spawns the tasks of HTTP/2 streams
//! through an executor that has to own them.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::Router;
use axum::http::{Request, Version};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::net::Listener;

/// How many connections there may be at a time: more than there are probes and scrapers. The next ones
/// wait in the listener's backlog.
const CONNECTIONS: usize = 64;

/// How long a request's head may take, and how long an HTTP/1 connection may be idle between two
/// requests: longer than the usual interval of probes and scrapers, a minute at most, so that they need
/// not connect again.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// How long a connection may live, so that a client that does not read its response does not keep its
/// place. A response in progress then has a little longer.
const LIFETIME: Duration = Duration::from_secs(300);

/// The same for a connection without an HTTP/1 request: hyper does not say whether an HTTP/2
/// connection is idle.
const HTTP2_LIFETIME: Duration = HEAD_TIMEOUT;

/// How long a response in progress has when its connection's lifetime is over.
const LAST_RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until it is dropped, and with it all connections.
///
/// Not through `axum::serve`, which detaches its connections and lets them be silent for ever.
pub(crate) async fn serve(listener: TcpListener, app: Router) {
    let mut listener = Listener::new(listener);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            (stream, _) = listener.next(), if connections.len() < CONNECTIONS => {
                connections.spawn(serve_connection(stream, app.clone(), StreamTasks::default()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Serves one connection until it ends or its lifetime is over.
async fn serve_connection(
    io: impl AsyncRead + AsyncWrite + Unpin + 'static,
    app: Router,
    tasks: StreamTasks,
) {
    let app = TowerToHyperService::new(app);
    let is_http1 = AtomicBool::new(false);
    let service = service_fn(|request: Request<Incoming>| {
        if request.version() < Version::HTTP_2 {
            is_http1.store(true, Ordering::Relaxed);
        }
        app.call(request)
    });
    let mut builder = auto::Builder::new(StreamExecutor(Arc::downgrade(&tasks)));
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    let lifetime = async {
        sleep(HTTP2_LIFETIME).await;
        if is_http1.load(Ordering::Relaxed) {
            sleep(LIFETIME.saturating_sub(HTTP2_LIFETIME)).await;
        }
    };
    // How it ends is the client's affair.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = lifetime => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(LAST_RESPONSE_TIMEOUT, connection).await;
}

/// The tasks of an HTTP/2 connection's streams. The connection owns them, so they end with it.
type StreamTasks = Arc<Mutex<JoinSet<()>>>;

/// Spawns the tasks of an HTTP/2 connection's streams. Weak: a task may hold an executor.
#[derive(Clone, Debug)]
struct StreamExecutor(Weak<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for StreamExecutor {
    fn execute(&self, stream: F) {
        let Some(tasks) = self.0.upgrade() else {
            return;
        };
        let mut tasks = tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(stream);
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::*;

    /// Clients that do not read a response, or do not finish a request.
    #[tokio::test(start_paused = true)]
    async fn idle_connections_end_in_time() {
        let app = Router::new().route("/healthz", get(async || vec![b'.'; 1024 * 1024]));
        for (said, within) in [
            ("", HEAD_TIMEOUT),
            ("GET /healthz HTT", HEAD_TIMEOUT),
            ("GET /none HTTP/1.1\r\n\r\n", HEAD_TIMEOUT),
            (
                "GET /healthz HTTP/1.1\r\n\r\n",
                LIFETIME + LAST_RESPONSE_TIMEOUT,
            ),
            // The start of HTTP/2's preface.
            ("PRI * HT", HTTP2_LIFETIME),
            // HTTP/2, and its first frame.
            (
                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
                HTTP2_LIFETIME + LAST_RESPONSE_TIMEOUT,
            ),
        ] {
            let (mut peer, io) = tokio::io::duplex(1024);
            peer.write_all(said.as_bytes()).await.unwrap();
            let start = Instant::now();
            let ended = timeout(
                LIFETIME * 2,
                serve_connection(io, app.clone(), StreamTasks::default()),
            )
            .await;
            assert!(ended.is_ok(), "{said}");
            let took = start.elapsed();
            assert!(
                took.abs_diff(within) < Duration::from_secs(1),
                "{said}: {took:?}"
            );
            drop(peer);
        }
    }

    /// Tasks of finished requests are removed while the connection goes on; tasks of unfinished ones end
    /// with it, though each holds an executor.
    #[tokio::test(start_paused = true)]
    async fn http2_stream_tasks_end_with_their_connection() {
        let (begun, mut begins) = mpsc::channel::<()>(1);
        let never = async move || {
            let begun = begun.clone();
            begun.send(()).await.unwrap();
            std::future::pending::<&str>().await
        };
        let app = Router::new()
            .route("/healthz", get(async || "ok\n"))
            .route("/never", get(never));
        let (client, io) = tokio::io::duplex(64 * 1024);
        let streams = StreamTasks::default();
        let kept = Arc::downgrade(&streams);
        let mut serving = Box::pin(serve_connection(io, app, streams));
        let (mut asking, mut unanswered) = (JoinSet::new(), None);
        let asks = async {
            let (mut sender, connection) = h2::client::handshake(client).await.unwrap();
            asking.spawn(connection);
            let mut ask = |path| {
                let request = http::Request::get(format!("http://admin{path}"));
                let request = request.body(()).unwrap();
                sender.send_request(request, true).unwrap().0
            };
            for _ in 0..100 {
                let mut body = ask("/healthz").await.unwrap().into_body();
                assert_eq!(body.data().await.unwrap().unwrap(), "ok\n");
                assert!(body.data().await.is_none());
            }
            let tasks = kept.upgrade().unwrap().lock().len();
            assert!(tasks <= 2, "{tasks}");
            unanswered = Some(ask("/never"));
            begins.recv().await.unwrap();
        };
        tokio::select! {
            () = &mut serving => panic!("it is not over"),
            () = asks => {}
        }
        assert!(unanswered.is_some());
        drop(serving);
        assert!(kept.upgrade().is_none(), "somebody keeps the tasks");
        let gone = timeout(LIFETIME, begins.recv()).await;
        assert!(matches!(gone, Ok(None)), "somebody still answers");
    }

    #[tokio::test]
    async fn connections_are_limited_and_end_with_the_server() {
        let app = Router::new().route("/healthz", get(async || "ok\n"));
        let listener = crate::net::listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, app));
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut asking = TcpStream::connect(address).await.unwrap();
        let ask = b"GET /healthz HTTP/1.0\r\n\r\n";
        asking.write_all(ask).await.unwrap();
        // One leaves, and the next is served.
        let mut answer = Vec::new();
        let moment = Duration::from_millis(50);
        let early = timeout(moment, asking.read_to_end(&mut answer)).await;
        assert!(early.is_err(), "{answer:?}");
        silent.pop();
        asking.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.0 200 OK"));
        silent[0].write_all(b"GET /he").await.unwrap();
        serving.shutdown().await;
        for mut silent in silent {
            // The end, in whatever way.
            let ended = timeout(Duration::from_secs(30), silent.read(&mut [0])).await;
            ended.map(drop).unwrap();
        }
    }
}
