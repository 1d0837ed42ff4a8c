//! Shutting a client down, and waiting until it holds nothing.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::resources::{Resources, StillActive};
use crate::subscription::Registry;
use crate::transport::Transport;

/// How long a shutdown waits by default. Most things end at once; the wait is for what cannot be cancelled:
/// a look-up of a host name, a callback that is running.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(5);

/// Options of a shutdown; await it. See [`Client::shutdown`](crate::Client::shutdown).
#[must_use = "nothing is shut down before it is awaited"]
pub struct Shutdown {
    registry: Arc<Registry>,
    transport: Arc<Transport>,
    within: Duration,
}

impl Shutdown {
    pub(crate) const fn new(registry: Arc<Registry>, transport: Arc<Transport>) -> Self {
        Self {
            registry,
            transport,
            within: SHUTDOWN_WITHIN,
        }
    }

    /// How long to wait until nothing is held. Default: 5 s.
    pub const fn within(mut self, limit: Duration) -> Self {
        self.within = limit;
        self
    }
}

impl IntoFuture for Shutdown {
    type Output = Result<(), StillActive>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// Ends everything when it is first polled, and resolves when nothing is held.
    ///
    /// # Cancel safety
    /// What is being ended ends even if the future is dropped. Awaiting another shutdown waits for the
    /// rest.
    ///
    /// # Panics
    /// When it is polled outside of a tokio runtime.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            self.registry.close();
            self.transport.close();
            let resources = Resources::new(self.transport.tracker().clone());
            resources.released_within(self.within).await
        })
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown")
            .field("within", &self.within)
            .finish_non_exhaustive()
    }
}
