//! One subscription to one range: a state machine, the task that drives it, and what its handles share.
//!
//! Handles own a [`Subscription`] together, and it owns the task. The task owns the replica and knows nothing
//! of the handles, so nothing keeps it running when the last of them is dropped.

mod clock;
mod decoders;
mod disconnect;
mod handle;
mod outcome;
mod publisher;
mod ranges;
mod registry;
mod replica;
mod state;
mod task;

pub(crate) use decoders::DecoderGuard;
pub(crate) use handle::Subscription;
pub(crate) use registry::Registry;
pub(crate) use replica::{Applied, Replica};
