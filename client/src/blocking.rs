//! Jobs for the runtime's blocking pool, where they cannot be cancelled: each is done once at a time,
//! for all who want its answer.
//!
//! Whoever waits may go at any moment; the job goes on, and the inventory names it until it has
//! returned. A job that hangs is not begun again beside itself, so a client has no more of them than
//! hosts and files in its options, whatever happens to the resolver or to a network's disk.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::inventory::{Held, Inventory};

/// How long a file may take, the wait for one of the runtime's threads included. A local one takes
/// milliseconds. Less than an attempt to connect, a read or the beginning of a watch may take by default,
/// so that a file that hangs is named, and not a server that was never asked.
const READ_WITHIN: Duration = Duration::from_secs(3);

/// What a job's waiters look at. `None` until it is done.
type Answer<T> = watch::Receiver<Option<T>>;

/// Jobs of one kind. Cheap to clone.
pub(crate) struct Jobs<T> {
    inventory: Inventory,
    running: Arc<Mutex<HashMap<Held, Answer<T>>>>,
}

impl<T> Clone for Jobs<T> {
    fn clone(&self) -> Self {
        Self {
            inventory: self.inventory.clone(),
            running: Arc::clone(&self.running),
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Jobs<T> {
    pub(crate) fn new(inventory: Inventory) -> Self {
        Self {
            inventory,
            running: Arc::default(),
        }
    }

    /// The answer of `job`, or of the one that is running under the same name. `None` when it
    /// panicked, or its runtime is being shut down.
    ///
    /// # Cancel safety
    /// The job goes on, for whoever asks next.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(crate) async fn run(
        &self,
        name: Held,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let mut answer = self.begin(name, job);
        let found = answer.wait_for(Option::is_some).await;
        found.ok().and_then(|found| found.clone())
    }

    fn begin(&self, name: Held, job: impl FnOnce() -> T + Send + 'static) -> Answer<T> {
        let (tell, answer) = watch::channel(None);
        {
            let mut running = lock(&self.running);
            if let Some(found) = running.get(&name) {
                return found.clone();
            }
            running.insert(name.clone(), answer.clone());
        }
        let held = self.inventory.hold(name.clone());
        let listed = Listed {
            running: Arc::clone(&self.running),
            name,
        };
        // Not under the lock: a runtime that is being shut down drops the job here.
        tokio::task::spawn_blocking(move || {
            let found = job();
            // Off the list first: who comes after the answer gets a new one.
            drop(listed);
            drop(held);
            tell.send_replace(Some(found));
        });
        answer
    }
}

/// A job that is running, on the list until it is over in whatever way.
struct Listed<T> {
    running: Arc<Mutex<HashMap<Held, Answer<T>>>>,
    name: Held,
}

impl<T> Drop for Listed<T> {
    fn drop(&mut self) {
        lock(&self.running).remove(&self.name);
    }
}

fn lock<T>(running: &Mutex<HashMap<Held, Answer<T>>>) -> MutexGuard<'_, HashMap<Held, Answer<T>>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Small files that are read anew whenever they are needed, so that one that was replaced is found.
#[derive(Clone)]
pub(crate) struct Files(Jobs<Result<Arc<[u8]>, String>>);

impl Files {
    pub(crate) fn new(inventory: Inventory) -> Self {
        Self(Jobs::new(inventory))
    }

    /// What is in the file at `path`, which is `what` for people. At most `limit` bytes; more is an
    /// error, as is a file that takes longer than [`READ_WITHIN`]. Errors name the file and say nothing
    /// of its content.
    ///
    /// # Cancel safety
    /// The reading goes on, for whoever asks next.
    pub(crate) async fn read(
        &self,
        what: &'static str,
        path: &Path,
        limit: usize,
    ) -> Result<Arc<[u8]>, String> {
        let file = path.to_owned();
        let name = Held::File(path.display().to_string());
        let read = self.0.run(name, move || {
            read_small(&file, limit).map_err(|why| format!("{what} {}: {why}", file.display()))
        });
        let failed = |why: &str| Err(format!("{what} {}: {why}", path.display()));
        match tokio::time::timeout(READ_WITHIN, read).await {
            Ok(Some(found)) => found,
            Ok(None) => failed("it was not read to its end"),
            Err(_) => failed(&format!("it was not read within {READ_WITHIN:?}")),
        }
    }
}

fn read_small(path: &Path, limit: usize) -> Result<Arc<[u8]>, String> {
    let cannot = |error: io::Error| format!("it cannot be read: {error}");
    let file = File::open(path).map_err(cannot)?;
    let mut bytes = Vec::new();
    // One more than is allowed, so that too much is noticed.
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    file.take(most).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() > limit {
        return Err(format!(
            "it is longer than {limit} bytes; name another file"
        ));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn name() -> Held {
        Held::Lookup("h".to_owned())
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
    async fn a_job_that_hangs_is_named_and_not_begun_again() {
        let inventory = Inventory::new();
        let jobs = Jobs::new(inventory.clone());
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
        assert_eq!(inventory.items(), [name()]);
        let others: Vec<_> = (0..100).map(|_| jobs.begin(name(), || 2)).collect();
        assert_eq!(inventory.items(), [name()], "one, for all of them");
        go_on.send(()).expect("it waits");
        for mut other in others {
            let found = *other.wait_for(Option::is_some).await.expect("it answers");
            assert_eq!(found, Some(1));
        }
        until(|| inventory.items().is_empty()).await;
        assert_eq!(jobs.run(name(), || 3).await, Some(3), "the next is new");
    }

    #[tokio::test]
    async fn a_job_that_panics_is_over() {
        let inventory = Inventory::new();
        let jobs = Jobs::<u32>::new(inventory.clone());
        let panicked = jobs.run(name(), || panic!("as this test wants it")).await;
        assert_eq!(panicked, None);
        until(|| inventory.items().is_empty()).await;
        assert_eq!(jobs.run(name(), || 1).await, Some(1));
    }

    #[tokio::test]
    async fn files_are_read_anew_and_only_up_to_their_limit() {
        let files = Files::new(Inventory::new());
        let path = std::env::temp_dir().join(format!("driftless-{:032x}", rand::random::<u128>()));
        for text in ["one", "two"] {
            std::fs::write(&path, text).unwrap();
            let read = files.read("the file", &path, 3).await.unwrap();
            assert_eq!(&read[..], text.as_bytes());
        }
        std::fs::write(&path, "CANARY").unwrap();
        let error = files.read("the file", &path, 3).await.unwrap_err();
        assert!(error.ends_with("longer than 3 bytes; name another file"));
        assert!(error.starts_with("the file /") && !error.contains("CANARY"));
        std::fs::remove_file(&path).unwrap();
        let error = files.read("the file", &path, 3).await.unwrap_err();
        assert!(error.contains("it cannot be read: No such file"), "{error}");
    }
}
