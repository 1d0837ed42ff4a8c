//! From an old and a new value to the delta between them, where one pays.
//!
//! [`compute()`] finds one delta, in bounded time. [`Jobs`] run it off the threads that serve, few at a
//! time.
//!
//! This room knows values and deltas only. Its callers say where they come from ([`ValuePair`]) and
//! how a delta is encoded.

mod compute;
mod jobs;

pub use compute::{compute, is_worth_it};
#[cfg(test)]
pub(crate) use jobs::WITHIN;
pub use jobs::{JobPool, Jobs, ValuePair};
