//! The admin endpoint: is it alive, is it ready, what does it count. For probes and scrapers, on an
//! address of its own; never a value.

use std::fmt::Write as _;
use std::io::{self, Cursor};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::rt::{Executor, Read, Write};
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::metrics::Metrics;
use crate::net::Listener;
use crate::service::Service;

/// How many connections there may be at a time: more than there are probes and scrapers. The next ones
/// wait in the listener's backlog.
const CONNECTIONS: usize = 64;

/// How long a request's head may take, and a connection may do nothing between two requests: longer
/// than probes and scrapers usually wait, a minute at most, so that they need not connect anew.
const HEAD_WITHIN: Duration = Duration::from_secs(75);

/// How HTTP/2 begins.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a connection may live, so that who does not read an answer does not keep its place. What is
/// being answered then has a little longer.
const LIFETIME: Duration = Duration::from_secs(300);

/// The same for HTTP/2, of which nobody tells whether it does nothing.
const HTTP2_LIFETIME: Duration = HEAD_WITHIN;

const LAST_ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// `/healthz`, `/readyz` and `/metrics`.
pub(crate) fn router(service: Service, metrics: Metrics) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready).with_state(service))
        .route("/metrics", get(scrape).with_state(metrics))
}

/// Serves until it is dropped, and with it all connections.
///
/// Not through `axum::serve`, which leaves its connections to themselves and lets them be silent for
/// as long as they like.
pub(crate) async fn serve(listener: TcpListener, app: Router) {
    let mut listener = Listener::new(listener);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            (stream, _) = listener.next(), if connections.len() < CONNECTIONS => {
                connections.spawn(connection(stream, app.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(mut io: impl AsyncRead + AsyncWrite + Unpin, app: Router) {
    let Ok(Ok((start, is_http2))) = timeout(HEAD_WITHIN, begins(&mut io)).await else {
        return;
    };
    let (read, write) = tokio::io::split(io);
    let io = TokioIo::new(tokio::io::join(Cursor::new(start).chain(read), write));
    let service = TowerToHyperService::new(app);
    if is_http2 {
        serve_http2(io, service, Arc::default()).await;
    } else {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WITHIN);
        let connection = builder.serve_connection(io, service);
        lives(pin!(connection), LIFETIME, |it| it.graceful_shutdown()).await;
    }
}

/// Whoever takes this for the address of gRPC is to hear that it is not.
async fn serve_http2(
    io: impl Read + Write + Unpin,
    service: TowerToHyperService<Router>,
    streams: Arc<Mutex<JoinSet<()>>>,
) {
    let executor = Streams(Arc::downgrade(&streams));
    let connection = http2::Builder::new(executor).serve_connection(io, service);
    lives(pin!(connection), HTTP2_LIFETIME, |it| {
        it.graceful_shutdown()
    })
    .await;
}

/// The first bytes, and whether they are HTTP/2's.
async fn begins(io: &mut (impl AsyncRead + Unpin)) -> io::Result<(Vec<u8>, bool)> {
    let mut start = [0; PREFACE.len()];
    let mut length = 0;
    while length < PREFACE.len() && start[..length] == PREFACE[..length] {
        match io.read(&mut start[length..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => length += read,
        }
    }
    Ok((start[..length].to_vec(), start == *PREFACE))
}

/// Until it ends, or has lived for so long. How it ends is the other side's affair.
async fn lives<C: Future>(
    mut connection: Pin<&mut C>,
    lifetime: Duration,
    shut_down: impl FnOnce(Pin<&mut C>),
) {
    tokio::select! {
        _ = connection.as_mut() => return,
        () = sleep(lifetime) => {}
    }
    shut_down(connection.as_mut());
    let _ = timeout(LAST_ANSWER_WITHIN, connection).await;
}

/// The tasks of an HTTP/2 connection's streams, which go with it. Weak: a task may hold one of these.
#[derive(Clone, Debug)]
struct Streams(Weak<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let Some(streams) = self.0.upgrade() else {
            return;
        };
        let mut streams = streams.lock().unwrap_or_else(PoisonError::into_inner);
        while streams.try_join_next().is_some() {}
        streams.spawn(stream);
    }
}

/// 200 once every prefix has its first state, and until the server shuts down: with etcd gone, what
/// was read stays good, and taking all servers out of service at once would only take it away. Says
/// what is amiss in either case.
async fn ready(State(service): State<Service>) -> impl IntoResponse {
    let mut text = String::new();
    let mut ready = !service.is_draining();
    if !ready {
        text.push_str("shutting down\n");
    }
    for served in service.served() {
        let fanout = &served.fanout;
        let (clock, contact) = fanout.clock();
        let synced = fanout.is_synced();
        ready &= synced;
        // Writing to a string does not fail.
        let _ = match (synced, fanout.lost()) {
            (true, None) => writeln!(
                text,
                "{}: in sync at revision {}",
                fanout.prefix(),
                fanout.revision()
            ),
            (true, Some(reason)) => writeln!(
                text,
                "{}: at revision {}, but etcd was last heard of {} s ago: {reason}",
                fanout.prefix(),
                fanout.revision(),
                clock.saturating_sub(contact) / 1000,
            ),
            (false, None) => writeln!(text, "{}: not in sync yet", fanout.prefix()),
            (false, Some(reason)) => writeln!(text, "{}: not in sync: {reason}", fanout.prefix()),
        };
    }
    (
        if ready {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        },
        text,
    )
}

async fn scrape(State(metrics): State<Metrics>) -> impl IntoResponse {
    let mut text = String::new();
    match metrics.write(&mut text) {
        Ok(()) => (
            StatusCode::OK,
            [(
                CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            text,
        ),
        Err(_) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(CONTENT_TYPE, "text/plain")],
            String::new(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use driftless_proto::{Epoch, KeyRange, Revision};
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpStream;
    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::*;
    use crate::fanout::{Limits, Publisher, fanout};
    use crate::ingest;
    use crate::service::{Intervals, Served};
    use crate::source::SourceHandle;
    use crate::store::Writer;
    use crate::store::{History, State as SourceState};

    fn service() -> (Service, Publisher) {
        let metrics = Metrics::new();
        let prefix = KeyRange::prefix("/c/").unwrap();
        let limits = Limits {
            log_bytes: 1024 * 1024,
            progress_interval: Duration::from_secs(3600),
        };
        let (publisher, fanout) = fanout(prefix, limits, metrics.clone(), Instant::now());
        let (handle, _) = SourceHandle::channel();
        let hour = Duration::from_secs(3600);
        let intervals = Intervals {
            progress: hour,
            ping: hour,
            report: hour,
        };
        let served = vec![Served {
            fanout,
            ingest: ingest::Handle::new(handle),
        }];
        (Service::new(served, intervals, hour, metrics), publisher)
    }

    async fn readiness(service: &Service) -> (StatusCode, String) {
        let response = ready(State(service.clone())).await.into_response();
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 4096).await;
        (status, String::from_utf8(body.unwrap().to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn readiness_says_what_is_amiss() {
        let (service, publisher) = service();
        let unready = StatusCode::SERVICE_UNAVAILABLE;
        let text = "/c/*: not in sync yet\n".to_owned();
        assert_eq!(readiness(&service).await, (unready, text));
        publisher.lost("nobody is there".to_owned());
        let text = "/c/*: not in sync: nobody is there\n".to_owned();
        assert_eq!(readiness(&service).await, (unready, text));

        publisher.contact();
        let writer = Writer::new(SourceState {
            epoch: Epoch::of_cluster(1, ""),
            revision: Revision::new(7),
            entries: Vec::new(),
            history: History::Continues,
        });
        publisher.publish_anew(writer.snapshot().clone());
        let text = "/c/*: in sync at revision 7\n".to_owned();
        assert_eq!(readiness(&service).await, (StatusCode::OK, text));
        tokio::time::advance(Duration::from_secs(90)).await;
        publisher.lost("nobody is there".to_owned());
        let text = "/c/*: at revision 7, but etcd was last heard of 90 s ago: nobody is there\n";
        assert_eq!(readiness(&service).await, (StatusCode::OK, text.to_owned()));

        service.drain();
        let (status, text) = readiness(&service).await;
        assert_eq!(status, unready);
        assert!(text.starts_with("shutting down\n"), "{text}");
    }

    /// Answers are never read, or requests never end.
    #[tokio::test(start_paused = true)]
    async fn a_connection_that_does_nothing_ends() {
        let app = Router::new().route("/healthz", get(async || vec![b'.'; 1024 * 1024]));
        for (said, within) in [
            ("", HEAD_WITHIN),
            ("GET /healthz HTT", HEAD_WITHIN),
            ("GET /none HTTP/1.1\r\n\r\n", HEAD_WITHIN),
            (
                "GET /healthz HTTP/1.1\r\n\r\n",
                LIFETIME + LAST_ANSWER_WITHIN,
            ),
            // HTTP/2, and its first frame.
            (
                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
                HTTP2_LIFETIME + LAST_ANSWER_WITHIN,
            ),
        ] {
            let (mut peer, io) = tokio::io::duplex(1024);
            peer.write_all(said.as_bytes()).await.unwrap();
            let start = Instant::now();
            let ended = timeout(LIFETIME * 2, connection(io, app.clone())).await;
            assert!(ended.is_ok(), "{said}");
            let took = start.elapsed();
            assert!(
                took.abs_diff(within) < Duration::from_secs(1),
                "{said}: {took:?}"
            );
            drop(peer);
        }
    }

    /// Those that are over while their connection goes on, and those that are not as it ends: at once,
    /// though each holds what can add to them.
    #[tokio::test(start_paused = true)]
    async fn the_tasks_of_http2_streams_go_with_them_and_with_their_connection() {
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
        let streams = Arc::default();
        let kept = Arc::downgrade(&streams);
        let service = TowerToHyperService::new(app);
        let mut serving = Box::pin(serve_http2(TokioIo::new(io), service, streams));
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
            let tasks = kept.upgrade().unwrap().lock().unwrap().len();
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
    async fn there_are_so_many_connections_and_they_go_with_the_server() {
        let service = service().0;
        let app = router(service, Metrics::new());
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

    #[tokio::test]
    async fn every_counter_is_scraped() {
        let response = scrape(State(Metrics::new())).await.into_response();
        let body = axum::body::to_bytes(response.into_body(), 1024 * 1024).await;
        let text = String::from_utf8(body.unwrap().to_vec()).unwrap();
        for name in ["driftless_streams 0", "driftless_changes_encoded_total 0"] {
            assert!(text.lines().any(|line| line == name), "{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
