//! How often connections are checked, as servers say.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often a connection is checked while streams are open, until a server has said how often it
/// does: as often as servers do by default. Not more often than those that guard against it allow.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// Bounds of that, whatever a server says.
const KEEPALIVE_BOUNDS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);

/// How often connections are checked, in milliseconds.
pub(super) struct Keepalive(AtomicU64);

impl Keepalive {
    pub(super) const fn new() -> Self {
        Self(AtomicU64::new(KEEPALIVE_INTERVAL.as_millis() as u64))
    }

    /// A server checks this often; zero: it does not say.
    pub(super) fn follow(&self, interval: Duration) {
        let interval = match interval {
            Duration::ZERO => KEEPALIVE_INTERVAL,
            said => said.clamp(*KEEPALIVE_BOUNDS.start(), *KEEPALIVE_BOUNDS.end()),
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
    fn connections_are_checked_as_often_as_the_server_does() {
        let keepalive = Keepalive::new();
        assert_eq!(keepalive.interval(), KEEPALIVE_INTERVAL);
        for (said, millis) in [
            (60_000, 60_000),
            (2_500, 2_500),
            (1, 1_000),
            (u64::from(u32::MAX), 3_600_000),
            (0, 20_000),
        ] {
            keepalive.follow(Duration::from_millis(said));
            assert_eq!(keepalive.interval(), Duration::from_millis(millis));
        }
    }
}
