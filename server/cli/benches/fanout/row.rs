//! One line of the results, and the median of several.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// The figures that every row has, in the order of the columns; `None` where one does not exist.
pub(crate) const FIGURES: [&str; 6] = [CPU, P50, P99, WIRE, RSS_IDLE, RSS_AFTER];

pub(crate) const CPU: &str = "cpu_us_per_delivery";
pub(crate) const P50: &str = "p50_ms";
pub(crate) const P99: &str = "p99_ms";
pub(crate) const WIRE: &str = "wire_bytes_per_delivery";
pub(crate) const RSS_IDLE: &str = "rss_kib_per_subscriber_idle";
pub(crate) const RSS_AFTER: &str = "rss_kib_per_subscriber_after";

/// The most memory at any moment.
pub(crate) const RSS_PEAK: &str = "rss_kib_per_subscriber_peak";

/// CPU of the process that subscribers connect to, which the budgets limit.
pub(crate) const SERVER_CPU: &str = "server_cpu_us_per_delivery";
pub(crate) const SERVER_RSS_IDLE: &str = "server_rss_kib_per_subscriber_idle";
pub(crate) const SERVER_RSS_AFTER: &str = "server_rss_kib_per_subscriber_after";

/// What one run, or the median of several, came to.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) contender: String,
    pub(crate) scenario: String,
    pub(crate) subscribers: usize,
    pub(crate) figures: BTreeMap<String, f64>,
    /// Why there are no figures.
    pub(crate) missing: Option<String>,
}

impl Row {
    /// A row without figures.
    pub(crate) fn missing(
        contender: &str,
        scenario: &str,
        subscribers: usize,
        why: String,
    ) -> Self {
        Self {
            contender: contender.to_owned(),
            scenario: scenario.to_owned(),
            subscribers,
            figures: BTreeMap::new(),
            missing: Some(why),
        }
    }

    pub(crate) fn get(&self, figure: &str) -> Option<f64> {
        self.figures.get(figure).copied()
    }

    /// The median of each figure of several runs of the same; `None` when there are none.
    pub(crate) fn median(runs: &[Self]) -> Option<Self> {
        let good: Vec<&Self> = runs.iter().filter(|run| run.missing.is_none()).collect();
        // A failed run must not be left out silently.
        if let Some(failed) = runs.iter().find(|run| run.missing.is_some()) {
            return Some(failed.clone());
        }
        let first = good.first()?;
        let mut median = Self::clone(first);
        for (name, figure) in &mut median.figures {
            let mut all: Vec<f64> = good.iter().filter_map(|run| run.get(name)).collect();
            all.sort_unstable_by(f64::total_cmp);
            *figure = all[all.len() / 2];
        }
        median.figures.insert("runs".to_owned(), good.len() as f64);
        Some(median)
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert("contender".to_owned(), json!(self.contender));
        object.insert("scenario".to_owned(), json!(self.scenario));
        object.insert("subscribers".to_owned(), json!(self.subscribers));
        for figure in FIGURES {
            object.insert(figure.to_owned(), json!(self.get(figure)));
        }
        for (name, figure) in &self.figures {
            object.insert(name.clone(), json!(figure));
        }
        if let Some(why) = &self.missing {
            object.insert("missing".to_owned(), json!(why));
        }
        Value::Object(object)
    }
}
