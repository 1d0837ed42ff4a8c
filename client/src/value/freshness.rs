//! How old a value may be: when it was last proven to be etcd's, in atomics that readers load without a lock.
//!
//! The subscription's task writes them, and only with times that it received from a server.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// When something was proven: nanoseconds since its subscription began, negative before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Proof(i64);

impl Proof {
    /// Never proven. Less than any other.
    pub(crate) const NONE: Self = Self(i64::MIN);

    /// Never proven, and never to be.
    const NEVER: Self = Self(i64::MIN + 1);
}

/// A time that is set once, or never.
#[derive(Debug)]
pub(crate) struct Moment(AtomicI64);

impl Moment {
    pub(crate) const fn never() -> Self {
        Self(AtomicI64::new(Proof::NONE.0))
    }

    /// The first call counts.
    pub(crate) fn set_once(&self, proof: Proof) {
        let unset = Proof::NONE.0;
        let proof = proof.max(Proof::NEVER);
        let _ = self
            .0
            .compare_exchange(unset, proof.0, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn get(&self) -> Proof {
        Proof(self.0.load(Ordering::Relaxed))
    }
}

/// When the state of a subscription was last proven.
#[derive(Debug)]
pub(crate) struct Proven {
    origin: Instant,
    last: AtomicI64,
}

impl Proven {
    /// Begins now, with nothing proven.
    pub(crate) fn begin() -> Arc<Self> {
        Arc::new(Self {
            origin: Instant::now(),
            last: AtomicI64::new(Proof::NONE.0),
        })
    }

    /// The time as it is stored.
    pub(crate) fn proof(&self, at: Instant) -> Proof {
        let nanos = |span: Duration| i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
        Proof(match at.checked_duration_since(self.origin) {
            Some(after) => nanos(after),
            None => -nanos(self.origin.duration_since(at)),
        })
    }

    /// Moves it forward; it never goes back.
    pub(crate) fn prove(&self, proof: Proof) {
        self.last.fetch_max(proof.0, Ordering::Release);
    }

    /// A reader that sees a proof also sees what was superseded before it was stored.
    pub(crate) fn last(&self) -> Proof {
        Proof(self.last.load(Ordering::Acquire))
    }

    fn since(&self, proof: Proof) -> Option<Duration> {
        if proof <= Proof::NEVER {
            return None;
        }
        let now = self.proof(Instant::now());
        let nanos = now.0.saturating_sub(proof.0);
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(0)))
    }
}

/// How old the values of one watch are, and how old they may be.
#[derive(Clone, Debug)]
pub(crate) struct Freshness {
    proven: Arc<Proven>,
    max_age: Option<Duration>,
}

impl Freshness {
    pub(crate) const fn new(proven: Arc<Proven>, max_age: Option<Duration>) -> Self {
        Self { proven, max_age }
    }

    #[cfg(test)]
    pub(crate) fn unknown() -> Self {
        Self::new(Proven::begin(), None)
    }

    pub(crate) const fn max_age(&self) -> Option<Duration> {
        self.max_age
    }

    /// How old a value is that was proven when it was made, at `made`, and was last etcd's when it
    /// was `superseded`, if it was.
    pub(crate) fn age(&self, made: Proof, superseded: &Moment) -> Option<Duration> {
        // In this order, or a value that is superseded in between would get the newer state's proof.
        let last = self.proven.last();
        let last = match superseded.get() {
            Proof::NONE => last,
            superseded => superseded,
        };
        self.proven.since(last.max(made))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[tokio::test(start_paused = true)]
    async fn value_is_as_old_as_its_last_proof() {
        let proven = Proven::begin();
        let began = Instant::now();
        let freshness = Freshness::new(Arc::clone(&proven), Some(secs(30)));
        let superseded = Moment::never();
        assert_eq!(freshness.age(Proof::NONE, &superseded), None);

        tokio::time::advance(secs(10)).await;
        // The server heard of etcd before this subscription began.
        proven.prove(proven.proof(began - secs(5)));
        assert_eq!(freshness.age(Proof::NONE, &superseded), Some(secs(15)));
        proven.prove(proven.proof(began + secs(8)));
        proven.prove(proven.proof(began + secs(1)));
        assert_eq!(
            freshness.age(Proof::NONE, &superseded),
            Some(secs(2)),
            "it does not go back"
        );
        let made = proven.proof(began + secs(9));
        assert_eq!(freshness.age(made, &superseded), Some(secs(1)));

        // A newer state is known that the value is not made from.
        superseded.set_once(proven.last());
        tokio::time::advance(secs(60)).await;
        proven.prove(proven.proof(Instant::now()));
        superseded.set_once(proven.last());
        assert_eq!(freshness.age(Proof::NONE, &superseded), Some(secs(62)));
        // A value that was never proven, and is superseded.
        let superseded = Moment::never();
        superseded.set_once(Proof::NONE);
        assert_eq!(freshness.age(Proof::NONE, &superseded), None);
    }
}
