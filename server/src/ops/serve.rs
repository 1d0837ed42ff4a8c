//! The admin endpoint's connections: how many there are, and how long they live.
//!
//! hyper-util tells HTTP/1 from HTTP/2. What it does not do is here: it has no timeout for the first
//! bytes, none for an HTTP/2 connection without requests, and it spawns the tasks of HTTP/2 streams
//! through an executor that has to own them. Connections that do nothing give way to new ones, so that
//! nobody can keep liveness from being asked.

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
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use crate::net::Listener;

/// How many connections there may be at a time: more than there are probes and scrapers. The next one
/// replaces another.
const CONNECTIONS: usize = 64;

/// How long the head of a connection's first request may take. Who connects wants to ask.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the head of each later request may take, and how long an HTTP/1 connection may be idle
/// between two requests: longer than the usual interval of probes and scrapers, a minute at most, so
/// that they need not connect again.
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
    let mut connections = Connections::default();
    loop {
        tokio::select! {
            (stream, _) = listener.next() => {
                connections.make_room().await;
                connections.serve(stream, app.clone());
            }
            Some(_) = connections.tasks.join_next() => {}
        }
    }
}

/// The connections that are open.
#[derive(Debug, Default)]
struct Connections {
    tasks: JoinSet<()>,
    open: Vec<(AbortHandle, Arc<Activity>)>,
}

impl Connections {
    fn serve(&mut self, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, app: Router) {
        let activity = Arc::new(Activity::new());
        let serving = serve_connection(io, app, StreamTasks::default(), Arc::clone(&activity));
        let task = self.tasks.spawn(serving);
        self.open.push((task, activity));
    }

    /// Waits until there is room for one more, and closes a connection for it if need be: first one
    /// whose last request was answered, since its client can ask again on a new one; else one that has
    /// not asked yet. Of several, the one that has been so for longest.
    ///
    /// # Cancel safety
    /// Cancel-safe: what was closed stays closed.
    async fn make_room(&mut self) {
        self.open.retain(|(task, _)| !task.is_finished());
        while self.open.len() >= CONNECTIONS {
            let idle = self.open.iter().enumerate();
            let idle = idle.filter_map(|(at, (_, activity))| Some((activity.idle()?, at)));
            match idle.min() {
                Some((_, at)) => self.open.remove(at).0.abort(),
                // All are being answered, which takes a moment.
                None => drop(self.tasks.join_next().await),
            }
            self.open.retain(|(task, _)| !task.is_finished());
        }
    }
}

/// What a connection does. Whether a response was read is not known: it counts as answered.
#[derive(Debug)]
struct Activity(Mutex<State>);

#[derive(Clone, Copy, Debug)]
struct State {
    /// Whether it ever had a request.
    asked: bool,
    /// Requests that are being answered.
    unanswered: usize,
    /// When the last was answered; before the first one, when it was accepted.
    since: Instant,
}

impl Activity {
    fn new() -> Self {
        Self(Mutex::new(State {
            asked: false,
            unanswered: 0,
            since: Instant::now(),
        }))
    }

    /// A request is answered while the guard lives.
    fn answering(self: &Arc<Self>) -> Answering {
        let mut state = self.0.lock();
        state.asked = true;
        state.unanswered += 1;
        Answering(Arc::clone(self))
    }

    fn has_asked(&self) -> bool {
        self.0.lock().asked
    }

    /// How it is to be closed to make room: the smallest first. `None` while a request is answered.
    fn idle(&self) -> Option<(bool, Instant)> {
        let state = *self.0.lock();
        (state.unanswered == 0).then_some((!state.asked, state.since))
    }
}

/// Marks its connection as busy.
#[derive(Debug)]
struct Answering(Arc<Activity>);

impl Drop for Answering {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.unanswered -= 1;
        state.since = Instant::now();
    }
}

/// Serves one connection until it ends or its lifetime is over.
async fn serve_connection(
    io: impl AsyncRead + AsyncWrite + Unpin + 'static,
    app: Router,
    tasks: StreamTasks,
    activity: Arc<Activity>,
) {
    let app = TowerToHyperService::new(app);
    let is_http1 = AtomicBool::new(false);
    let service = service_fn(|request: Request<Incoming>| {
        if request.version() < Version::HTTP_2 {
            is_http1.store(true, Ordering::Relaxed);
        }
        let (answer, answering) = (app.call(request), activity.answering());
        async move {
            let answer = answer.await;
            drop(answering);
            answer
        }
    });
    let mut builder = auto::Builder::new(StreamExecutor(Arc::downgrade(&tasks)));
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(io), service));
    let lifetime = async {
        sleep(FIRST_REQUEST_TIMEOUT).await;
        if !activity.has_asked() {
            return;
        }
        sleep(HTTP2_LIFETIME.saturating_sub(FIRST_REQUEST_TIMEOUT)).await;
        if is_http1.load(Ordering::Relaxed) {
            sleep(LIFETIME.saturating_sub(HTTP2_LIFETIME)).await;
        }
    };
    // How it ends is the client's affair.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = lifetime => {}
    }
    if !activity.has_asked() {
        return;
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
    use std::collections::VecDeque;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::mpsc;

    use super::*;

    /// Clients that do not read a response, or do not finish a request.
    #[tokio::test(start_paused = true)]
    async fn idle_connections_end_in_time() {
        let app = Router::new().route("/healthz", get(async || vec![b'.'; 1024 * 1024]));
        for (said, within) in [
            ("", FIRST_REQUEST_TIMEOUT),
            ("GET /healthz HTT", FIRST_REQUEST_TIMEOUT),
            ("GET /none HTTP/1.1\r\n\r\n", HEAD_TIMEOUT),
            (
                "GET /healthz HTTP/1.1\r\n\r\n",
                LIFETIME + LAST_RESPONSE_TIMEOUT,
            ),
            // The start of HTTP/2's preface.
            ("PRI * HT", FIRST_REQUEST_TIMEOUT),
            // HTTP/2, and its first frame.
            (
                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
                FIRST_REQUEST_TIMEOUT,
            ),
        ] {
            let (mut peer, io) = tokio::io::duplex(1024);
            peer.write_all(said.as_bytes()).await.unwrap();
            let start = Instant::now();
            let (tasks, activity) = (StreamTasks::default(), Arc::new(Activity::new()));
            let serving = serve_connection(io, app.clone(), tasks, activity);
            let ended = timeout(LIFETIME * 2, serving).await;
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
        let activity = Arc::new(Activity::new());
        let mut serving = Box::pin(serve_connection(io, app, streams, activity));
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

    const ASK: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";

    /// Asks on a connection, and reads the answer.
    async fn ask(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
        io.write_all(ASK).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok\n") {
            let read = io.read_buf(&mut answer).await.unwrap();
            assert!(read > 0, "{answer:?}");
        }
    }

    /// Waits for the end of a connection, in whatever way it comes.
    async fn ended(mut io: impl AsyncRead + Unpin) {
        let ended = timeout(Duration::from_secs(30), io.read(&mut [0])).await;
        assert!(matches!(ended.expect("it ends"), Ok(0) | Err(_)));
    }

    fn app() -> Router {
        Router::new().route("/healthz", get(async || "ok\n"))
    }

    #[tokio::test(start_paused = true)]
    async fn full_endpoint_closes_answered_then_silent() {
        let mut connections = Connections::default();
        let mut connect = async || {
            let (peer, io) = tokio::io::duplex(1024);
            connections.make_room().await;
            connections.serve(io, app());
            assert!(connections.open.len() <= CONNECTIONS);
            peer
        };
        let mut silent = VecDeque::new();
        for _ in 1..CONNECTIONS {
            silent.push_back(connect().await);
        }
        let mut answered = connect().await;
        ask(&mut answered).await;
        // The one that was answered goes first, though it is the youngest; one after the other.
        for _ in 0..3 {
            let mut next = connect().await;
            ask(&mut next).await;
            ended(std::mem::replace(&mut answered, next)).await;
        }
        // Then those that have said nothing, the oldest first.
        let young = connect().await;
        ended(answered).await;
        for _ in 0..3 {
            silent.push_back(connect().await);
            ended(silent.pop_front().unwrap()).await;
        }
        for mut kept in silent.into_iter().chain([young]) {
            ask(&mut kept).await;
        }
    }

    #[tokio::test]
    async fn silent_connections_do_not_keep_others_from_asking() {
        let listener = crate::net::listen(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, app()));
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut probe = TcpStream::connect(address).await.unwrap();
        ask(&mut probe).await;
        ended(silent.remove(0)).await;
        serving.shutdown().await;
        for left in silent.into_iter().chain([probe]) {
            ended(left).await;
        }
    }
}
