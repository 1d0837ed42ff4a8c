//! A connection to one server, and the streams on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use driftless_proto::{KeyRange, v1};
use tonic::Streaming;

use super::caller::Caller;
use super::error::CallError;
use super::reports::Reports;
use super::tasks::Tasks;
use crate::net::Endpoint;
use crate::resources::ResourceGuard;

/// What a connection needs besides its byte stream.
pub(super) struct Options {
    pub(super) reports: Reports,
    /// Index of its endpoint among the transport's.
    pub(super) index: usize,
    /// Where [`Connection::retire`] stores that index.
    pub(super) avoid: Arc<AtomicUsize>,
    pub(super) guard: ResourceGuard,
}

/// A connection to one server. Dropping the last reference closes it and ends its tasks.
pub(crate) struct Connection {
    endpoint: Endpoint,
    caller: Caller,
    reports: Reports,
    retired: AtomicBool,
    index: usize,
    avoid: Arc<AtomicUsize>,
    // Fields are dropped in order: the tasks are gone when the guard says that the connection is.
    tasks: Tasks,
    _guard: ResourceGuard,
}

impl Connection {
    /// Over an HTTP/2 connection that `tasks` drive.
    pub(super) fn new(endpoint: Endpoint, caller: Caller, tasks: Tasks, options: Options) -> Self {
        Self {
            endpoint,
            caller,
            reports: options.reports,
            retired: AtomicBool::new(false),
            index: options.index,
            avoid: options.avoid,
            tasks,
            _guard: options.guard,
        }
    }

    pub(crate) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whether new calls may be made on it.
    pub(crate) fn is_usable(&self) -> bool {
        !self.retired.load(Ordering::Relaxed) && !self.caller.is_closed()
    }

    /// Allows no new calls on it, and makes the next dial try its endpoint last. Calls in progress go on.
    pub(crate) fn retire(&self) {
        self.avoid.store(self.index, Ordering::Relaxed);
        self.retired.store(true, Ordering::Relaxed);
    }

    /// Begins a watch. The call ends when the frames are dropped.
    pub(crate) async fn watch(&self, request: v1::WatchRequest) -> Result<Frames, CallError> {
        self.log_call("watch", request.range.as_ref());
        self.caller.watch(request).await.map(Messages)
    }

    /// Asks for the current state of a range.
    pub(crate) async fn get(&self, request: v1::GetRequest) -> Result<Chunks, CallError> {
        self.log_call("get", request.range.as_ref());
        self.caller.get(request).await.map(Messages)
    }

    fn log_call(&self, call: &str, range: Option<&v1::Range>) {
        if let Ok(range) = KeyRange::try_from(range.cloned()) {
            tracing::debug!(endpoint = %self.endpoint, call, %range, "a call begins");
        }
    }

    /// The reports of all watches on this connection. The first call starts their task.
    pub(crate) fn reports(&self) -> &Reports {
        self.reports
            .start_once(|reporter| self.tasks.spawn(reporter.run(self.caller.clone())));
        &self.reports
    }
}

/// The messages that a server streams. Dropping it ends the call, and the server sees that at once.
pub(crate) struct Messages<M>(Streaming<M>);

/// The frames of a watch.
pub(crate) type Frames = Messages<v1::WatchResponse>;

/// The chunks of a `get` response.
pub(crate) type Chunks = Messages<v1::GetResponse>;

impl<M> Messages<M> {
    /// The next message; `None` when the server ended the stream without an error.
    ///
    /// # Cancel safety
    /// Loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<M>, CallError> {
        // Where messages come without a pause, so that others run between them, timers too.
        tokio::task::consume_budget().await;
        self.0
            .message()
            .await
            .map_err(|status| CallError::from(&status))
    }
}
