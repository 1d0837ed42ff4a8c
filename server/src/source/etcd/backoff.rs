//! Computes the wait before the next attempt: exponential, with full jitter, without an end.

use std::time::Duration;

use rand::Rng;

/// Upper bound of the first wait. Short, because most disconnects are a restart or a leader change.
const BASE: Duration = Duration::from_millis(100);

/// Counts consecutive failed attempts.
#[derive(Debug)]
pub(super) struct Backoff {
    failures: u32,
    longest: Duration,
}

impl Backoff {
    /// With `longest` as the upper bound of every wait.
    pub(super) const fn up_to(longest: Duration) -> Self {
        Self {
            failures: 0,
            longest,
        }
    }

    /// Records a failure. Returns the wait: random, between zero and a bound that doubles each time.
    pub(super) fn next(&mut self) -> Duration {
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(rand::rng().random())
    }

    /// Starts again with the shortest bound.
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
    fn waits_double_up_to_the_cap_until_reset() {
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
