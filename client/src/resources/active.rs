//! Which resources a client holds, and waiting until it holds none.

use std::fmt;
use std::time::Duration;

use super::resource::Resource;
use super::tracker::ResourceTracker;

/// How many resources an error names; it counts the rest.
const NAMED_AT_MOST: usize = 8;

/// The resources that a client and its watchers hold: for a service's own tests that nothing is left
/// behind. Cheap to clone; keeps nothing alive, and outlives its client.
///
/// ```
/// # async fn test() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// let client = driftless_client::Client::connect("http://127.0.0.1:7400")?;
/// let resources = client.resources();
/// // … what is to be tested, and then, with everything dropped:
/// drop(client);
/// resources.released_within(Duration::from_secs(1)).await?; // or the error names what is left
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Resources(ResourceTracker);

impl Resources {
    pub(crate) const fn new(tracker: ResourceTracker) -> Self {
        Self(tracker)
    }

    /// The resources that are held now. Their names hold ranges, endpoints and paths, never values.
    pub fn active(&self) -> Vec<Resource> {
        self.0.active()
    }

    /// Whether nothing is held now: no task, no connection, no job.
    pub fn is_empty(&self) -> bool {
        *self.0.count().borrow() == 0
    }

    /// Waits until nothing is held.
    ///
    /// # Cancel safety
    /// It only observes: dropping the future changes nothing.
    pub async fn released(&self) {
        // Cannot fail: `self` holds the sender.
        let _ = self.0.count().wait_for(|count| *count == 0).await;
    }

    /// Waits until nothing is held, for at most `limit`.
    ///
    /// # Errors
    /// When something is still held then; the error names it.
    ///
    /// # Cancel safety
    /// It only observes: dropping the future changes nothing.
    ///
    /// # Panics
    /// When it is polled outside of a tokio runtime.
    pub async fn released_within(&self, limit: Duration) -> Result<(), StillActive> {
        if tokio::time::timeout(limit, self.released()).await.is_ok() {
            return Ok(());
        }
        match self.active() {
            // Released at this moment.
            resources if resources.is_empty() => Ok(()),
            resources => Err(StillActive {
                within: limit,
                resources,
            }),
        }
    }
}

impl fmt::Debug for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Resources").field(&self.active()).finish()
    }
}

/// A client still held resources when the time was up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StillActive {
    /// How long it was waited.
    pub within: Duration,
    /// What was held then. Never empty.
    pub resources: Vec<Resource>,
}

impl fmt::Display for StillActive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "still active after {:?}: ", self.within)?;
        for (at, resource) in self.resources.iter().take(NAMED_AT_MOST).enumerate() {
            write!(f, "{}{resource}", if at == 0 { "" } else { ", " })?;
        }
        match self.resources.len().saturating_sub(NAMED_AT_MOST) {
            0 => Ok(()),
            more => write!(f, ", and {more} more"),
        }
    }
}

impl std::error::Error for StillActive {}
