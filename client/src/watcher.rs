//! The typed watcher, and the options that it begins with.

use std::fmt::{self, Display};
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use driftless_proto::{KeyRange, RangeError, Revision};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::cell::{Cell, Loaded, Version};
use crate::error::{Closed, NoValue, WatchError};
use crate::registry::Registry;
use crate::sink::{Attached, Outcome, Sink, TypedSink, Validate};
use crate::status::Status;
use crate::subscription::Shared;

/// How long the first value may take by default: a service that starts should say what it misses
/// before whoever started it gives up on it.
const FIRST_VALUE_WITHIN: Duration = Duration::from_secs(30);

/// Options of a typed watch; await it for a [`Watcher`] that holds the first good value.
///
/// # Cancel safety
/// Dropping it, or the future that it becomes, at any point ends all that it caused.
#[must_use = "a watch begins when it is awaited"]
pub struct WatchBuilder<T> {
    registry: Arc<Registry>,
    range: Result<KeyRange, RangeError>,
    within: Duration,
    default: Option<T>,
    validate: Option<Validate<T>>,
}

impl<T> WatchBuilder<T> {
    pub(crate) const fn new(registry: Arc<Registry>, range: Result<KeyRange, RangeError>) -> Self {
        Self {
            registry,
            range,
            within: FIRST_VALUE_WITHIN,
            default: None,
            validate: None,
        }
    }

    /// How long the first good value may take. After that the watch begins with the
    /// [default](Self::default_value), or fails with [`WatchError::NoFirstValue`] when there is
    /// none. Default: 30 s.
    pub const fn first_value_within(mut self, limit: Duration) -> Self {
        self.within = limit;
        self
    }

    /// The value while the key does not exist: before it is first put, after it was deleted, and
    /// when no good value came [in time](Self::first_value_within). It is not validated. Default:
    /// none; a key that does not exist is waited for, and one that is deleted keeps its last value.
    pub fn default_value(mut self, value: T) -> Self {
        self.default = Some(value);
        self
    }

    /// Refuses values that decode and make no sense. The last good value stays.
    ///
    /// The text of the error is not kept: it may quote the value, which this library never shows.
    /// A validator that has more to say should log it. A panic counts as a refusal.
    pub fn validate<E: Display>(
        mut self,
        check: impl Fn(&T) -> Result<(), E> + Send + Sync + 'static,
    ) -> Self {
        self.validate = Some(Box::new(move |value| check(value).map_err(drop)));
        self
    }
}

impl<T: DeserializeOwned + Send + Sync + 'static> IntoFuture for WatchBuilder<T> {
    type Output = Result<Watcher<T>, WatchError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// Resolves with the first good value.
    ///
    /// # Cancel safety
    /// Dropping the future ends all that it caused.
    ///
    /// # Panics
    /// When it is polled outside of a tokio runtime.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let range = self.range?;
            let sink = Arc::new(TypedSink::new(range.clone(), self.default, self.validate));
            let shared = self.registry.subscribe(range);
            let attached = shared.attach(Arc::clone(&sink) as Arc<dyn Sink>);
            let cell = tokio::select! {
                biased;
                cell = sink.first() => cell,
                error = shared.hopeless() => return Err(error),
                () = tokio::time::sleep(self.within) => match sink.fall_back() {
                    Some(cell) => cell,
                    None => return Err(WatchError::NoFirstValue {
                        within: self.within,
                        why: obstacle(&shared.status(), sink.outcome()),
                    }),
                },
            };
            // Whoever closes tells the cells there are, so one that came later asks.
            if shared.is_closed() {
                return Err(WatchError::Closed(shared.closed()));
            }
            let version = cell.subscribe();
            let seen = version.borrow().number;
            Ok(Watcher {
                cell,
                version,
                seen,
                sink,
                shared,
                _attached: attached,
            })
        })
    }
}

/// What stood in the way of a first value.
fn obstacle(status: &Status, outcome: Outcome) -> NoValue {
    if let Some(rejected) = outcome.rejected {
        NoValue::Rejected(rejected.rejection)
    } else if outcome.missing {
        NoValue::Missing
    } else {
        NoValue::NotConnected {
            last_error: status.last_error.clone(),
        }
    }
}

impl<T> fmt::Debug for WatchBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchBuilder")
            .field("range", &self.range)
            .field("within", &self.within)
            .finish_non_exhaustive()
    }
}

/// What a watcher moved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changed {
    /// The revision of the state that the newest value was made from.
    pub revision: Revision,
}

/// A value that is always current: the last good one.
///
/// Dropping it ends all that it caused (the task, the stream, and the connection), unless others
/// watch the same range.
pub struct Watcher<T> {
    cell: Arc<Cell<T>>,
    version: watch::Receiver<Version>,
    /// The number of the value that was current at the start, or that `changed` told of last.
    seen: u64,
    sink: Arc<dyn Sink>,
    // Before `shared`: fields are dropped in order, and the sink goes before the task is ended.
    _attached: Attached,
    shared: Arc<Shared>,
}

impl<T> Watcher<T> {
    /// The value now. Wait-free: no lock, no allocation, from any thread.
    ///
    /// Two loads may see two values. Load once per piece of work, and do not hold it across an
    /// await: see [`Loaded`].
    pub fn load(&self) -> Loaded<'_, T> {
        self.cell.load()
    }

    /// Waits for a value newer than the one that this watcher began with, or that this method last
    /// told of. The latest value counts; those in between are not told. It resolves also for values
    /// that [`load`](Self::load) has shown already, and for ones that are equal to the one before.
    ///
    /// # Errors
    /// When no value will follow.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: the next call resolves for all that this one would have.
    pub async fn changed(&mut self) -> Result<Changed, Closed> {
        let seen = self.seen;
        let news = self
            .version
            .wait_for(|version| version.number != seen || version.closed.is_some())
            .await;
        // Cannot fail while the cell is held; if it could, it would mean this.
        let version = *news.map_err(|_| Closed::Ended)?;
        if version.number != seen {
            self.seen = version.number;
            return Ok(Changed {
                revision: version.revision,
            });
        }
        Err(version.closed.unwrap_or(Closed::Ended))
    }

    /// How the watcher is doing.
    pub fn status(&self) -> Status {
        let outcome = self.sink.outcome();
        Status {
            last_rejection: outcome.rejected,
            missing: outcome.missing,
            ..self.shared.status()
        }
    }
}

impl<T> fmt::Debug for Watcher<T> {
    /// The range and the revision, and never the value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher")
            .field("range", self.shared.range())
            .field("revision", &self.load().revision())
            .finish_non_exhaustive()
    }
}
