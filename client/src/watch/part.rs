//! A part of a watched value: its changes are reported without those of the rest.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use driftless_proto::Revision;

use super::watcher::Watcher;
use crate::error::Closed;
use crate::value::Status;
use crate::value::{Loaded, Versioned};

impl<T> Watcher<T> {
    /// A watcher of a part of the value, which reports a change only when the part differs
    /// ([`PartialEq`]).
    ///
    /// ```
    /// # async fn follow(limits: driftless_client::Watcher<(u32, u32)>) -> Result<(), driftless_client::Closed> {
    /// let mut burst = limits.map(|limits| &limits.1);
    /// loop {
    ///     println!("at most {} at once", *burst.load());
    ///     burst.changed().await?; // not when only `limits.0` changed
    /// }
    /// # }
    /// ```
    pub fn map<U: PartialEq + ?Sized>(
        &self,
        part: impl Fn(&T) -> &U + Send + Sync + 'static,
    ) -> PartWatcher<T, U> {
        PartWatcher::new(self.clone(), part)
    }
}

/// Finds the part in the value.
type Of<T, U> = Arc<dyn Fn(&T) -> &U + Send + Sync>;

/// Watches a part of a value. Made by [`Watcher::map`](crate::Watcher::map), and keeps the watch
/// alive as a watcher does.
///
/// It holds the value whose part it returned last, to compare the next with: one old value in memory, until
/// [`changed`](Self::changed) is polled again.
pub struct PartWatcher<T, U: ?Sized> {
    watcher: Watcher<T>,
    of: Of<T, U>,
    /// The value whose part was current at the start, or was returned last.
    seen: Arc<Versioned<T>>,
}

impl<T, U: PartialEq + ?Sized> PartWatcher<T, U> {
    pub(super) fn new(watcher: Watcher<T>, of: impl Fn(&T) -> &U + Send + Sync + 'static) -> Self {
        Self {
            seen: watcher.cell.keep(),
            watcher,
            of: Arc::new(of),
        }
    }

    /// The current part. As wait-free as [`Watcher::load`](crate::Watcher::load), and not to be held across
    /// an await either.
    pub fn load(&self) -> LoadedPart<'_, T, U> {
        LoadedPart {
            loaded: self.watcher.load(),
            of: &*self.of,
        }
    }

    /// Waits until the part differs from what it was at the start, or from what this method last
    /// reported, and returns the revision of the state that it is in now. Only the latest counts: a part
    /// that changes and changes back before this is polled has not changed.
    ///
    /// # Errors
    /// When no value will follow.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: the next call resolves for all that this one would have.
    pub async fn changed(&mut self) -> Result<Revision, Closed> {
        loop {
            // Before waiting: a change may have come before the first call, or between two.
            let now = self.watcher.cell.keep();
            // A value may be unequal to itself, if it has a float that is NaN.
            let is_new = !Arc::ptr_eq(&now, &self.seen);
            let differs = is_new && (self.of)(&now) != (self.of)(&self.seen);
            self.seen = now;
            if differs {
                return Ok(self.seen.revision());
            }
            self.watcher.changed().await?;
        }
    }

    /// The status now.
    pub fn status(&self) -> Status {
        self.watcher.status()
    }
}

impl<T, U: ?Sized> Clone for PartWatcher<T, U> {
    fn clone(&self) -> Self {
        Self {
            watcher: self.watcher.clone(),
            of: Arc::clone(&self.of),
            seen: Arc::clone(&self.seen),
        }
    }
}

impl<T, U: ?Sized> fmt::Debug for PartWatcher<T, U> {
    /// The range, and never the value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartWatcher")
            .field("range", self.watcher.handle.subscription.range())
            .finish_non_exhaustive()
    }
}

/// A part at one moment, as [`Loaded`] is for a value. It derefs to the part.
pub struct LoadedPart<'a, T, U: ?Sized> {
    loaded: Loaded<'a, T>,
    of: &'a (dyn Fn(&T) -> &U + Send + Sync),
}

impl<'a, T, U: ?Sized> LoadedPart<'a, T, U> {
    /// The whole value.
    pub const fn whole(&self) -> &Loaded<'a, T> {
        &self.loaded
    }
}

impl<T, U: ?Sized> Deref for LoadedPart<'_, T, U> {
    type Target = U;

    fn deref(&self) -> &U {
        (self.of)(&self.loaded)
    }
}

impl<T, U: ?Sized> fmt::Debug for LoadedPart<'_, T, U> {
    /// The revision, and never the value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedPart")
            .field("revision", &self.loaded.revision())
            .finish_non_exhaustive()
    }
}
