//! Waiting until a client holds nothing any more, and saying what it still holds.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

use crate::client::Client;
use crate::inventory::{Held, Inventory};

/// How long a shutdown waits by default. What is ended ends at once; this is for what cannot be: a
/// look-up of a name that runs, a callback that works.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(5);

/// How many things an error names; it counts the rest.
const NAMED_AT_MOST: usize = 8;

/// Tells what a client and its watchers hold, and when that is nothing: for tests of a service that
/// nothing is left behind. Cheap to clone; keeps nothing alive, and outlives its client.
///
/// ```
/// # async fn test() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// let client = driftless_client::Client::connect("http://127.0.0.1:7400")?;
/// let quiescence = client.quiescence();
/// // … what is to be tested, and then, with everything dropped:
/// drop(client);
/// quiescence.within(Duration::from_secs(1)).await?; // or the error says what is held
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Quiescence(Inventory);

impl Quiescence {
    pub(crate) const fn new(inventory: Inventory) -> Self {
        Self(inventory)
    }

    /// What is held now. Names hold ranges, endpoints and paths, never values.
    pub fn held(&self) -> Vec<Held> {
        self.0.items()
    }

    /// Whether nothing is held now: no task, no connection, no job.
    pub fn is_reached(&self) -> bool {
        *self.0.count().borrow() == 0
    }

    /// Waits until nothing is held.
    ///
    /// # Cancel safety
    /// It only looks: dropping the future changes nothing.
    pub async fn reached(&self) {
        // The sender is in what this holds, so it cannot fail.
        let _ = self.0.count().wait_for(|count| *count == 0).await;
    }

    /// Waits until nothing is held, for so long at most.
    ///
    /// # Errors
    /// When something is held then; the error says what.
    ///
    /// # Cancel safety
    /// It only looks: dropping the future changes nothing.
    ///
    /// # Panics
    /// When it is polled outside of a tokio runtime.
    pub async fn within(&self, limit: Duration) -> Result<(), NotQuiet> {
        if tokio::time::timeout(limit, self.reached()).await.is_ok() {
            return Ok(());
        }
        match self.held() {
            // It was reached in this moment.
            held if held.is_empty() => Ok(()),
            held => Err(NotQuiet {
                within: limit,
                held,
            }),
        }
    }
}

impl fmt::Debug for Quiescence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Quiescence").field(&self.held()).finish()
    }
}

/// Something was still held when time was up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NotQuiet {
    /// How long it was waited for.
    pub within: Duration,
    /// What was held then. Never empty.
    pub held: Vec<Held>,
}

impl fmt::Display for NotQuiet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {:?} there is still ", self.within)?;
        for (at, held) in self.held.iter().take(NAMED_AT_MOST).enumerate() {
            write!(f, "{}{held}", if at == 0 { "" } else { ", " })?;
        }
        match self.held.len().saturating_sub(NAMED_AT_MOST) {
            0 => Ok(()),
            more => write!(f, ", and {more} more"),
        }
    }
}

impl std::error::Error for NotQuiet {}

/// Options of a shutdown; await it. See [`Client::shutdown`].
#[must_use = "nothing is shut down before it is awaited"]
pub struct Shutdown {
    client: Client,
    within: Duration,
}

impl Shutdown {
    pub(crate) const fn new(client: Client) -> Self {
        Self {
            client,
            within: SHUTDOWN_WITHIN,
        }
    }

    /// How long to wait until everything is gone. Default: 5 s.
    pub const fn within(mut self, limit: Duration) -> Self {
        self.within = limit;
        self
    }
}

impl IntoFuture for Shutdown {
    type Output = Result<(), NotQuiet>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// Ends everything when it is first polled, and resolves when it is gone.
    ///
    /// # Cancel safety
    /// What was told to end does so all the same when the future is dropped. Awaiting another
    /// shutdown waits for the rest.
    ///
    /// # Panics
    /// When it is polled outside of a tokio runtime.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            self.client.close();
            self.client.quiescence().within(self.within).await
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
