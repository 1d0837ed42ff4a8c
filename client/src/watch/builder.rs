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

/// The default of [`WatchBuilder::first_value_within`]: a starting service should report what it misses
/// before its supervisor gives up on it.
const FIRST_VALUE_WITHIN: Duration = Duration::from_secs(30);

/// How long the log is silent while a first value is waited for: longer than a nearby server needs, and
/// shorter than a person at a terminal waits.
const LOG_AFTER: Duration = Duration::from_secs(1);

/// Options of a typed watch; await it for a [`Watcher`] that holds the first good value.
///
/// # Cancel safety
/// Dropping it, or its future, at any point ends everything that it caused.
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

    /// How long to wait for the first good value: until a server answers, the key is put, a bad value
    /// is fixed. After that the watch begins with the [default](Self::default_value), or fails with
    /// [`WatchError::NoFirstValue`] without one. After a second, the log says what the watch waits
    /// for, and again whenever that changes. Default: 30 s.
    pub const fn first_value_within(mut self, limit: Duration) -> Self {
        self.within = limit;
        self
    }

    /// The format of values whose keys have no suffix: each is read as if its key had that format's
    /// suffix, which is then not cut off. A suffix `.json`, `.toml`, `.yaml` or `.yml` takes
    /// precedence. It matters only where the type asks for a document; a string takes the text in any
    /// case. Default: JSON, where only a document fits; see [`decoding`](crate::decoding).
    pub fn format(mut self, format: Format) -> Self {
        self.format = Some(format);
        self
    }

    /// The value while the key does not exist: before it is first put, and after it was deleted. Also
    /// the value when no good one came [in time](Self::first_value_within), which is logged as a warning
    /// and shown in the [`Status`]. It is not validated. Default: none; the watch waits for a key that
    /// does not exist, and a key that is deleted keeps its last value.
    pub fn default_value(mut self, value: T) -> Self {
        self.default = Some(value);
        self
    }

    /// The age from which a value counts as stale: then
    /// [`Loaded::is_stale`](crate::Loaded::is_stale) is true and [`Watcher::load_fresh`] fails.
    /// [`Watcher::load`] still succeeds: the service decides, wherever it reads a value, what to do with
    /// an old one. Ages count from etcd, see [`Loaded::age`](crate::Loaded::age). A server sends its own
    /// every progress interval (10 s by default), so with less than three of those, healthy values are
    /// stale now and then. Default: none, nothing is ever stale.
    pub const fn max_age(mut self, most: Duration) -> Self {
        self.max_age = Some(most);
        self
    }

    /// Refuses values that decode but make no sense. The last good value stays.
    ///
    /// An error of type `&'static str` is part of the program and cannot quote the value: it appears in
    /// the [`Rejection`](crate::Rejection) and in the log. The text of any other error is dropped,
    /// because it may quote the value, which this library never reveals; a validator that has more to say
    /// should log it. A panic counts as a refusal.
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
    /// Dropping the future ends everything that it caused.
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
            // Before anything is published to the decoder, so that no refusal is missed.
            let status =
                StatusWatcher::new(subscription.watch_status(), Some(decoder.watch_outcome()));
            let guard = subscription.attach(Arc::clone(&decoder) as Arc<dyn Decoder>);
            let cell = tokio::select! {
                biased;
                cell = decoder.first() => cell,
                error = subscription.terminal_error() => return Err(error),
                () = tokio::time::sleep(self.within) => {
                    let why = missing_value(status.status());
                    let (range, within) = (subscription.range(), self.within);
                    match decoder.fall_back() {
                        Some(cell) => {
                            tracing::warn!(
                                %range,
                                ?within,
                                why = why.describe(range),
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
                never = log_missing_value(subscription.range(), status.clone()) => match never {},
            };
            // Closing a subscription notifies the cells that exist then; this one may be newer.
            if subscription.is_closed() {
                return Err(WatchError::Closed(subscription.closed()));
            }
            Ok(Watcher::new(cell, status, guard, subscription))
        })
    }
}

/// Why there is no first value yet.
fn missing_value(status: Status) -> NoValue {
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

/// Logs why there is no first value yet: after [`LOG_AFTER`], and whenever the reason changes.
async fn log_missing_value(range: &KeyRange, mut status: StatusWatcher) -> Infallible {
    tokio::time::sleep(LOG_AFTER).await;
    let mut logged: Option<NoValue> = None;
    loop {
        let why = missing_value(status.status());
        let is_new = match (&logged, &why) {
            // The text may differ at each attempt.
            (Some(NoValue::NotConnected { .. }), NoValue::NotConnected { .. }) => false,
            (logged, why) => logged.as_ref() != Some(why),
        };
        if is_new {
            tracing::info!(%range, why = why.describe(range), "waiting for the first value");
            logged = Some(why);
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
