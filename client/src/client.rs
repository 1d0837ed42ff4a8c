//! The client: the handle that everything begins with.

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use crate::builder::ClientBuilder;
use crate::error::BuildError;
use crate::get::GetBuilder;
use crate::range::IntoRange;
use crate::resources::Resources;
use crate::shutdown::Shutdown;
use crate::subscription::Registry;
use crate::transport::Transport;
use crate::watch::{EntriesBuilder, WatchBuilder};

/// Reads configuration from driftless servers. Cheap to clone; clones share connections and
/// streams.
///
/// It holds neither a task nor a socket while nothing is watched. Watchers keep what they need alive: they go
/// on when the last `Client` is dropped.
#[derive(Clone)]
pub struct Client {
    transport: Arc<Transport>,
    registry: Arc<Registry>,
    range_limit: usize,
}

impl Client {
    /// A client of one server, such as `http://127.0.0.1:7400`, with the default
    /// options. Validates and dials nothing.
    ///
    /// # Errors
    /// When the endpoint is not a URL that can be dialled.
    pub fn connect(endpoint: impl AsRef<str>) -> Result<Self, BuildError> {
        Self::builder().endpoint(endpoint.as_ref()).build()
    }

    /// Options for a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    pub(crate) fn new(transport: Transport, range_limit: usize) -> Self {
        let transport = Arc::new(transport);
        let registry = Registry::new(Arc::clone(&transport), range_limit);
        Self {
            transport,
            registry: Arc::new(registry),
            range_limit,
        }
    }

    /// Watches a value: one key, or everything under a prefix as one struct or map. Await it for a
    /// [`Watcher`](crate::Watcher) that holds the first good value. [`decoding`](crate::decoding) says
    /// how keys become a value.
    pub fn watch<T>(&self, range: impl IntoRange) -> WatchBuilder<T>
    where
        T: DeserializeOwned + Send + Sync + 'static,
    {
        WatchBuilder::new(Arc::clone(&self.registry), range.into_range())
    }

    /// Watches keys and their values without decoding. Await it for an
    /// [`EntriesWatcher`](crate::EntriesWatcher) that is in sync.
    pub fn entries(&self, range: impl IntoRange) -> EntriesBuilder {
        EntriesBuilder::new(Arc::clone(&self.registry), range.into_range())
    }

    /// Reads a range once. Await it for its [`Entries`](crate::Entries).
    pub fn get(&self, range: impl IntoRange) -> GetBuilder {
        GetBuilder::new(
            Arc::clone(&self.transport),
            range.into_range(),
            self.range_limit,
        )
    }

    /// Ends everything that this client and its clones caused, and waits until it is gone. Watchers keep their
    /// last value and are [`Closed`](crate::Closed::Shutdown); new watches and reads fail.
    ///
    /// Dropping everything has the same effect. This is for services that want to wait for it, and to know
    /// what is still active: a callback that does not return, a look-up of a host name that hangs.
    ///
    /// ```
    /// # async fn stop(client: driftless_client::Client) {
    /// if let Err(left) = client.shutdown().await {
    ///     eprintln!("{left}"); // "still active after 5s: a callback for /config/shop/*"
    /// }
    /// # }
    /// ```
    pub fn shutdown(&self) -> Shutdown {
        Shutdown::new(Arc::clone(&self.registry), Arc::clone(&self.transport))
    }

    /// The resources that this client and its watchers hold: for a service's own tests that nothing is left.
    pub fn resources(&self) -> Resources {
        Resources::new(self.transport.tracker().clone())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("transport", &self.transport)
            .finish_non_exhaustive()
    }
}
