//! The typed watcher, and the options that it begins with.

use std::any::Any;
use std::convert::Infallible;
use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use driftless_proto::{Key, KeyRange, RangeError, Revision};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::callback::OnChange;
use crate::cell::{Cell, Loaded, Version};
use crate::decode::Format;
use crate::entries::Entries;
use crate::error::{Closed, NoValue, Stale, WatchError};
use crate::freshness::Freshness;
use crate::part::Part;
use crate::reader::Reader;
use crate::registry::Registry;
use crate::sink::{Attached, Sink, TypedSink, Validate};
use crate::status::{Status, StatusWatcher};
use crate::subscription::Shared;
use crate::updates::{Update, Updates};

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

    /// How old a value may be before it counts as stale: [`Loaded::is_stale`] says so then, and
    /// [`Watcher::load_fresh`] fails. [`Watcher::load`] goes on as ever: what to do with an old value
    /// is the service's decision, at each place where it reads one. Ages count from etcd, see
    /// [`Loaded::age`]; a server tells its own every progress interval (10 s by default), so less than
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
            let shared = self.registry.subscribe(range.clone())?;
            let freshness = Freshness::new(shared.proven(), self.max_age);
            let (format, default, validate) = (self.format, self.default, self.validate);
            let sink = TypedSink::new(range, format, default, validate, freshness);
            let sink = Arc::new(sink);
            // Before anything is shown to the sink, so that no refusal is missed.
            let status = StatusWatcher::new(shared.watch_status(), Some(sink.outcomes()));
            let attached = shared.attach(Arc::clone(&sink) as Arc<dyn Sink>);
            let cell = tokio::select! {
                biased;
                cell = sink.first() => cell,
                error = shared.hopeless() => return Err(error),
                () = tokio::time::sleep(self.within) => {
                    let why = obstacle(status.status());
                    let (range, within) = (shared.range(), self.within);
                    match sink.fall_back() {
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
                never = tell_obstacles(shared.range(), status.clone()) => match never {},
            };
            // Whoever closes tells the cells there are, so one that came later asks.
            if shared.is_closed() {
                return Err(WatchError::Closed(shared.closed()));
            }
            let version = cell.subscribe();
            let now = cell.keep();
            let (seen, seen_state) = (now.number(), now.state().clone());
            Ok(Watcher {
                cell,
                version,
                seen,
                seen_state,
                status,
                handle: Arc::new(Handle {
                    _attached: attached,
                    shared,
                }),
            })
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
async fn tell_obstacles(range: &KeyRange, mut status: StatusWatcher) -> Infallible {
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

/// What a watcher moved to.
#[derive(Clone)]
#[non_exhaustive]
pub struct Changed {
    /// The revision of the state that the newest value was made from.
    pub revision: Revision,
    old: Entries,
    new: Entries,
}

impl Changed {
    /// The keys that differ from what the value told of before was made from, in ascending order:
    /// put, or deleted. All of them for a value that follows a default for want of a state.
    ///
    /// Found when asked for, at the cost of what changed and without allocating for each key.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.new.changed_keys_since(&self.old)
    }
}

impl fmt::Debug for Changed {
    /// The revision and the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Keys<'a>(&'a Changed);
        impl fmt::Debug for Keys<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_list().entries(self.0.keys()).finish()
            }
        }
        f.debug_struct("Changed")
            .field("revision", &self.revision)
            .field("keys", &Keys(self))
            .finish()
    }
}

/// A value that is always current: the last good one.
///
/// Dropping it ends all that it caused (the task, the stream, and the connection), unless others
/// watch the same range: its clones, and what was made of it ([`Reader`], [`Part`], [`Updates`],
/// [`OnChange`]), each of which keeps the watch going as it does. A clone tells changes by itself,
/// from where this one is.
///
/// It holds the keys and values of the state that [`changed`](Self::changed) told of last (at the
/// start: the first one), to tell the next change's keys. They share their memory with the current
/// state as far as they are the same; for a watch that is only ever [loaded](Self::load), in which
/// every key is replaced in time, that is the range once more. A [`Reader`] does without.
pub struct Watcher<T> {
    pub(crate) cell: Arc<Cell<T>>,
    pub(crate) version: watch::Receiver<Version>,
    /// The number of the value that was current at the start, or that `changed` told of last.
    seen: u64,
    /// The state that it was made from: what changes are told against. It shares with the current
    /// one what is the same in them, so it costs what changed since, and at most as much again as
    /// the range holds.
    seen_state: Entries,
    pub(crate) status: StatusWatcher,
    pub(crate) handle: Arc<Handle>,
}

/// What all that shows one watch keeps alive together.
pub(crate) struct Handle {
    // Before `shared`: fields are dropped in order, and the sink goes before the task is ended.
    _attached: Attached,
    pub(crate) shared: Arc<Shared>,
}

impl<T> Clone for Watcher<T> {
    fn clone(&self) -> Self {
        Self {
            cell: Arc::clone(&self.cell),
            version: self.version.clone(),
            seen: self.seen,
            seen_state: self.seen_state.clone(),
            status: self.status.clone(),
            handle: Arc::clone(&self.handle),
        }
    }
}

impl<T> Watcher<T> {
    /// The value now. Wait-free: no lock, and no allocation but for a few words at a thread's first
    /// load; from any thread.
    ///
    /// Two loads may see two values. Load once per piece of work, and do not hold it across an
    /// await: see [`Loaded`].
    pub fn load(&self) -> Loaded<'_, T> {
        self.cell.load()
    }

    /// The value now, unless it is older than the watch's [`max_age`](WatchBuilder::max_age). As
    /// wait-free as [`load`](Self::load), and a look at the clock.
    ///
    /// # Errors
    /// When it is too old, or its age is not known.
    pub fn load_fresh(&self) -> Result<Loaded<'_, T>, Stale> {
        let loaded = self.load();
        if loaded.is_stale() {
            return Err(self.stale(&loaded));
        }
        Ok(loaded)
    }

    fn stale(&self, loaded: &Loaded<'_, T>) -> Stale {
        Stale {
            range: self.handle.shared.range().clone(),
            age: loaded.age(),
            max_age: self.cell.max_age().unwrap_or_default(),
        }
    }

    /// A reader for a hot loop in one thread, which keeps the value that it saw last: reading costs
    /// about a nanosecond, and an old value lives until every reader has read again.
    ///
    /// ```
    /// # fn threads(watcher: driftless_client::Watcher<u32>) {
    /// let mut limit = watcher.reader();
    /// std::thread::spawn(move || {
    ///     for request in 0..1_000_000 {
    ///         if request > *limit.load() { /* … */ }
    ///     }
    /// });
    /// # }
    /// ```
    pub fn reader(&self) -> Reader<T> {
        Reader::new(Arc::clone(&self.cell), Arc::clone(&self.handle))
    }

    /// A watcher of a part of the value, which tells changes only when the part differs
    /// ([`PartialEq`]).
    ///
    /// ```
    /// # async fn follow(limits: driftless_client::Watcher<(u32, u32)>) -> Result<(), driftless_client::Closed> {
    /// let mut burst = limits.map(|limits| &limits.1);
    /// loop {
    ///     println!("at most {} at once", *burst.load());
    ///     burst.changed().await?; // not for a change of `limits.0`
    /// }
    /// # }
    /// ```
    pub fn map<U: PartialEq + ?Sized>(
        &self,
        part: impl Fn(&T) -> &U + Send + Sync + 'static,
    ) -> Part<T, U> {
        Part::new(self.clone(), part)
    }

    /// The changes from now on as a stream of old and new values. The latest value counts: what was
    /// replaced before the stream was polled is not told.
    pub fn into_stream(self) -> Updates<T>
    where
        T: Send + Sync + 'static,
    {
        Updates::new(self)
    }

    /// Calls `call` with each change from now on, for code that is not async. It runs in a task of
    /// its own, on the runtime that the watch was begun on, one call after the other; the latest value
    /// counts, so a slow call misses what comes and goes meanwhile. It should not block for long: it
    /// has a thread of that runtime. A panic ends that call only, and is logged without its text.
    ///
    /// Dropping what is returned ends the calls, and the watch if nothing else shows it; a call that
    /// is running at that moment runs to its end.
    ///
    /// ```
    /// # fn follow(limit: driftless_client::Watcher<u32>, pool: std::sync::Arc<std::sync::atomic::AtomicU32>) {
    /// let _calls = limit.on_change(move |update| {
    ///     pool.store(*update.current(), std::sync::atomic::Ordering::Relaxed);
    /// });
    /// # }
    /// ```
    pub fn on_change(&self, call: impl FnMut(&Update<T>) + Send + 'static) -> OnChange
    where
        T: Send + Sync + 'static,
    {
        OnChange::begin(self.clone(), call)
    }

    /// Waits for a value newer than the one that this watcher began with, or that this method last
    /// told of, and tells its revision and which keys changed. The latest value counts; those in
    /// between are not told. It resolves also for values that [`load`](Self::load) has shown
    /// already.
    ///
    /// A value is made of each state of the range that is not refused, so it may well be equal to
    /// the one before: a key was put again as it was, or one that no field takes was put. Where a
    /// change is costly to act on, compare the parts that matter, or look at [`Changed::keys`].
    ///
    /// A state that is refused makes no value: [`watch_status`](Self::watch_status) tells of it.
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
            .wait_for(|version| version.is_news_after(seen))
            .await;
        // Cannot fail while the cell is held; if it could, it would mean this.
        let Version { number, closed } = *news.map_err(|_| Closed::Ended)?;
        if number <= seen {
            return Err(closed.unwrap_or(Closed::Ended));
        }
        // Of this version, or of one that is about to be told: then it is told now, and once.
        let now = self.cell.keep();
        self.seen = now.number();
        let old = std::mem::replace(&mut self.seen_state, now.state().clone());
        Ok(Changed {
            revision: now.revision(),
            old,
            new: now.state().clone(),
        })
    }

    /// How the watcher is doing.
    pub fn status(&self) -> Status {
        self.status.status()
    }

    /// Waits until the status differs, as [`StatusWatcher::changed`] does.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: the next call returns what this one would have.
    pub async fn status_changed(&mut self) -> Status {
        self.status.changed().await
    }

    /// Follows the status apart from this watcher, so that both can be waited for at a time: a state
    /// that is refused changes no value.
    ///
    /// ```
    /// # async fn follow(mut watcher: driftless_client::Watcher<u32>) -> Result<(), driftless_client::Closed> {
    /// let mut status = watcher.watch_status();
    /// loop {
    ///     tokio::select! {
    ///         changed = watcher.changed() => println!("{}", changed?.revision),
    ///         status = status.changed() => match status.last_rejection {
    ///             Some(rejected) => println!("refused: {}", rejected.rejection),
    ///             None => println!("{}", status.state),
    ///         },
    ///     }
    /// }
    /// # }
    /// ```
    pub fn watch_status(&self) -> StatusWatcher {
        self.status.clone()
    }
}

impl<T> fmt::Debug for Watcher<T> {
    /// The range and the revision, and never the value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher")
            .field("range", self.handle.shared.range())
            .field("revision", &self.load().revision())
            .finish_non_exhaustive()
    }
}
