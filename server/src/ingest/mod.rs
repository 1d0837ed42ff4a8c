//! The ingest loop of a prefix: takes the updates of the source, writes the store, publishes.
//!
//! There is one task a prefix. The [`Engine`](crate::Engine) owns it and ends it by dropping it,
//! wherever it waits. The loop never waits for a stream, so no client can delay it. It does not wait
//! for deltas either: jobs compute them, and only the streams whose range they touch wait.

mod audit;
mod backfill_driver;
mod handle;
mod task;
#[cfg(test)]
mod tests;

pub(crate) use handle::Handle;
pub(crate) use task::{Limits, run};

pub(crate) use crate::source::REQUEST_TIMEOUT;
