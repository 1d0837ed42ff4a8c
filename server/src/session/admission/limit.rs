//! How many snapshots and conflated diffs are read at a time: a pure function of what was measured.
//!
//! How many is a question of the network and not of taste: a link with 50 ms of latency wants hundreds
//! at a time, loopback a dozen. So the limit follows the time that a piece takes from being handed over
//! until the connection asks for the next, as congestion control does (TCP Vegas, and Netflix's
//! concurrency limits after it): it grows while pieces drain about as fast as they ever did and shrinks
//! once they queue.

use std::time::Duration;

/// Where the limit starts. The first window is a probe, of a quarter of it.
pub(super) const START: f64 = 64.0;

/// The fewest at a time: so many cores a server surely has, and a few to wait for the network.
const FEWEST: f64 = 8.0;

/// The most at a time. Each has one chunk in hand and another in its connection: 512 MiB if none
/// were shared.
const MOST: f64 = 4096.0;

/// How many measured pieces a decision rests on, at least.
const WINDOW: u32 = 32;

/// Pieces queue when they take more than this many times what they took at best.
const TOLERATED: f64 = 2.0;

/// What becomes of the limit then.
const SHRINK: f64 = 0.8;

/// After so many windows the best time is measured anew, since it may never be so good again; with a
/// quarter at a time, since whatever queues now must not pass for the best.
const PROBE_EVERY: u32 = 128;
pub(super) const PROBE: f64 = 0.25;

/// The limit, and the measurements of the window that it comes from next.
#[derive(Debug)]
pub(super) struct Limit {
    limit: f64,
    /// The least that the pieces of a window took on average, in seconds; unknown while probing.
    best: Option<f64>,
    windows: u32,
    sum: f64,
    count: u32,
    /// The most that were active in this window.
    active: usize,
}

impl Limit {
    pub(super) const fn new() -> Self {
        Self {
            limit: START,
            best: None,
            windows: 0,
            sum: 0.0,
            count: 0,
            active: 0,
        }
    }

    pub(super) fn get(&self) -> usize {
        match self.best {
            Some(_) => self.limit as usize,
            None => (self.limit * PROBE).max(FEWEST) as usize,
        }
    }

    /// A piece took this long, with so many active.
    pub(super) fn measured(&mut self, took: Duration, active: usize) {
        self.sum += took.as_secs_f64();
        self.count += 1;
        self.active = self.active.max(active);
        // One piece of each at least, or a window sees only the fast ones.
        if self.count < WINDOW.max(u32::try_from(active).unwrap_or(u32::MAX)) {
            return;
        }
        let average = self.sum / f64::from(self.count);
        let active = self.active;
        (self.sum, self.count, self.active) = (0.0, 0, 0);
        let Some(best) = self.best else {
            // Those from before the probe read on: their pieces say nothing about fewer.
            if active <= self.get() {
                self.best = Some(average);
            }
            return;
        };
        if average > best * TOLERATED {
            self.limit = (self.limit * SHRINK).max(FEWEST);
        } else if active as f64 >= self.limit * SHRINK {
            // Only what was used is known to drain well.
            self.limit = (self.limit + self.limit.sqrt()).min(MOST);
        }
        self.best = Some(best.min(average));
        self.windows += 1;
        if self.windows == PROBE_EVERY {
            self.windows = 0;
            self.best = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a simulated link on which `capacity` pieces drain at a time, each in 10 ms.
    fn settled(capacity: f64) -> f64 {
        let mut limit = Limit::new();
        for _ in 0..200_000 {
            let active = limit.get();
            let queued = (active as f64 / capacity).max(1.0);
            limit.measured(Duration::from_secs_f64(0.010 * queued), active);
        }
        limit.limit
    }

    #[test]
    fn the_limit_follows_what_drains() {
        for capacity in [20.0, 100.0, 1000.0] {
            let limit = settled(capacity);
            assert!(
                (capacity * 0.5..=capacity * 3.5).contains(&limit),
                "{limit} for {capacity}"
            );
        }
        // As many as TOLERATED allows over the fewest that a probe tries, and a step.
        assert!((FEWEST..=FEWEST * 3.0).contains(&settled(1.0)));
        assert!(settled(1e9) <= MOST);
    }

    #[test]
    fn a_limit_that_is_not_used_does_not_grow() {
        let mut limit = Limit::new();
        for _ in 0..100_000 {
            limit.measured(Duration::from_millis(1), 3);
        }
        assert_eq!(limit.limit, START);
    }
}
