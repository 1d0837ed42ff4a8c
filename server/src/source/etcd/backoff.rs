//! How long to wait before the next attempt: full jitter, for ever.

use std::time::Duration;

use rand::Rng;

/// Upper bound of the first wait: short, because most losses are a restart or a leader's change.
const BASE: Duration = Duration::from_millis(100);

/// Counts attempts that failed one after the other.
#[derive(Debug)]
pub(super) struct Backoff {
    failures: u32,
    longest: Duration,
}

impl Backoff {
    /// Waits no longer than this: what a service may have to wait longer than etcd was away.
    pub(super) const fn up_to(longest: Duration) -> Self {
        Self {
            failures: 0,
            longest,
        }
    }

    /// One more failure: how long to wait now, anything from nothing to a bound that doubles.
    pub(super) fn next(&mut self) -> Duration {
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(rand::rng().random())
    }

    /// All is well again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    fn bound(&self) -> Duration {
        BASE.saturating_mul(2_u32.saturating_pow(self.failures))
            .min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_start_anew() {
        let longest = Duration::from_secs(5);
        let mut backoff = Backoff::up_to(longest);
        for bound in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            assert_eq!(backoff.bound(), Duration::from_millis(bound));
            assert!(backoff.next() <= Duration::from_millis(bound));
        }
        for _ in 0..100 {
            backoff.next();
        }
        assert_eq!(backoff.bound(), longest);
        backoff.reset();
        assert_eq!(backoff.bound(), BASE);
    }
}
