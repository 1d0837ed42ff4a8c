//! Guards that move a gauge.

use std::sync::atomic::AtomicI64;

use prometheus_client::metrics::gauge::Gauge;

/// Counts one thing in a gauge for as long as it lives.
#[derive(Debug)]
#[must_use = "a thing is counted only while its guard lives"]
pub(crate) struct GaugeGuard(Gauge<i64, AtomicI64>);

impl GaugeGuard {
    /// Adds one; dropping the guard takes it off again.
    pub(crate) fn new(gauge: &Gauge<i64, AtomicI64>) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
