//! Who is connected: the one registry of connections and their streams.
//!
//! [`Registry`] knows each [`Connection`] and each [`Stream`] while it is open: who it is, what it
//! watches, how far it is, what its client reported. Closing slow consumers, taking reports and ending
//! single streams are views of it. An admin's questions will be answered from it.
//!
//! A connection's task owns a `ConnectionGuard`, a stream's response a `StreamGuard`. Dropping a guard
//! removes everything that the registry knows of it.
//!
//! Two things that belong to a stream have locks of their own, because they are used far more often
//! than the registry; its guard owns both, so they end with it:
//! * its place in the scope of its range, with its waker. Each change wakes the scope's streams, under
//!   the scope's lock.
//! * its `Permit` to read a snapshot or conflated diff, or its place in the queue for one. That is a
//!   fair queue, with a limit that is measured for each piece sent (`Admission`).
//!
//! Nothing here knows gRPC or HTTP/2. No lock is taken for a frame that is sent: what changes with
//! each frame are atomics in the stream's record.

mod admission;
mod calls;
mod connection;
mod control;
mod kept;
mod registry;
mod shedding;
mod slow_consumers;
mod stream;

pub use crate::auth::{BearerToken, CertificateChain, Identity};
pub(crate) use admission::Refused;
pub(crate) use calls::{Answer, HeldBytes};
pub(crate) use connection::ConnectionGuard;
pub use connection::{Connection, ConnectionId};
pub(crate) use control::ConnectionControl;
pub use registry::{Connections, Registry, Streams};
pub(crate) use shedding::Shedding;
pub(crate) use slow_consumers::SlowConsumers;
pub use stream::{CallKind, Report, Stream, StreamId, WatchId};
pub(crate) use stream::{NewStream, StreamGuard};
