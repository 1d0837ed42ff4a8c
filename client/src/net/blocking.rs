//! Jobs on the runtime's blocking pool, which cannot be cancelled. A job runs once at a time, for all who wait
//! for its answer.
//!
//! A waiter may go at any moment; the job goes on, and the resource tracker lists it until it has returned. A
//! job that hangs is not started a second time, so a client has at most one for each host and file in its
//! options, whatever happens to the resolver or to a network file system.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::resources::{Resource, ResourceTracker};

/// The answer of a job, to wait for. `None` until the job is done.
type Answer<T> = watch::Receiver<Option<T>>;

/// Jobs of one kind. Cheap to clone.
pub(crate) struct Jobs<T> {
    tracker: ResourceTracker,
    running: Arc<Mutex<HashMap<Resource, Answer<T>>>>,
}

impl<T> Clone for Jobs<T> {
    fn clone(&self) -> Self {
        Self {
            tracker: self.tracker.clone(),
            running: Arc::clone(&self.running),
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Jobs<T> {
    pub(crate) fn new(tracker: ResourceTracker) -> Self {
        Self {
            tracker,
            running: Arc::default(),
        }
    }

    /// The answer of `job`, or of the job that runs under the same name. `None` if it panicked, or the runtime
    /// is shutting down.
    ///
    /// # Cancel safety
    /// The job goes on, for the next caller.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(crate) async fn run(
        &self,
        name: Resource,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let mut answer = self.begin(name, job);
        let found = answer.wait_for(Option::is_some).await;
        found.ok().and_then(|found| found.clone())
    }

    fn begin(&self, name: Resource, job: impl FnOnce() -> T + Send + 'static) -> Answer<T> {
        let (sender, answer) = watch::channel(None);
        {
            let mut running = self.running.lock();
            if let Some(found) = running.get(&name) {
                return found.clone();
            }
            running.insert(name.clone(), answer.clone());
        }
        let guard = self.tracker.track(name.clone());
        let listed = Listed {
            running: Arc::clone(&self.running),
            name,
        };
        // Not under the lock: a runtime that is shutting down drops the job here.
        tokio::task::spawn_blocking(move || {
            let found = job();
            // Off the list first: callers after the answer start a new job.
            drop(listed);
            drop(guard);
            sender.send_replace(Some(found));
        });
        answer
    }
}

/// Keeps a running job on the list until it ends, in whatever way.
struct Listed<T> {
    running: Arc<Mutex<HashMap<Resource, Answer<T>>>>,
    name: Resource,
}

impl<T> Drop for Listed<T> {
    fn drop(&mut self) {
        self.running.lock().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn name() -> Resource {
        Resource::Lookup("h".to_owned())
    }

    /// Lets everything go on that can.
    async fn until(condition: impl Fn() -> bool) {
        tokio::time::timeout(std::time::Duration::from_secs(5), async {
            while !condition() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("within five seconds");
    }

    #[tokio::test]
    async fn hanging_job_is_listed_and_not_started_again() {
        let tracker = ResourceTracker::new();
        let jobs = Jobs::new(tracker.clone());
        let (go_on, wait) = mpsc::channel::<()>();
        let hanging = jobs.run(name(), move || {
            let _ = wait.recv();
            1
        });
        // Whoever waits leaves; the job cannot.
        assert!(
            tokio::time::timeout(std::time::Duration::ZERO, hanging)
                .await
                .is_err()
        );
        assert_eq!(tracker.active(), [name()]);
        let others: Vec<_> = (0..100).map(|_| jobs.begin(name(), || 2)).collect();
        assert_eq!(tracker.active(), [name()], "one, for all of them");
        go_on.send(()).expect("it waits");
        for mut other in others {
            let found = *other.wait_for(Option::is_some).await.expect("it answers");
            assert_eq!(found, Some(1));
        }
        until(|| tracker.active().is_empty()).await;
        assert_eq!(jobs.run(name(), || 3).await, Some(3), "the next is new");
    }

    #[tokio::test]
    async fn panicked_job_is_over() {
        let tracker = ResourceTracker::new();
        let jobs = Jobs::<u32>::new(tracker.clone());
        let panicked = jobs.run(name(), || panic!("as this test wants it")).await;
        assert_eq!(panicked, None);
        until(|| tracker.active().is_empty()).await;
        assert_eq!(jobs.run(name(), || 1).await, Some(1));
    }
}
