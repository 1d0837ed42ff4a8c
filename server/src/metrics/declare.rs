//! The macro behind the [table](super::table): what one entry becomes.
//!
//! An entry is its documentation, a name, a type of `prometheus_client`, and what else applies:
//!
//! ```text
//! /// TLS handshakes that failed.
//! tls_handshakes_failed: Counter;
//!
//! /// Bytes handed to connections.
//! sent_bytes: Counter, unit Bytes;     // the name ends in the unit
//!
//! /// Requests by what became of them.
//! requests: Family<[(&'static str, &'static str); 1], Counter>,
//!     labels "outcome";                // named for the documentation
//! ```
//!
//! A `Family` exports nothing until a value of its label is counted.
//!
//! The macro makes the field of [`Inner`](super::Inner), the registration as `driftless_name` with the
//! documentation as its help, and the [`Description`] that the README's row is made of. The type must be
//! `Clone + Default`. Counters get the suffix `_total` on export.

use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Metric, Registry, Unit};

/// What every exported name starts with.
pub(super) const PREFIX: &str = "driftless";

/// What the table says about one metric.
#[derive(Debug)]
pub struct Description {
    pub(super) name: &'static str,
    pub(super) docs: &'static [&'static str],
    pub(super) kind: MetricType,
    pub(super) unit: Option<Unit>,
    pub(super) labels: &'static [&'static str],
}

impl Description {
    /// What it counts, in one line.
    pub fn help(&self) -> String {
        let lines: Vec<_> = self.docs.iter().map(|line| line.trim()).collect();
        lines.join(" ").trim_end_matches('.').to_owned()
    }

    /// The name that it is exported under.
    pub fn exported_name(&self) -> String {
        let suffix = match self.kind {
            MetricType::Counter => "_total",
            _ => "",
        };
        format!("{PREFIX}_{}{suffix}", self.name)
    }

    /// Its row in the table of `server/README.md`.
    pub fn readme_row(&self) -> String {
        let labels = match self.labels {
            [] => String::new(),
            labels => format!("{{{}}}", labels.join(", ")),
        };
        format!(
            "| `{}{labels}` | {} | {} |",
            self.exported_name(),
            self.kind.as_str(),
            self.help()
        )
    }

    /// Adds a metric that is described like this.
    pub(super) fn register(&self, registry: &mut Registry, metric: impl Metric) {
        match &self.unit {
            None => registry.register(self.name, self.help(), metric),
            Some(unit) => {
                // The registry appends the unit to the name.
                let suffix = format!("_{}", unit.as_str());
                let name = self.name.strip_suffix(&suffix).unwrap_or(self.name);
                registry.register_with_unit(name, self.help(), unit.clone(), metric);
            }
        }
    }
}

macro_rules! metrics {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident: $type:ty $(, unit $unit:ident)? $(, labels $($label:literal)+)?;
    )+) => {
        /// The metrics by name.
        #[derive(Debug)]
        pub struct Inner {
            registry: Registry,
            $($(#[doc = $doc])+ pub $name: $type,)+
        }

        impl Inner {
            pub(super) fn new() -> Self {
                let mut registry = Registry::with_prefix(PREFIX);
                let mut descriptions = DESCRIPTIONS.iter();
                $(
                    let $name = <$type>::default();
                    if let Some(description) = descriptions.next() {
                        description.register(&mut registry, $name.clone());
                    }
                )+
                Self { registry, $($name),+ }
            }

            pub(super) const fn registry(&self) -> &Registry {
                &self.registry
            }
        }

        /// What the table says about each metric.
        pub static DESCRIPTIONS: [Description; [$(stringify!($name)),+].len()] = [$(
            Description {
                name: stringify!($name),
                docs: &[$($doc),+],
                kind: <$type as TypedMetric>::TYPE,
                unit: metrics!(@unit $($unit)?),
                labels: &[$($($label),+)?],
            },
        )+];
    };
    (@unit) => { None };
    (@unit $unit:ident) => { Some(Unit::$unit) };
}

pub(super) use metrics;
