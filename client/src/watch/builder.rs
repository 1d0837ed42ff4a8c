//! The options of a typed watch, and the wait for its first value.

use std::any::Any;
use std::convert::Infallible;
use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use driftless_proto::{KeyRange, RangeError};
use serde::de::DeserializeOwned;

use super::status::StatusWatcher;
use super::watcher::Watcher;
use crate::decode::{Decoder, Format, TypedDecoder, Validate};
use crate::error::{NoValue, WatchError};
use crate::subscription::Registry;
use crate::value::{Freshness, Status};

/// How long the first value may take by default: a service that starts should say what it misses
/// before whoever started it gives up on it.
const FIRST_VALUE_WITHIN: Duration = Duration::from_secs(30);

/// How long a first value may take before the log says what it waits for: longer than a server in
/// the neighbourhood needs, and shorter than a person at a terminal.
const SILENT_FOR: Duration = Duration::from_secs(1);

/// Options of a typed watch; await it for a [`Watcher`] that holds the first good value.
///
/// # Cancel safety
/// Dropping it, or the future that it becomes, at any point ends all that it caused.
#[must_use = "a watch begins when it is awaited"]
pub struct WatchBuilder<T> {
    registry: Arc<Registry>,
    range: Result<KeyRange, RangeError>,
    within: Duration,
    format: Option<Format>,
    default: Option<T>,
    validate: Option<Validate<T>>,
    max_age: Option<Duration>,
}

impl<T> WatchBuilder<T> {
    pub(crate) const fn new(registry: Arc<Registry>, range: Result<KeyRange, RangeError>) -> Self {
        Self {
            registry,
            range,
            within: FIRST_VALUE_WITHIN,
            format: None,
            default: None,
            validate: None,
            max_age: None,
        }
    }

    /// How long the first good value may take: a server to answer, the key to be put, a value that
    /// is refused to be mended. After that the watch begins with the
    /// [default](Self::default_value), or fails with [`WatchError::NoFirstValue`] when there is
    /// none. After a second the log says what is waited for, and again whenever that is something
    /// else. Default: 30 s.
    pub const fn first_value_within(mut self, limit: Duration) -> Self {
        self.within = limit;
        self
    }

    /// What values are written in whose keys do not say it: each is read as if its key had that
    /// format's suffix, without the suffix being cut off. A suffix `.json`, `.toml`, `.yaml` or
    /// `.yml` beats it. It matters only where a document is asked for; a string takes the text in
    /// any case. Default: JSON where only a document will do; see [`decoding`](crate::decoding).
    pub fn format(mut self, format: Format) -> Self {
        self.format = Some(format);
        self
    }

    /// The value while the key does not exist: before it is first put, after it was deleted, and
    /// when no good value came [in time](Self::first_value_within), which is logged as a warning and
    /// shows in the [`Status`]. It is not validated. Default: none; a key that does not exist is
    /// waited for, and one that is deleted keeps its last value.
    pub fn default_value(mut self, value: T) -> Self {
        self.default = Some(value);
        self
    }

    /// How old a value may be before it counts as stale: [`Loaded::is_stale`](crate::Loaded::is_stale) says so then, and
    /// [`Watcher::load_fresh`] fails. [`Watcher::load`] goes on as ever: what to do with an old value
    /// is the service's decision, at each place where it reads one. Ages count from etcd, see
    /// [`Loaded::age`](crate::Loaded::age); a server tells its own every progress interval (10 s by default), so less than
    /// three of those makes healthy values stale now and then. Default: none, nothing is ever stale.
    pub const fn max_age(mut self, most: Duration) -> Self {
        self.max_age = Some(most);
        self
    }

    /// Refuses values that decode and make no sense. The last good value stays.
    ///
    /// An error that is a `&'static str` is part of the program and cannot quote the value: the
    /// [`Rejection`](crate::Rejection) says it, and so does the log. The text of any other error is
    /// not kept: it may quote the value, which this library never shows. A validator that has more
    /// to say should log it. A panic counts as a refusal.
    ///
    /// ```
    /// # struct Limits { rps: u32, burst: u32 }
    /// # fn watch(watch: driftless_client::WatchBuilder<Limits>) {
    /// watch.validate(|limits| match limits.burst < limits.rps {
    ///     true => Err("burst must be at least rps"),
    ///     false => Ok(()),
    /// })
    /// # ;}
    /// ```
    pub fn validate<E: 'static>(
        mut self,
        check: impl Fn(&T) -> Result<(), E> + Send + Sync + 'static,
    ) -> Self {
        self.validate = Some(Box::new(move |value| {
            check(value).map_err(|error| (&error as &dyn Any).downcast_ref().copied())
        }));
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
            let subscription = self.registry.subscribe(range.clone())?;
            let freshness = Freshness::new(subscription.proven(), self.max_age);
            let (format, default, validate) = (self.format, self.default, self.validate);
            let decoder = TypedDecoder::new(range, format, default, validate, freshness);
            let decoder = Arc::new(decoder);
            // Before anything is shown to the decoder, so that no refusal is missed.
            let status =
                StatusWatcher::new(subscription.watch_status(), Some(decoder.watch_outcome()));
            let guard = subscription.attach(Arc::clone(&decoder) as Arc<dyn Decoder>);
            let cell = tokio::select! {
                biased;
                cell = decoder.first() => cell,
                error = subscription.terminal_error() => return Err(error),
                () = tokio::time::sleep(self.within) => {
                    let why = obstacle(status.status());
                    let (range, within) = (subscription.range(), self.within);
                    match decoder.fall_back() {
                        Some(cell) => {
                            tracing::warn!(
                                %range,
                                ?within,
                                why = why.of(range),
                                "no first value in time; the default is used until there is one"
                            );
                            cell
                        }
                        None => return Err(WatchError::NoFirstValue {
                            range: range.clone(),
                            within,
                            why,
                        }),
                    }
                }
                never = log_obstacles(subscription.range(), status.clone()) => match never {},
            };
            // Whoever closes tells the cells there are, so one that came later asks.
            if subscription.is_closed() {
                return Err(WatchError::Closed(subscription.closed()));
            }
            Ok(Watcher::new(cell, status, guard, subscription))
        })
    }
}

/// What stood in the way of a first value.
fn obstacle(status: Status) -> NoValue {
    if let Some(rejected) = status.last_rejection {
        NoValue::Rejected(rejected.rejection)
    } else if status.missing {
        NoValue::Missing
    } else {
        NoValue::NotConnected {
            last_error: status.last_error,
        }
    }
}

/// Logs what stands in the way of a first value: once it does so for a while, and whenever it is
/// something else.
async fn log_obstacles(range: &KeyRange, mut status: StatusWatcher) -> Infallible {
    tokio::time::sleep(SILENT_FOR).await;
    let mut told: Option<NoValue> = None;
    loop {
        let why = obstacle(status.status());
        let news = match (&told, &why) {
            // What goes wrong on the way to a server may be another thing at each attempt.
            (Some(NoValue::NotConnected { .. }), NoValue::NotConnected { .. }) => false,
            (told, why) => told.as_ref() != Some(why),
        };
        if news {
            tracing::info!(%range, why = why.of(range), "waiting for the first value");
            told = Some(why);
        }
        status.changed().await;
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
