//! The admin endpoint, over HTTP on an address of its own: health, readiness and metrics, for probes and
//! scrapers. It never shows a value.

mod pages;
mod serve;

pub(crate) use pages::router;
pub(crate) use serve::serve;
