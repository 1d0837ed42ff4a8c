//! What the server counts. One registry a server, so that two servers in a process stay apart.
//!
//! Every metric is declared once, in `table.rs`. Labels are bounded by the configuration (served
//! prefixes), never by clients. Gauges of things that come and go are moved by `GaugeGuard`s only, so
//! they cannot drift from what they count. Uses nothing of the other rooms.

mod declare;
mod guard;
mod table;

use std::fmt;
use std::sync::Arc;

pub use self::declare::Description;
pub(crate) use self::guard::GaugeGuard;
pub use self::table::{DESCRIPTIONS, Inner};

/// All metrics of one server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

impl Metrics {
    /// Everything at 0.
    pub fn new() -> Self {
        Self(Arc::new(Inner::new()))
    }

    /// Writes all of them in the OpenMetrics text format.
    ///
    /// # Errors
    /// When writing fails, which writing to memory does not.
    pub fn write(&self, to: &mut String) -> fmt::Result {
        prometheus_client::encoding::text::encode(to, self.0.registry())
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl std::ops::Deref for Metrics {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}
