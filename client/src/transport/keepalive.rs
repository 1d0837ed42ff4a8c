//! The keepalive interval, as servers dictate it.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often a connection with open streams is pinged, until a server has sent its own interval: as often as
/// servers do by default, and not more often than servers that guard against it allow.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// The limits of the interval, whatever a server sends.
const KEEPALIVE_BOUNDS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);

/// The keepalive interval, in milliseconds.
pub(super) struct Keepalive(AtomicU64);

impl Keepalive {
    pub(super) const fn new() -> Self {
        Self(AtomicU64::new(KEEPALIVE_INTERVAL.as_millis() as u64))
    }

    /// Takes a server's interval; zero if it did not send one.
    pub(super) fn follow(&self, interval: Duration) {
        let interval = match interval {
            Duration::ZERO => KEEPALIVE_INTERVAL,
            interval => interval.clamp(*KEEPALIVE_BOUNDS.start(), *KEEPALIVE_BOUNDS.end()),
        };
        let millis = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        self.0.store(millis, Ordering::Relaxed);
    }

    pub(super) fn interval(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_follows_the_server_within_limits() {
        let keepalive = Keepalive::new();
        assert_eq!(keepalive.interval(), KEEPALIVE_INTERVAL);
        for (sent, millis) in [
            (60_000, 60_000),
            (2_500, 2_500),
            (1, 1_000),
            (u64::from(u32::MAX), 3_600_000),
            (0, 20_000),
        ] {
            keepalive.follow(Duration::from_millis(sent));
            assert_eq!(keepalive.interval(), Duration::from_millis(millis));
        }
    }
}
