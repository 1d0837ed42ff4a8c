//! Reads the resident memory some times a second, and says how short memory is.

use std::time::Duration;

use tokio::time::sleep;

use super::level::{Level, Pressure};
use super::resident::Resident;
use crate::metrics::Metrics;

/// How often the resident memory is read. It costs some 20 µs, so two thousandths of a core; and in a
/// tenth of a second a server that serves at 1 GB/s cannot use up what lies between two levels of a
/// limit of 1 GiB.
const READ_EVERY: Duration = Duration::from_millis(100);

/// Compares the resident memory with the limit, all the time.
#[derive(Debug)]
pub(crate) struct Monitor {
    resident: Resident,
    limit: usize,
    pressure: Pressure,
    metrics: Metrics,
}

impl Monitor {
    /// Will set the level of `pressure` by what is used of `limit` bytes.
    pub(crate) fn new(
        resident: Resident,
        limit: usize,
        pressure: Pressure,
        metrics: Metrics,
    ) -> Self {
        metrics.memory_limit_bytes.set(gauge(limit));
        Self {
            resident,
            limit,
            pressure,
            metrics,
        }
    }

    /// Runs until it is dropped.
    pub(crate) async fn run(self) {
        loop {
            // It was readable once, from a file that is open; what fails now is likely to be there again.
            if let Ok(resident) = self.resident.bytes() {
                self.observe(resident);
            }
            sleep(READ_EVERY).await;
        }
    }

    fn observe(&self, resident: usize) {
        self.metrics.memory_resident_bytes.set(gauge(resident));
        let level = self.pressure.level().after(resident, self.limit);
        if !self.pressure.set(level) {
            return;
        }
        self.metrics.memory_level.set(level as i64);
        let limit = self.limit;
        match level {
            Level::Normal => tracing::info!(resident, limit, "there is enough memory again"),
            Level::Tight => tracing::warn!(
                resident,
                limit,
                "memory is tight; new snapshots and diffs are refused"
            ),
            Level::Critical => tracing::warn!(
                resident,
                limit,
                "memory is nearly used up; no connections are accepted, and idle and slow ones are ended"
            ),
        }
    }
}

/// A number of bytes for a gauge.
fn gauge(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn monitor(limit: usize) -> Monitor {
        let resident = Resident::open().unwrap();
        Monitor::new(resident, limit, Pressure::default(), Metrics::new())
    }

    #[test]
    fn gauges_and_level_follow_what_is_observed() {
        let monitor = monitor(1000);
        let metrics = monitor.metrics.clone();
        assert_eq!(metrics.memory_limit_bytes.get(), 1000);
        for (resident, level) in [
            (500, Level::Normal),
            (850, Level::Tight),
            (960, Level::Critical),
            (910, Level::Critical),
            (820, Level::Tight),
            (790, Level::Normal),
        ] {
            monitor.observe(resident);
            assert_eq!(monitor.pressure.level(), level);
            assert_eq!(metrics.memory_level.get(), level as i64);
            assert_eq!(metrics.memory_resident_bytes.get(), gauge(resident));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn monitor_reads_the_process_itself() {
        // No process is that small.
        let monitor = monitor(1);
        let (pressure, metrics) = (monitor.pressure.clone(), monitor.metrics.clone());
        let mut levels = pressure.subscribe();
        tokio::select! {
            () = monitor.run() => unreachable!("it runs until it is dropped"),
            critical = levels.wait_for(|level| *level == Level::Critical) => {
                critical.unwrap();
            }
        }
        assert!(metrics.memory_resident_bytes.get() > 1024 * 1024);
    }
}
