//! A server over proto's stubs that hands every call to the test.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use driftless_client::{Client, ClientBuilder, Connecting, Endpoint, Io};
use driftless_proto::v1::config_server::{Config, ConfigServer};
use driftless_proto::v1::{self, watch_response::Frame};
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnboundedReceiverStream};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};

use crate::world::World;

/// The longest that a test waits for something that should come at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the pipes hold, in bytes: less than a burst of changes, so that flow control is at work.
const PIPE: usize = 16 * 1024;

/// A host where nobody listens.
const DEAD: &str = "dead";

type Answers<M> = mpsc::Sender<Result<M, Status>>;
type Answer<M> = Pin<Box<dyn tokio_stream::Stream<Item = Result<M, Status>> + Send>>;

/// A `Watch` call that the test answers.
pub(crate) struct Call {
    pub(crate) request: v1::WatchRequest,
    /// Who says that it is calling.
    pub(crate) authorization: Option<String>,
    answers: Answers<v1::WatchResponse>,
}

impl Call {
    pub(crate) async fn send(&self, frame: Frame) {
        assert!(self.try_send(frame).await, "the client has left");
    }

    /// Whether the client is still there.
    pub(crate) async fn try_send(&self, frame: Frame) -> bool {
        let response = v1::WatchResponse { frame: Some(frame) };
        self.answers.send(Ok(response)).await.is_ok()
    }

    /// A frame that is newer than the client.
    pub(crate) async fn send_unknown(&self) {
        let response = v1::WatchResponse { frame: None };
        self.answers.send(Ok(response)).await.expect("a client");
    }

    /// Answers with the whole state, as a server does at first.
    pub(crate) async fn serve(&self, world: &World) {
        self.send(World::hello()).await;
        self.send(world.snapshot()).await;
    }

    pub(crate) async fn fail(self, status: Status) {
        // A client that has left needs no telling.
        let _ = self.answers.send(Err(status)).await;
    }

    /// Waits until the client has ended the call.
    pub(crate) async fn ended(&self) {
        soon(self.answers.closed()).await;
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.answers.is_closed()
    }

    pub(crate) fn have(&self) -> Option<i64> {
        self.request.have.as_ref().map(|have| have.revision)
    }
}

/// A `Get` call that the test answers.
pub(crate) struct GetCall {
    pub(crate) authorization: Option<String>,
    pub(crate) answers: Answers<v1::GetResponse>,
}

struct Service {
    watches: mpsc::UnboundedSender<Call>,
    gets: mpsc::UnboundedSender<GetCall>,
    reports: mpsc::UnboundedSender<v1::ReportRequest>,
    signed_reports: mpsc::UnboundedSender<String>,
}

/// The header of a request that says who is calling.
fn authorization<M>(request: &Request<M>) -> Option<String> {
    let value = request.metadata().get("authorization")?;
    Some(value.to_str().unwrap().to_owned())
}

#[tonic::async_trait]
impl Config for Service {
    type WatchStream = Answer<v1::WatchResponse>;
    type GetStream = Answer<v1::GetResponse>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (answers, stream) = mpsc::channel(1);
        let call = Call {
            authorization: authorization(&request),
            request: request.into_inner(),
            answers,
        };
        self.watches.send(call).unwrap();
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<Self::GetStream>, Status> {
        let (answers, stream) = mpsc::channel(1);
        let call = GetCall {
            authorization: authorization(&request),
            answers,
        };
        self.gets.send(call).unwrap();
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn report(
        &self,
        request: Request<v1::ReportRequest>,
    ) -> Result<Response<v1::ReportResponse>, Status> {
        if let Some(authorization) = authorization(&request) {
            self.signed_reports.send(authorization).unwrap();
        }
        self.reports.send(request.into_inner()).unwrap();
        Ok(Response::new(v1::ReportResponse::default()))
    }
}

/// The server, as a test sees it.
pub(crate) struct Server {
    watches: mpsc::UnboundedReceiver<Call>,
    gets: mpsc::UnboundedReceiver<GetCall>,
    pub(crate) reports: mpsc::UnboundedReceiver<v1::ReportRequest>,
    /// Who said that they send the reports that say so.
    pub(crate) signed_reports: mpsc::UnboundedReceiver<String>,
    connections: mpsc::UnboundedSender<Result<DuplexStream, std::io::Error>>,
    dials: Arc<AtomicUsize>,
    /// Tasks of the runtime before any connection.
    idle_tasks: usize,
    runtime: Option<Runtime>,
    _accept: AbortOnDropHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Server {
    /// Over in-memory pipes.
    pub(crate) fn start() -> Self {
        let (connections, incoming) = mpsc::unbounded_channel();
        let incoming = UnboundedReceiverStream::new(incoming);
        Self::over(connections, incoming)
    }

    /// On a loopback socket, in a runtime of its own: when it is dropped its sockets are closed, as
    /// those of a process are that is killed.
    pub(crate) fn listen(address: SocketAddr) -> (Self, SocketAddr) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = {
            let _inside = runtime.enter();
            let listener = TcpListener::from_std(listener).unwrap();
            let (unused, _) = mpsc::unbounded_channel();
            Self::over(unused, TcpListenerStream::new(listener))
        };
        server.idle_tasks = tasks();
        server.runtime = Some(runtime);
        (server, address)
    }

    fn over<IO>(
        connections: mpsc::UnboundedSender<Result<DuplexStream, std::io::Error>>,
        incoming: impl tokio_stream::Stream<Item = Result<IO, std::io::Error>> + Send + 'static,
    ) -> Self
    where
        IO: tokio::io::AsyncRead
            + tokio::io::AsyncWrite
            + tonic::transport::server::Connected
            + Unpin
            + Send
            + 'static,
    {
        let (watches, seen_watches) = mpsc::unbounded_channel();
        let (gets, seen_gets) = mpsc::unbounded_channel();
        let (reports, seen_reports) = mpsc::unbounded_channel();
        let (signed_reports, seen_signed_reports) = mpsc::unbounded_channel();
        let service = Service {
            watches,
            gets,
            reports,
            signed_reports,
        };
        let accept = tokio::runtime::Handle::current().spawn(async move {
            tonic::transport::Server::builder()
                .add_service(ConfigServer::new(service))
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        Self {
            watches: seen_watches,
            gets: seen_gets,
            reports: seen_reports,
            signed_reports: seen_signed_reports,
            connections,
            dials: Arc::default(),
            idle_tasks: tasks(),
            runtime: None,
            _accept: AbortOnDropHandle::new(accept),
        }
    }

    /// A client of this server.
    pub(crate) fn client(&self) -> Client {
        self.builder().build().unwrap()
    }

    pub(crate) fn builder(&self) -> ClientBuilder {
        builder(self.connector())
    }

    /// The same, at a host to which a token may be sent in clear text.
    pub(crate) fn builder_at_localhost(&self) -> ClientBuilder {
        Client::builder()
            .endpoint("http://localhost:7400")
            .connector(self.connector())
    }

    fn connector(&self) -> impl Fn(&Endpoint) -> Connecting + Send + Sync + 'static {
        let connections = self.connections.clone();
        let dials = Arc::clone(&self.dials);
        move |endpoint| {
            if endpoint.host() == DEAD {
                return Box::pin(async { Err(std::io::ErrorKind::ConnectionRefused.into()) });
            }
            dials.fetch_add(1, Ordering::Relaxed);
            let (client, server) = tokio::io::duplex(PIPE);
            let accepted = connections.send(Ok(server));
            Box::pin(async move {
                accepted.map_err(|_| std::io::ErrorKind::ConnectionRefused)?;
                Ok(Box::new(client) as Box<dyn Io>)
            })
        }
    }

    /// A client's options, with a second endpoint where nobody listens.
    pub(crate) fn builder_with_dead_endpoint(&self) -> ClientBuilder {
        self.builder().endpoint(format!("http://{DEAD}:7400"))
    }

    /// How often it was connected to.
    pub(crate) fn dials(&self) -> usize {
        self.dials.load(Ordering::Relaxed)
    }

    /// The next `Watch` call.
    pub(crate) async fn call(&mut self) -> Call {
        // Under a paused clock this is also as long as the longest backoff and a little.
        let call = tokio::time::timeout(Duration::from_secs(60), self.watches.recv());
        call.await.expect("a watch").expect("a server")
    }

    /// The next `Get` call.
    pub(crate) async fn get_call(&mut self) -> GetCall {
        soon(self.gets.recv()).await.expect("a server")
    }

    /// Answers every call with the whole state, for ever.
    pub(crate) async fn answer_all(&mut self, world: &World) {
        let mut calls = Vec::new();
        loop {
            tokio::select! {
                call = self.watches.recv() => {
                    let call = call.expect("a server");
                    call.serve(world).await;
                    calls.push(call);
                }
                call = self.gets.recv() => {
                    let Frame::Snapshot(snapshot) = world.snapshot() else {
                        unreachable!()
                    };
                    let snapshot = Some(snapshot);
                    let answer = Ok(v1::GetResponse { snapshot });
                    call.expect("a server").answers.send(answer).await.expect("a client");
                }
            }
        }
    }

    pub(crate) fn no_call(&mut self) -> bool {
        self.watches.try_recv().is_err()
    }

    /// Waits until the runtime has no more tasks than before the first connection, while no time
    /// passes under a paused clock: the loop is never idle.
    pub(crate) async fn idle(&self) {
        let start = std::time::Instant::now();
        while tasks() > self.idle_tasks {
            assert!(start.elapsed() < PATIENCE, "{} tasks remain", tasks());
            tokio::task::yield_now().await;
        }
    }
}

/// A client with a connector of the test's.
pub(crate) fn builder(
    connect: impl Fn(&Endpoint) -> Connecting + Send + Sync + 'static,
) -> ClientBuilder {
    Client::builder()
        .endpoint("http://scripted:7400")
        .connector(connect)
}

/// Waits for what should come at once.
pub(crate) async fn soon<F: Future>(work: F) -> F::Output {
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("within five seconds")
}

fn tasks() -> usize {
    tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks()
}

/// Polls it this often, and drops it.
pub(crate) async fn poll_times<F: Future>(work: F, times: usize) -> Option<F::Output> {
    let mut work = std::pin::pin!(work);
    for _ in 0..times {
        let polled = std::future::poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        // Lets everybody else go on, whether or not they have something for it.
        tokio::task::yield_now().await;
    }
    None
}
