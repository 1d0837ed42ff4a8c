//! What a client holds at this moment: subscriptions, connections, calls, callbacks and blocking jobs.
//!
//! Everything that runs by itself holds a guard for as long as it lives: a task until its future is dropped,
//! a blocking job until it has returned. The tracker keeps nothing alive and ends nothing.

mod active;
mod resource;
mod tracker;

pub use active::{Resources, StillActive};
pub use resource::Resource;
pub(crate) use tracker::{ResourceGuard, ResourceTracker};
