//! Reads a server's metrics.

use std::collections::HashMap;

use driftless_test_support::{ServerProcess, http};

/// All counters and gauges of a server at one moment.
#[derive(Debug)]
pub(crate) struct Counters(HashMap<String, u64>);

impl Counters {
    /// Asks the server.
    #[track_caller]
    pub(crate) fn of(server: &ServerProcess) -> Self {
        let (status, text) = http::get(server.admin(), "/metrics").expect("it answers");
        assert_eq!(status, 200, "{text}");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let counters = lines.filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self(counters.collect())
    }

    /// The metric with this name, without `driftless_` and `_total`.
    #[track_caller]
    pub(crate) fn get(&self, name: &str) -> u64 {
        let gauge = format!("driftless_{name}");
        let found = self.0.get(&format!("{gauge}_total"));
        *found
            .or_else(|| self.0.get(&gauge))
            .unwrap_or_else(|| panic!("there is no {name} in {self:?}"))
    }

    /// How much one of them has grown since `before`.
    #[track_caller]
    pub(crate) fn since(&self, before: &Self, name: &str) -> u64 {
        self.get(name) - before.get(name)
    }
}
