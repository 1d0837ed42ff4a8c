//! Looks up host names on the runtime's blocking pool, one job for each name at a time.
//!
//! The system's resolver cannot be cancelled. A dropped attempt does not wait for it, and the next one joins the
//! look-up that still runs; so a resolver that hangs costs one thread for each host.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;

use super::blocking::Jobs;
use crate::resources::{Resource, ResourceTracker};

/// The most addresses of one name that are dialled: more than names have in practice, and a limit to the
/// sockets that one attempt opens.
const MAX_ADDRESSES: usize = 16;

/// Finds the addresses of a name. Blocks.
pub(crate) type Resolve = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// Looks names up.
#[derive(Clone)]
pub(crate) struct Resolver {
    jobs: Jobs<Result<Vec<IpAddr>, String>>,
    resolve: Arc<Resolve>,
}

impl Resolver {
    /// With the system's resolver.
    pub(crate) fn system(tracker: ResourceTracker) -> Self {
        Self::new(tracker, |host| {
            // The port makes no difference.
            let found = (host, 0).to_socket_addrs()?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }

    pub(crate) fn new(
        tracker: ResourceTracker,
        resolve: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            jobs: Jobs::new(tracker),
            resolve: Arc::new(resolve),
        }
    }

    /// The addresses of `host`, each once; at least one. A host that is an address is not looked up.
    ///
    /// # Cancel safety
    /// A look-up that began goes on, for the next caller.
    pub(crate) async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let (name, resolve) = (host.to_owned(), Arc::clone(&self.resolve));
        let job = move || resolve(&name).map_err(|error| error.to_string());
        let found = self.jobs.run(Resource::Lookup(host.to_owned()), job).await;
        let mut found = match found {
            Some(Ok(found)) => found,
            Some(Err(error)) => return Err(format!("{host} cannot be looked up: {error}")),
            None => return Err(format!("the look-up of {host} failed")),
        };
        found.sort_unstable();
        found.dedup();
        if found.is_empty() {
            return Err(format!("{host} has no address"));
        }
        // Of too many, a random choice.
        rand::seq::SliceRandom::shuffle(&mut found[..], &mut rand::rng());
        found.truncate(MAX_ADDRESSES);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Mutex, mpsc};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn address_is_not_looked_up() {
        let resolver = Resolver::new(ResourceTracker::new(), |host| {
            panic!("{host} is an address")
        });
        for address in ["127.0.0.1", "::1"] {
            let found = resolver.addresses(address).await.unwrap();
            assert_eq!(found, [address.parse::<IpAddr>().unwrap()]);
        }
    }

    #[tokio::test]
    async fn addresses_are_distinct_and_limited() {
        let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
        let resolver = Resolver::new(ResourceTracker::new(), move |host| match host {
            "two" => Ok(vec![ip(1), ip(2), ip(1)]),
            "many" => Ok((0..=255).map(ip).collect()),
            "none" => Ok(Vec::new()),
            _ => Err(io::Error::other("no such name")),
        });
        let mut two = resolver.addresses("two").await.unwrap();
        two.sort_unstable();
        assert_eq!(two, [ip(1), ip(2)]);
        assert_eq!(resolver.addresses("many").await.unwrap().len(), 16);
        let error = resolver.addresses("none").await.unwrap_err();
        assert_eq!(error, "none has no address");
        let error = resolver.addresses("other").await.unwrap_err();
        assert_eq!(error, "other cannot be looked up: no such name");
    }

    #[tokio::test]
    async fn hanging_resolver_has_one_job_for_each_name() {
        let tracker = ResourceTracker::new();
        let begun = Arc::new(AtomicUsize::new(0));
        let (go_on, wait) = mpsc::channel::<()>();
        let (count, wait) = (Arc::clone(&begun), Mutex::new(wait));
        let resolver = Resolver::new(tracker.clone(), move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            let _ = wait.lock().unwrap().recv();
            Ok(vec![IpAddr::from([127, 0, 0, 1])])
        });
        for _ in 0..20 {
            let attempt = tokio::time::timeout(Duration::from_millis(1), resolver.addresses("h"));
            assert!(attempt.await.is_err());
        }
        assert_eq!(begun.load(Ordering::Relaxed), 1);
        assert_eq!(tracker.active(), [Resource::Lookup("h".to_owned())]);
        go_on.send(()).unwrap();
        let mut count = tracker.count();
        let gone = count.wait_for(|count| *count == 0);
        tokio::time::timeout(Duration::from_secs(5), gone)
            .await
            .unwrap()
            .unwrap();
    }
}
