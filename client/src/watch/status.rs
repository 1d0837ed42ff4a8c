//! Following a watcher's status independently of its value.

use std::fmt;

use tokio::sync::watch;

use crate::decode::Outcome;
use crate::value::Status;

/// Follows the status of a watcher independently of it: both can be awaited at the same time. It does not
/// keep the watch alive.
#[derive(Clone)]
pub struct StatusWatcher {
    subscription: watch::Receiver<Status>,
    /// What a typed watcher made of the states.
    outcome: Option<watch::Receiver<Outcome>>,
}

impl StatusWatcher {
    pub(super) const fn new(
        subscription: watch::Receiver<Status>,
        outcome: Option<watch::Receiver<Outcome>>,
    ) -> Self {
        Self {
            subscription,
            outcome,
        }
    }

    /// The status now.
    pub fn status(&self) -> Status {
        let mut status = self.subscription.borrow().clone();
        if let Some(outcome) = &self.outcome {
            let outcome = outcome.borrow();
            status.last_rejection.clone_from(&outcome.rejected);
            status.missing = outcome.missing;
        }
        status
    }

    /// Waits until the status differs, in more than its revision, from what it was when the watch began or
    /// from what this method last returned; only the latest counts. So it reports a state that is refused,
    /// one that is accepted again, and a server that is lost and found; and the first call may return at
    /// once. After [`WatchState::Closed`](crate::WatchState::Closed) it waits for ever: nothing
    /// changes any more.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: the next call returns what this one would have.
    pub async fn changed(&mut self) -> Status {
        let outcome = async {
            match &mut self.outcome {
                Some(outcome) => outcome.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // A sender's last value is received before its end is an error.
            Ok(()) = self.subscription.changed() => {}
            Ok(()) = outcome => {}
            else => std::future::pending().await,
        }
        self.subscription.mark_unchanged();
        if let Some(outcome) = &mut self.outcome {
            outcome.mark_unchanged();
        }
        self.status()
    }
}

impl fmt::Debug for StatusWatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StatusWatcher")
            .field(&self.subscription.borrow().state)
            .finish()
    }
}
